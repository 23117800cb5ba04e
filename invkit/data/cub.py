"""CUB-200-2011 birds as CMR annotated them: boxes, silhouettes, weak-perspective cameras from structure from motion.

    root/data/{split}_cub_cleaned.mat          `images`: path, box, mask, parts of every image of the split
    root/sfm/anno_{split}.mat                  `sfm_anno`: rotation, scale, translation, in the same order
    root/CUB_200_2011/images.txt, image_class_labels.txt, images/

Splits are train, val, test and testval. `Cub(root, split)` gives MeshInversion's evaluation items, `Cub.for_nerfinv`
those of radiance-field inversion. docs/datasets.md says where the files come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from invkit import rotation
from invkit.camera import Camera
from invkit.data.dataset import ImageSet, Preparation, to_square
from invkit.images import read_image, resize_area, square_box
from invkit.types import Views

NUM_CLASSES = 200
SPLITS = ("train", "val", "test", "testval")
_OBTAIN = "see docs/datasets.md for where to get it, and run scripts/prepare_data.py check cub on the folder"


@dataclass(frozen=True)
class Record:
    """What is annotated about one photograph; coordinates are pixels of the stored file.

    Args:
        name: class folder and file name, without suffix.
        box: left, top, right, bottom; 0-based, inclusive.
        label: class, 0-based.
        camera: weak perspective in pixels. Its shift is CMR's, fitted to 1-based key points and not decremented.
        mask: 0/1, [H, W].
    """

    name: str
    path: Path
    box: tuple[float, float, float, float]
    label: int
    camera: Camera
    mask: np.ndarray


class Cub(ImageSet):
    """One split of CUB in CMR's layout."""

    def __init__(
        self,
        root: str | Path,
        split: str,
        size: int = 256,
        *,
        preparation: Preparation = Preparation(),
        jitter: float = 0.0,
        seed: int = 0,
        mirrored: bool = False,
        exact_mirror: bool = False,
        predicted_masks: str | Path | None = None,
        predicted_cameras: str | Path | None = None,
        min_overlap: float = 0.7,
    ) -> None:
        """Read the annotations of a split; photographs are read when asked for.

        Args:
            jitter: largest random shift of each side of the box, relative to its extent (CMR trains with 0.05); drawn
                once for each item from (seed, index).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.
            exact_mirror: flipped copies take -t_x (radiance-field inversion), not CMR's -t_x - 2 / size.
            predicted_masks: folder of `<position in the split>.npy` [H, W] 0/1 that replace the annotated masks.
            predicted_cameras: `cmr_pred_cam.pth`: file name without suffix -> CMR's 7 numbers in the padded box, and an
                overlap; one whose overlap is above `min_overlap` replaces the annotated camera.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the files do not fit together.
        """
        if predicted_cameras is not None and (jitter or preparation.crop_padding != Preparation.crop_padding):
            raise ValueError("predicted_cameras refer to the box padded by 5 %: use that crop_padding and jitter 0")
        self.records = read_records(root, split)
        missing = [record.path for record in self.records if not record.path.is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} photographs of {split} are missing, first {missing[0]}: {_OBTAIN}")
        self.size, self.num_classes = size, NUM_CLASSES
        self.preparation, self.jitter, self.seed = preparation, jitter, seed
        self.mirrored, self.exact_mirror = mirrored, exact_mirror
        self.predicted_masks = None if predicted_masks is None else Path(predicted_masks)
        self.predicted_cameras = _read_predicted_cameras(predicted_cameras, self.records, min_overlap)
        self.names = [record.name for record in self.records]
        if mirrored:
            self.names += [f"{name}_mirrored" for name in self.names]

    @classmethod
    def for_nerfinv(
        cls, root: str | Path, split: str, size: int = 128, *, whole_image: bool = False, mirrored: bool = False
    ) -> "Cub":
        """Radiance-field inversion's items: area resampling, soft masks, exact mirroring.

        Its network input is `rgb * mask`; here the background is kept.

        Args:
            whole_image: no cropping, as the paper trains its generator (at 256, halved later), with mirrored copies.
        """
        padding = None if whole_image else Preparation.crop_padding
        preparation = Preparation(resize_area, mask_threshold=None, crop_padding=padding)
        return cls(root, split, size, preparation=preparation, mirrored=mirrored, exact_mirror=True)

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        position = index % len(self.records)
        record = self.records[position]
        mask = self._mask(position)
        image = _read_photo(record, mask)
        u = np.random.default_rng([self.seed, index]).random(4).tolist()
        square = self.preparation.square(record.box, *mask.shape, self.jitter, u)
        rgb, cut_mask = self.preparation.cut(image, mask[None], square, self.size)
        camera = self.predicted_cameras.get(position, to_square(record.camera, square))
        label, place = torch.tensor([record.label]), torch.tensor([index])
        views = Views(rgb, cut_mask, camera, label, place).to("cpu", dtype=torch.float32)
        if index == position:
            return views
        return views.mirror(None if self.exact_mirror else self.size)

    def _mask(self, position: int) -> Float[Tensor, "H W"]:
        if self.predicted_masks is None:
            return torch.from_numpy(self.records[position].mask.astype(np.float64))
        path = self.predicted_masks / f"{position}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"no predicted mask {path} for {self.records[position].name}; {_OBTAIN}")
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False).squeeze().astype(np.float64))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"cannot read the predicted mask {path} ({error}); get it again") from error


def annotation_files(root: str | Path, split: str) -> tuple[Path, Path, Path, Path]:
    """The files a split is described by: images, cameras, list of paths, list of classes."""
    root, cub = Path(root), Path(root) / "CUB_200_2011"
    return (
        root / "data" / f"{split}_cub_cleaned.mat",
        root / "sfm" / f"anno_{split}.mat",
        cub / "images.txt",
        cub / "image_class_labels.txt",
    )


def read_records(root: str | Path, split: str) -> list[Record]:
    """The annotations of every photograph of a split, in the order of the files.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the others.
    """
    images_mat, cameras_mat, paths_txt, labels_txt = annotation_files(root, split)
    images = _structs(images_mat, "images", ("rel_path", "bbox", "mask"))
    poses = _structs(cameras_mat, "sfm_anno", ("rot", "scale", "trans"))
    if len(images) != len(poses):
        raise ValueError(
            f"{images_mat} lists {len(images)} images and {cameras_mat} {len(poses)} cameras; they must match"
        )
    paths, classes = read_table(paths_txt), read_table(labels_txt)
    ids = {path: image_id for image_id, path in paths.items()}
    cameras = _cameras(poses, cameras_mat)
    records = []
    for position, image in enumerate(images):
        relative = str(image.rel_path).replace("\\", "/")
        label = classes.get(ids.get(relative, ""), "")
        if not label.isdigit() or not 1 <= int(label) <= NUM_CLASSES:
            raise ValueError(
                f"{relative} (number {position} of {images_mat}) has no class in {paths_txt} and {labels_txt}"
            )
        try:
            box = tuple(float(getattr(image.bbox, side)) - 1 for side in ("x1", "y1", "x2", "y2"))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{images_mat}: bbox of {relative} needs the numbers x1, y1, x2, y2 ({error})") from error
        name = relative.rpartition(".")[0]
        path = paths_txt.parent / "images" / relative
        records.append(Record(name, path, box, int(label) - 1, cameras[position], np.asarray(image.mask)))
    if len({record.name for record in records}) != len(records):
        raise ValueError(f"{images_mat} lists a photograph twice")
    return records


def problems(root: str | Path, split: str) -> list[str]:
    """In words, every file of a split that is missing or damaged, with what to do about it; reads all of them."""
    found = [f"{path} is missing; {_OBTAIN}" for path in annotation_files(root, split) if not path.is_file()]
    if found:
        return found
    try:
        records = read_records(root, split)
    except ValueError as error:
        return [str(error)]
    for record in records:
        try:
            _read_photo(record, torch.from_numpy(record.mask))
            square_box(record.box)
        except FileNotFoundError as error:
            found.append(f"{error}; {_OBTAIN}")
        except ValueError as error:
            found.append(f"{record.name} of {split}: {error}")
        if not record.mask.any():
            found.append(f"{record.name} of {split}: its mask in the annotations is empty; {_OBTAIN}")
        if not record.camera.scale.item() > 0:
            found.append(f"{record.name} of {split}: its camera has no positive scale; {_OBTAIN}")
    return found


def mean_shape(root: str | Path) -> Float[Tensor, "15 3"]:
    """The mean key points of CMR's structure from motion: object frame, float64.

    Raises:
        FileNotFoundError: there is no `anno_train.mat`.
        ValueError: it has no shape `S`.
    """
    path = annotation_files(root, "train")[1]
    shape = np.asarray(read_mat(path).get("S", ()), dtype=np.float64)
    if shape.shape != (3, 15):
        raise ValueError(f"{path} has no mean shape S of 3 x 15 numbers; {_OBTAIN}")
    return torch.from_numpy(shape.T.copy())


def read_mat(path: str | Path) -> dict[str, Any]:
    """The variables of a MATLAB file, structs as objects, single dimensions dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; {_OBTAIN}")
    try:
        return scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)
    except Exception as error:  # a truncated file raises whatever its broken bytes happen to mean
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error}); it is damaged: {_OBTAIN}") from error


def _read_photo(record: Record, mask: Shaped[Tensor, "H W"]) -> Float[Tensor, "3 H W"]:
    image = read_image(record.path)
    if mask.shape != image.shape[1:]:
        raise ValueError(f"{record.path} is {tuple(image.shape[1:])} (height, width) and its mask {tuple(mask.shape)}")
    return image


def _structs(path: Path, variable: str, needed: Sequence[str]) -> np.ndarray:
    contents = read_mat(path)
    if variable not in contents:
        raise ValueError(f"{path} has no variable `{variable}`; {_OBTAIN}")
    structs = np.atleast_1d(contents[variable])
    for position, struct in enumerate(structs):
        absent = [name for name in needed if not hasattr(struct, name)]
        if absent:
            raise ValueError(f"{path}: entry {position} of `{variable}` lacks the field {', '.join(absent)}; {_OBTAIN}")
    return structs


def _cameras(poses: np.ndarray, path: Path) -> Camera:
    """All of a split's cameras in pixels, float64."""
    try:
        rotations = torch.tensor(np.stack([pose.rot for pose in poses]), dtype=torch.float64)
        scales = torch.tensor([float(pose.scale) for pose in poses], dtype=torch.float64)
        shifts = torch.tensor(np.stack([pose.trans for pose in poses]), dtype=torch.float64)
        return Camera(
            rotation.from_matrix(rotations.view(-1, 3, 3)), scales, shifts.view(-1, 2), torch.zeros_like(scales)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: needs rot 3 x 3, scale and trans 2 of every image ({error}); {_OBTAIN}") from error


def read_table(path: Path) -> dict[str, str]:
    """First column -> second of a text file of two columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_OBTAIN}")
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != 2]
    if wrong:
        raise ValueError(f"{path}: line {wrong[0]} has no two columns; {_OBTAIN}")
    return {first: second.strip() for first, second in rows}


def _read_predicted_cameras(
    path: str | Path | None, records: Sequence[Record], min_overlap: float
) -> dict[int, Camera]:
    """Position -> camera of those that are good enough."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; {_OBTAIN}")
    try:
        entries = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive raises whatever its broken bytes happen to mean
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error}); it is damaged: {_OBTAIN}") from error
    cameras = {}
    for position, record in enumerate(records):
        stem = record.path.stem
        try:
            overlap = float(entries[stem]["pred_pose_overlay_iou"])
            vector = entries[stem]["pred_cam"].double().view(1, 7)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{path} gives no pred_cam of 7 numbers and pred_pose_overlay_iou to {stem} ({error!r}): "
                "was it predicted for another split?"
            ) from error
        if overlap > min_overlap:
            cameras[position] = Camera.from_cmr(vector)
    return cameras

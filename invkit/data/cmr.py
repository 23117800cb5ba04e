"""Photographs as CMR annotates them: what CUB and PASCAL3D+ share, from its MATLAB files to prepared items.

Two files describe a split, entry by entry: `images` has the path, the box and the silhouette of every object,
`sfm_anno` its weak-perspective camera from structure from motion.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from invkit.data.dataset import ImageSet, Preparation, to_square
from invkit.data.names import checked_name, file_below
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import Box, read_image
from invkit.runtime import matlab
from invkit.types import Views

LARGEST_BOX = 4
NEAR = 5
"""An object's center lies no farther from its box than this, in sides of the box."""
OBTAIN = "see docs/datasets.md for where to get it, and run scripts/prepare_data.py check on the folder"


@dataclass(frozen=True)
class Record:
    """What is annotated about one object in a photograph; coordinates are pixels of the stored file.

    Args:
        position: place in the annotation files, from 0.
        name: path of the photograph below the folder of all of them, "/" between its parts, without suffix.
        box: left, top, right, bottom; 0-based, inclusive; may be fractional.
        camera: weak perspective in pixels. Its shift is CMR's, fitted to 1-based key points and not decremented.
        label: class, 0-based; None where there are no classes.
        cad_index: number of the annotated CAD model, from 1; None where none is annotated.
    """

    position: int
    name: str
    path: Path
    box: tuple[float, float, float, float]
    camera: Camera
    mask: Bool[np.ndarray, "H W"]
    label: int | None = None
    cad_index: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photograph."""
        return self.mask.shape

    def silhouette(self) -> Bool[np.ndarray, "H W"]:
        """The annotated mask."""
        return self.mask


@runtime_checkable
class Annotation(Protocol):
    """What has to be known about an object in a photograph for it to be cut out: what `Record` says."""

    name: str
    path: Path
    box: tuple[float, float, float, float]
    camera: Camera
    size: tuple[int, int]
    label: int | None

    def silhouette(self) -> Bool[np.ndarray, "H W"]:
        """Which pixels the object covers. A method, since whoever asks an object whether it is an `Annotation` reads
        its attributes, and this may have to be decoded, or be damaged."""
        ...


class AnnotatedPhotos(ImageSet):
    """The annotated objects of a split, each cut out of its photograph, and flipped copies behind them.

    records: the annotations of the items, in their order; mirrored copies have no records of their own.
    """

    def __init__(
        self,
        records: Sequence[Annotation],
        size: int,
        num_classes: int,
        *,
        preparation: Preparation,
        jitter: float,
        seed: int,
        mirrored: bool,
        exact_mirror: bool,
    ) -> None:
        """Look whether the photographs are there; they are read when asked for.

        Args:
            jitter: largest random shift of each side of the box, relative to its extent (CMR trains with 0.05); drawn
                once for each item from (seed, index).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.
            exact_mirror: flipped copies take -t_x, not CMR's -t_x - 2 / size.

        Raises:
            FileNotFoundError: a photograph is missing.
            ValueError: a box or a camera is impossible.
        """
        missing = [record.path for record in records if not record.path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(records)} photographs are missing, first {missing[0]}: {OBTAIN}"
            )
        wrong = [f"{record.name}: {fault}" for record in records for fault in faults(record)]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(records)} annotations are impossible, first of {wrong[0]}; {OBTAIN}"
            )
        self.records = list(records)
        self.size, self.num_classes = size, num_classes
        self.preparation, self.jitter, self.seed = preparation, jitter, seed
        self.mirrored, self.exact_mirror = mirrored, exact_mirror
        self.names = [record.name for record in records]
        if mirrored:
            self.names += [f"{name}_mirrored" for name in self.names]

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        item = index % len(self.records)
        record, mask = self.records[item], self._mask(item)
        image = read_photo(record, mask)
        square = self._square(index)
        rgb, cut_mask = self.preparation.cut(image, mask[None], square, self.size)
        if not bool(cut_mask.any()):
            raise ValueError(
                f"{record.path}: nothing of its silhouette is left at {self.size} pixels; use a larger size"
            )
        label = None if record.label is None else torch.tensor([record.label])
        views = Views(rgb, cut_mask, self._camera(item, square), label, torch.tensor([index]))
        views = views.to("cpu", dtype=torch.float32)
        if index == item:
            return views
        return views.mirror(None if self.exact_mirror else self.size)

    def camera(self, index: int) -> Camera:
        index = self._position(index)
        item = index % len(self.records)
        camera = self._camera(item, self._square(index)).to("cpu", dtype=torch.float32)
        return camera if index == item else camera.mirror(None if self.exact_mirror else self.size)

    def label(self, index: int) -> int | None:
        return self.records[self._position(index) % len(self.records)].label

    def _square(self, index: int) -> Box:
        """What item `index` is cut out by."""
        record = self.records[index % len(self.records)]
        u = np.random.default_rng([self.seed, index]).random(4).tolist()
        return self.preparation.square(record.box, *record.silhouette().shape, self.jitter, u)

    def _mask(self, item: int) -> Float[Tensor, "H W"]:
        return torch.from_numpy(self.records[item].silhouette().astype(np.float64))

    def _camera(self, item: int, square: Box) -> Camera:
        return to_square(self.records[item].camera, square)


def read_records(images_mat: Path, cameras_mat: Path, photos: Path) -> list[Record]:
    """The annotations of every object of a split, in the order of the files; no labels.

    Args:
        images_mat: holds `images`: rel_path, bbox, mask, and cad_index where CAD models are annotated.
        cameras_mat: holds `sfm_anno`: rot, scale, trans.
        photos: the folder that paths start from.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the other.
    """
    images = structs(images_mat, "images", ("rel_path", "bbox", "mask"))
    poses = structs(cameras_mat, "sfm_anno", ("rot", "scale", "trans"))
    if len(images) != len(poses):
        raise ValueError(
            f"{images_mat} lists {len(images)} images and {cameras_mat} {len(poses)} cameras; they must match"
        )
    cameras = _cameras(poses, cameras_mat)
    records = []
    for position, image in enumerate(images):
        relative = checked_name(str(image.rel_path).replace("\\", "/"), images_mat)
        try:
            box = tuple(float(getattr(image.bbox, side)) - 1 for side in ("x1", "y1", "x2", "y2"))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{images_mat}: bbox of {relative} needs the numbers x1, y1, x2, y2 ({error})") from error
        try:
            cad_index = int(image.cad_index) if hasattr(image, "cad_index") else None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{images_mat}: cad_index of {relative} is not a number ({error}); {OBTAIN}") from error
        mask = np.asarray(image.mask)
        if mask.ndim != 2 or mask.dtype.kind not in "buif":
            raise ValueError(f"{images_mat}: mask of {relative} is not an image of numbers; {OBTAIN}")
        del image.mask  # thousands of photographs' masks: not twice in memory
        name = relative.rpartition(".")[0]
        path = file_below(photos, relative)
        records.append(Record(position, name, path, box, cameras[position], mask > 0, cad_index=cad_index))
    return records


def faults(record: Annotation) -> list[str]:
    """In words, why box or camera of a record are those of no object in its photograph."""
    camera = record.camera
    found = [_fault_of_box(record.box, *record.size)]
    for what, numbers in (("rotation", camera.quat), ("translation", camera.shift), ("scale", camera.scale)):
        if not all(map(math.isfinite, numbers.flatten().tolist())):
            found.append(f"the {what} of its camera is not finite")
    if camera.scale.item() <= 0:
        found.append("its camera has no positive scale")
    return [fault for fault in found if fault]


def _fault_of_box(box: Sequence[float], height: int, width: int) -> str:
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        fault = "is not finite"
    elif right < left or bottom < top:
        fault = "is empty"
    elif right < 0 or bottom < 0 or left >= width or top >= height:
        fault = f"lies outside of the photograph, {width} x {height}"
    elif max(right - left, bottom - top) > LARGEST_BOX * max(height, width):
        fault = f"is more than {LARGEST_BOX} times as long as the photograph, {width} x {height}"
    else:
        return ""
    return f"its box {fault}: {[round(side, 2) for side in box]}, from 0"


def read_photo(record: Annotation, mask: Shaped[Tensor, "H W"]) -> Float[Tensor, "3 H W"]:
    """The photograph of a record, in [0, 1].

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or of another size than `mask`.
    """
    image = read_image(record.path)
    if mask.shape != image.shape[1:]:
        raise ValueError(f"{record.path} is {tuple(image.shape[1:])} (height, width) and its mask {tuple(mask.shape)}")
    return image


def problems(files: Sequence[Path], read: Callable[[], Sequence[Annotation]], split: str) -> list[str]:
    """In words, everything that is missing or damaged in a split, with what to do about it; reads all of it.

    Args:
        files: what describes the split.
        read: gives the records once all of those are there.
    """
    found = [f"{path} is missing; {OBTAIN}" for path in files if not path.is_file()]
    if found:
        return found
    try:
        records = read()
    except ValueError as error:
        return [str(error)]
    for record in records:
        try:
            mask = record.silhouette()
            if not mask.any():
                found.append(f"{record.name} of {split}: its mask in the annotations is empty; {OBTAIN}")
            read_photo(record, torch.from_numpy(mask))
        except FileNotFoundError as error:
            found.append(f"{error}; {OBTAIN}")
        except ValueError as error:
            found.append(f"{record.name} of {split}: {error}")
        wrong = faults(record)
        if not wrong and record.camera.inv_focal.item() == 0:
            wrong = far_off(record.camera, record.box)
        found += [f"{record.name} of {split}: {fault}; {OBTAIN}" for fault in wrong]
    return found


def far_off(camera: Camera, box: Sequence[float | int]) -> list[str]:
    """In words, why a weak-perspective camera in pixels can hardly be that of the object in the box."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) + 1
    x, y = camera.shift[0].tolist()
    scale = camera.scale.item() / side
    found = []
    if not (left - NEAR * side < x < right + NEAR * side and top - NEAR * side < y < bottom + NEAR * side):
        found.append(f"its camera puts the object's center at ({x:.4g}, {y:.4g}), far from its box")
    if not 0.01 < scale < 100:
        found.append(f"its camera has the scale {camera.scale.item():.4g}, in a box of {side:.4g} pixels")
    return found


def read_mean_shape(cameras_mat: Path, num_points: int) -> Float[Tensor, "N 3"]:
    """The mean key points of CMR's structure from motion: object frame, float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no shape `S` of so many points.
    """
    shape = np.asarray(read_mat(cameras_mat).get("S", ()), dtype=np.float64)
    if shape.shape != (3, num_points):
        raise ValueError(f"{cameras_mat} has no mean shape S of 3 x {num_points} numbers; {OBTAIN}")
    return torch.from_numpy(shape.T.copy())


def read_mat(path: str | Path) -> dict[str, Any]:
    """The variables of a MATLAB file, structs as objects, single dimensions dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    try:
        return matlab.read_mat(Path(path))
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}); it is damaged: {OBTAIN}") from error


def structs(path: Path, variable: str, needed: Sequence[str]) -> np.ndarray:
    """The entries of an array of structs in a MATLAB file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has no such variable, or an entry lacks a field.
    """
    contents = read_mat(path)
    if variable not in contents:
        raise ValueError(f"{path} has no variable `{variable}`; {OBTAIN}")
    structs = np.atleast_1d(contents[variable])
    for position, struct in enumerate(structs):
        absent = [name for name in needed if not hasattr(struct, name)]
        if absent:
            raise ValueError(f"{path}: entry {position} of `{variable}` lacks the field {', '.join(absent)}; {OBTAIN}")
    return structs


def _check_rotations(rotations: Float[Tensor, "N 3 3"]) -> None:
    """Do nothing where these are rotations.

    Raises:
        ValueError: one is none; the message names the entry.
    """
    off = (rotations @ rotations.mT - torch.eye(3, dtype=rotations.dtype)).abs().amax(dim=(1, 2))
    for fault, wrong in {
        "rot is not finite": ~rotations.isfinite().flatten(1).all(dim=1),
        "rot is no rotation (its rows are not of unit length at right angles)": off > 1e-2,
        "rot mirrors space": torch.linalg.det(rotations.nan_to_num()) <= 0,
    }.items():
        if bool(wrong.any()):
            raise ValueError(f"entry {int(wrong.nonzero()[0])}: {fault}")


def _cameras(poses: np.ndarray, path: Path) -> Camera:
    """All of a split's cameras in pixels, float64."""
    try:
        rotations = torch.tensor(np.stack([pose.rot for pose in poses]), dtype=torch.float64)
        scales = torch.tensor([float(pose.scale) for pose in poses], dtype=torch.float64)
        shifts = torch.tensor(np.stack([pose.trans for pose in poses]), dtype=torch.float64)
        count = len(poses)
        _check_rotations(rotations.view(count, 3, 3))
        quats = rotation.from_matrix(rotations.view(count, 3, 3))
        return Camera(quats, scales, shifts.view(count, 2), torch.zeros_like(scales))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: needs rot 3 x 3, scale and trans 2 of every image ({error}); {OBTAIN}") from error

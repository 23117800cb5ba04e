"""Folders of pseudo ground truth, written here or published, as items to train the GAN with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.data.pascal3d import read_shapes
from invkit.geometry.camera import Camera
from invkit.images import resize_antialias
from meshinv.mesh import UVMaps
from meshinv.pseudo_truth import METADATA, PseudoTruth, inverse_focal
from meshinv.published import class_of_folder, read_cameras, read_npz, weak_perspective


@dataclass(frozen=True)
class Metadata:
    """What is known about all images of a folder, by the number of their files.

    Args:
        labels: -1 where an image has none.
        iou: of an image's mesh with its mask; 1 where it was not measured.
    """

    names: list[str]
    labels: Int[Tensor, "N"]
    cameras: Camera
    iou: Float[np.ndarray, "N"]


def find_metadata(root: Path) -> Path:
    """In the folder itself (as written here), beside it (ConvMesh), or in `cache` beside it (MeshInversion).

    Raises:
        FileNotFoundError: it is in none of them.
    """
    for folder in (root, root.parent, root.parent / "cache"):
        if (folder / METADATA).is_file():
            return folder / METADATA
    raise FileNotFoundError(
        f"{root / METADATA}: no pseudo ground truth here, and none beside it; "
        "scripts/train.py experiment=meshinv_pseudo_truth_* makes it, docs/datasets.md says where to get ConvMesh's"
    )


def read_metadata(path: Path, *, corrected: bool = True) -> Metadata:
    """From a file written here or published; birds of a published one get their class from their folder.

    Args:
        corrected: see `PseudoTruthSet`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or a field is missing or has the wrong shape.
    """
    stored = read_npz(path)
    widths = {"scale": 1, "translation": 3, "rotation": 4}
    missing = {"path", *widths} - set(stored)
    if missing:
        raise ValueError(f"{path}: no field {', '.join(sorted(missing))}; these are no poses of a pseudo ground truth")
    names = [str(name).replace("\\", "/") for name in stored["path"]]
    count = len(names)
    for name, width in widths.items():
        if np.shape(stored[name]) != (count, width):
            raise ValueError(f"{path}: field {name} is {np.shape(stored[name])}, not {(count, width)}; get it again")
    if "z0" in stored and "delta_scale" not in stored:
        raise ValueError(f"{path}: field z0 is of a later method, whose cameras are others; ConvMesh's file is meant")
    known = {
        "label": [class_of_folder(name) for name in names],
        "delta_scale": np.zeros((count, 1)),
        "delta_translation": np.zeros((count, 2)),
        "iou": np.ones(count),
        **stored,
    }
    cameras = weak_perspective(np.concatenate([stored[name] for name in widths], axis=1), path)
    if corrected:
        scale, shift = (torch.from_numpy(known[name]).float() for name in ("delta_scale", "delta_translation"))
        cameras = replace(cameras, scale=cameras.scale + scale[:, 0], shift=cameras.shift + shift)
        if "z0" in known:
            cameras = replace(cameras, inv_focal=inverse_focal(torch.from_numpy(known["z0"]).float()[:, 0]))
    return Metadata(names, torch.from_numpy(np.asarray(known["label"], np.int64)), cameras, known["iou"])


def shape_labels(path: str | Path, names: Sequence[str]) -> Int[Tensor, "N"]:
    """Class of each car by ConvMesh's `p3d_labels.csv`: the rank of its shape among all; -1 where it is not listed."""
    shapes = read_shapes(path)
    rank = {shape: rank for rank, shape in enumerate(sorted(set(shapes.values())))}
    return torch.tensor([rank.get(shapes.get(Path(name).stem), -1) for name in names], dtype=torch.int64)


class PseudoTruthSet:
    """The pseudo ground truth of a folder; item i is a `PseudoTruth` batch of one.

    Args:
        root: a folder of `<i>.npz` files, written here or published.
        num_classes: how many classes the labels are drawn from; 0 ignores them.
        min_iou: images whose mesh covers its photograph worse than this are left out.
        image_size: read the photographs too, at this size; None leaves them out.
        corrected: cameras with the corrections learned in stage 1, which the textures were projected with. The released
            code trains with the annotated ones, and published files have no others.
        metadata: what is known about all images; None is the file that `find_metadata` finds.
        cameras: MeshInversion's `cam_pose_train.pickle`, one camera for each file, instead of those of the metadata.
        path_prefix: images whose path does not start so are left out; their files are there all the same. ConvMesh
            trains on cars in `car_imagenet`.
        labels_file: see `shape_labels`; None is the label of the metadata.
        max_bytes: the items are kept in memory once read, if all of them take no more than this.

    Raises:
        FileNotFoundError: the folder or another file is not there, or the folder is not whole.
        ValueError: a file is damaged, the number of files is not that of the poses, no image is left, or one has no
            label although classes are asked.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int = 0,
        min_iou: float = 0.0,
        image_size: int | None = None,
        corrected: bool = True,
        metadata: str | Path | None = None,
        cameras: str | Path | None = None,
        path_prefix: str | None = None,
        labels_file: str | Path | None = None,
        max_bytes: int = 4 * 2**30,
    ) -> None:
        self.root = Path(root)
        self.num_classes, self.image_size = num_classes, image_size
        source = find_metadata(self.root) if metadata is None else Path(metadata)
        known = read_metadata(source, corrected=corrected)
        files = {int(file.stem) for file in self.root.glob("*.npz") if file.stem.isdigit()}
        if files != set(range(len(known.names))):
            raise ValueError(
                f"{self.root}: {len(files)} pseudo-truth files for {len(known.names)} poses in {source}; "
                "finish or repeat the run that writes them, or get the missing ones"
            )
        named = np.array([name.startswith(path_prefix or "") for name in known.names])
        if not named.any():
            raise ValueError(f"{source}: no path starts with path_prefix={path_prefix!r}; one is {known.names[0]}")
        self.positions = np.flatnonzero(named & (known.iou >= min_iou))
        if not len(self.positions):
            best = known.iou[named].max()
            raise ValueError(f"{self.root}: no image reaches min_iou={min_iou}; the best is {best:.3f}")
        self.names = [known.names[i] for i in self.positions]
        self._labels = known.labels if labels_file is None else shape_labels(labels_file, known.names)
        low, high = int(self.labels.min()), int(self.labels.max())
        if num_classes and not 0 <= low <= high < num_classes:
            raise ValueError(
                f"{labels_file or source}: field label runs from {low} to {high}, which does not fit "
                f"num_classes={num_classes}; {self.names[int(self.labels.argmin())]} has {low}, and -1 is none"
            )
        self._cameras = known.cameras if cameras is None else read_cameras(cameras)
        if len(self._cameras) != len(known.names):
            raise ValueError(f"{cameras}: {len(self._cameras)} cameras for {len(known.names)} images in {source}")
        self._items: dict[int, PseudoTruth] = {}
        first = self._read(0)
        item_bytes = first.maps.texture.nbytes + first.maps.displacement.nbytes + first.alpha.nbytes
        item_bytes += 0 if first.image is None else first.image.nbytes
        self._keep = item_bytes * len(self) <= max_bytes

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Int[Tensor, "N"]:
        """Class of each image; -1 where it has none."""
        return self._labels[self.positions]

    def __getitem__(self, item: int) -> PseudoTruth:
        if item not in self._items:
            read = self._read(item)
            if not self._keep:
                return read
            self._items[item] = read  # two threads may both get here; they read the same
        return self._items[item]

    def _read(self, item: int) -> PseudoTruth:
        position = int(self.positions[item])
        path = self.root / f"{position}.npz"
        stored = read_npz(path)
        texture, alpha, mesh = (
            _map(stored, name, channels, path) for name, channels in (("texture", 3), ("texture_alpha", 1), ("mesh", 3))
        )
        image = None
        if self.image_size is not None:
            image = _map(stored, "image_256" if "image_256" in stored else "image", 3, path)
            if image.shape[-1] != self.image_size:
                image = resize_antialias(image, self.image_size)
        return PseudoTruth(
            UVMaps(texture, mesh),
            alpha,
            self._cameras[position],
            self._labels[position : position + 1] if self.num_classes else None,
            torch.tensor([item]),
            image,
        )

    def batch(self, indices: Sequence[int]) -> PseudoTruth:
        return PseudoTruth.cat([self[i] for i in indices])


def _map(stored: dict[str, Any], name: str, channels: int, path: Path) -> Float[Tensor, "1 C H W"]:
    """The first channels of a field of an item's file; published photographs may have their mask as a fourth."""
    if name not in stored:
        found = f"no field {name}, only {', '.join(stored)}"
    elif np.ndim(stored[name]) != 3 or len(stored[name]) < channels:
        found = f"field {name} is {np.shape(stored[name])}, not {channels} maps"
    else:
        return torch.from_numpy(stored[name][:channels].astype(np.float32))[None]
    raise ValueError(f"{path}: {found}; repeat the run that wrote it, or get it again")

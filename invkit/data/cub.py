"""CUB-200-2011 birds as CMR annotated them: boxes, silhouettes, weak-perspective cameras from structure from motion.

    root/data/{split}_cub_cleaned.mat          `images`: path, box, mask, parts of every image of the split
    root/sfm/anno_{split}.mat                  `sfm_anno`: rotation, scale, translation, in the same order
    root/CUB_200_2011/images.txt, image_class_labels.txt, images/

Splits are train, val, test and testval. `Cub(root, split)` gives MeshInversion's evaluation items, `Cub.for_nerfinv`
those of radiance-field inversion. docs/datasets.md says where the files come from.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invkit.data import cmr
from invkit.data.cmr import OBTAIN, AnnotatedPhotos, Record, read_mean_shape
from invkit.data.dataset import ImageSet, Preparation, subset
from invkit.geometry.camera import Camera
from invkit.images import Box, resize_area
from invkit.runtime.arrays import read_npy

NUM_CLASSES = 200
SPLITS = ("train", "val", "test", "testval")
ANNOTATED = "annotated_masks.txt"
"""Names of the birds whose mask was drawn by people, in the root of a data set that has others too."""


class Cub(AnnotatedPhotos):
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
        super().__init__(
            read_records(root, split),
            size,
            NUM_CLASSES,
            preparation=preparation,
            jitter=jitter,
            seed=seed,
            mirrored=mirrored,
            exact_mirror=exact_mirror,
        )
        self.root = Path(root)
        self.predicted_masks = None if predicted_masks is None else Path(predicted_masks)
        self.predicted_cameras = _read_predicted_cameras(predicted_cameras, self.records, min_overlap)

    @classmethod
    def for_nerfinv(
        cls,
        root: str | Path,
        split: str,
        size: int = 128,
        *,
        whole_image: bool = False,
        crop_padding: float = 0.05,
        mirrored: bool = False,
    ) -> "Cub":
        """Radiance-field inversion's items: area resampling, soft masks, exact mirroring.

        Its network input is `rgb * mask`; here the background is kept.

        Args:
            whole_image: no cropping, as the paper trains its generator (at 256, halved later), with mirrored copies.
            crop_padding: growth of the box on each side, relative to its extent. What a generator makes outside of the
                crop is seen from few cameras, so that one trained on crops wants some room.
        """
        padding = None if whole_image else crop_padding
        preparation = Preparation(resize_area, mask_threshold=None, crop_padding=padding)
        return cls(root, split, size, preparation=preparation, mirrored=mirrored, exact_mirror=True)

    def annotated(self) -> ImageSet:
        there = self
        if self.predicted_masks is not None or self.predicted_cameras:
            there = copy.copy(self)
            there.predicted_masks, there.predicted_cameras = None, {}
        if not (self.root / ANNOTATED).is_file():
            return there
        drawn = set(read_text(self.root / ANNOTATED).splitlines())
        return subset(there, [i for i, name in enumerate(self.names) if name.removesuffix("_mirrored") in drawn])

    def _mask(self, item: int) -> Float[Tensor, "H W"]:
        if self.predicted_masks is None:
            return super()._mask(item)
        path = self.predicted_masks / f"{item}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"no predicted mask {path} for {self.records[item].name}; {OBTAIN}")
        mask = read_npy(path).squeeze()
        if mask.dtype.kind not in "buif" or mask.ndim != 2:
            raise ValueError(f"the predicted mask {path} is {mask.dtype} {list(mask.shape)}, no image; get it again")
        mask = mask.astype(np.float64)
        if not np.isfinite(mask).all() or mask.min(initial=0) < 0 or mask.max(initial=0) > 1:
            raise ValueError(f"the predicted mask {path} has other numbers than 0 to 1: divide by 255, or get it again")
        if not mask.any():
            raise ValueError(f"the predicted mask {path} of {self.records[item].name} is empty; get it again")
        return torch.from_numpy(mask)

    def _camera(self, item: int, square: Box) -> Camera:
        return self.predicted_cameras.get(item, super()._camera(item, square))


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
    found = cmr.read_records(images_mat, cameras_mat, paths_txt.parent / "images")
    paths, classes = read_table(paths_txt), read_table(labels_txt)
    ids = {path: image_id for image_id, path in paths.items()}
    records = []
    for record in found:
        relative = record.name + record.path.suffix
        label = classes.get(ids.get(relative, ""), "")
        if not label.isdigit() or not 1 <= int(label) <= NUM_CLASSES:
            raise ValueError(
                f"{relative} (number {record.position} of {images_mat}) has no class in {paths_txt} and {labels_txt}"
            )
        records.append(replace(record, label=int(label) - 1))
    if len({record.name for record in records}) != len(records):
        raise ValueError(f"{images_mat} lists a photograph twice")
    return records


def problems(root: str | Path, split: str) -> list[str]:
    """In words, every file of a split that is missing or damaged, with what to do about it; reads all of them."""
    return cmr.problems(annotation_files(root, split), partial(read_records, root, split), split)


def mean_shape(root: str | Path) -> Float[Tensor, "15 3"]:
    """The mean key points of CMR's structure from motion: object frame, float64.

    Raises:
        FileNotFoundError: there is no `anno_train.mat`.
        ValueError: it has no shape `S`.
    """
    return read_mean_shape(annotation_files(root, "train")[1], 15)


def read_table(path: Path) -> dict[str, str]:
    """First column -> second of a text file of two columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    rows = [line.split(maxsplit=1) for line in read_text(path).splitlines() if line.strip()]
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != 2]
    if wrong:
        raise ValueError(f"{path}: line {wrong[0]} has no two columns; {OBTAIN}")
    return {first: second.strip() for first, second in rows}


def read_text(path: Path) -> str:
    """A list, which is text.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text; {OBTAIN}") from error


def _read_predicted_cameras(
    path: str | Path | None, records: Sequence[Record], min_overlap: float
) -> dict[int, Camera]:
    """Position -> camera of those that are good enough."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    try:
        entries = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive raises whatever its broken bytes happen to mean
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error}); it is damaged: {OBTAIN}") from error
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
        if not (math.isfinite(overlap) and bool(vector.isfinite().all())):
            raise ValueError(f"{path}: pred_cam or pred_pose_overlay_iou of {stem} is not finite; {OBTAIN}")
        if overlap > min_overlap and not (vector[0, 0] > 0 and abs(vector[0, 3:].norm() - 1) < 0.05):
            raise ValueError(f"{path}: pred_cam of {stem} is {vector[0].tolist()}; {OBTAIN}")
        if overlap > min_overlap:
            cameras[position] = Camera.from_cmr(vector)
    return cameras

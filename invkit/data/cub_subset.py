"""Turns a `cub_subset` folder (small copies of CUB's photographs, see docs/datasets.md) into the layout `Cub` reads.

The subset keeps photographs of at most 320 pixels beside annotations in pixels of the original photographs. All of
CUB's coordinates, and the key points that CMR fitted its cameras to, are 1-based: the middle of the first pixel is 1.
So a coordinate c goes to (c - 1/2) f + 1/2 when the photograph is scaled by f.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Float
from PIL import Image

from invkit.data.cub import annotation_files, read_table

SPLITS = {"1": "train", "0": "test"}
RECEIPT = "prepared.json"


@dataclass(frozen=True)
class Bird:
    """One annotated photograph; coordinates are 1-based pixels of a `width` x `height` picture.

    Args:
        box: left, top, right, bottom, inclusive.
        parts: x, y, visible (0 or 1) of the 15 key points.
        rot: object -> camera; xy = scale (rot p)_xy + trans.
        annotated: the mask was drawn by a person.
    """

    image_id: int
    path: str
    split: str
    label: int
    width: int
    height: int
    box: Float[np.ndarray, "4"]
    parts: Float[np.ndarray, "15 3"]
    rot: Float[np.ndarray, "3 3"]
    scale: float
    trans: Float[np.ndarray, "2"]
    mask: Path
    annotated: bool

    def resized(self, width: int, height: int) -> "Bird":
        """The same annotations for a scaled copy of the photograph."""
        factor = np.array([width / self.width, height / self.height])
        # As edges a box is [left - 1/2, right + 1/2].
        outward = np.array([-0.5, -0.5, 0.5, 0.5])
        visible = self.parts[:, 2:] > 0
        points = np.where(visible, (self.parts[:, :2] - 0.5) * factor + 0.5, 0.0)
        return replace(
            self,
            width=width,
            height=height,
            box=(self.box + outward - 0.5) * np.tile(factor, 2) + 0.5 - outward,
            parts=np.concatenate([points, self.parts[:, 2:]], axis=1),
            scale=self.scale * float(np.sqrt(factor.prod())),
            trans=(self.trans - 0.5) * factor + 0.5,
        )

    def reprojection_error(self, mean_shape: Float[np.ndarray, "15 3"]) -> float:
        """Mean distance of the visible parts from the projected mean shape, relative to the longer side of the box."""
        visible = self.parts[:, 2] > 0
        projected = self.scale * mean_shape @ self.rot[:2].T + self.trans
        distance = np.linalg.norm(projected - self.parts[:, :2], axis=1)[visible]
        return float(distance.mean() / (self.box[2:] - self.box[:2] + 1).max())


class Subset(NamedTuple):
    """What a `cub_subset` folder holds: birds in pixels of its small photographs, and CMR's mean shape.

    missing: every file and annotation that should be there and is not, in words.
    """

    birds: list[Bird]
    mean_shape: Float[np.ndarray, "15 3"]
    triangles: np.ndarray
    missing: list[str]


def read_subset(source: str | Path) -> Subset:
    """The birds listed in `good_ids.txt` with a photograph, a camera and a mask (an annotated one where there is one).

    Raises:
        FileNotFoundError: a file of annotations is missing.
        ValueError: one of them is damaged.
    """
    source = Path(source)
    tables = source / "annotations"
    chosen = read_table(source / "good_ids.txt")
    sizes = read_table(source / "image_sizes.txt")
    boxes = read_table(tables / "bounding_boxes.txt")
    classes = read_table(tables / "image_class_labels.txt")
    try:
        parts = np.loadtxt(_needed(tables / "parts" / "part_locs.txt"), ndmin=2)
        parts = {int(rows[0, 0]): rows[:, 2:] for rows in parts.reshape(-1, 15, 5)}
        with np.load(_needed(source / "cameras_cmr" / "cmr_cameras.npz"), allow_pickle=False) as archive:
            rotations, scales, shifts = archive["rot"], archive["scale"], archive["trans"]
            places = {int(image_id): row for row, image_id in enumerate(archive["image_id"])}
            mean_shape, triangles = archive["mean_shape"], archive["conv_tri"]
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read the parts or the cameras of {source} ({error}); get the folder again") from error

    birds, missing = [], []
    for image_id, entry in chosen.items():
        path, flag = entry.rsplit(maxsplit=1)
        gaps = [
            f"{path} (image {image_id}) is not in {name}"
            for name, known in (
                ("image_sizes.txt", image_id in sizes),
                ("annotations/bounding_boxes.txt", image_id in boxes),
                ("annotations/image_class_labels.txt", image_id in classes),
                ("annotations/parts/part_locs.txt", int(image_id) in parts),
                ("cameras_cmr/cmr_cameras.npz", int(image_id) in places),
            )
            if not known
        ]
        relative = Path(path).with_suffix(".png")
        masks = [source / folder / relative for folder in ("masks_real_320", "masks_pseudo_320")]
        mask = next((candidate for candidate in masks if candidate.is_file()), None)
        if mask is None:
            gaps.append(f"{masks[1]} is missing, and {masks[0]} too")
        if not (source / "images_320" / path).is_file():
            gaps.append(f"{source / 'images_320' / path} is missing")
        if gaps or mask is None:
            missing += gaps
            continue
        _, width, height, small_width, small_height = sizes[image_id].rsplit(maxsplit=4)
        x, y, box_width, box_height = map(float, boxes[image_id].split())
        place = places[int(image_id)]
        bird = Bird(
            image_id=int(image_id),
            path=path,
            split=SPLITS[flag],
            label=int(classes[image_id]),
            width=int(width),
            height=int(height),
            box=np.array([x, y, x + box_width - 1, y + box_height - 1]),
            parts=parts[int(image_id)],
            rot=rotations[place],
            scale=float(scales[place]),
            trans=shifts[place],
            mask=mask,
            annotated=mask == masks[0],
        )
        birds.append(bird.resized(int(small_width), int(small_height)))
    return Subset(birds, mean_shape, triangles, missing)


def read_mask(bird: Bird) -> np.ndarray:
    """The silhouette, bool [height, width].

    Raises:
        ValueError: the file is damaged, of another size than the photograph, or empty.
    """
    try:
        with Image.open(bird.mask) as image:
            mask = np.array(image.convert("L")) > 127
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot decode {bird.mask} ({error}); get the file again") from error
    if mask.shape != (bird.height, bird.width) or not mask.any():
        raise ValueError(
            f"{bird.mask} is {mask.shape} with {mask.sum()} foreground pixels; expected a silhouette in "
            f"{(bird.height, bird.width)}"
        )
    return mask


def write_subset(source: str | Path, target: str | Path) -> bool:
    """Write the data set at `target`, whole or not at all; False where it is already there.

    Raises:
        ValueError: the source is incomplete, or something else is at `target`.
        FileNotFoundError: a file of annotations is missing.
    """
    source, target = Path(source), Path(target)
    receipt = {"made_from": "cub_subset", "digest": _digest(source)}
    if target.is_dir() and any(target.iterdir()):
        found = target / RECEIPT
        if found.is_file() and json.loads(found.read_text()) == receipt:
            return False
        raise ValueError(f"{target} exists and was not made from {source}: remove it or choose another folder")
    subset = read_subset(source)
    if subset.missing:
        raise ValueError(f"{source} is incomplete: {len(subset.missing)} gaps, first: {subset.missing[0]}")
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    for bird in subset.birds:
        place = aside / "CUB_200_2011" / "images" / bird.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "images_320" / bird.path, place)
    for split in SPLITS.values():
        members = [bird for bird in subset.birds if bird.split == split]
        write_split(aside, split, members, [read_mask(bird) for bird in members], subset.mean_shape, subset.triangles)
    _write_lines(aside / "CUB_200_2011" / "images.txt", [f"{b.image_id} {b.path}" for b in subset.birds])
    _write_lines(aside / "CUB_200_2011" / "image_class_labels.txt", [f"{b.image_id} {b.label}" for b in subset.birds])
    annotated = [str(Path(bird.path).with_suffix("")) for bird in subset.birds if bird.annotated]
    _write_lines(aside / "annotated_masks.txt", annotated)
    (aside / RECEIPT).write_text(json.dumps(receipt))
    if target.is_dir():
        target.rmdir()
    aside.rename(target)
    return True


def write_split(
    root: str | Path,
    split: str,
    birds: Sequence[Bird],
    masks: Sequence[np.ndarray],
    mean_shape: Float[np.ndarray, "15 3"],
    triangles: np.ndarray,
) -> None:
    """Write the two MATLAB files of a split as CMR lays them out.

    Args:
        masks: bool [height, width] of each bird.
        triangles: of the hull of the mean shape, 1-based.
    """
    images = [
        {
            "id": float(bird.image_id),
            "rel_path": bird.path,
            "train": float(bird.split == "train"),
            "test": float(bird.split != "train"),
            "bbox": dict(zip(("x1", "y1", "x2", "y2"), bird.box.tolist(), strict=True)),
            "width": float(bird.width),
            "height": float(bird.height),
            "parts": bird.parts.T,
            "mask": mask,
            "class_id": float(bird.label),
        }
        for bird, mask in zip(birds, masks, strict=True)
    ]
    poses = [{"rot": bird.rot, "scale": bird.scale, "trans": bird.trans[:, None]} for bird in birds]
    images_mat, cameras_mat, _, _ = annotation_files(root, split)
    for path in (images_mat, cameras_mat):
        path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(images_mat, {"images": _structs(images)}, do_compression=True)
    cameras = {"sfm_anno": _structs(poses), "S": mean_shape.T, "conv_tri": triangles}
    scipy.io.savemat(cameras_mat, cameras, do_compression=True)


def _structs(rows: Sequence[Mapping[str, object]]) -> np.ndarray:
    """A 1 x N struct array."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def _digest(source: Path) -> str:
    """What the result depends on: the lists, the cameras, and which photographs and masks there are."""
    digest = hashlib.sha256()
    lists = ["good_ids.txt", "image_sizes.txt", "cameras_cmr/cmr_cameras.npz"]
    lists += [f"annotations/{name}.txt" for name in ("bounding_boxes", "image_class_labels", "parts/part_locs")]
    for name in lists:
        digest.update(_needed(source / name).read_bytes())
    for folder in ("images_320", "masks_real_320", "masks_pseudo_320"):
        for file in sorted((source / folder).glob("*/*")):
            digest.update(f"{file.relative_to(source).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get the folder again")
    return path


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))

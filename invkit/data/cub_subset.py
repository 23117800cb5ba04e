"""Turns a `cub_subset` folder (small copies of CUB's photographs, see docs/datasets.md) into the layout `Cub` reads.

The official release of CUB with CMR's annotations will do as well: `cub_release` makes such a folder of it first.

The subset keeps photographs of at most 320 pixels beside annotations in pixels of the original photographs. All of
CUB's coordinates, and the key points that CMR fitted its cameras to, are 1-based: the middle of the first pixel is 1.
So a coordinate c goes to (c - 1/2) f + 1/2 when the photograph is scaled by f.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Bool, Float

from invkit.data import cub_release
from invkit.data.cub import ANNOTATED, annotation_files, read_table
from invkit.data.names import checked_name, file_below
from invkit.data.staging import write_once
from invkit.images import read_image
from invkit.runtime.arrays import read_npz

SPLITS = {"1": "train", "0": "test"}
"""The splits by the last column of `good_ids.txt`."""

_LISTS = (
    "good_ids.txt",
    "image_sizes.txt",
    "annotations/bounding_boxes.txt",
    "annotations/image_class_labels.txt",
)
_PARTS = "annotations/parts/part_locs.txt"
_CAMERAS = "cameras_cmr/cmr_cameras.npz"
_RECEIPT = "prepared.json"
_OBTAIN = "get the folder again"


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
    photo: Path
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

    gaps: in words, every file and annotation that should be there and is not.
    triangles: of the hull of the mean shape, 1-based.
    """

    birds: list[Bird]
    mean_shape: Float[np.ndarray, "15 3"]
    triangles: np.ndarray
    gaps: list[str]


def read_subset(source: str | Path, *, even_train: bool = False) -> Subset:
    """The birds listed in `good_ids.txt` with a photograph, a camera and a mask (an annotated one where there is one).

    Args:
        even_train: held-out birds whose image id is even are trained with too, half as many birds again. The priors
            that ship are made so; their numbers are of the others.

    Raises:
        FileNotFoundError: a file of annotations is missing.
        ValueError: one of them is damaged, or a name in it leads out of the folder.
    """
    source = Path(source)
    chosen, sizes, boxes, classes = (read_table(source / name) for name in _LISTS)
    if not chosen:
        raise ValueError(f"{source / _LISTS[0]} lists no birds; {_OBTAIN}")
    try:
        parts = np.loadtxt(_needed(source / _PARTS), ndmin=2).reshape(-1, 15, 5)
    except ValueError as error:
        raise ValueError(f"cannot read {source / _PARTS} ({error}); {_OBTAIN}") from error
    cameras = _read_cameras(source / _CAMERAS)
    parts_of = {str(int(rows[0, 0])): rows[:, 2:] for rows in parts}
    camera_of = {str(image_id): place for place, image_id in enumerate(cameras["image_id"])}

    birds, gaps = [], []
    for image_id, entry in chosen.items():
        path, _, flag = entry.rpartition(" ")
        checked_name(path, source / _LISTS[0])
        silhouette = Path(path).with_suffix(".png").as_posix()
        mask = file_below(source / "masks_real_320", silhouette)
        annotated = mask.is_file()
        if not annotated:
            mask = file_below(source / "masks_pseudo_320", silhouette)
        photo = file_below(source / "images_320", path)
        gaps += [f"{file} is missing" for file in (photo, mask) if not file.is_file()]
        try:
            width, height, small_width, small_height = map(int, sizes[image_id].split()[-4:])
            x, y, box_width, box_height = map(float, boxes[image_id].split())
            place = camera_of[image_id]
            if (
                min(width, height, small_width, small_height) < 1
                or not np.isfinite([x, y, box_width, box_height]).all()
            ):
                raise ValueError("a size below 1, or a box that is not finite")
            bird = Bird(
                image_id=int(image_id),
                path=path,
                split=SPLITS["1" if even_train and int(image_id) % 2 == 0 else flag],
                label=int(classes[image_id]),
                width=width,
                height=height,
                box=np.array([x, y, x + box_width - 1, y + box_height - 1]),
                parts=parts_of[image_id],
                rot=cameras["rot"][place],
                scale=float(cameras["scale"][place]),
                trans=cameras["trans"][place],
                photo=photo,
                mask=mask,
                annotated=annotated,
            )
        except (KeyError, ValueError) as error:
            gaps.append(f"{path} (image {image_id}): an annotation is missing or damaged ({error!r})")
            continue
        birds.append(bird.resized(small_width, small_height))
    return Subset(birds, cameras["mean_shape"], cameras["conv_tri"], gaps)


def _read_cameras(path: Path) -> dict[str, np.ndarray]:
    """By name, as many entries as there are images.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged, or a camera is impossible.
    """
    names = ("image_id", "rot", "scale", "trans", "mean_shape", "conv_tri")
    cameras = read_npz(_needed(path), names, _OBTAIN)
    count = cameras["image_id"].size
    shapes = {"image_id": (count,), "rot": (count, 3, 3), "scale": (count,), "trans": (count, 2), "mean_shape": (15, 3)}
    for name, shape in shapes.items():
        found = cameras[name]
        if found.shape != shape or found.dtype.kind not in "iuf":
            raise ValueError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, not numbers {list(shape)}; {_OBTAIN}"
            )
        if not np.isfinite(cameras[name]).all():
            raise ValueError(f"{path}: {name} has numbers that are not finite; {_OBTAIN}")
    rot = cameras["rot"]
    off = abs(rot @ rot.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0) > 1e-2
    wrong = off | (np.linalg.det(rot) <= 0) | (cameras["scale"] <= 0)
    if wrong.any():
        image_id = cameras["image_id"][wrong.argmax()]
        raise ValueError(f"{path}: rot of image {image_id} is no rotation, or its scale is not positive; {_OBTAIN}")
    return cameras


def read_mask(bird: Bird) -> Bool[np.ndarray, "H W"]:
    """The silhouette.

    Raises:
        ValueError: the file is damaged, of another size than the photograph, or empty.
    """
    mask = read_image(bird.mask)[0].numpy() > 0.5
    if mask.shape != (bird.height, bird.width) or not mask.any():
        raise ValueError(
            f"{bird.mask} has {mask.sum()} foreground pixels in {mask.shape} (height, width); "
            f"expected a silhouette in {(bird.height, bird.width)}: {_OBTAIN}"
        )
    return mask


def problems(subset: Subset) -> list[str]:
    """In words, every gap of a `cub_subset` folder and every photograph or mask that is damaged."""
    found = list(subset.gaps)
    for bird in subset.birds:
        try:
            if bird.mask.is_file():
                read_mask(bird)
            if bird.photo.is_file() and read_image(bird.photo).shape[1:] != (bird.height, bird.width):
                found.append(f"{bird.photo} is not {bird.width} x {bird.height} as image_sizes.txt says: {_OBTAIN}")
        except ValueError as error:
            found.append(str(error))
    return found


def check(source: str | Path, *, even_train: bool = False) -> tuple[Subset, list[str]]:
    """What `write_subset` would make a data set of, and in words what is missing or damaged; nothing is left behind.

    Raises:
        FileNotFoundError, ValueError: see `read_subset`.
    """
    source = Path(source)
    if not cub_release.is_release(source):
        subset = read_subset(source, even_train=even_train)
        return subset, problems(subset)
    with tempfile.TemporaryDirectory() as folder:
        gaps = cub_release.write_source(source, Path(folder))
        subset = read_subset(folder, even_train=even_train)
        return subset, gaps or problems(subset)


def write_subset(source: str | Path, target: str | Path, *, even_train: bool = False) -> None:
    """Write the data set at `target`, whole or not at all; one that is there already is kept.

    Args:
        source: a `cub_subset` folder, or the official release with CMR's annotations (see `cub_release`).
        even_train: see `read_subset`.

    Raises:
        ValueError: the source is incomplete or damaged, or something else is at `target`.
        FileNotFoundError: a file of annotations is missing.
    """
    source = Path(source)
    is_release = cub_release.is_release(source)

    def write(folder: Path) -> None:
        small = folder / "source" if is_release else source
        wrong = cub_release.write_source(source, small) if is_release else []
        subset = read_subset(small, even_train=even_train)
        wrong = wrong or problems(subset)
        if wrong:
            raise ValueError(f"{source} has {len(wrong)} problems (--check lists them), first: {wrong[0]}")
        release = folder / "CUB_200_2011"
        for bird in subset.birds:
            place = release / "images" / bird.path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bird.photo, place)
        for split in SPLITS.values():
            birds = [bird for bird in subset.birds if bird.split == split]
            if birds:
                write_split(folder, split, birds, subset.mean_shape, subset.triangles)
        _write_lines(release / "images.txt", [f"{bird.image_id} {bird.path}" for bird in subset.birds])
        _write_lines(release / "image_class_labels.txt", [f"{bird.image_id} {bird.label}" for bird in subset.birds])
        annotated = [Path(bird.path).with_suffix("").as_posix() for bird in subset.birds if bird.annotated]
        _write_lines(folder / ANNOTATED, annotated)
        if is_release:
            shutil.rmtree(small)

    if is_release:
        made_of = {"made_from": "CUB-200-2011", "digest": cub_release.digest(source)}
    else:
        made_of = {"made_from": "cub_subset", "digest": _digest(source)}
    made_of |= {"even_train": True} if even_train else {}
    write_once(target, made_of, write, receipt=_RECEIPT)


def write_split(
    root: str | Path,
    split: str,
    birds: Sequence[Bird],
    mean_shape: Float[np.ndarray, "15 3"],
    triangles: np.ndarray,
) -> None:
    """Write the two MATLAB files of a split as CMR lays them out; see `Subset` for the last two arguments."""
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
            "mask": read_mask(bird),
            "class_id": float(bird.label),
        }
        for bird in birds
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
    for name in (*_LISTS, _PARTS, _CAMERAS):
        digest.update(_needed(source / name).read_bytes())
    for folder in ("images_320", "masks_real_320", "masks_pseudo_320"):
        for file in sorted((source / folder).glob("*/*")):
            digest.update(f"{file.relative_to(source).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_OBTAIN}")
    return path


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))

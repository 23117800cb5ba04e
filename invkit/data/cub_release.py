"""Makes a `cub_subset` folder of the official release of CUB-200-2011 and of CMR's annotations of it.

    source/CUB_200_2011/                         the archive of the photographs, unpacked
    source/{data,sfm}/ or source/cachedir/cub/   CMR's archive: *_cub_cleaned.mat (silhouettes), anno_*.mat (cameras)

The birds are those of the prepared subset. It was chosen from nine in ten photographs of classes 1 to 50: the bird
has a camera of CMR, its box is at least 120 pixels long, the frame cuts it on one side at most, and its silhouette,
there a derived one, agrees with the box and the key points. The derived silhouettes cannot be made again from the
official files, so the choice is listed here by image id. The split is CUB's own. Photographs shrink to 320 pixels along
their longer side. Silhouettes are those of CMR's archive, and all of them count as drawn by people.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from invkit.data.cmr import OBTAIN, read_mat, structs
from invkit.data.cub import read_table
from invkit.data.names import checked_name, file_below
from invkit.images import read_image, resize_area, write_jpeg, write_png

LONGER_SIDE = 320
"""Pixels of a photograph of the subset; smaller photographs keep their size."""

# Bit i - 1 says whether the photograph with image id i belongs to the subset.
_CHOSEN_BITS = int(
    "187e97b7e76bb8849f6ff3fe6fbcc1fbfeffbf6afbfedfbfe7fbfaffbfeefb52f3b7e7e37eb3bf4ffb74dabfeeeafebf"
    "8fe5fbf2ff9f6ffb9eef37efabfedfb7ecbbfefc9e658250b03cc19bfe7fbfcfdadcbf36eff3defb3feffb7effbbe7e3"
    "8eecbfcfbbdeef9feff19ee4b8cdd32abfbfefebfeffbfe7fbf6ffbf6f7b30f12fa9fbf8efad451196d69f62028ef6bf"
    "eeb26e9eade3fbde7fbfe7fbdcfebf6efbdeecbe0ffab6d7b5a779befbbfefdbeaffafedfb7ce3bfaffbfeffb7edf9b6"
    "feb5ee70daf7a2effa6e4e37c3a2fad00940009813186443b87f3ac3f2083eb36eb95e5ebb8ffbbcefbfe7f9babb8dad"
    "c9f6752aeefa7cffbde5bbfaffb5c329f6cfbfef73fcfb9fe7fbcefe8feffbf6ebbeef7bf85f3bef2bf66fbf6afbc63e"
    "bfefd39effbfeffbfcffbeeedbdc5f9aeffbfeffb1cf3b9af6292673dedf3faafbfc5bb7effbdee79beff8fefd1aceeb"
    "7ae63bae79f8f99f6f6af6ff9c2389b67fbeea18fe7639e9bb6",
    16,
)

CHOSEN = frozenset(i + 1 for i in range(_CHOSEN_BITS.bit_length()) if _CHOSEN_BITS >> i & 1)
"""Image ids of the birds of the subset."""

_LISTS = ("images.txt", "train_test_split.txt", "bounding_boxes.txt", "image_class_labels.txt", "parts/part_locs.txt")
_IMAGES, _CAMERAS = "data/{}_cub_cleaned.mat", "sfm/anno_{}.mat"


class _Bird(NamedTuple):
    """What CMR's files say about one photograph."""

    image_id: str
    path: str
    mask: Bool[np.ndarray, "H W"]
    pose: Any


def is_release(source: Path) -> bool:
    """Whether a folder is the official release, and not a `cub_subset` folder.

    Raises:
        FileNotFoundError: it is neither.
    """
    if (source / "CUB_200_2011").is_dir():
        return True
    if (source / "good_ids.txt").is_file():
        return False
    raise FileNotFoundError(
        f"{source} has neither CUB_200_2011/ (the official release) nor good_ids.txt (a cub_subset folder): "
        "see docs/datasets.md, Small real birds"
    )


def write_source(source: Path, folder: Path) -> list[str]:
    """Fill `folder` as a `cub_subset` folder with the `CHOSEN` birds. Returns in words what is missing or damaged.

    Raises:
        FileNotFoundError: a file of annotations is missing.
        ValueError: one of them is damaged, or a name in it leads out of its folder.
    """
    release = source / "CUB_200_2011"
    paths, train = (read_table(release / name) for name in _LISTS[:2])
    ids = {
        checked_name(path, release / "images.txt"): image_id
        for image_id, path in paths.items()
        if image_id.isdigit() and int(image_id) in CHOSEN
    }
    found, sizes, poses = [], {}, {}
    for bird in _annotated(source, ids):
        try:
            sizes[bird.image_id] = _write_bird(bird, release / "images", folder)
            poses[bird.image_id] = bird.pose
        except (FileNotFoundError, ValueError) as error:
            found.append(f"{error}; {OBTAIN}")
    absent = [f"{path} (image {i})" for path, i in ids.items() if i not in sizes] if not found else []
    absent += [f"image {i} of images.txt" for i in sorted(CHOSEN - {int(i) for i in ids.values()})]
    found += [f"{name} is not in the annotations of {source}; {OBTAIN}" for name in absent]

    (folder / "annotations/parts").mkdir(parents=True, exist_ok=True)
    for name in _LISTS[2:]:
        (folder / "annotations" / name).write_bytes(_needed(release / name).read_bytes())
    here = sorted(sizes, key=int)
    for name, lines in (
        ("good_ids.txt", [f"{i} {paths[i]} {train.get(i)}" for i in here]),
        ("image_sizes.txt", [f"{i} {paths[i]} {' '.join(map(str, sizes[i]))}" for i in here]),
    ):
        (folder / name).write_text("".join(line + "\n" for line in lines))
    _write_cameras(folder / "cameras_cmr/cmr_cameras.npz", source, {int(i): poses[i] for i in here})
    return found


def digest(source: Path) -> str:
    """What the result depends on: the lists, and the sizes of CMR's files and of the chosen photographs."""
    release, total = source / "CUB_200_2011", hashlib.sha256()
    for name in _LISTS:
        total.update(_needed(release / name).read_bytes())
    files = [path for split in _splits(source) for path in _files(source, split)]
    for image_id, path in read_table(release / "images.txt").items():
        if image_id.isdigit() and int(image_id) in CHOSEN:
            files.append(release / "images" / checked_name(path, release / "images.txt"))
    for file in files:
        total.update(f"{file.relative_to(source).as_posix()} {file.stat().st_size if file.is_file() else 0}\n".encode())
    return total.hexdigest()


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the copy of a photograph in the subset."""
    factor = min(1.0, LONGER_SIDE / max(width, height))
    return round(width * factor), round(height * factor)


def _annotated(source: Path, ids: dict[str, str]) -> Iterator[_Bird]:
    """The birds of CMR's splits whose path is in `ids`, each once.

    Raises:
        FileNotFoundError, ValueError: see `write_source`.
    """
    seen = set()
    for split in _splits(source):
        images_mat, cameras_mat = _files(source, split)
        images = structs(images_mat, "images", ("rel_path", "mask"))
        poses = structs(cameras_mat, "sfm_anno", ("rot", "scale", "trans"))
        if len(images) != len(poses):
            raise ValueError(
                f"{images_mat} lists {len(images)} images and {cameras_mat} {len(poses)} cameras; they must match"
            )
        for image, pose in zip(images, poses, strict=True):
            path = checked_name(str(image.rel_path).replace("\\", "/"), images_mat)
            if path in ids and path not in seen:
                seen.add(path)
                yield _Bird(ids[path], path, np.asarray(image.mask) > 0, pose)
            del image.mask  # of thousands of photographs


def _write_bird(bird: _Bird, photographs: Path, folder: Path) -> tuple[int, int, int, int]:
    """Write the small photograph and silhouette. Returns width and height of the original, and of the copy.

    Raises:
        FileNotFoundError, ValueError: the photograph is missing, damaged, or of another size than the silhouette.
    """
    photo = file_below(photographs, bird.path)
    image = read_image(photo)
    height, width = image.shape[1:]
    if bird.mask.shape != (height, width):
        raise ValueError(f"{photo} is {(height, width)} (height, width) and its mask {bird.mask.shape}")
    small = small_size(width, height)
    shrunk = resize_area(image[None], small[::-1])[0]
    write_jpeg(folder / "images_320" / bird.path, shrunk * 2 - 1)
    covered = resize_area(torch.from_numpy(bird.mask[None, None].astype(np.float64)), small[::-1])[0, 0]
    pixels = ((covered > 0.5) * 255).to(torch.uint8)[..., None]
    write_png((folder / "masks_real_320" / bird.path).with_suffix(".png"), pixels)
    return width, height, *small


def _write_cameras(path: Path, source: Path, poses: dict[int, Any]) -> None:
    """CMR's cameras by image id, and its mean shape.

    Raises:
        ValueError: a camera or the shape is damaged or missing.
    """
    shape_mat = _files(source, "train")[1]
    contents = read_mat(shape_mat)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        np.savez(
            path,
            image_id=np.array(list(poses)),
            rot=np.array([pose.rot for pose in poses.values()], dtype=np.float64).reshape(-1, 3, 3),
            scale=np.array([pose.scale for pose in poses.values()], dtype=np.float64),
            trans=np.array([pose.trans for pose in poses.values()], dtype=np.float64).reshape(-1, 2),
            mean_shape=np.asarray(contents["S"], dtype=np.float64).T,
            conv_tri=contents["conv_tri"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{shape_mat.parent}: needs rot 3 x 3, scale, trans 2 of every image, and S and conv_tri in "
            f"{shape_mat.name} ({error!r}); {OBTAIN}"
        ) from error


def _splits(source: Path) -> tuple[str, ...]:
    """CMR's splits that hold all of its birds: `testval` is `test` and `val` together."""
    return ("train", "testval") if _files(source, "testval")[0].is_file() else ("train", "test", "val")


def _files(source: Path, split: str) -> tuple[Path, Path]:
    """CMR's images and cameras of a split, where the docs put them or as its archive has them."""
    root = next((at for at in (source, source / "cachedir/cub") if (at / "data").is_dir()), source)
    return root / _IMAGES.format(split), root / _CAMERAS.format(split)


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    return path

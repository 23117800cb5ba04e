"""A user's own folder of photographs: RGBA pictures, or pictures with masks beside them.

    root/robin.png                         RGBA: alpha is the silhouette
    root/wren.jpg, root/masks/wren.png     or a mask of the same stem, white on the object
    root/manifest.json (or .csv)           optional: which pictures there are, and what is known about them

Without a manifest the pictures are those in root/images, or in root itself where there is no such folder.
manifest.json is {"images": [{...}, ...], "classes": [...]}; manifest.csv has a row for each picture. Keys, or columns:

    image    path from the manifest; the only one that is needed
    mask     path of its mask; without it, masks/<stem>.* or alpha is used
    label    class, a number from 0 or a name; names count in the order of "classes", or alphabetically
    split    any word
    camera   s, t_x, t_y, q_w, q_x, q_y, q_z (CSV: separated by spaces): a point p of the object is seen at pixel
             s (R(q) p)_xy + t of the upright photograph, x right, y down, from the corner of the top-left pixel

Where no camera is given, it is a plain guess: the object seen from its side, as large as its silhouette. The first
guess of an inversion searches from there.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.data.cmr import far_off
from invkit.data.dataset import ImageSet, Preparation, subset, to_square
from invkit.data.manifest import MANIFESTS, SUFFIXES, numbered, read_manifest
from invkit.data.names import file_below
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import Box, composite, read_mask, read_rgba
from invkit.types import Views

OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".raw", ".dng", ".cr2", ".nef", ".jp2", ".svg")
"""Pictures that are not read; a folder that has some is told so."""
_FOREGROUND = 0.5
_PIXELS = "the manifest gives pixels of the upright photograph"
SIDE_VIEW = (math.sqrt(6) / 4, math.sqrt(2) / 4, -math.sqrt(6) / 4, math.sqrt(2) / 4)
"""The object from its side, inclined by 30 degrees: MeshInversion's canonical view."""


@dataclass(frozen=True)
class Photo:
    """One picture of the folder, before it is read.

    Args:
        mask: None where alpha is the silhouette.
        label: class, as number; None where there are no classes.
        camera: CMR's seven numbers in pixels, from the corner of the upright picture; None where unknown.
    """

    name: str
    path: Path
    mask: Path | None
    label: int | None
    camera: Float[Tensor, "1 7"] | None


class Folder(ImageSet):
    """The photographs of a folder; see the module for what may be in it."""

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        size: int = 256,
        *,
        preparation: Preparation = Preparation(),
    ) -> None:
        """List the photographs; they are read when asked for.

        Args:
            split: those of one split of the manifest; None takes all.

        Raises:
            FileNotFoundError: the folder, or a file that it lists, is missing.
            ValueError: the manifest is damaged, or there are no photographs.
        """
        self.photos, self.num_classes = read_photos(root, split)
        missing = [path for photo in self.photos for path in (photo.path, photo.mask) if path and not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} files listed by the manifest of {root} are missing: {missing[0]}")
        self.names = [photo.name for photo in self.photos]
        self.guessed_cameras = [photo.name for photo in self.photos if photo.camera is None]
        self.size, self.preparation = size, preparation

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        photo = self.photos[index]
        rgb, mask = read_photo(photo)
        wrong = [] if photo.camera is None else far_off(Camera.from_cmr(photo.camera), _tight_box(mask))
        if wrong:
            raise ValueError(f"{photo.path}: {wrong[0]}; {_PIXELS}")
        views = item(rgb, mask, photo.camera, photo.label, index, self.size, self.preparation)
        if not bool(views.mask.any()):
            raise ValueError(f"{photo.path}: nothing is left of its silhouette at {self.size} pixels: make size larger")
        return views

    def label(self, index: int) -> int | None:
        return self.photos[self._position(index)].label

    def square(self, index: int) -> Box:
        """What is cut out of a photograph: left, top, right, bottom in pixels, inclusive; it may reach outside.

        Raises:
            FileNotFoundError, ValueError: see `read_photo`.
        """
        _, mask = read_photo(self.photos[self._position(index)])
        return square_of(mask, self.preparation)

    def annotated(self) -> ImageSet:
        """The photographs whose manifest gives a camera."""
        return subset(self, [index for index, photo in enumerate(self.photos) if photo.camera is not None])


def read_photos(root: str | Path, split: str | None = None) -> tuple[list[Photo], int]:
    """The photographs of a folder, and how many classes it has in all splits together (0: none).

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the manifest is damaged, or there are no photographs.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    manifests = [root / name for name in MANIFESTS if (root / name).is_file()]
    if len(manifests) > 1:
        raise ValueError(f"{root} has both {' and '.join(MANIFESTS)}: keep one")
    source = manifests[0] if manifests else root
    rows, classes = read_manifest(source) if manifests else (_listed(root), [])
    labels, num_classes = numbered([row.get("label") for row in rows], classes, source)
    masks = _masks(root)
    photos = [
        _photo(root, row, masks, label, source)
        for row, label in zip(rows, labels, strict=True)
        if split is None or row.get("split") == split
    ]
    if not photos:
        splits = sorted({str(row["split"]) for row in rows if row.get("split") is not None})
        which = "" if split is None else f" of split {split!r} (there are: {', '.join(splits) or 'no splits'})"
        raise ValueError(f"{source} has no photographs{which}")
    twice = sorted(name for name, count in Counter(photo.name for photo in photos).items() if count > 1)
    if twice:
        raise ValueError(f"{source}: photographs need different names (suffix apart); {twice[0]} is there twice")
    return photos, num_classes


def read_photo(photo: Photo) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"]]:
    """The upright picture, in [0, 1], and its silhouette, which is not empty.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or there is no silhouette.
    """
    rgba = read_rgba(photo.path, upright=True)
    mask = None if photo.mask is None else read_mask(photo.mask, upright=True)
    if mask is None and bool((rgba[3] == 1).all()):
        raise ValueError(
            f"{photo.path} is opaque and has no mask: give masks/{photo.path.stem}.png or an alpha channel"
        )
    return with_silhouette(rgba, mask, str(photo.path), str(photo.mask or "alpha"))


def with_silhouette(
    rgba: Float[Tensor, "4 H W"], mask: Float[Tensor, "1 h w"] | None, name: str, mask_name: str
) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"]]:
    """The colors and the silhouette, which is the mask, or alpha where there is none.

    Args:
        name, mask_name: of the picture and of its mask, for errors.

    Raises:
        ValueError: the silhouette is empty, or the mask of another size.
    """
    rgb = rgba[:3]
    if mask is None:
        mask = rgba[3:]
        rgb = composite(rgb[None], mask[None])[0]  # colors under full transparency mean nothing
    elif mask.shape[1:] != rgb.shape[1:]:
        raise ValueError(
            f"{mask_name} is {tuple(mask.shape[1:])} and {name} {tuple(rgb.shape[1:])} (height, width, "
            "upright): make them the same"
        )
    if not bool((mask > _FOREGROUND).any()):
        raise ValueError(f"the silhouette of {name} is empty ({mask_name}): draw the object in white")
    return rgb, mask


def item(
    rgb: Float[Tensor, "3 H W"],
    mask: Float[Tensor, "1 H W"],
    camera: Float[Tensor, "1 7"] | None,
    label: int | None,
    index: int,
    size: int,
    preparation: Preparation,
) -> Views:
    """A photograph, in [0, 1], cut out around its silhouette.

    Args:
        camera: as of a `Photo`; None is a guess.
    """
    box = _tight_box(mask)
    square = preparation.square(box, *mask.shape[1:])
    known = _guess(box) if camera is None else Camera.from_cmr(camera)
    rgb, mask = preparation.cut(rgb, mask, square, size)
    labels = None if label is None else torch.tensor([label])
    guessed = torch.tensor([camera is None])
    views = Views(rgb, mask, to_square(known, square), labels, torch.tensor([index]), guessed)
    return views.to("cpu", dtype=torch.float32)


def square_of(mask: Float[Tensor, "1 H W"], preparation: Preparation = Preparation()) -> Box:
    """What is cut out around a silhouette: left, top, right, bottom in pixels, inclusive; it may reach outside."""
    return preparation.square(_tight_box(mask), *mask.shape[1:])


def problems(root: str | Path) -> list[str]:
    """In words, everything that is missing or damaged in a folder, with what to do about it; reads all of it."""
    try:
        photos, _ = read_photos(root)
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    found = _not_read(Path(root))
    for photo in photos:
        try:
            _, mask = read_photo(photo)
            if photo.camera is not None:
                wrong = far_off(Camera.from_cmr(photo.camera), _tight_box(mask))
                found += [f"{photo.path}: {fault}; {_PIXELS}" for fault in wrong]
        except (FileNotFoundError, ValueError) as error:
            found.append(str(error))
    return found


def _listed(root: Path) -> list[dict[str, Any]]:
    folder = root / "images" if (root / "images").is_dir() else root
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not _is_hidden(path))
    return [{"image": path.relative_to(root).as_posix()} for path in paths]


def _is_hidden(path: Path) -> bool:
    """Such as ._robin.png, which macOS writes beside robin.png."""
    return path.name.startswith(".")


def _not_read(root: Path) -> list[str]:
    """In words, pictures that lie in a folder without a manifest and are not taken for photographs."""
    if any((root / name).is_file() for name in MANIFESTS):
        return []
    images = root / "images"
    here = [path for path in root.iterdir() if not _is_hidden(path)]
    there = [path for path in images.iterdir() if not _is_hidden(path)] if images.is_dir() else []
    found = []
    if other := sorted(path.name for path in here + there if path.suffix.lower() in OTHER_SUFFIXES):
        found.append(f"{root}: {_first(other)} not read; convert to one of {', '.join(SUFFIXES)}")
    beside = sorted(path.name for path in here if images.is_dir() and path.suffix.lower() in SUFFIXES)
    if beside:
        found.append(f"{root}: {_first(beside)} not read, as there is a folder images: move them into it")
    return found


def _first(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _photo(root: Path, row: Mapping[str, Any], masks: Mapping[str, Path], label: int | None, source: Path) -> Photo:
    path = file_below(root, row["image"])
    mask = file_below(root, row["mask"]) if "mask" in row else masks.get(_alike(path))
    return Photo(Path(row["image"]).with_suffix("").as_posix(), path, mask, label, _camera(row, source))


def _masks(root: Path) -> dict[str, Path]:
    """Photographs by their names' stems, as `_alike` gives them -> the masks beside them."""
    folder = root / "masks"
    paths = sorted(path for path in folder.iterdir() if not _is_hidden(path)) if folder.is_dir() else []
    of_kind = {suffix: [path for path in paths if path.suffix.lower() == suffix] for suffix in reversed(SUFFIXES)}
    return {_alike(path): path for paths in of_kind.values() for path in paths}


def _alike(path: Path) -> str:
    """The stem, in which accents may be written in two ways; file systems differ in which they keep."""
    return unicodedata.normalize("NFC", path.stem)


def _camera(row: Mapping[str, Any], source: Path) -> Float[Tensor, "1 7"] | None:
    return camera_vector(row["camera"], f"{source}: the camera of {row['image']}") if "camera" in row else None


def camera_vector(numbers: Any, told: str) -> Float[Tensor, "1 7"]:
    """Seven numbers as the camera of a `Photo`.

    Args:
        told: whose camera it is, for errors.

    Raises:
        ValueError: they are no camera.
    """
    try:
        vector = torch.tensor([[float(number) for number in numbers]], dtype=torch.float64)
    except (TypeError, ValueError):
        vector = torch.empty(1, 0)
    if vector.shape != (1, 7) or not bool(vector.isfinite().all()) or vector[0, 0] <= 0 or not vector[0, 3:].any():
        raise ValueError(f"{told} must be s, t_x, t_y, q_w, q_x, q_y, q_z with s > 0 and q not 0")
    return torch.cat([vector[:, :3], rotation.normalize(vector[:, 3:])], dim=1)


def _tight_box(mask: Float[Tensor, "1 H W"]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the foreground, inclusive."""
    _, rows, columns = (mask > _FOREGROUND).nonzero(as_tuple=True)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def _guess(box: tuple[int, int, int, int]) -> Camera:
    """The side view in which an object of diameter 2 is as long as the box, in pixels."""
    left, top, right, bottom = box
    scale = max(right - left + 1, bottom - top + 1) / 2
    vector = [scale, (left + right + 1) / 2, (top + bottom + 1) / 2, *SIDE_VIEW]
    return Camera.from_cmr(torch.tensor([vector], dtype=torch.float64))

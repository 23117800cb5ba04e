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

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.data.dataset import ImageSet, Preparation, subset, to_square
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import Box, composite, read_image, read_rgba
from invkit.types import Views

MANIFESTS = ("manifest.json", "manifest.csv")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FOREGROUND = 0.5
KEYS = ("image", "mask", "label", "split", "camera")
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
        return item(rgb, mask, photo.camera, photo.label, index, self.size, self.preparation)

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
    rows, classes = _manifest(source) if manifests else (_listed(root), [])
    labels, num_classes = _labels([row.get("label") for row in rows], classes, source)
    photos = [
        _photo(root, row, label, source)
        for row, label in zip(rows, labels, strict=True)
        if split is None or row.get("split") == split
    ]
    if not photos:
        splits = sorted({str(row["split"]) for row in rows if row.get("split") is not None})
        which = "" if split is None else f" of split {split!r} (there are: {', '.join(splits) or 'no splits'})"
        raise ValueError(f"{source} has no photographs{which}")
    names = [photo.name for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
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
    mask = None if photo.mask is None else read_image(photo.mask, upright=True)[:1]
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
    found = []
    for photo in photos:
        try:
            read_photo(photo)
        except (FileNotFoundError, ValueError) as error:
            found.append(str(error))
    return found


def _listed(root: Path) -> list[dict[str, Any]]:
    folder = root / "images" if (root / "images").is_dir() else root
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [{"image": path.relative_to(root).as_posix()} for path in paths]


def _manifest(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows without what is left empty, and the names of the classes in their order."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            rows, classes = content["images"], content.get("classes", [])
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows, classes = list(csv.DictReader(file)), []
            for row in rows:
                row.update({"label": int(row["label"])} if (row.get("label") or "").isdigit() else {})
                row.update({"camera": row["camera"].split()} if row.get("camera") else {})
        rows = [{key: value for key, value in row.items() if value not in (None, "")} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path} is not a manifest ({error!r}); docs/datasets.md shows one") from error
    for number, row in enumerate(rows):
        unknown = sorted(str(key) for key in row if key not in KEYS)
        if unknown or not isinstance(row.get("image"), str):
            wrong = f"the unknown key {unknown[0]!r}" if unknown else "no image"
            raise ValueError(f"{path}: entry {number} has {wrong}; the keys are {', '.join(KEYS)}")
    return rows, classes


def _labels(labels: Sequence[int | str | None], classes: Sequence[str], source: Path) -> tuple[list[int | None], int]:
    """Classes as numbers, and how many there are."""
    if all(label is None for label in labels):
        return list(labels), 0
    if all(isinstance(label, int) and label >= 0 for label in labels):
        count = max(len(classes), 1 + max(labels))
        if classes and count > len(classes):
            raise ValueError(f"{source}: label {count - 1} is outside the {len(classes)} classes")
        return list(labels), count
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{source}: labels must be given for every image or none; all numbers from 0, or all names")
    names = list(classes) or sorted(set(labels))
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(f"{source}: {unknown[0]!r} is not one of its classes")
    return [names.index(label) for label in labels], len(names)


def _photo(root: Path, row: Mapping[str, Any], label: int | None, source: Path) -> Photo:
    path = root / row["image"]
    mask = root / row["mask"] if "mask" in row else _mask_beside(root, path)
    return Photo(Path(row["image"]).with_suffix("").as_posix(), path, mask, label, _camera(row, source))


def _mask_beside(root: Path, path: Path) -> Path | None:
    candidates = (root / "masks" / f"{path.stem}{suffix}" for suffix in SUFFIXES)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


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

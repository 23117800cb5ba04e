"""Photographs as textured-3d-gan describes them: what a detector saw in them, and perspective cameras found for it.

    <set>/detections.npy                                   path, box and silhouette of every object
    <set>/poses_estimated_{single,multi}tpl_perspective.bin    cameras of some of them, by their place in that list

A camera (z0, t, s, q: see `Camera.from_augmented`) is that of the whole photograph, centered on a square; one that is
cut out of it is seen by the same camera with its principal point elsewhere. Nobody drew these silhouettes or measured
these cameras; they are all that the paper trains and measures with.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from invkit.data import rle
from invkit.data.cmr import OBTAIN, AnnotatedPhotos
from invkit.data.dataset import Preparation
from invkit.data.names import checked_name, file_below
from invkit.geometry.camera import Camera
from invkit.images import Box, resize_area
from invkit.runtime.checkpoint import load_foreign
from invkit.runtime.pickles import read_objects

PUBLISHED = "datasets/"
"""What the paths in published files begin with."""
POSE_FIELDS = {"z0": 1, "s": 1, "t": 2, "R": 4}
"""Numbers of each object in a file of poses; the same file has more, which nothing here needs."""


@dataclass(frozen=True)
class Detection:
    """What is known about one object in a photograph; coordinates are pixels of the stored file.

    Args:
        position: place in the list of detections, from 0.
        name: path of the photograph below the folder of all of them, "/" between its parts, without suffix.
        box: left, top, right, bottom. The detector's right and bottom are exclusive; they are used as inclusive ones,
            as in the released code.
        camera: perspective, NDC of the photograph centered on a square.
        size: height and width of the photograph.
        counts: run lengths of the silhouette.
        source: the file it is from.
        label: category, where there are several.
    """

    position: int
    name: str
    path: Path
    box: tuple[float, float, float, float]
    camera: Camera
    size: tuple[int, int]
    counts: bytes | str | list[int]
    source: Path
    label: int | None = None

    def silhouette(self) -> Bool[np.ndarray, "H W"]:
        """The silhouette.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return rle.decode(self.counts, *self.size)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.source}: mask of entry {self.position} ({error}); {OBTAIN}") from error


class DetectedPhotos(AnnotatedPhotos):
    """Detected objects, each cut out of its photograph, and flipped copies behind them.

    Area resampling and soft masks. The network input of radiance-field inversion is `rgb * mask`; here the background
    is kept.
    """

    def __init__(
        self,
        detections: Sequence[Detection],
        size: int,
        num_classes: int = 0,
        *,
        whole_image: bool = False,
        mirrored: bool = False,
    ) -> None:
        """Look whether the photographs are there; they are read when asked for.

        Args:
            whole_image: no cropping, as the paper trains its generators (at 256, halved later).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.

        Raises:
            FileNotFoundError: a photograph is missing.
        """
        padding = None if whole_image else Preparation.crop_padding
        super().__init__(
            detections,
            size,
            num_classes,
            preparation=Preparation(resize_area, mask_threshold=None, crop_padding=padding),
            jitter=0.0,
            seed=0,
            mirrored=mirrored,
            exact_mirror=True,
        )

    def _square(self, index: int) -> Box:
        detection = self.records[index % len(self.records)]
        return self.preparation.square(detection.box, *detection.size)

    def frame(self, index: int) -> Float[Tensor, "1 4"]:
        position = self._position(index)
        if self.preparation.crop_padding is None:
            return torch.tensor([[-1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
        return in_frame(self._square(position), *self.records[position % len(self.records)].size)

    def _camera(self, item: int, square: Box) -> Camera:
        detection = self.records[item]
        if self.preparation.crop_padding is None:
            # Rounding may have moved the square by half a pixel. The released code leaves that, too.
            return detection.camera
        return detection.camera.crop(in_frame(square, *detection.size))


def in_frame(square: Box, height: int, width: int) -> Float[Tensor, "1 4"]:
    """A square cut out of a photograph: left, top, right, bottom in NDC of the photograph centered on a square."""
    left, top, right, _ = square
    long = max(height, width)
    corner = torch.tensor([left + (long - width) / 2, top + (long - height) / 2], dtype=torch.float64)
    low, side = 2 * corner / long - 1, 2 * (right - left + 1) / long
    return torch.cat([low, low + side])[None]


def read_detections(detections_npy: Path, poses_bin: Path, root: Path, photos: str) -> list[Detection]:
    """The objects whose camera is known, in the order of the file of cameras.

    The second object of a photograph is named after it with "-2" appended, and so on; those without a camera count.

    Args:
        root: the folder of the data set, which the published paths call datasets/<name>.
        photos: where all photographs are below it; names begin from there.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the other.
    """
    entries, paths = _read_entries(detections_npy)
    names, seen = [], Counter()
    for path in paths:
        name = path.removeprefix(f"{photos}/").rpartition(".")[0]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    indices, cameras = _read_cameras(poses_bin, detections_npy, len(entries))
    found = []
    for place, position in enumerate(indices):
        box, size, counts = _geometry(entries[position], f"{detections_npy}: entry {position}")
        path = file_below(root, paths[position])
        camera = cameras[place : place + 1]
        found.append(Detection(position, names[position], path, box, camera, size, counts, detections_npy))
    return found


def photographs_in(detections_npy: str | Path) -> set[str]:
    """File names of all photographs that something was detected in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    return {path.rpartition("/")[2] for path in _read_entries(Path(detections_npy))[1]}


def _read_entries(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All detections, and the paths of their photographs below the folder of the data set."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    entries, paths = read_objects(path), []
    for position, entry in enumerate(entries):
        absent = {"image_path", "bbox", "mask"} - set(entry if isinstance(entry, dict) else ())
        if absent:
            raise ValueError(f"{path}: entry {position} lacks the field {', '.join(sorted(absent))}; {OBTAIN}")
        image_path = str(entry["image_path"]).replace("\\", "/")
        parts = image_path.removeprefix(PUBLISHED).split("/", 1)
        if not image_path.startswith(PUBLISHED) or len(parts) != 2:
            raise ValueError(
                f"{path}: image_path of entry {position} is {image_path!r}, not {PUBLISHED}<name>/<file>; {OBTAIN}"
            )
        paths.append(checked_name(parts[1], path))
    return entries, paths


def _geometry(
    entry: dict[str, Any], where: str
) -> tuple[tuple[float, float, float, float], tuple[int, int], bytes | str | list[int]]:
    """Box, size of the photograph and run lengths."""
    try:
        left, top, right, bottom = np.asarray(entry["bbox"], dtype=np.float64).reshape(4).tolist()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: bbox is not 4 numbers ({error}); {OBTAIN}") from error
    try:
        height, width = (int(side) for side in entry["mask"]["size"])
        counts = entry["mask"]["counts"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{where}: mask has no size of 2 numbers and counts ({error!r}); {OBTAIN}") from error
    counts = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if not isinstance(counts, bytes | str | list):
        raise ValueError(f"{where}: counts of its mask are a {type(counts).__name__}, not run lengths; {OBTAIN}")
    return (left, top, right, bottom), (height, width), counts


def _read_cameras(path: Path, detections_npy: Path, num_detections: int) -> tuple[list[int], Camera]:
    """Which detections have a camera, and these, float64."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    payload = load_foreign(path)
    absent = [name for name in ("indices", *POSE_FIELDS) if not isinstance(payload.get(name), Tensor)]
    if absent:
        raise ValueError(f"{path} has no tensor {', '.join(absent)}; {OBTAIN}")
    indices = payload["indices"].flatten()
    if indices.is_floating_point() or not len(indices) or len(indices.unique()) != len(indices):
        raise ValueError(f"{path}: indices must be whole numbers, each once; {OBTAIN}")
    if not 0 <= int(indices.min()) <= int(indices.max()) < num_detections:
        raise ValueError(
            f"{path}: indices go from {indices.min()} to {indices.max()}, but {detections_npy} has {num_detections} "
            "detections; the two files belong together: get both again"
        )
    numbers = {}
    for name, count in POSE_FIELDS.items():
        value = payload[name].double()
        if value.numel() != len(indices) * count or not bool(value.isfinite().all()):
            raise ValueError(
                f"{path}: {name} is {list(value.shape)}, not {len(indices)} x {count} finite numbers; {OBTAIN}"
            )
        numbers[name] = value.reshape(len(indices), count)
    for name, sound in (("s", numbers["s"][:, 0] > 0), ("R", numbers["R"].norm(dim=1) > 1e-6)):
        if not bool(sound.all()):
            first = int((~sound).nonzero()[0])
            raise ValueError(f"{path}: {name} of row {first} is {numbers[name][first].tolist()}; {OBTAIN}")
    z0, scale = numbers["z0"][:, 0], numbers["s"][:, 0]
    return indices.tolist(), Camera.from_augmented(z0, numbers["t"], scale, normalize(numbers["R"], dim=1))

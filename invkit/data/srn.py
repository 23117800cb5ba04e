"""ShapeNet-SRN: many views of each object from known full-perspective cameras, on white.

    root/<category>_<split>/<object>/intrinsics.txt     f c_x c_y 0. / unused / unused / height width, pixels
    root/<category>_<split>/<object>/rgb/*.png          views
    root/<category>_<split>/<object>/pose/*.txt         camera-to-world, OpenCV axes, 16 numbers; paired in sorted order

The published chairs_train is nested once more, in chairs_2.0_train. Intrinsics are divided by the size that their own
file states, so that archives whose intrinsics are for another size than the images (EG3D's) read the same.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from invkit.data.dataset import ImageSet, read_on_white
from invkit.geometry.camera import Camera
from invkit.types import Views

_OBTAIN = "see docs/datasets.md for where to get it"


@dataclass(frozen=True)
class Intrinsics:
    """Of a square image, over its side: focal length and principal point from the top-left corner."""

    focal: float
    center: tuple[float, float]


class Srn(ImageSet):
    """All views of all objects of one split, object by object; there are no classes.

    objects: names of the objects.
    object_of: for each item, the position of its object in `objects`.
    """

    def __init__(self, root: str | Path, category: str = "cars", split: str = "train", size: int = 128) -> None:
        """List a split; images and poses are read when asked for.

        Raises:
            FileNotFoundError: there is no such split, or an object lacks its images or poses.
            ValueError: an object has not one pose for each image, or the objects differ in their intrinsics.
        """
        base = Path(root) / f"{category}_{split}"
        nested = base / f"{category}_2.0_{split}"
        base = nested if nested.is_dir() else base
        folders = sorted(path.parent for path in base.glob("*/intrinsics.txt"))
        if not folders:
            raise FileNotFoundError(f"{base} has no <object>/intrinsics.txt; {_OBTAIN}")
        bare = [path for path in sorted(base.iterdir()) if (path / "rgb").is_dir() and path not in set(folders)]
        if bare:
            raise FileNotFoundError(f"{len(bare)} objects have no intrinsics.txt, first {bare[0]}; {_OBTAIN}")
        self.size, self.num_classes = size, 0
        self.objects = [folder.name for folder in folders]
        self.intrinsics = _shared_intrinsics(folders)
        self.object_of: list[int] = []
        self.names: list[str] = []
        self._files: list[tuple[Path, Path]] = []
        for position, folder in enumerate(folders):
            images, poses = _listing(folder / "rgb"), _listing(folder / "pose")
            if len(images) != len(poses):
                raise ValueError(
                    f"{folder} has {len(images)} images in rgb/ and {len(poses)} poses in pose/; {_OBTAIN}"
                )
            unpaired = sorted({path.stem for path in images} ^ {path.stem for path in poses})
            if unpaired:
                raise ValueError(f"{folder}: {unpaired[0]} is in one of rgb/ and pose/ only; {_OBTAIN}")
            self.object_of += [position] * len(images)
            self.names += [f"{folder.name}/{image.stem}" for image in images]
            self._files += zip(images, poses, strict=True)

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        image_path, _ = self._files[index]
        rgb, mask = read_on_white(image_path, self.size)
        return Views(rgb, mask, self.camera(index), None, torch.tensor([index])).to("cpu", dtype=torch.float32)

    def camera(self, index: int) -> Camera:
        _, pose_path = self._files[self._position(index)]
        focal, center = (torch.tensor([value], dtype=torch.float64) for value in self._lens())
        matrix = torch.from_numpy(read_pose(pose_path) @ np.diag([1.0, -1.0, -1.0, 1.0]))[None]
        try:
            camera = Camera.from_matrix(matrix, focal, center)
        except ValueError as error:
            raise ValueError(f"{pose_path}: {error}; the matrix has to be camera-to-world") from error
        check_in_view(camera, pose_path)
        return camera.to("cpu", dtype=torch.float32)

    def _lens(self) -> tuple[float, tuple[float, float]]:
        x, y = self.intrinsics.center
        return self.intrinsics.focal, (2 * x - 1, 2 * y - 1)


def read_intrinsics(path: Path) -> Intrinsics:
    """The first and the last line of an intrinsics.txt.

    Raises:
        ValueError: they are not f c_x c_y ... and height width of a square image.
    """
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        focal, x, y = (float(word) for word in lines[0][:3])
        height, width = (int(float(word)) for word in lines[-1])
    except (IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} must begin with `f c_x c_y 0.` and end with `height width` ({error})") from error
    if height != width or height <= 0 or not 0 < focal < math.inf or not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"{path}: f = {focal:g} must be positive, c = ({x:g}, {y:g}) in {height} x {width}, square")
    return Intrinsics(focal / height, (x / height, y / height))


def read_pose(path: Path) -> Float64[np.ndarray, "4 4"]:
    """Camera-to-world with OpenCV axes; any layout of 16 numbers.

    Raises:
        ValueError: they are not 16 numbers, or not a rigid motion.
    """
    try:
        numbers = np.array(path.read_text().split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path} holds something other than numbers ({error})") from error
    if numbers.shape != (16,):
        raise ValueError(f"{path} holds {numbers.size} numbers; a camera-to-world matrix has 16")
    matrix = numbers.reshape(4, 4)
    axes = matrix[:3, :3]
    if not np.isfinite(matrix).all():
        raise ValueError(f"{path} has numbers that are not finite; {_OBTAIN}")
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3) or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise ValueError(f"{path} is not a rotation and a translation")
    return matrix


def check_in_view(camera: Camera, path: Path) -> None:
    """Do nothing where a camera looks at its object, which is at the world's origin.

    Raises:
        ValueError: it looks past it, as one does whose matrix is the inverse of what it should be.
    """
    if not bool(camera.shift.abs().max() <= 1):
        raise ValueError(
            f"{path}: the camera looks past the object, whose center is not in the picture; is this world-to-camera? "
            "The matrix has to be camera-to-world"
        )


def _shared_intrinsics(folders: list[Path]) -> Intrinsics:
    first = read_intrinsics(folders[0] / "intrinsics.txt")
    for folder in folders[1:]:
        other = read_intrinsics(folder / "intrinsics.txt")
        if not np.allclose([first.focal, *first.center], [other.focal, *other.center], atol=1e-6):
            raise ValueError(f"all objects must share their intrinsics; {folders[0]} has {first} and {folder} {other}")
    return first


def _listing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; {_OBTAIN}")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

"""CARLA cars as GRAF distributes them: one view of each car from a known full-perspective camera, on white.

root/*.png                                   square pictures
root/carla_poses/<stem>_extrinsics.npy       camera-to-world [R | t], OpenGL axes (x right, y up, looking along -z)
root/carla_poses/intrinsics.npy              the lens of all of them, in pixels
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from invkit.data.dataset import ImageSet, read_on_white
from invkit.data.srn import check_in_view
from invkit.geometry.camera import Camera
from invkit.images import read_image
from invkit.runtime.arrays import read_npy
from invkit.types import Views

_OBTAIN = "see docs/datasets.md for where to get it"


class Carla(ImageSet):
    """All pictures, in the order of their names; there are no classes and no splits but train.

    focal: focal length over image width. The principal point is the middle of the picture, as in the released code.
    """

    def __init__(self, root: str | Path, split: str = "train", size: int = 128) -> None:
        """List the pictures; they and their cameras are read when asked for.

        Raises:
            FileNotFoundError: there are no pictures, or a camera or the lens is missing.
            ValueError: there is no such split, or the first picture or the lens is damaged.
        """
        if split != "train":
            raise ValueError(f"CARLA has no split {split!r}, only train: set split: train")
        self._images = sorted(Path(root).glob("*.png"))
        if not self._images:
            raise FileNotFoundError(f"{root} has no *.png; {_OBTAIN}")
        poses = Path(root) / "carla_poses"
        self._poses = [poses / f"{image.stem}_extrinsics.npy" for image in self._images]
        lens = poses / "intrinsics.npy"
        missing = [path for path in (lens, *self._poses) if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self._images) + 1} files of cameras are missing, first {missing[0]}; {_OBTAIN}"
            )
        self.names = [image.stem for image in self._images]
        self.size, self.num_classes = size, 0
        self.focal = read_focal(lens, read_image(self._images[0]).shape[-1])

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        rgb, mask = read_on_white(self._images[index], self.size)
        return Views(rgb, mask, self.camera(index), None, torch.tensor([index])).to("cpu", dtype=torch.float32)

    def camera(self, index: int) -> Camera:
        path = self._poses[self._position(index)]
        matrix = torch.from_numpy(np.vstack([read_extrinsics(path), [0, 0, 0, 1]]))[None]
        try:
            camera = Camera.from_matrix(matrix, torch.tensor([self.focal]).double())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        check_in_view(camera, path)
        return camera.to("cpu", dtype=torch.float32)


def read_focal(path: Path, width: int) -> float:
    """Focal length over image width.

    Args:
        width: of the stored pictures, which the lens is given in pixels of.

    Raises:
        ValueError: the file holds no 3 x 3 matrix with a positive focal length.
    """
    matrices = _read_array(path)
    if matrices.ndim < 2 or matrices.shape[-2:] != (3, 3) or not matrices.size:
        raise ValueError(f"{path} holds numbers of shape {list(matrices.shape)}, not 3 x 3 matrices; {_OBTAIN}")
    focal = float(matrices.reshape(-1, 3, 3)[0, 0, 0])
    if not 0 < focal < float("inf"):
        raise ValueError(f"{path}: the focal length is {focal:g}; it has to be positive: {_OBTAIN}")
    return focal / width


def read_extrinsics(path: Path) -> Float64[np.ndarray, "3 4"]:
    """Camera-to-world, OpenGL axes.

    Raises:
        ValueError: it is no rotation beside a translation.
    """
    matrix = _read_array(path)
    if matrix.shape != (3, 4):
        raise ValueError(f"{path} holds numbers of shape {list(matrix.shape)}, not 3 x 4; {_OBTAIN}")
    axes = matrix[:, :3]
    if not np.isfinite(matrix).all() or not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
        raise ValueError(f"{path} is not a rotation and a translation; {_OBTAIN}")
    return matrix


def _read_array(path: Path) -> Shaped[np.ndarray, "..."]:
    numbers = read_npy(path, _OBTAIN)
    if numbers.dtype.kind not in "buif":
        raise ValueError(f"{path} holds {numbers.dtype}, not numbers; {_OBTAIN}")
    return numbers.astype(np.float64)

"""Cameras as wrong as predicted ones, where the data set knows them exactly.

Procedural objects have exact cameras, and then nothing is to be seen of what a search does about wrong ones.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from invkit.data.cub import Cub
from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Views


class NoisyCameras(ImageSet):
    """A data set whose objects are turned in azimuth and elevation by normal errors; `annotated` has the true cameras.

    The error of an image depends on its place in the data set and on the seed alone.

    Args:
        azimuth, elevation: mean absolute errors, degrees. The defaults are those of the cameras that MeshInversion
            starts from (section 4.1), against those from structure from motion.
    """

    def __init__(
        self, dataset: ImageSet, *, azimuth: float = 6.03, elevation: float = 4.33, camera_seed: int = 0
    ) -> None:
        if min(azimuth, elevation) < 0:
            raise ValueError(f"azimuth and elevation must be >= 0 degrees; got {azimuth} and {elevation}")
        self.dataset, self.errors, self.camera_seed = dataset, (azimuth, elevation), camera_seed
        self.names, self.num_classes, self.size = dataset.names, dataset.num_classes, dataset.size
        self.guessed_cameras = dataset.guessed_cameras

    @classmethod
    def of_cub(
        cls,
        *,
        root: str,
        split: str,
        size: int = 256,
        azimuth: float = 6.03,
        elevation: float = 4.33,
        camera_seed: int = 0,
    ) -> "NoisyCameras":
        """A split of birds in CUB's layout, so seen."""
        birds = Cub(root, split, size)
        return cls(birds, azimuth=azimuth, elevation=elevation, camera_seed=camera_seed)

    def __getitem__(self, index: int) -> Views:
        position = self._position(index)
        views = self.dataset[position]
        return replace(views, camera=self._disturbed(views.camera, position))

    def label(self, index: int) -> int | None:
        return self.dataset.label(index)

    def annotated(self) -> ImageSet:
        return self.dataset.annotated()

    def _disturbed(self, camera: Camera, position: int) -> Camera:
        # |x| of a normal x has the mean sigma sqrt(2 / pi).
        sigmas = np.array(self.errors) * math.sqrt(math.pi / 2)
        errors = torch.from_numpy(np.random.default_rng([self.camera_seed, position]).normal(0, sigmas)).to(camera.quat)
        # About the object's up axis, and about the image's horizontal one.
        azimuth = rotation.from_axis_angle(camera.quat.new_tensor([[0, 0, 1]]), errors[:1])
        elevation = rotation.from_axis_angle(camera.quat.new_tensor([[1, 0, 0]]), errors[1:])
        quat = rotation.multiply(rotation.multiply(elevation, camera.quat), azimuth)
        return replace(camera, quat=quat)

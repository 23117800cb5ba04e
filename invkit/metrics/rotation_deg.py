"""How far the estimated viewpoint is turned from the true one."""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.mean import Mean
from invkit.types import Estimate, Rendering, Views


def rotation_deg(estimate: Camera, target: Camera) -> Float[Tensor, "B"]:
    """Geodesic angle between the two rotations, degrees in [0, 180]."""
    return rotation.angle(estimate.quat.double(), target.quat.double())


def azimuth_deg(estimate: Camera, target: Camera) -> Float[Tensor, "B"]:
    """How far apart the two look from around the object's upright axis (+z), degrees in [0, 180]."""
    turned = _azimuth(estimate) - _azimuth(target)
    return ((turned + 180) % 360 - 180).abs()


def elevation_deg(estimate: Camera, target: Camera) -> Float[Tensor, "B"]:
    """How far apart the heights are from which the two look, degrees in [0, 180]."""
    first, second = (torch.asin(_from(camera)[:, 2].clamp(-1, 1)).rad2deg() for camera in (estimate, target))
    return (first - second).abs()


def _from(camera: Camera) -> Float[Tensor, "B 3"]:
    """From where a camera looks: unit vectors of the object frame."""
    quat = rotation.normalize(camera.quat.double())
    axis = quat.new_tensor([0.0, 0.0, -1.0]).expand(len(quat), 1, 3)
    return rotation.rotate(rotation.conjugate(quat), axis)[:, 0]


def _azimuth(camera: Camera) -> Float[Tensor, "B"]:
    x, y, _ = _from(camera).unbind(dim=1)
    return torch.atan2(y, x).rad2deg()


ANGLES = {"rotation_deg": rotation_deg, "azimuth_deg": azimuth_deg, "elevation_deg": elevation_deg}


class RotationDeg(Mean):
    """Mean angle between the estimate's camera and the target's: one of ANGLES.

    It compares cameras and not pictures, so it is meaningful at the input view only: there `target` is the photograph
    that the estimate was made from.
    """

    def __init__(self, name: str = "rotation_deg") -> None:
        super().__init__()
        self.name, self.angle = name, ANGLES[name]

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        return self.angle(estimate.camera, target.camera)

"""How far the estimated viewpoint is turned from the true one."""

from jaxtyping import Float
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.mean import Mean
from invkit.types import Estimate, Rendering, Views


def rotation_deg(estimate: Camera, target: Camera) -> Float[Tensor, "B"]:
    """Geodesic angle between the two rotations, degrees in [0, 180]."""
    return rotation.angle(estimate.quat.double(), target.quat.double())


class RotationDeg(Mean):
    """Mean angle between the estimate's camera and the target's.

    It compares cameras and not pictures, so it is meaningful at the input view only: there `target` is the photograph
    that the estimate was made from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "rotation_deg"

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        return rotation_deg(estimate.camera, target.camera)

"""Where to look from: rings of azimuths in a canonical pose, turns of a found camera, random cameras.

The canonical pose is MeshInversion's (its evaluation renders every object so): the object frame has +y from head to
tail and +z up, and the camera looks from the side with the body inclined. All cameras are weak perspective and put the
object's origin at the center of the image; meshes are centered by their owner (`TexturedMesh.centered`).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from invkit import rotation
from invkit.camera import Camera

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
UPRIGHT = 90.0


def _about(axis: tuple[float, float, float], degrees: Float[Tensor, "B"]) -> Float[Tensor, "B 4"]:
    return rotation.from_axis_angle(degrees.new_tensor(axis).expand(len(degrees), 3), degrees)


def canonical(count: int, default_orientation: float = 30.0) -> Float[Tensor, "B 4"]:
    """`count` times the side view with the body inclined by `default_orientation` degrees: R_z(90 - it) R_y(-90)."""
    tilt = torch.full((count,), UPRIGHT - default_orientation)
    return rotation.multiply(_about(Z, tilt), _about(Y, torch.full((count,), -90.0)))


def _looking(quat: Float[Tensor, "B 4"], scale: float) -> Camera:
    zero = torch.zeros(len(quat))
    return Camera(quat, zero + scale, torch.zeros(len(quat), 2), zero)


def azimuth_ring(count: int = 12, *, scale: float = 0.7, default_orientation: float = 30.0) -> Camera:
    """Cameras at azimuths 0, 360 / count, ...: 0 and 180 are side views, 90 shows the head, 270 the tail.

    The object turns about the image's vertical axis, from the canonical pose.
    """
    degrees = torch.arange(count) * (360 / count)
    return _looking(rotation.multiply(_about(Y, degrees), canonical(count, default_orientation)), scale)


def random(
    count: int,
    rng: Generator,
    *,
    scale: float = 0.7,
    default_orientation: float = 30.0,
    max_elevation: float = 30.0,
) -> Camera:
    """Cameras at azimuths drawn from the whole circle and elevations drawn from +-`max_elevation` degrees."""
    azimuth, elevation = torch.rand(2, count, generator=rng) * 2 - 1
    turned = rotation.multiply(_about(Y, azimuth * 180), canonical(count, default_orientation))
    return _looking(rotation.multiply(_about(X, elevation * max_elevation), turned), scale)


def turned(camera: Camera, degrees: Float[Tensor, "B"], axis: tuple[float, float, float] = Z) -> Camera:
    """Each camera with the object turned by its angle about the object's own `axis`: by default its up axis."""
    return replace(camera, quat=rotation.multiply(camera.quat, _about(axis, degrees.to(camera.quat))))


def orbit(camera: Camera, degrees: Float[Tensor, "K"], axis: tuple[float, float, float] = Z) -> Camera:
    """Each camera with the object turned by each angle about its own `axis`, image-major: [B K] cameras.

    The object's origin comes to the center of the image; 0 degrees is the found view but for that. The default axis is
    up in CMR's object frame, so 180 degrees shows the side that was never seen.
    """
    cameras = turned(camera.repeat(len(degrees)), degrees.repeat(len(camera)), axis)
    nowhere = torch.zeros_like(cameras.shift)
    return replace(cameras, shift=nowhere, center=nowhere)

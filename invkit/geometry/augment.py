"""Random turns, zooms and shifts of images, and the camera that goes with them.

A discriminator that is short of images is shown them turned, zoomed and shifted; so that generated images need not be
disturbed alike, they are rendered by a camera that has been moved in the same way (Bootstrapped Radiance Field
Inversion, section 3.1 and appendix A.1). The same moves make a perceptual loss see two images in sixteen ways.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from invkit.batch import Batch
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import warp_affine


@dataclass(frozen=True)
class Similarity(Batch):
    """A move of each image's content: the point p goes to zoom R(angle) p + shift, NDC (x right, y down).

    Args:
        angle: radians, clockwise as seen.
        zoom: positive; above 1 enlarges.
    """

    angle: Float[Tensor, "B"]
    zoom: Float[Tensor, "B"]
    shift: Float[Tensor, "B 2"]

    def turned(self, points: Float[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
        """zoom R(angle) p."""
        cos, sin = self.zoom * self.angle.cos(), self.zoom * self.angle.sin()
        x, y = points.unbind(dim=1)
        return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)

    def warp(self, image: Float[Tensor, "B C H W"], fill: float | Float[Tensor, "C 1 1"] = 0.0) -> Tensor:
        """The moved images, sampled bilinearly.

        Args:
            fill: what comes in from outside; one value, or one for each channel.
        """
        cos, sin = self.angle.cos() / self.zoom, self.angle.sin() / self.zoom
        back = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
        matrix = torch.cat([back, -back @ self.shift[..., None]], dim=2)
        return warp_affine(image - fill, matrix) + fill

    def move(self, camera: Camera) -> Camera:
        """The camera that takes the moved images of the same objects.

        The principal point moves along, so this is exact for perspective cameras too.
        """
        moved = self.move_object(camera)
        return replace(moved, center=moved.center + self.shift)

    def move_object(self, camera: Camera) -> Camera:
        """As `move`, but the shift is made by the object moving sideways in space, as in the released code.

        With perspective that is exact at the depth of the object's center alone; for weak perspective the two are one.
        """
        half = self.angle / 2
        zero = torch.zeros_like(half)
        turn = torch.stack([half.cos(), zero, zero, half.sin()], dim=1)
        return replace(
            camera,
            quat=rotation.multiply(turn, camera.quat),
            scale=camera.scale * self.zoom,
            shift=self.turned(camera.shift) + self.shift,
            inv_focal=camera.inv_focal / self.zoom,
            center=self.turned(camera.center),
        )


def random_similarity(
    count: int,
    rng: Generator,
    *,
    probability: float = 1.0,
    max_angle: float = math.pi,
    zoom_spread: float = 0.2,
    shift_spread: float = 0.1,
) -> Similarity:
    """Moves of `count` images: each turns, zooms and shifts with this probability, independently.

    Args:
        max_angle: angles are drawn from +-this, radians.
        zoom_spread: standard deviation of log2 of the zoom.
        shift_spread: standard deviation of the shift along x and y, NDC.
    """

    def happens() -> Float[Tensor, "B"]:
        return (torch.rand(count, generator=rng) < probability).float()

    angle = happens() * (2 * torch.rand(count, generator=rng) - 1) * max_angle
    zoom = torch.exp2(happens() * torch.randn(count, generator=rng) * zoom_spread)
    shift = happens()[:, None] * torch.randn(count, 2, generator=rng) * shift_spread
    return Similarity(angle, zoom, shift)


def blurred(image: Float[Tensor, "B C H W"], sigma: float, fill: float | Float[Tensor, "C 1 1"] = 0.0) -> Tensor:
    """The images smoothed by the kernel 2^(-(x / sigma)^2), cut off at 3 sigma; the same where that is below a pixel.

    Args:
        sigma: pixels.
        fill: what lies outside; one value, or one for each channel.
    """
    reach = math.floor(3 * sigma)
    if reach < 1:
        return image
    distance = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp2(-((distance / sigma) ** 2))
    kernel = kernel / kernel.sum()
    flat = (image - fill).flatten(0, 1)[:, None]
    flat = F.conv2d(flat, kernel[None, None, :, None], padding=(reach, 0))
    flat = F.conv2d(flat, kernel[None, None, None, :], padding=(0, reach))
    return flat.view_as(image) + fill

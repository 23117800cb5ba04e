"""Where along its ray a pixel looks: the box, the samples, and how samples add up (NeRF; section 3.1 and appendix A).

Rays are those of `Camera.rays`: distances t count from the plane through the object's center, in object units, so they
may be negative, and weak perspective needs no camera position.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry import rotation
from invkit.geometry.camera import Camera

CLOSEST = 0.1
"""Nothing nearer to a perspective camera is seen, object units."""

WEAK_DISTANCE = 10.0
"""Where a weak perspective camera is put, NDC units before the object's center; only a gradient can tell."""


@dataclass(frozen=True)
class Bundle(Batch):
    """Rays of some pixels with the part of them that lies in the box.

    Args:
        near, far: where the box begins and ends.
        depth_scale: by which t becomes the scaled depth s Z of `Camera.project`.
    """

    origins: Float[Tensor, "N 3"]
    directions: Float[Tensor, "N 3"]
    near: Float[Tensor, "N"]
    far: Float[Tensor, "N"]
    depth_scale: Float[Tensor, "N"]

    def points(self, t: Float[Tensor, "N S"]) -> Float[Tensor, "N S 3"]:
        return self.origins[:, None] + self.directions[:, None] * t[..., None]


def bundle(
    camera: Camera, size: int, half_side: float, offset: float, *, from_camera: bool = False
) -> tuple[Bundle, Bool[Tensor, "N"]]:
    """The rays of all pixels, B H W of them, and which of them meet the box in front of the camera.

    Gradients flow to the camera through origins and directions alone: where a ray is sampled is not learned from.

    Args:
        from_camera: to a gradient the samples keep their distances from the camera, and so move along their rays when
            it comes nearer, as in the released code; otherwise those from the plane through the object's center. The
            two differ by what the sampling leaves out.
    """
    rays = camera.rays(size, offset)
    origins, directions = rays.origins.flatten(0, 2), rays.directions.flatten(0, 2)
    axis = rotation.rotate(
        rotation.conjugate(camera.quat), camera.quat.new_tensor([0.0, 0.0, 1.0]).expand(len(camera), 1, 3)
    )
    scale = camera.scale[:, None, None] * (rays.directions * axis[:, None]).sum(dim=-1)
    # The center is 1 / (k s) in front of a perspective camera; a weak one is infinitely far away.
    slope = camera.inv_focal[:, None, None] * scale
    weak = slope <= 0
    eye = torch.where(weak, -WEAK_DISTANCE / camera.scale[:, None, None], -1 / slope.where(~weak, 1)).flatten()
    with torch.no_grad():
        near, far = box_segment(origins, directions, half_side)
        near = torch.where(weak.flatten(), near, torch.maximum(near, eye + CLOSEST))
    if from_camera:
        origins = origins + directions * (eye - eye.detach())[:, None]
    return Bundle(origins, directions, near, far, scale.detach().flatten()), far > near


def box_segment(
    origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], half_side: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Where lines enter and leave [-r, r]^3; what misses it enters after it leaves."""
    to_low, to_high = (-half_side - origins) / directions, (half_side - origins) / directions
    enter, leave = torch.minimum(to_low, to_high), torch.maximum(to_low, to_high)
    # A line parallel to two faces is between them everywhere or nowhere; on a face the quotient would be 0 / 0.
    parallel, between = directions == 0, origins.abs() <= half_side
    enter = torch.where(parallel, torch.where(between, -torch.inf, torch.inf), enter)
    leave = torch.where(parallel, torch.where(between, torch.inf, -torch.inf), leave)
    return enter.amax(dim=-1), leave.amin(dim=-1)


def stratified(near: Float[Tensor, "N"], far: Float[Tensor, "N"], count: int, random: bool) -> Float[Tensor, "N S"]:
    """One distance in each of `count` equal parts of every segment: drawn from it, or its middle."""
    place = near.new_full((len(near), count), 0.5) if not random else torch.rand(len(near), count).to(near)
    share = (torch.arange(count, dtype=near.dtype, device=near.device) + place) / count
    return near[:, None] + (far - near)[:, None] * share


def important(t: Float[Tensor, "N S"], weights: Float[Tensor, "N S"], count: int, random: bool) -> Float[Tensor, "N M"]:
    """Distances where the weights are large, ascending: drawn from the smoothed histogram, or its quantiles.

    The weights are spread to their neighbors and raised by 0.01 first, so that no part of the ray is given up.
    """
    padded = torch.nn.functional.pad(weights, (1, 1), value=-torch.inf)
    larger = torch.maximum(padded[:, 1:], padded[:, :-1])
    smooth = (larger[:, 1:] + larger[:, :-1]) / 2 + 0.01
    edges = (t[:, 1:] + t[:, :-1]) / 2
    mass = smooth[:, 1:-1] + 1e-5
    cumulated = torch.cumsum(mass / mass.sum(dim=1, keepdim=True), dim=1)
    cumulated = torch.nn.functional.pad(cumulated, (1, 0))
    if random:
        u = torch.rand(len(t), count).to(t).sort(dim=1).values
    else:
        u = ((torch.arange(count, dtype=t.dtype, device=t.device) + 0.5) / count).expand(len(t), count).contiguous()
    return quantiles(edges, cumulated, u)


def quantiles(
    edges: Float[Tensor, "N E"], cumulated: Float[Tensor, "N E"], u: Float[Tensor, "N M"]
) -> Float[Tensor, "N M"]:
    """Where a histogram's distribution function, given at the edges of its bins, takes the values `u`."""
    above = torch.searchsorted(cumulated, u, right=True).clamp(max=edges.shape[1] - 1)
    below = (above - 1).clamp(min=0)
    low, high = cumulated.gather(1, below), cumulated.gather(1, above)
    width = torch.where(high - low < 1e-5, 1.0, high - low)
    start, end = edges.gather(1, below), edges.gather(1, above)
    return start + (u - low) / width * (end - start)


def weights_of(
    sigma: Float[Tensor, "N S"], t: Float[Tensor, "N S"]
) -> tuple[Float[Tensor, "N S"], Float[Tensor, "N S"]]:
    """What each sample adds to its pixel, and how much light passes all samples before it.

    weight = transmittance (1 - exp(-sigma delta)), delta the distance to the next sample; the last one adds nothing.
    """
    optical = sigma * torch.nn.functional.pad(t.diff(dim=1), (0, 1))
    transmittance = torch.exp(optical - optical.cumsum(dim=1))
    return -transmittance * torch.expm1(-optical), transmittance

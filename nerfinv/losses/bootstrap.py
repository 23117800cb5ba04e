"""What the encoder is trained by (Bootstrapped Radiance Field Inversion, section 3.2, Eqs. 4-7).

Its inputs are renderings, so everything it is asked for is known: the position seen at each pixel, the mask, the style
and the camera.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.geometry.camera import Camera


def coords(
    predicted: Float[Tensor, "B 3 H W"], true: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B"]:
    """Distance between predicted and true position, weighed by the true mask: its mean over all pixels (L_coord).

    The distance is not squared, and an object that fills less of the image counts less.
    """
    distance = torch.linalg.vector_norm(predicted - true, dim=1, keepdim=True)
    return (mask * distance).flatten(1).mean(dim=1)


def mask(predicted: Float[Tensor, "B 1 H W"], true: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B"]:
    """Mean absolute difference of the masks (L_mask)."""
    return (predicted - true).abs().flatten(1).mean(dim=1)


def latent(predicted: Float[Tensor, "B L"], true: Float[Tensor, "B L"]) -> Float[Tensor, "B"]:
    """Mean squared difference of the styles' entries (L_w)."""
    return (predicted - true).square().mean(dim=1)


def pose(predicted: Camera, true: Camera) -> Float[Tensor, "B"]:
    """Sum of the absolute differences of (q, ln s, t, z0), q and -q being the same: for direct regression.

    The paper gives no loss for this comparison.
    """
    found, wanted = pose_numbers(predicted), pose_numbers(true)
    quat, wanted_quat = found[:, :4], wanted[:, :4]
    either = torch.stack([quat - wanted_quat, quat + wanted_quat]).abs().sum(dim=2).amin(dim=0)
    return either + (found - wanted)[:, 4:].abs().sum(dim=1)


def pose_numbers(camera: Camera) -> Float[Tensor, "B 8"]:
    """(q, ln s, t, z0) of cameras; weak perspective has the largest z0 in use, 4."""
    z0, shift, scale, quat = camera.to_augmented()
    return torch.cat([quat, scale.log()[:, None], shift, z0[:, None]], dim=1)

"""Pixel-by-pixel comparison of pictures: the baseline that alignment-free losses are measured against."""

from jaxtyping import Float
from torch import Tensor

from invkit.images import composite
from invkit.types import Estimate, Views


def l1(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """Mean over pixels and channels of |rendered m - photographed m'|, each cut out with its own mask (CMR's form)."""
    image = estimate.image
    return (image.rgb * image.mask - target.rgb * target.mask).abs().flatten(1).mean(dim=1)


def picture_l1(estimate: Estimate, target: Views, *, background: float = 0.0) -> Float[Tensor, "B"]:
    """Mean absolute difference over all pixels and channels of the whole rendering and the photograph on `background`.

    The masks have no say of their own: the rendering is compared with what stands behind it there.
    """
    return _difference(estimate, target, background).abs().flatten(1).mean(dim=1)


def picture_mse(estimate: Estimate, target: Views, *, background: float = 0.0) -> Float[Tensor, "B"]:
    """The same with the squared difference."""
    return _difference(estimate, target, background).square().flatten(1).mean(dim=1)


def _difference(estimate: Estimate, target: Views, background: float) -> Float[Tensor, "B 3 H W"]:
    return estimate.image.rgb - composite(target.rgb, target.mask, background)

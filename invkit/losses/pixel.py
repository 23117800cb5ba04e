"""Pixel-by-pixel comparison of pictures: the baseline that alignment-free losses are measured against."""

from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Views


def l1(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """Mean over pixels and channels of |rendered m - photographed m'|, each cut out with its own mask (CMR's form)."""
    image = estimate.image
    return (image.rgb * image.mask - target.rgb * target.mask).abs().flatten(1).mean(dim=1)

"""Comparisons of silhouettes pixel by pixel.

They need a rendering whose silhouette has a gradient: the accumulated opacity of a field, or the soft mask of a mesh,
for which the renderer has to be asked.
"""

from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Rendering, Views


def silhouette(image: Rendering) -> Float[Tensor, "B 1 H W"]:
    """The mask that has a gradient: the soft one where there is one."""
    return image.mask if image.soft_mask is None else image.soft_mask


def l1(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """Mean absolute difference of the masks."""
    return (silhouette(estimate.image) - target.mask).abs().flatten(1).mean(dim=1)


def iou(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """1 - sum(a m) / sum(a + m - a m): one minus the soft intersection over union; 0 where both masks are empty."""
    rendered, wanted = silhouette(estimate.image).flatten(1), target.mask.flatten(1)
    both = (rendered * wanted).sum(dim=1)
    either = (rendered + wanted - rendered * wanted).sum(dim=1)
    return 1 - (both / either.where(either > 0, 1)).where(either > 0, 1)

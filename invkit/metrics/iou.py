"""Overlap of silhouettes."""

from jaxtyping import Float
from torch import Tensor

from invkit.metrics.mean import Mean
from invkit.types import Estimate, Rendering, Views


def iou(pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B"]:
    """sum(a b) / sum(a + b - a b), which for masks of 0 and 1 is intersection over union; 1 where both are empty."""
    a, b = pred.double().flatten(1), target.double().flatten(1)
    both = (a * b).sum(dim=1)
    either = (a + b - a * b).sum(dim=1)
    return (both / either).where(either > 0, 1.0)


class Iou(Mean):
    """Mean overlap of the rendered and the target's mask.

    Args:
        threshold: masks are first made 1 above it and 0 elsewhere; None takes them as they are.
    """

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__()
        self.name, self.threshold = "iou", threshold

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        masks = (image.mask, target.mask)
        if self.threshold is not None:
            masks = tuple((mask > self.threshold).double() for mask in masks)
        return iou(*masks)

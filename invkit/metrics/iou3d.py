"""Overlap of solids on a voxel grid."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from invkit.metrics.mean import Mean
from invkit.types import Estimate, Rendering, Views


def iou3d(pred: Bool[Tensor, "B X Y Z"], target: Bool[Tensor, "B X Y Z"]) -> Float[Tensor, "B"]:
    """Voxels in both over voxels in either; 1 where both are empty. `invkit.metrics.voxels` fills grids from meshes."""
    a, b = pred.flatten(1), target.flatten(1)
    both, either = (a & b).sum(dim=1).double(), (a | b).sum(dim=1).double()
    return (both / either).where(either > 0, 1.0)


class Iou3d(Mean):
    """Mean overlap of the estimated and the true solid.

    What a scene is, and which frame and alignment solids are compared in, is the method's and the data's to know.

    Args:
        solid: the solids of the estimated scenes; it is given the views too, whose cameras may serve to align them.
        truth: the solids that the views show, on the same grid.
    """

    def __init__(
        self,
        solid: Callable[[Estimate, Views], Bool[Tensor, "B X Y Z"]],
        truth: Callable[[Views], Bool[Tensor, "B X Y Z"]],
    ) -> None:
        super().__init__()
        self.name, self.solid, self.truth = "iou3d", solid, truth

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        pred = self.solid(estimate, target)
        return iou3d(pred, self.truth(target).to(pred.device))

"""Metrics that are an average over images of something measured on each image alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invkit import images
from invkit.types import Estimate, Rendering, Views


def pictures(
    image: Rendering, target: Views, background: float | None
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]]:
    """The two pictures to compare, [-1, 1].

    Args:
        background: what stands behind the object in both, each cut out with its own mask; None leaves both as they are.
    """
    if background is None:
        return image.rgb, target.rgb
    return images.composite(image.rgb, image.mask, background), images.composite(target.rgb, target.mask, background)


class Mean(ABC):
    """The mean of `measure` over all images, summed in float64."""

    name: str

    def __init__(self) -> None:
        self._total = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.int64)

    @abstractmethod
    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        """One value for each image."""

    @torch.no_grad()
    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        values = self.measure(estimate, image, target).double().cpu()
        self._total = self._total + values.sum()
        self._count = self._count + len(values)

    def state(self) -> Mapping[str, Tensor]:
        return {"total": self._total, "count": self._count}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._total = torch.stack([state["total"] for state in states]).sum()
        self._count = torch.stack([state["count"] for state in states]).sum()

    def compute(self) -> float:
        """The mean.

        Raises:
            ValueError: no image was measured.
        """
        if not self._count:
            raise ValueError(f"{self.name}: no image was measured")
        return float(self._total / self._count)

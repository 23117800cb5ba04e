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
        background: what stands behind the object in both, by their own masks; None leaves both as they are.
    """
    if background is None:
        return image.rgb, target.rgb
    return image.over(background), images.composite(target.rgb, target.mask, background)


class Mean(ABC):
    """The mean of `measure` over all pictures, which are remembered one by one, in float64.

    So it does not depend on how the images were spread over batches and ranks, to the last bit.
    """

    name: str

    def __init__(self) -> None:
        self._index = torch.zeros(0, dtype=torch.int64)
        self._value = torch.zeros(0, dtype=torch.float64)

    @abstractmethod
    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        """One value for each image."""

    @torch.no_grad()
    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        values = self.measure(estimate, image, target).double().cpu()
        self._value = torch.cat([self._value, values])
        self._index = torch.cat([self._index, target.index.cpu().long()])

    def state(self) -> Mapping[str, Tensor]:
        return {"index": self._index, "value": self._value}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._index = torch.cat([state["index"] for state in states])
        self._value = torch.cat([state["value"] for state in states])

    def per_image(self) -> dict[int, float]:
        """Index in the data set -> mean over the pictures of that image, in the order of the data set."""
        found: dict[int, list[float]] = {}
        for index, value in zip(self._index.tolist(), self._value.tolist(), strict=True):
            found.setdefault(index, []).append(value)
        return {index: sum(found[index]) / len(found[index]) for index in sorted(found)}

    def compute(self) -> float:
        """The mean.

        Raises:
            ValueError: no image was measured.
        """
        if not len(self._value):
            raise ValueError(f"{self.name}: no image was measured")
        return float(self._value[self._index.argsort(stable=True)].mean())

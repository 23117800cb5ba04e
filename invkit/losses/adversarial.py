"""What generator and discriminators pay each other, on logits of patches at several scales (MeshInversion, 3.1).

Each scale is a pair of logits [B, 1, h, w] and weights of their cells of the same size (or None: all cells alike).
One scale of one image costs sum(f(logit) m) / sum(m), the scales are averaged with their weights, and the batch is
left to the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invkit.precision import widened

Scale = tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."] | None]


def masked_mean(values: Float[Tensor, "B ..."], mask: Float[Tensor, "B ..."] | None) -> Float[Tensor, "B"]:
    """Mean of each image's values, weighted by its mask; 0 where the mask is empty.

    An image without any visible cell says nothing, so it adds nothing; the others keep their share of the batch,
    whatever their neighbors are.
    """
    if mask is None:
        return values.flatten(1).mean(dim=1)
    total = mask.flatten(1).sum(dim=1)
    weighted = (values * mask).flatten(1).sum(dim=1)
    return weighted / torch.where(total > 0, total, 1)


@dataclass(frozen=True)
class Adversarial:
    """A pair of adversarial objectives, from the cost of a single logit.

    Args:
        generator_cost: of a fake's logit, to the generator.
        real_cost: of a real image's logit, to the discriminator.
        fake_cost: of a fake's logit, to the discriminator.
        weights: of the scales; None counts them alike.
        masked: weigh the cells by their masks and the scales by `weights`. If false, all cells and scales count
            alike, but the sum over scales is still divided by the sum of weights, as the released code of
            MeshInversion does for all but the hinge.
    """

    generator_cost: Callable[[Tensor], Tensor]
    real_cost: Callable[[Tensor], Tensor]
    fake_cost: Callable[[Tensor], Tensor]
    weights: Sequence[float | int] | None = None
    masked: bool = True

    def generator(self, fake: Sequence[Scale]) -> Float[Tensor, "B"]:
        """What the generator pays for these fakes."""
        return self._mean(self.generator_cost, fake)

    def real(self, real: Sequence[Scale]) -> Float[Tensor, "B"]:
        """What the discriminator pays for these real images."""
        return self._mean(self.real_cost, real)

    def fake(self, fake: Sequence[Scale]) -> Float[Tensor, "B"]:
        """What the discriminator pays for these fakes."""
        return self._mean(self.fake_cost, fake)

    def _mean(self, cost: Callable[[Tensor], Tensor], scales: Sequence[Scale]) -> Float[Tensor, "B"]:
        weights = [1.0] * len(scales) if self.weights is None else list(self.weights)
        if len(weights) != len(scales):
            raise ValueError(f"{len(weights)} weights for the logits of {len(scales)} scales")
        total = 0.0
        for weight, (logits, mask) in zip(weights, scales, strict=True):
            # Under mixed precision the networks answer in half precision, which is too coarse to average in.
            values = cost(widened(logits))
            total = total + (weight * masked_mean(values, mask) if self.masked else masked_mean(values, None))
        return total / sum(weights)


def hinge(*, weights: Sequence[float | int] | None = None) -> Adversarial:
    """max(0, 1 - x) for reals, max(0, 1 + x) for fakes; the generator pays -x."""
    return Adversarial(torch.neg, lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), weights)


def least_squares(*, weights: Sequence[float | int] | None = None, masked: bool = True) -> Adversarial:
    """Squared distance to 1 for reals and to 0 for fakes; the generator wants 1 (MeshInversion, Eqs. 1-2)."""
    return Adversarial(lambda x: (x - 1).square(), lambda x: (x - 1).square(), torch.square, weights, masked)


def logistic(*, weights: Sequence[float | int] | None = None, masked: bool = True) -> Adversarial:
    """Binary cross entropy of the logit, with the generator's non-saturating form."""
    return Adversarial(lambda x: F.softplus(-x), lambda x: F.softplus(-x), F.softplus, weights, masked)


def wasserstein(*, weights: Sequence[float | int] | None = None, masked: bool = True) -> Adversarial:
    """-x for reals, x for fakes; the generator pays -x. The discriminator has to be kept smooth by other means."""
    return Adversarial(torch.neg, torch.neg, lambda x: x, weights, masked)

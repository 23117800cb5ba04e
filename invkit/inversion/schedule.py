"""How fast a search goes, for how long, and when an image may stop before the others."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8
"""Adam's."""


@dataclass(frozen=True)
class Stage:
    """`steps` steps of Adam at these learning rates.

    Args:
        latent_epsilon: Adam's epsilon for the latents.
    """

    steps: int
    latent_rate: float
    camera_rate: float
    latent_epsilon: float = EPSILON

    def slower(self, factor: float) -> "Stage":
        """The same at this fraction of its rates."""
        return replace(self, latent_rate=factor * self.latent_rate, camera_rate=factor * self.camera_rate)


MESHINVERSION_STAGES = (
    Stage(50, 0.1, 0.01),
    Stage(50, 0.05, 0.005),
    Stage(50, 0.01, 0.001),
    Stage(50, 0.005, 0.0005),
)

TRIAL = Stage(20, 0.05, 0.01)
"""Most guesses are then near what they can become; with more steps the same ones win."""


def hybrid_stages(steps: int = 30, *, gain: float | int = 5.0, rate: float = 0.002) -> tuple[Stage]:
    """The one stage of hybrid inversion (Bootstrapped Radiance Field Inversion, section 3.3).

    The paper's schedules are 30 steps with a gain of 5 and 10 steps with a gain of 20.

    Args:
        gain: how much faster the latents go than the cameras. The paper's variable is latent / gain. Adam's steps
            depend on the size of the gradient by epsilon alone, so that is the same as `gain` times the rate, and
            epsilon divided by `gain`, for the latent itself.
        rate: 0.002 in the released code, which its published results were made with; the paper says 0.02.
    """
    return (Stage(steps, gain * rate, rate, EPSILON / gain),)


def on_the_way(steps: int, count: int) -> list[int]:
    """Up to `count` numbers between 0 and `steps`, closer together at the beginning, where a search moves most.

    Raises:
        ValueError: count is negative.
    """
    if count < 0:
        raise ValueError(f"snapshots={count} must be 0 or more")
    numbers = {round(steps * (place / (count + 1)) ** 2) for place in range(1, count + 1)}
    return sorted(numbers - {0, steps})


@dataclass(frozen=True)
class Stall:
    """When an image stops: its objective, averaged over `window` looks, has hardly fallen since the `window` before.

    It goes by the image's own course alone, so the other images of the batch make no difference.

    Args:
        tolerance: the least fall that keeps an image going, relative to the earlier average.
        window: looks averaged; objectives that draw at random want more.
        least: steps made in any case.
    """

    tolerance: float = 0.05
    window: int = 5
    least: int = 10

    def __post_init__(self) -> None:
        if self.window < 1 or not self.tolerance >= 0:
            raise ValueError(f"window must be >= 1 and tolerance >= 0; got {self.window}, {self.tolerance}")

    def __call__(self, course: Float[Tensor, "B S"]) -> Bool[Tensor, "B"]:
        """Which images stop, given their objectives before each step so far and now."""
        looks = course.shape[1]
        if looks <= self.least or looks < 2 * self.window:
            return torch.zeros(len(course), dtype=torch.bool, device=course.device)
        before, now = course[:, -2 * self.window :].unflatten(1, (2, self.window)).mean(dim=2).unbind(dim=1)
        return before - now < self.tolerance * before.abs()

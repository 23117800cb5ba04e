"""Peak signal-to-noise ratio."""

from jaxtyping import Float
from torch import Tensor

from invkit.metrics.mean import Mean, pictures
from invkit.types import Estimate, Rendering, Views

CAP = 60.0  # dB; without it one perfect image would make the mean infinite


def psnr(pred: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """-10 log10 of the mean squared error on [0, 1], dB, at most 60. Pictures come in [-1, 1] and are clamped to it."""
    error = (pred.double().clamp(-1, 1) - target.double().clamp(-1, 1)) / 2
    return (-10 * error.square().mean(dim=(1, 2, 3)).log10()).clamp(max=CAP)


class Psnr(Mean):
    """Mean PSNR, dB.

    Args:
        background: see `mean.pictures`.
    """

    def __init__(self, *, background: float | None = None) -> None:
        super().__init__()
        self.name, self.background = "psnr", background

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        return psnr(*pictures(image, target, self.background))

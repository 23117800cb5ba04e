"""Structural similarity (Wang et al. 2004) as scikit-image computes it by default."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invkit.metrics.mean import Mean, pictures
from invkit.types import Estimate, Rendering, Views

WINDOW = 7


def ssim(
    pred: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"], *, data_range: float = 1.0
) -> Float[Tensor, "B"]:
    """Mean over channels and all full 7x7 windows, uniform weights, sample covariances; 1 for equal pictures.

    Args:
        pred: in [-1, 1], clamped to it and moved to [0, 1], as is `target`.
        data_range: the range that the stabilizing constants assume. 1 is that of the data; 2 is what older
            scikit-image took for floating-point pictures, and with it some published tables.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    if min(pred.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} pixels a side, not {tuple(pred.shape[-2:])}")
    a, b = (image.double().clamp(-1, 1) / 2 + 0.5 for image in (pred, target))
    mean_a, mean_b = avg_pool2d(a, WINDOW, 1), avg_pool2d(b, WINDOW, 1)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a = sample * (avg_pool2d(a * a, WINDOW, 1) - mean_a * mean_a)
    var_b = sample * (avg_pool2d(b * b, WINDOW, 1) - mean_b * mean_b)
    covariance = sample * (avg_pool2d(a * b, WINDOW, 1) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class Ssim(Mean):
    """Mean SSIM.

    Args:
        background: see `mean.pictures`.
        data_range: see `ssim`; other than 1 it goes into the name.
    """

    def __init__(self, *, background: float | None = None, data_range: float = 1.0) -> None:
        super().__init__()
        self.name = "ssim" if data_range == 1 else f"ssim-range{data_range:g}"
        self.background, self.data_range = background, data_range

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        pred, truth = pictures(image, target, self.background)
        return ssim(pred, truth, data_range=self.data_range)

"""Mean perceptual distance; the measure itself is `invkit.features.lpips`."""

from jaxtyping import Float
from torch import Tensor

from invkit.features.lpips import LPIPS
from invkit.metrics.mean import Mean, pictures
from invkit.types import Estimate, Rendering, Views


class Lpips(Mean):
    """Mean LPIPS, under the name of the network: "lpips-vgg-0.1".

    Args:
        network: follows the pictures to their device.
        background: see `mean.pictures`.
    """

    def __init__(self, network: LPIPS, *, background: float | None = None) -> None:
        super().__init__()
        self.name, self.network, self.background = network.name, network, background

    def measure(self, estimate: Estimate, image: Rendering, target: Views) -> Float[Tensor, "B"]:
        pred, truth = pictures(image, target, self.background)
        return self.network.to(pred.device)(pred, truth)

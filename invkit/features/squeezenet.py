"""SqueezeNet 1.1: a light network to follow a training with. Published numbers are not measured with it.

Its weights are 5 MB where Inception's are 100, and it is many times faster, so that a distance between generated and
real pictures can be looked at often. It has seen ImageNet and tells objects apart, but its distances are its own: they
compare with others that were measured with the same weights, and with nothing else.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.features.frozen import Frozen, Stack

SIZE = 224

_LAST = "fire9"
_NAMES = (
    *("conv1", "relu1", "pool1", "fire2", "fire3", "pool3", "fire4", "fire5", "pool5"),
    *("fire6", "fire7", "fire8", _LAST),
)


class SqueezeLayers(Stack):
    """SqueezeNet up to the last layer read.

    Args:
        layers: what to read, in the order of the result: conv1, relu1, pool1, fire2, ... fire9.
        weights: "squeezenet" (ImageNet, torchvision); "squeezenet_caffe" (ImageNet, the authors' own, in half
            precision); or "random".
        folder: where to look for the weights first.
    """

    def __init__(
        self, layers: Sequence[str] = (_LAST,), *, weights: str = "squeezenet", folder: str | Path | None = None
    ) -> None:
        from torchvision.models import squeezenet1_1

        with torch.device("meta"):
            features = squeezenet1_1(weights=None).features
        number = {name: i for i, name in enumerate(_NAMES)}

        def key(own: str) -> str:
            layer, entry = own.split(".", 1)
            return f"features.{number[layer]}.{entry}"

        parts = dict(zip(_NAMES, features, strict=True))
        parts["relu1"] = nn.ReLU()  # torchvision's overwrites conv1, which may be one of the layers read
        super().__init__("squeezenet", parts, layers, weights, key=key, folder=folder)


class SqueezeNet(Frozen):
    """The averages over the picture of the 512 channels that come out of the last fire module.

    Args:
        weights, folder: see `SqueezeLayers`.

    Raises:
        ValueError: the weights are unknown, damaged or do not fit.
        FileNotFoundError: the weights are not on this machine.
    """

    dim = 512

    def __init__(self, weights: str = "squeezenet", *, folder: str | Path | None = None) -> None:
        super().__init__()
        self.trunk = SqueezeLayers(weights=weights, folder=folder)
        self.name = self.trunk.name
        self.freeze()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 512"]:
        """The features of pictures in [-1, 1] of any size; seen at 224 x 224 (bilinear, as Inception resizes)."""
        if image.shape[-2:] != (SIZE, SIZE):
            image = nn.functional.interpolate(image, (SIZE, SIZE), mode="bilinear", align_corners=False)
        (activation,) = self.trunk(image)
        return activation.mean(dim=(2, 3))

"""LPIPS: how different two pictures look (Zhang et al., "The Unreasonable Effectiveness of Deep Features", v0.1).

The ImageNet backbone is torchvision's, the weights of its channels come with the package `lpips`. That package's own
module is not used: it builds classifiers only to drop them, downloads, and its gradient is NaN where a pixel activates
no channel; the tests hold the two together.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.features.alexnet import AlexNet
from invkit.features.frozen import Frozen
from invkit.features.squeezenet import SqueezeLayers
from invkit.features.vgg import VGG16

VERSION = "0.1"
_BACKBONES = {
    "vgg": (VGG16, "vgg16", ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
    "alex": (AlexNet, "alexnet", ("relu1", "relu2", "relu3", "relu4", "relu5")),
    "squeeze": (SqueezeLayers, "squeezenet", ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")),
}


def default_weights(net: str) -> str:
    """Name of the ImageNet weights that a net takes where none are named."""
    return _BACKBONES[net][1]


class LPIPS(Frozen):
    """Perceptual distance. Its name carries the backbone and the version: "lpips-vgg-0.1"; v0.0 gives other numbers.

    Args:
        net: "vgg", "alex" or "squeeze".
        weights: of the backbone; None takes the net's ImageNet weights of torchvision. Others go into the name.
        folder: where to look for the weights first.

    Raises:
        ValueError: the net is unknown; the weights are unknown, damaged or do not fit.
        FileNotFoundError: the weights of the backbone, or the package `lpips`, are not on this machine.
    """

    def __init__(self, net: str = "vgg", *, weights: str | None = None, folder: str | Path | None = None) -> None:
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"LPIPS has no net {net!r}; it has {', '.join(_BACKBONES)}")
        backbone, usual, layers = _BACKBONES[net]
        self.name = f"lpips-{net}-{VERSION}" + ("" if weights in (None, usual) else f"-{weights}")
        self.backbone = backbone(layers, weights=usual if weights is None else weights, folder=folder)
        heads = torch.load(_heads(net), map_location="cpu", weights_only=True)
        for i in range(len(layers)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"].flatten())
        self.freeze()

    def forward(self, pred: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Weighted squared differences of unit feature vectors, averaged over each layer, summed over layers.

        Args:
            pred: in [-1, 1], as is `target`; not clamped, so that a gradient reaches what lies outside.
        """
        return self.distance(self.maps(pred), self.maps(target))

    def maps(self, image: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """What is compared of a picture: the unit feature vectors of each layer."""
        return [_unit(features) for features in self.backbone(image)]

    def distance(
        self, pred: Sequence[Float[Tensor, "B _ _ _"]], target: Sequence[Float[Tensor, "B _ _ _"]]
    ) -> Float[Tensor, "B"]:
        """The distance of two pictures, from the `maps` of them."""
        total = pred[0].new_zeros(len(pred[0]))
        for i, (a, b) in enumerate(zip(pred, target, strict=True)):
            head = self.get_buffer(f"head{i}")[:, None, None]
            total = total + ((a - b).square() * head).sum(dim=1).mean(dim=(1, 2))
        return total


def _unit(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _heads(net: str) -> Path:
    """The file of channel weights inside the installed package, found without importing it."""
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise FileNotFoundError("LPIPS takes its channel weights from the package lpips: pip install lpips")
    return Path(package.origin).parent / "weights" / f"v{VERSION}" / f"{net}.pth"

"""AlexNet up to any of its layers: conv1, relu1, pool1, conv2, ..., relu5."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from invkit.features.frozen import Stack

_LETTERS = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}


class AlexNet(Stack):
    """Five convolutions.

    Args:
        layers: what to read, in the order of the result.
        weights: "alexnet" (ImageNet, torchvision) or "random".
        folder: where to look for the weights first.
    """

    def __init__(
        self, layers: Sequence[str] = ("relu5",), *, weights: str = "alexnet", folder: str | Path | None = None
    ) -> None:
        from torchvision.models import alexnet

        with torch.device("meta"):
            features = alexnet(weights=None).features
        parts, number, block = {}, {}, 0
        for i, part in enumerate(features):
            block += isinstance(part, nn.Conv2d)
            name = f"{_LETTERS[type(part)]}{block}"
            # torchvision's ReLUs overwrite the convolution they follow, which may be one of the layers read.
            parts[name] = nn.ReLU() if isinstance(part, nn.ReLU) else part
            number[name] = i

        def key(own: str) -> str:
            layer, entry = own.split(".")
            return f"features.{number[layer]}.{entry}"

        super().__init__("alexnet", parts, layers, weights, key=key, folder=folder)

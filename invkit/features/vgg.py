"""VGG-16 and VGG-19 up to any of their layers, named block by block: conv1_1, relu1_1, ..., pool1, conv2_1, ..."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from invkit.features.frozen import Stack

_WIDTHS = (64, 128, 256, 512, 512)


class VGG16(Stack):
    """Thirteen convolutions.

    Args:
        layers: what to read, in the order of the result.
        weights: "vgg16" (ImageNet, torchvision) or "random".
        folder: where to look for the weights first.
    """

    def __init__(
        self, layers: Sequence[str] = ("relu3_3",), *, weights: str = "vgg16", folder: str | Path | None = None
    ) -> None:
        parts = _parts((2, 2, 3, 3, 3))
        super().__init__("vgg16", parts, layers, weights, key=_torchvision_key(parts), folder=folder)


class VGG19(Stack):
    """Sixteen convolutions.

    Args:
        layers: what to read, in the order of the result; relu3_1 is the slice of MeshInversion's feature-level loss
            (the first twelve modules of the network: 256 channels at a quarter of the size).
        weights: "vgg19" (ImageNet, torchvision); "vgg19_normalised" (scaled to unit mean activations, in the Caffe form
            it was published in: reflected borders, pools that round up; ends at relu3_1); or "random".
        folder: where to look for the weights first.
    """

    def __init__(
        self, layers: Sequence[str] = ("relu3_1",), *, weights: str = "vgg19", folder: str | Path | None = None
    ) -> None:
        normalised = weights == "vgg19_normalised"
        parts = _parts((2, 2, 4, 4, 4), padding_mode="reflect" if normalised else "zeros", ceil_mode=normalised)
        key = str if normalised else _torchvision_key(parts)
        super().__init__("vgg19", parts, layers, weights, key=key, folder=folder)


def _parts(num_convs: tuple[int, ...], *, padding_mode: str = "zeros", ceil_mode: bool = False) -> dict[str, nn.Module]:
    """The layers by name, without weights (on the meta device)."""
    parts: dict[str, nn.Module] = {}
    channels = 3
    for block, (count, width) in enumerate(zip(num_convs, _WIDTHS, strict=True), start=1):
        for i in range(1, count + 1):
            parts[f"conv{block}_{i}"] = nn.Conv2d(
                channels, width, 3, padding=1, padding_mode=padding_mode, device="meta"
            )
            parts[f"relu{block}_{i}"] = nn.ReLU()
            channels = width
        parts[f"pool{block}"] = nn.MaxPool2d(2, ceil_mode=ceil_mode)
    return parts


def _torchvision_key(parts: dict[str, nn.Module]) -> Callable[[str], str]:
    """torchvision numbers the layers: conv1_1.weight is features.0.weight."""
    number = {name: i for i, name in enumerate(parts)}

    def key(own: str) -> str:
        layer, entry = own.split(".")
        return f"features.{number[layer]}.{entry}"

    return key

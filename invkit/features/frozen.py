"""What the frozen networks have in common: never trained, never in training mode, known by a name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.features import weights as files


@runtime_checkable
class Features(Protocol):
    """A network that sees a picture as one vector. `name` goes into the name of what is measured with it."""

    name: str
    dim: int

    def __call__(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]: ...

    def to(self, device: torch.device) -> "Features": ...


class Frozen(nn.Module):
    """A network whose weights are constants: no gradient reaches them, and `train()` leaves it in evaluation mode."""

    name: str

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def follow(self, image: Float[Tensor, "B 3 H W"]) -> None:
        """Move to the device and precision of `image`, and to the layout that convolutions are fastest in."""
        self.to(image.device, image.dtype, memory_format=torch.channels_last)


class Stack(Frozen):
    """A stack of layers of which some are read.

    Args:
        net: the architecture; its name together with `weights` is the name of the network.
        parts: the layers in order, by name, on any device.
        layers: the names of those to read; what comes after the last of them is dropped.
        weights: an entry of `weights.WEIGHTS`, or `weights.RANDOM`.
        key: the name in the weights file of an entry of the stack.
        folder: where to look for the weights first.

    Raises:
        ValueError: a layer is unknown; the weights are unknown, damaged or do not fit.
        FileNotFoundError: the weights are not on this machine.
    """

    color: Tensor
    shift: Tensor

    def __init__(
        self,
        net: str,
        parts: Mapping[str, nn.Module],
        layers: Sequence[str],
        weights: str,
        *,
        key: Callable[[str], str] = str,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        names = list(parts)
        unknown = [layer for layer in layers if layer not in parts]
        if unknown or not layers:
            raise ValueError(
                f"{net}: {'no such layer as ' + ', '.join(unknown) if unknown else 'no layer was named'}; "
                f"it has {', '.join(names)}"
            )
        self.layers = tuple(layers)
        self.parts = nn.Sequential()
        for name in names[: max(map(names.index, layers)) + 1]:
            self.parts.add_module(name, parts[name])
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("color", torch.diag(1 / std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        if weights == files.RANDOM:
            files.draw(self.parts)
            self.name = f"{net}-{files.RANDOM}"
        else:
            stored = files.load(weights, folder)
            files.fill(self.parts, weights, stored, key)
            if "pre.weight" in stored:
                # A file that brings its own first step, an affine map of the colors, in place of ImageNet's.
                self.color, self.shift = stored["pre.weight"].flatten(1).float(), stored["pre.bias"].float()
            self.name = weights
        self.freeze()

    def forward(
        self, image: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The activations of the layers read, in the order in which they were asked for.

        Args:
            image: in [-1, 1].
            mask: multiplied onto the picture after its colors are normalized, so that the outside is the mean color.
        """
        signal = torch.einsum("oc,bchw->bohw", self.color, image / 2 + 0.5) + self.shift[:, None, None]
        if mask is not None:
            signal = signal * mask
        read = {}
        for name, part in self.parts.named_children():
            signal = part(signal)
            if name in self.layers:
                read[name] = signal
        return [read[layer] for layer in self.layers]

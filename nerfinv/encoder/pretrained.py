"""Published weights of SegFormer's backbones, trained on ImageNet: `mit_b0.pth` ... `mit_b5.pth`.

Their names are those of our `MixTransformer`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from invkit.features import weights
from invkit.runtime.checkpoint import load_foreign
from invkit.runtime.conversion import State, first_of
from nerfinv.encoder.segformer import MixTransformer

GO_WITHOUT = "give task.pretrained=null: the backbone then starts from random weights, which is not the paper's setting"


def load_backbone(backbone: MixTransformer, path: Path | str) -> None:
    """Put the weights of a published backbone (`mit_b5.pth` and its like) into `backbone`, a decode head left as it is.

    Args:
        path: of the file; or mit_b5, which is looked for as all weights are (`invkit.features.weights`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but such weights, or those of a backbone of another size.
    """
    path = weights.find(str(path), go_without=GO_WITHOUT) if str(path) in weights.WEIGHTS else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} with a backbone trained on ImageNet. NVIDIA publishes mit_b0.pth ... mit_b5.pth "
            f"with SegFormer (github.com/NVlabs/SegFormer). To train without it, {GO_WITHOUT}"
        )
    stored = load_foreign(path)
    try:
        fill_backbone(backbone, stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@torch.no_grad()
def fill_backbone(backbone: MixTransformer, stored: State) -> None:
    """`load_backbone` of what the file holds; its classifier `head.*` is left out.

    Raises:
        ValueError: as there.
    """
    own = {name: value for name, value in backbone.state_dict().items() if not name.startswith("linear_")}
    chosen = {name: value for name, value in stored.items() if not str(name).startswith("head.")}
    check_entries(chosen, {name: value.shape for name, value in own.items()})
    for name, value in own.items():
        value.copy_(chosen[name])


def check_entries(state: State, shapes: Mapping[str, torch.Size]) -> None:
    """Check that the state has these entries and no others, in floating point.

    Raises:
        ValueError: it does not; the message names one.
    """
    if missing := [name for name in shapes if name not in state]:
        raise ValueError(f"lacks {first_of(missing)}")
    if unknown := [str(name) for name in state if name not in shapes]:
        raise ValueError(f"has {first_of(unknown)}, which the network does not have")
    for name, shape in shapes.items():
        value = state[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__} and not a tensor")
        if value.shape != shape:
            raise ValueError(f"{name} is {list(value.shape)} and not {list(shape)}: the network has another size")
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype} and not of floating point")

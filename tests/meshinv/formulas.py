"""Inputs and weights given by formulas, for which the released code's answers are known."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def hash_weights(index: int, count: int) -> Tensor:
    """`count` reproducible numbers in [-1, 1], different for each `index`; float64."""
    position = torch.arange(count, dtype=torch.float64) % 65521
    value = torch.sin(12.9898 * position + 78.233 * (index + 1)) * 43758.5453
    return 2 * (value - value.floor()) - 1


def fill(net: nn.Module, rho: float = 1.0) -> None:
    """Overwrite the weights of `net` by those of `filled`."""
    net.load_state_dict(filled({name: tuple(value.shape) for name, value in net.state_dict().items()}, rho))


def filled(layout: Mapping[str, tuple[int, ...]], rho: float = 1.0) -> dict[str, Tensor]:
    """A state dict of these names and shapes, by formulas of each tensor's place in it; float64.

    Args:
        rho: length of the spectral vectors; below 1 it imitates those of a running average.
    """
    state = {}
    for index, (name, shape) in enumerate(layout.items()):
        value = hash_weights(index, math.prod(shape)).view(shape)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(0)
        elif name.endswith("running_var"):
            value = 1 + 0.5 * value
        elif name.startswith("emb_class"):
            pass
        elif len(shape) < 2 or "projector" in name:
            value = 0.1 * value
        else:
            value = value * math.sqrt(3 / math.prod(shape[1:]))
        state[name] = value * {"conv_final.weight": 0.15, "conv_mesh.weight": 0.03}.get(name, 1)
    for name in layout:
        if name.endswith("weight_orig"):
            matrix = state[name].flatten(1)
            v = nn.functional.normalize(
                matrix.T @ torch.full((len(matrix),), 1 / math.sqrt(len(matrix))).double(), dim=0
            )
            u = nn.functional.normalize(matrix @ v, dim=0)
            state[name.replace("orig", "u")], state[name.replace("orig", "v")] = rho * u, rho * v
    return state


def latent() -> Tensor:
    """z_k = sin(k + 1), k = 0..63; [1, 64], float64."""
    return torch.sin(torch.arange(1, 65, dtype=torch.float64))[None]


def displacement_map(height: int = 32, width: int = 32) -> Tensor:
    """0.1 cos(0.5 c + 0.2 y + 0.3 x); [1, 3, height, width], float64."""
    c, y, x = (torch.arange(n, dtype=torch.float64) for n in (3, height, width))
    return 0.1 * torch.cos(0.5 * c[:, None, None] + 0.2 * y[:, None] + 0.3 * x)[None]

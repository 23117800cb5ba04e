"""The palette of an object: K colors, of which its decoder says how much of each there is where (section 3.1).

Palette colors are the values of an attention whose queries are points; its keys are part of the decoder.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfinv.field import wide_sigmoid
from nerfinv.layers import SLOPE, EqualizedLinear


class PaletteMapper(nn.Module):
    """A learned constant through residual layers that a style shifts and scales."""

    def __init__(self, style_dim: int, palette_size: int) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(1, style_dim))
        for index in range(1, 5):
            self.add_module(f"fc{index}", EqualizedLinear(style_dim, style_dim, bias_init=None))
            self.add_module(f"norm{index}", StyledLayerNorm(style_dim))
        self.fc5 = EqualizedLinear(style_dim, style_dim)
        self.fc_values = EqualizedLinear(style_dim, 3 * palette_size)

    def forward(self, style: Float[Tensor, "B S"]) -> Float[Tensor, "B K 3"]:
        """Colors in [-1.002, 1.002]."""
        inner = self.const.expand(len(style), -1)
        for first in (1, 3):
            shortcut = inner
            for index in (first, first + 1):
                linear, norm = getattr(self, f"fc{index}"), getattr(self, f"norm{index}")
                inner = F.leaky_relu(norm(linear(inner), style), SLOPE)
            inner = (inner + shortcut) * math.sqrt(0.5)
        inner = F.leaky_relu(self.fc5(inner), SLOPE)
        return wide_sigmoid(self.fc_values(inner).view(len(style), -1, 3))


class StyledLayerNorm(nn.Module):
    """Layer normalization whose gain and shift are read off a style."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_gamma = EqualizedLinear(width, width)
        self.fc_beta = EqualizedLinear(width, width)

    def forward(self, inputs: Float[Tensor, "B C"], style: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        normalized = F.layer_norm(inputs, inputs.shape[-1:])
        return torch.addcmul(self.fc_beta(style), 1 + self.fc_gamma(style), normalized)

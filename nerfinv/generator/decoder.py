"""From plane features to signed distance and color logits (bootstrapped radiance-field inversion, appendix A.1)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfinv.layers import EqualizedLinear


class PlaneDecoder(nn.Module):
    """One hidden layer with softplus; output channel 0 is the distance (or raw density), the rest the attributes."""

    def __init__(self, in_features: int, num_attributes: int, *, width: int = 64) -> None:
        super().__init__()
        self.hidden = EqualizedLinear(in_features, width)
        self.output = EqualizedLinear(width, 1 + num_attributes)

    def forward(self, features: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
        """Distance (world units, negative inside) or raw density, and attributes."""
        outputs = self.output(F.softplus(self.hidden(features)))
        return outputs[:, 0], outputs[:, 1:]

    def value(self, features: Float[Tensor, "P C"]) -> Float[Tensor, "P"]:
        """Distance or raw density alone."""
        row = self.output.weight[:1] * self.output.weight_gain
        return F.linear(F.softplus(self.hidden(features)), row, self.output.bias[:1])[:, 0]

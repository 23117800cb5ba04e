"""Colors that depend on the direction one looks in (bootstrapped radiance-field inversion, used for CARLA only)."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfinv.layers import SLOPE, EqualizedLinear


class ViewHead(nn.Module):
    """Color logits (or palette logits) of a point from its attributes and the direction of its ray.

    The last layer starts at zero, so that a new generator's colors depend on nothing.
    """

    def __init__(self, num_attributes: int, out_features: int, *, width: int = 64) -> None:
        super().__init__()
        self.fc0 = EqualizedLinear(3, width)
        for index in range(1, 5):
            self.add_module(f"fc{index}", EqualizedLinear(width, width, bias_init=None))
            self.add_module(f"norm{index}", nn.LayerNorm(width))
        self.fc5 = EqualizedLinear(width, width)
        self.fc6 = EqualizedLinear(width, num_attributes)
        self.output = EqualizedLinear(num_attributes, out_features)
        nn.init.zeros_(self.output.weight)

    def embed(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N E"]:
        """What a ray adds to the attributes of its points.

        Args:
            directions: unit, world axes, from the camera to the scene.
        """
        inner = F.leaky_relu(self.fc0(directions), SLOPE)
        for pair in (
            ((self.fc1, self.norm1), (self.fc2, self.norm2)),
            ((self.fc3, self.norm3), (self.fc4, self.norm4)),
        ):
            shortcut = inner
            for linear, norm in pair:
                inner = F.leaky_relu(norm(linear(inner)), SLOPE)
            inner = (inner + shortcut) * math.sqrt(0.5)
        return self.fc6(F.leaky_relu(self.fc5(inner), SLOPE))

    def forward(self, embedding: Float[Tensor, "P E"], attributes: Float[Tensor, "P E"]) -> Float[Tensor, "P K"]:
        """Logits of points; `embedding` holds that of each point's own ray."""
        return self.output(F.leaky_relu(embedding + attributes, SLOPE))

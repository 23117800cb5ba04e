"""From latents to styles (StyleGAN2's mapping network, as the released code builds it: shallow and without pose)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfinv.layers import EqualizedLinear


class Mapping(nn.Module):
    """Two layers that learn a hundred times more slowly; a class is an embedding beside the normalized latent."""

    def __init__(self, latent_dim: int, style_dim: int, *, num_classes: int = 0) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.fc0 = EqualizedLinear(latent_dim * (2 if num_classes else 1), style_dim, lr_mult=0.01, activate=True)
        self.fc1 = EqualizedLinear(style_dim, style_dim, lr_mult=0.01, activate=True)

    def forward(self, latent: Float[Tensor, "B D"], label: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B S"]:
        """Styles; only the direction of a latent counts.

        Raises:
            ValueError: there are classes and no labels are given.
        """
        latent = latent * torch.rsqrt(latent.square().mean(dim=1, keepdim=True) + 1e-8)
        if self.class_embedding is not None:
            if label is None:
                raise ValueError("this generator draws objects of a class: give labels")
            latent = torch.cat([latent, self.class_embedding(label)], dim=1)
        return self.fc1(self.fc0(latent))

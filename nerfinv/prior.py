"""The frozen generator as a prior over objects: styles of all slots (W+) in, radiance field out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator


class FieldPrior:
    """Radiance fields from styles, one for each slot of a trained generator.

    The generator is taken over: put in evaluation mode, its weights without gradient.

    Args:
        generator: commonly the running average of the trained one.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.latent_shape = (generator.num_styles, generator.style_dim)
        self.num_classes = generator.num_classes

    def to(self, device: torch.device | str) -> "FieldPrior":
        """The prior itself, moved to `device`."""
        self.generator.to(device)
        return self

    @torch.no_grad()
    def sample(self, count: int, rng: torch.Generator) -> Float[Tensor, "count W S"]:
        """Styles of normal latents (and, where there are classes, of classes drawn alike), the same in every slot.

        Drawn on the device of `rng`, returned on the prior's.
        """
        like = next(self.generator.parameters())
        latent = torch.randn(count, self.generator.latent_dim, generator=rng, device=rng.device).to(like)
        label = None
        if self.num_classes:
            label = torch.randint(self.num_classes, (count,), generator=rng, device=rng.device).to(like.device)
        return self.generator.style(latent, label)[:, None].repeat(1, self.latent_shape[0], 1)

    def decode(self, latent: Float[Tensor, "B W S"], label: Int[Tensor, "B"] | None) -> RadianceField:
        """The fields of these styles, differentiable in them; a class is part of its styles, so labels say nothing."""
        return self.generator(latent)

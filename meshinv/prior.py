"""The frozen mesh generator as a prior over textured shapes: latent and class in, textured mesh out."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meshinv.generator import Generator
from meshinv.mesh import TexturedMesh
from meshinv.template import Template


class MeshPrior:
    """Textured meshes from latents of a trained generator.

    The generator is taken over: put in evaluation mode, its weights without gradient.

    Args:
        generator: commonly the running average of the trained one.
        template: the sphere that displacement maps deform; symmetric as the generator is.
        truncation: latents are drawn from the normal distribution restricted in each entry to
            [-truncation, truncation], which trades variety for quality; None does not restrict.

    Raises:
        ValueError: `truncation` is not positive, or one of generator and template is symmetric and the other is not.
    """

    def __init__(self, generator: Generator, template: Template, *, truncation: float | None = None) -> None:
        if truncation is not None and truncation <= 0:
            raise ValueError(f"truncation {truncation} is not positive")
        if generator.symmetric != template.symmetric:
            raise ValueError(
                f"generator symmetric={generator.symmetric}, template symmetric={template.symmetric}: they must agree"
            )
        self.generator = generator.eval().requires_grad_(False)
        self.template = template
        self.truncation = truncation
        self.latent_shape = (generator.latent_dim,)
        self.num_classes = generator.num_classes

    def to(self, device: torch.device | str) -> "MeshPrior":
        """The prior itself, moved to `device`."""
        self.generator.to(device)
        self.template = self.template.to(device)
        return self

    def sample(self, count: int, rng: torch.Generator) -> Float[Tensor, "count L"]:
        """Latents from the (truncated) normal distribution; drawn on the device of `rng`, returned on the prior's."""
        shape = (count, *self.latent_shape)
        if self.truncation is None:
            latent = torch.randn(shape, generator=rng, device=rng.device)
        else:
            # The share of the normal distribution within the bound, mapped through its quantiles.
            share = math.erf(self.truncation / math.sqrt(2))
            uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
            latent = torch.special.ndtri(0.5 + share * (uniform - 0.5)).float()
        return latent.to(next(self.generator.parameters()))

    def decode(self, latent: Float[Tensor, "B L"], label: Int[Tensor, "B"] | None) -> TexturedMesh:
        """The textured meshes of these latents, differentiable in them.

        Raises:
            ValueError: the generator has classes and `label` is None.
        """
        maps = self.generator(latent, label)
        return TexturedMesh(
            vertices=self.template.deform(maps.displacement), texture=maps.texture, template=self.template
        )

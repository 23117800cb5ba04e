"""The frozen mesh generator as a prior over textured shapes: latent and class in, textured mesh out."""

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

    Raises:
        ValueError: one of generator and template is symmetric and the other is not.
    """

    def __init__(self, generator: Generator, template: Template) -> None:
        if generator.symmetric != template.symmetric:
            raise ValueError(
                f"generator symmetric={generator.symmetric}, template symmetric={template.symmetric}: they must agree"
            )
        self.generator = generator.eval().requires_grad_(False)
        self.template = template
        self.latent_shape = (generator.latent_dim,)
        self.num_classes = generator.num_classes

    def to(self, device: torch.device | str) -> "MeshPrior":
        """The prior itself, moved to `device`."""
        self.generator.to(device)
        self.template = self.template.to(device)
        return self

    def sample(self, count: int, rng: torch.Generator) -> Float[Tensor, "count L"]:
        """Latents from the standard normal distribution; drawn on the device of `rng`, returned on the prior's."""
        latent = torch.randn((count, *self.latent_shape), generator=rng, device=rng.device)
        return latent.to(next(self.generator.parameters()))

    def decode(self, latent: Float[Tensor, "B L"], label: Int[Tensor, "B"] | None) -> TexturedMesh:
        """The textured meshes of these latents, differentiable in them.

        Raises:
            ValueError: the generator has classes and `label` is None.
        """
        return self.generator(latent, label).mesh(self.template)


def truncated_normal(shape: tuple[int, ...], sigma: float, rng: torch.Generator) -> Tensor:
    """Standard normal entries redrawn until |z| <= sigma, by inverting the distribution function instead."""
    half = torch.erf(torch.tensor(sigma / 2**0.5))
    return 2**0.5 * torch.erfinv(half * (2 * torch.rand(shape, generator=rng) - 1))

"""How unlikely a latent is under the prior."""

from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Views


def gaussian_prior(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """Mean over the latent's entries of z^2 / 2: the negative log density of N(0, 1) per entry, up to a constant."""
    return estimate.latent.square().flatten(1).mean(dim=1) / 2

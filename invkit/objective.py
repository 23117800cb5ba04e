"""An objective is a list of named, weighted terms, and it keeps one value for each image.

Nothing is summed over the batch here: the images of a batch are independent problems, and whoever takes a gradient or
writes a trace wants them apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.protocols import Term
from invkit.types import Estimate, Views


@dataclass(frozen=True)
class WeightedTerm:
    """A loss with its hyperparameters bound, and how much it counts."""

    weight: float
    function: Term


class Objective:
    """The weighted terms by name; a term of weight 0 is not evaluated.

    Raises:
        ValueError: a weight is negative or not finite, or no term has any weight.
    """

    def __init__(self, terms: Mapping[str, WeightedTerm]) -> None:
        for name, term in terms.items():
            if not (math.isfinite(term.weight) and term.weight >= 0):
                raise ValueError(f"the weight of the term {name} must be finite and >= 0; it is {term.weight}")
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            raise ValueError("an objective needs a term whose weight is above 0")

    def __call__(self, estimate: Estimate, target: Views) -> dict[str, Float[Tensor, "B"]]:
        """The weighted terms."""
        return {name: term.weight * term.function(estimate, target) for name, term in self.terms.items()}


def total(terms: Mapping[str, Float[Tensor, "B"]]) -> Float[Tensor, "B"]:
    """The sum of the terms, one value for each image."""
    return torch.stack(list(terms.values())).sum(dim=0)

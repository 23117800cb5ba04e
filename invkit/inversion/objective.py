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

from invkit.batch import Batch
from invkit.protocols import Prepared, Term
from invkit.types import Estimate, Views


@dataclass(frozen=True)
class WeightedTerm:
    """A loss with its hyperparameters bound, and how much it counts."""

    weight: float
    function: Term


@dataclass(frozen=True)
class Targets(Batch):
    """What an objective needs of the photographs, in all the steps of a search.

    Args:
        views: the photographs.
        prepared: what the terms that are `Prepared` made of them, by the name of the term.
    """

    views: Views
    prepared: Mapping[str, Batch]


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

    @torch.no_grad()
    def targets(self, views: Views) -> Targets:
        """What the terms need of these photographs.

        Raises:
            ValueError: a term has nothing to compare with in some of the images.
        """
        functions = {name: term.function for name, term in self.terms.items()}
        return Targets(views, {name: f.target(views) for name, f in functions.items() if isinstance(f, Prepared)})

    def __call__(self, estimate: Estimate, target: Targets | Views) -> dict[str, Float[Tensor, "B"]]:
        """The weighted terms.

        Args:
            estimate: one hypothesis about each image, or K of each, those about one image after another.
            target: the photographs, best as `targets` of them where they are looked at more than once.

        Raises:
            ValueError: the hypotheses cannot be shared out evenly.
        """
        targets = self.targets(target) if isinstance(target, Views) else target
        per_image, rest = divmod(len(estimate), len(targets))
        if rest:
            raise ValueError(f"{len(estimate)} guesses cannot be shared out evenly to {len(targets)} images")
        values = {}
        for name, term in self.terms.items():
            own = targets.prepared[name] if isinstance(term.function, Prepared) else targets.views
            # Repeated for one term at a time: targets can be large.
            values[name] = term.weight * term.function(estimate, own if per_image == 1 else own.repeat(per_image))
        return values


def total(terms: Mapping[str, Float[Tensor, "B"]]) -> Float[Tensor, "B"]:
    """The sum of the terms, one value for each image."""
    return torch.stack(list(terms.values())).sum(dim=0)

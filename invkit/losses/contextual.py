"""Contextual similarity of two sets of features (Mechrez et al., "The Contextual Loss for Image Transformation").

Two pictures are similar where every feature of the one is, for some feature of the other, clearly the most similar of
all. Places do not count.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PAIRS = 2**20  # of a tile: each of the few tables that are alive at a time has so many entries


def contextual(
    source: Float[Tensor, "N C"], target: Float[Tensor, "M C"], *, bandwidth: float = 0.5
) -> Float[Tensor, ""]:
    """-log of the mean over the target of the greatest similarity to a source, between 0 and log M (Eqs. 2-5).

    The similarity of a pair is exp((1 - d) / bandwidth), where d is the cosine distance of the two, seen from the
    target's mean, over the least of that source (plus 1e-5); and then divided by the sum of it over the target.

    The pairs are looked at in tiles of sources, in the backward pass again: memory is that of one tile.
    """
    center = target.mean(dim=0)
    source, target = functional.normalize(source - center, dim=1), functional.normalize(target - center, dim=1)
    best = target.new_full((len(target),), -torch.inf)
    for tile in source.split(max(1, PAIRS // len(target))):
        greatest = partial(_greatest, tile, target, bandwidth)
        if torch.is_grad_enabled():
            greatest = partial(checkpoint, greatest, use_reentrant=False, preserve_rng_state=False)
        best = torch.maximum(best, greatest())
    return torch.tensor(float(len(target))).log().to(best) - best.logsumexp(dim=0)


def _greatest(source: Float[Tensor, "N C"], target: Float[Tensor, "M C"], bandwidth: float) -> Float[Tensor, "M"]:
    """Logarithm of the greatest similarity of each target to any of these sources, all of unit length."""
    distance = (1 - source @ target.T).clamp(min=0)
    relative = distance / (distance.amin(dim=1, keepdim=True) + 1e-5)
    return ((1 - relative) / bandwidth).log_softmax(dim=1).amax(dim=0)

"""Kernel distance between the features of rendered and of real images (KID; Binkowski et al. 2018).

Unlike FID its expectation does not depend on the number of images, so it is the one to look at where they are few.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invkit import images
from invkit.features.frozen import Features
from invkit.metrics.mean import pictures
from invkit.types import Estimate, Rendering, Views

_ROWS = 4096  # of the kernel matrix, computed at a time


def squared_mmd(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """The unbiased estimate of the squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3, float64.

    It may be negative; its expectation is 0 for two samples of the same distribution.

    Raises:
        ValueError: a side has fewer than two images.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"KID needs at least 2 images on each side, not {len(first)} and {len(second)}")
    x, y = first.double(), second.double()
    within = (
        (_kernel_sum(side, side) - _kernel(side.square().sum(dim=1), side.shape[1]).sum())
        / (len(side) * (len(side) - 1))
        for side in (x, y)
    )
    return sum(within, start=-2 * _kernel_sum(x, y) / (len(x) * len(y)))


def kid(
    fake: Float[Tensor, "N D"],
    real: Float[Tensor, "M D"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Float[Tensor, "subsets"]:
    """One estimate for each of `subsets` pairs of subsets, drawn without replacement; their mean is the usual KID.

    Args:
        subset_size: images in a subset, fewer where a side has fewer.
    """
    size = min(subset_size, len(fake), len(real))
    rng = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(subsets):
        chosen = [side[torch.randperm(len(side), generator=rng)[:size].to(side.device)] for side in (fake, real)]
        estimates.append(squared_mmd(*chosen))
    return torch.stack(estimates)


def _kernel(product: Tensor, dim: int) -> Tensor:
    return (product / dim + 1) ** 3


def _kernel_sum(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    return torch.stack([_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(_ROWS)]).sum()


@torch.no_grad()
def features_of(features: Features, views: Iterable[Views], *, background: float | None = None) -> Float[Tensor, "N D"]:
    """The features of a whole set of photographs, on the CPU, to be the reference of `Kid`.

    Args:
        background: see `mean.pictures`.
    """
    parts = []
    for part in views:
        rgb = part.rgb if background is None else images.composite(part.rgb, part.mask, background)
        parts.append(features.to(rgb.device)(rgb).cpu())
    return torch.cat(parts)


class Kid:
    """KID of the renderings, named after the network: "kid@inception_tv".

    Args:
        features: follows the pictures to their device.
        reference: the real images' features (`features_of`). None: the real images are the targets that come with the
            renderings, which must then not be repeated: the estimate is unbiased for distinct images only.
        background: see `mean.pictures`; a reference must have been made with the same.
        subsets: how many estimates on subsets are averaged; None takes one estimate from all images.
        subset_size: images in a subset.
    """

    def __init__(
        self,
        features: Features,
        *,
        reference: Float[Tensor, "N D"] | None = None,
        background: float | None = None,
        subsets: int | None = 100,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        self.name = f"kid@{features.name}"
        self.features, self.reference, self.background = features, reference, background
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        sides = ["fake"] if reference is not None else ["fake", "real"]
        self._state: dict[str, Tensor] = {"index": torch.zeros(0, dtype=torch.int64)}
        self._state.update({side: torch.zeros(0, features.dim) for side in sides})

    @torch.no_grad()
    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        fake, real = pictures(image, target, self.background)
        network = self.features.to(fake.device)
        more = {"index": target.index.cpu().long(), "fake": network(fake).cpu()}
        if "real" in self._state:
            more["real"] = network(real).cpu()
        self._state = {key: torch.cat([own, more[key]]) for key, own in self._state.items()}

    def state(self) -> Mapping[str, Tensor]:
        return self._state

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._state = {key: torch.cat([state[key] for state in states]) for key in self._state}

    def compute(self) -> float:
        """The squared discrepancy, unbiased, so it may be a little negative.

        Raises:
            ValueError: a side has fewer than two images.
        """
        # In the order of the data set, so that the subsets do not depend on how the images were spread over ranks.
        order = self._state["index"].argsort(stable=True)
        fake = self._state["fake"][order]
        real = self._state["real"][order] if self.reference is None else self.reference
        if self.subsets is None:
            return float(squared_mmd(fake, real))
        return float(kid(fake, real, subsets=self.subsets, subset_size=self.subset_size, seed=self.seed).mean())

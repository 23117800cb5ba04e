"""Frechet distance between the features of rendered and of real images (FID; Heusel et al. 2017)."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invkit import images
from invkit.features.frozen import Features
from invkit.metrics.gaussian import Gaussian, Moments
from invkit.metrics.mean import pictures
from invkit.types import Estimate, Rendering, Views

ENOUGH = 2048  # images; with fewer the covariance of Inception's 2048 features is singular


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0.

    With S = F F^T, the trace of the root is the sum of the singular values of F1^T F2. So no root of a product that is
    not symmetric is taken (which turns complex or diverges), a singular covariance is as good as any other, and
    rounding errors enter as they are and not as their square roots. All in float64.

    Raises:
        ValueError: the two differ in dimension, or a number is not finite.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of {len(first.mean)} and {len(second.mean)} dimensions cannot be compared")
    means = [side.mean.double() for side in (first, second)]
    covariances = [side.covariance.double() for side in (first, second)]
    if not all(bool(tensor.isfinite().all()) for tensor in (*means, *covariances)):
        raise ValueError("the mean or covariance of the features is not finite")
    shared = torch.linalg.svdvals(_factor(covariances[0]).T @ _factor(covariances[1])).sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * shared
    return max(float((means[0] - means[1]).square().sum() + spread), 0.0)


def _factor(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D R"]:
    """F with F F^T the covariance; what is rounding error around an eigenvalue of 0 is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.abs().amax() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, values > noise] * values[values > noise].sqrt()


def warn_of_few(name: str, *counts: int) -> None:
    """Warn where a distance between sets is estimated from few images."""
    if min(counts) < ENOUGH:
        warnings.warn(
            f"{name} from {' and '.join(map(str, counts))} images: below {ENOUGH} it depends strongly on their number; "
            "compare only values from equally many images, and look at KID",
            stacklevel=3,
        )


@torch.no_grad()
def gaussian_of(features: Features, views: Iterable[Views], *, background: float | None = None) -> Gaussian:
    """The statistics of a whole set of photographs, to be the reference of `Fid`.

    Args:
        background: see `mean.pictures`.
    """
    moments = Moments(features.dim)
    for part in views:
        rgb = part.rgb if background is None else images.composite(part.rgb, part.mask, background)
        moments.add(features.to(rgb.device)(rgb))
    return moments.gaussian(features.name)


class Fid:
    """FID of the renderings, named after the network: "fid@inception_tv".

    Args:
        features: follows the pictures to their device.
        reference: the real images' statistics (`gaussian_of`, `Gaussian.read`). None: the real images are the targets
            that come with the renderings, so both sides have the same number.
        background: see `mean.pictures`; a reference must have been made with the same.

    Raises:
        ValueError: the reference was measured with another network.
    """

    def __init__(
        self, features: Features, *, reference: Gaussian | None = None, background: float | None = None
    ) -> None:
        if reference is not None and reference.features not in (None, features.name):
            raise ValueError(
                f"fid@{features.name}: the reference was measured with {reference.features}; "
                "the two networks' numbers cannot be compared"
            )
        self.name = f"fid@{features.name}"
        self.features, self.reference, self.background = features, reference, background
        self._sides = {"fake": Moments(features.dim)}
        if reference is None:
            self._sides["real"] = Moments(features.dim)

    @torch.no_grad()
    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        fake, real = pictures(image, target, self.background)
        network = self.features.to(fake.device)
        self._sides["fake"].add(network(fake))
        if "real" in self._sides:
            self._sides["real"].add(network(real))

    def state(self) -> Mapping[str, Tensor]:
        return {f"{side}.{key}": sums for side, own in self._sides.items() for key, sums in own.state().items()}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        for side, own in self._sides.items():
            own.merge([{key: state[f"{side}.{key}"] for key in own.state()} for state in states])

    def compute(self) -> float:
        """The distance; warns below 2048 images on either side.

        Raises:
            ValueError: fewer than two images were measured, or a feature was not finite.
        """
        fake = self._sides["fake"].gaussian(self.features.name)
        real = self.reference or self._sides["real"].gaussian(self.features.name)
        warn_of_few(self.name, fake.count, real.count)
        return frechet_distance(fake, real)

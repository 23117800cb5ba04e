"""The real side of a distance between sets of pictures: photographs, cut out on a background, seen by a network."""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit import images
from invkit.data.dataset import ImageSet
from invkit.features.frozen import Features
from invkit.metrics.gaussian import Gaussian, Moments
from invkit.runtime import dist


class Reals:
    """A set of photographs, whose features are computed once for each network and background.

    With several processes each computes its share and all get the whole, so all must ask at the same time.

    Args:
        device: where the pictures are seen.
    """

    def __init__(self, dataset: ImageSet, *, batch_size: int = 16, device: torch.device | str = "cpu") -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.unreadable: dict[str, str] = {}
        """Name -> what is wrong, of the photographs that were left out; known once features were computed."""
        self._known: dict[tuple[str, float | None], Float[Tensor, "N D"]] = {}

    @torch.no_grad()
    def features(self, network: Features, background: float | None) -> Float[Tensor, "N D"]:
        """The features of all photographs that can be read, in their order, on the CPU.

        Args:
            background: what stands behind the cut-out objects, in [-1, 1]; None keeps the photographs whole.
        """
        key = (network.name, background)
        if key not in self._known:
            here = dist.share(range(len(self.dataset)))
            own: dict[int, Tensor] = {}
            for start in range(0, len(here), self.batch_size):
                own |= self._part(here[start : start + self.batch_size], network, background)
            found: dict[int, Tensor] = {}
            for part, unreadable in dist.all_gather_states((own, self.unreadable)):
                found |= part
                self.unreadable = self.unreadable | unreadable
            rows = [found[index] for index in sorted(found)]
            self._known[key] = torch.stack(rows) if rows else torch.zeros(0, network.dim)
        return self._known[key]

    def gaussian(self, network: Features, background: float | None) -> Gaussian:
        """Mean and covariance of the features.

        Raises:
            ValueError: there are fewer than two photographs.
        """
        moments = Moments(network.dim)
        moments.add(self.features(network, background))
        return moments.gaussian(network.name)

    def _part(self, indices: range, network: Features, background: float | None) -> dict[int, Float[Tensor, "D"]]:
        read = {}
        for index in indices:
            try:
                read[index] = self.dataset[index]
            except (ValueError, OSError) as error:
                self.unreadable[self.dataset.names[index]] = str(error)
        if not read:
            return {}
        views = next(iter(read.values())).cat(list(read.values())).to(self.device)
        rgb = views.rgb if background is None else images.composite(views.rgb, views.mask, background)
        return dict(zip(read, network.to(rgb.device)(rgb).cpu(), strict=True))

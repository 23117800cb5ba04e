"""Differences of pictures as a network sees them, place by place: they tolerate other pixels, not other places."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.batch import Batch
from invkit.features.frozen import Stack
from invkit.features.lpips import LPIPS
from invkit.types import Estimate, Views


@dataclass(frozen=True)
class FeatureMaps(Batch):
    """What a network sees of each picture, layer by layer."""

    layers: Mapping[str, Float[Tensor, "B _ _ _"]]


class Perceptual:
    """Squared difference of features, averaged over each layer and summed over the layers (Johnson et al., 2016).

    The network sees both objects cut out with their own masks. It follows the photographs to their device and
    precision.

    Args:
        network: with the layers to compare; those of Johnson et al. are relu1_2, relu2_2, relu3_3, relu4_3 of VGG-16.
    """

    def __init__(self, network: Stack) -> None:
        self.network = network

    def target(self, views: Views) -> FeatureMaps:
        """The features of the photographs."""
        self.network.follow(views.rgb)
        return self._maps(views.rgb, views.mask)

    def __call__(self, estimate: Estimate, target: FeatureMaps) -> Float[Tensor, "B"]:
        """The difference for each image."""
        seen = self._maps(estimate.image.rgb, estimate.image.mask).layers
        differences = [(seen[layer] - wanted).square().mean(dim=(1, 2, 3)) for layer, wanted in target.layers.items()]
        return torch.stack(differences).sum(dim=0)

    def _maps(self, rgb: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]) -> FeatureMaps:
        return FeatureMaps(dict(zip(self.network.layers, self.network(rgb, mask), strict=True)))


class LearnedPerceptual:
    """LPIPS of the rendering to the photograph, the objects cut out with their own masks, the rest mid grey.

    The network follows the photographs to their device and precision.
    """

    def __init__(self, network: LPIPS) -> None:
        self.network = network

    def target(self, views: Views) -> FeatureMaps:
        """The features of the photographs."""
        self.network.follow(views.rgb)
        maps = self.network.maps(views.rgb * views.mask)
        return FeatureMaps({str(layer): features for layer, features in enumerate(maps)})

    def __call__(self, estimate: Estimate, target: FeatureMaps) -> Float[Tensor, "B"]:
        """The distance for each image."""
        image = estimate.image
        return self.network.distance(self.network.maps(image.rgb * image.mask), list(target.layers.values()))

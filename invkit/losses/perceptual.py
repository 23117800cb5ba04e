"""Differences of pictures as a network sees them, place by place: they tolerate other pixels, not other places."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.batch import Batch
from invkit.features.frozen import Stack
from invkit.features.lpips import LPIPS
from invkit.geometry.augment import Similarity, random_similarity
from invkit.images import composite
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


@dataclass(frozen=True)
class Photographs(Batch):
    """Photographs on a plain background, and the numbers by which random draws about them are told apart."""

    rgb: Float[Tensor, "B 3 H W"]
    index: Int[Tensor, "B"]


class WarpedPerceptual:
    """LPIPS of the rendering to the photograph, averaged over the pictures as they are and warped at random.

    Bootstrapped Radiance Field Inversion, section 3.3 (16 pictures, of which the released code warps 15). Every image
    and every step of the search has warps of its own, the same for photograph and rendering. They are drawn by (seed,
    index of the image, number of the step) and by nothing else, so that a batch gives what one image at a time gives.

    The network sees all of both pictures: the rendering with what stands behind it there, the photograph's object on
    `background`. It follows the photographs to their device and precision.

    Args:
        warps: how many, beside the pictures as they are; 0 is plain LPIPS.
        background: of the renderings: 0 mid grey, 1 white.
    """

    def __init__(self, network: LPIPS, *, warps: int = 15, background: float = 0.0, seed: int = 0) -> None:
        if warps < 0 or seed < 0:
            raise ValueError(f"warps and seed must be >= 0; got {warps}, {seed}")
        self.network, self.warps, self.background, self.seed = network, warps, background, seed

    def target(self, views: Views) -> Photographs:
        """The photographs as they are compared."""
        self.network.follow(views.rgb)
        return Photographs(composite(views.rgb, views.mask, self.background), views.index)

    def __call__(self, estimate: Estimate, target: Photographs) -> Float[Tensor, "B"]:
        """The mean distance for each image."""
        pairs = torch.cat([estimate.image.rgb, target.rgb], dim=1)[:, None]
        if self.warps:
            many = pairs.expand(-1, self.warps, -1, -1, -1).flatten(0, 1)
            moves = self.moves(target.index, estimate.steps).to(many.device, dtype=many.dtype)
            pairs = torch.cat([pairs, moves.warp(many, self.background).unflatten(0, (-1, self.warps))], dim=1)
        rendered, photographed = pairs.flatten(0, 1).split(3, dim=1)
        with torch.no_grad():
            wanted = self.network.maps(photographed)
        return self.network.distance(self.network.maps(rendered), wanted).view(len(target), -1).mean(dim=1)

    def moves(self, index: Int[Tensor, "B"], step: int) -> Similarity:
        """The warps of each image in a step, those of one image after another."""
        seeds = [np.random.SeedSequence((self.seed, number, step)) for number in index.tolist()]
        words = [int(seed.generate_state(1, np.uint64)[0]) for seed in seeds]
        return Similarity.cat([random_similarity(self.warps, torch.Generator().manual_seed(word)) for word in words])

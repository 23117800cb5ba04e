"""First guesses for the search: what the encoder sees, and the pose that its canonical map implies (section 3.2)."""

from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.images import composite
from invkit.protocols import Prior, Score
from invkit.types import Guess, Views
from nerfinv.encoder.encoder import Encoder, PoseRegressor
from nerfinv.field import RadianceField
from nerfinv.pnp import PoseSolver

AT_ONCE = 1000
"""Latents drawn at once for a mean."""


class EncoderInit:
    """The style and the camera that an encoder finds in a photograph.

    A guess says in `posed` whether its camera was found. One that was not is a place to begin from (see `PoseSolver`).

    Args:
        poses: how the camera is found: from the canonical map, as the paper does; by a network that names it, which it
            is compared with; or None, which keeps the cameras that the photographs come with.
        split: every slot of the generator gets a style of its own to be searched (W+), all the same to begin with.
            False searches one style for all of them (W).
        background: of the pictures the encoder was trained on: 0 mid grey, 1 white.
    """

    def __init__(
        self,
        encoder: Encoder,
        poses: PoseSolver | PoseRegressor | None,
        *,
        split: bool = True,
        background: float = 0.0,
    ) -> None:
        self.encoder, self.poses = encoder.eval(), poses
        self.split, self.background = split, background

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """The guesses.

        Raises:
            ValueError: the encoder was made for another generator.
        """
        image = composite(views.rgb, views.mask, self.background)
        self.encoder.to(image)
        seen = self.encoder(image)
        guess = Guess(
            styles(seen.latent, prior, split=self.split), views.camera, views.label if prior.num_classes else None
        )
        if isinstance(self.poses, PoseSolver):
            found = self.poses(seen.coords, seen.mask)
            return replace(guess, camera=found.camera, posed=found.found)
        if isinstance(self.poses, PoseRegressor):
            return replace(guess, camera=self.poses.to(image).eval()(image))
        return guess

    def keeping_cameras(self) -> "EncoderInit":
        """The same that begins at the cameras which the photographs come with."""
        other = copy(self)
        other.poses = None
        return other

    @torch.no_grad()
    def canonical_map(self, views: Views, scene: RadianceField) -> Float[Tensor, "B 3 H W"]:
        """What the encoder sees: the place on the object as a color, over white by how sure it is of the object."""
        image = composite(views.rgb, views.mask, self.background)
        seen = self.encoder.to(image)(image)
        return composite((seen.coords / scene.half_side).clamp(-1, 1), seen.mask)


class MeanInit:
    """The mean style under the cameras that the photographs come with: the usual GAN inversion, without an encoder.

    Args:
        count: latents drawn for the mean.
        split: see `EncoderInit`.
    """

    def __init__(self, count: int = 10000, *, split: bool = True, seed: int = 1234) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1; got {count}")
        self.count, self.split, self.seed = count, split, seed

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """The guesses."""
        rng = torch.Generator().manual_seed(self.seed)
        parts = [min(AT_ONCE, self.count - done) for done in range(0, self.count, AT_ONCE)]
        mean = torch.stack([prior.sample(part, rng)[:, 0].sum(dim=0) for part in parts]).sum(dim=0) / self.count
        styled = styles(mean.to(views.rgb).expand(len(views), -1), prior, split=self.split)
        return Guess(styled, views.camera, views.label if prior.num_classes else None)


def styles(style: Float[Tensor, "B S"], prior: Prior, *, split: bool) -> Float[Tensor, "B W S"]:
    """The style in every slot of the prior, or in one that stands for all.

    Raises:
        ValueError: the prior's styles are of another size.
    """
    slots, size = prior.latent_shape
    if style.shape[1] != size:
        raise ValueError(f"the encoder finds styles of {style.shape[1]} numbers; the generator's have {size}")
    return style[:, None].repeat(1, slots if split else 1, 1)

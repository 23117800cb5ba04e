"""What is drawn for a step of the GAN of radiance fields: latents, cameras, and how images are disturbed."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invkit.batch import Batch
from invkit.data.dataset import ImageSet
from invkit.geometry.augment import Similarity, random_similarity
from invkit.geometry.camera import Camera
from invkit.train.ada import Ada
from invkit.train.loop import shared_rng
from nerfinv.generator.generator import Generator


@dataclass(frozen=True)
class Shots(Batch):
    """What is to be generated for a batch, and how that and the photographs are disturbed."""

    latent: Float[Tensor, "B L"]
    camera: Camera
    label: Int[Tensor, "B"] | None
    mirrored: Bool[Tensor, "B"]
    moves: Similarity
    photograph_mirrored: Bool[Tensor, "B"]
    photograph_moves: Similarity


class ShotSource:
    """Draws the shots of a step for the whole batch, so that they do not depend on how many ranks there are.

    Args:
        generator: its latents and classes are drawn.
        ada: how probable moves are; None: there are none.
        mirror: half of all images are mirrored.
    """

    def __init__(
        self, data: ImageSet, generator: Generator, *, batch_size: int, ada: Ada | None, mirror: bool, seed: int
    ) -> None:
        self.data, self.batch_size, self.ada, self.seed = data, batch_size, ada, seed
        self.latent_dim, self.num_classes = generator.latent_dim, generator.num_classes
        self.chance = 0.5 if mirror else 0.0

    @cached_property
    def cameras(self) -> Camera:
        """Of all items of the data.

        Raises:
            ValueError: some are not known.
        """
        if self.data.guessed_cameras:
            raise ValueError(
                f"task.data: no camera is known of {len(self.data.guessed_cameras)} of {len(self.data)} images, first "
                f"{self.data.guessed_cameras[0]}; radiance fields are trained under known cameras. Give them, or leave "
                "these images out"
            )
        return self.data.cameras()

    @cached_property
    def labels(self) -> Int[Tensor, "N"] | None:
        """Of all items of the data; None where the generator has no classes."""
        if not self.num_classes:
            return None
        return torch.cat([self.data[index].label for index in range(len(self.data))])

    def __call__(self, step: int) -> Shots:
        """What is drawn for a step, on the CPU; cameras from the data's, with replacement."""
        rng = shared_rng(self.seed, step)
        chosen = torch.randint(len(self.data), (self.batch_size,), generator=rng)
        latent = torch.randn(self.batch_size, self.latent_dim, generator=rng)
        probability = 0.0 if self.ada is None else self.ada.probability.item()
        mirrored, photograph_mirrored = torch.rand(2, self.batch_size, generator=rng) < self.chance
        moves, photograph_moves = (random_similarity(self.batch_size, rng, probability=probability) for _ in range(2))
        labels = None if self.labels is None else self.labels[chosen]
        camera = self.cameras[chosen]
        camera = camera.mirror().where(mirrored, camera)
        return Shots(latent, camera, labels, mirrored, moves, photograph_mirrored, photograph_moves)

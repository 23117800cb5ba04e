"""A GAN of radiance fields small enough to be trained in a test, and pictures made up for it."""

from typing import Any

import torch

from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.train.ada import Ada
from invkit.types import Views
from nerfinv.discriminator import Discriminator
from nerfinv.generator.generator import Generator
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks.generator import GanTask

COUNT, BATCH, LATENT, STYLE, SIZE, CLASSES = 10, 4, 5, 6, 8, 3


class Pictures(ImageSet):
    """Lopsided blots with soft masks, seen from random sides; no two numbers are alike."""

    def __init__(self, size: int = SIZE, *, perspective: bool = True, classes: int = 0) -> None:
        self.names = [f"picture_{i}" for i in range(COUNT)]
        self.size, self.num_classes = size, classes
        rng = torch.Generator().manual_seed(3)
        cells = torch.rand(COUNT, 4, size, size, generator=rng)
        camera = Camera(
            rotation.random(COUNT, rng),
            torch.empty(COUNT).uniform_(0.5, 0.8, generator=rng),
            torch.empty(COUNT, 2).uniform_(-0.2, 0.2, generator=rng),
            torch.empty(COUNT).uniform_(0.2, 0.4, generator=rng) if perspective else torch.zeros(COUNT),
        )
        label = torch.arange(COUNT) % classes if classes else None
        self.views = Views(2 * cells[:, :3] - 1, cells[:, 3:], camera, label, torch.arange(COUNT))

    def __getitem__(self, index: int) -> Views:
        return self.views[self._position(index)]


def tiny_gan(*, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any) -> GanTask:
    """The task with all that it has; augmentation is raised at every turn of the discriminator from the second on.

    Args:
        seed: of the weights.
        settings: replace the arguments given here, or add to them.
    """
    torch.manual_seed(seed)
    data = settings.get("data", Pictures())
    generator = Generator(
        latent_dim=LATENT, style_dim=STYLE, palette_size=3, plane_size=8, plane_channels=4, max_channels=6,
        decoder_width=8, scene_range=1.2, num_classes=data.num_classes,
    )  # fmt: skip
    discriminator = Discriminator(size=SIZE, max_channels=6, num_classes=data.num_classes)
    arguments = {
        "data": data,
        "generator": generator.to(dtype),
        "discriminator": discriminator.to(dtype),
        "renderer": VolumeRenderer(SIZE, coarse=6, fine=6, background=0.3, random=True),
        "ada": Ada(target=-2.0, highest=0.5, images=40),
        "batch_size": BATCH,
        "warm_up": 2,
        "surface_warm_up": 8,
        "path_warm_up": 4,
        "cells": 3,
        "blur_sigma": 2.0,
        "blur_steps": 4,
        "ada_start": 2,
        "ada_every": 1,
        "ema_fast": 2,
        "ema_medium": 4,
        "sphere_steps": 2,
        "workers": 0,
    }
    return GanTask(**{**arguments, **settings})

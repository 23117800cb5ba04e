"""The smallest world an inversion works in: colored discs.

A latent is (radius, red, green, blue) before squashing; the camera moves and scales the disc. Everything has a
gradient, so the shared search, records and evaluation can be tested without either method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.types import Estimate, Guess, Rendering, Views


@dataclass(frozen=True)
class Disc(Batch):
    radius: Tensor
    color: Tensor

    def centered(self) -> "Disc":
        return self


class DiscPrior:
    """A class adds to the red of its discs."""

    latent_shape = (4,)

    def __init__(self, num_classes: int = 0) -> None:
        self.num_classes = num_classes
        self.decoded = 0

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 4, generator=rng)

    def decode(self, latent: Tensor, label: Tensor | None) -> Disc:
        self.decoded += len(latent)
        color = latent[:, 1:]
        if self.num_classes:
            color = color + torch.nn.functional.one_hot(label, self.num_classes).to(color)[:, :1] * 3
        return Disc(0.5 + 0.2 * latent[:, 0].tanh(), color.tanh())


class DiscRenderer:
    def __init__(self, size: int = 16) -> None:
        self.size = size

    def __call__(self, scene: Disc, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        axis = (torch.arange(self.size) + 0.5) * 2 / self.size - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        dx, dy = x - camera.shift[:, 0, None, None], y - camera.shift[:, 1, None, None]
        # The quaternion's z component squeezes the disc, so that it has a gradient too.
        squeeze = 1 + 0.3 * camera.quat[:, 3, None, None]
        distance = ((dx * squeeze).square() + dy.square() + 1e-6).sqrt() / camera.scale[:, None, None]
        mask = torch.sigmoid(20 * (scene.radius[:, None, None] - distance))[:, None]
        return Rendering(scene.color[:, :, None, None] * mask, mask)


def photograph(guess: Guess, prior: DiscPrior, size: int = 16) -> Views:
    """The views that a guess renders to, with the true camera."""
    image = DiscRenderer(size)(prior.decode(guess.latent, guess.label), guess.camera)
    hard = (image.mask > 0.5).float()
    return Views(image.rgb, hard, guess.camera, guess.label, torch.arange(len(guess)))


def cameras(count: int, rng: torch.Generator) -> Camera:
    quat = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.2 * torch.randn(count, 4, generator=rng))
    shift = 0.3 * torch.randn(count, 2, generator=rng)
    return Camera(quat, 0.8 + 0.4 * torch.rand(count, generator=rng), shift, torch.zeros(count))


def colors(estimate: Estimate, target: Views) -> Tensor:
    return (estimate.image.rgb - target.rgb).square().flatten(1).mean(dim=1)


def masks(estimate: Estimate, target: Views) -> Tensor:
    return (estimate.image.mask - target.mask).square().flatten(1).mean(dim=1)

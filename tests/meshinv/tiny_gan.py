"""A mesh GAN small enough to be trained in a test, and a folder of pseudo ground truth made up for it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.losses.adversarial import hinge
from invkit.train.loop import shared_rng
from meshinv.discriminators.patch import PatchDiscriminator
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.mesh import UVMaps
from meshinv.pseudo_truth import CameraCorrections, PseudoTruth, write_metadata, write_pseudo_truth
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.gan import GanTask
from meshinv.template import Template, unfold

COUNT, BATCH, CLASSES, LATENT, TEXTURE, IMAGE = 10, 4, 3, 6, 64, 32


def write_folder(folder: Path) -> Path:
    """Lopsided textures with holes on symmetric bodies, and their pictures from random sides, somewhat in perspective.

    All numbers differ from image to image; the first alpha is empty in its upper half.
    """
    folder.mkdir(exist_ok=True)
    rng = torch.Generator().manual_seed(1)
    cells = torch.rand(COUNT, 4, 8, 8, generator=rng).repeat_interleave(8, 2).repeat_interleave(8, 3)
    alpha = (cells[:, 3:] < 0.6).float()
    alpha[0, :, : TEXTURE // 2] = 0
    displacement = unfold(0.1 * torch.randn(COUNT, 3, 32, 16, generator=rng))
    maps = UVMaps((2 * cells[:, :3] - 1) * alpha, displacement)
    weak = Camera(
        rotation.random(COUNT, rng),
        torch.empty(COUNT).uniform_(0.5, 0.7, generator=rng),
        torch.empty(COUNT, 2).uniform_(-0.2, 0.2, generator=rng),
        torch.zeros(COUNT),
    )
    corrections = CameraCorrections(COUNT, perspective=True)
    nn.init.uniform_(corrections.scale, 0.0, 0.1, generator=rng)
    nn.init.uniform_(corrections.shift, -0.1, 0.1, generator=rng)
    nn.init.uniform_(corrections.z0, 1.0, 2.0, generator=rng)
    with torch.no_grad():
        camera = corrections(weak, torch.arange(COUNT))
    image = MeshRenderer(IMAGE)(replace(maps, texture=2 * cells[:, :3] - 1).mesh(Template()), camera).rgb
    for i in range(COUNT):
        write_pseudo_truth(folder, i, maps[i], alpha[i : i + 1], image[i : i + 1])
    write_metadata(
        folder,
        paths=[f"body_{i}" for i in range(COUNT)],
        labels=torch.arange(COUNT) % CLASSES,
        camera=weak,
        corrections=corrections,
        iou=torch.ones(COUNT),
    )
    return folder


class Float64Gan(GanTask):
    """The task on samples in float64, in which two ways of computing the same step agree to many digits."""

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[PseudoTruth]:
        return (in_float64(batch) for batch in super().batches(start, rank, world_size))


def in_float64(batch: PseudoTruth) -> PseudoTruth:
    return batch.to("cpu", dtype=torch.float64)


def tiny_gan(folder: Path, *, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any) -> GanTask:
    """The task with an image discriminator and classes.

    Args:
        seed: of the weights.
        settings: replace the arguments given here, or add to them.
    """
    torch.manual_seed(seed)
    generator = Generator(num_classes=CLASSES, latent_dim=LATENT, width=0.125, texture_size=TEXTURE)
    nn.init.normal_(generator.conv_mesh.weight, std=0.02)  # bodies that differ, and are not flat
    arguments = {
        "data": PseudoTruthSet(folder, num_classes=CLASSES, image_size=IMAGE),
        "generator": generator.to(dtype),
        "discriminator": UVDiscriminator(num_classes=CLASSES, width=0.125, texture_size=TEXTURE).to(dtype),
        "image_discriminator": PatchDiscriminator(num_layers=2, width=0.125).to(dtype),
        "adversarial": hinge(),
        "template": Template(),
        "renderer": MeshRenderer(IMAGE),
        "batch_size": BATCH,
        "workers": 0,
    }
    task = Float64Gan if dtype == torch.float64 else GanTask
    return task(**{**arguments, **settings})


def draws(task: GanTask, step: int) -> tuple[Tensor, Tensor]:
    """The latents of the whole batch at a step, in float64, and which samples are mirrored."""
    rng = shared_rng(task.seed, step)
    latent = torch.randn(BATCH, LATENT, generator=rng)
    return latent.double(), torch.rand(BATCH, generator=rng) < 0.5


class Samples:
    """Measures nothing but the mean square of a few colors; remembers which networks it was given, and their modes."""

    def __init__(self) -> None:
        self.seen: list[tuple[nn.Module, bool]] = []

    def measure(
        self, generator: nn.Module, template: Template, truncation: float, device: torch.device
    ) -> dict[str, float]:
        self.seen.append((generator, generator.training))
        rng = torch.Generator().manual_seed(5)
        latent = truncation * torch.rand(3, LATENT, generator=rng, dtype=generator.fc.weight.dtype)
        return {"size": generator(latent, torch.tensor([0, 1, 2])).texture.square().mean().item()}

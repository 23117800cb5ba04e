"""Stage 2: the class-conditional GAN of deformation and texture maps, trained on pseudo ground truth in UV space.

The generator's whole texture is judged through the paired real sample's alpha, so it is never told what a photograph
does not show; what it paints there is what other photographs show there (ConvMesh, section 3.3).
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor, nn

from invkit.data.sampler import StepSampler, batches
from invkit.images import grid
from invkit.losses.adversarial import Adversarial
from invkit.run import Run
from invkit.train.ema import Ema
from invkit.train.loop import Phase
from invkit.train.schedule import constant, every, except_every, ramp
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.mesh import UVMaps, flatness
from meshinv.pseudo_truth import PseudoTruth, PseudoTruthSet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.pictures import from_all_sides
from meshinv.template import Template

SAMPLES = AZIMUTHS = 8


def truncated_normal(shape: tuple[int, ...], sigma: float, rng: torch.Generator) -> Tensor:
    """Standard normal entries redrawn until |z| <= sigma, by inverting the distribution function instead."""
    half = torch.erf(torch.tensor(sigma / 2**0.5))
    return 2**0.5 * torch.erfinv(half * (2 * torch.rand(shape, generator=rng) - 1))


class GanTask:
    """Adversarial training of generator and UV discriminators.

    One batch a step: the generator is stepped at every (discriminator_steps + 1)-th step, the discriminators at the
    others.

    Args:
        flatness_weight: smoothness of the generated mesh.
        ema_alpha: decay of the generator's running average after 100 epochs; it forgets sooner before.
        mirror: half of the samples are mirrored.
        mixed_precision: convolutions in bfloat16.
        channels_last: memory layout that convolutions on CPUs and tensor cores prefer; same results up to rounding.
        truncation: bound on the latents of the sample pictures.
    """

    def __init__(
        self,
        *,
        data: PseudoTruthSet,
        generator: Generator,
        discriminator: UVDiscriminator,
        adversarial: Adversarial,
        template: Template,
        renderer: MeshRenderer,
        batch_size: int = 32,
        generator_rate: float = 1e-4,
        discriminator_rate: float = 4e-4,
        discriminator_steps: int = 2,
        flatness_weight: float = 1e-4,
        ema_alpha: float = 0.999,
        truncation: float = 0.25,
        schedule: Callable[[int], float] = constant(),
        mirror: bool = True,
        mixed_precision: bool = False,
        channels_last: bool = False,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        self.data, self.template, self.renderer = data, template, renderer
        self.generator, self.discriminator, self.adversarial = generator, discriminator, adversarial
        self.sampler = StepSampler(len(data), batch_size, seed)
        epoch = self.sampler.steps_per_epoch
        if channels_last:
            generator.to(memory_format=torch.channels_last)
            discriminator.to(memory_format=torch.channels_last)
        autocast = torch.bfloat16 if mixed_precision else None
        self.ema = Ema(generator, ramp(ema_alpha, 10 * epoch, 100 * epoch))
        self.flatness_weight, self.truncation, self.mirror = flatness_weight, truncation, mirror
        self.seed, self.workers = seed, workers
        self.modules: dict[str, nn.Module] = {
            "generator": generator,
            "generator_ema": self.ema,
            "discriminator": discriminator,
        }
        self.generator_due = every(discriminator_steps + 1)
        betas = (0.0, 0.9)
        self.phases = [
            Phase(
                name="generator",
                optimizer=torch.optim.Adam(generator.parameters(), generator_rate, betas),
                loss=self.generator_loss,
                due=self.generator_due,
                rate=schedule,
                autocast=autocast,
            ),
            Phase(
                name="discriminator",
                optimizer=torch.optim.Adam(discriminator.parameters(), discriminator_rate, betas),
                loss=self.discriminator_loss,
                due=except_every(discriminator_steps + 1),
                rate=schedule,
                autocast=autocast,
            ),
        ]

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[PseudoTruth]:
        return batches(self.data, self.sampler, start, rank, world_size, self.workers)

    def generate(self, label: Int[Tensor, "B"] | None, count: int, device: torch.device) -> UVMaps:
        latent = torch.randn(count, self.generator.latent_dim, device=device)
        return self.generator(latent, label).map(Tensor.float)

    def augment(self, real: PseudoTruth) -> PseudoTruth:
        """Half of the samples mirrored; fakes are then judged through a mirrored alpha just as often."""
        if not self.mirror:
            return real
        mirrored = torch.rand(len(real)).to(real.alpha.device) < 0.5
        return PseudoTruth.cat([real[~mirrored], real[mirrored].mirror()])

    def generator_loss(self, real: PseudoTruth, step: int) -> dict[str, Tensor]:
        real = self.augment(real)
        fake = self.generate(real.label, len(real), real.alpha.device)
        scales = self.discriminator(fake, real.alpha, real.label)
        return {
            "adversarial": self.adversarial.generator(scales).mean(),
            "flatness": self.flatness_weight * flatness(fake.mesh(self.template)).mean(),
        }

    def discriminator_loss(self, real: PseudoTruth, step: int) -> dict[str, Tensor]:
        """Fakes and reals go through in one pass, so that a spectral power iteration serves both."""
        real = self.augment(real)
        with torch.no_grad():
            fake = self.generate(real.label, len(real), real.alpha.device)
        both = self.discriminator(
            UVMaps.cat([fake, real.maps]),
            torch.cat([real.alpha, real.alpha]),
            None if real.label is None else torch.cat([real.label, real.label]),
        )
        fakes = [(logits[: len(real)], mask[: len(real)]) for logits, mask in both]
        reals = [(logits[len(real) :], mask[len(real) :]) for logits, mask in both]
        return {"real": self.adversarial.real(reals).mean(), "fake": self.adversarial.fake(fakes).mean()}

    def after_step(self, step: int) -> None:
        if self.generator_due(step):
            self.ema.update(self.generator, step)

    @torch.no_grad()
    def report(self, run: Run, step: int) -> None:
        """The averaged generator's meshes of fixed latents from eight azimuths, one object a row."""
        rng = torch.Generator().manual_seed(self.seed)
        latent = truncated_normal((SAMPLES, self.generator.latent_dim), self.truncation, rng).to(run.device)
        label = None
        if self.data.num_classes:
            present = torch.tensor(sorted(set(self.data.labels.tolist())))
            label = present[torch.linspace(0, len(present) - 1, SAMPLES).long()].to(run.device)
        sides = from_all_sides(self.ema.module(latent, label).mesh(self.template), self.renderer, AZIMUTHS)
        run.log.image(step, "samples", grid(sides.flatten(0, 1), columns=AZIMUTHS))

    def finish(self, run: Run) -> None:
        """The weights are all that is left behind."""

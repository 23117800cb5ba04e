"""Stage 2: the class-conditional GAN of deformation and texture maps (MeshInversion, section 3.1; ConvMesh).

The generator is judged twice. In UV space its whole texture is judged through the paired real sample's alpha, so it is
never told what a photograph does not show; what it paints there is what other photographs show there. In image space
patches of its renderings are compared with those of photographs.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.data.sampler import StepSampler, batches
from invkit.images import grid
from invkit.losses.adversarial import Adversarial, Scale, least_squares
from invkit.precision import widened
from invkit.protocols import Phase, Run
from invkit.runtime import dist
from invkit.train.ema import Ema
from invkit.train.loop import shared_rng
from invkit.train.schedule import constant, every, except_every, ramp
from meshinv.discriminators.patch import PatchDiscriminator
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.layers import alone
from meshinv.mesh import TexturedMesh, UVMaps, flatness
from meshinv.prior import truncated_normal
from meshinv.pseudo_truth import PseudoTruth
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.pictures import from_all_sides
from meshinv.template import Template, mirror_maps

SAMPLES = AZIMUTHS = 8


@runtime_checkable
class Quality(Protocol):
    """How good a generator's samples are: numbers by name, lower is better. `tasks.quality` has the usual ones."""

    def measure(
        self, generator: nn.Module, template: Template, truncation: float, device: torch.device
    ) -> dict[str, float]: ...


class GanTask:
    """Adversarial training of generator and discriminators.

    One batch a step: the generator is stepped at every (discriminator_steps + 1)-th step, the discriminators at the
    others. They share one Adam, which works on each number alone, and the same fakes.

    Args:
        data: has to come with photographs (`image_size`) where there is an image discriminator.
        renderer: draws what the image discriminator sees, and the sample pictures.
        image_discriminator: None trains in UV space alone, as ConvMesh does.
        image_weight: of the image discriminator in the generator's loss.
        flatness_weight: smoothness of the generated mesh.
        ema_alpha: decay of the generator's running average after 100 epochs; it forgets sooner before.
        truncation: bound on the latents of sample pictures and of `quality`.
        quality: measures samples at every report; its first number chooses the best checkpoint.
        mirror: half of the samples are mirrored.
        mixed_precision: convolutions in bfloat16.
        channels_last: memory layout that convolutions on CPUs and tensor cores prefer; same results up to rounding.
        weigh_patches: patches count by the share of foreground at their middle.
        weigh_real_by_background: where patches are weighed, real ones count by their background, as the released code
            has it.
        swap_image_halves: mirrored photographs get their halves swapped on top, as by the released code, which treats
            them like maps; the cameras then stay as they are.
        accumulate_image_gradients: the image discriminator is stepped by the sum of all its gradients since the
            beginning, those of the generator's loss among them, as in the released code, which never clears them.
        measure_live: `quality` sees the generator itself, in training mode (so that its batch statistics follow the
            truncated latents), as in the released code, and not its running average.
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
        image_discriminator: PatchDiscriminator | None = None,
        image_adversarial: Adversarial | None = None,
        image_weight: float = 0.2,
        batch_size: int = 32,
        generator_rate: float = 1e-4,
        discriminator_rate: float = 4e-4,
        discriminator_steps: int = 2,
        flatness_weight: float = 1e-4,
        ema_alpha: float = 0.999,
        truncation: float = 0.25,
        quality: Quality | None = None,
        schedule: Callable[[int], float] = constant(),
        mirror: bool = True,
        mixed_precision: bool = False,
        channels_last: bool = False,
        weigh_patches: bool = False,
        weigh_real_by_background: bool = False,
        swap_image_halves: bool = False,
        accumulate_image_gradients: bool = False,
        measure_live: bool = False,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        if image_discriminator is not None and data.image_size is None:
            raise ValueError("task.data.image_size: an image discriminator needs the photographs; give their size")
        self.data, self.template, self.renderer = data, template, renderer
        self.generator, self.discriminator, self.adversarial = generator, discriminator, adversarial
        self.image_discriminator, self.image_weight = image_discriminator, image_weight
        self.image_adversarial = least_squares() if image_adversarial is None else image_adversarial
        self.sampler = StepSampler(len(data), batch_size, seed)
        epoch = self.sampler.steps_per_epoch
        self.ema = Ema(generator, ramp(ema_alpha, 10 * epoch, 100 * epoch))
        self.flatness_weight, self.truncation, self.mirror = flatness_weight, truncation, mirror
        self.quality, self.measure_live = quality, measure_live
        self.weigh_patches, self.weigh_real_by_background = weigh_patches, weigh_real_by_background
        self.swap_image_halves = swap_image_halves
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.modules: dict[str, nn.Module] = {
            "generator": generator,
            "generator_ema": self.ema,
            "discriminator": discriminator,
        }
        judges = list(discriminator.parameters())
        if image_discriminator is not None:
            self.modules["image_discriminator"] = image_discriminator
            judges += image_discriminator.parameters()
        self.uncleared = None
        if accumulate_image_gradients and image_discriminator is not None:
            self.uncleared = self.modules["uncleared_gradients"] = UnclearedGradients(image_discriminator)
        if channels_last:
            for module in self.modules.values():
                module.to(memory_format=torch.channels_last)
        self.generator_due = every(discriminator_steps + 1)
        betas = (0.0, 0.9)
        autocast = torch.bfloat16 if mixed_precision else None
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
                optimizer=torch.optim.Adam(judges, discriminator_rate, betas),
                loss=self.discriminator_loss,
                due=except_every(discriminator_steps + 1),
                rate=schedule,
                autocast=autocast,
            ),
        ]

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[PseudoTruth]:
        return batches(self.data, self.sampler, start, rank, world_size, self.workers)

    def drawn(self, real: PseudoTruth, step: int) -> tuple[PseudoTruth, Float[Tensor, "B L"]]:
        """The batch with half of its samples mirrored, and a latent for each; fakes are judged through the paired
        real sample's alpha, so through a mirrored one just as often.

        Raises:
            ValueError: the maps of the data are not of the generator's size.
        """
        side, wanted = real.alpha.shape[-1], self.generator.texture_size
        if side != wanted:
            raise ValueError(
                f"task.data: textures of {side} x {side}, but the generator's are {wanted} x {wanted} "
                "(model.texture_size); give both the same, or make the pseudo ground truth again at that size"
            )
        rng = shared_rng(self.seed, step)
        latent = torch.randn(self.batch_size, self.generator.latent_dim, generator=rng)
        mirrored = torch.rand(self.batch_size, generator=rng) < 0.5
        share = slice(dist.rank() * len(real), (dist.rank() + 1) * len(real))
        latent, mirrored = latent[share].to(real.alpha), mirrored[share]
        if not self.mirror:
            return real, latent
        changed = real.mirror_some(mirrored)
        if self.swap_image_halves and real.image is not None:
            swapped = torch.where(mirrored.to(latent.device)[:, None, None, None], mirror_maps(real.image), real.image)
            changed = PseudoTruth(changed.maps, changed.alpha, real.camera, real.label, real.index, swapped)
        return changed, latent

    def generate(self, latent: Float[Tensor, "B L"], label: Int[Tensor, "B"] | None) -> tuple[UVMaps, TexturedMesh]:
        """Maps and meshes, in float32 where the convolutions compute in less."""
        maps = self.generator(latent, label).map(widened)
        return maps, maps.mesh(self.template)

    def generator_loss(self, real: PseudoTruth, step: int) -> dict[str, Tensor]:
        real, latent = self.drawn(real, step)
        fake, mesh = self.generate(latent, real.label)
        terms = {
            "adversarial": self.adversarial.generator(self.discriminator(fake, real.alpha, real.label)).mean(),
            "flatness": self.flatness_weight * flatness(mesh).mean(),
        }
        if self.image_discriminator is not None:
            image = self.renderer(mesh, real.camera)

            def loss(discriminator: Callable[[Tensor], Tensor], rgb: Tensor) -> Tensor:
                scale = self._patches(discriminator(rgb), image.mask)
                return self.image_weight * self.image_adversarial.generator([scale]).mean()

            terms["image"] = loss(self.image_discriminator, image.rgb)
            if self.uncleared is not None:
                self.uncleared.add(self.image_discriminator, lambda network: loss(network, image.rgb.detach()))
        return terms

    def discriminator_loss(self, real: PseudoTruth, step: int) -> dict[str, Tensor]:
        """Fakes and reals go through in one pass, so that a spectral power iteration serves both."""
        real, latent = self.drawn(real, step)
        with torch.no_grad():
            fake, mesh = self.generate(latent, real.label)
        scales = self.discriminator(
            UVMaps.cat([fake, real.maps]),
            torch.cat([real.alpha, real.alpha]),
            None if real.label is None else torch.cat([real.label, real.label]),
        )
        fakes, reals = halves(scales)
        terms = {"real": self.adversarial.real(reals).mean(), "fake": self.adversarial.fake(fakes).mean()}
        if self.image_discriminator is not None:
            with torch.no_grad():
                image = self.renderer(mesh, real.camera)
            photograph = real.image
            if photograph.shape != image.rgb.shape:
                raise ValueError(
                    f"task.data.image_size={photograph.shape[-1]} is not the size of the renderings, "
                    f"{image.rgb.shape[-1]} (task.renderer.size): the image discriminator compares the two"
                )
            shown = (photograph != 0).any(dim=1, keepdim=True).to(photograph)
            weight = torch.cat([image.mask, 1 - shown if self.weigh_real_by_background else shown])
            both = self._patches(self.image_discriminator(torch.cat([image.rgb, photograph])), weight)
            fakes, reals = halves([both])
            terms["image_real"] = self.image_adversarial.real(reals).mean()
            terms["image_fake"] = self.image_adversarial.fake(fakes).mean()
            if self.uncleared is not None:
                terms["image_uncleared"] = self.uncleared.carried(self.image_discriminator)
        return terms

    def _patches(self, logits: Float[Tensor, "B 1 h w"], weight: Float[Tensor, "B 1 H W"]) -> Scale:
        return (logits, F.interpolate(weight, logits.shape[-2:], mode="nearest") if self.weigh_patches else None)

    def after_step(self, step: int) -> None:
        if self.generator_due(step):
            self.ema.update(self.generator, step)
        elif self.uncleared is not None:
            self.uncleared.keep(self.image_discriminator)

    @torch.no_grad()
    def report(self, run: Run, step: int) -> None:
        """Samples of fixed latents from eight azimuths, one object a row; their distance to photographs."""
        rng = torch.Generator().manual_seed(self.seed)
        latent = truncated_normal((SAMPLES, self.generator.latent_dim), self.truncation, rng).to(run.device)
        label = None
        if self.data.num_classes:
            present = torch.tensor(sorted(set(self.data.labels.tolist())))
            label = present[torch.linspace(0, len(present) - 1, SAMPLES).long()].to(run.device)
        sides = from_all_sides(self.ema.module(latent, label).mesh(self.template), self.renderer, AZIMUTHS)
        run.log.image(step, "samples", grid(sides.flatten(0, 1), columns=AZIMUTHS))
        if self.quality is None:
            return
        measured = self.generator if self.measure_live else self.ema.module
        with alone(measured):  # the other ranks do not measure
            scores = self.quality.measure(measured, self.template, self.truncation, run.device)
        run.log.scalars(step, scores, prefix="quality/")
        payload = {"config": run.config, "modules": {"generator_ema": self.ema.state_dict()}}
        run.checkpoints.save_best(step, next(iter(scores.values())), payload)

    def finish(self, run: Run) -> None:
        """The weights are all that is left behind."""


Pairs = list[tuple[Tensor, Tensor | None]]
"""Scales, without a name for the size of their batch, which `halves` changes."""


def halves(scales: Pairs) -> tuple[Pairs, Pairs]:
    """The first and the second half of the batch, of every scale."""
    size = len(scales[0][0]) // 2

    def part(rows: slice) -> Pairs:
        return [(logits[rows], None if mask is None else mask[rows]) for logits, mask in scales]

    return part(slice(size)), part(slice(size, None))


class UnclearedGradients(nn.Module):
    """The sum of all gradients that a network has got, which a training loop that clears them can be made to add."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for index, parameter in enumerate(network.parameters()):
            self.register_buffer(f"sum{index}", torch.zeros_like(parameter))

    def carried(self, network: nn.Module) -> Float[Tensor, ""]:
        """Zero, with the sum as its gradient."""
        pairs = zip(network.parameters(), self.buffers(), strict=True)
        return torch.stack([((parameter - parameter.detach()) * total).sum() for parameter, total in pairs]).sum()

    @torch.no_grad()
    def keep(self, network: nn.Module) -> None:
        """Take over the gradients the network was stepped with, which hold `carried`."""
        for parameter, total in zip(network.parameters(), self.buffers(), strict=True):
            total.copy_(parameter.grad)

    def add(self, network: nn.Module, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> None:
        """Add the gradient that the network gets from a loss it is not stepped by.

        Args:
            loss: called with the network, whose parameters may be frozen.
        """
        loose = {name: parameter.detach().requires_grad_() for name, parameter in network.named_parameters()}
        value = loss(lambda image: torch.func.functional_call(network, loose, (image,)))
        gradients = torch.autograd.grad(value, list(loose.values()))
        with torch.no_grad():
            for total, gradient in zip(self.buffers(), gradients, strict=True):
                total.add_(gradient)

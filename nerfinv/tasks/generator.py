"""The GAN of radiance fields (Bootstrapped Radiance Field Inversion, section 3.1 and appendix A.1).

A step is the generator's or the discriminator's turn, in alternation; published numbers of iterations, and the lengths
of all schedules here, count both. Before the first turn the generator learns to make spheres: from a surface a surface
can grow.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.data.dataset import ImageSet
from invkit.data.sampler import StepSampler, batches
from invkit.geometry.augment import Similarity, blurred
from invkit.geometry.camera import Camera
from invkit.images import composite
from invkit.precision import widened
from invkit.protocols import Phase, Run
from invkit.runtime import dist
from invkit.train.ada import Ada
from invkit.train.ema import Ema
from invkit.train.schedule import every, ramp
from invkit.train.state import begin_with
from invkit.types import Rendering, Views
from nerfinv.discriminator import Discriminator, pose_vector
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.losses import surface
from nerfinv.losses.path_length import PathLength, path_lengths
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks.pictures import sample_sheets
from nerfinv.tasks.quality import SampleQuality
from nerfinv.tasks.shots import Shots, ShotSource


class GanTask:
    """Adversarial training of the generator of radiance fields and its discriminator.

    All lengths of schedules are in steps; warm-ups and ramps count from the first turn, after `sphere_steps`.

    Args:
        data: images at the renderer's size or, for sharper augmentation, at a multiple of it.
        initial: a trained generator of the same layout to begin with, of another category, say; wants sphere_steps=0.
        renderer: its background is also put behind the photographs.
        quality: measures samples at every report; its first number chooses the best checkpoint.
        warm_up: turns of each player until its learning rate, from a tenth on, is full.
        r1_weight: gamma; half of it weighs the squared gradient at photographs.
        surface_warm_up: in which total variation and entropy get their full weight.
        eikonal_weight, ..., cells, surface_points, piece_weight, piece_cells: see `surface.SurfaceTerms`.
        blur_sigma, blur_steps: photographs are smoothed by so many of their pixels at first, and not any more after so
            many steps.
        ada: None never augments.
        ada_start, ada_every: its probability moves at every so-manieth turn of the discriminator from this step on.
        ema_decay: of the generator's running average, for each of its turns.
        ema_fast, ema_medium: steps until which it forgets a hundred and ten times as fast.
        sphere_steps: 0 begins from random shapes.
        sphere_radius: object units.
        mirror: half of all images are mirrored; for objects symmetric in x.
        mixed_precision: synthesis network and discriminator compute in bfloat16; distances, densities, colors and all
            losses stay in float32.
        r1_every, path_every, surface_every: turns from one to the next at which a regularizer is there, that many times
            as strong.
        half_size_steps: until then everything is seen at half the size and enlarged again: photographs are halved,
            renderings made so, which costs a quarter.
        shift_objects: a shifted image is rendered with the object moved sideways and not with the principal point
            moved, as in the released code; with perspective that is not quite the same.
        opengl_axes: of the poses the discriminator is told (see `pose_vector`).
        overshoot: the warm-up ends one increment above the full rate, as by rounding in the released code.
    """

    def __init__(
        self,
        *,
        data: ImageSet,
        generator: Generator,
        discriminator: Discriminator,
        renderer: VolumeRenderer,
        initial: Generator | None = None,
        ada: Ada | None = None,
        quality: SampleQuality | None = None,
        batch_size: int = 32,
        generator_rate: float = 0.0025,
        discriminator_rate: float = 0.002,
        warm_up: int = 1000,
        clip_norm: float = 100.0,
        r1_weight: float = 5.0,
        eikonal_weight: float = 0.1,
        variation_weight: float = 0.5,
        entropy_weight: float = 0.05,
        surface_warm_up: int = 12_500,
        cells: int = 31,
        surface_points: int = 0,
        piece_weight: float = 0.0,
        piece_cells: int = 32,
        path_weight: float = 2.0,
        path_warm_up: int = 2000,
        blur_sigma: float = 10.0,
        blur_steps: int = 12_500,
        ada_start: int = 12_500,
        ada_every: int = 4,
        ema_decay: float = 0.5 ** (32 / 10_000),
        ema_fast: int = 1000,
        ema_medium: int = 10_000,
        sphere_steps: int = 1000,
        sphere_radius: float = 1.0,
        mirror: bool = True,
        mixed_precision: bool = False,
        r1_every: int = 1,
        path_every: int = 1,
        surface_every: int = 1,
        half_size_steps: int = 0,
        shift_objects: bool = False,
        opengl_axes: bool = False,
        overshoot: bool = False,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        if data.size % renderer.size:
            raise ValueError(
                f"task.data.size={data.size} must be task.renderer.size={renderer.size} or a multiple of it"
            )
        if generator.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"task.generator.num_classes={generator.num_classes}, but task.data has {data.num_classes}: give the "
                "same number, or 0"
            )
        if not generator.density.signed_distance and (sphere_steps or eikonal_weight):
            raise ValueError(
                "a generator without signed distances has no sphere to start from and no Eikonal loss: give "
                "task.sphere_steps=0 task.eikonal_weight=0"
            )
        if initial is not None:
            if sphere_steps:
                raise ValueError("task.initial has shapes already: give task.sphere_steps=0")
            begin_with(generator, initial, "task.initial")
        self.data, self.generator, self.discriminator, self.renderer = data, generator, discriminator, renderer
        self.quality, self.ada, self.batch_size, self.seed, self.workers = quality, ada, batch_size, seed, workers
        self.warm_up, self.overshoot = warm_up, overshoot
        self.r1_weight, self.path_weight, self.path_warm_up = r1_weight, path_weight, path_warm_up
        self.surface_warm_up = surface_warm_up
        self.surface = surface.SurfaceTerms(
            eikonal_weight=eikonal_weight,
            variation_weight=variation_weight,
            entropy_weight=entropy_weight,
            cells=cells,
            surface_points=surface_points,
            piece_weight=piece_weight,
            piece_cells=piece_cells,
        )
        self.blur_sigma, self.blur_steps = blur_sigma, blur_steps
        self.ada_start, self.ada_every = ada_start, ada_every
        self.sphere_steps, self.sphere_radius = sphere_steps, sphere_radius
        self.mirror, self.mixed_precision = mirror, mixed_precision
        self.r1_every, self.path_every, self.surface_every = r1_every, path_every, surface_every
        self.half_size_steps = half_size_steps
        self.shift_objects, self.opengl_axes = shift_objects, opengl_axes
        self.source = ShotSource(data, generator, batch_size=batch_size, ada=ada, mirror=mirror, seed=seed)
        self.sampler = StepSampler(len(data), batch_size, seed)
        self.ema = Ema(generator, ramp(ema_decay, ema_fast, ema_medium))
        self.path_length = PathLength()
        self.modules: dict[str, nn.Module] = {
            "generator": generator,
            "generator_ema": self.ema,
            "discriminator": discriminator,
            "path_length": self.path_length,
        }
        if ada is not None:
            self.modules["ada"] = ada
        self._mean_sign: Tensor | None = None
        self._sphere_optimizer = torch.optim.Adam(generator.parameters(), generator_rate)
        self.generator_due, self.discriminator_due = every(2, sphere_steps), every(2, sphere_steps + 1)
        betas = (0.0, 0.99)
        self.phases = [
            Phase(
                name="generator",
                optimizer=torch.optim.Adam(generator.parameters(), generator_rate, betas),
                loss=self.generator_loss,
                due=self.generator_due,
                rate=self.rate,
                clip_norm=clip_norm,
            ),
            Phase(
                name="discriminator",
                optimizer=torch.optim.Adam(discriminator.parameters(), discriminator_rate, betas),
                loss=self.discriminator_loss,
                due=self.discriminator_due,
                rate=self.rate,
                clip_norm=clip_norm,
            ),
        ]

        if sphere_steps:
            spheres = Phase(
                name="sphere",
                optimizer=self._sphere_optimizer,
                loss=self.sphere_loss,
                due=lambda step: step < sphere_steps,
            )
            self.phases.insert(0, spheres)

    # ---- What a step is given ------------------------------------------------------------------------------------

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[Views | Tensor]:
        """Photographs where it is the discriminator's turn; nothing where none are needed."""
        seen = (max(start - self.sphere_steps, 0)) // 2
        photographs = batches(self.data, self.sampler, seen, rank, world_size, self.workers)
        nothing = torch.empty(0)
        return (next(photographs) if self.discriminator_due(step) else nothing for step in count(start))

    @property
    def cameras(self) -> Camera:
        """Of all items of the data; see `ShotSource`."""
        return self.source.cameras

    def shots(self, step: int) -> Shots:
        """This rank's part of what is drawn for a step, on the generator's device."""
        size = self.batch_size // dist.world_size()
        like = next(self.generator.parameters())
        own = self.source(step)[dist.rank() * size : (dist.rank() + 1) * size]
        return own.to(like.device, dtype=like.dtype)

    def moved(self, camera: Camera, moves: Similarity) -> Camera:
        return moves.move_object(camera) if self.shift_objects else moves.move(camera)

    def rate(self, step: int) -> float:
        """Of both players: from a tenth to all of the learning rate in `warm_up` turns of each."""
        if not self.warm_up:
            return 1.0
        turns = min((step - self.sphere_steps) // 2, self.warm_up + self.overshoot)
        return 0.1 + 0.9 * turns / self.warm_up

    def half_precision(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.mixed_precision)

    # ---- Losses --------------------------------------------------------------------------------------------------

    def sphere_loss(self, _: Tensor, step: int) -> dict[str, Tensor]:
        """Every field a sphere (Eq. 3)."""
        shots = self.shots(step)
        field = self.generator(self.generator.style(shots.latent, shots.label))
        points = surface.stratified_points(field, self.surface.cells)
        value, gradient = surface.value_and_gradient(field, points)
        return {
            "distance": surface.sphere(value, points, self.sphere_radius).mean(),
            "eikonal": self.surface.eikonal_weight * surface.eikonal(gradient).mean(),
        }

    def halved(self, step: int) -> bool:
        """Whether images are still seen at half their size."""
        return step - self.sphere_steps < self.half_size_steps

    def rendered(self, field: RadianceField, camera: Camera, step: int) -> Rendering:
        if not self.halved(step):
            return self.renderer(field, camera)
        smaller = copy.copy(self.renderer)
        smaller.size //= 2
        image = smaller(field, camera)
        return Rendering(rgb=_enlarged(image.rgb), mask=_enlarged(image.mask), background=image.background)

    def generated(self, shots: Shots, step: int) -> tuple[Float[Tensor, "B W S"], RadianceField, Rendering, Camera]:
        """Styles, fields, their pictures and the cameras of these."""
        style = self.generator.style(shots.latent, shots.label)
        styles = style[:, None].expand(-1, self.generator.num_styles, -1)
        with self.half_precision(style.device):
            field = self.generator(styles).map(widened)
        camera = self.moved(shots.camera, shots.moves)
        return styles, field, self.rendered(field, camera, step), camera

    def judged(
        self, image: Float[Tensor, "B C H W"], camera: Camera, label: Int[Tensor, "B"] | None
    ) -> Float[Tensor, "B"]:
        """Logits. The discriminator is told where the object's center lands, principal point and all."""
        pose = pose_vector(replace(camera, center=torch.zeros_like(camera.center)), opengl_axes=self.opengl_axes)
        with self.half_precision(image.device):
            return widened(self.discriminator(image, pose, label))

    def seen(self, rgb: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
        """What the discriminator sees of an image: its colors and, where it has four channels, the silhouette."""
        return torch.cat([rgb, mask], dim=1) if self.discriminator.channels == 4 else rgb

    def generator_loss(self, _: Tensor, step: int) -> dict[str, Tensor]:
        turn = (step - self.sphere_steps) // 2
        shots = self.shots(step)
        styles, field, image, camera = self.generated(shots, step)
        logits = self.judged(self.seen(image.rgb, image.mask), camera, shots.label)
        terms = {"adversarial": F.softplus(-logits).mean()}
        if turn % self.surface_every == 0:
            ramped = _ramped(step - self.sphere_steps, self.surface_warm_up)
            terms |= {name: self.surface_every * term for name, term in self.surface(field, ramped).items()}
        if self.path_weight and turn % self.path_every == 0:
            weight = self.path_weight * self.path_every * _ramped(step - self.sphere_steps, self.path_warm_up)
            terms["path_length"] = weight * self.path_length(path_lengths(styles, field)).mean()
        return terms

    def discriminator_loss(self, photographs: Views, step: int) -> dict[str, Tensor]:
        turn = (step - self.sphere_steps) // 2
        shots = self.shots(step)
        image, camera = self.disturbed(photographs, shots, step)
        image = image.detach().requires_grad_()
        label = None if shots.label is None else photographs.label
        logits = self.judged(image, camera, label)
        terms = {"real": F.softplus(-logits).mean()}
        self._mean_sign = logits.detach().sign().mean()
        if self.r1_weight and turn % self.r1_every == 0:
            (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
            squares = gradient.square().flatten(1).sum(dim=1)
            terms["r1"] = self.r1_weight / 2 * self.r1_every * squares.mean()
        with torch.no_grad():
            _, _, fake, camera = self.generated(shots, step)
        terms["fake"] = F.softplus(self.judged(self.seen(fake.rgb, fake.mask), camera, shots.label)).mean()
        return terms

    @torch.no_grad()
    def disturbed(self, photographs: Views, shots: Shots, step: int) -> tuple[Float[Tensor, "B C H W"], Camera]:
        """The photographs as the discriminator is shown them, and their cameras: mirrored, moved, smoothed."""
        photographs = photographs.to(shots.latent.device, dtype=shots.latent.dtype)
        if self.mirror:
            photographs = photographs.mirror().where(shots.photograph_mirrored, photographs)
        behind = self.renderer.background
        image = self.seen(composite(photographs.rgb, photographs.mask, behind), photographs.mask)
        fill = image.new_tensor([behind, behind, behind, 0.0])[: image.shape[1], None, None]
        camera = photographs.camera
        if self.ada is not None and self.ada.probability.item() > 0:
            image, camera = shots.photograph_moves.warp(image, fill), self.moved(camera, shots.photograph_moves)
        if self.data.size != self.renderer.size:
            image = F.avg_pool2d(image, self.data.size // self.renderer.size)
        if self.halved(step):
            image = _enlarged(F.avg_pool2d(image, 2))
        if self.blur_steps:
            sigma = self.blur_sigma * max(1 - (step - self.sphere_steps) / self.blur_steps, 0.0)
            image = blurred(image, sigma, fill)
        return image, camera

    def after_step(self, step: int) -> None:
        since = step - self.sphere_steps
        if since < 0:
            if since == -1:
                self.ema.module.load_state_dict(self.generator.state_dict())
                self._sphere_optimizer.state.clear()
        elif self.generator_due(step):
            self.generator.density.keep_in_range()
            self.ema.update(self.generator, since)
        elif self.ada is not None and since >= self.ada_start and (since // 2) % self.ada_every == self.ada_every - 1:
            dist.all_reduce_mean([self._mean_sign])
            self.ada.update(self._mean_sign, self.batch_size * self.ada_every)

    # ---- What there is to look at --------------------------------------------------------------------------------

    @torch.no_grad()
    def report(self, run: Run, step: int) -> None:
        """Colors, depth and normals of fixed latents from all sides, an object a row; their distance to photographs."""
        generator = self.ema.module
        sheets = sample_sheets(generator, self.renderer, self.cameras, self.source.labels, self.seed)
        for name, sheet in sheets.items():
            run.log.image(step, name, sheet)
        if self.quality is None:
            return
        scores = self.quality.measure(generator, run.device)
        run.log.scalars(step, scores, prefix="quality/")
        payload = {"config": run.config, "modules": {"generator_ema": self.ema.state_dict()}}
        run.checkpoints.save_best(step, next(iter(scores.values())), payload)

    def finish(self, run: Run) -> None:
        """The weights are all that is left behind."""


def _ramped(step: int, steps: int) -> float:
    """From 0 to 1 in so many steps."""
    return min(step / steps, 1.0) if steps else 1.0


def _enlarged(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)

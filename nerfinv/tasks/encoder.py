"""Training of the encoder on what the frozen generator renders (Bootstrapped Radiance Field Inversion, section 3.2).

No photograph is used: of the data set only the cameras are (and the classes, where the generator has some). Every
image is a new object under a camera of the data, so that everything the encoder is asked for is known exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from invkit.batch import Batch
from invkit.data.dataset import ImageSet
from invkit.data.sampler import StepSampler
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import grid
from invkit.protocols import Phase, Run
from invkit.runtime import dist
from invkit.train.loop import shared_rng
from invkit.train.schedule import Rate, step_decay
from invkit.train.state import begin_with
from nerfinv.encoder.encoder import Encoder, PoseRegressor
from nerfinv.encoder.pretrained import load_backbone
from nerfinv.generator.generator import Generator
from nerfinv.losses import bootstrap
from nerfinv.pnp import PoseSolver, candidates_of
from nerfinv.renderers.volume import VolumeRenderer

SAMPLES = 32
"""Renderings on which a report measures; always the same ones, which are never trained on."""

SHOWN = 8

KEPT = 64
"""Batches that `reuse` draws from."""


@dataclass(frozen=True)
class Rendered(Batch):
    """Renderings and all that is known of them.

    Args:
        rgb: in [-1, 1].
        mask: accumulated opacity.
        coords: the object-frame position seen, composited as colors are: 0 where there is nothing.
        latent: the styles that were rendered.
    """

    rgb: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    coords: Float[Tensor, "B 3 H W"]
    latent: Float[Tensor, "B L"]
    camera: Camera


class EncoderTask:
    """Training of the encoder and, beside it, of the direct regression that its poses are compared with.

    The two share batches and nothing else: Adam works on each number alone, so each is trained as it would be alone.
    Latents and cameras are drawn for the whole batch, of which each rank takes its part; where the renderer is random,
    the places of its samples are each rank's own.

    Args:
        data: its cameras are used. Give the split, crop and size that the generator was trained with.
        generator: commonly the running average of the trained one. It is taken over: put in evaluation mode, frozen.
        regressor: None trains the encoder alone.
        initial: a trained encoder of the same layout to begin with, of another generator, say.
        pretrained: file of a backbone trained on ImageNet that all backbones start from, or mit_b5, the paper's, which
            is looked for where all weights are; None starts from random weights.
        coords_weight: of the positions in the loss. They are in object units: where objects are small, so is this term
            beside that of the styles, and the maps come late. The paper weighs all terms alike.
        mirror: half of the cameras are mirrored; for objects symmetric in x.
        mixed_precision: the encoder computes in bfloat16; rendering and losses stay in float32.
        reuse: how many times each rendering is used on average. 1 is the paper's. Above it, a batch is rendered at
            every `reuse`-th step alone, and every step draws its images from the last `KEPT` batches.
        seed: of latents and cameras.
    """

    def __init__(
        self,
        *,
        data: ImageSet,
        generator: Generator,
        encoder: Encoder,
        renderer: VolumeRenderer,
        regressor: PoseRegressor | None = None,
        initial: Encoder | None = None,
        pretrained: str | None = None,
        batch_size: int = 32,
        rate: float = 6e-5,
        schedule: Rate = step_decay(60_000, 0.1),
        coords_weight: float = 1.0,
        mirror: bool = True,
        mixed_precision: bool = False,
        reuse: int = 1,
        seed: int = 0,
    ) -> None:
        if encoder.latent_dim != generator.style_dim:
            raise ValueError(
                f"task.encoder.latent_dim={encoder.latent_dim}, but the generator's styles have {generator.style_dim} "
                "numbers; give the encoder as many"
            )
        if generator.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"task.data has {data.num_classes} classes and the generator {generator.num_classes}; take the data "
                "that the generator was trained with"
            )
        if reuse < 1:
            raise ValueError(f"task.reuse={reuse} must be at least 1, which renders anew at every step")
        if initial is not None:
            begin_with(encoder, initial, "task.initial")
        self.data, self.renderer, self.reuse = data, renderer, reuse
        self.generator = generator.eval().requires_grad_(False)
        self.encoder, self.regressor = encoder, regressor
        self.batch_size, self.mirror, self.seed = batch_size, mirror, seed
        self.coords_weight = coords_weight
        self.sampler = StepSampler(len(data), batch_size, seed)
        self.modules: dict[str, nn.Module] = {"encoder": encoder}
        if regressor is not None:
            self.modules["regressor"] = regressor
        if pretrained is not None:
            for backbone in (encoder.backbone, encoder.latent_backbone, getattr(regressor, "backbone", None)):
                if backbone is not None:
                    load_backbone(backbone, pretrained)
        self._seen: dict[int, tuple[Camera, Tensor | None]] = {}
        self._kept: dict[int, Rendered] = {}
        parameters = [parameter for module in self.modules.values() for parameter in module.parameters()]
        self.phases = [
            Phase(
                name="encoder",
                optimizer=torch.optim.Adam(parameters, rate),
                loss=self.loss,
                rate=schedule,
                autocast=torch.bfloat16 if mixed_precision else None,
            )
        ]

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[Tensor]:
        """The steps' numbers and nothing else: what a step is trained on is rendered where the loss is computed."""
        return map(torch.tensor, count(start))

    def loss(self, number: Int[Tensor, ""], step: int) -> dict[str, Tensor]:
        """The weighted terms, of which each is a mean over the images."""
        terms = {name: values.mean() for name, values in self.errors(self.batch(number.device, step)).items()}
        return terms | {"coords": self.coords_weight * terms["coords"]}

    def errors(self, truth: Rendered) -> dict[str, Float[Tensor, "B"]]:
        """The loss terms of each image, unweighted."""
        seen = self.encoder(truth.rgb)
        errors = {
            "coords": bootstrap.coords(seen.coords, truth.coords, truth.mask),
            "mask": bootstrap.mask(seen.mask, truth.mask),
            "latent": bootstrap.latent(seen.latent, truth.latent),
        }
        if self.regressor is not None:
            errors["pose"] = bootstrap.pose(self.regressor(truth.rgb), truth.camera)
        return errors

    def batch(self, device: torch.device, step: int) -> Rendered:
        """What a step is trained on: newly rendered or, with `reuse`, drawn from what was rendered lately.

        It is a function of the step alone; the batches kept are only not rendered again.
        """
        newest = step // self.reuse
        if self.reuse == 1:
            return self.rendered(newest, device)
        oldest = max(newest - KEPT + 1, 0)
        self._kept = {
            number: self._kept[number] if number in self._kept else self.rendered(number, device)
            for number in range(oldest, newest + 1)
        }
        share = self.batch_size // dist.world_size()
        chosen = zip(torch.randint(oldest, newest + 1, (share,)), torch.randint(share, (share,)), strict=True)
        return Rendered.cat([self._kept[int(number)][int(row)] for number, row in chosen])

    @torch.no_grad()
    def rendered(self, number: int, device: torch.device) -> Rendered:
        """This rank's part of the batch of that number; whatever is random about it depends on the number alone."""
        rng = shared_rng(self.seed, number)
        latent = torch.randn(self.batch_size, self.generator.latent_dim, generator=rng)
        mirrored = torch.rand(self.batch_size, generator=rng) < (0.5 if self.mirror else 0.0)
        seed = int(torch.randint(2**62, (), generator=rng)) + dist.rank()
        items = self.sampler.indices(number, dist.rank(), dist.world_size())
        share = slice(dist.rank() * len(items), (dist.rank() + 1) * len(items))
        return self._render(items, latent[share], mirrored[share], seed, device)

    @torch.no_grad()
    def samples(self, device: torch.device) -> Rendered:
        """The renderings on which reports measure: of cameras spread over the data, none mirrored."""
        items = torch.linspace(0, len(self.data) - 1, SAMPLES).long().tolist()
        latent = torch.randn(SAMPLES, self.generator.latent_dim, generator=shared_rng(self.seed + 1, 0))
        return self._render(items, latent, torch.zeros(SAMPLES, dtype=torch.bool), self.seed, device)

    def after_step(self, step: int) -> None:
        """There is nothing that follows the weights."""

    @torch.no_grad()
    def report(self, run: Run, step: int) -> None:
        """Mean losses and median rotation errors on the samples; rendered image, true map, predicted map, mask."""
        truth = self.samples(run.device)
        for module in self.modules.values():
            module.eval()
        scores = {name: values.mean().item() for name, values in self.errors(truth).items()}
        seen = self.encoder(truth.rgb)
        poses = pose_solver(truth.camera, self.renderer.offset)(seen.coords, seen.mask)
        scores["rotation_deg"] = rotation.angle(poses.camera.quat, truth.camera.quat).median().item()
        if self.regressor is not None:
            regressed = self.regressor(truth.rgb)
            scores["rotation_deg_regressed"] = rotation.angle(regressed.quat, truth.camera.quat).median().item()
        for module in self.modules.values():
            module.train()
        run.log.scalars(step, scores, prefix="quality/")
        reach = self.generator.scene_range
        rows = [truth.rgb, truth.coords / reach, seen.coords * (seen.mask > 0.5) / reach, 2 * seen.mask - 1]
        columns = torch.cat([row[:SHOWN].expand(-1, 3, -1, -1) for row in rows])
        run.log.image(step, "samples", grid(columns.clamp(-1, 1), columns=SHOWN))

    def finish(self, run: Run) -> None:
        """The weights are all that is left behind."""

    def _cameras(self, items: Sequence[int]) -> tuple[Camera, Int[Tensor, "B"] | None]:
        """Cameras and, where the generator has classes, labels; an item is read once, its picture for a label alone."""
        for item in set(items) - self._seen.keys():
            if self.generator.num_classes:
                views = self.data[item]
                self._seen[item] = views.camera, views.label
            else:
                self._seen[item] = self.data.camera(item), None
        cameras, labels = zip(*(self._seen[item] for item in items), strict=True)
        return Camera.cat(cameras), torch.cat(labels) if self.generator.num_classes else None

    def _render(
        self,
        items: Sequence[int],
        latent: Float[Tensor, "B L"],
        mirrored: Bool[Tensor, "B"],
        seed: int,
        device: torch.device,
    ) -> Rendered:
        self.generator.to(device)
        like = next(self.generator.parameters())
        camera, label = self._cameras(items)
        camera = camera.mirror().where(mirrored, camera).to(device, dtype=like.dtype)
        on_gpu = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=on_gpu), torch.autocast(device.type, enabled=False):
            torch.manual_seed(seed)
            style = self.generator.style(latent.to(like), None if label is None else label.to(device))
            image = self.renderer(self.generator(style), camera, extras=frozenset({"coords"}))
        return Rendered(image.rgb.clamp(-1, 1), image.mask, image.coords, style, camera)


def pose_solver(camera: Camera, offset: float) -> PoseSolver:
    """A solver whose focal lengths are those of these cameras."""
    return PoseSolver(candidates_of(camera), offset=offset)

"""The generator's training: its steps against steps computed by hand, its switches one by one, its mistakes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invkit.geometry.augment import blurred, random_similarity
from invkit.geometry.camera import Camera
from invkit.protocols import Prior, Task
from invkit.runtime.checkpoint import load
from invkit.train.ada import Ada
from invkit.train.loop import fit, seed_step, shared_rng
from nerfinv.discriminator import Discriminator, pose_vector
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.prior import FieldPrior
from nerfinv.renderers.plain import PlainRenderer
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks.generator import GanTask
from tests.invkit.toy_task import ToyRun
from tests.nerfinv.tiny_gan import BATCH, CLASSES, COUNT, LATENT, SIZE, STYLE, Pictures, tiny_gan

CPU = torch.device("cpu")
EXACT = {"coarse": 6, "fine": 6, "background": 0.3}


def exact_renderer() -> VolumeRenderer:
    """Without draws, and without leaving samples out."""
    return VolumeRenderer(SIZE, **EXACT, dropped=0.0)


def train(task: GanTask, dir: Path, steps: int, *, report_every: int = 99) -> GanTask:
    fit(task, ToyRun(dir), steps, save_every=99, report_every=report_every, log_every=1)
    return task


# By hand: the same networks, and of all the rest nothing but its formulas.


class AdamByHand:
    """Kingma and Ba's algorithm 1."""

    def __init__(self, parameters: Sequence[Tensor], beta: float = 0.0, squared_beta: float = 0.99) -> None:
        self.parameters, self.betas, self.steps = list(parameters), (beta, squared_beta), 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, loss: Tensor, rate: float, clip: float = math.inf) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        self.steps += 1
        with torch.no_grad():
            for i, gradient in enumerate(gradients):
                gradient = gradient * min(clip / norm, 1.0)
                self.means[i] = self.betas[0] * self.means[i] + (1 - self.betas[0]) * gradient
                self.squares[i] = self.betas[1] * self.squares[i] + (1 - self.betas[1]) * gradient**2
                mean = self.means[i] / (1 - self.betas[0] ** self.steps)
                square = self.squares[i] / (1 - self.betas[1] ** self.steps)
                self.parameters[i] -= rate * mean / (square**0.5 + 1e-8)


class ByHand:
    """The published settings of the losses, in the schedules of `tiny_gan`."""

    def __init__(self) -> None:
        task = tiny_gan()
        self.generator, self.discriminator, self.pictures = task.generator, task.discriminator, task.data.views
        self.sampler, self.seed = task.sampler, task.seed
        self.sphere = AdamByHand(self.generator.parameters(), 0.9, 0.999)
        self.generating = AdamByHand(self.generator.parameters())
        self.judging = AdamByHand(self.discriminator.parameters())
        self.probability, self.path = 0.0, None
        self.average = {name: value.clone() for name, value in self.generator.state_dict().items()}

    def step(self, step: int) -> None:
        seed_step(0, 0, step)
        if step < 2:
            self.sphere.step(self.sphere_loss(step), 0.0025)
            self.average = {name: value.clone() for name, value in self.generator.state_dict().items()}
            return
        since = step - 2
        turn, rate = since // 2, 0.1 + 0.9 * min(since // 2, 2) / 2
        if since % 2 == 0:
            self.generating.step(self.generator_loss(step, since), 0.0025 * rate, 100.0)
            with torch.no_grad():
                self.generator.density.alpha.clamp_(min=1e-3)
                self.generator.density.beta.clamp_(min=1e-3)
            decay = 0.5 ** (32 / 10_000)
            decay = decay**100 if since < 2 else decay**10 if since < 4 else decay
            for name, value in self.generator.state_dict().items():
                self.average[name] = decay * self.average[name] + (1 - decay) * value
            return
        loss, logits = self.discriminator_loss(step, since)
        self.judging.step(loss, 0.002 * rate, 100.0)
        if turn >= 1:
            sure = sum(1 if logit > 0 else -1 for logit in logits) / BATCH
            self.probability = min(max(self.probability + math.copysign(4 / 40, sure + 2), 0.0), 0.5)

    def draws(self, step: int) -> tuple[Tensor, Camera, Tensor, Camera, Tensor]:
        """Latents and cameras of fakes; photographs, as they are disturbed, their cameras and masks."""
        rng = shared_rng(self.seed, step)
        chosen = torch.randint(COUNT, (BATCH,), generator=rng)
        latent = torch.randn(BATCH, LATENT, generator=rng).double()
        mirrored, real_mirrored = torch.rand(2, BATCH, generator=rng) < 0.5
        moves, real_moves = (
            random_similarity(BATCH, rng, probability=self.probability).to("cpu", dtype=torch.float64) for _ in range(2)
        )
        fakes = self.pictures[chosen].to("cpu", dtype=torch.float64)
        camera = Camera.cat(
            [v.camera.mirror() if flip else v.camera for v, flip in zip(_each(fakes), mirrored, strict=True)]
        )
        reals = self.pictures[self.sampler.indices(max(step - 2, 0) // 2)].to("cpu", dtype=torch.float64)
        images, cameras = [], []
        for b, view in enumerate(_each(reals)):
            view = view.mirror() if real_mirrored[b] else view
            image = torch.cat([view.rgb * view.mask + 0.3 * (1 - view.mask), view.mask], dim=1)
            fill = torch.tensor([0.3, 0.3, 0.3, 0.0]).double()[:, None, None]
            image = image if self.probability == 0 else real_moves[b].warp(image - fill) + fill
            sigma = 2.0 * max(1 - (step - 2) / 4, 0)
            images.append(blurred(image - fill, sigma) + fill)
            cameras.append(real_moves[b].move(view.camera))
        return latent, moves.move(camera), torch.cat(images), Camera.cat(cameras)

    def fields(self, latent: Tensor) -> tuple[Tensor, RadianceField]:
        style = self.generator.style(latent)
        styles = torch.stack([style] * self.generator.num_styles, dim=1)
        return styles, self.generator(styles)

    def logits(self, image: Tensor, camera: Camera) -> Tensor:
        landing = camera.shift  # with the principal point, which the vector takes off, put back
        pose = pose_vector(replace(camera, center=torch.zeros_like(landing)))
        return self.discriminator(image, pose)

    def picture(self, field: RadianceField, camera: Camera) -> Tensor:
        image = PlainRenderer(SIZE, **EXACT)(field, camera)
        return torch.cat([image.rgb, image.mask], dim=1)

    def points(self) -> Tensor:
        """In cells along z, then x, then y."""
        inside = torch.rand(BATCH, 27, 3, dtype=torch.float64)
        corners = torch.tensor([[x, y, z] for y in range(3) for x in range(3) for z in range(3)])
        return 1.2 * ((corners + inside) / 1.5 - 1)

    def slopes(self, field: RadianceField, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and the norms of their gradients, point by point."""
        free = points.requires_grad_()
        value = field.value(free)
        (gradient,) = torch.autograd.grad(value.sum(), free, create_graph=True)
        return value, (gradient**2).sum(dim=2).sqrt()

    def sphere_loss(self, step: int) -> Tensor:
        latent, *_ = self.draws(step)
        _, field = self.fields(latent)
        points = self.points()
        value, slope = self.slopes(field, points)
        radius = (points.detach() ** 2).sum(dim=2).sqrt()
        return ((value - (radius - 1)) ** 2).mean() + 0.1 * ((slope - 1) ** 2).mean()

    def generator_loss(self, step: int, since: int) -> Tensor:
        latent, camera, *_ = self.draws(step)
        styles, field = self.fields(latent)
        fooled = -torch.log(torch.sigmoid(self.logits(self.picture(field, camera), camera)))
        points = self.points()
        value, slope = self.slopes(field, points)
        beside = field.value(points + 1.2 * 0.004 * torch.randn(BATCH, 27, 3, dtype=torch.float64))
        beta = self.generator.density.beta
        inside, inside_beside = (0.5 - 0.5 * torch.sign(d) * (1 - torch.exp(-d.abs() / beta)) for d in (value, beside))
        spread = torch.exp(-value.abs() / beta) / (2 * beta)
        ramp = min(since / 8, 1)
        along = (field.planes * torch.randn_like(field.planes)).sum() / 8
        along = along + (field.palette * torch.randn(BATCH, 3, 3, dtype=torch.float64)).sum()
        (gradient,) = torch.autograd.grad(along, styles, create_graph=True)
        lengths = ((gradient**2).sum(dim=(1, 2)) / self.generator.num_styles).sqrt()
        mean = lengths.mean().item()
        self.path = mean if self.path is None else 0.99 * self.path + 0.01 * mean
        return (
            fooled.mean()
            + 0.1 * ((slope - 1) ** 2).mean()
            + 0.5 * ramp * (inside - inside_beside).abs().mean()
            + 0.05 * ramp * spread.mean()
            + 2.0 * min(since / 4, 1) * ((lengths - self.path) ** 2).mean()
        )

    def discriminator_loss(self, step: int, since: int) -> tuple[Tensor, list[float]]:
        latent, camera, image, real_camera = self.draws(step)
        image.requires_grad_()
        logits = self.logits(image, real_camera)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        with torch.no_grad():
            _, field = self.fields(latent)
            fake = self.picture(field, camera)
        fakes = self.logits(fake, camera)
        loss = -torch.log(torch.sigmoid(logits)).mean() - torch.log(1 - torch.sigmoid(fakes)).mean()
        return loss + 2.5 * (gradient**2).sum() / BATCH, logits.tolist()


def _each(batch):
    return [batch[index] for index in range(len(batch))]


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for ours, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_steps_of_both_players_are_those_computed_by_hand(tmp_path):
    """Two for spheres, four of the generator, four of the discriminator; augmented from the fifth of these on."""
    task = tiny_gan(renderer=exact_renderer(), generator_rate=0.0025)
    hand = ByHand()
    before = [parameter.clone() for parameter in task.discriminator.parameters()]
    torch.set_default_dtype(torch.float64)
    try:
        train(task, tmp_path, 10)
        for step in range(10):
            hand.step(step)
    finally:
        torch.set_default_dtype(torch.float32)
    close(task.generator, hand.generator)
    close(task.discriminator, hand.discriminator)
    for name, value in task.ema.module.state_dict().items():
        torch.testing.assert_close(value, hand.average[name], rtol=1e-6, atol=1e-6)
    assert task.ada.probability.item() == pytest.approx(hand.probability)
    assert hand.probability > 0
    assert task.path_length.mean.item() == pytest.approx(hand.path, rel=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(before, task.discriminator.parameters(), strict=True))


def terms(task: GanTask, step: int) -> dict[str, Tensor]:
    """Of the phase that is due."""
    (phase,) = (phase for phase in task.phases if phase.due(step))
    batch = next(task.batches(step, 0, 1))
    seed_step(0, 0, step)
    return phase.loss(batch, step)


def test_players_take_turns_after_the_spheres():
    task = tiny_gan(sphere_steps=3)
    due = ["".join(phase.name[0] for phase in task.phases if phase.due(step)) for step in range(8)]
    assert due == ["s", "s", "s", "g", "d", "g", "d", "g"]
    batches = task.batches(0, 0, 1)
    shown = [len(next(batches)) for _ in range(8)]
    assert shown == [0, 0, 0, 0, BATCH, 0, BATCH, 0]


@pytest.mark.parametrize("start", range(7))
def test_photographs_do_not_depend_on_where_a_run_goes_on(start):
    task = tiny_gan()
    whole, part = task.batches(0, 0, 1), task.batches(start, 0, 1)
    for _ in range(start):
        next(whole)
    for _ in range(4):
        one, other = next(whole), next(part)
        assert len(one) == len(other)
        if len(one):
            assert torch.equal(one.index, other.index)


def test_rates_rise_as_in_the_released_code():
    task = tiny_gan(warm_up=1000, sphere_steps=7)
    rates = [task.rate(7 + i) for i in (0, 1, 2, 1998, 2000, 300_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.1009, 0.9991, 1.0, 1.0])
    over = tiny_gan(warm_up=1000, sphere_steps=7, overshoot=True)
    assert 0.002 * over.rate(300_000) == pytest.approx(0.0020018)
    assert 0.0025 * over.rate(300_000) == pytest.approx(0.00250225)
    assert tiny_gan(warm_up=0).rate(2) == 1.0


def test_the_average_forgets_as_in_the_released_code():
    alpha = tiny_gan(ema_fast=1000, ema_medium=10_000).ema.alpha
    assert [alpha(0), alpha(1000), alpha(10_000)] == pytest.approx([0.8010698776, 0.9780634733, 0.9977843871])


def test_after_the_spheres_the_average_is_the_generator_and_their_optimizer_is_empty(tmp_path):
    task = train(tiny_gan(dtype=torch.float32), tmp_path, 2)
    close(task.ema.module, task.generator, 0.0)
    assert not task.phases[0].optimizer.state
    assert not load(tmp_path / "checkpoints" / "checkpoint-00000002.pt")["optimizers"]["sphere"]["state"]


def test_spheres_are_learned(tmp_path):
    task = tiny_gan(dtype=torch.float32, sphere_steps=40, sphere_radius=0.8, generator_rate=0.02)
    before = terms(task, 0)
    train(task, tmp_path, 40)
    after = terms(task, 39)
    assert before["distance"] > 0.05
    assert after["distance"] < 0.2 * before["distance"]


def test_without_spheres_there_is_no_such_phase():
    task = tiny_gan(sphere_steps=0)
    assert [phase.name for phase in task.phases] == ["generator", "discriminator"]
    assert [phase.name for phase in task.phases if phase.due(0)] == ["generator"]


def test_alpha_and_beta_are_kept_in_range(tmp_path):
    task = tiny_gan(sphere_steps=0)
    with torch.no_grad():
        task.generator.density.alpha.fill_(-1.0)
        task.generator.density.beta.fill_(0.0005)
    task.after_step(1)
    assert task.generator.density.alpha.item() == -1
    task.after_step(0)
    assert [task.generator.density.alpha.item(), task.generator.density.beta.item()] == [0.001, pytest.approx(0.001)]


@pytest.mark.parametrize(
    "settings, name, every, step",
    [
        ({"r1_every": 3}, "r1", 3, 3),
        ({"path_every": 3}, "path_length", 3, 2),
        ({"surface_every": 3}, "eikonal", 3, 2),
        ({"surface_every": 3}, "total_variation", 3, 2),
        ({"surface_every": 3}, "entropy", 3, 2),
    ],
)
def test_what_comes_less_often_is_stronger(settings, name, every, step):
    plain, lazy = tiny_gan(), tiny_gan(**settings)
    step = step + 2 * every  # its third turn but one
    torch.testing.assert_close(terms(lazy, step)[name], every * terms(plain, step)[name])
    for later in (step + 2, step + 4):
        assert name in terms(plain, later)
        assert name not in terms(lazy, later)
    assert name in terms(lazy, step + 2 * every)


@pytest.mark.parametrize(
    "setting, name, step",
    [
        ("r1_weight", "r1", 3),
        ("path_weight", "path_length", 2),
        ("eikonal_weight", "eikonal", 2),
        ("variation_weight", "total_variation", 2),
        ("entropy_weight", "entropy", 2),
    ],
)
def test_what_weighs_nothing_is_not_computed(setting, name, step):
    assert name not in terms(tiny_gan(**{setting: 0.0}), step)


def test_the_mask_is_shown_to_discriminators_of_four_channels_only():
    colors = tiny_gan(discriminator=Discriminator(size=SIZE, channels=3, max_channels=6).double())
    assert terms(colors, 3)["real"].isfinite()
    views, shots = next(colors.batches(3, 0, 1)), colors.shots(3)
    assert colors.disturbed(views, shots, 3)[0].shape[1] == 3
    assert tiny_gan().disturbed(views, shots, 3)[0].shape[1] == 4


def test_photographs_of_twice_the_size_are_moved_before_they_are_halved():
    task = tiny_gan(data=Pictures(2 * SIZE), blur_steps=0, mirror=False)
    views, shots = next(task.batches(3, 0, 1)), task.shots(3)
    image, _ = task.disturbed(views, shots, 3)
    pixels = (views.rgb * views.mask + 0.3 * (1 - views.mask)).double()
    halved = (pixels[..., ::2, ::2] + pixels[..., 1::2, ::2] + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(image[:, :3], halved)
    task.ada.probability.fill_(0.9)
    shots = task.shots(3)
    image, _ = task.disturbed(views, shots, 3)
    moved = shots.photograph_moves.warp(pixels, 0.3)
    torch.testing.assert_close(image[:, :3], F.avg_pool2d(moved, 2))


def test_half_of_the_images_are_mirrored_where_that_is_asked_for():
    task, plain = tiny_gan(), tiny_gan(mirror=False)
    flipped = 0
    for step in range(3, 63, 2):
        views, ours, theirs = next(task.batches(step, 0, 1)), task.shots(step), plain.shots(step)
        assert torch.equal(ours.latent, theirs.latent)
        mirrored, camera = task.disturbed(views, ours, 99)
        same, there = plain.disturbed(views, theirs, 99)
        for b in range(BATCH):
            changed = bool(ours.photograph_mirrored[b])
            assert torch.equal(mirrored[b], same[b].flip(-1) if changed else same[b])
            expected = there[b].mirror() if changed else there[b]
            assert torch.equal(camera[b].quat, expected.quat)
            assert torch.equal(camera[b].shift, expected.shift)
            of_fake = theirs.camera[b].mirror() if ours.mirrored[b] else theirs.camera[b]
            assert torch.equal(ours.camera[b].quat, of_fake.quat)
            flipped += changed + int(ours.mirrored[b])
        assert not theirs.mirrored.any()
        assert not theirs.photograph_mirrored.any()
    assert 0.4 < flipped / (30 * BATCH * 2) < 0.6


def test_objects_are_shifted_instead_of_images_where_that_is_asked_for():
    exact, released = tiny_gan(), tiny_gan(shift_objects=True)
    for task in (exact, released):
        task.ada.probability.fill_(1.0)
    shots = exact.shots(3)
    one, other = exact.moved(shots.camera, shots.moves), released.moved(shots.camera, shots.moves)
    assert torch.equal(one.shift, other.shift)
    torch.testing.assert_close(one.center - other.center, shots.moves.shift)
    assert other.center.abs().max() < 1e-12


def test_the_discriminator_is_told_where_the_object_lands():
    seen = []
    task = tiny_gan(opengl_axes=True)
    task.discriminator.forward = lambda image, pose, label: seen.append(pose) or image.mean(dim=(1, 2, 3))
    camera = task.cameras[:2].to("cpu", dtype=torch.float64)
    camera = replace(camera, center=torch.full((2, 2), 0.2, dtype=torch.float64))
    task.judged(torch.zeros(2, 4, SIZE, SIZE, dtype=torch.float64), camera, None)
    torch.testing.assert_close(seen[0][:, 1:3], camera.shift * torch.tensor([-1.0, 1.0]))


def test_half_size_is_half_size():
    task = tiny_gan(half_size_steps=4, blur_steps=0, mirror=False, renderer=exact_renderer())
    views, shots = next(task.batches(3, 0, 1)), task.shots(3)
    early, _ = task.disturbed(views, shots, 3)
    late, _ = task.disturbed(views, shots, 2 + 4)
    torch.testing.assert_close(
        early, F.interpolate(F.avg_pool2d(late, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    )
    _, field, image, camera = task.generated(shots, 3)
    small = VolumeRenderer(SIZE // 2, **EXACT, dropped=0.0)(field, camera)
    expected = F.interpolate(small.rgb, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(image.rgb, expected)
    assert task.renderer.size == SIZE


def test_half_precision_changes_little(tmp_path):
    full, half = (
        tiny_gan(dtype=torch.float32, mixed_precision=mixed, renderer=exact_renderer()) for mixed in (False, True)
    )
    for step in (2, 3):
        exact, coarse = terms(full, step), terms(half, step)
        assert exact.keys() == coarse.keys()
        for name, value in exact.items():
            assert coarse[name].dtype == torch.float32
            assert coarse[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02)
        assert any(not torch.equal(exact[name], coarse[name]) for name in exact)
    train(half, tmp_path, 5)
    assert all(parameter.isfinite().all() for parameter in half.generator.parameters())


def test_ada_moves_at_its_turns_only():
    task = tiny_gan(ada=Ada(images=4000), ada_start=6, ada_every=2)
    steps = []
    for step in range(2, 22):
        before = task.ada.probability.item()
        task._mean_sign = torch.tensor(1.0)
        task.after_step(step)
        if task.ada.probability.item() != before:
            steps.append(step - 2)
    # Turns 0, 1, 2, ... of the discriminator are steps 1, 3, 5, ...
    assert steps == [7, 11, 15, 19]


def test_a_generator_without_augmentation_classes_or_distances_is_trained(tmp_path):
    size = {"latent_dim": LATENT, "style_dim": 6, "plane_size": 8, "plane_channels": 4, "max_channels": 6}
    generator = Generator(**size, palette_size=0, signed_distance=False)
    discriminator = Discriminator(size=SIZE, channels=3, conditional=False, max_channels=6)
    task = tiny_gan(
        dtype=torch.float32,
        generator=generator,
        discriminator=discriminator,
        ada=None,
        sphere_steps=0,
        eikonal_weight=0.0,
    )
    train(task, tmp_path, 4, report_every=4)
    assert "ada" not in load(tmp_path / "checkpoints" / "checkpoint-00000004.pt")["modules"]
    assert (tmp_path / "images" / "samples-00000004.png").is_file()
    assert not list((tmp_path / "images").glob("normals-*"))


def test_classes_reach_both_players(tmp_path):
    task = tiny_gan(dtype=torch.float32, data=Pictures(classes=CLASSES, perspective=False))
    shots = task.shots(3)
    assert shots.label is not None
    train(task, tmp_path, 4, report_every=4)
    assert task.generator.mapping.class_embedding.weight.grad is not None
    assert (tmp_path / "images" / "normals-00000004.png").is_file()


def test_labels_belong_to_the_cameras():
    data = Pictures(classes=CLASSES)
    task = tiny_gan(data=data, mirror=False)
    shots = task.shots(5)
    for b in range(BATCH):
        item = int((data.views.camera.quat.double() - shots.camera.quat[b]).abs().sum(dim=1).argmin())
        assert torch.equal(data.views.camera.quat[item].double(), shots.camera.quat[b])
        assert shots.label[b] == data.views.label[item]


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"data": Pictures(12)}, "task.data.size=12"),
        ({"generator": Generator(num_classes=2, plane_size=8)}, "num_classes=2"),
        ({"generator": Generator(signed_distance=False, plane_size=8)}, "sphere_steps=0"),
    ],
)
def test_mistakes_are_named(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_gan(**settings)


def test_guessed_cameras_are_refused():
    data = Pictures()
    data.guessed_cameras = ["picture_3"]
    with pytest.raises(ValueError, match="picture_3"):
        tiny_gan(data=data).shots(0)


def test_the_prior_samples_styles_of_every_slot(rng):
    generator = tiny_gan(dtype=torch.float32).generator
    prior = FieldPrior(generator)
    assert isinstance(prior, Prior)
    latent = prior.sample(3, rng)
    assert latent.shape == (3, *prior.latent_shape) == (3, generator.num_styles, 6)
    expected = generator.style(torch.randn(3, LATENT, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(latent, expected[:, None].expand_as(latent))
    field = prior.decode(latent.requires_grad_(), None)
    assert field.planes.requires_grad
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert not generator.training


def test_it_is_a_task():
    assert isinstance(tiny_gan(), Task)


def test_a_trained_generator_can_be_begun_with():
    trained = tiny_gan(seed=5).generator
    task = tiny_gan(initial=trained, sphere_steps=0)
    for name, value in trained.state_dict().items():
        assert torch.equal(task.generator.state_dict()[name], value)
        assert torch.equal(task.ema.module.state_dict()[name], value)
    assert task.generator.mapping.fc1.weight is not trained.mapping.fc1.weight
    with pytest.raises(ValueError, match=r"give task\.sphere_steps=0"):
        tiny_gan(initial=trained)
    wider = Generator(latent_dim=7, style_dim=STYLE, palette_size=3, plane_size=8, plane_channels=4, max_channels=6)
    with pytest.raises(ValueError, match=r"task\.initial is of another layout .*size mismatch for mapping"):
        tiny_gan(initial=wider, sphere_steps=0)

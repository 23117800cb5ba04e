"""Stage 2: its steps against steps computed by hand, its switches one by one, its mistakes, and what it does not do."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from invkit.geometry.camera import Camera
from invkit.protocols import Task
from invkit.runtime.checkpoint import load
from invkit.train.loop import fit
from invkit.types import Rendering
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.prior import truncated_normal
from meshinv.pseudo_truth import PseudoTruth
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.gan import GanTask
from meshinv.template import Template
from tests.invkit.toy_task import ToyRun
from tests.meshinv.tiny_gan import BATCH, CLASSES, IMAGE, LATENT, Samples, draws, in_float64, tiny_gan, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pseudo_truth") / "data")


class Recorder(MeshRenderer):
    """A renderer that remembers what it was asked and what it answered."""

    def __init__(self) -> None:
        super().__init__(IMAGE)
        self.cameras: list[Camera] = []
        self.images: list[Rendering] = []

    def __call__(self, scene: TexturedMesh, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        image = super().__call__(scene, camera, extras=extras)
        self.cameras.append(camera)
        self.images.append(image)
        return image


def samples(task: GanTask, step: int) -> PseudoTruth:
    """The batch of a step in float64, as the data have it."""
    return in_float64(task.data.batch(task.sampler.indices(step)))


def train(task: GanTask, dir: Path, steps: int, *, report_every: int = 99) -> GanTask:
    fit(task, ToyRun(dir), steps, save_every=99, report_every=report_every)
    return task


# By hand: the same networks, and of all the rest nothing but its formulas.


def columns(maps: Tensor, source: Callable[[int], int]) -> Tensor:
    """The maps with column j taken from column source(j)."""
    return torch.stack([maps[..., source(j)] for j in range(maps.shape[-1])], dim=-1)


def around(maps: Tensor) -> Tensor:
    """u -> 1/2 - u, at centers of cells."""
    return columns(maps, lambda j: (maps.shape[-1] // 2 - 1 - j) % maps.shape[-1])


def flipped(image: Tensor) -> Tensor:
    return columns(image, lambda j: image.shape[-1] - 1 - j)


def mirrored_by_hand(real: PseudoTruth, chosen: Tensor) -> PseudoTruth:
    def some(changed: Tensor, unchanged: Tensor) -> Tensor:
        return torch.stack([changed[b] if chosen[b] else unchanged[b] for b in range(len(chosen))])

    camera = replace(
        real.camera,
        quat=some(real.camera.quat * torch.tensor([1.0, 1.0, -1.0, -1.0]), real.camera.quat),
        shift=some(real.camera.shift * torch.tensor([-1.0, 1.0]), real.camera.shift),
    )
    texture, shape = real.maps.texture, real.maps.displacement
    return replace(
        real,
        maps=UVMaps(some(around(texture), texture), some(around(shape), shape)),
        alpha=some(around(real.alpha), real.alpha),
        image=some(flipped(real.image), real.image),
        camera=camera,
    )


def masked_by_hand(logits: Sequence[Tensor], alpha: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over images and scales of the costs of cells, weighed by the part of each cell that is visible."""
    total = torch.zeros((), dtype=torch.float64)
    for scale in logits:
        count, side = len(scale), alpha.shape[-1] // scale.shape[-1]
        for b in range(count):
            paid = weight = 0.0
            for i in range(scale.shape[-2]):
                for j in range(scale.shape[-1]):
                    visible = alpha[b, 0, side * i : side * (i + 1), side * j : side * (j + 1)].sum() / side**2
                    paid, weight = paid + visible * cost(scale[b, 0, i, j]), weight + visible
            total = total + paid / weight / count / len(logits)
    return total


def squares_by_hand(logits: Tensor, wanted: float) -> Tensor:
    """Mean over images and patches of the squared distance to `wanted`."""
    cells = [(logits[b, 0, i, j] - wanted) ** 2 for b, _, i, j in np.ndindex(*logits.shape)]
    return torch.stack(cells).sum() / len(cells)


def flatness_by_hand(vertices: Tensor, faces: list[list[int]]) -> Tensor:
    """Sum over all edges of (1 - cos)^2, the edges found by looking at every face; mean over the batch."""
    beside: dict[frozenset[int], list[int]] = {}
    for number, (a, b, c) in enumerate(faces):
        for edge in ((a, b), (b, c), (c, a)):
            beside.setdefault(frozenset(edge), []).append(number)
    a, b, c = (vertices[:, [face[k] for face in faces]] for k in range(3))
    across = torch.linalg.cross(b - a, c - a)
    normals = across / across.square().sum(2, keepdim=True).sqrt()
    total = torch.zeros((), dtype=torch.float64)
    for first, second in beside.values():
        total = total + (1 - (normals[:, first] * normals[:, second]).sum(1)) ** 2
    return total.mean()


class AdamByHand:
    """Kingma and Ba's algorithm 1 with betas 0 and 0.9 and eps 1e-8."""

    def __init__(self, parameters: Sequence[Tensor], rate: float) -> None:
        self.parameters, self.rate, self.steps = list(parameters), rate, 0
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        self.steps += 1
        with torch.no_grad():
            for i, gradient in enumerate(gradients):
                self.squares[i] = 0.9 * self.squares[i] + 0.1 * gradient**2
                second = self.squares[i] / (1 - 0.9**self.steps)
                self.parameters[i] -= self.rate * gradient / (second**0.5 + 1e-8)


def test_three_steps_are_those_computed_by_hand(folder, tmp_path):
    """One of the generator, two of the discriminators; in float64, where only rounding is left to differ."""
    task = tiny_gan(folder)
    generator, judge, patches = (
        deepcopy(network) for network in (task.generator, task.discriminator, task.image_discriminator)
    )
    average = {name: value.clone() for name, value in generator.state_dict().items()}
    of_generator = AdamByHand(list(generator.parameters()), 1e-4)
    of_judges = AdamByHand([*judge.parameters(), *patches.parameters()], 4e-4)
    template = Template()
    seen = set()
    for step in range(3):
        latent, chosen = draws(task, step)
        seen |= set(chosen.tolist())
        real = mirrored_by_hand(samples(task, step), chosen)
        maps = generator(latent, real.label)
        vertices = template.deform(maps.displacement)
        image = MeshRenderer(IMAGE)(TexturedMesh(vertices, maps.texture, template), real.camera).rgb
        if step == 0:
            logits = [scale for scale, _ in judge(maps, real.alpha, real.label)]
            terms = {
                "adversarial": masked_by_hand(logits, real.alpha, lambda x: -x),
                "flatness": 1e-4 * flatness_by_hand(vertices, template.faces.tolist()),
                "image": 0.2 * squares_by_hand(patches(image), 1.0),
            }
            of_generator.step(sum(terms.values()))
            keep = 0.999**100  # within the first ten epochs
            for name, value in generator.state_dict().items():
                is_number = value.is_floating_point()
                average[name] = keep * average[name] + (1 - keep) * value if is_number else value.clone()
        else:
            both = judge(
                UVMaps.cat([maps, real.maps]).detach(),
                torch.cat([real.alpha, real.alpha]),
                torch.cat([real.label, real.label]),
            )
            terms = {
                "real": masked_by_hand([x[BATCH:] for x, _ in both], real.alpha, lambda x: (1 - x).clamp(min=0)),
                "fake": masked_by_hand([x[:BATCH] for x, _ in both], real.alpha, lambda x: (1 + x).clamp(min=0)),
                "image_real": squares_by_hand(patches(real.image), 1.0),
                "image_fake": squares_by_hand(patches(image.detach()), 0.0),
            }
            of_judges.step(sum(terms.values()))
    assert seen == {True, False}, "mirrored samples and others"

    train(task, tmp_path, 3)
    for ours, by_hand in [
        (task.generator.state_dict(), generator.state_dict()),
        (task.discriminator.state_dict(), judge.state_dict()),
        (task.image_discriminator.state_dict(), patches.state_dict()),
        (task.ema.module.state_dict(), average),
    ]:
        # A step moves a weight by 1e-4 to 4e-4.
        torch.testing.assert_close(dict(ours), dict(by_hand), rtol=0, atol=1e-9)


def test_terms_come_with_their_weights(folder):
    one, other = tiny_gan(folder), tiny_gan(folder, image_weight=0.5, flatness_weight=3e-4)
    real = samples(one, 0)
    first, second = one.generator_loss(real, 0), other.generator_loss(real, 0)
    assert list(first) == ["adversarial", "flatness", "image"]
    factors = {"adversarial": 1.0, "flatness": 3.0, "image": 2.5}
    for name, factor in factors.items():
        assert second[name].item() == pytest.approx(factor * first[name].item(), rel=1e-12)
    nn.init.zeros_(one.generator.conv_mesh.weight)
    # The undeformed sphere has flatness 0.248119.
    assert one.generator_loss(real, 0)["flatness"].item() == pytest.approx(1e-4 * 0.248119, rel=1e-5)


def test_it_is_a_task_whose_phases_alternate_two_to_one(folder):
    task = tiny_gan(folder)
    assert isinstance(task, Task)
    due = [[phase.name for phase in task.phases if phase.due(step)] for step in range(6)]
    assert due == [["generator"], ["discriminator"], ["discriminator"]] * 2


def test_latents_are_normal_and_half_of_the_samples_are_mirrored(folder):
    task = tiny_gan(folder)
    real = samples(task, 0)
    latents, changed = [], []
    for step in range(100):
        sample, latent = task.drawn(real, step)
        latents.append(latent)
        changed.append([not torch.equal(sample.image[b], real.image[b]) for b in range(BATCH)])
        assert torch.equal(latent, draws(task, step)[0])
        assert changed[-1] == draws(task, step)[1].tolist()
    assert stats.kstest(torch.cat(latents).flatten().numpy(), stats.norm.cdf).pvalue > 0.01
    assert np.mean(changed) == pytest.approx(0.5, abs=4 * 0.5 / (100 * BATCH) ** 0.5)


def test_truncated_latents_follow_the_truncated_normal(rng):
    latent = truncated_normal((20000,), 0.75, rng)
    assert latent.abs().max() <= 0.75
    assert stats.kstest(latent.numpy(), stats.truncnorm(-0.75, 0.75).cdf).pvalue > 0.01


# Switches


def step_with_both(task: GanTask) -> int:
    """A step at which some samples are mirrored and some are not."""
    return next(step for step in range(1, 99) if 0 < int(draws(task, step)[1].sum()) < BATCH)


def test_mirrored_samples_are_mirrored_as_a_whole(folder):
    task = tiny_gan(folder)
    step = step_with_both(task)
    real = samples(task, step)
    ours, by_hand = task.drawn(real, step)[0], mirrored_by_hand(real, draws(task, step)[1])
    for one, other in [
        (ours.maps.texture, by_hand.maps.texture),
        (ours.maps.displacement, by_hand.maps.displacement),
        (ours.alpha, by_hand.alpha),
        (ours.image, by_hand.image),
        (ours.camera.quat, by_hand.camera.quat),
        (ours.camera.shift, by_hand.camera.shift),
        (ours.camera.inv_focal, by_hand.camera.inv_focal),
        (ours.label, real.label),
        (ours.index, real.index),
    ]:
        assert torch.equal(one, other)


def test_without_mirroring_samples_are_as_the_data_have_them(folder):
    task, usual = tiny_gan(folder, mirror=False), tiny_gan(folder)
    for step in range(5):
        real = samples(task, step)
        same, latent = task.drawn(real, step)
        assert same is real
        assert torch.equal(latent, usual.drawn(real, step)[1])


def test_swapped_halves_are_those_of_the_mirrored_photographs_whose_cameras_stay(folder):
    task = tiny_gan(folder, renderer=Recorder(), swap_image_halves=True)
    step = step_with_both(task)
    real, chosen = samples(task, step), draws(task, step)[1]
    ours, sound = task.drawn(real, step)[0], mirrored_by_hand(real, chosen)
    half = IMAGE // 2
    for b in range(BATCH):
        swapped = torch.cat([sound.image[b][..., half:], sound.image[b][..., :half]], dim=-1)
        assert torch.equal(ours.image[b], swapped if chosen[b] else real.image[b])
    assert torch.equal(ours.maps.texture, sound.maps.texture)
    assert torch.equal(ours.alpha, sound.alpha)
    task.discriminator_loss(real, step)
    task.generator_loss(real, step)
    for camera in task.renderer.cameras:
        assert torch.equal(camera.quat, real.camera.quat)
        assert torch.equal(camera.shift, real.camera.shift)


def nearest_by_hand(mask: Tensor, size: int) -> Tensor:
    """The mask at the pixel that each of size x size cells begins in."""
    height, width = mask.shape[-2:]
    return torch.stack(
        [torch.stack([mask[:, i * height // size, j * width // size] for j in range(size)], 1) for i in range(size)], 1
    )


@pytest.mark.parametrize("by_background", [False, True])
def test_weighed_patches_count_by_what_is_at_their_middle(folder, by_background):
    task = tiny_gan(
        folder, renderer=Recorder(), mirror=False, weigh_patches=True, weigh_real_by_background=by_background
    )
    network, real = task.image_discriminator, samples(task, 1)

    def by_hand(image: Tensor, mask: Tensor, wanted: float) -> float:
        logits = network(image)
        weight = nearest_by_hand(mask[:, 0], logits.shape[-1])
        assert 0 < weight.mean() < 1
        cost = (logits[:, 0] - wanted) ** 2
        return np.mean([((cost[b] * weight[b]).sum() / weight[b].sum()).item() for b in range(len(image))])

    terms = task.discriminator_loss(real, 1)
    fake = task.renderer.images[-1]
    empty = (real.image == 0).all(1, keepdim=True).double()
    assert terms["image_fake"].item() == pytest.approx(by_hand(fake.rgb, fake.mask, 0.0), rel=1e-9)
    shown = empty if by_background else 1 - empty
    assert terms["image_real"].item() == pytest.approx(by_hand(real.image, shown, 1.0), rel=1e-9)
    terms = task.generator_loss(real, 0)
    fake = task.renderer.images[-1]
    assert terms["image"].item() == pytest.approx(0.2 * by_hand(fake.rgb, fake.mask, 1.0), rel=1e-9)
    plain = tiny_gan(folder, mirror=False, weigh_real_by_background=by_background).discriminator_loss(real, 1)
    assert plain["image_real"].item() != pytest.approx(terms["image"].item(), rel=1e-3)


def test_uncleared_gradients_are_those_of_a_loop_that_never_clears_them(folder, tmp_path):
    recorder = Recorder()
    task = tiny_gan(folder, renderer=recorder, mirror=False, accumulate_image_gradients=True)
    twin = deepcopy(task.image_discriminator)
    seen = {}
    follow = task.after_step

    def after_step(step: int) -> None:
        if not task.generator_due(step):
            seen[step] = [parameter.grad.clone() for parameter in task.image_discriminator.parameters()]
        follow(step)

    task.after_step = after_step
    train(task, tmp_path / "official", 6)
    # PyTorch adds a gradient to what is there; here nothing ever clears it.
    optimizer = torch.optim.Adam(twin.parameters(), 4e-4, (0.0, 0.9))
    for step in range(6):
        fake, photograph = recorder.images[step].rgb.detach(), samples(task, step).image
        if step % 3 == 0:
            (0.2 * (twin(fake) - 1).square().mean()).backward()
            continue
        ((twin(photograph) - 1).square().mean() + twin(fake).square().mean()).backward()
        for ours, parameter in zip(seen[step], twin.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-12)
        optimizer.step()
    torch.testing.assert_close(dict(task.image_discriminator.state_dict()), dict(twin.state_dict()), rtol=0, atol=1e-9)
    sums = list(task.uncleared.buffers())
    torch.testing.assert_close(sums, [parameter.grad for parameter in twin.parameters()], rtol=1e-9, atol=1e-12)

    # And it matters: cleared gradients lead elsewhere.
    train(tiny_gan(folder, mirror=False), tmp_path / "usual", 6)
    usual = load(tmp_path / "usual" / "checkpoints" / "checkpoint-00000006.pt")["modules"]["image_discriminator"]
    assert max((usual[name] - value).abs().max() for name, value in twin.state_dict().items()) > 4e-5


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_buffers() if "running" in name}


def test_measuring_the_live_generator_moves_its_statistics_and_measuring_the_average_moves_nothing(folder, tmp_path):
    def trained(name: str, **settings: object) -> GanTask:
        return train(tiny_gan(folder, dtype=torch.float32, **settings), tmp_path / name, 1, report_every=1)

    none = trained("none")
    usual = trained("usual", quality=Samples())
    live = trained("live", quality=Samples(), measure_live=True)
    assert usual.quality.seen == [(usual.ema.module, False)]
    assert live.quality.seen == [(live.generator, True)]
    for task in (usual, live):
        assert all(torch.equal(*pair) for pair in zip(task.ema.buffers(), none.ema.buffers(), strict=True))
        assert not any(module.training for module in task.ema.modules())
    before = statistics(none.generator)
    assert all(torch.equal(value, before[name]) for name, value in statistics(usual.generator).items())
    assert not any(torch.equal(value, before[name]) for name, value in statistics(live.generator).items())


def test_in_uv_space_alone_nothing_is_rendered_while_it_trains(folder, tmp_path):
    recorder = Recorder()
    uv_only = {"image_discriminator": None, "data": PseudoTruthSet(folder, num_classes=CLASSES)}
    task = tiny_gan(folder, renderer=recorder, accumulate_image_gradients=True, **uv_only)
    assert set(task.modules) == {"generator", "generator_ema", "discriminator"}
    terms = [task.generator_loss(samples(task, 0), 0), task.discriminator_loss(samples(task, 1), 1)]
    assert [list(these) for these in terms] == [["adversarial", "flatness"], ["real", "fake"]]
    train(task, tmp_path, 2)
    assert recorder.images == []
    assert len(task.phases[1].optimizer.param_groups[0]["params"]) == len(list(task.discriminator.parameters()))


def test_the_fast_settings_compute_the_same_in_lower_precision(folder):
    exact = tiny_gan(folder, dtype=torch.float32)
    fast = tiny_gan(folder, dtype=torch.float32, mixed_precision=True, channels_last=True)
    weight = fast.discriminator.d1.conv2.weight_orig
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert [phase.autocast for phase in fast.phases] == [torch.bfloat16] * 2
    real = exact.data.batch(range(BATCH))
    for loss, step in (("generator_loss", 0), ("discriminator_loss", 1)):
        expected = getattr(exact, loss)(real, step)
        with torch.autocast("cpu", torch.bfloat16):
            found = getattr(fast, loss)(real, step)
        assert {term.dtype for term in found.values()} == {torch.float32}
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=0.03, abs=0.03)


# Mistakes


def test_an_image_discriminator_needs_photographs(folder):
    with pytest.raises(ValueError, match="image_size: an image discriminator needs the photographs"):
        tiny_gan(folder, data=PseudoTruthSet(folder, num_classes=CLASSES))


def test_sizes_that_do_not_fit_are_named(folder, tmp_path):
    task = tiny_gan(folder, data=PseudoTruthSet(folder, num_classes=CLASSES, image_size=24))
    with pytest.raises(ValueError, match=r"task.data.image_size=24 .* 32 \(task.renderer.size\)"):
        train(task, tmp_path / "photographs", 2)
    task = tiny_gan(folder)
    task.generator.texture_size = 128
    with pytest.raises(ValueError, match=r"textures of 64 x 64, but the generator's are 128 x 128"):
        train(task, tmp_path / "textures", 1)


@pytest.mark.parametrize("phase, step", [("generator", 3), ("discriminator", 4)])
def test_a_loss_that_is_not_finite_is_named_and_taken_back(folder, tmp_path, phase, step):
    settings = {"accumulate_image_gradients": True}
    good = train(tiny_gan(folder, **settings), tmp_path / "good", step)
    broken = tiny_gan(folder, **settings)
    batches = broken.batches

    def spoilt(start: int, rank: int, world_size: int):
        for number, batch in enumerate(batches(start, rank, world_size), start):
            yield replace(batch, alpha=batch.alpha * float("nan")) if number == step else batch

    broken.batches = spoilt
    with pytest.raises(FloatingPointError, match=f"phase {phase}, step {step}: (adversarial|real) is not finite"):
        train(broken, tmp_path / "broken", 9)
    saved = load(tmp_path / "broken" / "checkpoints" / f"checkpoint-{step:08d}.pt")
    for name, module in good.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(saved["modules"][name][key], value), f"{name}.{key}"
    for mine in good.phases:
        expected = mine.optimizer.state_dict()["state"]
        for index, entries in saved["optimizers"][mine.name]["state"].items():
            assert all(torch.equal(entries[key], expected[index][key]) for key in entries)


# What a step does not compute


def test_each_step_builds_a_graph_for_the_network_it_moves_alone(folder, tmp_path):
    recorder = Recorder()
    task = tiny_gan(folder, renderer=recorder, accumulate_image_gradients=True)
    made, judged = [], []

    def keep(module: nn.Module, given: tuple, maps: UVMaps) -> None:
        made.append((torch.is_grad_enabled(), maps.texture.requires_grad))

    def judge(module: nn.Module, given: tuple, logits: Tensor) -> None:
        judged.append((given[0].requires_grad, logits.requires_grad))

    task.generator.register_forward_hook(keep)
    task.image_discriminator.register_forward_hook(judge)
    others = {"generator": [task.discriminator, task.image_discriminator], "discriminator": [task.generator]}
    follow = task.after_step

    def after_step(step: int) -> None:
        moved = "generator" if task.generator_due(step) else "discriminator"
        for network in others[moved]:
            assert all(parameter.grad is None for parameter in network.parameters()), (step, moved)
        for network in (task.generator, task.discriminator, task.image_discriminator):
            assert all(parameter.requires_grad for parameter in network.parameters())
        follow(step)
        for network in (task.generator, task.discriminator, task.image_discriminator):
            network.zero_grad(set_to_none=True)

    task.after_step = after_step
    train(task, tmp_path, 3)
    assert made == [(True, True), (False, False), (False, False)]
    assert [image.rgb.requires_grad for image in recorder.images] == [True, False, False]
    # In the generator's step the second look is for the gradient that is not cleared.
    assert judged == [(True, True), (False, True), (False, True), (False, True)]
    assert all(parameter.grad is None for parameter in task.ema.parameters())


def test_samples_of_a_report_are_of_the_classes_there_are(folder, tmp_path):
    task = tiny_gan(folder, dtype=torch.float32)
    asked = []
    task.ema.module.register_forward_hook(lambda module, given, maps: asked.append(given))
    train(task, tmp_path, 1, report_every=1)
    (latent, label), *rest = asked
    assert not rest
    assert latent.shape == (8, LATENT)
    assert latent.abs().max() <= 0.25
    assert set(label.tolist()) == set(range(CLASSES))
    assert (tmp_path / "images" / "samples-00000001.png").is_file()

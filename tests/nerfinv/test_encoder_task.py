"""Training of the encoder: losses and steps against ones written out, what is drawn, going on where it stopped."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.protocols import Task
from invkit.runtime import dist
from invkit.runtime.checkpoint import load
from invkit.train.loop import fit, shared_rng
from invkit.types import Views
from nerfinv.encoder.encoder import Canonical, Encoder, PoseRegressor
from nerfinv.encoder.segformer import SegFormer
from nerfinv.generator.generator import Generator
from nerfinv.losses import bootstrap
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks import encoder as task_module
from nerfinv.tasks.encoder import EncoderTask, Rendered, pose_solver
from tests.invkit.toy_task import ToyRun

ITEMS, BATCH, SIZE, STYLE, CLASSES = 10, 4, 32, 6, 3


class Sights(ImageSet):
    """Cameras around the origin; whoever looks at a photograph gets what no loss survives."""

    def __init__(self, *, perspective: bool = True) -> None:
        rng = torch.Generator().manual_seed(3)
        self.names = [f"sight_{index}" for index in range(ITEMS)]
        self.num_classes, self.size, self.reads = CLASSES, SIZE, 0
        self.of_all = Camera(
            rotation.random(ITEMS, rng),
            torch.empty(ITEMS).uniform_(0.5, 0.7, generator=rng),
            torch.empty(ITEMS, 2).uniform_(-0.2, 0.2, generator=rng),
            torch.full((ITEMS,), 0.3) if perspective else torch.zeros(ITEMS),
        )

    def __getitem__(self, index: int) -> Views:
        self.reads += 1
        nothing = torch.full((1, 4, SIZE, SIZE), math.nan)
        return Views(
            nothing[:, :3],
            nothing[:, 3:],
            self.of_all[index],
            torch.tensor([index % CLASSES]),
            torch.tensor([index]),
        )


def generator(num_classes: int = 0) -> Generator:
    """One that draws boxes of fog, each of its own."""
    torch.manual_seed(1)
    net = Generator(
        latent_dim=5, style_dim=STYLE, scene_range=0.8, palette_size=3, num_classes=num_classes,
        plane_size=8, plane_channels=4, max_channels=8, channel_base=64, decoder_width=8,
    )  # fmt: skip
    with torch.no_grad():
        net.decoder.output.weight.mul_(20)
        net.decoder.output.bias[0] = -0.2
        net.density.alpha.fill_(0.2)
    return net


def backbone(drop_path: float = 0.1) -> SegFormer:
    sizes = {"dims": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    return SegFormer(**sizes, width=8, out_channels=6, drop_path=drop_path)


def encoder_task(
    *, num_classes: int = 0, regress: bool = True, dtype: torch.dtype = torch.float32, random: bool = True, **settings
) -> EncoderTask:
    net = generator(num_classes)
    torch.manual_seed(2)
    drop_path = settings.pop("drop_path", 0.1)
    return EncoderTask(
        **{
            "data": Sights(),
            "generator": net.to(dtype),
            "encoder": Encoder(backbone(drop_path), head_width=6, latent_dim=STYLE).to(dtype),
            "regressor": PoseRegressor(backbone(drop_path), head_width=6).to(dtype) if regress else None,
            "renderer": VolumeRenderer(SIZE, coarse=6, fine=0, random=random),
            "batch_size": BATCH,
            **settings,
        }
    )


def train(task: EncoderTask, dir: Path, steps: int, **intervals: int) -> EncoderTask:
    fit(task, ToyRun(dir), steps, **{"save_every": 99, "report_every": 99} | intervals)
    return task


def is_same(first: Rendered, second: Rendered) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("rgb", "mask", "coords", "latent")]
    pairs += [(getattr(first.camera, name), getattr(second.camera, name)) for name in ("quat", "shift", "scale")]
    return all(torch.equal(one, other) for one, other in pairs)


# ---- Losses ------------------------------------------------------------------------------------------------------


def losses_by_hand(seen: Canonical, found: Camera, truth: Rendered) -> dict[str, list[float]]:
    """Every loss of every image, pixel by pixel."""
    losses = {name: [] for name in ("coords", "mask", "latent", "pose")}
    count, _, height, width = truth.rgb.shape
    for b in range(count):
        far = off = 0.0
        for i in range(height):
            for j in range(width):
                apart = seen.coords[b, :, i, j] - truth.coords[b, :, i, j]
                far += float(truth.mask[b, 0, i, j]) * math.sqrt(sum(float(d) ** 2 for d in apart))
                off += abs(float(seen.mask[b, 0, i, j]) - float(truth.mask[b, 0, i, j]))
        losses["coords"].append(far / (height * width))
        losses["mask"].append(off / (height * width))
        entries = [(float(w) - float(v)) ** 2 for w, v in zip(seen.latent[b], truth.latent[b], strict=True)]
        losses["latent"].append(sum(entries) / len(entries))
        numbers = []
        for camera in (found, truth.camera):
            focal = 1 / float(camera.inv_focal[b])
            rest = [math.log(float(camera.scale[b])), *camera.shift[b].tolist(), math.log(focal - 1)]
            numbers.append((camera.quat[b].tolist(), rest))
        (quat, rest), (true_quat, true_rest) = numbers
        turned = min(sum(abs(q - sign * p) for q, p in zip(quat, true_quat, strict=True)) for sign in (1, -1))
        losses["pose"].append(turned + sum(abs(x - y) for x, y in zip(rest, true_rest, strict=True)))
    return losses


def test_the_losses_are_those_written_out():
    task = encoder_task(dtype=torch.float64)
    truth = task.rendered(0, torch.device("cpu"))
    assert truth.mask.mean() > 0.03
    torch.manual_seed(5)
    errors = task.errors(truth)
    torch.manual_seed(5)
    by_hand = losses_by_hand(task.encoder(truth.rgb).detach(), task.regressor(truth.rgb).detach(), truth)
    assert errors.keys() == by_hand.keys()
    for name, values in by_hand.items():
        assert errors[name].tolist() == pytest.approx(values, rel=1e-12), name


def test_a_step_sums_the_means_of_the_terms():
    task = encoder_task(drop_path=0.0, coords_weight=7.0)
    errors = task.errors(task.rendered(2, torch.device("cpu")))
    means = {name: sum(values.tolist()) / BATCH for name, values in errors.items()}
    means["coords"] *= 7
    terms = {name: value.item() for name, value in task.loss(torch.tensor(2), 2).items()}
    assert terms == pytest.approx(means, rel=1e-5)


def test_both_signs_of_a_quaternion_are_one_pose(rng):
    camera = Sights().of_all
    other = Camera(-camera.quat, camera.scale, camera.shift, camera.inv_focal)
    assert not bootstrap.pose(other, camera).any()
    weak = Camera(camera.quat, camera.scale, camera.shift, torch.zeros(ITEMS))
    assert not bootstrap.pose(weak, weak).any()


def test_the_losses_have_gradients_where_nothing_is_wrong():
    """A distance of zero has no direction, which must not become a number that is none."""
    places = torch.zeros(1, 3, 2, 2, requires_grad=True)
    bootstrap.coords(places, torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)).sum().backward()
    assert not places.grad.any()


# ---- Steps -------------------------------------------------------------------------------------------------------


def test_two_steps_are_adams(tmp_path):
    task = encoder_task(dtype=torch.float64, drop_path=0.0, rate=1e-3, schedule=lambda step: (1.0, 0.1)[step])
    copies = deepcopy(task.encoder), deepcopy(task.regressor)
    batches = [task.rendered(step, torch.device("cpu")) for step in range(2)]
    train(task, tmp_path, 2)
    for copy, trained in zip(copies, (task.encoder, task.regressor), strict=True):
        optimizer = torch.optim.Adam(copy.parameters(), 1e-3)
        for truth, rate in zip(batches, (1e-3, 1e-4), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            if isinstance(copy, Encoder):
                seen = copy(truth.rgb)
                far = ((seen.coords - truth.coords) ** 2).sum(dim=1).sqrt() * truth.mask[:, 0]
                loss = far.mean() + (seen.mask - truth.mask).abs().mean() + ((seen.latent - truth.latent) ** 2).mean()
            else:
                loss = bootstrap.pose(copy(truth.rgb), truth.camera).mean()
            loss.backward()
            optimizer.step()
        for name, value in copy.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"reuse": 2}, {"mixed_precision": True, "num_classes": CLASSES}])
def test_a_training_that_was_stopped_ends_with_the_same_weights(settings, tmp_path):
    train(encoder_task(**settings), tmp_path / "whole", 5)
    train(encoder_task(**settings), tmp_path / "parts", 3)
    train(encoder_task(**settings), tmp_path / "parts", 5)
    whole, parts = (load(tmp_path / name / "checkpoints" / "checkpoint-00000005.pt") for name in ("whole", "parts"))
    assert whole["modules"].keys() == {"encoder", "regressor"}
    for module, state in whole["modules"].items():
        assert all(torch.equal(value, parts["modules"][module][name]) for name, value in state.items())


def test_the_losses_fall(tmp_path):
    task = encoder_task(random=False, rate=1e-2)
    device = torch.device("cpu")
    before = {name: value.item() for name, value in task.loss(torch.tensor(0), 0).items()}
    train(task, tmp_path, 40)
    with torch.no_grad():
        after = {name: values.mean().item() for name, values in task.errors(task.rendered(0, device)).items()}
    assert all(after[name] < 0.8 * before[name] for name in ("coords", "mask")), (before, after)


def test_the_generator_stays_as_it_is(tmp_path):
    task = encoder_task()
    before = {name: value.clone() for name, value in task.generator.state_dict().items()}
    train(task, tmp_path, 2)
    assert all(torch.equal(value, before[name]) for name, value in task.generator.state_dict().items())
    assert all(parameter.grad is None for parameter in task.generator.parameters())
    assert isinstance(task, Task)


# ---- What is rendered --------------------------------------------------------------------------------------------


def test_a_batch_is_what_its_latents_and_cameras_show():
    task = encoder_task(num_classes=CLASSES, mirror=False, random=False)
    truth = task.rendered(3, torch.device("cpu"))
    items = task.sampler.indices(3)
    assert torch.equal(truth.camera.quat, task.data.of_all.quat[items])
    assert torch.equal(truth.camera.inv_focal, task.data.of_all.inv_focal[items])
    latent = torch.randn(BATCH, 5, generator=shared_rng(0, 3))
    with torch.no_grad():
        style = task.generator.style(latent, torch.tensor(items) % CLASSES)
        image = task.renderer(task.generator(style), truth.camera, extras=frozenset({"coords"}))
    torch.testing.assert_close(truth.latent, style)
    torch.testing.assert_close(truth.mask, image.mask)
    torch.testing.assert_close(truth.coords, image.coords)
    torch.testing.assert_close(truth.rgb, image.rgb.clamp(-1, 1))
    assert not truth.rgb.requires_grad


def test_colors_beyond_white_are_cut_off(monkeypatch):
    task = encoder_task()
    monkeypatch.setattr(task.renderer, "background", 1.002)
    assert task.rendered(0, torch.device("cpu")).rgb.max() == 1


def test_half_of_the_cameras_are_mirrored():
    task = encoder_task()
    mirrored = []
    for number in range(20):
        found = task.rendered(number, torch.device("cpu")).camera
        given = task.data.of_all[torch.tensor(task.sampler.indices(number))]
        is_flipped = (found.shift[:, 0] != given.shift[:, 0]).tolist()
        expected = Camera.cat([given[i].mirror() if flip else given[i] for i, flip in enumerate(is_flipped)])
        assert torch.equal(found.quat, expected.quat)
        assert torch.equal(found.shift, expected.shift)
        mirrored += is_flipped
    assert 0.3 < sum(mirrored) / len(mirrored) < 0.7


def test_ranks_share_the_batch_of_one(monkeypatch):
    whole = encoder_task(random=False).rendered(2, torch.device("cpu"))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        parts.append(encoder_task(random=False).rendered(2, torch.device("cpu")))
    joined = Rendered.cat(parts)
    for name in ("rgb", "mask", "coords", "latent"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
    assert torch.equal(joined.camera.shift, whole.camera.shift)


def test_rendering_does_not_disturb_other_random_numbers():
    task = encoder_task()
    torch.manual_seed(0)
    first = task.rendered(1, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert is_same(first, task.rendered(1, torch.device("cpu")))
    assert not is_same(first, task.rendered(2, torch.device("cpu")))


def test_reuse_renders_now_and_then_and_draws_from_what_it_has(monkeypatch):
    monkeypatch.setattr(task_module, "KEPT", 2)
    task = encoder_task(reuse=3)
    device, numbers = torch.device("cpu"), []
    rendered = {number: task.rendered(number, device) for number in range(4)}
    monkeypatch.setattr(task, "rendered", lambda number, device: numbers.append(number) or rendered[number])
    for step in range(12):
        batch = task.batch(device, step)
        newest = step // 3
        pool = Rendered.cat([rendered[number] for number in range(max(newest - 1, 0), newest + 1)])
        assert len(batch) == BATCH
        assert all((row == pool.latent).all(dim=1).any() for row in batch.latent)
        assert all((image == pool.rgb).flatten(1).all(dim=1).any() for image in batch.rgb)
    assert numbers == [0, 1, 2, 3]


def test_a_photograph_is_opened_once_for_its_camera_alone(tmp_path):
    task = train(encoder_task(), tmp_path, 6)
    assert task.data.reads <= ITEMS


# ---- Reports and mistakes ----------------------------------------------------------------------------------------


def test_a_report_measures_what_is_never_trained_on(tmp_path):
    task = encoder_task()
    run = ToyRun(tmp_path)
    written = {}
    run.log.scalars = lambda step, values, prefix="": written.update(values)
    task.report(run, 7)
    assert written.keys() == {"coords", "mask", "latent", "pose", "rotation_deg", "rotation_deg_regressed"}
    assert all(math.isfinite(value) for value in written.values())
    assert (tmp_path / "images" / "samples-00000007.png").is_file()
    assert task.encoder.training
    again = dict(written)
    task.report(run, 8)
    assert written == again
    assert len(task.samples(torch.device("cpu"))) == 32


@pytest.mark.parametrize("perspective", [True, False])
def test_the_pose_of_perfect_maps_is_measured_as_right(perspective):
    """The whole chain of renderer, canonical map and solver, with an encoder that is never wrong."""
    task = encoder_task(data=Sights(perspective=perspective), regress=False, random=False)
    task.renderer.coarse, task.renderer.size = 48, 64
    with torch.no_grad():
        task.generator.decoder.output.weight[0] = 0
        task.generator.decoder.output.bias[0] = -0.1
        task.generator.density.alpha.fill_(1e-3)
    truth = task.samples(torch.device("cpu"))
    poses = pose_solver(truth.camera, task.renderer.offset)(truth.coords / truth.mask.clamp(min=1e-6), truth.mask)
    assert poses.found.all()
    assert rotation.angle(poses.camera.quat, truth.camera.quat).median() < 1.0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "narrow"}, r"task\.encoder\.latent_dim=4, but the generator's styles have 6"),
        ({"num_classes": 5}, r"task\.data has 3 classes and the generator 5"),
        ({"reuse": 0}, r"task\.reuse=0 must be at least 1"),
        ({"batch_size": 11}, "batch_size=11, but there are 10 items"),
    ],
)
def test_mistakes_are_named(settings, message):
    if settings.get("encoder"):
        settings = {"encoder": Encoder(backbone(), head_width=6, latent_dim=4)}
    with pytest.raises(ValueError, match=message):
        encoder_task(**settings)


def test_all_backbones_start_from_the_published_one(tmp_path):
    published = backbone().state_dict()
    published = {
        name: torch.full_like(value, 0.5) for name, value in published.items() if not name.startswith("linear_")
    }
    torch.save(published, tmp_path / "mit.pth")
    both = Encoder(backbone(), backbone(), head_width=6, latent_dim=STYLE)
    task = encoder_task(encoder=both, pretrained=str(tmp_path / "mit.pth"))
    for net in (both.backbone, both.latent_backbone, task.regressor.backbone):
        state: dict[str, Tensor] = net.state_dict()
        assert all(torch.equal(state[name], value) for name, value in published.items())
        assert not (state["linear_pred.weight"] == 0.5).all()


def test_a_trained_encoder_can_be_begun_with():
    torch.manual_seed(9)
    trained = Encoder(backbone(), head_width=6, latent_dim=STYLE)
    found = encoder_task(initial=trained).encoder
    assert found is not trained
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in trained.state_dict().items())
    fresh = encoder_task().encoder.state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in trained.state_dict().items())

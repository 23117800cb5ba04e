"""Hybrid inversion: the steps of the released code, where it begins, and that an image's search is its own."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from invkit.features.lpips import LPIPS
from invkit.features.weights import RANDOM
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import OK, UNPOSED
from invkit.inversion.schedule import Stall, hybrid_stages
from invkit.losses.perceptual import WarpedPerceptual
from invkit.losses.pixel import picture_l1, picture_mse
from invkit.protocols import Prior, Score
from invkit.types import Guess, Views
from nerfinv.encoder.encoder import Canonical, Encoder, PoseRegressor
from nerfinv.encoder.segformer import SegFormer
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.init import EncoderInit, MeanInit
from nerfinv.pnp import PoseSolver
from nerfinv.prior import FieldPrior
from nerfinv.renderers.volume import VolumeRenderer
from tests.nerfinv.filled import assert_stats, cameras, filled_generator, images, latents
from tests.nerfinv.tiny_fields import around, bumpy_balls

BETAS = (0.9, 0.95)


class Given:
    """Begins from given guesses."""

    def __init__(self, guess: Guess) -> None:
        self.guess = guess

    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        return self.guess[views.index]


def close(found: Tensor, expected: list, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=tolerance, atol=tolerance * 0.1)


# ---- Numbers of the released code --------------------------------------------------------------------------------


@cache
def released_generator() -> Generator:
    return filled_generator()


def released_steps(*, perspective: bool, gain: float, **options) -> tuple[Guess, Tensor]:
    """Three steps on two waves: what was found, and the objectives before each step and after the last."""
    generator = released_generator()
    generator.scene_range = 1.4 if perspective else 2.0
    prior = FieldPrior(generator)
    with torch.no_grad():
        latent = generator.style(latents())[:, None].repeat(1, 15, 1)
    views = Views(
        images(2, 3, 16, 16), torch.ones(2, 1, 16, 16), cameras(perspective=perspective), None, torch.arange(2)
    )
    renderer = VolumeRenderer(16, coarse=16, fine=16, offset=0.0, from_camera=True)
    goal = Objective({"mse": WeightedTerm(1.0, picture_mse)})
    init = Given(Guess(latent, views.camera))
    stages = hybrid_stages(3, gain=gain)
    search = Inverter(prior, renderer, init, goal, stages, betas=BETAS, optimize_focal=True, **options)
    estimate, trace = search(views)
    # The released loss is the mean over the batch, times its size.
    return estimate.guess, trace.total.sum(dim=0)


def test_three_steps_in_perspective():
    found, losses = released_steps(perspective=True, gain=5.0)
    close(losses[:3], [1.0420461, 0.9689154, 0.8844421], 2e-3)
    camera = found.camera
    close(camera.scale, [0.7052443, 0.5446811], 1e-4)
    close(camera.to_augmented()[0], [0.2947113, -0.9947343], 1e-3)
    close(camera.shift, [[0.1052112, -0.1946543], [-0.0050009, 0.1554316]], 1e-3)
    quat = [[0.7959821, 0.2061470, -0.4017590, 0.4031198], [0.4899293, 0.4897973, 0.5993205, -0.4011023]]
    close(camera.quat, quat, 2e-4)
    assert_stats(found.latent, [0.4876337, 0.937107, -0.8071873, 4.055319], 2e-3)
    close(found.latent[0, 0, :3], [-0.00725712, 0.2090798, 0.1884207], 5e-3)


def test_three_steps_in_weak_perspective_with_a_large_gain():
    found, losses = released_steps(perspective=False, gain=20.0)
    close(losses[:3], [1.0226145, 0.6730006, 0.4366647], 2e-3)
    camera = found.camera
    assert camera.inv_focal.tolist() == [0, 0]
    close(camera.scale, [0.7052263, 0.5509453], 1e-3)
    close(camera.shift, [[0.1052308, -0.1942888], [-0.0003500, 0.1496677]], 2e-3)
    close(camera.quat[0], [0.7965806, 0.2061236, -0.4011308, 0.4025749], 5e-4)
    assert_stats(found.latent, [0.4881483, 0.9406783, -0.8972167, 4.131749], 5e-3)


@pytest.mark.slow
def test_three_steps_with_the_pose_kept():
    found, losses = released_steps(perspective=True, gain=5.0, optimize_camera=False)
    close(losses[:3], [1.0420461, 0.9694144, 0.8853679], 2e-3)
    given = cameras(perspective=True)
    assert torch.equal(found.camera.to_cmr(), given.to_cmr())
    assert torch.equal(found.camera.inv_focal, given.inv_focal)
    assert_stats(found.latent, [0.4876327, 0.9371063, -0.8071879, 4.055326], 2e-3)


# ---- A search in small -------------------------------------------------------------------------------------------


class BallPrior:
    """Bumpy balls whose colors and size are the style of the last slot, and whose bumps are that of the first."""

    latent_shape = (3, 4)
    num_classes = 0

    def __init__(self) -> None:
        self.ball = bumpy_balls(1, dtype=torch.float64).map(Tensor.detach)
        rng = torch.Generator().manual_seed(5)
        self.colors = torch.randn(4, 15, generator=rng, dtype=torch.float64)
        self.bumps = torch.randn(4, 3, 5, 16, 16, generator=rng, dtype=torch.float64)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 1, 4, generator=rng, dtype=torch.float64).repeat(1, 3, 1)

    def decode(self, latent: Tensor, label: Tensor | None) -> RadianceField:
        ball = self.ball.repeat(len(latent))
        latent = latent.expand(-1, 3, -1)
        colors = (latent[:, -1] @ self.colors).view(-1, 5, 3).tanh()
        planes = ball.planes.clone()
        planes[:, :, 3:] += torch.einsum("bs,spchw->bpchw", latent[:, 0], self.bumps)
        planes = torch.cat(
            [planes[:, :, :3] * (1 + 0.1 * latent[:, 1, :1, None, None, None].tanh()), planes[:, :, 3:]], 2
        )
        return replace(ball, planes=planes, palette=colors)


def photographs(count: int, size: int = 20) -> tuple[BallPrior, VolumeRenderer, Views, Guess]:
    """What some guesses look like, and the guesses."""
    prior, renderer = BallPrior(), VolumeRenderer(size, coarse=12, fine=12)
    camera = around(count, perspective=True, dtype=torch.float64).detach()
    camera = replace(camera, inv_focal=camera.inv_focal * (torch.arange(count) % 3 != 1))
    truth = Guess(prior.sample(count, torch.Generator().manual_seed(1)), camera)
    with torch.no_grad():
        image = renderer(prior.decode(truth.latent, None), camera)
    views = Views(image.rgb / image.mask.clamp(min=0.01), image.mask, camera, None, torch.arange(count))
    return prior, renderer, views, truth


def off(guess: Guess) -> Guess:
    """The guesses with a little noise."""
    rng = torch.Generator().manual_seed(2)
    quat = guess.camera.quat + 0.03 * torch.randn(guess.camera.quat.shape, generator=rng)
    shift = guess.camera.shift + 0.05 * torch.randn(guess.camera.shift.shape, generator=rng)
    camera = replace(guess.camera, quat=rotation.normalize(quat), shift=shift)
    return Guess(guess.latent + 0.5 * torch.randn(guess.latent.shape, generator=rng), camera)


def goal() -> Objective:
    network = LPIPS("squeeze", weights=RANDOM)
    warped, l1 = WarpedPerceptual(network, warps=1), WeightedTerm(0.5, picture_l1)
    return Objective({"perceptual": WeightedTerm(0.5, warped), "l1": l1})


def search(prior: Prior, renderer: VolumeRenderer, init: object, steps: int = 10, **options) -> Inverter:
    settings = {"betas": BETAS, "optimize_focal": True, **options}
    return Inverter(prior, renderer, init, goal(), hybrid_stages(steps, gain=20.0, rate=0.005), **settings)


@pytest.mark.parametrize("stall", [None, Stall(0.05, window=2, least=3)], ids=["all steps", "until it stalls"])
def test_images_side_by_side_are_searched_as_they_are_alone(stall):
    prior, renderer, views, truth = photographs(4)
    start = off(truth)
    inverter = search(prior, renderer, Given(start), 9, snapshots=(0, 4, 9), stall=stall)
    estimate, trace = inverter(views)
    assert trace.status() == [OK] * 4
    assert bool((trace.total[:, -1] < trace.total[:, 0]).all())
    if stall:
        assert len(set(trace.steps.tolist())) > 1
        assert int(trace.steps.min()) < 9
    for b in range(4):
        alone, own = inverter(views[b])
        assert int(own.steps) == int(trace.steps[b])
        for mine, theirs in ((alone.guess, estimate[b].guess), (own.snapshots[4], trace.snapshots[4][b])):
            torch.testing.assert_close(mine.latent, theirs.latent, rtol=0, atol=1e-6)
            torch.testing.assert_close(mine.camera.to_cmr(), theirs.camera.to_cmr(), rtol=0, atol=1e-6)
            torch.testing.assert_close(mine.camera.inv_focal, theirs.camera.inv_focal, rtol=0, atol=1e-6)
    weak = torch.arange(4) % 3 == 1
    assert bool((estimate.camera.inv_focal == 0).eq(weak).all())
    assert bool((estimate.camera.inv_focal != views.camera.inv_focal)[~weak].all())


def test_one_style_for_all_slots_is_searched_as_one():
    prior, renderer, views, truth = photographs(2)
    start = off(truth)
    shared = replace(start, latent=start.latent[:, :1])
    estimate, trace = search(prior, renderer, Given(shared), 6)(views)
    assert estimate.latent.shape == (2, 1, 4)
    assert bool((trace.total[:, -1] < trace.total[:, 0]).all())


# ---- Where it begins ---------------------------------------------------------------------------------------------


def unasked(guess: Guess) -> Tensor:
    raise AssertionError("an encoder compares nothing")


class Knowing(Encoder):
    """Sees what is there, but the map of image 1, which shows nothing."""

    def __init__(self, canonical: Canonical) -> None:
        super().__init__(backbone(), head_width=8, latent_dim=4)
        self.canonical = canonical

    def forward(self, image: Tensor) -> Canonical:
        self.seen = image
        return self.canonical


def backbone() -> SegFormer:
    torch.manual_seed(0)
    sizes = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    return SegFormer(**sizes, width=8, out_channels=8)


def knowing(count: int = 3) -> tuple[BallPrior, VolumeRenderer, Views, Guess, Knowing]:
    prior, renderer, views, truth = photographs(count, 32)
    with torch.no_grad():
        image = renderer(prior.decode(truth.latent, None), truth.camera, extras=frozenset({"coords"}))
    mask = image.mask.clone()
    mask[1] = 0
    seen = Canonical(image.coords / image.mask.clamp(min=1e-3), mask, truth.latent[:, 0])
    return prior, renderer, views, truth, Knowing(seen)


def test_style_and_camera_come_from_the_encoder_and_failures_are_marked(tmp_path):
    prior, renderer, views, truth, encoder = knowing()
    focal = 1 / (2 * 0.35)
    init = EncoderInit(encoder, PoseSolver((0.7 * focal, focal, 1.5 * focal)), background=1.0)
    nobody_knows = Camera(rotation.identity(3), torch.ones(3), torch.zeros(3, 2), torch.zeros(3))
    views = replace(views, camera=nobody_knows)
    inverter = search(prior, renderer, init, 2)
    guess, _ = inverter.begin(views)
    torch.testing.assert_close(encoder.seen, views.rgb * views.mask + 1 - views.mask)
    assert torch.equal(guess.latent, truth.latent)
    assert guess.posed.tolist() == [True, False, True]
    for b in (0, 2):
        assert float(rotation.angle(guess.camera.quat[b], truth.camera.quat[b])) < 5
        assert float((guess.camera.shift - truth.camera.shift)[b].abs().max()) < 0.03
    estimate, trace = inverter(views)
    assert trace.status() == [OK, UNPOSED, OK]
    assert bool((estimate.image.mask[1] > 0.5).any()), "where there is no pose, there is still a picture"


def test_cameras_may_be_given_or_named_by_a_network():
    prior, _, views, _, encoder = knowing()
    given = EncoderInit(encoder, None)(prior, views, unasked)
    assert given.camera is views.camera
    assert given.posed is None
    regressor = PoseRegressor(backbone(), head_width=8)
    named = EncoderInit(encoder, regressor)(prior, views, unasked)
    expected = regressor(views.rgb * views.mask)
    torch.testing.assert_close(named.camera.to_cmr(), expected.to_cmr())


def test_a_real_encoder_gives_what_each_image_gives_alone():
    generator = Generator(latent_dim=8, style_dim=4, plane_size=8, plane_channels=4, max_channels=8, decoder_width=8)
    prior = FieldPrior(generator)
    _, _, views, _ = photographs(3, 32)
    encoder = Encoder(backbone(), head_width=8, latent_dim=4)
    init = EncoderInit(encoder, PoseSolver(None, threshold=0.4))
    guess = init(prior, views, unasked)
    assert guess.latent.shape == (3, generator.num_styles, 4)
    assert bool((guess.latent == guess.latent[:, :1]).all())
    assert EncoderInit(encoder, None, split=False)(prior, views, unasked).latent.shape == (3, 1, 4)
    for b in range(3):
        alone = init(prior, views[b], unasked)
        torch.testing.assert_close(alone.latent, guess.latent[b : b + 1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.camera.to_cmr(), guess.camera.to_cmr()[b : b + 1], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="styles of 4 numbers; the generator's have 6"):
        EncoderInit(encoder, None)(FieldPrior(Generator(latent_dim=8, style_dim=6, plane_size=8)), views, unasked)


def test_the_mean_style():
    prior, _, views, _ = photographs(2)
    guess = MeanInit(2500, seed=3)(prior, views, unasked)
    rng = torch.Generator().manual_seed(3)
    drawn = torch.cat([prior.sample(count, rng) for count in (1000, 1000, 500)])
    torch.testing.assert_close(guess.latent, drawn.mean(dim=0).expand(2, 3, 4))
    assert guess.camera is views.camera
    with pytest.raises(ValueError, match="count"):
        MeanInit(0)

"""Pivotal tuning: the photograph decides what it shows, the rest stays, and an image's details are its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Guess, Views
from nerfinv.evidence import Looks
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.prior import FieldPrior
from nerfinv.refinement import GeneratorTuning, PivotalTuning
from nerfinv.renderers.volume import VolumeRenderer
from tests.nerfinv.tiny_fields import around, bumpy_balls

SIZE = 16
RENDERER = VolumeRenderer(SIZE, coarse=16, fine=16, background=0.2)
QUICK = {"steps": 12, "points": 96, "views": 3}
HELD = {"palette_pull": 1e9, "palette_rate": 0.0}


class Balls:
    """A prior of a few objects; a latent's first entry says which."""

    latent_shape = (1, 1)
    num_classes = 0

    def __init__(self, scenes: RadianceField) -> None:
        self.scenes = frozen(scenes)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randint(len(self.scenes), (count, 1, 1), generator=rng).float()

    def decode(self, latent: Tensor, label: None) -> RadianceField:
        numbers = latent[:, 0, 0]
        chosen = self.scenes[numbers.nan_to_num(0.0).long()]
        return replace(chosen, planes=chosen.planes + 0 * numbers.view(-1, 1, 1, 1, 1))


def frozen(scenes: RadianceField) -> RadianceField:
    scenes.decoder.requires_grad_(False)
    scenes.density.requires_grad_(False)
    return scenes.detach()


def other(scenes: RadianceField) -> RadianceField:
    """The same balls in other colors, otherwise spread."""
    rng = torch.Generator().manual_seed(5)
    planes = scenes.planes.clone()
    planes[:, :, 3:] += 1.5 * torch.randn(planes[:, :, 3:].shape, generator=rng).to(planes)
    palette = scenes.palette.flip(1) * 0.5 + scenes.palette.new_tensor([0.4, -0.5, 0.3])
    return replace(scenes, planes=planes, palette=palette)


def photographs(scenes: RadianceField, camera: Camera, size: int = SIZE) -> Views:
    renderer = VolumeRenderer(size, coarse=16, fine=16, background=0.2)
    image = renderer(scenes, camera)
    return Views(image.rgb, image.mask, camera, None, torch.arange(len(camera)))


def case(
    count: int = 2, *, perspective: bool = False, dtype: torch.dtype = torch.float32, size: int = SIZE, palette: int = 5
) -> tuple[Balls, Guess, Views]:
    prior = Balls(bumpy_balls(count, palette=palette, dtype=dtype))
    camera = around(count, perspective=perspective, dtype=dtype).detach()
    views = photographs(other(prior.scenes) if palette else prior.scenes, camera, size)
    return prior, Guess(torch.arange(count, dtype=dtype).view(-1, 1, 1), camera), views


def psnr(image: Tensor, wanted: Tensor) -> Tensor:
    return -10 * ((image - wanted) / 2).square().flatten(1).mean(dim=1).log10()


@pytest.mark.parametrize("perspective", [False, True])
@pytest.mark.parametrize("size", [SIZE, 2 * SIZE])
def test_the_picture_comes_to_the_photograph(perspective, size):
    prior, guess, views = case(perspective=perspective, size=size)
    details = PivotalTuning(**QUICK)(prior, RENDERER, guess, views)
    renderer = VolumeRenderer(size, coarse=16, fine=16, background=0.2)
    before = psnr(renderer(prior.scenes, guess.camera).rgb, views.rgb)
    after = psnr(renderer(prior.scenes.with_details(details), guess.camera).rgb, views.rgb)
    assert (after - before > 4).all(), (before, after)


def test_no_steps_give_zeros():
    prior, guess, views = case()
    details = PivotalTuning(steps=0)(prior, RENDERER, guess, views)
    assert {name: value.shape for name, value in details.items()} == {
        "planes": prior.scenes.planes.shape,
        "palette": prior.scenes.palette.shape,
    }
    assert all(value.count_nonzero() == 0 for value in details.values())


def test_details_are_added_and_nothing_else():
    scenes = frozen(bumpy_balls())
    details = {"planes": torch.randn_like(scenes.planes), "palette": torch.randn_like(scenes.palette)}
    sum_ = scenes.with_details(details)
    assert torch.equal(sum_.planes, scenes.planes + details["planes"])
    assert torch.equal(sum_.palette, scenes.palette + details["palette"])
    assert sum_.decoder is scenes.decoder
    assert torch.equal(scenes.with_details({"planes": details["planes"].half()}).palette, scenes.palette)
    assert scenes.with_details({"planes": details["planes"].half()}).planes.dtype == scenes.planes.dtype
    with pytest.raises(ValueError, match="details of pose"):
        scenes.with_details({"pose": details["planes"]})
    with pytest.raises(ValueError, match="no palette"):
        frozen(bumpy_balls(palette=0)).with_details(details)


def test_the_palette_is_found_where_nothing_else_differs():
    scenes = frozen(bumpy_balls(palette=3, dtype=torch.double))
    wanted = scenes.with_palette(scenes.palette.flip(1) * 0.8)
    camera = around(dtype=torch.double, perspective=False).detach()
    views = photographs(wanted, camera)
    views = replace(views, rgb=(views.rgb - 0.2 * (1 - views.mask)) / views.mask.clamp(min=1e-6))
    guess = Guess(torch.arange(2, dtype=torch.double).view(-1, 1, 1), camera)
    tuning = PivotalTuning(**{**QUICK, "steps": 1}, rate=0.0, palette_rate=0.0, palette_pull=1e-9)
    found = scenes.with_details(tuning(Balls(scenes), RENDERER, guess, views))
    torch.testing.assert_close(found.palette, wanted.palette, rtol=0, atol=1e-3)
    assert torch.equal(found.planes, scenes.planes)


def test_the_parts_of_a_photograph_are_its_pixels():
    prior, guess, _ = case(perspective=True, dtype=torch.double)
    camera = replace(guess.camera, center=torch.tensor([[0.1, -0.2], [0.0, 0.3]], dtype=torch.double))
    looks = Looks(RENDERER, camera, photographs(prior.scenes, camera, 2 * SIZE))
    # The photograph is composited once more, which is seen at its soft outline only.
    solid = [(look.mask > 0.999).expand_as(look.rgb) for look in looks.some(4)]
    for look, inner in zip(looks.some(4), solid, strict=True):
        image = look.renderer(prior.scenes, look.camera)
        torch.testing.assert_close(image.mask, look.mask, rtol=0, atol=1e-9)
        torch.testing.assert_close(image.rgb[inner], look.rgb[inner], rtol=0, atol=2e-3)


@pytest.mark.parametrize("palette", [5, 0])
def test_a_batch_gives_what_one_image_at_a_time_gives(palette):
    prior, guess, views = case(3, dtype=torch.double, palette=palette)
    tuning = PivotalTuning(**{**QUICK, "steps": 3})
    together = tuning(prior, RENDERER, guess, views)
    for image in range(3):
        alone = tuning(prior, RENDERER, guess[image], views[image])
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][[image]], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("broken", ["photograph", "latent"])
def test_an_image_that_is_not_finite_stays_as_it_was_and_disturbs_no_other(broken):
    prior, guess, views = case(3, dtype=torch.double)
    tuning = PivotalTuning(**{**QUICK, "steps": 3})
    sound = tuning(prior, RENDERER, guess, views)
    if broken == "photograph":
        rgb = views.rgb.clone()
        rgb[1, :, SIZE // 2] = torch.nan
        views = replace(views, rgb=rgb)
    else:
        latent = guess.latent.clone()
        latent[1] = torch.nan
        guess = replace(guess, latent=latent)
    found = tuning(prior, RENDERER, guess, views)
    for name, value in found.items():
        assert value[1].count_nonzero() == 0
        torch.testing.assert_close(value[[0, 2]], sound[name][[0, 2]], rtol=1e-6, atol=1e-9)


def test_the_more_locality_counts_the_less_changes_elsewhere():
    prior, guess, views = case()
    behind = replace(guess.camera, quat=turned_about(guess.camera.quat))
    unlike = []
    for weight in (0.0, 100.0, 1000.0):
        tuning = PivotalTuning(**{**QUICK, **HELD}, locality=weight, mirror=False)
        scenes = prior.scenes.with_details(tuning(prior, RENDERER, guess, views))
        before, after = RENDERER(prior.scenes, behind), RENDERER(scenes, behind)
        solid = torch.minimum(before.mask, after.mask) > 0.95
        unlike.append(float((after.rgb - before.rgb).square().mul(solid).sum() / solid.sum()))
    assert unlike[0] > 1.3 * unlike[1] > 1.3 * unlike[2]


def test_the_stiffer_the_shape_the_less_it_changes():
    prior, guess, views = case()
    views = replace(views, mask=torch.roll(views.mask, 2, dims=-1), rgb=torch.roll(views.rgb, 2, dims=-1))
    points = (torch.rand(2, 500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * prior.scenes.half_side
    moved = []
    for weight in (0.0, 100.0, 3000.0):
        tuning = PivotalTuning(**QUICK, geometry=weight)
        scenes = prior.scenes.with_details(tuning(prior, RENDERER, guess, views))
        moved.append(float((scenes.value(points) - prior.scenes.value(points)).square().mean()))
    assert moved[0] > 1.3 * moved[1] > 1.3 * moved[2]


def test_the_mirrored_side_takes_the_colors_that_are_seen():
    prior, guess, views = case(1)
    aside = rotation.from_axis_angle(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([60.0]))
    camera = replace(guess.camera, quat=aside)
    guess, views = replace(guess, camera=camera), photographs(other(prior.scenes), camera)
    wanted = views.mirror()
    off = []
    for mirror in (False, True):
        tuning = PivotalTuning(**QUICK, locality=10.0, mirror=mirror)
        scenes = prior.scenes.with_details(tuning(prior, RENDERER, guess, views))
        off.append(float((RENDERER(scenes, wanted.camera).rgb - wanted.rgb).square().mean()))
    assert off[1] < 0.8 * off[0]


def generated(count: int = 2, dtype: torch.dtype = torch.float32) -> tuple[FieldPrior, Guess, Views]:
    """A generator that has learned nothing, and photographs of something else."""
    torch.manual_seed(0)
    prior = FieldPrior(Generator(
        latent_dim=5, style_dim=6, palette_size=3, plane_size=8, plane_channels=4, max_channels=6, decoder_width=8,
        scene_range=1.2,
    ).to(dtype))  # fmt: skip
    camera = around(count, perspective=False, dtype=dtype).detach()
    guess = Guess(prior.sample(count, torch.Generator().manual_seed(0)), camera)
    return prior, guess, photographs(frozen(bumpy_balls(count, dtype=dtype)), camera)


@pytest.mark.parametrize("tuning", [PivotalTuning, GeneratorTuning])
def test_the_generator_is_left_alone(tuning):
    prior, guess, views = generated()
    before = {name: value.clone() for name, value in prior.generator.state_dict().items()}
    latent = guess.latent.clone().requires_grad_()
    details = tuning(**QUICK)(prior, RENDERER, replace(guess, latent=latent), views)
    assert details["planes"].count_nonzero() > 0
    assert not any(value.requires_grad for value in details.values())
    assert latent.grad is None
    assert all(weight.grad is None for weight in prior.generator.parameters())
    assert not any(weight.requires_grad for weight in prior.generator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in prior.generator.state_dict().items())


def test_bent_weights_bring_the_picture_to_the_photograph_too():
    prior, guess, views = generated()
    details = GeneratorTuning(**{**QUICK, "steps": 20, "decay": 0.0}, rate=0.02, geometry=0.0)(
        prior, RENDERER, guess, views
    )
    found = prior.decode(guess.latent, None)
    before, after = (
        psnr(RENDERER(scenes, guess.camera).rgb, views.rgb) for scenes in (found, found.with_details(details))
    )
    assert (after > before).all()
    assert (after - before).max() > 1


def test_each_photograph_bends_weights_of_its_own_and_a_broken_one_none():
    prior, guess, views = generated(3, torch.double)
    tuning = GeneratorTuning(**{**QUICK, "steps": 3})
    together = tuning(prior, RENDERER, guess, views)
    for image in range(3):
        alone = tuning(prior, RENDERER, guess[image], views[image])
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][[image]], rtol=1e-6, atol=1e-9)
    rgb = views.rgb.clone()
    rgb[1, :, SIZE // 2] = torch.nan
    found = tuning(prior, RENDERER, guess, replace(views, rgb=rgb))
    for name, value in found.items():
        assert value[1].count_nonzero() == 0
        torch.testing.assert_close(value[[0, 2]], together[name][[0, 2]], rtol=1e-6, atol=1e-9)


def turned_about(quat: Tensor) -> Tensor:
    """The same object from behind."""
    turn = rotation.from_axis_angle(quat.new_tensor([[0.0, 1.0, 0.0]]), quat.new_tensor([180.0]))
    return rotation.multiply(turn.expand(len(quat), 4), quat)

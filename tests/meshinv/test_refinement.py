"""The photograph decides what is visible: known textures found again, sides kept apart, seams, and what goes wrong."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.psnr import psnr
from invkit.types import Guess, Views
from meshinv.membrane import continued, tint
from meshinv.mesh import TexturedMesh
from meshinv.refinement import TextureRefinement, inside, resampled
from meshinv.renderers.reference import MeshRenderer
from meshinv.renderers.uv import visible_texels
from meshinv.template import Template, mirror_maps

SIZE = 64
RENDERER = MeshRenderer(128)
TEMPLATE = Template()
BODY = 0.8 * TEMPLATE.vertices * torch.tensor([0.6, 1.0, 0.7])
# Nearly from the side +x: one half of the body is seen, and next to nothing of the other.
SIDE = rotation.from_axis_angle(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([80.0]))


@dataclass
class Bodies:
    """A prior that makes one body with a given texture for each latent."""

    texture: Tensor
    template: Template = TEMPLATE
    latent_shape: tuple[int, ...] = (1,)
    num_classes: int = 0

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 1, generator=rng)

    def decode(self, latent: Tensor, label: Tensor | None) -> TexturedMesh:
        bodies = BODY * (1 + 0.2 * latent[:, :, None])
        return TexturedMesh(bodies, self.texture.expand(len(latent), -1, -1, -1), self.template)


def texture(*, symmetric: bool, size: int = SIZE) -> Tensor:
    """Smooth colors, somewhat different everywhere."""
    turn = (torch.arange(size) + 0.5) / size * 2 * math.pi
    height = (torch.arange(size) / (size - 1) * math.pi)[:, None]
    around = turn.sin() if symmetric else (turn + 0.4).cos()  # u -> 1/2 - u leaves the sine as it is
    maps = [0.6 * around * height.sin(), 0.7 * height.cos().expand(size, size), 0.4 * (2 * height + around).sin()]
    return torch.stack(maps)[None]


def camera(count: int = 1) -> Camera:
    return Camera(SIDE.expand(count, 4), torch.ones(count), torch.zeros(count, 2), torch.zeros(count))


def guess(count: int = 1) -> Guess:
    return Guess(torch.linspace(0, 0.5, count)[:, None], camera(count))


def photograph(prior: Bodies, found: Guess, background: float = 0.0) -> Views:
    image = MeshRenderer(256)(prior.decode(found.latent, None), found.camera)
    count = len(found.latent)
    return Views(image.over(background), image.mask, found.camera, None, torch.arange(count))


def refined(wrong: Tensor, views: Views, found: Guess, **settings) -> Tensor:
    return TextureRefinement(**{"size": SIZE, **settings})(Bodies(wrong), RENDERER, found, views)["texture"]


def confidence(found: Guess, views: Views, **settings) -> Tensor:
    """How far each texel is believed by itself."""
    mesh = Bodies(torch.zeros(1, 3, SIZE, SIZE)).decode(found.latent, None)
    return TextureRefinement(size=SIZE, **settings).seen(mesh, found.camera, views.rgb, views.mask)[1]


WRONG = torch.tensor([0.3, -0.4, 0.1]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)


def test_what_is_seen_is_found_again_and_what_is_not_keeps_the_generators_tint_out():
    truth = texture(symmetric=False)
    views = photograph(Bodies(truth), guess())
    known = confidence(guess(), views) > 0.99
    assert 0.1 < known.float().mean() < 0.5
    found = refined(WRONG, views, guess(), mirror=None)
    assert ((found - truth).abs() * known).max() < 0.03
    assert ((WRONG - truth).abs() * known).max() > 0.5


def test_the_far_side_is_the_mirror_image_where_objects_are_symmetric_and_it_is_asked_for():
    truth = texture(symmetric=True)
    torch.testing.assert_close(mirror_maps(truth), truth)
    views = photograph(Bodies(truth), guess())
    alpha = confidence(guess(), views)
    far = (mirror_maps(alpha) > 0.99) & (alpha < 0.01)
    assert far.float().mean() > 0.1

    def error(found: Tensor) -> float:
        return ((found - truth).abs() * far).sum().item() / far.sum().item() / 3

    mirrored = refined(WRONG, views, guess(), mirror=1.0)
    alone = refined(WRONG, views, guess(), mirror=None)
    assert error(mirrored) < 0.02 < 0.1 < error(alone)
    lopsided = Bodies(WRONG, Template(symmetric=False))
    asked, not_asked = (
        TextureRefinement(size=SIZE, mirror=mirror)(lopsided, RENDERER, guess(), views)["texture"]
        for mirror in (1.0, None)
    )
    assert torch.equal(asked, not_asked)


def test_mirrors_off_leave_the_far_side_of_a_lopsided_object_to_the_generator():
    """With a short reach; the colors of the near side do not come through."""
    truth = texture(symmetric=False)
    views = photograph(Bodies(truth), guess())
    alpha = confidence(guess(), views)
    far = (mirror_maps(alpha) > 0.99) & (alpha < 0.01)
    kept = refined(WRONG, views, guess(), mirror=None, reach=0.1)
    turned = refined(WRONG, views, guess(), mirror=1.0, reach=0.1)
    assert ((kept - WRONG).abs() * far).sum() < 0.1 * ((turned - WRONG).abs() * far).sum()


def test_the_picture_gets_nearer_to_the_photograph():
    prior, found = Bodies(texture(symmetric=False)), guess()
    views = photograph(prior, found)
    target = MeshRenderer(128)(prior.decode(found.latent, None), found.camera).rgb
    before = Bodies(WRONG).decode(found.latent, None)
    after = before.with_details({"texture": refined(WRONG, views, found)})
    pictures = [RENDERER(mesh, found.camera).rgb for mesh in (before, after)]
    assert psnr(pictures[1], target) > psnr(pictures[0], target) + 10


def test_the_background_never_gets_onto_the_object():
    """A mesh larger than the photographed object, before magenta: green would have to fall."""
    object_ = torch.full((1, 3, SIZE, SIZE), 0.2)
    small = Guess(torch.tensor([[-0.5]]), camera())
    views = photograph(Bodies(object_), small)
    magenta = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    views = replace(views, rgb=views.rgb * views.mask + magenta * (1 - views.mask))
    alpha = confidence(guess(), views)
    assert 0.02 < alpha.mean() < confidence(guess(), photograph(Bodies(object_), guess())).mean()
    found = refined(object_, views, guess())
    assert (found - object_).abs().max() < 1e-4


def test_images_do_not_affect_each_other_and_a_spoiled_one_keeps_the_generators_texture():
    truth, found = texture(symmetric=False), guess(4)
    views = photograph(Bodies(truth), found)
    shift = found.camera.shift.clone()
    shift[1] = torch.nan
    shift[2] = 5.0  # nowhere in the picture
    found = replace(found, camera=replace(found.camera, shift=shift))
    together = refined(WRONG, views, found)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], refined(WRONG, views[i], found[i]), atol=1e-5, rtol=0)
    assert torch.equal(together[1:3], WRONG.expand(2, -1, -1, -1))
    assert (together[[0, 3]] - WRONG).abs().amax((1, 2, 3)).min() > 0.3


def test_an_empty_mask_changes_nothing():
    views = photograph(Bodies(texture(symmetric=False)), guess())
    found = refined(WRONG, replace(views, mask=torch.zeros_like(views.mask)), guess())
    assert torch.equal(found, WRONG)


def test_what_is_hidden_gets_nothing_of_what_hides_it():
    """A body with a narrow waist, seen almost from its end: parts that face the camera are behind others."""
    waist = BODY.clone()
    middle = waist[:, 1].abs() < 0.25
    waist[middle] *= torch.tensor([0.3, 1.0, 0.3])
    mesh = TexturedMesh(waist[None], torch.zeros(1, 3, SIZE, SIZE), TEMPLATE)
    looking = replace(camera(), quat=rotation.from_axis_angle(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([60.0])))
    stage = TextureRefinement(size=SIZE)
    image = MeshRenderer(256)(mesh, looking)
    alpha = stage.seen(mesh, looking, image.rgb, image.mask)[1]
    stage._in_front = lambda *_: torch.ones(())
    facing = stage.seen(mesh, looking, image.rgb, image.mask)[1]
    # Another way to tell: texels that some pixel of a fine rendering reads.
    read = torch.nn.functional.max_pool2d(visible_texels(mesh, looking, 1024).float(), 5, stride=1, padding=2) > 0
    assert ((facing > 0.05) & ~read).sum() > 50
    assert ((alpha > 0.05) & ~read).sum() == 0


def test_no_seam_is_left():
    """A generator that is off by one color everywhere: its texture moves as a whole, and no step remains."""
    truth = texture(symmetric=False)
    views = photograph(Bodies(truth), guess())
    off = truth + torch.tensor([0.3, -0.2, 0.2]).view(1, 3, 1, 1)
    found = refined(off, views, guess(), mirror=None)

    def step(maps: Tensor) -> float:
        return max(maps.diff(dim=2)[:, :, 4:-4].abs().max().item(), maps.diff(dim=3)[:, :, 4:-4].abs().max().item())

    assert step(found) < step(truth) + 0.02
    alpha = confidence(guess(), views)
    pasted = torch.where(alpha > 0.5, truth, off)
    assert step(pasted) > step(truth) + 0.1
    assert (found - truth).abs().mean() < 0.2 * (off - truth).abs().mean()


def test_the_membrane_is_harmonic():
    """Known at both poles' rings only: between them it is a multiple of ln tan(theta / 2), the harmonic function."""
    side = 64
    alpha = torch.zeros(1, 1, side, side)
    alpha[:, :, :8] = alpha[:, :, -8:] = 1
    theta = (torch.arange(side) + 0.5) / side * math.pi
    harmonic = (theta / 2).tan().log().view(1, 1, -1, 1).expand(1, 1, side, side)
    found = continued(harmonic * alpha, alpha)
    assert (found - harmonic)[:, :, 10:-10].abs().max() < 0.05
    assert continued(torch.full_like(alpha, 0.7), alpha * 0.3).sub(0.7).abs().max() < 1e-5


def test_a_short_reach_fades():
    alpha = torch.zeros(1, 1, 64, 64)
    alpha[..., :8, :] = 1
    near, far = continued(alpha, alpha, 0.3), continued(alpha, alpha)
    assert far[0, 0, -1].min() > 0.99
    assert near[0, 0, -1].max() < 0.05
    assert 0.2 < near[0, 0, 14].mean() < 0.6  # after 0.3 radians


def test_a_tint_is_what_is_left_of_broad_differences():
    alpha = torch.ones(1, 1, 64, 64)
    stripes = torch.ones(64).view(1, 1, 1, -1).repeat(1, 1, 64, 1)
    stripes[..., ::2] = -1
    torch.testing.assert_close(tint(stripes + 0.3, alpha), torch.full_like(alpha, 0.3))


def test_a_band_within_the_outline_is_not_believed():
    mask = torch.zeros(1, 1, 100, 100)
    mask[:, :, 20:80, 20:80] = 1
    believed = inside(mask, 0.03, 0.02)
    assert torch.equal(believed > 0, inside(mask, 0.03, 0.0) > 0)
    assert (believed > 0)[0, 0, 50].nonzero().flatten().tolist() == list(range(23, 77))
    assert believed[0, 0, 50, 22:27].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_resampled_texture_looks_the_same(symmetric):
    template = Template(symmetric=symmetric)
    mesh = TexturedMesh(BODY[None], texture(symmetric=False, size=32), template)
    larger = mesh.with_details({"texture": resampled(mesh.texture, template, 128)})
    pictures = [RENDERER(each, camera()).rgb for each in (mesh, larger)]
    assert (pictures[0] - pictures[1]).abs().max() < 0.02


def test_details_replace_the_texture():
    mesh = Bodies(WRONG).decode(torch.zeros(2, 1), None)
    details = torch.rand(2, 3, 8, 8)
    assert mesh.with_details({"texture": details}).texture is details
    assert mesh.with_details({}) is mesh
    with pytest.raises(ValueError, match="1 textures for 2 meshes"):
        mesh.with_details({"texture": details[:1]})
    with pytest.raises(ValueError, match="given color"):
        mesh.with_details({"color": details})


@pytest.mark.parametrize("wrong", [{"size": 100}, {"full_angle": 80.0}, {"mirror": 1.5}, {"rim": -0.1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        TextureRefinement(**wrong)

"""Where a search without a camera begins: boxes by brute force, and the view a bird of sticks was really seen from."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.evaluation.viewpoints import azimuth_ring
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.types import Guess, Views
from meshinv.init import BestOfViews, filling, silhouette_box
from meshinv.losses.chamfer_mask import ChamferMask
from meshinv.mesh import TexturedMesh
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template

SIZE = 48


class Birds:
    """Ellipsoids along y with the head (-y) raised; the latent makes them wider, the class twice as high."""

    latent_shape = (1,)

    def __init__(self, num_classes: int = 0) -> None:
        self.num_classes = num_classes
        self.template = Template(rings=8)
        self.decoded = 0

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 1, generator=rng)

    def decode(self, latent: Tensor, label: Tensor | None) -> TexturedMesh:
        self.decoded += len(latent)
        x, y, z = self.template.vertices.expand(len(latent), -1, 3).unbind(dim=2)
        high = torch.ones(len(latent)) if label is None else 1.0 + label
        vertices = torch.stack(
            [(0.25 + 0.05 * latent.tanh()) * x, 0.8 * y, high[:, None] * (0.2 * z + 0.3 * (-y - 0.4).clamp_min(0))],
            dim=2,
        )
        return TexturedMesh(vertices, torch.zeros(len(latent), 3, 8, 8), self.template)


def photographs(prior: Birds, camera: Camera, label: Tensor | None = None) -> Views:
    """Birds of different widths; the camera that comes with them says nothing about the true one."""
    latent = torch.linspace(-1, 1, len(camera))[:, None]
    image = MeshRenderer(SIZE)(prior.decode(latent, label), camera)
    nothing = Camera.from_cmr(torch.tensor([[0.1, 0.7, -0.7, 1.0, 0, 0, 0]])).repeat(len(camera))
    return Views(image.rgb, image.mask, nothing, label, torch.arange(len(camera)))


def search(prior: Birds) -> Inverter:
    return Inverter(
        prior, MeshRenderer(SIZE), BestOfViews(2), Objective({"mask": WeightedTerm(1.0, ChamferMask(half_pixel=True))})
    )


def ring(azimuths: list[int], inclination: float) -> Camera:
    """Of twelve, off the middle and of other sizes."""
    camera = azimuth_ring(12, default_orientation=inclination)[azimuths]
    places = torch.tensor([[0.1, -0.2], [-0.15, 0.05], [0.0, 0.2], [0.2, 0.1]])[: len(azimuths)]
    return replace(camera, shift=places, scale=torch.tensor([0.5, 0.9, 0.7, 0.6])[: len(azimuths)])


# ---- Boxes -----------------------------------------------------------------------------------------------------------


def test_the_box_of_a_silhouette_by_brute_force(rng):
    masks = (torch.rand(6, 1, 9, 14, generator=rng) > 0.93).float()
    masks[0] = 0
    masks[1] = 1
    masks[2] = 0
    masks[2, 0, 8, 13] = 1
    low, high = silhouette_box(masks)
    for mask, first, last in zip(masks[:, 0], low, high, strict=True):
        pixels = [(x, y) for y in range(9) for x in range(14) if mask[y, x] > 0.5] or [(0, 0), (13, 8)]
        for axis, size in ((0, 14), (1, 9)):
            places = [pixel[axis] for pixel in pixels]
            assert first[axis].item() == pytest.approx(2 * min(places) / size - 1, abs=1e-6)
            assert last[axis].item() == pytest.approx(2 * (max(places) + 1) / size - 1, abs=1e-6)


def test_an_object_fills_the_box_it_is_given(rng):
    points = torch.randn(3, 40, 3, generator=rng)
    low, high = torch.tensor([[-0.5, -0.2], [0.0, 0.1], [-0.9, -0.9]]), torch.tensor([[0.1, 0.4], [0.3, 0.9], [0.9, 0]])
    quat = rotation.random(3, rng)
    seen = filling(points, quat, low, high).project(points)[..., :2]
    first, last = seen.min(dim=1).values, seen.max(dim=1).values
    torch.testing.assert_close((first + last) / 2, (low + high) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close((last - first).prod(dim=1), (high - low).prod(dim=1), rtol=1e-4, atol=0)


# ---- Views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inclination", [0.0, 30.0, 60.0])
def test_the_view_a_photograph_was_taken_from_is_kept_and_so_is_its_mirror_image_in_depth(inclination):
    """From azimuths a and -a a symmetric object has one outline: which it was, the texture has to tell."""
    prior, azimuths = Birds(), [0, 1, 5, 10]
    true = ring(azimuths, inclination)
    views = photographs(prior, true)
    guess = BestOfViews(4, keep=6)(prior, views, search(prior).score(views))
    assert len(guess) == 24
    for b, azimuth in enumerate(azimuths):
        kept = guess[6 * b : 6 * b + 6].camera
        for view in (azimuth, -azimuth % 12):
            quat = azimuth_ring(12, default_orientation=inclination).quat[view]
            off, at = rotation.angle(kept.quat, quat.expand(6, 4)).min(dim=0)
            assert off < 1e-2
            assert kept.scale[at].item() == pytest.approx(true.scale[b].item(), rel=0.15)
            torch.testing.assert_close(kept.shift[at], true.shift[b], rtol=0, atol=0.05)


def test_guesses_are_of_different_views_best_first_and_the_best_there_are():
    prior = Birds()
    views = photographs(prior, ring([1, 4], 30.0))
    score = search(prior).score(views)
    init = BestOfViews(3, keep=7, azimuths=5, inclinations=(10.0, 50.0), batch_size=4, seed=3)
    guess = init(prior, views, score)
    value = score(guess).view(2, 7)
    latents = prior.sample(3, torch.Generator().manual_seed(3))
    rotations = Camera.cat([azimuth_ring(5, default_orientation=degrees) for degrees in (10.0, 50.0)]).quat
    for b in range(2):
        best, low, high = [], *silhouette_box(views.mask[b : b + 1])
        for quat in rotations:
            cameras = [filling(prior.decode(z[None], None).vertices, quat[None], low, high) for z in latents]
            own = search(prior).score(views[b])
            best.append(min(own(Guess(z[None], c, None)).item() for z, c in zip(latents, cameras, strict=True)))
        torch.testing.assert_close(value[b], torch.tensor(sorted(best)[:7]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_batch_gives_what_one_image_at_a_time_gives(num_classes):
    prior = Birds(num_classes)
    label = torch.tensor([2, 0, 1]) if num_classes else None
    views = replace(photographs(prior, ring([0, 4, 7], 30.0), label), label=None)
    inverter = search(prior)
    init = BestOfViews(5, keep=4, azimuths=6, inclinations=(30.0,), batch_size=7)
    together = init(prior, views, inverter.score(views))
    for b in range(3):
        own = inverter.score(views[b])
        alone, mine = init(prior, views[b], own), together[4 * b : 4 * b + 4]
        # Rounding decides between latents and between views that look the same.
        torch.testing.assert_close(own(alone), own(mine), rtol=1e-5, atol=0)
        assert num_classes == 0 or torch.equal(alone.label, mine.label)


def test_known_classes_are_kept_and_unknown_ones_are_searched():
    prior = Birds(3)
    label = torch.tensor([2, 0])
    known = photographs(prior, ring([0, 5], 30.0), label)
    init = BestOfViews(12, keep=3, inclinations=(30.0,))
    guess = init(prior, known, search(prior).score(known))
    assert guess.label.tolist() == [2, 2, 2, 0, 0, 0]
    blind = replace(known, label=None)
    guess = init(prior, blind, search(prior).score(blind))
    assert guess.label[[0, 3]].tolist() == [2, 0]  # three times as high is told from the outline
    some = BestOfViews(12, keep=3, inclinations=(30.0,), classes=[0, 1])(prior, blind, search(prior).score(blind))
    assert set(some.label.tolist()) <= {0, 1}


def test_a_candidate_that_is_not_a_number_never_wins():
    prior = Birds()
    views = photographs(prior, ring([0], 30.0))

    def score(guess: Guess) -> Tensor:
        """Finite in one view alone."""
        there = rotation.angle(guess.camera.quat, azimuth_ring(12)[[2]].quat.expand(len(guess), 4)) < 1e-2
        return torch.where(there, 1e3, torch.nan)

    guess = BestOfViews(2, keep=2)(prior, views, score)
    torch.testing.assert_close(guess.camera.quat[:1], azimuth_ring(12)[[2]].quat)
    assert bool(guess.camera.to_cmr().isfinite().all())


def test_each_latent_is_decoded_once_for_all_views():
    prior = Birds()
    views = photographs(prior, ring([0, 1], 30.0))
    prior.decoded = 0
    BestOfViews(6, keep=2, batch_size=4)(prior, views, lambda guess: guess.latent[:, 0])
    assert prior.decoded == 2 * 6 + 2 * 2  # and the kept ones again


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"count": 0}, "at least 1"),
        ({"azimuths": 0}, "at least 1"),
        ({"inclinations": ()}, "at least 1"),
        ({"keep": 37}, "from 1 to the 36 views"),
        ({"keep": 0}, "from 1 to the 36 views"),
        ({"classes": []}, "at least one class"),
    ],
)
def test_impossible_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        BestOfViews(**options)


def test_a_class_the_prior_does_not_have_is_refused():
    prior = Birds(2)
    views = photographs(prior, ring([0], 30.0), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"class 2 .* 0 to 1"):
        BestOfViews(1, keep=1)(prior, replace(views, label=torch.tensor([2])), search(prior).score(views))
    with pytest.raises(ValueError, match=r"classes \[5\]"):
        BestOfViews(1, keep=1, classes=[5])(prior, replace(views, label=None), search(prior).score(views))

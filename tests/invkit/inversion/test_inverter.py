"""The search on discs: it finds them, a batch is its images one by one, and a broken image breaks alone."""

from dataclasses import replace

import pytest
import torch

from invkit.geometry import rotation
from invkit.inversion.inverter import Inverter, Stage, refuse_unusable
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import DIVERGED, INVISIBLE, OK
from invkit.losses.latent import gaussian_prior
from invkit.types import Estimate, Guess, Views
from meshinv.init import BestOfN
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, colors, masks, photograph

STAGES = (Stage(60, 0.1, 0.02), Stage(40, 0.02, 0.004))


def objective(**more) -> Objective:
    terms = {"color": 1.0, "mask": 2.0}
    functions = {"color": colors, "mask": masks, **more}
    return Objective({name: WeightedTerm(terms.get(name, 1e-4), function) for name, function in functions.items()})


def scene(count: int, seed: int = 0, num_classes: int = 0) -> tuple[DiscPrior, Views, Guess]:
    rng = torch.Generator().manual_seed(seed)
    prior = DiscPrior(num_classes)
    label = torch.randint(num_classes, (count,), generator=rng) if num_classes else None
    truth = Guess(prior.sample(count, rng), cameras(count, rng), label)
    views = photograph(truth, prior)
    off = 0.15 * torch.randn(count, 2, generator=rng)
    return prior, replace(views, camera=replace(views.camera, shift=views.camera.shift + off)), truth


def inverter(prior: DiscPrior, stages=STAGES, goal: Objective | None = None, **options) -> Inverter:
    return Inverter(prior, DiscRenderer(), BestOfN(8), goal or objective(), stages, **options)


def test_discs_are_found_with_their_cameras():
    prior, views, truth = scene(5)
    estimate, trace = inverter(prior)(views)
    assert trace.status() == [OK] * 5
    assert bool((trace.total[:, -1] < 0.2 * trace.total[:, 0]).all())
    torch.testing.assert_close(estimate.camera.shift, truth.camera.shift, rtol=0, atol=0.02)
    color = prior.decode(truth.latent, None).color
    torch.testing.assert_close(estimate.scene.color, color, rtol=0, atol=0.1)
    assert not estimate.latent.requires_grad
    assert not estimate.image.rgb.requires_grad


def test_the_trace_has_every_term_before_each_step_and_at_the_end():
    prior, views, _ = scene(3)
    estimate, trace = inverter(prior, (Stage(4, 0.1, 0.01), Stage(3, 0.05, 0.01)))(views)
    assert set(trace.terms) == {"color", "mask"}
    assert trace.total.shape == trace.iou.shape == (3, 8)
    torch.testing.assert_close(trace.total, trace.terms["color"] + trace.terms["mask"])
    # What is returned is what the last column measured, after the last step.
    torch.testing.assert_close(trace.terms["mask"][:, -1], 2 * masks(estimate, views))
    again = DiscRenderer()(prior.decode(estimate.latent, None), estimate.camera)
    torch.testing.assert_close(again.rgb, estimate.image.rgb)
    first = DiscRenderer()(prior.decode(trace.start.latent, None), trace.start.camera)
    torch.testing.assert_close(2 * (first.mask - views.mask).square().flatten(1).mean(1), trace.terms["mask"][:, 0])


def test_a_batch_gives_what_one_image_at_a_time_gives():
    prior, views, _ = scene(4, num_classes=3)
    goal = objective(prior=gaussian_prior)
    together, trace = inverter(prior, (Stage(25, 0.05, 0.01),), goal)(views)
    for b in range(4):
        alone, own = inverter(prior, (Stage(25, 0.05, 0.01),), goal)(views[b])
        torch.testing.assert_close(alone.latent, together.latent[b : b + 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.camera.to_cmr(), together.camera.to_cmr()[b : b + 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(own.total, trace.total[b : b + 1], rtol=0, atol=1e-5)


def test_the_first_step_of_adam_moves_every_number_by_its_rate():
    prior, views, _ = scene(2)
    start = Guess(torch.zeros(2, 4) + 0.3, views.camera, None)
    estimate, _ = inverter(prior, (Stage(1, 0.05, 0.01),), normalize_quaternion=False).refine(start, views)
    torch.testing.assert_close((estimate.latent - start.latent).abs(), torch.full((2, 4), 0.05), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        (estimate.camera.shift - start.camera.shift).abs(), torch.full((2, 2), 0.01), rtol=1e-3, atol=0
    )
    half, _ = inverter(prior, (Stage(1, 0.05, 0.01),), warm_up=2).refine(start, views)
    torch.testing.assert_close((half.latent - start.latent).abs(), torch.full((2, 4), 0.025), rtol=1e-3, atol=0)


def test_the_schedule_of_rates():
    prior, _, _ = scene(1)
    stages = (Stage(3, 1.0, 0.1), Stage(2, 0.5, 0.05, 1e-9))
    each = list(inverter(prior, stages, warm_up=4)._each_step())
    assert [stage.latent_epsilon for stage in each] == [1e-8, 1e-8, 1e-8, 1e-9, 1e-9]
    found = [(stage.latent_rate, stage.camera_rate) for stage in each]
    expected = [(0.25, 0.025), (0.5, 0.05), (0.75, 0.075), (0.5, 0.05), (0.5, 0.05)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_rotations_stay_rotations_unless_asked_otherwise():
    prior, views, _ = scene(3)
    kept, _ = inverter(prior, (Stage(20, 0.1, 0.05),))(views)
    torch.testing.assert_close(kept.camera.quat.norm(dim=1), torch.ones(3))
    drifting, _ = inverter(prior, (Stage(20, 0.1, 0.05),), normalize_quaternion=False)(views)
    assert bool(((drifting.camera.quat.norm(dim=1) - 1).abs() > 1e-3).any())


def test_a_fixed_camera_stays_what_it_was():
    prior, views, _ = scene(3)
    estimate, _ = inverter(prior, optimize_camera=False)(views)
    assert torch.equal(estimate.camera.to_cmr(), views.camera.to_cmr())


def test_an_image_that_breaks_breaks_alone():
    prior, views, _ = scene(3)

    def trap(estimate: Estimate, target: Views) -> torch.Tensor:
        # Not a number for image 1 once its disc has moved by more than 0.03; nothing for the others.
        moved = (estimate.camera.shift - target.camera.shift).norm(dim=1) > 0.03
        return torch.where(moved & (target.index == 1), torch.nan, 0.0) + 0 * estimate.latent[:, 0]

    estimate, trace = inverter(prior, goal=objective(trap=trap))(views)
    healthy, _ = inverter(prior)(views)
    assert trace.status() == [OK, DIVERGED, OK]
    for b in (0, 2):
        torch.testing.assert_close(estimate.latent[b], healthy.latent[b], rtol=0, atol=1e-5)
    assert bool(estimate.latent.isfinite().all())
    assert bool(trace.total[:, -1].isfinite().all()), "the last finite state is what is kept"
    moved = (estimate.camera.shift - views.camera.shift).norm(dim=1)[1]
    assert 0 < moved <= 0.03


def test_a_gradient_that_is_not_finite_stops_its_image_alone():
    prior, views, _ = scene(2)

    def trap(estimate: Estimate, target: Views) -> torch.Tensor:
        # The square root has an infinite slope at 0, where the value itself is fine.
        return torch.where(target.index == 0, estimate.latent[:, 0] * 0, 0.5 * estimate.latent[:, 0] ** 2 * 0).sqrt()

    estimate, trace = inverter(prior, (Stage(5, 0.1, 0.01),), objective(trap=trap))(views)
    assert trace.status() == [DIVERGED, DIVERGED]
    assert torch.equal(estimate.latent, trace.start.latent)


def test_an_image_that_never_was_finite_keeps_its_start():
    prior, views, _ = scene(2)

    def trap(estimate: Estimate, target: Views) -> torch.Tensor:
        return torch.where(target.index == 0, torch.nan, 0.0) + 0 * estimate.latent[:, 0]

    estimate, trace = inverter(prior, (Stage(3, 0.1, 0.01),), objective(trap=trap))(views)
    assert trace.status() == [DIVERGED, OK]
    assert torch.equal(estimate.latent[0], trace.start.latent[0])


def test_an_object_out_of_the_picture_is_told_of():
    prior, views, _ = scene(2)
    camera = replace(views.camera, shift=views.camera.shift + torch.tensor([[0.0, 0.0], [400.0, 0.0]]))
    _, trace = inverter(prior, (Stage(1, 0.1, 0.01),))(replace(views, camera=camera))
    assert trace.status() == [OK, INVISIBLE]


def test_unusable_images_are_refused_by_number_and_reason():
    _, views, _ = scene(6)
    refuse_unusable(views)
    rgb, mask = views.rgb.clone(), views.mask.clone()
    quat, scale = views.camera.quat.clone(), views.camera.scale.clone()
    rgb[1, 0, 2, 2] = float("nan")
    mask[2] = 0
    quat[3, 0] = float("inf")
    quat[4] = 0
    scale[5] = -1
    broken = replace(views, rgb=rgb, mask=mask, camera=replace(views.camera, quat=quat, scale=scale))
    with pytest.raises(ValueError) as caught:
        refuse_unusable(broken)
    text = str(caught.value)
    for number, reason in ((1, "picture"), (2, "mask is empty"), (3, "camera"), (4, "rotation is zero"), (5, "scale")):
        assert any(part.startswith(f"image {number}") and reason in part for part in text.split("; "))
    assert "image 0" not in text


# ---- Best of N -------------------------------------------------------------------------------------------------------


def test_the_best_latent_is_the_best_by_brute_force():
    prior, views, _ = scene(4)
    search = inverter(prior)
    guess = BestOfN(13, batch_size=10, seed=5)(prior, views, search.score(views))
    latents = prior.sample(13, torch.Generator().manual_seed(5))
    for b in range(4):
        scores = [float(search.score(views[b])(Guess(latent[None], views.camera[b], None))) for latent in latents]
        assert torch.equal(guess.latent[b], latents[scores.index(min(scores))])
    assert torch.equal(guess.camera.to_cmr(), views.camera.to_cmr())
    alone = BestOfN(13, batch_size=3, seed=5)(prior, views[2], search.score(views[2]))
    assert torch.equal(alone.latent, guess.latent[2:3])


def test_known_classes_are_kept_and_unknown_ones_are_searched():
    prior, views, _ = scene(6, num_classes=3)
    known = BestOfN(4)(prior, views, inverter(prior).score(views))
    assert torch.equal(known.label, views.label)
    blind = replace(views, label=None)
    guess = BestOfN(300)(prior, blind, inverter(prior).score(blind))
    assert bool(((guess.label >= 0) & (guess.label < 3)).all())
    assert len(set(guess.label.tolist())) > 1
    # With as many guesses the found disc is about as good as the one of the true class.
    value = inverter(prior).score(blind)(guess)
    with_truth = inverter(prior).score(blind)(BestOfN(300)(prior, views, inverter(prior).score(views)))
    assert bool((value < with_truth + 0.05).all())


def test_only_the_classes_named_are_tried():
    prior, views, _ = scene(6, num_classes=3)
    blind = replace(views, label=None)
    guess = BestOfN(60, classes=[0, 2])(prior, blind, inverter(prior).score(blind))
    assert set(guess.label.tolist()) <= {0, 2}
    known = BestOfN(4, classes=[0])(prior, views, inverter(prior).score(views))
    assert torch.equal(known.label, views.label)  # a known class is not up for choice
    with pytest.raises(ValueError, match=r"classes \[0, 3\]: the prior has classes 0 to 2"):
        BestOfN(4, classes=[0, 3])(prior, blind, inverter(prior).score(blind))


def test_a_class_the_prior_does_not_have_is_refused():
    prior, views, _ = scene(2, num_classes=3)
    with pytest.raises(ValueError, match=r"class 3 .* 0 to 2"):
        inverter(prior)(replace(views, label=torch.tensor([1, 3])))


def test_a_candidate_that_is_not_a_number_never_wins():
    prior, views, _ = scene(2)
    values = iter([torch.tensor([float("nan"), 1.0, 3.0, float("nan")]), torch.tensor([5.0, 0.5, 0.1, float("nan")])])
    guess = BestOfN(4, batch_size=4)(prior, views, lambda guess: next(values))
    latents = prior.sample(4, torch.Generator().manual_seed(1234))
    assert torch.equal(guess.latent, torch.stack([latents[3], latents[2]]))


def test_each_guess_is_decoded_once():
    prior, views, _ = scene(3)
    search = inverter(prior)
    prior.decoded = 0
    BestOfN(10, batch_size=7)(prior, views, search.score(views))
    assert prior.decoded == 30


def test_the_photographs_are_prepared_once_for_a_search():
    prior, views, _ = scene(3)

    class Prepared:
        made = 0

        def target(self, views: Views) -> Views:
            self.made += 1
            assert not torch.is_grad_enabled()
            return views

        def __call__(self, estimate: Estimate, target: Views) -> torch.Tensor:
            return colors(estimate, target)

    term = Prepared()
    found, trace = inverter(prior, (Stage(5, 0.1, 0.01),), objective(color=term))(views)
    assert term.made == 1
    plain, other = inverter(prior, (Stage(5, 0.1, 0.01),))(views)
    assert torch.equal(found.latent, plain.latent)
    assert torch.equal(trace.total, other.total)


def test_first_guesses_can_be_compared_by_another_objective():
    prior, views, _ = scene(3)
    only_color = Objective({"color": WeightedTerm(1.0, colors)})
    search = inverter(prior, (Stage(2, 0.1, 0.01),), init_objective=only_color)
    _, trace = search(views)
    expected = BestOfN(8)(prior, views, inverter(prior, goal=only_color).score(views))
    by_all = BestOfN(8)(prior, views, inverter(prior).score(views))
    assert torch.equal(trace.start.latent, expected.latent)
    assert not torch.equal(trace.start.latent, by_all.latent)
    assert set(trace.terms) == {"color", "mask"}


def test_a_score_needs_the_same_number_of_guesses_for_each_image():
    prior, views, _ = scene(3)
    with pytest.raises(ValueError, match="shared out"):
        inverter(prior).score(views)(Guess(torch.zeros(2, 4), views.camera[:2], None))


def test_rotation_gradients_are_tangent_when_the_quaternion_is_kept():
    prior, views, _ = scene(1)
    quat = rotation.normalize(torch.tensor([[0.6, 0.2, -0.3, 0.7]])) * 1.0
    start = Guess(torch.zeros(1, 4), replace(views.camera, quat=quat), None)
    search = inverter(prior, (Stage(1, 0.0, 1e-3),))
    estimate, _ = search.refine(start, views)
    assert estimate.camera.quat.norm().item() == pytest.approx(1, abs=1e-6)
    assert not torch.equal(estimate.camera.quat, quat)

"""Several first guesses for an image: each is searched from for a while, and the best goes on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.inversion.inverter import Inverter, Stage
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import DIVERGED, OK
from invkit.metrics.iou import iou
from invkit.protocols import Prior, Score
from invkit.types import Estimate, Guess, Views
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, colors, masks, photograph

STAGES = (Stage(6, 0.05, 0.01),)
TRIAL = Stage(8, 0.2, 0.04)


class Several:
    """The same `count` latents for every image, with its camera shifted to and fro; best first or not."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        latents = prior.sample(self.count, torch.Generator().manual_seed(7))
        camera = views.camera.repeat(self.count)
        off = 0.2 * torch.linspace(-1, 1, self.count)[:, None].repeat(len(views), 2)
        label = None if views.label is None else views.label.repeat_interleave(self.count)
        return Guess(latents.repeat(len(views), 1), replace(camera, shift=camera.shift + off), label)


def objective(**functions: Callable[[Estimate, Views], Tensor]) -> Objective:
    return Objective({name: WeightedTerm(1.0, function) for name, function in functions.items()})


def scene(count: int) -> tuple[DiscPrior, Views]:
    rng = torch.Generator().manual_seed(0)
    prior = DiscPrior()
    return prior, photograph(Guess(prior.sample(count, rng), cameras(count, rng), None), prior)


def inverter(prior: DiscPrior, count: int, goal: Objective | None = None, **options) -> Inverter:
    goal = goal or objective(color=colors, mask=masks)
    return Inverter(prior, DiscRenderer(), Several(count), goal, STAGES, trial=TRIAL, **options)


def compared(found: tuple, expected: tuple) -> None:
    (estimate, trace), (other, others) = found, expected
    torch.testing.assert_close(estimate.latent, other.latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(estimate.camera.to_cmr(), other.camera.to_cmr(), rtol=0, atol=1e-5)
    torch.testing.assert_close(trace.total, others.total, rtol=0, atol=1e-5)
    torch.testing.assert_close(trace.start.latent, others.start.latent, rtol=0, atol=0)


def test_the_guess_that_is_best_after_its_trial_goes_on():
    prior, views = scene(4)
    search = inverter(prior, 5)
    estimate, trace = search(views)
    guesses = search.init(prior, views, search.score(views))
    trial = Inverter(prior, DiscRenderer(), search.init, search.objective, (TRIAL,))
    winners = []
    for b in range(4):
        tried = [trial.refine(guesses[5 * b + k], views[b]) for k in range(5)]
        winners.append(min(range(5), key=lambda k: tried[k][1].total[0, -1].item()))
        won = 5 * b + winners[-1]
        assert torch.equal(trace.start.latent[b], guesses.latent[won])
        assert torch.equal(trace.start.camera.shift[b], guesses.camera.shift[won])
        after, own = search.refine(tried[winners[-1]][0].guess, views[b])
        torch.testing.assert_close(estimate.latent[b : b + 1], after.latent, rtol=0, atol=1e-4)
        torch.testing.assert_close(trace.total[b : b + 1], own.total, rtol=0, atol=1e-4)
    assert len(set(winners)) > 1, "otherwise this test would not notice a choice made for the whole batch"
    first = [search.score(views[b])(guesses[5 * b : 5 * b + 5]).argmin().item() for b in range(4)]
    assert winners != first, "nor one made before the trial"


@pytest.mark.parametrize("max_batch", [1, 2, 4, 9])
def test_neither_the_batch_nor_its_bound_matters(max_batch):
    prior, views = scene(3)
    together = inverter(prior, 3)(views)
    compared(inverter(prior, 3, max_batch=max_batch)(views), together)
    for b in range(3):
        estimate, trace = together
        compared(inverter(prior, 3, max_batch=max_batch)(views[b]), (estimate[b], trace[b]))


def test_no_more_guesses_are_rendered_at_once_than_allowed():
    prior, views = scene(3)
    search = inverter(prior, 4, max_batch=3)
    sizes, decode = [], prior.decode
    prior.decode = lambda latent, label: sizes.append(len(latent)) or decode(latent, label)
    search.begin(views)
    assert max(sizes) == 3
    assert sum(sizes) == 3 * 4 * (TRIAL.steps + 1)


def test_a_single_guess_costs_no_trial_and_changes_nothing():
    prior, views = scene(2)
    search = inverter(prior, 1)
    start = search.init(prior, views, search.score(views))
    prior.decoded = 0
    estimate, trace = search(views)
    assert prior.decoded == 2 * (STAGES[0].steps + 1)
    other, own = search.refine(start, views)
    assert torch.equal(estimate.latent, other.latent)
    assert torch.equal(trace.values, own.values)
    assert torch.equal(trace.start.camera.to_cmr(), start.camera.to_cmr())


def test_the_trial_goes_by_the_first_objective_and_the_choice_by_the_last():
    prior, views = scene(3)
    counted = {"first": 0, "last": 0}

    def first(estimate: Estimate, target: Views) -> Tensor:
        counted["first"] += 1
        return masks(estimate, target)

    def last(estimate: Estimate, target: Views) -> Tensor:
        counted["last"] += 1
        return -masks(estimate, target)

    search = inverter(prior, 4, objective(last=last), init_objective=objective(first=first))
    guesses = search.init(prior, views, search.score(views))
    begun, _ = search.begin(views)
    assert counted == {"first": TRIAL.steps, "last": 1}
    trial = Inverter(prior, DiscRenderer(), search.init, objective(first=masks), (TRIAL,))
    _, trace = trial.refine(guesses, views)
    worst = trace.total[:, -1].view(3, 4).argmax(dim=1)
    assert torch.equal(begun.latent, guesses.latent[torch.arange(3) * 4 + worst])


def test_a_guess_that_breaks_down_loses_and_an_image_where_all_do_keeps_its_first():
    prior, views = scene(2)
    good = inverter(prior, 3)
    guesses = good.init(prior, views, good.score(views))
    winner = good(views)[1].start.latent[0]

    def trap(estimate: Estimate, target: Views) -> Tensor:
        """Not a number for what won image 0 once it has moved, and for all of image 1; nothing otherwise."""
        start = winner[None]
        near, moved = (estimate.latent - start).norm(dim=1) < 1.5, (estimate.latent - start).norm(dim=1) > 1e-6
        lost = (near & moved & (target.index == 0)) | (target.index == 1)
        return torch.where(lost, torch.nan, 0.0) + 0 * estimate.latent[:, 0]

    search = inverter(prior, 3, objective(color=colors, mask=masks, trap=trap))
    estimate, trace = search(views)
    assert trace.status() == [OK, DIVERGED]
    assert not torch.equal(trace.start.latent[0], winner)
    assert torch.equal(trace.start.latent[1], guesses.latent[3])
    assert torch.equal(estimate.latent[1], guesses.latent[3])
    assert bool(estimate.latent.isfinite().all())


def test_all_of_several_guesses_can_be_searched_and_measured():
    prior, views = scene(2)
    search = inverter(prior, 3)
    guesses = search.init(prior, views, search.score(views))
    estimate, trace = search.refine(guesses, views)
    expected = iou(estimate.image.mask, views.mask[[0, 0, 0, 1, 1, 1]]).float()
    torch.testing.assert_close(trace.iou[:, -1], expected)


def test_guesses_must_be_as_many_for_each_image():
    prior, views = scene(2)
    search = inverter(prior, 3)
    search.init = lambda prior, views, score: Several(3)(prior, views, score)[:5]
    with pytest.raises(ValueError, match="5 guesses for 2 images"):
        search(views)
    with pytest.raises(ValueError, match="max_batch"):
        inverter(prior, 3, max_batch=0)

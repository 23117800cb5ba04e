"""The longer reach of the search: perspective, what is kept on the way, and images that stop before the others."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.evaluation.protocol import EvaluationProtocol
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter, Stage
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import DIVERGED, OK, UNPOSED, RecordStore
from invkit.inversion.schedule import Stall, hybrid_stages, on_the_way
from invkit.inversion.search_state import SearchState
from invkit.protocols import Prior, Score
from invkit.types import Estimate, Guess, Rendering, Views
from tests.invkit.toy_scene import Disc, DiscPrior, DiscRenderer, cameras, colors, masks, photograph

BETAS = (0.9, 0.95)


class Given:
    """Begins from latents of nothing and from the cameras of the photographs."""

    def __init__(self, posed: Tensor | None = None) -> None:
        self.posed = posed

    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        posed = None if self.posed is None else self.posed[views.index]
        return Guess(torch.zeros(len(views), 4), views.camera, views.label, posed)


class NearRenderer(DiscRenderer):
    """Discs that look larger the stronger the perspective, so that it has a gradient."""

    def __call__(self, scene: Disc, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        return super().__call__(scene, replace(camera, scale=camera.scale * (1 + 0.5 * camera.inv_focal)))


def scene(count: int, seed: int = 0) -> tuple[DiscPrior, Views]:
    rng = torch.Generator().manual_seed(seed)
    prior = DiscPrior()
    views = photograph(Guess(prior.sample(count, rng), cameras(count, rng)), prior)
    off = 0.15 * torch.randn(count, 2, generator=rng)
    return prior, replace(views, camera=replace(views.camera, shift=views.camera.shift + off))


def inverter(prior: DiscPrior, steps: int = 12, **options) -> Inverter:
    goal = options.pop("goal", None) or {"color": colors, "mask": masks}
    goal = Objective({name: WeightedTerm(1.0, term) for name, term in goal.items()})
    stages = hybrid_stages(steps, gain=5, rate=0.01)
    settings = {"init": Given(), "renderer": NearRenderer(), "betas": BETAS, "optimize_focal": True} | options
    return Inverter(prior, settings.pop("renderer"), settings.pop("init"), goal, stages, **settings)


def with_focal(views: Views, inv_focal: list[float]) -> Views:
    return replace(views, camera=replace(views.camera, inv_focal=torch.tensor(inv_focal)))


# ---- Variables ---------------------------------------------------------------------------------------------------


def test_a_gain_on_the_latent_is_a_rate_of_its_own():
    """Adam on z' = latent / 5 takes the steps that five times the rate takes on the latent."""
    prior, views = scene(3)
    estimate, _ = inverter(prior, 8, optimize_camera=False)(views)
    small = torch.zeros(3, 4, requires_grad=True)
    adam = torch.optim.Adam([small], lr=0.01, betas=BETAS)
    for _ in range(8):
        adam.zero_grad()
        disc = prior.decode(5 * small, None)
        seen = Estimate(5 * small, views.camera, disc, NearRenderer()(disc, views.camera))
        (colors(seen, views) + masks(seen, views)).sum().backward()
        adam.step()
    torch.testing.assert_close(estimate.latent, (5 * small).detach(), rtol=1e-5, atol=1e-6)


def test_the_perspective_is_searched_where_there_is_one():
    prior, views = scene(3)
    views = with_focal(views, [0.4, 0.0, 0.2])
    found = inverter(prior)(views)[0].camera.inv_focal
    assert float(found[1]) == 0
    assert bool(((found - views.camera.inv_focal)[[0, 2]].abs() > 1e-3).all())
    kept = inverter(prior, optimize_focal=False)(views)[0].camera.inv_focal
    assert torch.equal(kept, views.camera.inv_focal)
    fixed = inverter(prior, optimize_camera=False)(views)[0].camera
    assert torch.equal(fixed.inv_focal, views.camera.inv_focal)
    assert torch.equal(fixed.to_cmr(), views.camera.to_cmr())


def test_the_first_step_moves_the_perspective_by_its_rate_in_z0():
    prior, views = scene(1)
    views = with_focal(views, [0.4])
    found = inverter(prior, 1)(views)[0].camera
    torch.testing.assert_close((found.to_augmented()[0] - views.camera.to_augmented()[0]).abs(), torch.tensor([0.01]))


@pytest.mark.parametrize("z0, pull", [(3.9, 1.0), (-3.9, -1.0)])
def test_the_perspective_stays_in_its_range(z0, pull):
    _, views = scene(2)
    start = with_focal(views, [float(1 / (1 + torch.tensor(z0).exp()))] * 2).camera
    state = SearchState(Guess(torch.zeros(2, 4), start), BETAS, optimize_focal=True)
    for _ in range(30):
        camera = state.guess().camera
        state.step(-pull * camera.to_augmented()[0], Stage(1, 0.1, 0.1))
    torch.testing.assert_close(state.guess().camera.to_augmented()[0].detach(), torch.full((2,), pull * 4))
    assert bool(state.finite.all())


@pytest.mark.parametrize("gain", [5.0, 20.0])
def test_the_gain_is_that_of_a_variable_divided_by_it(gain):
    """Torch's Adam on w / gain, where gradients are so small that epsilon matters."""
    (stage,) = hybrid_stages(4, gain=gain)
    slope = torch.tensor([[1e-8, -3e-8, 2e-7, 1.0]], dtype=torch.float64)
    w = torch.linspace(-1, 1, 4, dtype=torch.float64)[None]
    _, views = scene(1)
    state = SearchState(Guess(w, views.camera), BETAS, optimize_camera=False)
    scaled = (w / gain).requires_grad_()
    adam = torch.optim.Adam([scaled], lr=0.002, betas=BETAS)
    for _ in range(4):
        latent = state.guess().latent
        state.step((slope * latent * (1 + 0.1 * latent)).sum(dim=1), stage)
        adam.zero_grad()
        (slope * gain * scaled * (1 + 0.1 * gain * scaled)).sum().backward()
        adam.step()
    torch.testing.assert_close(state.guess().latent.detach(), gain * scaled.detach(), rtol=1e-12, atol=0)


# ---- What is kept on the way -------------------------------------------------------------------------------------


def same(first: Guess, second: Guess, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(first.latent, second.latent, rtol=0, atol=tolerance)
    torch.testing.assert_close(first.camera.to_cmr(), second.camera.to_cmr(), rtol=0, atol=tolerance)
    torch.testing.assert_close(first.camera.inv_focal, second.camera.inv_focal, rtol=0, atol=tolerance)


def test_the_guess_after_n_steps_is_what_n_steps_give(tmp_path):
    prior, views = scene(3)
    views = with_focal(views, [0.4, 0.0, 0.2])
    estimate, trace = inverter(prior, 12, snapshots=(0, 5, 12))(views)
    assert sorted(trace.snapshots) == [0, 5, 12]
    assert trace.steps.tolist() == [12, 12, 12]
    same(trace.snapshots[0], trace.start, 1e-6)  # its rotation is normalized once more
    same(trace.snapshots[5], inverter(prior, 5)(views)[0].guess)
    same(trace.snapshots[12], estimate.guess)
    store = RecordStore(tmp_path)
    store.write(["a", "b", "c"], [0, 1, 2], estimate, trace)
    read = store.read("b")
    same(read.after(5), trace.snapshots[5][1])
    same(read.after(12), read.found)
    assert int(read.trace.steps) == 12
    with pytest.raises(ValueError, match="after 7 steps; there is 0, 5, 12"):
        read.after(7)


def test_the_last_step_needs_no_keeping_and_an_image_that_failed_has_none(tmp_path):
    prior, views = scene(1)
    store = RecordStore(tmp_path)
    (record,) = store.write(["a"], [0], *inverter(prior, 3, snapshots=())(views))
    same(record.after(3), record.found)
    with pytest.raises(ValueError, match="the end alone"):
        record.after(0)
    with pytest.raises(ValueError, match="too dark"):
        store.write_failure("b", 1, "too dark").after(0)


def test_only_steps_that_are_made_can_be_kept():
    prior, _ = scene(1)
    with pytest.raises(ValueError, match=r"snapshots \[13\]: the search has 12 steps"):
        inverter(prior, 12, snapshots=(0, 13))


@pytest.mark.parametrize(
    "steps, count, kept", [(75, 4, [3, 12, 27, 48]), (200, 4, [8, 32, 72, 128]), (2, 4, [1]), (0, 4, []), (30, 0, [])]
)
def test_some_steps_on_the_way_are_kept_without_changing_the_search(steps, count, kept):
    assert on_the_way(steps, count) == kept
    assert inverter(DiscPrior(), steps, snapshots=count).snapshots == frozenset(kept)


def test_a_search_that_keeps_guesses_finds_the_same():
    prior, views = scene(2)
    with_them, without = (inverter(prior, 9, snapshots=count)(views) for count in (4, 0))
    assert sorted(with_them[1].snapshots) == [1, 3, 6]
    assert torch.equal(with_them[0].latent, without[0].latent)
    assert torch.equal(with_them[0].camera.to_cmr(), without[0].camera.to_cmr())
    with pytest.raises(ValueError, match="snapshots=-1 must be 0 or more"):
        inverter(prior, 9, snapshots=-1)


def trap(estimate: Estimate, target: Views) -> Tensor:
    """Not a number for image 1 once its disc has moved by more than 0.03; nothing for the others."""
    moved = (estimate.camera.shift - target.camera.shift).norm(dim=1) > 0.03
    return torch.where(moved & (target.index == 1), torch.nan, 0.0) + 0 * estimate.latent[:, 0]


def test_what_is_kept_of_an_image_that_broke_is_sound():
    prior, views = scene(3)
    goal = {"color": colors, "mask": masks, "trap": trap}
    estimate, trace = inverter(prior, 12, goal=goal, snapshots=range(13))(views)
    assert trace.status() == [OK, DIVERGED, OK]
    for kept in trace.snapshots.values():
        assert float((kept.camera.shift - views.camera.shift).norm(dim=1)[1]) <= 0.03
    same(trace.snapshots[12], estimate.guess)


# ---- Stopping ----------------------------------------------------------------------------------------------------

STALL = Stall(tolerance=0.08, window=2, least=4)


def test_an_image_stops_when_its_objective_hardly_falls():
    course = torch.tensor([[8.0, 7, 6, 5, 4, 3], [8.0, 7, 5, 5, 5, 5], [8.0, 7, 5, 6, 7, 8], [8.0, 4, 5, 5, 4.7, 4.7]])
    assert Stall(0.05, window=2, least=3)(course).tolist() == [False, True, True, False]
    assert Stall(0.07, window=2, least=3)(course).tolist() == [False, True, True, True]
    assert not Stall(0.05, window=2, least=6)(course).any(), "six looks are five steps"
    assert not Stall(0.05, window=4, least=0)(course).any()
    assert Stall(0.05, window=2, least=0)(-course).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="window"):
        Stall(window=0)


def test_images_stop_by_themselves_and_are_what_they_are_alone():
    prior, views = scene(6)
    views = with_focal(views, [0.4, 0.0, 0.2, 0.1, 0.3, 0.0])
    search = inverter(prior, 60, stall=STALL, snapshots=(0, 8, 60))
    prior.decoded = 0
    estimate, trace = search(views)
    decoded = prior.decoded
    steps = trace.steps.tolist()
    assert len(set(steps)) > 2, "otherwise nothing is tested here"
    assert 4 <= min(steps) < max(steps) <= 60
    assert trace.total.shape == (6, max(steps) + 1)
    # Only images that go on are worked on: one look for each step and one at the end, and those that stopped again.
    assert decoded <= sum(steps) + 6 + 6
    for b in range(6):
        alone, own = inverter(prior, 60, stall=STALL, snapshots=(0, 8, 60))(views[b])
        assert int(own.steps) == steps[b]
        same(alone.guess, estimate[b].guess, 1e-5)
        same(own.snapshots[8], trace.snapshots[8][b], 1e-5)
        same(trace.snapshots[60][b], estimate[b].guess)
        torch.testing.assert_close(own.total, trace.total[b : b + 1, : steps[b] + 1], rtol=0, atol=1e-5)
        assert bool((trace.total[b, steps[b] :] == trace.total[b, steps[b]]).all())
        # It is what the full search has after as many steps.
        full = inverter(prior, 60, snapshots=(steps[b],))(views[b])[1].snapshots[steps[b]]
        same(full, estimate[b].guess, 1e-5)


def test_the_picture_is_of_what_was_found():
    prior, views = scene(4)
    estimate, _ = inverter(prior, 60, stall=STALL)(views)
    again = NearRenderer()(prior.decode(estimate.latent, None), estimate.camera)
    torch.testing.assert_close(estimate.image.rgb, again.rgb)


def test_an_image_that_breaks_leaves_and_the_others_go_on():
    prior, views = scene(3)
    goal = {"color": colors, "mask": masks, "trap": trap}
    estimate, trace = inverter(prior, 40, goal=goal, stall=STALL)(views)
    assert trace.status() == [OK, DIVERGED, OK]
    assert int(trace.steps[1]) < int(trace.steps[[0, 2]].min())
    assert 0 < float((estimate.camera.shift - views.camera.shift).norm(dim=1)[1]) <= 0.03
    for b in (0, 2):
        same(inverter(prior, 40, stall=STALL)(views[b])[0].guess, estimate[b].guess, 1e-5)


def test_all_images_can_stop_before_the_end_and_several_guesses_of_one_image_too():
    prior, views = scene(2)
    search = inverter(prior, 200, stall=Stall(0.2, window=2, least=4))
    rng = torch.Generator().manual_seed(0)
    guesses = Guess(prior.sample(6, rng), views.camera.repeat(3))
    estimate, trace = search.refine(guesses, views)
    assert int(trace.steps.max()) < 200
    for b in range(6):
        alone, own = search.refine(guesses[b], views[b // 3])
        assert int(own.steps) == int(trace.steps[b])
        same(alone.guess, estimate[b].guess, 1e-5)


def test_a_search_of_no_steps_returns_the_start():
    prior, views = scene(2)
    for stall in (None, STALL):
        estimate, trace = inverter(prior, 0, snapshots=(0,), stall=stall)(views)
        same(estimate.guess, Guess(torch.zeros(2, 4), views.camera), 1e-6)
        assert trace.steps.tolist() == [0, 0]
        assert trace.total.shape == (2, 1)


# ---- Marks and numbers of steps ----------------------------------------------------------------------------------


def test_an_image_without_a_camera_of_its_own_is_marked_in_its_record(tmp_path):
    prior, views = scene(3)
    init = Given(torch.tensor([True, False, True]))
    store = RecordStore(tmp_path)
    store.write(["a", "b", "c"], [0, 1, 2], *inverter(prior, 3, init=init, snapshots=(2,))(views))
    assert [store.read(name).status for name in "abc"] == [OK, UNPOSED, OK]
    assert store.read("b").trace.start.posed.tolist() == [False]


def test_terms_are_told_how_many_steps_have_been_made():
    prior, views = scene(2)
    seen = []

    def listening(estimate: Estimate, target: Views) -> Tensor:
        seen.append(estimate.steps)
        return masks(estimate, target)

    search = inverter(prior, 3, goal={"mask": listening})
    search(views)
    assert seen == [0, 1, 2, 3]
    seen.clear()
    search.init = lambda prior, views, score: Guess(torch.zeros(4, 4), views.camera.repeat(2))
    search.trial = Stage(2, 0.1, 0.1)
    search.begin(views)
    assert seen == [0, 1, 2]


def test_evaluation_takes_what_was_found_after_so_many_steps(tmp_path):
    prior, views = scene(1)
    (record,) = RecordStore(tmp_path).write(["a"], [0], *inverter(prior, 6, snapshots=(0, 4))(views))
    assert EvaluationProtocol({"iou": {}}).chosen(record) is record.found
    assert EvaluationProtocol({"iou": {}}, steps=4).chosen(record) is record.trace.snapshots[4]
    assert EvaluationProtocol({"iou": {}}, first_guess=True).chosen(record) is record.trace.start
    with pytest.raises(ValueError, match="first_guess"):
        EvaluationProtocol({"iou": {}}, first_guess=True, steps=4)

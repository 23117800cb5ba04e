import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invkit.protocols import Phase
from invkit.runtime import dist
from invkit.runtime.checkpoint import load
from invkit.train.loop import REQUEUE, fit, seed_step
from invkit.train.schedule import every, step_decay
from tests.invkit.toy_task import ToyGan, ToyRun, start, train, wait

ROOT = Path(__file__).resolve().parents[3]


class Task:
    """Phases on given modules; batches are 4 random rows of 3 (per rank), or as given."""

    def __init__(self, modules: dict[str, nn.Module], phases: list[Phase], batches=None) -> None:
        self.modules, self.phases = modules, phases
        self.given = batches
        self.calls: list = []

    def batches(self, start: int, rank: int, world_size: int):
        if self.given is not None:
            return iter(self.given[start:])
        return (torch.randn(4, 3, generator=torch.Generator().manual_seed(step)) for step in count(start))

    def after_step(self, step: int) -> None:
        self.calls.append(("after", step))

    def report(self, run, step: int) -> None:
        self.calls.append(("report", step))

    def finish(self, run) -> None:
        self.calls.append(("finish",))


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def logged(dir: Path) -> list[dict]:
    return [entry for entry in map(json.loads, (dir / "log.jsonl").read_text().splitlines()) if "step" in entry]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def compare_with_a_loop_by_hand(dir: Path) -> None:
    """Two players in turn, the second one reading the first; written out with nothing shared but the seeds."""
    task = ToyGan()
    fit(task, ToyRun(dir, seed=3), 12, save_every=5, report_every=4, log_every=6)

    by_hand = ToyGan()
    generator, discriminator = by_hand.generator, by_hand.discriminator
    d_optimizer, g_optimizer = (phase.optimizer for phase in by_hand.phases)
    batches = by_hand.batches(0, 0, 1)
    for step in range(12):
        seed_step(3, 0, step)
        batch = next(batches)
        if step % 3 != 0:
            terms = by_hand.discriminator_loss(batch, step)
            gradients = torch.autograd.grad(sum(terms.values()), list(discriminator.parameters()))
            for parameter, gradient in zip(discriminator.parameters(), gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
            d_optimizer.step()
        else:
            with torch.autocast("cpu", torch.bfloat16):
                terms = by_hand.generator_loss(batch, step)
            gradients = torch.autograd.grad(sum(terms.values()), list(generator.parameters()))
            for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
                parameter.grad = gradient
            g_optimizer.step()
        by_hand.after_step(step)
    for name, module in task.modules.items():
        assert same_state(module, by_hand.modules[name]), name
    assert task.reports == [4, 8, 12]
    assert [entry["step"] for entry in logged(dir)] == [6, 12]
    names = [path.name for path in ToyRun(dir).checkpoints.paths()]
    assert names == ["checkpoint-00000010.pt", "checkpoint-00000012.pt"], "two are kept"
    assert (dir / "images" / "samples-00000012.png").is_file()


def test_it_is_the_loop_one_would_write_by_hand(tmp_path):
    # In a process of its own, for the type checks of the tests draw from `random`.
    assert wait(start(1, compare_with_a_loop_by_hand, tmp_path)) == [0]


def test_a_phase_leaves_the_other_players_alone(tmp_path):
    """The loss reaches everybody, but a frozen network and the other player get no gradient, and stay what they are."""
    player, rival, frozen = linear(0), linear(1), linear(2).requires_grad_(False)
    seen = {}

    def loss(batch: Tensor, step: int) -> dict[str, Tensor]:
        seen["player"] = [parameter.requires_grad for parameter in player.parameters()]
        seen["rival"] = [parameter.requires_grad for parameter in rival.parameters()]
        return {"all": (player(batch) * rival(batch) * frozen(batch)).sum()}

    def rival_loss(batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"all": (player(batch) - rival(batch)).square().sum()}

    phases = [
        Phase("player", torch.optim.SGD(player.parameters(), lr=1e-3), loss),
        Phase("rival", torch.optim.SGD(rival.parameters(), lr=1e-3), rival_loss, due=every(2)),
    ]
    task = Task({"player": player, "rival": rival, "frozen": frozen}, phases)
    before = [parameter.detach().clone() for parameter in rival.parameters()]
    rival.weight.grad = torch.full_like(rival.weight, 1e6)  # left over from somewhere
    fit(task, ToyRun(tmp_path), 1, save_every=9, report_every=9)
    assert seen == {"player": [True, True], "rival": [False, False]}
    assert all(parameter.requires_grad for parameter in [*player.parameters(), *rival.parameters()])
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    batch = next(task.batches(0, 0, 1))
    weight, bias = (parameter.requires_grad_() for parameter in before)
    stepped = (player(batch).detach() - nn.functional.linear(batch, weight, bias)).square().sum()
    for parameter, start_value, gradient in zip(
        rival.parameters(), before, torch.autograd.grad(stepped, before), strict=True
    ):
        assert torch.equal(parameter, start_value - 1e-3 * gradient)


def test_rates_multiply_the_first_learning_rate_of_each_group_also_after_resuming(tmp_path):
    rates = []

    def fit_to(steps: int) -> None:
        model = linear()
        steady = nn.Parameter(torch.ones(()))
        groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.25}]
        groups += [{"params": [steady], "lr": 0.125, "scheduled": False}]
        optimizer = torch.optim.SGD(groups)
        phase = Phase("fit", optimizer, lambda batch, step: {"l": steady * model(batch).sum()}, rate=step_decay(2, 0.1))
        task = Task({"model": model}, [phase])
        task.after_step = lambda step: rates.append([group["lr"] for group in optimizer.param_groups])
        fit(task, ToyRun(tmp_path), steps, save_every=1, report_every=9)

    fit_to(3)
    fit_to(5)
    falling = [[0.5, 0.25], [0.5, 0.25], [0.05, 0.025], [0.05, 0.025], [0.005, 0.0025]]
    expected = [[*pair, 0.125] for pair in falling]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_the_gradient_is_clipped_as_a_whole(tmp_path):
    model = linear()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    phase = Phase("fit", optimizer, lambda b, s: {"l": 50 * model(b).square().sum()}, clip_norm=0.3)
    fit(Task({"model": model}, [phase]), ToyRun(tmp_path), 1, save_every=9, report_every=9)
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.linalg.vector_norm(after - before).item() == pytest.approx(0.3, rel=1e-4)
    assert logged(tmp_path)[0]["fit/gradient_norm"] > 1, "what is logged is the norm before"


def test_a_parameter_out_of_reach_counts_as_one_with_gradient_zero(tmp_path):
    used, unused = linear(0), linear(1)
    before = unused.weight.detach().clone()
    optimizer = torch.optim.SGD([*used.parameters(), *unused.parameters()], lr=0.1, weight_decay=0.5)
    phase = Phase("fit", optimizer, lambda batch, step: {"l": used(batch).sum()})
    fit(Task({"used": used, "unused": unused}, [phase]), ToyRun(tmp_path), 1, save_every=9, report_every=9)
    torch.testing.assert_close(unused.weight, before * (1 - 0.1 * 0.5))


def test_what_is_logged_are_means_over_the_steps_at_which_the_phase_moved(tmp_path):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def value(batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"step": model.weight.sum() * 0 + step}

    phases = [Phase("every", optimizer, value), Phase("third", optimizer, value, due=every(3))]
    task = Task({"model": model}, phases)
    fit(task, ToyRun(tmp_path), 7, save_every=4, report_every=3, log_every=6)
    lines = [(entry["step"], entry["every/step"], entry["third/step"]) for entry in logged(tmp_path)]
    assert lines == [(6, 2.5, 1.5), (7, 6.0, 6.0)]
    assert task.calls == [
        *[("after", 0), ("after", 1), ("after", 2), ("report", 3)],
        *[("after", 3), ("after", 4), ("after", 5), ("report", 6), ("after", 6), ("finish",)],
    ]
    assert list(load(ToyRun(tmp_path).checkpoints.path(7))["optimizers"]) == ["every"], "one optimizer, saved once"


class Brittle:
    """Two players; the second one breaks at step 5 in a given way, after the first has moved."""

    def __init__(self, breaks) -> None:
        self.first, self.second = nn.Sequential(linear(0), nn.BatchNorm1d(2)), linear(1)
        optimizers = [torch.optim.Adam(module.parameters(), lr=1e-2) for module in (self.first, self.second)]
        self.task = Task(
            {"first": self.first, "second": self.second},
            [
                Phase("one", optimizers[0], lambda batch, step: {"fine": self.first(batch).square().mean()}),
                Phase("two", optimizers[1], lambda batch, step: breaks(self.second, batch, step), due=every(5)),
            ],
        )

    def fit(self, dir: Path, steps: int) -> None:
        fit(self.task, ToyRun(dir), steps, save_every=100, report_every=100)


def infinite_term(model: nn.Module, batch: Tensor, step: int) -> dict[str, Tensor]:
    return {"good": model(batch).sum(), "bad": model(batch).mean() / (0.0 if step == 5 else 1.0)}


def infinite_gradient(model: nn.Module, batch: Tensor, step: int) -> dict[str, Tensor]:
    return {"good": model(batch * 0).sum() + model.weight.square().sum().mul(0.0 if step == 5 else 1.0).sqrt()}


@pytest.mark.parametrize(
    "breaks, blamed", [(infinite_term, "bad"), (infinite_gradient, "the gradient of second.weight")]
)
def test_what_is_not_finite_stops_the_run_and_saves_the_state_before(tmp_path, breaks, blamed):
    broken, good = Brittle(breaks), Brittle(breaks)
    with pytest.raises(FloatingPointError, match=f"^phase two, step 5: {blamed} is not finite"):
        broken.fit(tmp_path / "broken", 20)
    good.fit(tmp_path / "good", 5)
    saved, expected = (load(tmp_path / name / "checkpoints/checkpoint-00000005.pt") for name in ("broken", "good"))
    assert saved["step"] == 5
    for name, module in good.task.modules.items():
        assert same_state(module, broken.task.modules[name])
        for key, tensor in module.state_dict().items():
            assert torch.equal(saved["modules"][name][key], tensor), key
    for phase in ("one", "two"):
        for mine, theirs in zip(*(s["optimizers"][phase]["state"].values() for s in (saved, expected)), strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert "phase two, step 5" in (tmp_path / "broken" / "log.jsonl").read_text()
    with pytest.raises(FloatingPointError, match="step 5"):
        Brittle(breaks).fit(tmp_path / "broken", 20)


def test_a_break_in_the_very_first_step_leaves_optimizers_that_have_not_moved(tmp_path):
    broken = Brittle(lambda model, batch, step: {"bad": model(batch).sum() * float("nan")})
    with pytest.raises(FloatingPointError, match="phase two, step 0: bad"):
        broken.fit(tmp_path, 20)
    saved = load(tmp_path / "checkpoints/checkpoint-00000000.pt")
    assert saved["optimizers"]["one"]["state"] == {}
    assert int(saved["modules"]["first"]["1.num_batches_tracked"]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_phase_computes_in_the_precision_it_asks_for(tmp_path, dtype):
    model, seen = linear(), []

    def loss(batch: Tensor, step: int) -> dict[str, Tensor]:
        out = model(batch)
        seen.append(out.dtype)
        return {"l": out.float().square().mean()}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phases = [Phase("low", optimizer, loss, autocast=dtype), Phase("full", optimizer, loss)]
    fit(Task({"model": model}, phases), ToyRun(tmp_path), 1, save_every=9, report_every=9)
    assert seen == [dtype, torch.float32]
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


def test_an_overflow_in_float16_skips_the_step_lowers_the_scale_and_the_scale_is_resumed(tmp_path):
    def fit_to(steps: int, dir: Path) -> nn.Linear:
        model = linear()

        def loss(batch: Tensor, step: int) -> dict[str, Tensor]:
            return {"l": model(batch).float().square().mean() * (1e36 if step in (1, 2) else 1.0)}

        phase = Phase("low", torch.optim.Adam(model.parameters(), lr=1e-2), loss, autocast=torch.float16)
        task = Task({"model": model}, [phase])
        fit(task, ToyRun(dir), steps, save_every=1, report_every=9, log_every=1)
        return model

    one, three, whole = fit_to(1, tmp_path / "a"), fit_to(3, tmp_path / "a"), fit_to(6, tmp_path / "b")
    assert same_state(one, three), "steps 1 and 2 overflowed"
    scales = [load(tmp_path / "b" / f"checkpoints/checkpoint-0000000{step}.pt")["scalers"]["low"] for step in (5, 6)]
    assert [scale["scale"] for scale in scales] == [2.0**14, 2.0**14]
    assert same_state(fit_to(6, tmp_path / "a"), whole)
    assert "low/gradient_norm" not in logged(tmp_path / "b")[1]


def test_a_gradient_that_no_scale_makes_finite_stops_the_run_in_float16_too(tmp_path):
    model = linear()
    phase = Phase(
        "low",
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda batch, step: {"l": model(batch).float().sum().mul(0).sqrt()},
        autocast=torch.float16,
    )
    with pytest.raises(FloatingPointError, match=r"phase low, step \d\d: the gradient of model.weight"):
        fit(Task({"model": model}, [phase]), ToyRun(tmp_path), 100, save_every=50, report_every=99)


def test_a_finished_run_is_left_alone_and_an_unfinished_finish_is_repeated(tmp_path, capsys):
    train(tmp_path, 4)
    calls = tmp_path / "finish_calls.txt"
    assert calls.read_text() == "called\n"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "log.jsonl"}
    capsys.readouterr()

    task = ToyGan()
    fit(task, ToyRun(tmp_path), 4, save_every=7, report_every=1)
    assert "all 4 steps were done before" in capsys.readouterr().out
    assert task.reports == []
    saved = load(tmp_path / "checkpoints/checkpoint-00000004.pt")["modules"]["generator"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in task.generator.state_dict().items()), "but loaded"
    assert {path: path.stat().st_mtime_ns for path in before} == before

    (tmp_path / "finished.json").unlink()  # killed while it finished
    train(tmp_path, 4)
    assert calls.read_text() == "called\n" * 2
    with pytest.raises(ValueError, match="4 steps done, more than the 3"):
        train(tmp_path, 3)
    train(tmp_path, 5)
    assert calls.read_text() == "called\n" * 3


def test_mistakes_of_a_task_are_named(tmp_path):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    per_image = Phase("fit", optimizer, lambda batch, step: {"l": model(batch).sum(1)})
    with pytest.raises(ValueError, match=r"phase fit: loss terms must be scalars, not \{'l': \[4\]\}"):
        fit(Task({"model": model}, [per_image]), ToyRun(tmp_path / "a"), 3, save_every=9, report_every=9)
    phase = Phase("fit", optimizer, lambda batch, step: {"l": model(batch).sum()})
    short = Task({"model": model}, [phase], batches=[torch.zeros(4, 3)] * 2)
    with pytest.raises(ValueError, match="no batch for step 2 of 3"):
        fit(short, ToyRun(tmp_path / "b"), 3, save_every=9, report_every=9)
    fit(Task({"model": model}, [phase]), ToyRun(tmp_path / "c"), 3, save_every=9, report_every=9)
    with pytest.raises(ValueError, match=r"checkpoint has the modules \['model'\], this task has \['other'\]"):
        fit(Task({"other": model}, [phase]), ToyRun(tmp_path / "c"), 4, save_every=9, report_every=9)


def test_every_step_and_rank_has_its_own_random_numbers():
    def draw(*key: int) -> tuple[float, float, float]:
        seed_step(*key)
        return torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002

    keys = [(seed, rank, step) for seed in range(3) for rank in range(3) for step in range(200)]
    draws = {key: draw(*key) for key in keys}
    assert all(draw(*key) == draws[key] for key in keys[::97])
    for source in range(3):
        values = np.array([values[source] for values in draws.values()])
        assert len(set(values)) == len(values)
        # Numbers of neighboring steps are as unrelated as those of one stream: mean 1/2, variance 1/12.
        assert values.mean() == pytest.approx(0.5, abs=0.04)
        assert values.var() == pytest.approx(1 / 12, abs=0.01)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.1


# Two processes. Each function below is called in both; what it asserts, the exit status tells.


def regression(seed: int, rows: slice) -> tuple[nn.Linear, Task]:
    """A linear model on the chosen rows of every batch of 8."""
    model = linear(seed).double()

    def loss(batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"square": (model(batch) - 1).square().mean(), "size": model.weight.square().sum()}

    batches = [torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    phase = Phase("fit", torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss)
    return model, Task({"model": model}, [phase], [batch[rows] for batch in batches])


def train_parts(dir: Path, first: int) -> None:
    """Rank 0 has so many of the 8 rows of each batch, rank 1 the others."""
    rank = dist.init().rank
    rows = slice(0, first) if rank == 0 else slice(first, 8)
    model, task = regression(seed=rank, rows=rows)  # rank 1 begins with other weights
    fit(task, ToyRun(dir), 6, save_every=9, report_every=2, log_every=3)
    assert [call for call in task.calls if call[0] == "report"] == (
        [("report", n) for n in (2, 4, 6)] if not rank else []
    )
    torch.save(model.state_dict(), dir / f"rank{rank}.pt")


@pytest.mark.parametrize("first", [4, 5])
def test_two_ranks_with_parts_of_a_batch_do_as_one_with_the_whole(first, tmp_path):
    assert wait(start(2, train_parts, tmp_path / "two", first)) == [0, 0]
    model, task = regression(seed=0, rows=slice(None))
    fit(task, ToyRun(tmp_path / "one"), 6, save_every=9, report_every=2, log_every=3)
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-13, atol=1e-15)
    for mine, theirs in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["fit/square"] == pytest.approx(theirs["fit/square"], rel=1e-12)
        assert mine["fit/gradient_norm"] == pytest.approx(theirs["fit/gradient_norm"], rel=1e-12)


def count_messages(dir: Path) -> None:
    """A step sends its gradients once per phase that is due, with the terms, and its statistics once; the first one
    also how large its share of the batch is."""
    dist.init()
    sent, whole = [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, *rest: (sent.append(tensor.numel()), whole(tensor, *rest))
    task = ToyGan()
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in task.modules.items()}
    statistics = 2 * 16  # of each of the two batch normalizations
    per_step = []
    task.after_step = lambda step: (per_step.append(list(sent)), sent.clear())
    fit(task, ToyRun(dir), 3, save_every=9, report_every=9)
    moves = [sizes["generator"] + 1, sizes["discriminator"] + 2, sizes["discriminator"] + 2]
    assert per_step[0].pop(0) == 1
    assert per_step == [[move, 2 * statistics + 1] for move in moves], per_step
    states = dist.all_gather_states({name: module.state_dict() for name, module in task.modules.items()})
    for name, state in states[0].items():
        assert all(torch.equal(tensor, states[1][name][key]) for key, tensor in state.items()), name


def break_on_rank_1(dir: Path) -> None:
    rank = dist.init().rank
    broken = Brittle(lambda model, batch, step: {"bad": model(batch).sum() / (0.0 if step == 5 and rank else 1.0)})
    with pytest.raises(FloatingPointError, match="phase two, step 5: bad"):
        broken.fit(dir, 20)
    if rank == 0:
        assert load(dir / "checkpoints/checkpoint-00000005.pt")["step"] == 5


@pytest.mark.parametrize("job", [count_messages, break_on_rank_1])
def test_two_ranks(tmp_path, job):
    assert wait(start(2, job, tmp_path)) == [0, 0]


def wait_for_log(dir: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not (dir / "log.jsonl").is_file() or not logged(dir):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_saved_where_it_stopped(dir: Path, steps: int) -> None:
    stopped = logged(dir)[-1]["step"]
    assert stopped < steps
    assert ToyRun(dir).checkpoints.paths()[-1].name == f"checkpoint-{stopped:08d}.pt"
    assert not (dir / "finished.json").exists()


def test_a_signal_to_one_rank_stops_both_after_the_same_step(tmp_path):
    processes = start(2, train, tmp_path, 100_000)
    wait_for_log(tmp_path)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert wait(processes) == [REQUEUE, REQUEUE]
    assert_saved_where_it_stopped(tmp_path, 100_000)


@pytest.mark.timeout(180)
def test_a_command_that_gets_sigusr1_saves_and_asks_to_be_started_again(tmp_path):
    command = [sys.executable, "-m", "tests.invkit.toy_task", str(tmp_path)]
    process = subprocess.Popen([*command, "100000"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_log(tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == REQUEUE == os.EX_TEMPFAIL
    assert_saved_where_it_stopped(tmp_path, 100_000)
    stopped = logged(tmp_path)[-1]["step"]
    fit(ToyGan(), ToyRun(tmp_path), stopped + 2, save_every=7, report_every=10, log_every=1)
    steps = [entry["step"] for entry in logged(tmp_path)]
    assert steps == list(range(1, stopped + 3))

"""The mesh GAN in two processes does as in one, and interrupted as if nothing had been."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invkit.runtime import dist
from invkit.runtime.checkpoint import load
from invkit.train.loop import fit
from meshinv.tasks.gan import GanTask
from tests.invkit.toy_task import ToyRun, start, wait
from tests.invkit.train.test_resume import assert_equal
from tests.meshinv.tiny_gan import BATCH, Samples, draws, tiny_gan, write_folder

STEPS = 6

pytestmark = pytest.mark.timeout(300)

SOUND: dict[str, Any] = {"weigh_patches": True}
OFFICIAL: dict[str, Any] = {
    "swap_image_halves": True,
    "accumulate_image_gradients": True,
    "measure_live": True,
}


def state(task: GanTask) -> dict[str, Any]:
    """All that training changes."""
    modules = {name: module.state_dict() for name, module in task.modules.items()}
    return {"modules": modules, "optimizers": {phase.name: phase.optimizer.state_dict() for phase in task.phases}}


def train(dir: Path, folder: Path, settings: dict[str, Any], breaks_at: int | None = None) -> None:
    """One run; rank r begins with weights of its own, which rank 0's have to replace."""
    rank = dist.init().rank
    task = tiny_gan(folder, seed=rank, quality=Samples(), **settings)
    if breaks_at is not None:
        batches = islice(task.batches(0, rank, dist.world_size()), breaks_at)
        task.batches = lambda start, rank, world_size: batches
    fit(task, ToyRun(dir), STEPS, save_every=3, report_every=2, log_every=1)
    torch.save(state(task), dir / f"rank{rank}.pt")


def train_all(dir: Path, folder: Path) -> None:
    """Three runs of the same processes, one after another."""
    torch.set_default_dtype(torch.float64)
    train(dir / "sound", folder, SOUND)
    train(dir / "official", folder, OFFICIAL)
    with pytest.raises(ValueError, match="no batch for step 5"):
        train(dir / "broken", folder, OFFICIAL, breaks_at=5)
    train(dir / "broken", folder, OFFICIAL)
    dist.finish()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What one process and what two have made of the same folder."""
    dir = tmp_path_factory.mktemp("gan")
    folder = write_folder(dir / "data")
    jobs = [start(1, train_all, dir / "one", folder), start(2, train_all, dir / "two", folder)]
    assert [wait(job, seconds=140) for job in jobs] == [[0], [0, 0]]
    return dir


def close(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            close(*pair, f"{where}[{index}]")
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=5e-9, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-7, abs=1e-9), where
    else:
        assert one == other, where


def logged(dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (dir / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines if "step" in line]


@pytest.mark.parametrize("settings", ["sound", "official"])
def test_two_ranks_with_half_a_batch_each_do_as_one_with_the_whole(trained, settings):
    # In float64, for a bias before an instance normalization has no effect: its gradient is rounding alone. In float32
    # that is as much as Adam's epsilon, and Adam makes full steps of any direction of it; here it is 1e-8 of that.
    first, second = (torch.load(trained / "two" / settings / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    one = torch.load(trained / "one" / settings / "rank0.pt", weights_only=True)
    close(first, one)
    close(logged(trained / "two" / settings), logged(trained / "one" / settings))


def test_both_ranks_had_mirrored_and_other_samples(trained):
    task = tiny_gan(trained / "data")
    halves = torch.stack([draws(task, step)[1] for step in range(STEPS)]).view(STEPS, 2, BATCH // 2)
    assert halves.any(2).any(0).all()
    assert (~halves).any(2).any(0).all()


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_run_that_broke_goes_on_from_its_last_checkpoint_bitwise(trained, ranks):
    unbroken, broken = trained / ranks / "official", trained / ranks / "broken"
    for rank in range(len(list(unbroken.glob("rank*.pt")))):
        assert_equal(*(torch.load(dir / f"rank{rank}.pt", weights_only=True) for dir in (broken, unbroken)))
    for name in (f"checkpoint-{STEPS:08d}.pt", "best.pt"):
        assert_equal(load(broken / "checkpoints" / name), load(unbroken / "checkpoints" / name))
    assert logged(broken) == logged(unbroken)
    # Broken at step 5, after the report at step 4 and the checkpoint at step 3.
    messages = [json.loads(line).get("message", "") for line in (broken / "log.jsonl").read_text().splitlines()]
    assert any(f"3 of {STEPS} steps done" in message for message in messages)
    assert sorted(path.name for path in broken.rglob("*")) == sorted(path.name for path in unbroken.rglob("*"))


def test_a_checkpoint_holds_everything(trained):
    saved = load(trained / "one" / "official" / "checkpoints" / f"checkpoint-{STEPS:08d}.pt")
    names = {"generator", "generator_ema", "discriminator", "image_discriminator", "uncleared_gradients"}
    assert set(saved["modules"]) == names
    assert all(saved["modules"]["uncleared_gradients"][f"sum{i}"].abs().max() > 0 for i in range(8))
    assert {name: len(value["state"]) for name, value in saved["optimizers"].items()} == {
        "generator": len(list(tiny_gan(trained / "data").generator.parameters())),
        "discriminator": len(list(tiny_gan(trained / "data").discriminator.parameters())) + 8,
    }


def test_the_best_state_is_that_of_the_lowest_score(trained):
    scores = {line["step"]: line["quality/size"] for line in logged(trained / "one/official") if "quality/size" in line}
    best = load(trained / "one" / "official" / "checkpoints" / "best.pt")
    assert list(scores) == [2, 4, 6]
    assert best["score"] == min(scores.values())
    assert scores[best["step"]] == best["score"]

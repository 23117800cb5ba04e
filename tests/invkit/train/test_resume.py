"""Killed at any moment and started again, a run ends with bitwise the weights of the run that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from invkit.runtime.checkpoint import Checkpoints, load
from tests.invkit.toy_task import start, train, wait

STEPS, SAVE_EVERY, LOG_EVERY = 60, 7, 2
PAUSE = 0.02  # seconds a step takes at least: a fast machine must not be done before it is killed


def die_while_writing(dir: Path, steps: int) -> None:
    """The toy job, killed half-way through the bytes of a checkpoint (rank 0's third), before or after others."""
    whole, writes = torch.save, []

    def torn(content, path) -> None:
        writes.append(path)
        whole(content, path)
        if len(writes) == 3:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = torn
    train(dir, steps, LOG_EVERY)


def run(dir: Path, world_size: int) -> list[int | None]:
    return wait(start(world_size, train, dir, STEPS, LOG_EVERY))


def logged(dir: Path) -> list[dict]:
    """The numbers logged so far, without the times; a line that is being written is left out."""
    if not (dir / "log.jsonl").exists():
        return []
    lines = [line for line in (dir / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    entries = [entry for entry in map(json.loads, lines) if "step" in entry]
    return [{name: value for name, value in entry.items() if name != "time"} for entry in entries]


def last_step(dir: Path) -> int:
    return max((entry["step"] for entry in logged(dir)), default=0)


def kill_at_a_random_moment(dir: Path, world_size: int, chance: random.Random) -> None:
    """Kill one rank within the next quarter of the steps that are left, and what remains of the others soon after."""
    processes = start(world_size, train, dir, STEPS, LOG_EVERY, PAUSE)
    begin = last_step(dir)
    until = begin + chance.randrange(max((STEPS - begin) // 4, 1))
    while all(process.is_alive() for process in processes) and last_step(dir) < until:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.02))
    chance.choice(processes).kill()
    codes = wait(processes, seconds=3)
    assert -signal.SIGKILL in codes
    assert all(code != 0 for code in codes)


def assert_equal(one: object, other: object, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_at_three_random_moments_ends_like_one_that_was_not(tmp_path, world_size):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run(unbroken, world_size) == [0] * world_size

    codes = wait(start(world_size, die_while_writing, broken, STEPS), seconds=10)
    assert codes[0] == -signal.SIGKILL
    assert any(path.name.endswith(".partial") for path in (broken / "checkpoints").iterdir())
    step, _ = Checkpoints(broken / "checkpoints").latest()
    assert step == 2 * SAVE_EVERY, "the third checkpoint was torn, the second is whole"
    chance = random.Random()
    for _ in range(3):
        kill_at_a_random_moment(broken, world_size, chance)
        found = Checkpoints(broken / "checkpoints").latest()
        assert found is not None
        assert last_step(broken) - found[0] <= SAVE_EVERY, "no more than one interval is lost"
    assert run(broken, world_size) == [0] * world_size

    name = f"checkpoint-{STEPS:08d}.pt"
    assert_equal(load(broken / "checkpoints" / name), load(unbroken / "checkpoints" / name))
    assert sorted(path.name for path in broken.rglob("*")) == sorted(path.name for path in unbroken.rglob("*"))
    assert [entry["step"] for entry in logged(unbroken)] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    assert logged(broken) == logged(unbroken)

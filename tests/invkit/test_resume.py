"""Killed at any moment and started again, a run ends with bitwise the weights of the run that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from invkit.checkpoint import Checkpoints, load
from tests.invkit.toy_task import start, train, wait

STEPS, SAVE_EVERY = 120, 7


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
    train(dir, steps, save_every=SAVE_EVERY)


def run(dir: Path, world_size: int) -> list[int | None]:
    return wait(start(world_size, train, dir, STEPS))


def logged_steps(dir: Path) -> list[int]:
    if not (dir / "log.jsonl").exists():
        return []
    lines = [line for line in (dir / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [entry["step"] for entry in map(json.loads, lines) if "step" in entry]


def kill_at_a_random_moment(dir: Path, world_size: int, chance: random.Random) -> None:
    """Kill one rank at some moment of the next third of the training; the others fall with it."""
    processes = start(world_size, train, dir, STEPS)
    begin = (logged_steps(dir) or [0])[-1]
    until = begin + chance.randrange(STEPS // 4)
    while all(process.is_alive() for process in processes) and (logged_steps(dir) or [0])[-1] < until:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.02))
    chance.choice(processes).kill()
    codes = wait(processes, seconds=30)
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_at_three_random_moments_ends_like_one_that_was_not(tmp_path, world_size):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run(unbroken, world_size) == [0] * world_size

    codes = wait(start(world_size, die_while_writing, broken, STEPS), seconds=30)
    assert codes[0] == -signal.SIGKILL
    assert any(path.name.endswith(".partial") for path in (broken / "checkpoints").iterdir())
    step, _ = Checkpoints(broken / "checkpoints").latest()
    assert step == 2 * SAVE_EVERY, "the third checkpoint was torn, the second is whole"
    chance = random.Random()
    for _ in range(3):
        kill_at_a_random_moment(broken, world_size, chance)
        found = Checkpoints(broken / "checkpoints").latest()
        assert found is not None
        assert logged_steps(broken)[-1] - found[0] <= SAVE_EVERY
    assert run(broken, world_size) == [0] * world_size

    name = f"checkpoint-{STEPS:08d}.pt"
    assert_equal(load(broken / "checkpoints" / name), load(unbroken / "checkpoints" / name))
    assert sorted(path.name for path in broken.rglob("*")) == sorted(path.name for path in unbroken.rglob("*"))
    assert logged_steps(broken) == logged_steps(unbroken) == list(range(1, STEPS + 1))

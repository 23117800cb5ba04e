"""The GAN of radiance fields in two processes, and interrupted as if nothing had been."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from invkit.runtime import dist
from invkit.runtime.checkpoint import load
from invkit.train.loop import fit
from nerfinv.generator.generator import Generator
from nerfinv.tasks.generator import GanTask
from tests.invkit.toy_task import ToyRun, start, wait
from tests.invkit.train.test_resume import assert_equal
from tests.nerfinv.tiny_gan import BATCH, tiny_gan

STEPS = 10

pytestmark = pytest.mark.timeout(300)


class Size:
    """Measures nothing but the mean square of a few planes."""

    def measure(self, generator: Generator, device: torch.device) -> dict[str, float]:
        latent = torch.randn(3, generator.latent_dim, generator=torch.Generator().manual_seed(5))
        return {"size": generator(generator.style(latent)).planes.square().mean().item()}


def state(task: GanTask) -> dict[str, Any]:
    """All that training changes."""
    modules = {name: module.state_dict() for name, module in task.modules.items()}
    return {"modules": modules, "optimizers": {phase.name: phase.optimizer.state_dict() for phase in task.phases}}


def train(dir: Path, breaks_at: int | None = None) -> None:
    """One run; rank r begins with weights of its own, which rank 0's have to replace."""
    rank = dist.init().rank
    task = tiny_gan(dtype=torch.float32, seed=rank)
    task.quality = Size()
    if breaks_at is not None:
        batches = islice(task.batches(0, rank, dist.world_size()), breaks_at)
        task.batches = lambda start, rank, world_size: batches
    fit(task, ToyRun(dir), STEPS, save_every=3, report_every=4, log_every=1)
    torch.save(state(task), dir / f"rank{rank}.pt")


def train_all(dir: Path) -> None:
    """Three runs of the same processes: one breaks among the spheres, and goes on to break after the seventh step."""
    train(dir / "whole")
    for step in (1, 8):
        with pytest.raises(ValueError, match=f"no batch for step {step}"):
            train(dir / "broken", breaks_at=step)
    train(dir / "broken")
    dist.finish()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What one process and what two have made."""
    dir = tmp_path_factory.mktemp("gan")
    jobs = [start(1, train_all, dir / "one"), start(2, train_all, dir / "two")]
    assert [wait(job, seconds=140) for job in jobs] == [[0], [0, 0]]
    return dir


def logged(dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (dir / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines if "step" in line]


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_run_that_broke_goes_on_bitwise(trained, ranks):
    whole, broken = trained / ranks / "whole", trained / ranks / "broken"
    for rank in range(len(list(whole.glob("rank*.pt")))):
        assert_equal(*(torch.load(dir / f"rank{rank}.pt", weights_only=True) for dir in (broken, whole)))
    for name in (f"checkpoint-{STEPS:08d}.pt", "best.pt"):
        assert_equal(load(broken / "checkpoints" / name), load(whole / "checkpoints" / name))
    assert logged(broken) == logged(whole)


def test_the_ranks_do_not_differ(trained):
    first, second = (torch.load(trained / "two" / "whole" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_checkpoint_holds_everything(trained, ranks):
    saved = load(trained / ranks / "whole" / "checkpoints" / f"checkpoint-{STEPS:08d}.pt")
    assert set(saved["modules"]) == {"generator", "generator_ema", "discriminator", "path_length", "ada"}
    assert saved["modules"]["path_length"]["mean"] > 0
    # Raised by a tenth at the discriminator's second, third and fourth turn.
    assert saved["modules"]["ada"]["probability"].item() == pytest.approx(0.3)
    assert not saved["optimizers"]["sphere"]["state"]
    assert saved["optimizers"]["generator"]["state"]


def test_what_is_drawn_does_not_depend_on_the_number_of_ranks(monkeypatch):
    task = tiny_gan()
    whole = task.shots(3)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        assert_equal(vars(task.shots(3).camera), vars(whole.camera[2 * rank : 2 * rank + BATCH // 2]))
        assert torch.equal(task.shots(3).latent, whole.latent[2 * rank : 2 * rank + BATCH // 2])

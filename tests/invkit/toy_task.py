"""A training job in miniature with everything that makes resuming hard, and the means to run it in real processes."""

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it, for seconds: once in the fork server is enough
from torch import Tensor, nn
from torch.nn.functional import softplus

from invkit.protocols import Phase
from invkit.runtime import dist
from invkit.runtime.checkpoint import Checkpoints
from invkit.runtime.log import Log
from invkit.train.ema import Ema
from invkit.train.loop import fit
from invkit.train.schedule import every, except_every, linear_decay, ramp
from tests.ports import free_port


@dataclass
class ToyRun:
    """The part of a run that the loop needs, without a configuration."""

    dir: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.rank, self.world_size, _ = dist.init()
        self.device = torch.device("cpu")
        self.log = Log(self.dir, main=self.rank == 0)
        self.checkpoints = Checkpoints(self.dir / "checkpoints", keep=2)
        self.config = {"name": "toy"}


class ToyGan:
    """Two players on 2-D points: batch normalization, dropout, Adam, a running average, all three random generators.

    Args:
        pause: seconds that reading a batch takes, so that there is time to be killed in.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        torch.manual_seed(7)
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1))
        self.average = Ema(self.generator, ramp(0.999, fast=10, medium=100))
        self.modules = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        self.phases = [
            Phase(
                "discriminator",
                torch.optim.Adam(self.discriminator.parameters(), lr=1e-2, betas=(0.0, 0.9)),
                self.discriminator_loss,
                due=except_every(3),
                clip_norm=1.0,
            ),
            Phase(
                "generator",
                torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.0, 0.9)),
                self.generator_loss,
                due=every(3),
                rate=linear_decay(50, 1000),
                autocast=torch.bfloat16,
            ),
        ]
        self.reports: list[int] = []

    def discriminator_loss(self, points: Tensor, step: int) -> dict[str, Tensor]:
        noisy = points + random.gauss(0, 0.1) + np.random.randn() * 0.1  # noqa: NPY002 - must be resumed as well
        fake = self.generator(torch.randn(len(points), 4))
        return {
            "real": softplus(-self.discriminator(noisy)).mean(),
            "fake": softplus(self.discriminator(fake)).mean(),
        }

    def generator_loss(self, points: Tensor, step: int) -> dict[str, Tensor]:
        return {"fooled": softplus(-self.discriminator(self.generator(torch.randn(len(points), 4)))).mean()}

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[Tensor]:
        step = start
        while True:
            time.sleep(self.pause)
            rng = torch.Generator().manual_seed(step)
            yield torch.randn(8, 2, generator=rng)[rank::world_size] + 2
            step += 1

    def after_step(self, step: int) -> None:
        if every(3)(step):
            self.average.update(self.generator, step)

    def report(self, run: Any, step: int) -> None:
        self.reports.append(step)
        run.log.image(step, "samples", torch.rand(3, 4, 4) * 2 - 1)

    def finish(self, run: Any) -> None:
        if dist.is_main():
            with (run.dir / "finish_calls.txt").open("a") as file:
                file.write("called\n")


def train(dir: Path, steps: int, log_every: int = 1, pause: float = 0.0) -> None:
    """The toy job from its beginning or from where it was left."""
    torch.set_num_threads(1)
    run = ToyRun(dir)
    fit(ToyGan(pause), run, steps, save_every=7, report_every=10, log_every=log_every)
    dist.finish()


_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])  # torch is imported once for all the processes


def start(world_size: int, function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """The started processes of a job, one per rank, each calling `function(*arguments)`."""
    port = free_port()
    ranks = [
        _processes.Process(target=_call, args=(rank, world_size, port, function, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def wait(processes: list[BaseProcess], seconds: float = 60.0) -> list[int | None]:
    """Exit codes; a process that does not end in time is killed."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _call(rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    if world_size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    function(*arguments)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))

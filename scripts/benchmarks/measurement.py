"""What a piece of work costs: time, processor time, memory."""

import itertools
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WARM_UP = 2  # repetitions that fill caches


@dataclass(frozen=True)
class Cost:
    """Medians over repetitions, milliseconds.

    Args:
        passes: of each pass.
        working: processor time of all passes together.
        repeats: how many repetitions were counted.
        peak_mb: memory at its highest, above what the process had before: on CUDA what torch allocated.
    """

    passes: tuple[float, ...]
    working: float
    repeats: int
    peak_mb: float


def cost(case: dict, *passes: Callable[..., Any], idle: int | None = None) -> Cost:
    """The cost of passes done one after another, each but the first given the result of the one before.

    Args:
        case: has `device`, the number of `repeats`, and the `seconds` after which no further one is begun.
        idle: `peak_bytes` before there was anything of the case; None takes that of this moment.
    """
    wait = torch.cuda.synchronize if case["device"] == "cuda" else (lambda: None)
    idle, began_all = peak_bytes(case["device"]) if idle is None else idle, time.perf_counter()
    walls: list[list[float]] = []
    workings: list[float] = []
    for _ in range(case["repeats"] + WARM_UP):
        wait()
        times, began_working, given = [time.perf_counter()], time.process_time(), ()
        for work in passes:
            given = (work(*given),)
            wait()
            times.append(time.perf_counter())
        workings.append(time.process_time() - began_working)
        walls.append([after - before for before, after in itertools.pairwise(times)])
        del given  # so that the next repetition does not find the memory of this one taken
        if times[-1] - began_all > case["seconds"]:
            break
    counted = slice(WARM_UP if len(walls) > WARM_UP else -1, None)
    return Cost(
        passes=tuple(statistics.median(values) * 1e3 for values in zip(*walls[counted], strict=True)),
        working=statistics.median(workings[counted]) * 1e3,
        repeats=len(walls[counted]),
        peak_mb=(peak_bytes(case["device"]) - idle) / 2**20,
    )


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux; there getrusage begins with what the process that started this one had
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process_of_its_own(measure: Callable[[dict], dict], case: dict) -> dict:
    """What `measure` says of the case in a fresh process, which may start others."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (case["threads"],)) as pool:
        return pool.submit(measure, case).result()

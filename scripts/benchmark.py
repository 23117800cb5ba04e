"""Measure time and memory of the parts that decide how long everything takes.

    python scripts/benchmark.py suite=render
    python scripts/benchmark.py suite=render device=cuda render.batches=[1,8,64] render.sizes=[256] output=render.json

Suite `render`: pictures of bumpy spheres, forward and backward to displacements, texture and camera, by our renderer
and by two plain ones: tables of pixels times faces, and brute force (whose shapes have no gradient).

Each case runs in a process of its own, so that its peak memory is its own: above the idle process on the CPU, what
torch allocated on CUDA. Times are medians, in milliseconds per image; `cpu` is processor time of both passes, which
(with one thread) means something on a busy machine too.
"""

import functools
import importlib
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from invkit import rotation
from invkit.camera import Camera
from invkit.files import written_aside
from invkit.run import main
from meshinv.mesh import UVMaps
from meshinv.renderers.auto import AutoRenderer
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template

ROOT = Path(__file__).resolve().parents[1]
TEXTURE_SIZE = 128
WARM_UP = 2  # repetitions that fill caches


@main(config_name="benchmark")
def benchmark(cfg: DictConfig) -> None:
    settings = OmegaConf.to_container(cfg, resolve=True)
    if settings["suite"] not in SUITES:
        raise ValueError(f"suite={settings['suite']} is not one of {', '.join(SUITES)}")
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device; scripts/doctor.py says more")
    results = list(SUITES[settings["suite"]](settings))
    if settings["output"]:
        with written_aside(Path(settings["output"])) as aside:
            aside.write_text(json.dumps(results, indent=2) + "\n")


def render(settings: dict) -> Iterator[dict]:
    """The cases of the suite with their numbers, printed line by line."""
    suite = settings["render"]
    shared = {key: settings[key] for key in ("device", "threads", "repeats", "seconds")}
    print("method       size batch faces  soft   forward backward      cpu  peak MB")
    grid = (suite["methods"], suite["rings"], suite["sizes"], suite["batches"], suite["soft_mask"])
    for method, rings, size, batch, soft in itertools.product(*grid):
        faces = len(Template(rings).faces)
        if batch * size**2 * faces > float(suite["largest"].get(method, math.inf)):
            continue
        case = {"method": method, "size": size, "batch": batch, "rings": rings, "faces": faces, "soft_mask": soft}
        row = in_a_process_of_its_own(measure_render, case | shared)
        print(
            f"{method:12} {size:4} {batch:5} {faces:5} {soft!s:>5}  "
            f" {row['forward_ms']:7.2f}  {row['backward_ms']:7.2f}  {row['cpu_ms']:7.2f}  {row['peak_mb']:7.0f}",
            flush=True,
        )
        yield row


SUITES: dict[str, Callable[[dict], Iterator[dict]]] = {"render": render}


def measure_render(case: dict) -> dict:
    """The case with its times and its peak."""
    renderer = renderer_named(case["method"])(case["size"])
    extras = frozenset({"soft_mask"} if case["soft_mask"] else ())
    leaves = bumpy_scene(case["batch"], case["device"])
    template = Template(case["rings"])

    def forward() -> torch.Tensor:
        displacement, texture, *camera = leaves
        mesh = UVMaps(texture, displacement).mesh(template)
        image = renderer(mesh, Camera(*camera), extras=extras)
        return image.rgb.square().sum() + (image.soft_mask.sum() if case["soft_mask"] else 0)

    return case | timed(case, forward, functools.partial(torch.autograd.grad, inputs=leaves, allow_unused=True))


def renderer_named(method: str) -> type[MeshRenderer]:
    """The renderer's class.

    Raises:
        ValueError: there is no such method.
    """
    ours = {"reference": MeshRenderer, "auto": AutoRenderer}
    slow = {"dense": "DenseRenderer", "brute_force": "BruteForceRenderer"}
    if method in ours:
        return ours[method]
    if method not in slow:
        raise ValueError(f"render.methods: {method} is not one of {', '.join([*ours, *slow])}")
    sys.path.insert(0, str(ROOT))  # these are the tests'
    return getattr(importlib.import_module("tests.meshinv.slow_renderers"), slow[method])


def bumpy_scene(batch: int, device: str) -> list[torch.Tensor]:
    """Displacements, textures, and quaternions, scales, shifts and inverse focal lengths of cameras."""
    rng = torch.Generator().manual_seed(0)
    c, y, x = (torch.arange(float(n)) for n in (3, 32, 32))
    waves = 0.1 * torch.cos(0.5 * c[:, None, None] + 0.2 * y[:, None] + 0.3 * x)
    displacement = waves + 0.02 * torch.randn(batch, 3, 32, 32, generator=rng)
    texture = torch.rand(batch, 3, TEXTURE_SIZE, TEXTURE_SIZE, generator=rng) * 2 - 1
    quat = rotation.random(batch, rng)
    scale, shift, inv_focal = torch.full((batch,), 0.6), torch.zeros(batch, 2), torch.zeros(batch)
    return [t.to(device).requires_grad_() for t in (displacement, texture, quat, scale, shift, inv_focal)]


def timed(case: dict, forward: Callable[[], torch.Tensor], backward: Callable[[torch.Tensor], object]) -> dict:
    """Medians of the times of both passes, and the peak of the memory."""
    wait = torch.cuda.synchronize if case["device"] == "cuda" else (lambda: None)
    idle, began_all = peak_bytes(case["device"]), time.perf_counter()
    passes: list[tuple[float, float, float]] = []
    for _ in range(case["repeats"] + WARM_UP):
        wait()
        began, began_working = time.perf_counter(), time.process_time()
        result = forward()
        wait()
        between = time.perf_counter()
        backward(result)
        wait()
        ended, ended_working = time.perf_counter(), time.process_time()
        passes.append((between - began, ended - between, ended_working - began_working))
        if ended - began_all > case["seconds"]:
            break
    counted = passes[WARM_UP:] or passes[-1:]
    numbers = zip(("forward_ms", "backward_ms", "cpu_ms"), zip(*counted, strict=True), strict=True)
    medians = {name: statistics.median(values) * 1e3 / case["batch"] for name, values in numbers}
    return {**medians, "repeats": len(counted), "peak_mb": (peak_bytes(case["device"]) - idle) / 2**20}


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process_of_its_own(measure: Callable[[dict], dict], case: dict) -> dict:
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (case["threads"],)) as pool:
        return pool.apply(measure, (case,))


if __name__ == "__main__":
    benchmark()

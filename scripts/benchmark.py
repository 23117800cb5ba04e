"""Measure time and memory of the parts that decide how long everything takes.

    python scripts/benchmark.py suite=render
    python scripts/benchmark.py suite=render device=cuda render.batches=[1,8,64] render.sizes=[256] output=render.json
    python scripts/benchmark.py suite=gan seconds=60
    python scripts/benchmark.py suite=gan device=cuda gan.models=[full] gan.batches.full=[32] output=gan.json
    python scripts/benchmark.py suite=mesh_inversion
    python scripts/benchmark.py suite=mesh_inversion mesh_inversion.parts=[texture] mesh_inversion.sizes.texture=[4096]
    python scripts/benchmark.py suite=nerf nerf.parts=[render_backward] nerf.models=[full]
    python scripts/benchmark.py suite=nerf device=cuda nerf.models=[full] nerf.batches.full=8

Suite `render`: pictures of bumpy spheres, forward and backward, by our renderer and by two plain ones; per image.
Suite `gan`: one step of the mesh GAN's generator and one of its discriminators, and the parts of them, by presets.
Suite `mesh_inversion`: losses, first guesses, steps, whole inversions and GLB files, each compared with its naive form.
Suite `nerf`: pictures of radiance fields compared with their plain form, and the steps of their GAN with each saving.
Suite `nerf_inversion`: encoder, poses, steps and whole hybrid inversions, each compared with its plain form.

Each case runs in a process of its own, so its peak memory is its own: on the CPU above the idle process, on CUDA what
torch allocated. Times are medians in milliseconds. `cpu` is processor time, which (with one thread) is meaningful on a
busy machine too. docs/performance.md has results.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks import gan, mesh_inversion, nerf, nerf_inversion, render
from omegaconf import DictConfig, OmegaConf

from invkit.runtime.files import written_aside
from invkit.runtime.run import main

SUITES: dict[str, Callable[[dict], Iterator[dict]]] = {
    "render": render.rows,
    "gan": gan.rows,
    "mesh_inversion": mesh_inversion.rows,
    "nerf": nerf.rows,
    "nerf_inversion": nerf_inversion.rows,
}


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


if __name__ == "__main__":
    benchmark()

"""Measure time and memory of the parts that decide how long everything takes.

    python scripts/benchmark.py render --sizes 64 128 256 --batch 1 8 --rings 16 31
    python scripts/benchmark.py render --device cuda --sizes 256 --batch 8 64 --output render.json

Suite `render`: pictures of bumpy spheres, forward and backward to displacements, texture and camera, with and without
the soft mask. Each case runs in a process of its own, so that its peak memory is its own: above the idle process on the
CPU, what torch allocated on CUDA. Times are medians, in milliseconds per image; `cpu` is processor time of both passes,
which (with --threads 1) means something on a busy machine too.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

from invkit import rotation
from invkit.camera import Camera
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template

TEXTURE_SIZE = 128


def bumpy_scene(batch: int, rings: int, device: str) -> tuple[TexturedMesh, Camera, list[torch.Tensor]]:
    """Meshes, cameras and the leaves that gradients are taken to."""
    rng = torch.Generator().manual_seed(0)
    c, y, x = (torch.arange(float(n)) for n in (3, 32, 32))
    waves = 0.1 * torch.cos(0.5 * c[:, None, None] + 0.2 * y[:, None] + 0.3 * x)
    displacement = waves + 0.02 * torch.randn(batch, 3, 32, 32, generator=rng)
    texture = torch.rand(batch, 3, TEXTURE_SIZE, TEXTURE_SIZE, generator=rng) * 2 - 1
    quat = rotation.random(batch, rng)
    scale, shift = torch.full((batch,), 0.6), torch.zeros(batch, 2)
    leaves = [t.to(device).requires_grad_() for t in (displacement, texture, quat, scale, shift)]
    displacement, texture, quat, scale, shift = leaves
    camera = Camera(quat, scale, shift, torch.zeros(batch, device=device))
    return UVMaps(texture, displacement).mesh(Template(rings)), camera, leaves


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_render(case: dict) -> dict:
    """The case with its times and its peak."""
    torch.set_num_threads(case["threads"])
    device = case["device"]
    renderer = MeshRenderer(case["size"])
    extras = frozenset({"soft_mask"} if case["soft"] else ())
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    idle = peak_bytes(device)
    forward, backward, processor, cover = [], [], [], math.nan
    for repeat in range(case["repeats"] + 2):
        mesh, camera, leaves = bumpy_scene(case["batch"], case["rings"], device)
        wait()
        began, began_working = time.perf_counter(), time.process_time()
        image = renderer(mesh, camera, extras=extras)
        loss = image.rgb.square().sum() + (image.soft_mask.sum() if case["soft"] else 0)
        wait()
        between = time.perf_counter()
        torch.autograd.grad(loss, leaves)
        wait()
        ended, ended_working = time.perf_counter(), time.process_time()
        if repeat >= 2:  # the first two fill caches
            forward.append(between - began)
            backward.append(ended - between)
            processor.append(ended_working - began_working)
            cover = image.mask.mean().item()
    per_image = 1e3 / case["batch"]
    return case | {
        "faces": len(Template(case["rings"]).faces),
        "covered": cover,
        "forward_ms": statistics.median(forward) * per_image,
        "backward_ms": statistics.median(backward) * per_image,
        "cpu_ms": statistics.median(processor) * per_image,
        "peak_mb": (peak_bytes(device) - idle) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["render"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--rings", type=int, nargs="+", default=[16], help="16: 960 faces, 31: 1920 faces")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args()
    results = []
    print(f"{'size':>5} {'batch':>5} {'faces':>5} {'soft':>5} {'forward':>8} {'backward':>8} {'cpu':>6} {'peak MB':>8}")
    context = multiprocessing.get_context("spawn")
    for rings, size, batch, soft in itertools.product(args.rings, args.sizes, args.batch, (False, True)):
        case = {"size": size, "batch": batch, "rings": rings, "soft": soft}
        case |= {"device": args.device, "threads": args.threads, "repeats": args.repeats}
        with context.Pool(1) as pool:
            row = pool.apply(measure_render, (case,))
        results.append(row)
        print(
            f"{size:5} {batch:5} {row['faces']:5} {soft!s:>5}"
            f" {row['forward_ms']:8.2f} {row['backward_ms']:8.2f} {row['cpu_ms']:6.2f} {row['peak_mb']:8.0f}"
        )
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

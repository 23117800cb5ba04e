"""Pictures of bumpy spheres, forward and backward to displacements, texture and camera: by our renderer and by two
plain ones, tables of pixels times faces and brute force (whose shapes have no gradient). Numbers are per image."""

import functools
import importlib
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import measurement
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from meshinv.mesh import UVMaps
from meshinv.renderers.auto import AutoRenderer
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template

ROOT = Path(__file__).resolve().parents[2]
TEXTURE_SIZE = 128


def rows(settings: dict) -> Iterator[dict]:
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
        row = measurement.in_a_process_of_its_own(measured, case | shared)
        print(
            f"{method:12} {size:4} {batch:5} {faces:5} {soft!s:>5}  "
            f" {row['forward_ms']:7.2f}  {row['backward_ms']:7.2f}  {row['cpu_ms']:7.2f}  {row['peak_mb']:7.0f}",
            flush=True,
        )
        yield row


def measured(case: dict) -> dict:
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

    backward = functools.partial(torch.autograd.grad, inputs=leaves, allow_unused=True)
    cost = measurement.cost(case, forward, backward)
    times = zip(("forward_ms", "backward_ms", "cpu_ms"), (*cost.passes, cost.working), strict=True)
    per_image = {name: time / case["batch"] for name, time in times}
    return {**case, **per_image, "repeats": cost.repeats, "peak_mb": cost.peak_mb}


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

"""What radiance fields cost: pictures of them, by our renderer and by its plain twin, and the steps of their training.

Pictures are of bumpy balls (or of a trained generator's objects): rays that miss, a thin surface and an opaque inside
are what the renderer makes use of. Steps are those of the project's own configurations on random images, with one
saving at a time; there the fields are spheres, as at the beginning of a training.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import measurement
from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.runtime.run import instantiate_trusted, load_module
from invkit.train.loop import _Player
from invkit.types import Rendering, Views
from nerfinv.field import LaplaceDensity, RadianceField
from nerfinv.generator.decoder import PlaneDecoder
from nerfinv.generator.generator import Generator
from nerfinv.losses import surface
from nerfinv.renderers.plain import PlainRenderer
from nerfinv.renderers.volume import VolumeRenderer

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
RENDERERS = {"plain": PlainRenderer, "ours": VolumeRenderer}
STEPS = {"generator_step": "generator", "discriminator_step": "discriminator"}


def rows(settings: dict) -> Iterator[dict]:
    """The cases of the suite with their numbers, printed line by line.

    Raises:
        ValueError: there is no such part or form.
    """
    suite = settings["nerf"]
    for name in suite["forms"]:
        if name not in suite["savings"]:
            raise ValueError(f"nerf.forms: {name} is not one of {', '.join(suite['savings'])}")
    for part in suite["parts"]:
        if part not in ("render", "render_backward", *STEPS):
            raise ValueError(f"nerf.parts: {part} is not one of render, render_backward, {', '.join(STEPS)}")
    shared = {key: settings[key] for key in ("device", "threads", "repeats", "seconds")}
    print("part                model  batch size form                  ms      cpu  speed  peak MB  memory  difference")
    for part, model in itertools.product(suite["parts"], suite["models"]):
        batch = suite["batches"][model]
        if part in STEPS:
            forms = [
                {"form": name, "overrides": suite["savings"][name], "experiment": suite["experiment"]}
                for name in suite["forms"]
            ]
        else:
            forms = [{"form": name, "prior": suite["prior"]} | suite["rendering"] for name in RENDERERS]
        first = None
        for form in forms:
            case = {"part": part, "model": model, "batch": batch} | form | shared
            found = measurement.in_a_process_of_its_own(measured, case)
            first = found if first is None else first
            row = compared(found, first, "ms" if settings["device"] == "cuda" else "cpu_ms")
            print(
                f"{part:19} {model:6} {batch:5} {row['size']:4} {row['form']:18} {row['ms']:7.0f} {row['cpu_ms']:8.0f} "
                f"{row['speed']:6.2f} {row['peak_mb']:8.0f} {row['memory']:7.2f}  {row['difference']}",
                flush=True,
            )
            yield row


def compared(row: dict, first: dict, clock: str) -> dict:
    """By which factors a form is better than the first, and how much the results of the two differ."""
    differences = []
    for name, values in row["results"].items():
        there = first["results"][name]
        if name == "rgb":
            differences.append(f"{(values - there).abs().max().item():.0e}")
        else:
            differences.append(f"{name} {((values - there).norm() / there.norm()).item():.0e}")
    speed = first[clock] / row[clock]
    memory = row["peak_mb"] / first["peak_mb"] if first["peak_mb"] > 0 else math.nan  # too little to be seen
    plain = {key: value for key, value in row.items() if key != "results"}
    return {**plain, "speed": speed, "memory": memory, "difference": " ".join(differences)}


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Args:
        size: of the pictures, pixels.
        turns: what is wanted is the cost of one of so many.
        results: what the work has found, after it was done.
    """

    work: Callable[[], object]
    size: int
    turns: int = 1
    results: dict[str, Tensor] = field(default_factory=dict)


def measured(case: dict) -> dict:
    """The case with its times, its peak and its results."""
    idle = measurement.peak_bytes(case["device"])
    torch.manual_seed(0)
    made = (training if case["part"] in STEPS else rendering)(case)
    cost = measurement.cost(case, made.work, idle=idle)
    (ms,) = cost.passes
    return {
        **case,
        "size": made.size,
        "ms": ms / made.turns,
        "cpu_ms": cost.working / made.turns,
        "repeats": cost.repeats,
        "peak_mb": cost.peak_mb,
        "results": {name: values.detach().cpu() for name, values in made.results.items()},
    }


# ---- Pictures --------------------------------------------------------------------------------------------------------


class BumpyDecoder(PlaneDecoder):
    """The decoder with the distance to a ball added; the first three plane features are the coordinates."""

    def forward(self, features: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
        value, attributes = super().forward(features)
        return 0.05 * value + self.ball(features), attributes

    def value(self, features: Float[Tensor, "P C"]) -> Float[Tensor, "P"]:
        return 0.05 * super().value(features) + self.ball(features)

    def ball(self, features: Float[Tensor, "P C"]) -> Float[Tensor, "P"]:
        # A coordinate lies in two of the three planes, whose mean is taken.
        return (features[:, :3] * 1.5).norm(dim=1) - 0.7


def bumpy_balls(batch: int, sizes: dict, alpha: float, beta: float) -> RadianceField:
    """Fields of a model's size whose object fills about a third of the picture."""
    side, channels = sizes["plane_size"], sizes["plane_channels"]
    planes = 0.5 * torch.randn(batch, 3, channels, side, side)
    axis = torch.linspace(-1, 1, side)
    planes[:, :, :3] = 0
    for plane, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
        planes[:, plane, first], planes[:, plane, second] = axis.expand(side, side), axis[:, None].expand(side, side)
    colors = sizes["palette_size"]
    return RadianceField(
        planes,
        torch.rand(batch, colors, 3) * 2 - 1,
        BumpyDecoder(channels, colors, width=sizes["decoder_width"]),
        LaplaceDensity(alpha, beta),
        1.0,
    )


def rendering(case: dict) -> Case:
    """The pictures of a batch, with the gradient for planes (or styles, of a trained generator) and poses."""
    device, batch = case["device"], case["batch"]
    rng = torch.Generator().manual_seed(0)
    camera = Camera(
        rotation.random(batch, rng), torch.full((batch,), 0.7), torch.zeros(batch, 2), torch.full((batch,), 0.35)
    ).to(device)
    leaves = [camera.quat, camera.scale, camera.shift, camera.inv_focal]
    if case["prior"] is None:
        balls = bumpy_balls(batch, model_sizes(case["model"]), case["alpha"], case["beta"]).to(device)
        balls.decoder.to(device), balls.density.to(device)
        leaves.insert(0, balls.planes)

        def scene() -> RadianceField:
            return balls
    else:
        generator: Generator = load_module(ROOT / case["prior"], "generator", state="generator_ema").to(device)
        camera = replace(camera, scale=camera.scale / generator.scene_range)
        leaves[1] = camera.scale
        latent = torch.randn(batch, generator.latent_dim, generator=rng).to(device)
        styles = generator.style(latent)[:, None].repeat(1, generator.num_styles, 1)
        leaves.insert(0, styles)

        def scene() -> RadianceField:
            return generator(styles)

    renderer = RENDERERS[case["form"]](case["size"], coarse=case["coarse"], fine=case["fine"])
    backward = case["part"] == "render_backward"
    for leaf in leaves:
        leaf.requires_grad_(backward)
    found: dict[str, Tensor] = {}

    def work() -> Rendering:
        with torch.set_grad_enabled(backward):
            image = renderer(scene(), camera)
        found["rgb"] = image.rgb
        if backward:
            gradients = torch.autograd.grad(image.rgb.square().sum() + image.mask.sum(), leaves)
            found["latent"], found["pose"] = gradients[0], torch.cat([part.flatten() for part in gradients[1:]])
        return image

    return Case(work, case["size"], results=found)


# ---- Steps of the training -------------------------------------------------------------------------------------------


def model_sizes(model: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(f"model/nerfinv_{model}")
    return OmegaConf.to_container(config, resolve=True)["model"]


class RandomViews(ImageSet):
    """A few images of noise seen from all sides, which are in no file."""

    num_classes = 0

    def __init__(self, count: int, size: int) -> None:
        self.names, self.size = [str(index) for index in range(count)], size
        rng = torch.Generator().manual_seed(0)
        self.rgb = torch.rand(count, 3, size, size, generator=rng) * 2 - 1
        self.of_all = Camera(
            rotation.random(count, rng), torch.full((count,), 0.7), torch.zeros(count, 2), torch.full((count,), 0.35)
        )

    def __getitem__(self, index: int) -> Views:
        rgb = self.rgb[index : index + 1]
        return Views(rgb, torch.ones_like(rgb[:, :1]), self.of_all[index], None, torch.tensor([index]))


def training(case: dict) -> Case:
    """What the training loop does at the steps of this phase from one of a lazy regularizer's turns to the next."""
    overrides = [
        f"experiment={case['experiment']}",
        f"model=nerfinv_{case['model']}",
        f"++task.batch_size={case['batch']}",
        "++task.ada=null",
        "++task.path_warm_up=0",
        "++task.surface_warm_up=0",
        "++task.sphere_steps=0",
        "++task.half_size_steps=0",
        *case["overrides"],
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides), resolve=True)
    node, sizes = config["task"], config["model"]
    node.pop("data")
    node.pop("quality", None)
    data = RandomViews(2 * case["batch"], sizes["photograph_size"])
    task = instantiate_trusted(node, data=data)
    device = torch.device(case["device"])
    for module in task.modules.values():
        module.to(device)
    become_spheres(task.generator, task.surface.cells)
    player = next(_Player.of(each, task, device) for each in task.phases if each.name == STEPS[case["part"]])
    discriminates = case["part"] == "discriminator_step"
    given = data.batch(range(case["batch"])).to(device) if discriminates else torch.empty(0)
    turns = max(task.r1_every, task.path_every, task.surface_every)
    steps = itertools.cycle(range(int(discriminates), 2 * turns, 2))

    def work() -> None:
        for _ in range(turns):
            player.move(given, next(steps), device)

    return Case(work, task.renderer.size, turns)


def become_spheres(generator: Generator, cells: int, steps: int = 12) -> None:
    """Something with an inside and an outside."""
    optimizer = torch.optim.Adam(generator.parameters(), 0.005)
    like = next(generator.parameters())
    for _ in range(steps):
        fields = generator(generator.style(torch.randn(1, generator.latent_dim).to(like)))
        points = surface.stratified_points(fields, min(cells, 8))
        loss = surface.sphere(fields.value(points), points, 0.5 * fields.half_side).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

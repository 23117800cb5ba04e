"""Steps of the mesh GAN's training (loss, gradient, optimizer), and the parts they are made of.

Tasks are built from the project's own configurations, presets side by side; the data are random maps in memory. What
is random costs as much as what is real: nothing here depends on values, but for the renderer, which draws spheres that
cover a quarter of the picture, about what a bird covers.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import measurement
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.runtime.run import instantiate_trusted
from invkit.train.loop import _Player
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.pseudo_truth import PseudoTruth
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.tasks.gan import GanTask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def rows(settings: dict) -> Iterator[dict]:
    """The cases of the suite with their numbers, printed line by line.

    Raises:
        ValueError: there is no such part.
    """
    suite = settings["gan"]
    for part in suite["parts"]:
        if part not in PARTS:
            raise ValueError(f"gan.parts: {part} is not one of {', '.join(PARTS)}")
    shared = {key: settings[key] for key in ("device", "threads", "repeats", "seconds")} | {
        "experiment": suite["experiment"]
    }
    clock = "ms" if settings["device"] == "cuda" else "cpu_ms"
    print("model  batch patches part                preset      ms  ms/image      cpu  cpu/image  speed  peak MB")
    for model, patches in itertools.product(suite["models"], suite["image_discriminator"]):
        parts = [part for part in suite["parts"] if patches or part in STEPS]
        for batch, part in itertools.product(suite["batches"][model], parts):
            first = None
            for preset in suite["presets"]:
                case = {"model": model, "batch": batch, "image_discriminator": patches, "part": part, "preset": preset}
                row = measurement.in_a_process_of_its_own(measured, case | shared)
                first = row[clock] if first is None else first
                row["speed"] = first / row[clock]
                print(
                    f"{model:6} {batch:5} {'yes' if patches else 'no':7} {part:19} {preset:6} {row['ms']:7.1f} "
                    f"{row['ms_per_image']:9.2f} {row['cpu_ms']:8.1f} {row['cpu_ms_per_image']:10.2f} "
                    f"{row['speed']:6.2f} {row['peak_mb']:8.0f}",
                    flush=True,
                )
                yield row


def measured(case: dict) -> dict:
    """The case with its times and its peak, which counts the networks, their gradients and their optimizer."""
    idle = measurement.peak_bytes(case["device"])
    torch.manual_seed(0)
    task, real = task_and_batch(case)
    for module in task.modules.values():
        module.to(case["device"])
    cost = measurement.cost(case, PARTS[case["part"]](task, real.to(case["device"])), idle=idle)
    (ms,) = cost.passes
    precision = task.phases[0].autocast or torch.float32
    return {
        **case,
        "precision": str(precision).removeprefix("torch."),
        "ms": ms,
        "ms_per_image": ms / case["batch"],
        "cpu_ms": cost.working,
        "cpu_ms_per_image": cost.working / case["batch"],
        "repeats": cost.repeats,
        "peak_mb": cost.peak_mb,
    }


def task_and_batch(case: dict) -> tuple[GanTask, PseudoTruth]:
    """The experiment's task with data that are made here, and one batch of them."""
    overrides = [
        f"experiment={case['experiment']}",
        f"model={case['model']}",
        f"preset=meshinv_gan/{case['preset']}",
        f"++task.batch_size={case['batch']}",
    ]
    if not case["image_discriminator"]:
        overrides.append("task.image_discriminator=null")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides), resolve=True)
    node, sizes = config["task"], config["model"]
    del node["quality"]
    num_classes = node.pop("data")["num_classes"]
    real = random_truth(case["batch"], sizes["texture_size"], sizes["image_size"], num_classes)
    return instantiate_trusted(node, data=RandomTruth(real, num_classes)), real


class RandomTruth(PseudoTruthSet):
    """A set of nothing but one batch, which is in no file."""

    def __init__(self, items: PseudoTruth, num_classes: int) -> None:
        self.items, self.num_classes, self.image_size = items, num_classes, items.image.shape[-1]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> PseudoTruth:
        return self.items[item]


def random_truth(batch: int, texture_size: int, image_size: int, num_classes: int) -> PseudoTruth:
    rng = torch.Generator().manual_seed(0)
    alpha = (torch.rand(batch, 1, texture_size, texture_size, generator=rng) < 0.4).float()
    texture = (torch.rand(batch, 3, texture_size, texture_size, generator=rng) * 2 - 1) * alpha
    camera = Camera(
        rotation.random(batch, rng), torch.full((batch,), 0.6), torch.zeros(batch, 2), inv_focal=torch.zeros(batch)
    )
    return PseudoTruth(
        UVMaps(texture, 0.02 * torch.randn(batch, 3, 32, 32, generator=rng)),
        alpha,
        camera,
        torch.randint(num_classes, (batch,), generator=rng) if num_classes else None,
        torch.arange(batch),
        torch.rand(batch, 3, image_size, image_size, generator=rng) * 2 - 1,
    )


Work = Callable[[], object]


def step_of(phase: str) -> Callable[[GanTask, PseudoTruth], Work]:
    """What the training loop does in this phase."""

    def work(task: GanTask, real: PseudoTruth) -> Work:
        device, count = real.alpha.device, itertools.count()
        player = next(_Player.of(each, task, device) for each in task.phases if each.name == phase)
        return lambda: player.move(real, next(count), device)

    return work


def forward_and_backward(task: GanTask, forward: Callable[[], list[torch.Tensor]], leaves: list[torch.Tensor]) -> Work:
    """The results summed up, in the task's precision, and their gradient for the leaves."""
    autocast = task.phases[0].autocast

    def work() -> object:
        with torch.autocast(leaves[0].device.type, autocast, enabled=autocast is not None):
            results = forward()
        return torch.autograd.grad(sum(result.float().sum() for result in results), leaves, allow_unused=True)

    return work


def generator(task: GanTask, real: PseudoTruth) -> Work:
    """Maps and meshes, and the gradient for the weights."""
    latent = torch.randn(len(real), task.generator.latent_dim).to(real.alpha)

    def forward() -> list[torch.Tensor]:
        maps, mesh = task.generate(latent, real.label)
        return [maps.texture, mesh.vertices]

    return forward_and_backward(task, forward, list(task.generator.parameters()))


def uv_discriminator(task: GanTask, real: PseudoTruth) -> Work:
    """Logits of as many fakes as reals, and the gradient for the weights."""
    both = PseudoTruth.cat([real, real])

    def forward() -> list[torch.Tensor]:
        return [logits for logits, _ in task.discriminator(both.maps, both.alpha, both.label)]

    return forward_and_backward(task, forward, list(task.discriminator.parameters()))


def renderer(task: GanTask, real: PseudoTruth) -> Work:
    """Pictures, and the gradient for shapes and textures."""
    template = task.template
    mesh = real.maps.mesh(template)
    leaves = [mesh.vertices.requires_grad_(), mesh.texture.requires_grad_()]
    return forward_and_backward(task, lambda: [task.renderer(TexturedMesh(*leaves, template), real.camera).rgb], leaves)


def patch_discriminator(task: GanTask, real: PseudoTruth) -> Work:
    """Logits of as many renderings as photographs, and the gradient for the weights."""
    both = torch.cat([real.image, real.image])
    return forward_and_backward(
        task, lambda: [task.image_discriminator(both)], list(task.image_discriminator.parameters())
    )


STEPS = {"generator_step": step_of("generator"), "discriminator_step": step_of("discriminator")}
PARTS: dict[str, Callable[[GanTask, PseudoTruth], Work]] = {
    **STEPS,
    "generator": generator,
    "uv_discriminator": uv_discriminator,
    "renderer": renderer,
    "patch_discriminator": patch_discriminator,
}
"""What is measured; all but the steps are forward and backward, and are measured with the image discriminator alone."""

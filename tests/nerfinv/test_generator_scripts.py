"""Every experiment of the generator of radiance fields, run for a few steps by its own script; its presets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invkit.metrics.fid import frechet_distance
from invkit.metrics.gaussian import Moments
from invkit.runtime import checkpoint
from invkit.runtime.run import instantiate_trusted, load_module
from tests.nerfinv.test_encoder_scripts import to_run
from tests.test_configs import CONFIGS, command, composed
from tests.test_dry_runs import brief, logged, roots, run, task_of

GENERATORS = to_run("nerfinv_generator_")
SMALL = [
    "quality@task.quality=nerfinv_squeezenet", "task.quality.features.weights=random", "task.quality.count=2",
    "task.quality.batch_size=2", "model.image_size=16", "model.photograph_size=32", "model.plane_size=16",
    "model.plane_channels=4", "model.channel_base=64", "model.max_channels=8", "model.latent_dim=6",
    "model.style_dim=6", "model.decoder_width=8", "model.coarse=4", "model.fine=4", "model.cells=3",
    "++task.sphere_steps=1", "++task.blur_sigma=2.0",
]  # fmt: skip
"""Overrides: the sizes of a test, whatever the experiment's own are."""
pytestmark = pytest.mark.filterwarnings("ignore:fid@")


def overrides_of(experiment: Path, data: dict[str, Path], *more: str) -> list[str]:
    task = composed(experiment, *SMALL)["task"]
    root = data[experiment.stem.removeprefix("nerfinv_generator_")]
    from_scratch = ["task.initial=null"] if "initial" in task else []  # what ships is of another size
    return [*command(experiment)[1], *SMALL, *from_scratch, *roots(task, root), *more]


@pytest.mark.parametrize("experiment", GENERATORS, ids=lambda path: path.stem)
def test_training_runs_three_steps_and_goes_on(experiment, data, tmp_path, monkeypatch):
    overrides = overrides_of(experiment, data, *brief(tmp_path, steps=3))
    run("train", overrides, monkeypatch)
    numbers = logged(tmp_path)
    assert {
        "sphere/distance",
        "generator/eikonal",
        "discriminator/r1",
        "quality/kid@squeezenet-random",
    } <= numbers.keys()
    assert all(np.isfinite(value) for value in numbers.values() if isinstance(value, float))
    for picture in ("samples", "normals", "depth"):
        assert (tmp_path / "images" / f"{picture}-00000003.png").is_file()
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    assert best["score"] == numbers["quality/kid@squeezenet-random"]
    generator = load_module(tmp_path / "checkpoints" / "best.pt", "generator", "generator_ema")
    assert generator(torch.zeros(1, 6)).planes.shape == (1, 3, 4, 16, 16)
    # The same command again finds nothing left to do.
    saved = tmp_path / "checkpoints" / "checkpoint-00000003.pt"
    before = saved.stat().st_mtime_ns
    run("train", overrides, monkeypatch)
    assert saved.stat().st_mtime_ns == before


@pytest.mark.parametrize("preset", [None, "official", "paper", "fast"])
def test_a_preset_sets_its_switches_and_no_others(preset, data, tmp_path, monkeypatch):
    chosen = [] if preset is None else [f"preset=nerfinv_generator/{preset}"]
    more = ["task.generator.noise=true", *brief(tmp_path, steps=3), *chosen]
    task = task_of(overrides_of(CONFIGS / "experiment" / "nerfinv_generator_cub.yaml", data, *more), monkeypatch)
    official, paper, fast = (preset == name for name in ("official", "paper", "fast"))
    assert (task.shift_objects, task.overshoot) == (official, official)
    assert (task.renderer.offset, task.quality.renderer.offset) == ((0.0, 0.0) if official else (0.5, 0.5))
    assert (task.renderer.random, task.quality.renderer.random) == (True, official)
    assert task.generator.synthesis.b4.conv1.random_noise_in_eval is official
    assert (task.surface.variation_weight, task.surface.entropy_weight, task.blur_steps) == (
        (0, 0, 0) if paper else (0.5, 0.05, 12_500)
    )
    assert task.mixed_precision is fast
    assert [task.r1_every > 1, task.path_every > 1, task.surface_every > 1] == [fast] * 3
    assert all(np.isfinite(value) for value in logged(tmp_path).values() if isinstance(value, float))


def test_the_papers_settings_are_the_defaults():
    task = composed(CONFIGS / "experiment" / "nerfinv_generator_cub.yaml")["task"]
    with torch.device("meta"):
        generator, discriminator = (instantiate_trusted(task[name]) for name in ("generator", "discriminator"))
    assert sum(parameter.numel() for parameter in generator.parameters()) == 32_164_056
    assert (generator.num_styles, generator.scene_range) == (15, 2.0)
    assert discriminator.channels == 4
    assert (task["renderer"]["size"], task["renderer"]["coarse"], task["renderer"]["fine"]) == (128, 64, 64)


@pytest.mark.parametrize(
    "name, scene_range, background, channels, augmented, mirrored, iterations",
    [
        ("shapenet_cars", 0.55, 1.0, 3, False, False, 300_000),
        ("shapenet_chairs", 0.55, 1.0, 3, False, False, 300_000),
        ("carla", 3.0, 1.0, 3, True, False, 300_000),
        ("p3d_car", 1.4, 0.0, 4, True, True, 300_000),
        ("cub", 2.0, 0.0, 4, True, True, 200_000),
        ("imagenet_car", 1.4, 0.0, 4, True, True, 300_000),
        ("imagenet_airplane", 1.4, 0.0, 4, True, True, 300_000),
        ("imagenet_motorcycle", 1.4, 0.0, 4, True, True, 300_000),
        ("imagenet_zebra", 1.4, 0.0, 4, True, True, 300_000),
        ("imagenet_elephant", 1.4, 0.0, 4, True, True, 200_000),
    ],
)
def test_settings_of_data_sets_are_the_released_ones(
    name, scene_range, background, channels, augmented, mirrored, iterations
):
    said = composed(CONFIGS / "experiment" / f"nerfinv_generator_{name}.yaml")
    task = said["task"]
    assert task["generator"]["scene_range"] == scene_range
    assert task["renderer"]["background"] == background
    assert task["discriminator"]["channels"] == channels
    assert (task["ada"] is not None, task.get("mirror", True)) == (augmented, mirrored)
    assert said["steps"] == 1000 + iterations
    assert task["generator"].get("noise", False) is (name in ("cub", "imagenet_elephant"))
    assert task["generator"].get("view_dependent", False) is (name == "carla")
    assert task.get("r1_weight", 5.0) == (10.0 if name == "imagenet_elephant" else 5.0)
    assert (task["data"]["size"], task["quality"]["data"]["size"]) == (256 if augmented else 128, 128)
    # Photographs are trained with uncut and measured cut.
    cut = [data.get("whole_image") for data in (task["data"], task["quality"]["data"])]
    assert cut == ([True, False] if background == 0 else [None, None])
    categories = [data.get("categories") for data in (task["data"], task["quality"]["data"])]
    assert categories == [[name.removeprefix("imagenet_")] if name.startswith("imagenet_") else None] * 2


def test_quality_compares_each_photograph_with_a_sample_under_its_camera(data, tmp_path):
    experiment = CONFIGS / "experiment" / "nerfinv_generator_synthetic_birds.yaml"
    node = composed(experiment, *SMALL, f"task.quality.data.root={data['cub']}", "task.quality.count=4")["task"]
    torch.manual_seed(0)
    quality, generator = instantiate_trusted(node["quality"]), instantiate_trusted(node["generator"]).eval()
    found = quality.measure(generator, torch.device("cpu"))
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(node["quality"]["seed"]))
    moments = {name: Moments(quality.features.dim) for name in ("real", "sample")}
    for index in range(4):
        views = quality.data[index]
        image = quality.renderer(generator(generator.style(latent[index : index + 1])), views.camera)
        with torch.no_grad():
            moments["real"].add(quality.features(views.rgb * views.mask))
            moments["sample"].add(quality.features(image.rgb))
    distance = frechet_distance(*(one.gaussian("") for one in moments.values()))
    assert found["fid@squeezenet-random"] == pytest.approx(distance, rel=1e-3)

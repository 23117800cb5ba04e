"""Every experiment of the encoder, run for two steps by its own script."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invkit.runtime import checkpoint
from invkit.runtime.run import instantiate_trusted, load_module
from nerfinv.generator.generator import Generator
from nerfinv.tasks.encoder import EncoderTask
from tests.test_configs import CONFIGS, EXPERIMENTS, command, composed, leaves
from tests.test_dry_runs import brief, logged, roots, run, task_of

STYLE = 8
PICTURES = ["model.image_size=32", "model.coarse=4", "model.fine=0", f"model.style_dim={STYLE}"]
SMALL = ["preset=nerfinv_encoder/small", *PICTURES]
"""Overrides: a network and pictures for a test, whatever the experiment's own size is."""
LIKE_CARS = ("airplane", "motorcycle", "zebra", "elephant")
"""Categories of ImageNet whose experiments differ from its cars' in names and numbers alone."""


def to_run(prefix: str) -> list[Path]:
    """The experiments of that name that no other one stands for."""
    named = [experiment for experiment in EXPERIMENTS if experiment.stem.startswith(prefix)]
    return [experiment for experiment in named if experiment.stem.rpartition("_")[2] not in LIKE_CARS]


ENCODERS = to_run("nerfinv_encoder_")


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    """An untrained generator as a training would have saved it."""
    settings = {
        "latent_dim": 5, "style_dim": STYLE, "plane_size": 8, "plane_channels": 4, "max_channels": 8,
        "channel_base": 64, "decoder_width": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    weights = {f"module.{name}": value for name, value in Generator(**settings).state_dict().items()}
    node = {"_target_": "nerfinv.generator.generator.Generator", **settings}
    path = tmp_path_factory.mktemp("generator") / "generator.pt"
    checkpoint.save(path, {"step": 0, "config": {"task": {"generator": node}}, "modules": {"generator_ema": weights}})
    return path


def overrides_of(experiment: Path, data: dict[str, Path], generator: Path) -> list[str]:
    root = data[experiment.stem.removeprefix("nerfinv_encoder_")]
    task = composed(experiment)["task"]
    return [
        *command(experiment)[1],
        *(["task.initial=null"] if "initial" in task else []),  # what ships is of another size
        *roots(task, root),
        f"task.generator.path={generator}",
        "task.pretrained=null",  # what is published is of another size
    ]


@pytest.mark.parametrize("experiment", ENCODERS, ids=lambda path: path.stem)
def test_training_runs_two_steps_and_goes_on(experiment, data, generator, tmp_path, monkeypatch):
    overrides = [*overrides_of(experiment, data, generator), *SMALL, *brief(tmp_path)]
    run("train", overrides, monkeypatch)
    encoder = load_module(tmp_path, "encoder")
    with torch.no_grad():
        seen = encoder(torch.zeros(1, 3, 64, 64))
    assert (seen.coords.shape, seen.latent.shape) == ((1, 3, 64, 64), (1, STYLE))
    numbers = logged(tmp_path)
    assert numbers["step"] == 2
    losses = {f"{kind}/{name}" for kind in ("encoder", "quality") for name in ("coords", "mask", "latent")}
    assert losses | {"quality/rotation_deg"} <= numbers.keys()
    assert all(np.isfinite(value) for value in numbers.values() if isinstance(value, float))
    assert list((tmp_path / "images").glob("samples-00000002.png"))
    # The same command again finds nothing left to do.
    saved = tmp_path / "checkpoints" / "checkpoint-00000002.pt"
    before = saved.stat().st_mtime_ns
    run("train", overrides, monkeypatch)
    assert saved.stat().st_mtime_ns == before


@pytest.mark.parametrize("category", LIKE_CARS)
@pytest.mark.parametrize("kind", ["generator", "encoder", "invert"])
def test_experiments_of_other_categories_are_those_of_cars(kind, category):
    cars = leaves(composed(CONFIGS / "experiment" / f"nerfinv_{kind}_imagenet_car.yaml"))
    other = leaves(composed(CONFIGS / "experiment" / f"nerfinv_{kind}_imagenet_{category}.yaml"))
    named = {
        key: [category] if value == ["car"] else value.replace("imagenet_car", f"imagenet_{category}")
        for key, value in cars.items()
        if value == ["car"] or "imagenet_car" in str(value)
    }
    assert len(named) >= 3
    numbers = {"steps": 201_000, "task.generator.noise": True, "task.r1_weight": 10.0}
    assert other == {**cars, **named, **(numbers if (kind, category) == ("generator", "elephant") else {})}


def test_a_regressor_is_trained_beside_the_encoder(data, generator, tmp_path, monkeypatch):
    experiment = CONFIGS / "experiment" / "nerfinv_encoder_synthetic_cars.yaml"
    backbone = "{_target_:nerfinv.encoder.segformer.SegFormer,dims:[8,8,16,16],num_heads:[1,1,2,2],depths:[1,1,1,1]}"
    regressor = f"{{_target_:nerfinv.encoder.encoder.PoseRegressor,head_width:8,backbone:{backbone}}}"
    overrides = [*overrides_of(experiment, data, generator), *SMALL, *brief(tmp_path), f"task.regressor={regressor}"]
    run("train", overrides, monkeypatch)
    numbers = logged(tmp_path)
    assert 0 <= numbers["quality/rotation_deg_regressed"] <= 180
    with torch.no_grad():
        camera = load_module(tmp_path, "regressor")(torch.zeros(2, 3, 32, 32))
    torch.testing.assert_close(camera.quat.norm(dim=1), torch.ones(2))


def test_the_papers_network_is_the_default():
    node = composed(CONFIGS / "experiment" / "nerfinv_encoder_cub.yaml")["task"]["encoder"]
    with torch.device("meta"):
        encoder = instantiate_trusted(node)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 92_609_476


def test_the_papers_experiments_begin_with_the_backbone_of_imagenet(tmp_path, generator, data, monkeypatch, capsys):
    assert {composed(path)["task"]["pretrained"] for path in ENCODERS if "synthetic" not in path.stem} <= {
        "mit_b5",
        None,
    }
    experiment = CONFIGS / "experiment" / "nerfinv_encoder_cub.yaml"
    assert composed(experiment)["task"]["pretrained"] == "mit_b5"
    monkeypatch.setenv("INVKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    overrides = [*overrides_of(experiment, data, generator), *SMALL, *brief(tmp_path / "run"), "task.pretrained=mit_b5"]
    with pytest.raises(SystemExit) as refused:
        run("train", overrides, monkeypatch)
    assert refused.value.code == 2
    assert "no file mit_b5.pth" in (said := capsys.readouterr().err)
    assert "task.pretrained=null" in said
    assert not (tmp_path / "run").exists()


def published(folder: Path) -> Path:
    """A backbone of the small preset's size in the published layout."""
    node = composed(CONFIGS / "experiment" / "nerfinv_encoder_synthetic_cars.yaml")["task"]["encoder"]["backbone"]
    state = instantiate_trusted(node).state_dict()
    path = folder / "mit.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("linear_")}, path)
    return path


@pytest.mark.parametrize("preset", ["official", "fast", "small"])
def test_a_preset_sets_its_switches_and_no_others(preset, data, generator, tmp_path, monkeypatch):
    experiment = CONFIGS / "experiment" / "nerfinv_encoder_cub.yaml"
    node = composed(experiment, "preset=nerfinv_encoder/small")["task"]
    numbers = {name: value for name, value in node["encoder"]["backbone"].items() if name != "_target_"}
    size = [f"++task.encoder.backbone.{name}={value}" for name, value in numbers.items()]
    size += ["++task.encoder.head_width=64", *PICTURES]
    overrides = [*overrides_of(experiment, data, generator), f"preset=nerfinv_encoder/{preset}", *size]
    if preset == "official":
        overrides.append(f"task.pretrained={published(tmp_path)}")
    task = task_of([*overrides, *brief(tmp_path / "run")], monkeypatch)
    assert isinstance(task, EncoderTask)
    fast = preset in ("fast", "small")
    (phase,) = task.phases
    assert phase.autocast is (torch.bfloat16 if fast else None)
    assert task.reuse == (4 if fast else 1)
    assert task.coords_weight == (10.0 if preset == "small" else 1.0)
    assert task.renderer.offset == (0.0 if preset == "official" else 0.5)
    group = phase.optimizer.param_groups[0]
    assert (group["initial_lr"], group["betas"], group["weight_decay"]) == (
        5e-4 if preset == "small" else 6e-5,
        (0.9, 0.999),
        0,
    )
    half = 8000 if preset == "small" else 60_000
    assert [phase.rate(step) for step in (0, half - 1, half)] == [1, 1, 0.1]


def test_another_generators_styles_are_refused(data, generator, tmp_path, monkeypatch, capsys):
    experiment = CONFIGS / "experiment" / "nerfinv_encoder_synthetic_birds.yaml"
    with pytest.raises(SystemExit) as refused:
        run("train", [*overrides_of(experiment, data, generator), *brief(tmp_path / "run")], monkeypatch)
    assert refused.value.code == 2
    assert "task.encoder.latent_dim=128, but the generator's styles have 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

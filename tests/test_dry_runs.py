"""Every experiment, run for two steps by its own script on a few synthetic birds; the paper's sizes included."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import trimesh

from invkit import checkpoint
from invkit.camera import Camera
from invkit.data.synthetic import write_birds
from invkit.run import load_module
from meshinv.generator import Generator
from meshinv.mesh import UVMaps
from meshinv.pseudo_truth import CameraCorrections, write_metadata, write_pseudo_truth
from tests.test_configs import EXPERIMENTS, SCRIPTS, command, composed

BIRDS = 4


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "birds"
    write_birds(root, train=BIRDS, val=2, test=2, num_species=2, novel_views=1)
    return root


@pytest.fixture(scope="module")
def pseudo_truth(tmp_path_factory):
    """Pseudo ground truth of any texture size, made once for each."""
    made: dict[int, Path] = {}

    def of_size(size: int) -> Path:
        if size not in made:
            folder = made[size] = tmp_path_factory.mktemp(f"pseudo_truth_{size}")
            rng = torch.Generator().manual_seed(0)
            for i in range(BIRDS):
                alpha = torch.ones(1, 1, size, size)
                maps = UVMaps(torch.rand(1, 3, size, size, generator=rng), torch.zeros(1, 3, 32, 32))
                write_pseudo_truth(folder, i, maps, alpha, torch.zeros(1, 3, 8, 8))
            write_metadata(
                folder,
                paths=[f"bird_{i}" for i in range(BIRDS)],
                labels=torch.arange(BIRDS) % 2,
                camera=Camera.from_cmr(torch.tensor([[0.5, 0, 0, 1, 0, 0, 0.0]]).expand(BIRDS, 7)),
                corrections=CameraCorrections(BIRDS),
                iou=torch.ones(BIRDS),
            )
        return made[size]

    return of_size


def run(script: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script in this process, as the command line would start it."""
    path = str(SCRIPTS / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *overrides])
    monkeypatch.syspath_prepend(SCRIPTS)  # as the interpreter does for a script
    runpy.run_path(path, run_name="__main__")


def training(script: str) -> list[Path]:
    return [experiment for experiment in EXPERIMENTS if command(experiment)[0] == script]


@pytest.mark.parametrize("experiment", training("train"), ids=lambda path: path.stem)
def test_training_runs_two_steps_and_goes_on(experiment, birds, pseudo_truth, tmp_path, monkeypatch):
    _, overrides = command(experiment)
    config = composed(experiment)
    shared = [*overrides, f"run.dir={tmp_path}/run", "run.device=cpu", "steps=2", "save_every=2", "report_every=2"]
    shared.append("++task.batch_size=2")
    if "photographs" in config["task"]:
        shared += [f"task.data.dataset.root={birds}", f"task.photographs.root={birds}"]
    else:
        size = config["task"]["generator"].get("texture_size", 512)
        shared.append(f"task.data.root={pseudo_truth(size)}")
    run("train", shared, monkeypatch)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*.pt"))
    assert saved[-1].name == "checkpoint-00000002.pt"
    assert list((tmp_path / "run" / "images").glob("*-00000002.png"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("step") == 2 for line in lines)
    if "photographs" in config["task"]:
        assert len(list((tmp_path / "run" / "pseudo_truth").glob("*.npz"))) == BIRDS + 1
    # The same command again finds nothing left to do.
    before = saved[-1].stat().st_mtime_ns
    run("train", shared, monkeypatch)
    assert saved[-1].stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    """An untrained generator as a training run would have saved it."""
    config = {
        "_target_": "meshinv.generator.Generator",
        "num_classes": 200,
        "width": 0.125,
        "texture_size": 64,
    }
    torch.manual_seed(0)
    generator = Generator(num_classes=200, width=0.125, texture_size=64)
    path = tmp_path_factory.mktemp("prior") / "generator.pt"
    weights = {f"module.{key}": value for key, value in generator.state_dict().items()}
    checkpoint.save(path, {"step": 0, "config": {"task": {"generator": config}}, "modules": {"generator_ema": weights}})
    return path


def search(prior: Path) -> list[str]:
    stage = "{_target_:invkit.invert.Stage,steps:2,latent_rate:0.1,camera_rate:0.01}"
    return [f"prior.generator.path={prior}", "++inverter.init.count=2", f"++inverter.stages=[{stage}]"]


@pytest.mark.parametrize("experiment", training("invert"), ids=lambda path: path.stem)
def test_inversion_runs_two_steps_and_is_measured_and_exported(experiment, birds, prior, tmp_path, monkeypatch):
    _, overrides = command(experiment)
    overrides = [override for override in overrides if not override.startswith("limit=")]
    shared = [*overrides, f"data.root={birds}", "run.device=cpu", *search(prior)]
    folder = tmp_path / "run"
    run("invert", [*shared, f"run.dir={folder}"], monkeypatch)
    assert len(list((folder / "records").glob("*.pt"))) == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["count"] == 2
    assert 0 < result["iou_after"] <= 1
    assert (folder / "images" / "reconstructions.png").is_file()
    run("evaluate", [*shared, f"inversion={folder}"], monkeypatch)
    measured = json.loads((folder / "evaluation" / "result.json").read_text())
    assert measured["iou_after"] == pytest.approx(result["iou_after"], abs=1e-6)
    run("export", [*shared, f"inversion={folder}"], monkeypatch)
    models = list((folder / "meshes").glob("*.glb"))
    assert len(models) == 2
    assert all(trimesh.load(model, force="mesh").faces.shape == (960, 3) for model in models)


def test_the_demo_leaves_meshes_pictures_and_numbers(prior, tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    run("demo", [f"run.dir={folder}", "run.device=cpu", "count=2", *search(prior)], monkeypatch)
    assert len(list((folder / "meshes").glob("*.glb"))) == 2
    assert (folder / "images" / "reconstructions.png").is_file()
    assert json.loads((folder / "result.json").read_text())["count"] == 2


def test_a_published_network_is_the_trained_one_and_says_where_it_comes_from(pseudo_truth, tmp_path, monkeypatch):
    folder, target = tmp_path / "run", tmp_path / "shipped" / "small.pt"
    overrides = ["experiment=meshinv_pretrain_synthetic", f"run.dir={folder}", "run.device=cpu", "steps=2"]
    sizes = ["task.generator.width=0.125", "task.discriminator.width=0.125", "++task.batch_size=2"]
    run("train", [*overrides, *sizes, f"task.data.root={pseudo_truth(128)}"], monkeypatch)
    run("publish", [str(folder), "generator_ema", str(target)], monkeypatch)
    trained = load_module(folder, "generator", "generator_ema").state_dict()
    shipped = load_module(target, "generator", "generator_ema").state_dict()
    assert trained.keys() == shipped.keys()
    assert all(torch.equal(trained[key], shipped[key]) for key in trained)
    assert set(checkpoint.load(target)["modules"]) == {"generator_ema"}
    card = target.with_suffix(".md").read_text()
    assert hashlib.sha256(target.read_bytes()).hexdigest() in card
    assert "after 2 steps" in card
    with pytest.raises(SystemExit) as refused:
        run("publish", [str(folder), "no_such_weights", str(target)], monkeypatch)
    assert refused.value.code == 2

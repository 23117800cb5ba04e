"""Every experiment, run for two steps by its own script on a few synthetic photographs; the paper's sizes included."""

import hashlib
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from invkit.data import cub
from invkit.data.synthetic import write_birds
from invkit.evaluation.page import read
from invkit.geometry.camera import Camera
from invkit.runtime import checkpoint
from invkit.runtime.run import load_module
from invkit.train import loop
from meshinv.generator import Generator
from meshinv.layers import BatchNorm
from meshinv.mesh import UVMaps
from meshinv.pseudo_truth import CameraCorrections, write_metadata, write_pseudo_truth
from meshinv.tasks.gan import GanTask
from meshinv.template import mirror_maps
from tests.invkit.data import test_cad, test_pascal3d
from tests.test_configs import CONFIGS, EXPERIMENTS, SCRIPTS, command, composed

BIRDS = 4
MEASURED = ["quality@task.quality=squeezenet", "task.quality.features.weights=random", "++task.quality.count=2"]
"""Overrides: quality by two held-out photographs, and a light network whose weights nobody has to have."""
pytestmark = pytest.mark.filterwarnings("ignore:fid@")


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "birds"
    write_birds(root, train=BIRDS, val=2, test=2, num_species=2, novel_views=1)
    # What MeshInversion's authors distribute of the test split: masks and cameras that were predicted.
    (root / "predicted_mask").mkdir()
    predicted = {}
    for item, record in enumerate(cub.read_records(root, "test")):
        np.save(root / "predicted_mask" / f"{item}.npy", record.mask.astype(np.uint8))
        square = cub.Cub(root, "test", 64)[item].camera.to_cmr()[0]
        predicted[record.path.stem] = {"pred_cam": square, "pred_pose_overlay_iou": 0.9}
    torch.save(predicted, root / "cmr_pred_cam.pth")
    return root


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    """PASCAL3D+ as it is published; three of the four training pictures are from ImageNet."""
    root = tmp_path_factory.mktemp("cars")
    for split in ("train", "val"):
        test_pascal3d.write(root, split)
    test_cad.write(root)
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, birds) -> Path:
    """The birds as somebody's own photographs: RGBA, and a manifest with classes, splits and cameras."""
    root = tmp_path_factory.mktemp("photographs")
    rows = []
    for split in ("train", "test"):
        for record in cub.read_records(birds, split):
            picture = np.dstack([np.asarray(Image.open(record.path)), 255 * record.mask.astype(np.uint8)])
            image = f"{record.path.stem}.png"
            Image.fromarray(picture).save(root / image)
            # CMR counts pixels from 1 at their centers, a manifest from the corner of the photograph.
            camera = replace(record.camera, shift=record.camera.shift - 0.5).to_cmr()[0].tolist()
            rows.append({"image": image, "label": f"species {record.label}", "split": split, "camera": camera})
    (root / "manifest.json").write_text(json.dumps({"images": rows}))
    return root


@pytest.fixture(scope="module")
def pseudo_truth(tmp_path_factory):
    """Pseudo ground truth of any texture size, made once for each; the learned corrections enlarge objects by 0.1."""
    made: dict[int, Path] = {}

    def of_size(size: int) -> Path:
        if size not in made:
            folder = made[size] = tmp_path_factory.mktemp(f"pseudo_truth_{size}")
            rng = torch.Generator().manual_seed(0)
            for i in range(BIRDS):
                alpha = torch.ones(1, 1, size, size)
                maps = UVMaps(torch.rand(1, 3, size, size, generator=rng), torch.zeros(1, 3, 32, 32))
                write_pseudo_truth(folder, i, maps, alpha, torch.rand(1, 3, 64, 64, generator=rng))
            corrections = CameraCorrections(BIRDS)
            torch.nn.init.constant_(corrections.scale, 0.1)
            write_metadata(
                folder,
                paths=[f"car_imagenet/{i}" for i in range(BIRDS)],
                labels=torch.arange(BIRDS) % 2,
                camera=Camera.from_cmr(torch.tensor([[0.5, 0, 0, 1, 0, 0, 0.0]]).expand(BIRDS, 7)),
                corrections=corrections,
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
    """The mesh method's experiments of that script; those of radiance fields run in tests/nerfinv."""
    mine = (experiment for experiment in EXPERIMENTS if experiment.stem.startswith("meshinv_"))
    return [experiment for experiment in mine if command(experiment)[0] == script]


def brief(folder: Path, steps: int = 2) -> list[str]:
    """Overrides: few steps, few images, and no weights that would have to be there."""
    short = [f"steps={steps}", f"save_every={steps}", f"report_every={steps}", "++task.batch_size=2"]
    return [f"run.dir={folder}", "run.device=cpu", *short]


def roots(config: Any, root: Path, where: str = "task") -> list[str]:
    """Overrides: every data set of photographs in `config` is at `root`."""
    found = []
    if isinstance(config, dict):
        if str(config.get("_target_")).startswith("invkit.data.") and "root" in config:
            found.append(f"{where}.root={root}")
        for key, child in config.items():
            found += roots(child, root, f"{where}.{key}")
    return found


def logged(folder: Path) -> dict[str, float]:
    """Every number in a run's log, its last value."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items()}


@pytest.mark.parametrize("experiment", training("train"), ids=lambda path: path.stem)
def test_training_runs_two_steps_and_goes_on(experiment, birds, cars, photographs, pseudo_truth, tmp_path, monkeypatch):
    _, overrides = command(experiment)
    is_gan = "pretrain" in experiment.stem
    chosen = ["model=small", *(MEASURED if is_gan else [])]
    task = composed(experiment, *chosen)["task"]
    data = cars if "p3d" in experiment.stem else photographs if "folder" in experiment.stem else birds
    overrides = [*overrides, *chosen, *brief(tmp_path / "run"), *roots(task, data)]
    if is_gan:
        overrides.append(f"task.data.root={pseudo_truth(128)}")
    run("train", overrides, monkeypatch)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*.pt"))
    assert saved[-1].name == "checkpoint-00000002.pt"
    assert list((tmp_path / "run" / "images").glob("*-00000002.png"))
    numbers = logged(tmp_path / "run")
    assert numbers["step"] == 2
    if is_gan:
        best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
        assert best["score"] == numbers["quality/kid@squeezenet-random"]
        generator = load_module(tmp_path / "run" / "checkpoints" / "best.pt", "generator", "generator_ema")
        assert generator.texture_size == 128
    else:
        assert len(list((tmp_path / "run" / "pseudo_truth").glob("*.npz"))) == BIRDS + 1
        assert (tmp_path / "run" / "images" / "pseudo_truth.png").is_file()
    # The same command again finds nothing left to do.
    before = saved[-1].stat().st_mtime_ns
    run("train", overrides, monkeypatch)
    assert saved[-1].stat().st_mtime_ns == before


def task_of(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> GanTask:
    """The task that scripts/train.py trained."""
    seen, fit = [], loop.fit

    def watched(task, *arguments, **keywords):
        seen.append(task)
        fit(task, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", watched)
        run("train", overrides, patch)
    return seen[0]


def test_the_papers_size_trains(birds, pseudo_truth, tmp_path, monkeypatch):
    overrides = ["experiment=meshinv_pretrain_cub", *brief(tmp_path), "report_every=3", *MEASURED]
    overrides += [f"task.data.root={pseudo_truth(512)}", f"task.quality.data.root={birds}"]
    task = task_of(overrides, monkeypatch)
    counts = {name: sum(value.numel() for value in module.parameters()) for name, module in task.modules.items()}
    # The published networks' numbers.
    assert counts["generator"] == 13_062_534
    assert counts["discriminator"] == 2_876_865 + 731_009 + 2_881_473
    assert counts["image_discriminator"] == 2_764_737
    assert logged(tmp_path)["step"] == 2


@pytest.mark.parametrize("preset", [None, *sorted(path.stem for path in (CONFIGS / "preset/meshinv_gan").glob("*"))])
def test_a_preset_sets_its_switches_and_no_others(preset, birds, pseudo_truth, tmp_path, monkeypatch):
    overrides = ["experiment=meshinv_pretrain_cub", "model=small", *brief(tmp_path, steps=3)]
    overrides += [*MEASURED, f"task.quality.data.root={birds}", f"task.data.root={pseudo_truth(128)}"]
    overrides += [f"preset=meshinv_gan/{preset}"] if preset else []
    task = task_of(overrides, monkeypatch)
    official, fast = preset == "official", preset in ("fast", "small")

    # The released code judges with the annotated cameras; stage 1 made every object larger by 0.1.
    assert task.data[0].camera.scale.item() == pytest.approx(0.5 if official else 0.6)
    norms = [module for module in task.generator.modules() if isinstance(module, BatchNorm)]
    assert norms
    assert all(norm.clamp_variance is official for norm in norms)
    assert (task.swap_image_halves, task.measure_live) == (official, official)
    real = task.data.batch([0, 1])
    mirrored = mirror_maps(real.image) if official else real.image.flip(-1)
    drawn = torch.stack([task.drawn(real, step)[0].image for step in range(8)])
    changed = (drawn != real.image).flatten(2).any(dim=2)
    assert 0 < changed.sum() < changed.numel()
    assert torch.equal(drawn[changed], mirrored.expand_as(drawn)[changed])
    saved = checkpoint.load(tmp_path / "checkpoints" / "checkpoint-00000003.pt")["modules"]
    assert ("uncleared_gradients" in saved) is official
    # What a fake's logit of 3 costs the generator: (3 - 1)^2, or -3 as a hinge.
    logit = [(torch.full((1, 1, 2, 2), 3.0), None)]
    assert task.adversarial.generator(logit * 2).item() == (4.0 if preset == "paper" else -3.0)
    assert all(phase.autocast is (torch.bfloat16 if fast else None) for phase in task.phases)
    weight = next(value for value in task.generator.parameters() if value.ndim == 4 and min(value.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) is fast

    numbers = logged(tmp_path)
    assert {"generator/image", "discriminator/image_real", "quality/kid@squeezenet-random"} <= numbers.keys()
    assert all(np.isfinite(value) for value in numbers.values() if isinstance(value, float))


def test_photographs_without_cameras_are_refused_in_a_few_words(photographs, tmp_path, monkeypatch, capsys):
    rows = json.loads((photographs / "manifest.json").read_text())["images"]
    folder = tmp_path / "mine"
    folder.mkdir()
    for row in rows:
        shutil.copy(photographs / row["image"], folder)
    del rows[1]["camera"]
    (folder / "manifest.json").write_text(json.dumps({"images": rows}))
    overrides = ["experiment=meshinv_pseudo_truth_folder", f"folder={folder}", "model=small"]
    with pytest.raises(SystemExit) as refused:
        run("train", [*overrides, *brief(tmp_path / "run")], monkeypatch)
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert f"no camera is known of 1 of {BIRDS} photographs, first {rows[1]['image'].removesuffix('.png')}" in said
    assert "manifest" in said
    assert not (tmp_path / "run").exists()


def test_a_category_of_ones_own_from_photographs_to_meshes(photographs, tmp_path, monkeypatch):
    """docs/training.md: two stages, then inversion, with the classes of the manifest."""
    shared = [f"folder={photographs}", "model=small"]
    run("train", ["experiment=meshinv_pseudo_truth_folder", *shared, *brief(tmp_path / "stage_1")], monkeypatch)
    overrides = ["experiment=meshinv_pretrain_folder", *shared, *brief(tmp_path / "stage_2"), "num_classes=2"]
    overrides += [f"task.data.root={tmp_path}/stage_1/pseudo_truth", "task.data.min_iou=0.0", "task.quality=null"]
    task = task_of(overrides, monkeypatch)
    assert sorted(task.data.labels.tolist()) == [0, 0, 1, 1]
    assert not (tmp_path / "stage_2" / "checkpoints" / "best.pt").exists()

    found = ["experiment=meshinv_invert_synthetic", "data=folder", f"data.root={photographs}", "data.split=test"]
    found += ["run.device=cpu", *search(tmp_path / "stage_2")]
    run("invert", [*found, f"run.dir={tmp_path}/found"], monkeypatch)
    run("export", [*found, f"inversion={tmp_path}/found"], monkeypatch)
    assert len(list((tmp_path / "found" / "meshes").glob("*.glb"))) == 2


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
    stage = "{_target_:invkit.inversion.inverter.Stage,steps:2,latent_rate:0.1,camera_rate:0.01}"
    return [f"prior.generator.path={prior}", "++inverter.init.count=2", f"++inverter.stages=[{stage}]"]


@pytest.mark.parametrize("experiment", training("invert"), ids=lambda path: path.stem)
def test_inversion_runs_two_steps_and_is_measured_and_exported(experiment, birds, cars, prior, tmp_path, monkeypatch):
    _, overrides = command(experiment)
    overrides = [override for override in overrides if not override.startswith("limit=")]
    are_cars = "p3d" in experiment.stem
    shared = [*overrides, f"data.root={cars if are_cars else birds}", "run.device=cpu", *search(prior)]
    if "feature" in composed(experiment)["inverter"]["objective"]["terms"]:
        shared.append("inverter.objective.terms.feature.function.appearance.network.weights=random")
    folder = tmp_path / "run"
    run("invert", [*shared, f"run.dir={folder}"], monkeypatch)
    assert len(list((folder / "records").glob("*.pt"))) == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["count"] == 2
    assert 0 < result["iou_after"] <= 1
    assert (folder / "images" / "reconstructions.png").is_file()
    names = ["iou_input", *(["iou3d_as_found", "novel_views_aligned"] if are_cars else [])]
    run("evaluate", [*shared, f"inversion={folder}", f"protocols=[{','.join(names)}]"], monkeypatch)
    protocols = json.loads((folder / "evaluation" / "result.json").read_text())["protocols"]
    assert protocols["iou_input"]["metrics"]["iou"]["value"] == pytest.approx(result["iou_after"], abs=1e-6)
    if are_cars:  # against their CAD models, of which there are no pictures
        assert 0 < protocols["iou3d_as_found"]["metrics"]["iou3d"]["value"] < 1
        assert "no further views" in protocols["novel_views_aligned"]["not_measured"]["psnr"]
    run("export", [*shared, f"inversion={folder}"], monkeypatch)
    models = list((folder / "meshes").glob("*.glb"))
    assert len(models) == 2
    faces = 1920 if are_cars else 960  # of 31 and of 16 rings
    assert all(trimesh.load(model, force="mesh").faces.shape == (faces, 3) for model in models)


def test_the_demo_puts_both_methods_on_one_page(prior, tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    searches = {"meshinv": search(prior), "nerfinv": ["inverter.stages.steps=2", "inverter.snapshots=[0]"]}
    brief = ["count=2", "tile=32", "resolution=24"]
    brief += [f"methods.{name}.overrides=[{','.join(map(repr, how))}]" for name, how in searches.items()]
    run("demo", [f"run.dir={folder}", "run.device=cpu", *brief], monkeypatch)
    for method in ("meshinv", "nerfinv"):
        assert len(list((folder / method / "meshes").glob("*.glb"))) == 2
        assert (folder / method / "images" / "reconstructions.png").is_file()
        assert json.loads((folder / method / "result.json").read_text())["count"] == 2
    assert Image.open(folder / "side_by_side.png").size == (6 * 32, 4 * 32)
    named = re.findall(r'(?:src|href|data-script)="((?!http)[^"]+)"', (folder / "index.html").read_text())
    assert len([path for path in named if path.endswith(".glb")]) == 4
    assert all((folder / unquote(path)).is_file() for path in named)
    page = read(folder)
    assert [method.title for method in page.methods] == ["MeshInversion", "Bootstrapped Radiance Field Inversion"]
    assert all("iou3d (iou3d_aligned)" in result.numbers for result in page.results)
    numbers = json.loads((folder / "result.json").read_text())["methods"]
    assert all(0 < of["IoU"] <= 1 for of in numbers.values()), numbers


def test_a_published_network_is_the_trained_one_and_says_where_it_comes_from(pseudo_truth, tmp_path, monkeypatch):
    folder, target = tmp_path / "run", tmp_path / "shipped" / "small.pt"
    overrides = ["experiment=meshinv_pretrain_synthetic", *brief(folder), "model.width=0.125", "task.quality=null"]
    run("train", [*overrides, f"task.data.root={pseudo_truth(128)}"], monkeypatch)
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

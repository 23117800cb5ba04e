"""Every experiment, run for two steps by its own script on a few synthetic birds; the paper's sizes included."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from invkit.camera import Camera
from invkit.data.synthetic import write_birds
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

"""invert.py, evaluate.py and export.py in a row, on a few procedural birds and a generator that knows nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trimesh
from hydra import compose, initialize_config_dir
from PIL import Image

from invkit import checkpoint
from invkit.data.synthetic import write_birds
from invkit.records import OK, RecordStore
from meshinv.generator import Generator
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STAGE = "{_target_: invkit.invert.Stage, steps: 2, latent_rate: 0.05, camera_rate: 0.01}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with birds, one of them damaged, and the checkpoint of a small generator."""
    root = tmp_path_factory.mktemp("world")
    write_birds(root / "birds", train=2, val=2, test=3, num_species=2, novel_views=0, photo_size=(64, 80))
    damaged = sorted((root / "birds" / "CUB_200_2011" / "images").rglob("*_test_*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    torch.manual_seed(0)
    options = {"num_classes": 2, "width": 0.0625, "texture_size": 64}
    net = Generator(**options)
    torch.nn.init.normal_(net.conv_mesh.weight, std=0.01)
    config = {"task": {"generator": {"_target_": "meshinv.generator.Generator", **options}}}
    checkpoint.save(root / "prior.pt", {"config": config, "modules": {"generator_ema": net.state_dict()}})
    return root


def small(world: Path) -> list[str]:
    """The experiment at a size for a test."""
    return [
        "experiment=meshinv_invert_synthetic",
        "run.device=cpu",
        f"data.root={world / 'birds'}",
        "data.size=32",
        f"prior.generator.path={world / 'prior.pt'}",
        "inverter.renderer.size=32",
        "inverter.init.count=2",
        f"+inverter.stages=[{STAGE}]",
    ]


@pytest.fixture(scope="module")
def run(world) -> Callable[..., None]:
    def command(script: str, *overrides: str) -> None:
        spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose(script, [*small(world), *overrides])
        getattr(module, script).__wrapped__.__wrapped__(config)

    return command


@pytest.fixture(scope="module")
def inverted(world, run) -> Path:
    run("invert", f"run.dir={world / 'run'}", "batch_size=2")
    return world / "run"


def test_every_image_has_a_record_and_the_damaged_one_says_why(inverted):
    store = RecordStore(inverted / "records")
    assert len(store) == 3
    records = [store.read(name) for name in store.names()]
    assert [record.status == OK for record in sorted(records, key=lambda r: r.index)].count(True) == 2
    failed = [record for record in records if record.found is None]
    assert len(failed) == 1
    assert "image" in failed[0].status
    result = json.loads((inverted / "result.json").read_text())
    assert result["count"] == 2
    assert result["statuses"][OK] == 2
    assert result["protocol"]
    assert 0 < result["iou_before"] < 1
    assert 0 < result["iou_after"] < 1
    assert Image.open(inverted / "images" / "reconstructions.png").size == (7 * 32, 2 * 32)


def test_running_it_again_keeps_what_is_there_and_fills_what_is_not(world, run, inverted):
    store = RecordStore(inverted / "records")
    names = [name for name in store.names() if store.read(name).found is not None]
    before = [store.path(name).stat().st_mtime_ns for name in names]
    latent = store.read(names[0]).found.latent
    store.path(names[0]).unlink()
    run("invert", f"run.dir={inverted}", "batch_size=2")
    after = [store.path(name).stat().st_mtime_ns for name in names]
    assert after[1:] == before[1:]
    assert after[0] != before[0]
    torch.testing.assert_close(store.read(names[0]).found.latent, latent, rtol=0, atol=1e-3)


def test_evaluation_agrees_with_the_inversion(run, inverted):
    run("evaluate", f"inversion={inverted}")
    inversion = json.loads((inverted / "result.json").read_text())
    evaluation = json.loads((inverted / "evaluation" / "result.json").read_text())
    assert evaluation["iou_after"] == pytest.approx(inversion["iou_after"], abs=1e-6)
    assert set(evaluation["metrics"]) == {"psnr", "ssim"}
    assert evaluation["count"] == 2
    assert evaluation["missing"] == []


def test_records_become_files(run, inverted):
    run("export", f"inversion={inverted}", "obj=true", "turntable=3", "mp4=true")
    folder = inverted / "meshes"
    glbs = sorted(folder.glob("*.glb"))
    assert len(glbs) == len(sorted(folder.glob("*.obj"))) == 2
    assert Image.open(next(folder.glob("*.gif"))).n_frames == 3
    assert len(sorted(folder.glob("*.mp4"))) == 2
    scene = trimesh.load(glbs[0])
    assert sum(len(part.faces) for part in scene.geometry.values()) == 960


def test_two_processes_share_the_work(world, inverted, tmp_path):
    """Each inverts its part, and rank 0 tells of all."""
    meeting = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(ROOT / "scripts" / "invert.py"), *small(world)]
    ranks = [
        subprocess.Popen(
            [*command, f"run.dir={tmp_path / 'run'}", "batch_size=1"],
            cwd=ROOT,
            env=meeting | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors[-2000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    alone = json.loads((inverted / "result.json").read_text())
    assert result["images"].keys() == alone["images"].keys()
    assert result["iou_after"] == pytest.approx(alone["iou_after"], abs=1e-3)


def test_an_export_without_records_says_what_to_do(world, run):
    with pytest.raises(ValueError, match="invert"):
        run("export", f"inversion={world / 'nothing'}")

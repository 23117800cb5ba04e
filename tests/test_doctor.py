import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from invkit.features.weights import FOLDERS, WEIGHTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """The script as a module, called in an empty folder, on a machine with no weights."""
    spec = importlib.util.spec_from_file_location("doctor", ROOT / "scripts/doctor.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "doctor", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(FOLDERS, raising=False)
    return module


def by_name(findings) -> dict:
    return {finding.name: finding for finding in findings}


def test_nothing_required_is_missing_here_and_every_section_speaks(doctor, capsys):
    assert doctor.main(["--json"]) == 0
    sections = {finding["section"] for finding in json.loads(capsys.readouterr().out)}
    assert sections >= {"packages", "extra: dev", "devices", "mesh renderer", "weights", "data sets", "experiments"}
    assert doctor.main([]) == 0
    assert importlib.metadata.version("torch") in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_cure_and_status_1(doctor, capsys, monkeypatch):
    version = importlib.metadata.version

    def without_trimesh(name: str) -> str:
        if name == "trimesh":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_trimesh)
    assert doctor.main([]) == 1
    assert "!!  trimesh" in (said := capsys.readouterr().out)
    assert "make setup" in said


@pytest.mark.parametrize(
    "version, versions, expected",
    [
        ("2.15.0", ">=2.6", True),
        ("2.5.1+cu124", ">=2.6", False),
        ("2.6.0+cpu", ">=2.6", True),
        ("1.4.0", ">=1.3.2,<1.5", True),
        ("1.5.0", ">=1.3.2,<1.5", False),
        ("1.10", ">=1.9", True),
        ("3.11.0rc1", ">=3.11", True),
        ("1", "", True),
    ],
)
def test_version_ranges(doctor, version, versions, expected):
    assert doctor.satisfies(version, versions) is expected


def test_every_requirement_of_the_project_is_understood(doctor):
    assert all(finding.state == "ok" for finding in doctor.packages() if finding.section == "packages")


def test_a_package_that_does_not_import_says_why(doctor, monkeypatch):
    def no_window_system(name: str):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", no_window_system)
    found = doctor.package("opencv-python>=4.8", "packages", "error", "make setup")
    assert found.state == "error"
    assert "libGL.so.1" in found.detail
    assert "headless" in found.to_do


def test_weights_are_absent_then_damaged(doctor, monkeypatch, tmp_path):
    absent = by_name(doctor.weights())
    assert absent.keys() == WEIGHTS.keys()
    assert absent["vgg16"].state == "gap"
    assert WEIGHTS["vgg16"].url in absent["vgg16"].to_do
    (tmp_path / WEIGHTS["vgg16"].file).write_bytes(b"half a download")
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    damaged = by_name(doctor.weights())["vgg16"]
    assert (damaged.state, damaged.detail) == ("gap", "damaged")
    assert WEIGHTS["vgg16"].file in damaged.to_do


def test_data_sets_are_found_with_their_splits(doctor, tmp_path):
    assert by_name(doctor.data_sets())["cub"].state == "gap"
    cub = ("cub/data/train_cub_cleaned.mat", "cub/data/test_cub_cleaned.mat")
    for file in (*cub, "mine/manifest.json", "p3d/data/car_train.mat", "p3d/data/car_val.mat"):
        (tmp_path / "datasets" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "datasets" / file).touch()
    found = by_name(doctor.data_sets())
    assert (found["cub"].state, found["cub"].detail) == ("ok", "splits test, train")
    assert "check cub datasets/cub" in found["cub"].to_do
    assert "check folder datasets/mine" in found["mine"].to_do
    assert (found["p3d"].state, found["p3d"].detail) == ("ok", "splits train, val")
    assert "check p3d datasets/p3d" in found["p3d"].to_do


def test_runs_tell_how_far_they_are(doctor, tmp_path):
    for file in ("a/config.yaml", "a/checkpoints/checkpoint-00000900.pt", "a/checkpoints/checkpoint-00001000.pt"):
        (tmp_path / "runs" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / file).touch()
    (tmp_path / "runs/sweep/0").mkdir(parents=True)
    for file in ("config.yaml", "result.json"):
        (tmp_path / "runs/sweep/0" / file).touch()
    found = by_name(doctor.runs())
    assert found["runs/a"].detail == "1000 steps"
    assert found["runs/sweep/0"].detail == "result.json"


def test_experiments_name_the_data_priors_and_weights_that_they_lack(doctor, tmp_path, monkeypatch):
    found = by_name(doctor.experiments())
    assert found.keys() == {path.stem for path in ROOT.glob("configs/experiment/*.yaml")}
    pretraining = found["meshinv_pretrain_cub"]
    assert pretraining.state == "gap"
    for absent in ("datasets/cub", "runs/meshinv_pseudo_truth_cub/pseudo_truth", "weights inception_tv"):
        assert absent in pretraining.detail
    assert "experiment=meshinv_pseudo_truth_cub" in pretraining.to_do
    assert "task.quality=null" in pretraining.to_do
    assert "weights" not in found["meshinv_pseudo_truth_cub"].detail
    assert "weights vgg19" in found["meshinv_invert_cub"].detail
    assert "datasets/p3d" in found["meshinv_pseudo_truth_p3d_car"].detail
    assert "my_photographs" in found["meshinv_pseudo_truth_folder"].detail
    assert "experiment=meshinv_pseudo_truth_folder" in found["meshinv_pretrain_folder"].to_do

    (tmp_path / "datasets/synthetic_birds").mkdir(parents=True)
    (tmp_path / "runs/meshinv_pseudo_truth_synthetic/pseudo_truth").mkdir(parents=True)
    found = by_name(doctor.experiments())
    assert (found["meshinv_pretrain_synthetic"].state, found["meshinv_pretrain_synthetic"].detail) == (
        "ok",
        "can start",
    )
    assert found["meshinv_invert_synthetic"].detail == "without runs/meshinv_pretrain_synthetic"


def test_a_folder_without_a_checkpoint_is_no_trained_network(doctor, tmp_path):
    """scripts/samples.py leaves its pictures in the folder of the training."""
    samples = tmp_path / "runs/nerfinv_generator_synthetic_birds/samples"
    samples.mkdir(parents=True)
    (samples / "samples.png").touch()
    lacking = "runs/nerfinv_generator_synthetic_birds"
    assert lacking in by_name(doctor.experiments())["nerfinv_encoder_synthetic_birds"].detail
    weights = samples.parent / "checkpoints/checkpoint-00000100.pt"
    weights.parent.mkdir()
    weights.touch()
    assert lacking not in by_name(doctor.experiments())["nerfinv_encoder_synthetic_birds"].detail


def test_networks_that_ship_are_read_and_a_damaged_one_is_an_error(doctor, tmp_path, monkeypatch):
    found = by_name(doctor.shipped())
    assert found.keys() == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/checkpoints/*.pt")}
    assert all(finding.state == "ok" and "matches its card" in finding.detail for finding in found.values())
    ready = by_name(doctor.experiments())["meshinv_reconstruct_real_birds"]
    assert (ready.state, ready.detail) == ("ok", "can start")  # from any folder
    for name in ("real_birds.pt", "real_birds.md"):
        (tmp_path / "meshinv/checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "meshinv/checkpoints" / name).write_bytes((ROOT / "meshinv/checkpoints" / name).read_bytes()[:5000])
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    (damaged,) = doctor.shipped()
    assert (damaged.state, damaged.name) == ("error", "meshinv/checkpoints/real_birds.pt")
    assert "damaged" in damaged.detail


def test_it_speaks_where_nothing_is_installed(tmp_path):
    """-S and -I: Python without any installed package, and with neither the folder nor the environment in its path."""
    command = [sys.executable, "-S", "-I", str(ROOT / "scripts/doctor.py"), "--json"]
    bare = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert bare.returncode == 1, bare.stderr
    found = {finding["name"]: finding for finding in json.loads(bare.stdout)}
    assert found["torch"]["state"] == "error"
    assert found["torch"]["to_do"] == "make setup"

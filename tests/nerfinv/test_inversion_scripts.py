"""Every experiment of hybrid inversion, run for two steps by its own scripts."""

import json
from pathlib import Path

import pytest
import torch

from invkit.data.detections import DetectedPhotos
from invkit.images import read_image
from invkit.inversion.records import OK, UNPOSED, RecordStore
from invkit.inversion.schedule import Stall
from invkit.runtime import checkpoint
from invkit.runtime.run import instantiate_trusted
from nerfinv.encoder.encoder import Encoder
from nerfinv.encoder.segformer import SegFormer
from tests.nerfinv.test_encoder_scripts import PICTURES, STYLE, generator, to_run
from tests.test_configs import CONFIGS, command, composed
from tests.test_dry_runs import roots, run

__all__ = ["generator"]

INVERSIONS = to_run("nerfinv_invert_")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """An untrained encoder as a training would have saved it."""
    sizes = {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "width": 8, "out_channels": 8}
    settings = {"head_width": 8, "latent_dim": STYLE}
    torch.manual_seed(0)
    weights = Encoder(SegFormer(**sizes), **settings).state_dict()
    backbone = {"_target_": "nerfinv.encoder.segformer.SegFormer", **sizes}
    node = {"_target_": "nerfinv.encoder.encoder.Encoder", "backbone": backbone, **settings}
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    checkpoint.save(path, {"step": 0, "config": {"task": {"encoder": node}}, "modules": {"encoder": weights}})
    return path


def overrides_of(experiment: Path, data: dict[str, Path], generator: Path, encoder: Path) -> list[str]:
    said = composed(experiment)
    root = data[experiment.stem.removeprefix("nerfinv_invert_")]
    shared = [override for override in command(experiment)[1] if not override.startswith("limit=")]
    shared += [*roots(said["data"], root, "data"), *PICTURES, "data.size=32", "run.device=cpu"]
    focals = said["inverter"]["init"]["poses"]["focals"]
    if focals and focals["data"] != said["data"]:  # else it is the same by reference
        places = data["p3d_car"] if "training_data" in said else root
        shared += roots(focals["data"], places, "inverter.init.poses.focals.data")
        shared += roots(said.get("training_data"), places, "training_data")
    shared += [f"prior.generator.path={generator}", f"inverter.init.encoder.path={encoder}"]
    if "perceptual" in said["inverter"]["objective"]["terms"]:
        function = "inverter.objective.terms.perceptual.function"
        shared += [f"{function}.network.net=squeeze", f"++{function}.network.weights=random", f"{function}.warps=1"]
    return [*shared, "++inverter.init.poses.threshold=0.4"]


BRIEF = ["inverter.stages.steps=2", "inverter.snapshots=[0,1,2]"]


@pytest.mark.parametrize("experiment", INVERSIONS, ids=lambda path: path.stem)
def test_inversion_runs_two_steps_and_is_measured(experiment, data, generator, encoder, tmp_path, monkeypatch):
    overrides = [*overrides_of(experiment, data, generator, encoder), *BRIEF]
    folder = tmp_path / "run"
    run("invert", [*overrides, f"run.dir={folder}"], monkeypatch)
    store = RecordStore(folder / "records")
    result = json.loads((folder / "result.json").read_text())
    assert len(store) == result["count"] > 0
    assert (folder / "images" / "reconstructions.png").is_file()
    for name in store.names():
        record = store.read(name)
        assert record.status in (OK, UNPOSED)
        assert record.found.latent.ndim == 3
        assert sorted(record.trace.snapshots) == [0, 1, 2]
        assert torch.equal(record.after(0).latent, record.trace.start.latent)
        moved = not torch.equal(record.found.camera.to_cmr(), record.after(1).camera.to_cmr())
        assert moved is composed(experiment)["inverter"].get("optimize_camera", True)
    run("evaluate", [*overrides, f"inversion={folder}", "protocols=[iou_input]"], monkeypatch)
    measured = json.loads((folder / "evaluation" / "result.json").read_text())["protocols"]["iou_input"]
    found = measured["metrics"]["iou"]["value"]
    if composed(experiment).get("boxes"):
        assert found > result["iou_after"]  # what lies around the boxes does not count
        run("evaluate", [*overrides, f"inversion={folder}", "protocols=[iou_input]", "boxes=false"], monkeypatch)
        uncut = json.loads((folder / "evaluation" / "result.json").read_text())["protocols"]["iou_input"]
        found = uncut["metrics"]["iou"]["value"]
    assert found == pytest.approx(result["iou_after"], abs=1e-6)


def test_places_are_those_of_another_training_set(data, generator, encoder, tmp_path, monkeypatch):
    """ImageNet's cars, from where PASCAL3D+'s were photographed."""
    experiment = CONFIGS / "experiment" / "nerfinv_invert_p3d_car_imagenet.yaml"
    overrides = [*overrides_of(experiment, data, generator, encoder), *BRIEF]
    run("invert", [*overrides, f"run.dir={tmp_path}"], monkeypatch)
    overrides += ["protocol.nerfinv_random_released.viewpoints.of_training=true", "training_data.size=32"]
    overrides += ["networks.squeezenet_caffe.weights=random", "~networks.inception_tv", "~networks.inception_fid"]
    asked, camera = [], DetectedPhotos.camera

    def watched(self, index):
        asked.append(self.names[index])
        return camera(self, index)

    monkeypatch.setattr(DetectedPhotos, "camera", watched)
    run("evaluate", [*overrides, f"inversion={tmp_path}", "protocols=[nerfinv_random_released]"], monkeypatch)
    assert asked
    assert all(name.startswith("car_imagenet/") for name in asked)


def test_colors_of_reconstructions_are_exchanged(data, generator, encoder, tmp_path, monkeypatch, capsys):
    experiment = CONFIGS / "experiment" / "nerfinv_invert_synthetic_birds.yaml"
    overrides = overrides_of(experiment, data, generator, encoder)
    run("invert", [*overrides, *BRIEF, f"run.dir={tmp_path}"], monkeypatch)
    store = RecordStore(tmp_path / "records")
    names = f"names=[{','.join(store.names()[:2])}]"
    pictures = []
    for more in ([], ["slots=2"]):
        folder = tmp_path / f"transfers_{len(pictures)}"
        where = [f"inversion={tmp_path}", f"run.dir={folder}", names, "glb=false"]
        run("transfer", [*overrides, *where, *more], monkeypatch)
        (picture,) = folder.glob("*.png")
        pictures.append(read_image(picture))
    assert all(picture.shape == (3, 64, 64) for picture in pictures)
    # On the diagonal each is as it was found, whatever is exchanged.
    own = [picture[:, :32, :32] for picture in pictures]
    assert (own[0] - own[1]).abs().max() < 0.01
    with pytest.raises(SystemExit):
        run("transfer", [*overrides, f"inversion={tmp_path}", names, "slots=40"], monkeypatch)
    assert "slots=40" in capsys.readouterr().err


@pytest.mark.parametrize("objective", sorted(path.stem for path in CONFIGS.glob("objective/nerfinv*.yaml")))
def test_every_objective_searches(objective, data, generator, encoder, tmp_path, monkeypatch):
    experiment = CONFIGS / "experiment" / "nerfinv_invert_shapenet_cars.yaml"
    both = ["perceptual", "l1"]
    terms = {"nerfinv_l1": ["l1"], "nerfinv_mse": ["mse"], "nerfinv_mixed": both, "nerfinv_light_mixed": both}
    overrides = [*overrides_of(experiment, data, generator, encoder), *BRIEF, "limit=1", f"run.dir={tmp_path}"]
    names = terms.get(objective, ["perceptual"])
    overrides = [override for override in overrides if "perceptual" in names or ".perceptual." not in override]
    if objective == "nerfinv_lpips":
        overrides = [override for override in overrides if not override.endswith("warps=1")]
    run("invert", [*overrides, f"objective@inverter.objective={objective}"], monkeypatch)
    (name,) = RecordStore(tmp_path / "records").names()
    trace = RecordStore(tmp_path / "records").read(name).trace
    assert list(trace.terms) == names
    assert bool((trace.total > 0).all())


def inverter_of(kind: str) -> dict:
    experiment = CONFIGS / "experiment" / "nerfinv_invert_cub.yaml"
    return composed(experiment, f"inverter={kind}")["inverter"]


def test_schedules_are_the_papers():
    slow, fast, adaptive = (inverter_of(kind) for kind in ("nerfinv", "nerfinv_fast", "nerfinv_adaptive"))
    (stage,) = instantiate_trusted(slow["stages"])
    assert (stage.steps, stage.latent_rate, stage.camera_rate) == (30, pytest.approx(0.01), 0.002)
    (stage,) = instantiate_trusted(fast["stages"])
    assert (stage.steps, stage.latent_rate, stage.camera_rate) == (10, pytest.approx(0.04), 0.002)
    assert isinstance(instantiate_trusted(adaptive["stall"]), Stall)
    assert slow["betas"] == [0.9, 0.95]
    assert slow["objective"]["terms"]["perceptual"]["function"]["warps"] == 15


def test_the_released_code_has_its_switches():
    usual, official = (inverter_of(kind) for kind in ("nerfinv", "nerfinv_official"))
    assert {key: value for key, value in official["renderer"].items() if usual["renderer"].get(key) != value} == {
        "offset": 0.0,
        "random": True,
        "from_camera": True,
    }
    assert official["init"]["poses"]["offset"] == 0.0
    changed = {key for key in official if official[key] != usual[key]}
    assert changed == {"renderer", "init"}


def test_an_adaptive_search_leaves_its_mean_number_of_steps(data, generator, encoder, tmp_path, monkeypatch):
    experiment = CONFIGS / "experiment" / "nerfinv_invert_synthetic_cars.yaml"
    overrides = overrides_of(experiment, data, generator, encoder)
    stall = ["inverter.stages.steps=6", "++inverter.stall.least=1", "++inverter.stall.window=1"]
    overrides += ["inverter=nerfinv_adaptive", *stall, "++inverter.stall.tolerance=0.5", f"run.dir={tmp_path}"]
    run("invert", overrides, monkeypatch)
    result = json.loads((tmp_path / "result.json").read_text())
    store = RecordStore(tmp_path / "records")
    steps = [int(store.read(name).trace.steps) for name in store.names()]
    assert max(steps) < 6
    assert result["mean_steps"] == pytest.approx(sum(steps) / len(steps))

"""scripts/reconstruct.py method=nerfinv: a photograph without a camera to a mesh; networks untrained and shipped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from invkit.data import cub
from invkit.data.synthetic import write_birds
from invkit.geometry.camera import Camera
from invkit.inversion.records import INVISIBLE, OK, UNPOSED, RecordStore
from tests.nerfinv.test_encoder_scripts import PICTURES, generator
from tests.nerfinv.test_inversion_scripts import BRIEF, encoder
from tests.test_dry_runs import run

__all__ = ["encoder", "generator"]

CROP = 43  # pixels: the box is x 21 to 59, y 11 to 33, and CMR's square around it is padded by a twentieth
CORNER = np.array([19, 1])


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    """Noise, with an ellipse as alpha."""
    y, x = np.mgrid[:50, :70]
    alpha = 255 * (((x - 40) / 20) ** 2 + ((y - 22) / 12) ** 2 < 1).astype(np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("desk") / "wren.png"
    Image.fromarray(np.dstack([pixels, alpha])).save(path)
    return path


def reconstruct(folder: Path, generator: Path, encoder: Path, monkeypatch, *overrides: str) -> dict:
    """The results of a run at a size for a test, by photograph."""
    small = [*PICTURES, "data.size=32", *BRIEF]
    small += [f"prior.generator.path={generator}", f"inverter.init.encoder.path={encoder}", "resolution=24"]
    small += ["++inverter.init.poses.threshold=0.4", "run.device=cpu", f"run.dir={folder}"]
    small += ["doubt.min_iou=0"]  # the networks were never trained
    try:
        run("reconstruct", ["method=nerfinv", *small, *overrides], monkeypatch)
    finally:
        found = folder / "result.json"
    return json.loads(found.read_text())["images"]


def tiles(folder: Path, rows: int) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(folder / "panel.png")).astype(float)
    assert sheet.shape == (rows * 278, 6 * 256, 3)
    return [tile[22:] for row in np.split(sheet, rows) for tile in np.split(row, 6, axis=1)]


def test_a_photograph_becomes_a_mesh_a_panel_and_numbers(photograph, generator, encoder, tmp_path, monkeypatch):
    result = reconstruct(tmp_path, generator, encoder, monkeypatch, f"image={photograph}")["wren"]
    assert result["status"] in (OK, UNPOSED)
    assert not result["camera_given"]
    assert set(result["objective"]) == {"l1"}
    assert (result["label"], result["inv_focal_of_crop"], result["why_no_mesh"]) == (None, 0, None)
    record = RecordStore(tmp_path / "records").read("wren")
    assert record.status == result["status"]
    assert sorted(record.trace.snapshots) == [0, 1, 2]
    mesh = trimesh.load(result["mesh"], force="mesh")
    assert len(mesh.faces) > 100
    x, z, minus_y = mesh.vertices.T
    points = np.stack([x, -minus_y, z], axis=1)
    in_crop = record.found.camera.project(torch.from_numpy(points)[None].float())[0, :, :2].numpy()
    camera = Camera.from_cmr(torch.tensor([result["camera"]], dtype=torch.float64))
    seen = camera.project(torch.from_numpy(points)[None])[0, :, :2].numpy()
    np.testing.assert_allclose(seen, CORNER + CROP * (in_crop + 1) / 2, rtol=0, atol=1e-3)
    made = tiles(tmp_path / "wren", 2)
    # Photograph, silhouette, crop, canonical map, first guess, result; refined, normals, four turns.
    assert all(tile.std() > 1 for tile in made)
    assert result["refined"] == "pivotal"
    for side in made[8:]:
        border = np.concatenate([side[0], side[-1], side[:, 0], side[:, -1]])
        assert (border > 250).all()


def test_the_crop_keeps_soft_masks(photograph, generator, encoder, tmp_path, monkeypatch):
    reconstruct(tmp_path, generator, encoder, monkeypatch, f"image={photograph}")
    crop = tiles(tmp_path / "wren", 2)[2]
    outline = crop[128, :30].mean(axis=1)
    assert ((outline > 200) & (outline < 250)).any()


def test_a_photograph_whose_camera_is_not_found_is_marked(photograph, generator, encoder, tmp_path, monkeypatch):
    never = "++inverter.init.poses.threshold=1.5"
    with pytest.raises(SystemExit):
        reconstruct(tmp_path, generator, encoder, monkeypatch, f"image={photograph}", never)
    result = json.loads((tmp_path / "wren" / "result.json").read_text())
    assert result["status"] == UNPOSED
    assert Path(result["mesh"]).is_file()


def test_a_given_camera_is_where_the_search_begins(photograph, generator, encoder, tmp_path, monkeypatch):
    camera = "camera=[20.0,30.0,25.0,0.8,0.0,0.6,0.0]"
    result = reconstruct(tmp_path, generator, encoder, monkeypatch, f"image={photograph}", camera)["wren"]
    assert (result["status"], result["camera_given"]) == (OK, True)
    start = RecordStore(tmp_path / "records").read("wren").trace.start.camera
    torch.testing.assert_close(start.quat, torch.tensor([[0.8, 0, 0.6, 0]]))
    torch.testing.assert_close(start.scale, torch.tensor([20 / (CROP / 2)]))


def test_a_field_without_a_surface_has_a_panel_and_no_mesh(photograph, generator, encoder, tmp_path, monkeypatch):
    payload = torch.load(generator, weights_only=True)
    weights = payload["modules"]["generator_ema"]
    (bias,) = [name for name in weights if name.endswith(("decoder.output.bias", "decoder.2.bias"))]
    weights[bias][0] = 10.0
    empty = tmp_path / "empty.pt"
    torch.save(payload, empty)
    with pytest.raises(SystemExit):
        reconstruct(tmp_path / "run", empty, encoder, monkeypatch, f"image={photograph}")
    result = json.loads((tmp_path / "run" / "wren" / "result.json").read_text())
    assert result["status"] == INVISIBLE
    assert result["mesh"] is None
    assert "no surface" in result["why_no_mesh"]
    assert (tmp_path / "run" / "wren" / "panel.png").is_file()


@pytest.mark.parametrize("absent", ["generator", "encoder"])
def test_a_checkpoint_that_is_not_there_is_named(absent, photograph, generator, encoder, tmp_path, monkeypatch, capsys):
    paths = {"generator": generator, "encoder": encoder, absent: tmp_path / "nowhere.pt"}
    with pytest.raises(SystemExit) as ended:
        run(
            "reconstruct",
            ["method=nerfinv", f"prior.generator.path={paths['generator']}", f"run.dir={tmp_path}", "run.device=cpu",
             f"inverter.init.encoder.path={paths['encoder']}", f"image={photograph}", *PICTURES],
            monkeypatch,
        )  # fmt: skip
    assert ended.value.code == 2
    assert str(tmp_path / "nowhere.pt") in capsys.readouterr().err


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """A bird that the shipped networks have never seen, cut out of its photograph."""
    root = tmp_path_factory.mktemp("birds")
    write_birds(root, train=2, val=2, test=2, seed=5, num_species=2, novel_views=0)
    record, _ = cub.read_records(root, "test")
    path = root / "bird.png"
    Image.fromarray(np.dstack([np.asarray(Image.open(record.path)), 255 * record.mask.astype(np.uint8)])).save(path)
    return path


def test_the_networks_that_ship_find_a_bird_without_a_camera(painted, tmp_path, monkeypatch):
    brief = [*BRIEF[1:], "inverter.stages.steps=4", "resolution=32", "run.device=cpu", f"run.dir={tmp_path}"]
    painted_birds = "experiment=nerfinv_reconstruct_synthetic_birds"
    run("reconstruct", ["method=nerfinv", painted_birds, f"image={painted}", *brief], monkeypatch)
    result = json.loads((tmp_path / "result.json").read_text())["images"]["bird"]
    assert result["status"] == OK
    assert 0.6 < result["iou_before"] < result["iou_after"]
    vertices = trimesh.load(result["mesh"], force="mesh").vertices
    assert (np.ptp(vertices, axis=0) > 0.2).all()

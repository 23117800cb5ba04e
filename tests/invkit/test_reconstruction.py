"""invkit.reconstruction: the interface in Python, with the networks that ship and searches of a few steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.inversion.records import DOUBTFUL, OK
from invkit.photographs.silhouette import as_mask, as_rgba
from invkit.reconstruction import Reconstructor
from tests.brief import BRIEF, painted_bird
from tests.test_dry_runs import run


@pytest.fixture(scope="module")
def bird(tmp_path_factory) -> Path:
    """bird.png and bird_mask.png in a folder: a painted bird that the shipped networks have never seen."""
    return painted_bird(tmp_path_factory.mktemp("bird"))


@pytest.fixture(scope="module")
def pixels(bird) -> np.ndarray:
    return np.array(Image.open(bird / "bird.png"))


@pytest.fixture(scope="module")
def mask(bird) -> np.ndarray:
    return np.array(Image.open(bird / "bird_mask.png"))


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], Reconstructor]:
    """Both methods in one process, each loaded once."""
    made = {
        method: Reconstructor.load("synthetic_birds", method=method, overrides=overrides)
        for method, overrides in BRIEF.items()
    }
    return made.__getitem__


@pytest.fixture(scope="module", params=["meshinv", "nerfinv"])
def found(request, loaded, pixels, mask):
    (result,) = loaded(request.param)([pixels], masks=[mask])
    return result


def test_the_command_line_finds_the_same(bird, found, tmp_path, monkeypatch):
    method = "meshinv" if found.mesh.colors is None else "nerfinv"
    experiment = {"meshinv": "meshinv_reconstruct_synthetic", "nerfinv": "nerfinv_reconstruct_synthetic_birds"}[method]
    files = [f"image={bird / 'bird.png'}", f"mask={bird / 'bird_mask.png'}", "run.device=cpu"]
    files += [f"run.dir={tmp_path}", f"method={method}", f"experiment={experiment}"]
    run("reconstruct", [*files, *BRIEF[method]], monkeypatch)
    told = json.loads((tmp_path / "bird" / "result.json").read_text())
    here = json.loads(json.dumps(found.numbers()))
    for key in here.keys() - {"seconds"}:
        assert here[key] == told[key], key
    found.write_glb(tmp_path / "here.glb")
    assert (tmp_path / "here.glb").read_bytes() == (tmp_path / "bird" / "bird.glb").read_bytes()
    assert (np.asarray(Image.open(tmp_path / "bird" / "panel.png")) == found.panel().numpy()).all()


def test_vertices_are_seen_through_the_camera_where_the_object_is(found, mask):
    s, *shift, qw, qx, qy, qz = found.camera
    seen = s * Rotation.from_quat([qx, qy, qz, qw]).apply(found.mesh.vertices)[:, :2] + shift
    rows, columns = np.nonzero(mask)
    middle = np.array([columns.mean(), rows.mean()])
    assert np.abs(seen.mean(axis=0) - middle).max() < 0.3 * np.ptp(columns)
    crop = found.render(size=128)
    assert crop.shape == (128, 128, 3)
    assert (crop != 255).any(axis=2).mean() > 0.05


def test_a_mesh_is_what_its_file_holds(found, tmp_path):
    found.write_glb(tmp_path / "bird.glb")
    there, here = trimesh.load(tmp_path / "bird.glb", force="mesh"), found.mesh
    x, z, minus_y = there.vertices.T
    np.testing.assert_allclose(np.stack([x, -minus_y, z], axis=1), here.vertices, atol=1e-6)
    assert len(there.faces) == len(here.faces)
    assert (here.texture is None) == (here.uv is None) == (here.colors is not None)
    colors = here.colors if here.texture is None else here.texture.reshape(-1, 3)
    assert colors.dtype == np.uint8
    assert colors.std() > 5
    np.testing.assert_allclose(np.linalg.norm(here.normals, axis=1), 1, atol=1e-3)


def test_pictures_from_all_sides_hold_the_whole_object(found):
    sides = [found.render(azimuth=turn, elevation=up, size=48) for turn, up in ((0, 0), (90, 0), (180, 20), (0, 80))]
    for side in sides:
        border = np.concatenate([side[0], side[-1], side[:, 0], side[:, -1]])
        assert (border > 250).all()
        assert (side < 250).any(axis=2).mean() > 0.02
    assert all(np.abs(sides[0].astype(int) - other).max() > 50 for other in sides[1:])
    assert (found.render(azimuth=0, size=48, background=-1)[0, 0] == 0).all()


def test_it_can_be_called_again_and_gives_the_same(loaded, pixels, mask, found):
    method = loaded("meshinv" if found.mesh.colors is None else "nerfinv")
    rgba = np.dstack([pixels, mask])
    first, second = method([rgba, torch.from_numpy(pixels)], masks=[None, torch.from_numpy(mask > 0)])
    assert [first.photograph.source, second.photograph.source] == ["alpha", "given"]
    assert second.camera == found.camera
    assert second.numbers()["objective"] == found.numbers()["objective"]


def test_a_known_camera_is_where_the_search_begins(loaded, pixels, mask, found):
    (again,) = loaded("nerfinv")([pixels], masks=[mask], cameras=[found.camera])
    begun = again.begun[0].camera.to_cmr()[0]
    torch.testing.assert_close(begun, torch.tensor(found.camera_of_crop), rtol=0, atol=1e-4)
    assert again.numbers()["camera_given"]


def test_a_result_says_when_not_to_believe_it(loaded, pixels, mask):
    (result,) = loaded("nerfinv")([pixels], masks=[255 - mask])
    assert result.status == DOUBTFUL
    assert "inverted" in result.doubts[0]


def test_a_box_is_enough(loaded, pixels, mask):
    rows, columns = np.nonzero(mask)
    box = [columns.min() - 3, rows.min() - 3, columns.max() + 3, rows.max() + 3]
    photograph = loaded("meshinv").photograph(pixels, box=[int(side) for side in box])
    assert photograph.source == "box"
    cut = photograph.mask[0].numpy() > 0.5
    assert (cut & (mask > 0)).sum() / (cut | (mask > 0)).sum() > 0.8


@pytest.mark.parametrize(
    "arguments, said",
    [
        (lambda p, m: ([p], {"masks": [0 * m]}), "silhouette of photograph 0 is empty"),
        (lambda p, m: ([p], {"masks": [m[1:]]}), "make them the same"),
        (lambda p, m: ([p], {"masks": [m, m]}), "masks: there are 1 photographs and 2"),
        (lambda p, m: ([p[..., :2]], {"masks": [m]}), "photograph 0 has the shape"),
        (lambda p, m: ([p.astype(float)], {"masks": [m]}), r"outside of \[0, 1\]"),
        (lambda p, m: (["nowhere.png"], {"masks": [m]}), "nowhere.png"),
        (lambda p, m: ([p], {"masks": [m], "boxes": [[0, 0, 9, 9]]}), "both box and mask"),
        (lambda p, m: ([p], {"masks": [m], "cameras": [[1, 2, 3]]}), "photograph 0: the camera must be"),
    ],
)
def test_what_cannot_be_used_is_named(loaded, pixels, mask, arguments, said):
    photographs, more = arguments(pixels, mask)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        loaded("meshinv")(photographs, **more)


def test_names_of_priors_and_methods_are_suggested():
    with pytest.raises(ValueError, match="did you mean real_birds"):
        Reconstructor.load("real_brids")
    with pytest.raises(ValueError, match="did you mean nerfinv"):
        Reconstructor.load("real_birds", method="nerfin")
    with pytest.raises(ValueError, match="did you mean refine_size"):
        Reconstructor.load("real_birds", overrides=["refin_size=3"])
    with pytest.raises(FileNotFoundError, match="did you mean meshinv/real_birds"):
        Reconstructor.load("real_birds", overrides=["prior.generator.path=meshinv/real_brids"])


def test_an_experiment_of_the_other_method_is_refused(tmp_path, monkeypatch, capsys):
    mixed = "experiment=nerfinv_reconstruct_real_birds"
    with pytest.raises(SystemExit):
        run("reconstruct", ["image=x.png", mixed, "refine=null", f"run.dir={tmp_path}/run"], monkeypatch)
    assert "method=nerfinv" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_arrays_of_every_kind_are_the_same_picture(pixels, mask):
    whole = as_rgba(pixels, "it")
    assert whole.shape == (4, *pixels.shape[:2])
    assert bool((whole[3] == 1).all())
    kinds = [pixels / 255, torch.from_numpy(pixels), torch.from_numpy(pixels).permute(2, 0, 1) / 255]
    for kind in kinds:
        torch.testing.assert_close(as_rgba(kind, "it"), whole)
    one = as_mask(mask, "it")
    for kind in (mask > 0, (mask > 0).astype(np.uint8), (mask > 0).astype(float), torch.from_numpy(mask > 0).float()):
        assert torch.equal(as_mask(kind, "it"), one)


def test_it_needs_no_folder_and_no_hydra_of_its_caller(tmp_path):
    """From an empty folder, while an application of Hydra's is running."""
    code = (
        "from hydra import initialize_config_dir, compose; import os\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "os.mkdir('mine'); open('mine/a.yaml', 'w').write('x: 1')\n"
        "with initialize_config_dir(os.path.abspath('mine'), version_base='1.3'):\n"
        "    from invkit.reconstruction import Reconstructor\n"
        "    print(Reconstructor.load('real_birds').size, compose('a').x)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.stdout.split() == ["128", "1"], told.stderr


def test_statuses_are_those_of_records(found):
    assert found.status in (OK, DOUBTFUL)

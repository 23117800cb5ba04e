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

from invkit.data.synthetic import write_birds
from invkit.inversion.records import OK, RecordStore
from invkit.runtime import checkpoint
from meshinv.generator import Generator
from meshinv.renderers.reference import MeshRenderer
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STAGE = "{_target_: invkit.inversion.inverter.Stage, steps: 2, latent_rate: 0.05, camera_rate: 0.01}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with birds, one of them damaged, and the checkpoint of a small generator."""
    root = tmp_path_factory.mktemp("world")
    write_birds(root / "birds", train=2, val=2, test=3, num_species=2, novel_views=2, photo_size=(64, 80))
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
            untrained = ["doubt.min_iou=0"] if script == "invert" else []
            config = compose(script, [*small(world), *untrained, *overrides])
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


RANDOM_SQUEEZENET = "networks.squeezenet_caffe.weights=random"
FID_NETWORK, LPIPS_NAME = "squeezenet-random", "lpips-squeeze-0.1-random"


@pytest.fixture(scope="module")
def evaluated(run, inverted) -> dict:
    """The result of all protocols that there are, without any downloaded weights."""
    run("evaluate", f"inversion={inverted}", RANDOM_SQUEEZENET, "grid.size=24", "perceptual.squeeze.weights=random")
    return json.loads((inverted / "evaluation" / "result.json").read_text())


def test_protocols_of_radiance_fields_are_measured_of_meshes(run, inverted, tmp_path):
    """Bootstrapped Radiance Field Inversion compares with MeshInversion by its own protocols."""
    wanted = "protocol=[mesh,nerfinv_input_view,nerfinv_novel_view,nerfinv_random_view]"
    names = [
        "iou_gt",
        "nerfinv_input",
        "nerfinv_rotation",
        "nerfinv_random",
        "nerfinv_random_released",
        "nerfinv_novel",
    ]
    where = [f"inversion={inverted}", f"run.dir={tmp_path}", RANDOM_SQUEEZENET]
    run("evaluate", wanted, *where, f"protocols=[{','.join(names)}]")
    found = json.loads((tmp_path / "result.json").read_text())["protocols"]
    assert 0 < found["nerfinv_input"]["metrics"]["iou"]["value"] < 1
    assert found["nerfinv_input"]["protocol"]["background"] == 0.0
    assert f"fid@{FID_NETWORK}" in found["nerfinv_random_released"]["metrics"]
    assert "single photograph of each object" in found["nerfinv_novel"]["not_measured"]["psnr"]


def test_the_worst_images_are_drawn(run, inverted, tmp_path):
    where = [f"inversion={inverted}", f"run.dir={tmp_path}", "protocols=[iou_input,masks_given]"]
    run("evaluate", *where, "worst={count:1}")
    protocols = json.loads((tmp_path / "result.json").read_text())["protocols"]
    values = protocols["iou_input"]["metrics"]["iou"]["per_image"]
    assert json.loads((tmp_path / "worst.json").read_text()) == {min(values, key=values.get): min(values.values())}
    assert Image.open(tmp_path / "worst.png").size == (7 * 32, 32)
    # These birds are searched with their own masks.
    assert protocols["masks_given"]["metrics"]["iou"]["value"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="worst: psnr of iou_input was not measured"):
        run("evaluate", *where, "worst={count:1,metric:psnr}")
    with pytest.raises(ValueError, match="worst=5: give some of count"):
        run("evaluate", *where, "worst=5")


def test_evaluation_agrees_with_the_inversion(inverted, evaluated):
    inversion = json.loads((inverted / "result.json").read_text())
    protocols = evaluated["protocols"]
    after, before = protocols["iou_input"], protocols["iou_input_first_guess"]
    assert after["metrics"]["iou"]["value"] == pytest.approx(inversion["iou_after"], abs=1e-6)
    assert before["metrics"]["iou"]["value"] == pytest.approx(inversion["iou_before"], abs=1e-6)
    assert protocols["iou_gt"]["metrics"] == after["metrics"]  # these birds' masks are the annotated ones
    assert after["images"] == 2
    assert after["metrics"]["iou"]["per_image"] == pytest.approx(evaluated["iou_of_search"], abs=1e-6)
    assert "image" in "".join(evaluated["failed"].values())
    assert evaluated["statuses"] == {OK: 2, "failed": 1}
    assert evaluated["missing"] == []


def test_every_protocol_gives_numbers_or_says_why_not(evaluated):
    protocols = evaluated["protocols"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        assert list(protocols) == list(compose("evaluate", ["experiment=meshinv_invert_synthetic"]).protocol)
    assert protocols["input_view_white"]["metrics"].keys() == {"psnr", "ssim", LPIPS_NAME}
    assert "vgg16" in protocols["input_view_white"]["not_measured"]["lpips-vgg"]
    views = {"fid1_black_inputmask": 1, "fid12_white": 12, "fid10_true": 10, "fid10_official": 11}
    for name, count in views.items():
        found = protocols[name]
        assert found["metrics"].keys() == {f"fid@{FID_NETWORK}", f"kid@{FID_NETWORK}"}
        assert "inception_v3" in found["not_measured"]["fid@inception_tv"]
        assert (found["images"], found["pictures"]) == (2, 2 * count)
        assert "note" in found["metrics"][f"fid@{FID_NETWORK}"]
        if count > 1:
            assert found["reals"] == 2  # of three photographs one is damaged
            assert len(found["unreadable"]) == 1
    assert protocols["rotation_annotated"]["metrics"]["rotation_deg"]["value"] > 0


def test_ground_truth_is_used(evaluated):
    protocols = evaluated["protocols"]
    for frame in ("as_found", "aligned"):
        assert 0.02 < protocols[f"iou3d_{frame}"]["metrics"]["iou3d"]["value"] < 1
        novel = protocols[f"novel_views_{frame}"]
        assert (novel["images"], novel["pictures"]) == (2, 4)
        assert novel["metrics"].keys() == {"iou", "psnr", "ssim", LPIPS_NAME}
        assert 0.05 < novel["metrics"]["iou"]["value"] < 1
    for metric in ("iou3d", "novel_views"):
        both = [protocols[f"{metric}_{frame}"]["metrics"] for frame in ("as_found", "aligned")]
        assert both[0] != both[1]


def test_chosen_protocols_alone_and_again_with_other_settings(run, inverted, tmp_path):
    for settings in (["protocols=[iou_gt]"], ["protocols=[iou_gt,input_view_white]", "batch_size=1"]):
        run(
            "evaluate",
            f"inversion={inverted}",
            f"run.dir={tmp_path}/again",
            "~perceptual.vgg",
            "~perceptual.squeeze",
            *settings,
        )
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert list(result["protocols"]) == ["iou_gt", "input_view_white"]
    assert "to measure with" in result["protocols"]["input_view_white"]["not_measured"]["lpips-network"]
    with pytest.raises(ValueError, match="no fid13"):
        run("evaluate", f"inversion={inverted}", f"run.dir={tmp_path}/other", "protocols=[fid13]")


def test_a_data_set_without_ground_truth_says_so(world, run, inverted, tmp_path, capsys):
    settings = ["protocols=[iou3d_as_found,novel_views_as_found,iou_input]"]
    run("evaluate", f"inversion={inverted}", f"run.dir={tmp_path}/none", f"truth.root={tmp_path}", *settings)
    protocols = json.loads((tmp_path / "none" / "result.json").read_text())["protocols"]
    assert "no ground truth" in protocols["iou3d_as_found"]["not_measured"]["iou3d"]
    assert "no ground truth" in protocols["novel_views_as_found"]["not_measured"]["psnr"]
    assert protocols["iou_input"]["images"] == 2
    told = capsys.readouterr()
    assert "no ground truth" in told.out + told.err


def test_a_prior_that_was_trained_on_is_noticed(world, run, inverted, tmp_path, capsys):
    changed = checkpoint.load(world / "prior.pt")
    changed["modules"]["generator_ema"]["conv_mesh.bias"][0] = -0.6  # every object is less than half as large
    checkpoint.save(tmp_path / "prior.pt", changed)
    run("evaluate", f"inversion={inverted}", f"run.dir={tmp_path}/e", "protocols=[iou_input]")
    told = capsys.readouterr()
    assert "another IoU" not in told.out + told.err
    settings = [f"run.dir={tmp_path}/f", "protocols=[iou_input]", f"prior.generator.path={tmp_path / 'prior.pt'}"]
    run("evaluate", f"inversion={inverted}", *settings)
    told = capsys.readouterr()
    assert "another IoU" in told.out + told.err


def test_records_become_files(run, inverted, capsys):
    run("export", f"inversion={inverted}", "obj=true", "turntable=3", "mp4=true")
    folder = inverted / "meshes"
    glbs = sorted(folder.glob("*.glb"))
    assert len(glbs) == len(sorted(folder.glob("*.obj"))) == 2
    assert Image.open(next(folder.glob("*.gif"))).n_frames == 3
    assert len(sorted(folder.glob("*.mp4"))) == 2
    scene = trimesh.load(glbs[0])
    assert sum(len(part.faces) for part in scene.geometry.values()) == 960
    told = capsys.readouterr()
    assert "nothing to export" in told.out + told.err


def test_only_a_turntable_is_rendered(run, inverted, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a picture was rendered")

    monkeypatch.setattr(MeshRenderer, "__call__", refuse)
    run("export", f"inversion={inverted}", f"run.dir={tmp_path}", "obj=true")
    assert len(sorted(tmp_path.glob("*.glb"))) == len(sorted(tmp_path.glob("*.obj"))) == 2
    with pytest.raises(AssertionError, match="rendered"):
        run("export", f"inversion={inverted}", f"run.dir={tmp_path}", "turntable=2")


def test_another_export_goes_to_the_same_folder(run, inverted):
    store = RecordStore(inverted / "records")
    found, failed = (
        [name for name in store.names() if (store.read(name).found is None) is missing] for missing in (False, True)
    )
    for settings in (["turntable=2"], ["turntable=4", "glb=false"]):
        run("export", f"inversion={inverted}", f"names=[{found[0]},{failed[0]}]", *settings)
    gif = inverted / "meshes" / f"{store.path(found[0]).stem}.gif"
    assert Image.open(gif).n_frames == 4
    assert not (inverted / "meshes" / f"{store.path(failed[0]).stem}.gif").exists()


def test_textures_change_places(run, inverted):
    store = RecordStore(inverted / "records")
    found = [name for name in store.names() if store.read(name).found is not None]
    failed = next(name for name in store.names() if store.read(name).found is None)
    run("transfer", f"inversion={inverted}", f"names=[{found[0]},{found[1]}]")
    folder = inverted / "transfers"
    one, two = (store.path(name).stem for name in found)
    assert Image.open(folder / f"{one}+{two}.png").size == (64, 64)
    assert len(sorted(folder.glob("*.glb"))) == 4
    crossed = trimesh.load(folder / f"{one}_in_{two}.glb", force="mesh")
    shape = trimesh.load(folder / f"{one}_in_{one}.glb", force="mesh")
    texture = trimesh.load(folder / f"{two}_in_{two}.glb", force="mesh")
    assert (crossed.vertices == shape.vertices).all()
    picture = [mesh.visual.material.baseColorTexture.tobytes() for mesh in (crossed, texture, shape)]
    assert picture[0] == picture[1] != picture[2]
    with pytest.raises(ValueError, match="nothing to exchange"):
        run("transfer", f"inversion={inverted}", f"names=[{found[0]},{failed}]")
    with pytest.raises(ValueError, match="two different"):
        run("transfer", f"inversion={inverted}", f"names=[{found[0]}]")
    with pytest.raises(ValueError, match=r"has no image a, b; it has .*_test_"):
        run("transfer", f"inversion={inverted}", "names=[a,b]")


def test_data_with_other_classes_are_refused_before_anything_is_written(world, run, tmp_path):
    """The data have two species; a generator of one cannot be meant."""
    torch.manual_seed(0)
    options = {"num_classes": 1, "width": 0.0625, "texture_size": 64}
    config = {"task": {"generator": {"_target_": "meshinv.generator.Generator", **options}}}
    states = {"generator_ema": Generator(**options).state_dict()}
    checkpoint.save(tmp_path / "prior.pt", {"config": config, "modules": states})
    with pytest.raises(ValueError, match="has class 1, but the prior has 1 classes"):
        run("invert", f"run.dir={tmp_path / 'run'}", f"prior.generator.path={tmp_path / 'prior.pt'}")
    assert not (tmp_path / "run").exists()


def test_what_was_not_measured_takes_a_line_for_each_reason(evaluated):
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "scripts/evaluate.py")
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    lines = evaluate.table(evaluated)
    protocols = evaluated["protocols"].values()
    measured = sum(len(values["metrics"]) for values in protocols)
    reasons = {reason for values in protocols for reason in values["not_measured"].values()}
    count = sum(len(values["not_measured"]) for values in protocols)
    assert count > 3 * len(reasons)
    assert len([line for line in lines if line.startswith("not measured: ")]) == len(reasons)
    assert any(line.startswith(f"{count} numbers were not measured") for line in lines)
    notes = {of["note"] for values in protocols for of in values["metrics"].values() if "note" in of}
    unreadable = {image for values in protocols for image in values["unreadable"]}
    assert len(lines) == 1 + measured + len(notes) + len(reasons) + len(unreadable) + 1 + len(evaluated["failed"])


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


@pytest.mark.parametrize("script", ["export", "evaluate", "transfer"])
def test_without_records_a_script_says_what_to_do(script, world, run):
    more = ["names=[a,b]"] if script == "transfer" else []
    with pytest.raises(ValueError, match="invert"):
        run(script, f"inversion={world / 'nothing'}", *more)

"""scripts/reconstruct.py: from photographs as people have them to meshes, panels, and plain words where it fails."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import trimesh
from hydra import compose, initialize_config_dir
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data.folder import Folder
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.inversion.records import DOUBTFUL, OK, RecordStore
from invkit.photographs import silhouette
from invkit.runtime import checkpoint
from invkit.runtime.run import instantiate_trusted
from meshinv.generator import Generator
from meshinv.init import BestOfViews

ROOT = Path(__file__).resolve().parents[1]
STAGE = "{_target_: invkit.inversion.inverter.Stage, steps: 2, latent_rate: 0.05, camera_rate: 0.01}"
ORIENTATION = 0x0112
CAMERA = [20.0, 30.0, 25.0, 0.8, 0.0, 0.6, 0.0]


@dataclass(frozen=True)
class Desk:
    """A bird as a photograph and a mask, and a small generator."""

    root: Path
    pixels: np.ndarray
    mask: np.ndarray

    def save(self, name: str, picture: Image.Image, **options) -> Path:
        path = self.root / name
        picture.save(path, **options)
        return path

    @property
    def photo(self) -> Path:
        return self.save("robin.png", Image.fromarray(self.pixels))

    @property
    def outline(self) -> Path:
        return self.save("robin_mask.png", Image.fromarray(self.mask))

    @property
    def cut_out(self) -> Path:
        return self.save("wren.png", Image.fromarray(np.dstack([self.pixels, self.mask])))


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    root = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    options = {"num_classes": 2, "width": 0.0625, "texture_size": 64}
    net = Generator(**options)
    torch.nn.init.normal_(net.conv_mesh.weight, std=0.01)
    config = {"task": {"generator": {"_target_": "meshinv.generator.Generator", **options}}}
    checkpoint.save(root / "prior.pt", {"config": config, "modules": {"generator_ema": net.state_dict()}})
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:50, :70]
    mask = 255 * (((x - 40) / 20) ** 2 + ((y - 22) / 12) ** 2 < 1).astype(np.uint8)
    return Desk(root, rng.integers(0, 256, (50, 70, 3), dtype=np.uint8), mask)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/reconstruct.py, its neighbors in reach as for the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        spec = importlib.util.spec_from_file_location("reconstruct", ROOT / "scripts" / "reconstruct.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["reconstruct"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="module")
def run(desk, script) -> Callable[..., dict]:
    def command(folder: Path, *overrides: str) -> dict:
        """result.json of a run at a size for a test."""
        small = [
            "run.device=cpu",
            f"run.dir={folder}",
            "data.size=32",
            f"prior.generator.path={desk.root / 'prior.pt'}",
            "inverter.renderer.size=32",
            "inverter.init.count=2",
            f"++inverter.stages=[{STAGE}]",
            f"+inverter.trial={STAGE}",
            "+around.count=1",
            "+around.azimuths=4",
            "+around.inclinations=[30.0]",
            "+around.keep=2",
            "doubt.min_iou=0",  # the generator was never trained
        ]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("reconstruct", [*small, *overrides])
        try:
            script.reconstruct.__wrapped__.__wrapped__(config)
        finally:
            found = folder / "result.json"
        return json.loads(found.read_text())["images"]

    return command


@pytest.fixture(scope="module")
def made(desk, run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run(folder, f"image={desk.cut_out}")
    return folder


# ---- What comes out --------------------------------------------------------------------------------------------------


def test_a_photograph_becomes_a_mesh_a_panel_a_record_and_numbers(made):
    result = json.loads((made / "wren" / "result.json").read_text())
    assert result["status"] == OK
    assert 0 < result["iou_before"] <= 1
    assert 0 < result["iou_after"] <= 1
    assert result["label"] in (0, 1)
    assert not result["label_given"]
    assert not result["camera_given"]
    assert set(result["objective"]) == {"mask", "overlap", "color", "camera", "prior"}
    assert result["seconds"] > 0
    assert trimesh.load(result["mesh"], force="mesh").faces.shape == (960, 3)
    assert json.loads((made / "result.json").read_text())["images"]["wren"] == result
    record = RecordStore(made / "records").read("wren")
    assert result["refined"] == "texture"
    assert record.found.details["texture"].shape == (1, 3, 256, 256)
    assert record.found.camera.to_cmr()[0].tolist() == result["camera_of_crop"]
    assert record.trace.iou[0, -1].item() == pytest.approx(result["iou_after"])


def test_the_camera_shows_the_vertices_of_the_file_where_they_are_in_the_photograph(made):
    result = json.loads((made / "wren" / "result.json").read_text())
    x, z, minus_y = trimesh.load(result["mesh"], force="mesh").vertices.T
    points = np.stack([x, -minus_y, z], axis=1)
    scale, *shift = result["camera"][:3]
    seen = scale * Rotation.from_quat(np.roll(result["camera"][3:], -1)).apply(points)[:, :2] + shift
    of_crop = Camera.from_cmr(torch.tensor([result["camera_of_crop"]], dtype=torch.float64))
    in_crop = of_crop.project(torch.from_numpy(points)[None])[0, :, :2].numpy()
    assert np.ptp(seen, axis=0).min() > 5
    # The box is x 21 to 59, y 11 to 33; CMR's square around it, padded by a twentieth, has 43 pixels from 19, 1 on.
    np.testing.assert_allclose(seen, [19, 1] + 43 * (in_crop + 1) / 2, rtol=0, atol=1e-3)


def test_a_found_camera_can_be_given(desk, run, made, tmp_path):
    result = json.loads((made / "wren" / "result.json").read_text())
    camera = ",".join(map(str, result["camera"]))
    run(tmp_path, f"image={desk.cut_out}", f"camera=[{camera}]", "label=1")
    start = RecordStore(tmp_path / "records").read("wren").trace.start.camera
    torch.testing.assert_close(start.to_cmr()[0], torch.tensor(result["camera_of_crop"]), rtol=0, atol=1e-5)


def test_without_a_camera_the_search_begins_on_some_side_and_takes_a_trial(made):
    begun = RecordStore(made / "records").read("wren").trace.start.camera.quat
    sides = BestOfViews(1, azimuths=4, inclinations=[30.0], keep=1).rotations
    assert rotation.angle(sides, begun.expand(4, 4)).min() < 1e-2
    tiles = panel(made / "wren")
    assert len(tiles) == 12
    assert all(tile.std() > 1 for tile in tiles)


def panel(folder: Path) -> list[np.ndarray]:
    """Its tiles, below the words."""
    sheet = np.asarray(Image.open(folder / "panel.png")).astype(float)
    assert sheet.shape == (2 * 278, 6 * 256, 3)
    return [tile[22:] for row in np.split(sheet, 2) for tile in np.split(row, 6, axis=1)]


def test_the_panel_shows_the_photograph_its_outline_and_the_crop(made, desk):
    photo, silhouette, crop = panel(made / "wren")[:3]
    red = (silhouette == [255, 0, 0]).all(axis=2)
    assert red.sum() > 100
    assert not (photo == [255, 0, 0]).all(axis=2).any()
    # The outline's box is that of the mask, where the photograph is centered on the tile.
    rows, columns = red.nonzero()
    zoom = 256 / 70
    assert columns.min() == pytest.approx(21 * zoom, abs=4)
    assert columns.max() == pytest.approx(60 * zoom, abs=4)
    assert rows.min() == pytest.approx((11 + 10) * zoom, abs=5)
    # The crop is white around the object and fills the tile.
    assert (crop[0] == 255).all()
    assert (crop[128, 20:236] < 255).any(axis=1).mean() > 0.9


def test_all_of_the_object_is_seen_from_its_other_sides(made):
    for tile in panel(made / "wren")[8:]:
        border = np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]])
        assert (border == 255).all()
        assert (tile < 255).any(axis=2).mean() > 0.02


def test_the_input_is_left_as_a_data_set(made):
    (views,) = [Folder(made / "wren" / "input", size=32)[0]]
    assert views.rgb.shape == (1, 3, 32, 32)
    assert views.label is None


def test_a_given_camera_and_class_are_used(desk, run, tmp_path):
    camera = ",".join(map(str, CAMERA))
    run(tmp_path, f"image={desk.photo}", f"mask={desk.outline}", f"camera=[{camera}]", "label=1")
    record = RecordStore(tmp_path / "records").read("robin")
    start = record.trace.start
    assert start.label.item() == record.found.label.item() == 1
    torch.testing.assert_close(start.camera.quat, torch.tensor([[0.8, 0, 0.6, 0]]))
    # The box is x 21 to 59, y 11 to 33; CMR's square around it, padded by a twentieth, has 43 pixels from 19, 1 on.
    torch.testing.assert_close(start.camera.scale, torch.tensor([20.0 / 21.5]))
    torch.testing.assert_close(start.camera.shift, torch.tensor([[11 / 21.5 - 1, 24 / 21.5 - 1]]))
    result = json.loads((tmp_path / "robin" / "result.json").read_text())
    assert result["label_given"]
    assert result["camera_given"]
    assert (panel(tmp_path / "robin")[11] == 255).all()  # no trial, so there is a tile less


def test_another_photograph_may_follow_in_the_same_folder(desk, run, made):
    again = run(made, f"image={desk.photo}", f"mask={desk.outline}", "label=0")
    assert list(again) == ["wren", "robin"]  # the earlier one is still told of
    assert again["wren"] == json.loads((made / "wren" / "result.json").read_text())
    assert (made / "wren" / "wren.glb").is_file()
    assert RecordStore(made / "records").names() == ["robin", "wren"]


def test_names_are_the_files_and_never_the_same(script):
    paths = [Path(name) for name in ("a/x.jpg", "b/x.png", "records.png", "x_2.png", "x.tif")]
    assert script.names(paths) == ["x", "x_2", "records_2", "x_2_2", "x_3"]


def test_a_result_says_when_not_to_believe_it(desk, run, tmp_path, capsys):
    inverted = desk.save("inverted.png", Image.fromarray(255 - desk.mask))
    masks = f"mask=[{desk.outline},{inverted},{desk.photo}]"
    photos = f"image=[{desk.photo},{desk.photo},{desk.photo}]"
    right, wrong, own = run(tmp_path, photos, masks, "label=0").values()
    assert (right["status"], right["doubts"]) == (OK, [])
    assert wrong["status"] == own["status"] == DOUBTFUL
    assert "as if it were inverted" in wrong["doubts"][0]
    assert "as if it were a photograph" in own["doubts"][0]
    assert "as if it were inverted" in capsys.readouterr().out
    strict = ["label=0", "doubt.min_iou=1"]
    result = run(tmp_path, f"image={desk.photo}", f"mask={desk.outline}", *strict)["robin"]
    assert result["status"] == DOUBTFUL
    assert "below 1" in result["doubts"][0]
    assert RecordStore(tmp_path / "records").read("robin").status == OK


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_told_of_and_stops_no_other(desk, run, tmp_path):
    truncated = desk.root / "truncated.png"
    truncated.write_bytes(desk.photo.read_bytes()[:900])
    empty = desk.save("empty.png", Image.fromarray(0 * desk.mask))
    small = desk.save("small.png", Image.fromarray(desk.mask[:-1]))
    nothing = desk.save("nothing.png", Image.fromarray(np.dstack([desk.pixels, 0 * desk.mask])))
    text = desk.root / "text.jpg"
    text.write_text("not a picture")
    nowhere = desk.root / "nowhere.jpg"
    outline, camera = desk.outline, ",".join(map(str, CAMERA))
    rows = {  # image, mask, camera: what is said
        "nowhere": (nowhere, outline, "null", "no image at"),
        "truncated": (truncated, outline, "null", "cannot decode"),
        "text": (text, outline, "null", "cannot decode"),
        "robin": (desk.photo, empty, "null", "is empty"),
        "robin_2": (desk.photo, small, "null", "make them the same"),
        "robin_3": (desk.photo, nowhere, "null", "missing|no image at"),
        "robin_4": (desk.photo, outline, "[nan,1,1,1,0,0,0]", "camera"),
        "robin_5": (desk.photo, outline, "[1,2,3]", "camera"),
        "nothing": (nothing, "null", "null", "is empty"),
        "robin_6": (desk.photo, outline, f"[{camera}]", None),
    }
    images, masks, cameras = (",".join(str(row[i]) for row in rows.values()) for i in range(3))
    results = run(tmp_path, f"image=[{images}]", f"mask=[{masks}]", f"camera=[{cameras}]")
    assert list(results) == list(rows)
    for name, (image, _, _, said) in rows.items():
        assert results[name]["image"] == str(image)
        if said is None:
            assert results[name]["status"] == OK
        else:
            assert any(word in results[name]["status"] for word in said.split("|")), results[name]
            assert RecordStore(tmp_path / "records").read(name).status == results[name]["status"]


def test_a_run_without_any_result_ends_with_status_2(desk, run, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, f"image={desk.root / 'nowhere.jpg'}")
    assert ended.value.code == 2
    assert "no image at" in json.loads((tmp_path / "result.json").read_text())["images"]["nowhere"]["status"]


def test_a_class_the_prior_does_not_have_is_told_of(desk, run, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, f"image={desk.cut_out}", "label=7")
    assert "class 7" in json.loads((tmp_path / "result.json").read_text())["images"]["wren"]["status"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["image=[]"], "no photograph"),
        (["image=[a.png,b.png]", "mask=a.png"], "mask: there are 2 images and 1"),
        (["image=[a.png,b.png]", "camera=[1,2,3,1,0,0,0]"], "camera: there are 2 images and 1"),
        (["image=a.png", "label=[1,2]"], "label: there are 1 images and 2"),
        (["image=a.png", "label=robin"], "label=robin"),
        (["image=a.png", "label=-1"], "label=-1"),
        (["image=a.png", "box=[1,2,3]"], r"box=\[1,2,3\] is no box"),
        (["image=a.png", "box=[30,2,3,40]"], "is no box"),
        (["image=a.png", "box=[1,2,wide,40]"], "is no box"),
        (["image=a.png", "box=all"], "is no box"),
        (["image=[a.png,b.png]", "box=[1,2,30,40]"], "box: there are 2 images and 1"),
        (
            ["image=[a.png,b.png]", "mask=[null,b.png]", "box=[null,[1,2,30,40]]"],
            "both box and mask .* for b.png",
        ),
        (["image=a.png", "mask=b.png", "mask_refine=sam"], "mask_refine=sam: there is grabcut"),
    ],
)
def test_a_command_that_does_not_fit_together_is_refused(run, tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


# ---- Silhouettes -----------------------------------------------------------------------------------------------------


def test_without_a_mask_and_without_weights_the_way_out_is_said(desk, run, tmp_path, monkeypatch, script):
    monkeypatch.setenv("INVKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    silhouette.finder.cache_clear()
    with pytest.raises(SystemExit):
        run(tmp_path / "run", f"image={desk.photo}")
    said = json.loads((tmp_path / "run" / "result.json").read_text())["images"]["robin"]["status"]
    assert str(desk.photo) in said
    assert "mask=" in said
    assert "maskrcnn" in said


def test_one_network_finds_the_silhouettes_of_all_photographs(desk, run, tmp_path, monkeypatch, script):
    built, seen = [], []

    def network(category: str) -> Callable[[torch.Tensor], torch.Tensor]:
        built.append(category)
        return lambda image: seen.append(image) or torch.from_numpy(desk.mask / 255)[None].float()

    monkeypatch.setattr(silhouette, "MaskRCNN", network)
    silhouette.finder.cache_clear()
    results = run(tmp_path, f"image=[{desk.photo},{desk.photo}]", "category=car", "label=0")
    silhouette.finder.cache_clear()
    assert [result["status"] for result in results.values()] == [OK, OK]
    assert built == ["car"]
    torch.testing.assert_close(seen[0], torch.from_numpy(desk.pixels / 255).permute(2, 0, 1))
    found = np.asarray(Image.open(tmp_path / "robin" / "input" / "silhouette.png"))[..., 0]
    assert (found == desk.mask).all()


@pytest.fixture(scope="module")
def meadow(desk) -> tuple[Path, np.ndarray]:
    """A red bird on green, as a photograph without a mask, and where the bird is."""
    rng = np.random.default_rng(0)
    bird = np.kron(desk.mask, np.ones((3, 3))) > 0
    pixels = np.where(bird[..., None], [190, 60, 40], [60, 140, 70]) + rng.normal(0, 20, (*bird.shape, 3))
    return desk.save("meadow.png", Image.fromarray(pixels.clip(0, 255).astype(np.uint8))), bird


def silhouette_of(folder: Path) -> np.ndarray:
    return np.asarray(Image.open(folder / "input" / "silhouette.png"))[..., 0] > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_a_box_is_enough_and_the_panel_shows_it(meadow, run, tmp_path):
    photo, bird = meadow
    rows, columns = bird.nonzero()
    box = f"[{columns.min() - 4},{rows.min() - 4},{columns.max() + 4},{rows.max() + 4}]"
    results = run(tmp_path, f"image=[{photo},{photo},{photo}]", f"box=[{box},{box},[500,5,600,90]]", "label=0")
    assert [results[name].get("mask_from") for name in results] == ["box", "box", None]
    assert str(photo) in results["meadow_3"]["status"]
    assert "outside the photograph, which is 210 wide and 150 high" in results["meadow_3"]["status"]
    assert overlap(silhouette_of(tmp_path / "meadow"), bird) > 0.95
    hint = np.asarray(Image.open(tmp_path / "meadow" / "panel.png"))[22:278, 256:512]
    rows, columns = (hint == [255, 0, 0]).all(axis=2).nonzero()
    assert [columns.min(), columns.max()] == pytest.approx([56 * 256 / 210, 184 * 256 / 210], abs=5)
    assert rows.max() - rows.min() == pytest.approx(76 * 256 / 210, abs=5)


def test_a_rough_mask_is_improved_on_demand_and_a_later_run_forgets_it(meadow, run, desk, tmp_path):
    photo, bird = meadow
    rough = np.roll(bird, 5, axis=1)
    mask = desk.save("rough.png", Image.fromarray(rough))
    results = run(tmp_path, f"image={photo}", f"mask={mask}", "mask_refine=grabcut", "label=0")
    assert results["meadow"]["mask_from"] == "given+grabcut"
    assert overlap(silhouette_of(tmp_path / "meadow"), bird) > 0.95 > overlap(rough, bird)
    assert (tmp_path / "meadow" / "input" / "hint.png").is_file()
    results = run(tmp_path, f"image={photo}", f"mask={mask}", "label=0")
    assert results["meadow"]["mask_from"] == "given"
    assert (silhouette_of(tmp_path / "meadow") == rough).all()
    assert not (tmp_path / "meadow" / "input" / "hint.png").exists()


# ---- Kinds of files --------------------------------------------------------------------------------------------------


def kinds(desk: Desk) -> dict[str, tuple[Path, np.ndarray]]:
    """Files of every kind, with the colors that are in them."""
    gray = desk.pixels.mean(axis=2).round().astype(np.uint8)
    palette = Image.fromarray(desk.pixels).quantize(64)
    cmyk = 255 - desk.pixels  # with black 0, a CMYK picture is the negative of its first three channels
    turned = Image.Exif()
    turned[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    return {
        "gray": (desk.save("gray.png", Image.fromarray(gray)), np.dstack([gray] * 3)),
        "gray_16_bit": (
            desk.save("gray16.png", Image.fromarray(gray.astype(np.uint16) * 257)),
            np.dstack([gray] * 3),
        ),
        "palette": (desk.save("palette.png", palette), np.asarray(palette.convert("RGB"))),
        "one_bit": (
            desk.save("bits.png", Image.fromarray(gray > 128)),
            np.dstack([255 * (gray > 128).astype(np.uint8)] * 3),
        ),
        "cmyk": (
            desk.save("cmyk.tif", Image.fromarray(np.dstack([cmyk, 0 * gray]), mode="CMYK")),
            desk.pixels,
        ),
        "turned": (
            desk.save("turned.png", Image.fromarray(np.rot90(desk.pixels).copy()), exif=turned),
            desk.pixels,
        ),
    }


@pytest.mark.parametrize("kind", ["gray", "gray_16_bit", "palette", "one_bit", "cmyk", "turned"])
def test_every_kind_of_picture_is_read_as_it_looks(kind, desk, script, tmp_path):
    path, expected = kinds(desk)[kind]
    given = script.Given("x", path, desk.outline, None, None)
    script.lay_down(silhouette.opened(path, desk.outline), given, tmp_path)
    assert Folder(tmp_path, size=32)[0].mask.sum() > 100
    laid_down = np.asarray(Image.open(tmp_path / "photograph.png"))
    assert np.abs(laid_down.astype(int) - expected).max() <= 1
    assert (np.asarray(Image.open(tmp_path / "silhouette.png"))[..., 0] == desk.mask).all()


@pytest.mark.parametrize("kind", ["rgba", "gray_alpha", "palette"])
def test_transparency_is_the_silhouette(kind, desk, script, tmp_path):
    rgba = Image.fromarray(np.dstack([desk.pixels, desk.mask]))
    if kind == "palette":
        rgba = Image.fromarray(desk.pixels).quantize(64, dither=Image.Dither.NONE)
        index = np.where(desk.mask > 0, np.asarray(rgba) % 63, 63).astype(np.uint8)
        colors = rgba.getpalette()
        rgba = Image.fromarray(index, mode="P")
        rgba.putpalette(colors)
        path = desk.save("alpha_palette.png", rgba, transparency=63)
    else:
        path = desk.save(f"alpha_{kind}.png", rgba.convert("LA") if kind == "gray_alpha" else rgba)
    given = script.Given("x", path, None, None, None)
    script.lay_down(silhouette.opened(path), given, tmp_path)
    assert (np.asarray(Image.open(tmp_path / "silhouette.png"))[..., 0] == desk.mask).all()
    outside = np.asarray(Image.open(tmp_path / "photograph.png"))[desk.mask == 0]
    assert (outside == 255).all()  # colors under transparency mean nothing


def test_a_fresh_clone_has_all_it_takes(tmp_path, monkeypatch):
    """The default experiment's prior ships with the package."""
    monkeypatch.chdir(tmp_path)  # wherever that is
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("reconstruct", ["image=x.png"])
    prior = instantiate_trusted(config.prior)
    inverter = instantiate_trusted(config.inverter, prior=prior)
    assert inverter.trial.steps > 0
    assert instantiate_trusted(config.around).keep > 1

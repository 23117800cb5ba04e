import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data import cub_subset
from invkit.data.cub import Cub, annotation_files, mean_shape
from invkit.images import read_image
from tests.invkit.data import detected, test_pascal3d

ROOT = Path(__file__).parents[3]
REAL = ROOT.parent / "shared" / "data" / "cub_subset"
SHAPE = np.random.default_rng(9).normal(size=(15, 3))

_spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts" / "prepare_data.py")
prepare_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prepare_data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three birds at half the size of their originals (the width of the last at 1/2, its height at 0.4)."""
    root, rng = tmp_path / "cub_subset", np.random.default_rng(0)
    sizes = [(80, 60, 40, 30), (64, 90, 32, 45), (100, 50, 50, 20)]  # W H w h
    boxes = [(21, 11, 40, 30), (1, 21, 64, 70), (31, 6, 60, 45)]  # x y w h, from 1
    names = [f"{i + 7:03d}.Kind/Kind_{i}.jpg" for i in range(3)]
    ids = [11, 12, 35]
    for folder in ("annotations/parts", "cameras_cmr"):
        (root / folder).mkdir(parents=True)
    lines = {"good_ids.txt": [], "image_sizes.txt": [], "annotations/bounding_boxes.txt": []}
    parts, cameras = [], {"rot": [], "scale": [], "trans": []}
    for i, (name, size, box) in enumerate(zip(names, sizes, boxes, strict=True)):
        lines["good_ids.txt"].append(f"{ids[i]} {name} {int(i != 1)}")
        lines["image_sizes.txt"].append(f"{ids[i]} {name} {' '.join(map(str, size))}")
        lines["annotations/bounding_boxes.txt"].append(f"{ids[i]} {' '.join(f'{side:.1f}' for side in box)}")
        mask = np.zeros((size[3], size[2]), bool)
        mask[5:15, 12:25] = True
        pixels = rng.integers(0, 256, (size[3], size[2], 3), dtype=np.uint8)
        for folder, content in (("images_320", pixels), ("masks_pseudo_320", mask)):
            path = (root / folder / name).with_suffix(".jpg" if folder == "images_320" else ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        rot = Rotation.random(random_state=i).as_matrix()
        scale, trans = float(rng.uniform(8, 12)), rng.uniform(30, 50, 2)
        for key, value in (("rot", rot), ("scale", scale), ("trans", trans)):
            cameras[key].append(value)
        for part, (x, y) in enumerate(scale * SHAPE @ rot[:2].T + trans):
            shown = part != 4
            parts.append(f"{ids[i]} {part + 1} {x if shown else 0} {y if shown else 0} {int(shown)}")
    real = (root / "masks_real_320" / names[1]).with_suffix(".png")
    real.parent.mkdir(parents=True)
    drawn = np.zeros((45, 32), bool)
    drawn[20:30, 8:20] = True
    Image.fromarray(drawn).save(real)
    lines["annotations/image_class_labels.txt"] = [f"{image_id} {i + 7}" for i, image_id in enumerate(ids)]
    lines["annotations/parts/part_locs.txt"] = parts
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")
    np.savez(
        root / "cameras_cmr" / "cmr_cameras.npz",
        image_id=np.array([12, 35, 11], np.int32),  # in another order than the lists
        mean_shape=SHAPE,
        conv_tri=np.ones((4, 3), np.int32),
        **{key: np.stack([values[1], values[2], values[0]]) for key, values in cameras.items()},
    )
    return root


def test_coordinates_of_a_photograph_of_half_the_size():
    # A small pixel covers four large ones: small pixel 3 (from 1) covers 5 and 6, whose middle is 5.5.
    still = {"image_id": 1, "path": "", "split": "", "label": 1, "photo": Path(), "mask": Path(), "annotated": False}
    parts = np.zeros((15, 3))
    parts[0], parts[1] = [5.5, 1.5, 1], [0, 0, 0]
    bird = cub_subset.Bird(
        width=40, height=20, box=np.array([5.0, 3.0, 12.0, 20.0]), parts=parts, rot=np.eye(3), scale=4.0,
        trans=np.array([5.5, 1.5]), **still,
    )  # fmt: skip
    small = bird.resized(20, 10)
    assert small.parts[:2].tolist() == [[3.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert small.trans.tolist() == [3.0, 1.0]
    assert small.scale == 2.0
    assert small.box.tolist() == [3.0, 2.0, 6.0, 10.0]
    assert bird.resized(40, 20).box.tolist() == bird.box.tolist()


def test_the_real_birds_become_a_data_set(source, tmp_path, capsys):
    target = tmp_path / "made"
    assert prepare_data.main(["cub-subset", str(source), str(target)]) == 0
    train, test = Cub(target, "train", 64), Cub(target, "test", 64)
    assert train.names == ["007.Kind/Kind_0", "009.Kind/Kind_2"]
    assert test.names == ["008.Kind/Kind_1"]
    assert (train.batch([0, 1]).label.tolist(), test[0].label.tolist()) == ([6, 8], [7])
    assert (target / "annotated_masks.txt").read_text() == "008.Kind/Kind_1\n"
    assert test.records[0].mask[20:30, 8:20].all()
    assert test.records[0].mask.sum() == 120
    np.testing.assert_allclose(mean_shape(target), SHAPE)
    for dataset in (train, test):
        for record in dataset.records:
            original = source / "images_320" / record.path.relative_to(target / "CUB_200_2011" / "images")
            assert record.path.read_bytes() == original.read_bytes()


def test_held_out_birds_with_even_ids_can_be_trained_with(source, tmp_path, capsys):
    # Of the three, 12 is held out.
    target = tmp_path / "more"
    assert prepare_data.main(["cub-subset", str(source), str(target), "--even-train"]) == 0
    assert Cub(target, "train", 64).names == ["007.Kind/Kind_0", "008.Kind/Kind_1", "009.Kind/Kind_2"]
    assert prepare_data.main(["cub-subset", str(source), "--check", "--even-train"]) == 0
    assert "train: 3 birds" in capsys.readouterr().out
    # Another choice is another data set.
    assert prepare_data.main(["cub-subset", str(source), str(target)]) == 1


def test_projected_points_keep_their_place_in_the_photograph(source, tmp_path):
    cub_subset.write_subset(source, tmp_path / "made")
    subset = cub_subset.read_subset(source)
    assert subset.gaps == []
    # Exact where both axes shrink alike; the third photograph is squeezed, which one scale cannot say.
    errors = [bird.reprojection_error(SHAPE) for bird in subset.birds]
    assert max(errors[:2]) < 1e-6 < errors[2]
    dataset = Cub(tmp_path / "made", "test", 64)
    with np.load(source / "cameras_cmr" / "cmr_cameras.npz") as cameras:
        rot, scale, trans = (cameras[name][0] for name in ("rot", "scale", "trans"))
    original = scale * SHAPE @ rot[:2].T + trans  # from 1, in the 64 x 90 original
    fraction = (original - 0.5) / [64, 90]  # of the photograph, from its corner
    left, top, side = self_made_square((0, 10, 31, 44))  # edges at 0, 20, 64, 90 in the original, 0, 10, 32, 45 here
    expected = 2 * (fraction * [32, 45] + 0.5 - [left, top]) / side - 1  # CMR keeps its shift from 1
    projected = dataset[0].camera.project(torch.from_numpy(SHAPE).float()[None])[0, :, :2]
    np.testing.assert_allclose(projected, expected, atol=1e-5)


def self_made_square(box: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """Left, top and side of the padded square, by the crop rule of CMR."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0 + 1, y1 - y0 + 1
    x0, x1, y0, y1 = round(x0 - 0.05 * w), round(x1 + 0.05 * w), round(y0 - 0.05 * h), round(y1 + 0.05 * h)
    w, h = x1 - x0 + 1, y1 - y0 + 1
    side = max(w, h)
    return x0 - round((side - w) / 2), y0 - round((side - h) / 2), side


def everything_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_second_run_changes_nothing_and_another_source_is_refused(source, tmp_path, capsys):
    target = tmp_path / "made"
    prepare_data.main(["cub-subset", str(source), str(target)])
    before = everything_in(target)
    assert prepare_data.main(["cub-subset", str(source), str(target)]) == 0
    assert everything_in(target) == before
    with (source / "good_ids.txt").open("a") as file:
        file.write("\n")
    assert prepare_data.main(["cub-subset", str(source), str(target)]) == 1
    assert "remove it" in capsys.readouterr().err
    assert everything_in(target) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    assert prepare_data.main(["cub-subset", str(source), str(tmp_path / "mine")]) == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not touch"


def test_an_interruption_leaves_no_data_set(source, tmp_path, monkeypatch):
    copied = []

    def copy(first, second):
        if copied:
            raise KeyboardInterrupt
        copied.append(second)
        Path(second).write_bytes(Path(first).read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(KeyboardInterrupt):
        cub_subset.write_subset(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    monkeypatch.undo()
    cub_subset.write_subset(source, tmp_path / "made")
    assert len(Cub(tmp_path / "made", "train")) == 2


def test_looking_writes_nothing_and_counts(source, tmp_path, capsys):
    before = everything_in(tmp_path)
    assert prepare_data.main(["cub-subset", str(source), str(tmp_path / "made"), "--check"]) == 0
    assert everything_in(tmp_path) == before
    out = capsys.readouterr().out
    assert "train: 2 birds of 2 species; 0 of the masks drawn by a person" in out
    assert "test: 1 birds of 1 species; 1 of the masks" in out


def test_every_gap_of_the_source_is_named(source, tmp_path, capsys):
    photos, masks = source / "images_320", source / "masks_pseudo_320"
    (photos / "007.Kind" / "Kind_0.jpg").unlink()
    (photos / "008.Kind" / "Kind_1.jpg").write_bytes(b"noise")
    (masks / "009.Kind" / "Kind_2.png").unlink()
    Image.fromarray(np.ones((3, 3), bool)).save(masks / "007.Kind" / "Kind_0.png")
    sizes = (source / "image_sizes.txt").read_text()
    (source / "image_sizes.txt").write_text(sizes.replace("35 009", "36 009"))
    assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
    error = capsys.readouterr().err
    for name in ("Kind_0.jpg is missing", "Kind_1.jpg", "Kind_2.png is missing", "Kind_0.png has 9", "(image 35)"):
        assert name in error
    assert "5 problems" in error
    assert prepare_data.main(["cub-subset", str(source), str(tmp_path / "made")]) == 1
    assert not (tmp_path / "made").exists()
    (source / "cameras_cmr" / "cmr_cameras.npz").write_bytes(b"noise")
    assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
    assert "cmr_cameras.npz" in capsys.readouterr().err
    (source / "cameras_cmr" / "cmr_cameras.npz").unlink()
    assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
    assert "cmr_cameras.npz is missing" in capsys.readouterr().err


def test_a_data_set_is_checked_and_shown(source, tmp_path, capsys):
    target, sheet = tmp_path / "made", tmp_path / "sheet.png"
    cub_subset.write_subset(source, target)
    assert prepare_data.main(["check", "cub", str(target), "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "train: all 2 pictures are whole; 200 classes" in out
    assert "test: all 1 pictures" in out
    assert read_image(sheet).shape == (3, 256, 8 * 256)
    red = (read_image(sheet) - torch.tensor([1.0, 0, 0]).view(3, 1, 1)).abs().sum(0) == 0
    assert red.any()

    photo = next((target / "CUB_200_2011" / "images").rglob("*.jpg"))
    photo.unlink()
    annotation_files(target, "test")[1].unlink()
    assert prepare_data.main(["check", "cub", str(target)]) == 1
    error = capsys.readouterr().err
    assert photo.name in error
    assert "anno_test.mat is missing" in error
    assert "2 problems" in error
    assert prepare_data.main(["check", "cub", str(tmp_path / "nowhere")]) == 1
    assert "train_cub_cleaned.mat" in capsys.readouterr().err


def test_cars_are_checked_and_shown(tmp_path, capsys):
    root, sheet = tmp_path / "p3d", tmp_path / "sheet.png"
    entries = test_pascal3d.write(root)
    test_pascal3d.write(root, "val")
    assert prepare_data.main(["check", "p3d", str(root), "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "train: all 4 pictures are whole; no classes" in out
    assert "train: 3 in car_imagenet, 1 in car_pascal; 4 CAD models" in out
    assert "val: 2 in car_pascal; 2 CAD models" in out
    assert "p3d_labels" not in out
    green = (read_image(sheet) - torch.tensor([0, 1.0, 0]).view(3, 1, 1)).abs().sum(0) == 0
    assert read_image(sheet).shape == (3, 256, 8 * 256)
    assert green.any()

    labels = test_pascal3d.write_labels(root)
    assert prepare_data.main(["check", "p3d", str(root)]) == 0
    assert "train: p3d_labels.csv has all of car_imagenet; 3 classes by shape" in capsys.readouterr().out
    labels.write_text("filename,color1,color2,shape,notes\nother.JPEG,red,none,suv,\n")
    annotation = root / "sfm" / "car_val.mat"
    annotation.unlink()
    assert prepare_data.main(["check", "p3d", str(root)]) == 1
    error = capsys.readouterr().err
    assert "p3d_labels.csv has no row for 3 of 3 objects" in error
    assert f"{annotation} is missing" in error
    assert "2 problems" in error
    test_pascal3d.photograph(root, entries[0]).unlink()
    assert prepare_data.main(["check", "p3d", str(root)]) == 1
    assert "2008_000021.jpg" in capsys.readouterr().err
    assert prepare_data.main(["check", "p3d", str(tmp_path / "nowhere")]) == 1
    assert "car_train.mat" in capsys.readouterr().err


def test_a_folder_is_checked_and_shown(tmp_path, capsys):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    for name in ("a", "b"):
        Image.fromarray(np.dstack([np.full((20, 20, 3), 90, np.uint8), mask])).save(tmp_path / f"{name}.png")
    assert prepare_data.main(["check", "folder", str(tmp_path), "--sheet", str(tmp_path / "sheets" / "s.png")]) == 0
    out = capsys.readouterr().out
    assert "all 2 pictures are whole; no classes" in out
    assert "cameras are given for 0" in out
    assert (tmp_path / "sheets" / "s.png").is_file()
    (tmp_path / "b.png").write_bytes(b"")
    assert prepare_data.main(["check", "folder", str(tmp_path)]) == 1
    assert "b.png" in capsys.readouterr().err


def test_synthetic_data_are_made_and_pass_the_check(tmp_path, capsys):
    birds, cars = tmp_path / "birds", tmp_path / "cars"
    few = ["--train", "2", "--val", "2", "--test", "2", "--novel-views", "0", "--num-species", "2"]
    assert prepare_data.main(["synthetic-birds", str(birds), *few]) == 0
    assert prepare_data.main(["check", "cub", str(birds)]) == 0
    few = ["--train-objects", "1", "--val-objects", "0", "--test-objects", "0", "--train-views", "3", "--size", "32"]
    assert prepare_data.main(["synthetic-cars", str(cars), *few]) == 0
    shutil.rmtree(cars / "cars_val")
    shutil.rmtree(cars / "cars_test")
    assert prepare_data.main(["check", "srn", str(cars)]) == 0
    assert "cars train (1 objects): all 3 pictures" in capsys.readouterr().out
    pose = next(cars.rglob("pose/*.txt"))
    pose.write_text("1 2 3")
    assert prepare_data.main(["check", "srn", str(cars)]) == 1
    assert str(pose) in capsys.readouterr().err
    assert prepare_data.main(["check", "srn", str(tmp_path / "nowhere")]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="the cub_subset folder is not here")
def test_the_real_subset_is_whole_and_its_cameras_fit_its_parts(tmp_path):
    subset = cub_subset.read_subset(REAL)
    assert subset.gaps == []
    assert [sum(bird.split == split for bird in subset.birds) for split in ("train", "test")] == [1029, 984]
    errors = np.array([bird.reprojection_error(subset.mean_shape) for bird in subset.birds])
    assert 0.04 < np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.085
    # CMR's fit leaves no mean residual; scaling cameras and parts by different rules would leave a fifth of a pixel.
    residuals = []
    for bird in subset.birds:
        shown = bird.parts[:, 2] > 0
        projected = bird.scale * subset.mean_shape @ bird.rot[:2].T + bird.trans
        residuals.append((projected - bird.parts[:, :2])[shown].mean(axis=0))
    assert np.abs(np.mean(residuals, axis=0)).max() < 0.02

    few = [bird for bird in subset.birds if bird.annotated and bird.split == "test"][:6]
    for bird in few:
        place = tmp_path / "CUB_200_2011" / "images" / bird.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bird.photo, place)
    cub_subset.write_split(tmp_path, "test", few, subset.mean_shape, subset.triangles)
    for name, column in (("images", "path"), ("image_class_labels", "label")):
        lines = [f"{bird.image_id} {getattr(bird, column)}" for bird in few]
        (tmp_path / "CUB_200_2011" / f"{name}.txt").write_text("\n".join(lines))
    dataset = Cub(tmp_path, "test", 128)
    views = dataset.batch(range(len(few)))
    # Eyes, crown, nape and back of a bird lie inside of its silhouette, most of the time.
    inner = torch.from_numpy(subset.mean_shape[[0, 4, 6, 9, 10]]).float().expand(len(few), -1, -1)
    x, y = ((views.camera.project(inner)[..., :2] + 1) * 64).long().clamp(0, 127).unbind(-1)
    inside = views.mask[torch.arange(len(few))[:, None], 0, y, x]
    assert inside.mean() > 0.8


def test_categories_of_imagenet_are_checked_and_shown(tmp_path, capsys):
    root, sheet = tmp_path / "imagenet", tmp_path / "sheet.png"
    assert prepare_data.main(["check", "imagenet", str(root)]) == 1
    assert "imagenet_<category>/detections.npy" in capsys.readouterr().err
    made = detected.write(root)
    detected.write(root, made=detected.objects("n02391049", count=3), category="zebra")
    assert prepare_data.main(["check", "imagenet", str(root), "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "car: all 4 pictures are whole; no classes" in out
    assert "zebra: all 2 pictures are whole" in out
    assert read_image(sheet).shape == (3, 128, 8 * 128)
    detected.photograph(root, "imagenet", made[4]).unlink()
    detected.files(root, "imagenet", "zebra")[1].unlink()
    assert prepare_data.main(["check", "imagenet", str(root)]) == 1
    error = capsys.readouterr().err
    assert "no image at" in error
    assert f"{made[4].path.rpartition('/')[2]}" in error
    assert "imagenet_zebra/poses_estimated_multitpl_perspective.bin is missing" in error
    assert "2 problems" in error


def test_cars_under_perspective_cameras_are_checked_and_shown(tmp_path, capsys):
    root, sheet = tmp_path / "p3d", tmp_path / "sheet.png"
    detected.write(root, "p3d")
    assert prepare_data.main(["check", "p3d", str(root), "--sheet", str(sheet)]) == 0
    assert "detected cars under perspective cameras: all 4 pictures are whole" in capsys.readouterr().out
    assert read_image(sheet).shape == (3, 256, 8 * 256)
    detected.files(root, "p3d")[0].write_bytes(b"noise")
    assert prepare_data.main(["check", "p3d", str(root)]) == 1
    assert "p3d_car/detections.npy is damaged" in capsys.readouterr().err


def test_carla_is_checked_and_shown(tmp_path, capsys):
    root, sheet = tmp_path / "carla", tmp_path / "sheet.png"
    assert prepare_data.main(["check", "carla", str(root)]) == 1
    assert "has no *.png" in capsys.readouterr().err
    detected.write_carla(root)
    assert prepare_data.main(["check", "carla", str(root), "--sheet", str(sheet)]) == 0
    assert "train: all 3 pictures are whole; no classes" in capsys.readouterr().out
    assert read_image(sheet).shape == (3, 128, 8 * 128)
    (root / "000001.png").write_bytes(b"noise")
    np.save(root / "carla_poses" / "000002_extrinsics.npy", np.eye(4))
    assert prepare_data.main(["check", "carla", str(root)]) == 1
    error = capsys.readouterr().err
    assert "000001.png" in error
    assert "000002_extrinsics.npy" in error
    assert "2 problems" in error


def whole(source: Path) -> dict[str, np.ndarray]:
    with np.load(source / "cameras_cmr/cmr_cameras.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: {"rot": arrays["rot"][:2]}, r"rot is float64 \[2, 3, 3\], not numbers \[3, 3, 3\]"),
        (lambda arrays: {"scale": arrays["scale"] * np.nan}, "scale has numbers that are not finite"),
        (lambda arrays: {"rot": 5 * arrays["rot"]}, "rot of image 12 is no rotation"),
        (lambda arrays: {"scale": -arrays["scale"]}, "scale is not positive"),
        (lambda arrays: {"trans": np.array([{}] * 3, dtype=object)}, "holds object"),
    ],
)
def test_cameras_that_are_none_are_named(source, change, message, capsys):
    arrays = whole(source)
    np.savez(source / "cameras_cmr/cmr_cameras.npz", **{**arrays, **change(arrays)})
    assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"cmr_cameras\.npz.*{message}", said)
    assert said.count("\n") == 2


def test_truncated_cameras_at_every_length_are_one_line(source, capsys):
    path = source / "cameras_cmr/cmr_cameras.npz"
    content = path.read_bytes()
    for length in range(0, len(content), 331):
        path.write_bytes(content[:length])
        assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
        said = capsys.readouterr().err
        assert "cmr_cameras.npz" in said
        assert said.count("\n") == 2


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("good_ids.txt", b"", r"good_ids\.txt lists no birds"),
        ("good_ids.txt", b"11 007.K\xff/a.jpg 1\n", r"good_ids\.txt: line 1 is not UTF-8"),
        ("good_ids.txt", b"11 ../../../../scripts/demo.py 1\n", r"good_ids\.txt: the name .* leads out"),
        ("image_sizes.txt", b"11 007.Kind/Kind_0.jpg 80 60 0 0\n", "a size below 1"),
        ("annotations/bounding_boxes.txt", b"11 nan 1 2 3\n", "a box that is not finite"),
    ],
)
def test_damaged_lists_of_birds_are_named(source, file, content, message, capsys):
    (source / file).write_bytes(content)
    assert prepare_data.main(["cub-subset", str(source), "--check"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_damaged_receipt_is_named(source, tmp_path, capsys):
    for content in ("{", "[1]", "[" * 100_000):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "prepared.json").write_text(content)
        assert prepare_data.main(["cub-subset", str(source), str(tmp_path / "made")]) == 1
        assert "prepared.json is damaged; remove" in capsys.readouterr().err

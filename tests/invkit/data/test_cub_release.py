"""The subset of real birds from the official release, and names that lead out of their folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data import cub_release, cub_subset
from invkit.data.cmr import read_mat
from invkit.data.cub import Cub, mean_shape
from invkit.data.cub_subset import _structs as structs
from invkit.images import read_image
from tests.invkit.data.test_prepare_data import REAL, SHAPE, everything_in, prepare_data, source  # noqa: F401

# id: width, height, box (x, y, width, height, from 1), official flag: 1 is train
BIRDS = {
    3: (400, 300, (101, 61, 200, 180), 1),
    5: (300, 500, (31, 101, 240, 300), 0),
    8: (250, 200, (41, 31, 150, 140), 1),  # small already
    9: (400, 300, (51, 31, 90, 80), 1),  # not chosen
    12: (375, 500, (76, 101, 220, 301), 0),
}
CHOSEN = {3, 5, 8, 12}


def path_of(image_id: int) -> str:
    return f"{image_id:03d}.Kind/Kind_{image_id}.jpg"


def silhouette(image_id: int) -> np.ndarray:
    """An ellipse that fills the box."""
    width, height, (left, top, wide, high), _ = BIRDS[image_id]
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x - left + 1) / wide * 2 - 1) ** 2 + ((y - top + 1) / high * 2 - 1) ** 2 <= 1


def photograph(image_id: int) -> np.ndarray:
    """A colored ramp, with the ellipse in orange."""
    width, height, _, _ = BIRDS[image_id]
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 255 - x], axis=-1)
    pixels[silhouette(image_id)] = (230, 140, 20)
    return pixels.astype(np.uint8)


def write_cmr(root: Path, split: str, ids: list[int]) -> None:
    """CMR's two files of a split."""
    images, poses = [], []
    for image_id in ids:
        width, height, (left, top, wide, high), flag = BIRDS[image_id]
        box = {"x1": left, "y1": top, "x2": left + wide - 1, "y2": top + high - 1}
        images.append({"id": float(image_id), "rel_path": path_of(image_id), "train": float(flag), "bbox": box,
                       "width": float(width), "height": float(height), "mask": silhouette(image_id)})  # fmt: skip
        trans = np.array([[left + wide / 2], [top + high / 2]])
        rot = Rotation.random(random_state=image_id).as_matrix()
        poses.append({"rot": rot, "scale": wide / 2.0, "trans": trans})
    for folder in ("data", "sfm"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "data" / f"{split}_cub_cleaned.mat", {"images": structs(images)})
    cameras = {"sfm_anno": structs(poses), "S": SHAPE.T, "conv_tri": np.ones((4, 3))}
    scipy.io.savemat(root / "sfm" / f"anno_{split}.mat", cameras)


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """The official release beside CMR's files; four of its five birds are of the subset."""
    monkeypatch.setattr(cub_release, "CHOSEN", frozenset(CHOSEN))
    root = tmp_path / "cub"
    release = root / "CUB_200_2011"
    (release / "parts").mkdir(parents=True)
    lines: dict[str, list[str]] = {name: [] for name in cub_release._LISTS}
    for image_id, (_, _, box, flag) in BIRDS.items():
        photo = release / "images" / path_of(image_id)
        photo.parent.mkdir(parents=True)
        Image.fromarray(photograph(image_id)).save(photo, quality=95)
        lines["images.txt"].append(f"{image_id} {path_of(image_id)}")
        lines["train_test_split.txt"].append(f"{image_id} {flag}")
        lines["bounding_boxes.txt"].append(f"{image_id} {' '.join(f'{side:.1f}' for side in box)}")
        lines["image_class_labels.txt"].append(f"{image_id} {image_id}")
        center = f"{box[0] + box[2] // 2}.0 {box[1] + box[3] // 2}.0"
        lines["parts/part_locs.txt"] += [f"{image_id} {part + 1} {center} {int(part < 9)}" for part in range(15)]
    for name, content in lines.items():
        (release / name).write_text("\n".join(content) + "\n")
    write_cmr(root, "train", [3, 8, 9])
    write_cmr(root, "testval", [5, 12])
    return root


def test_the_official_files_become_the_subset(official, tmp_path, capsys):
    target = tmp_path / "made"
    assert prepare_data.main(["cub-subset", str(official), str(target)]) == 0
    train, test = Cub(target, "train", 64), Cub(target, "test", 64)
    assert (train.names, test.names) == (
        ["003.Kind/Kind_3", "008.Kind/Kind_8"],
        ["005.Kind/Kind_5", "012.Kind/Kind_12"],
    )
    assert (train.batch([0, 1]).label.flatten().tolist(), test.num_classes) == ([2, 7], 200)
    assert (target / "annotated_masks.txt").read_text().split() == sorted([*train.names, *test.names])
    np.testing.assert_allclose(mean_shape(target), SHAPE)
    assert not (target / "source").exists()
    sizes = {record.name: read_image(record.path).shape[1:] for record in (*train.records, *test.records)}
    assert list(sizes.values()) == [(240, 320), (200, 250), (320, 192), (320, 240)]
    assert Image.open(train.records[0].path).format == "JPEG"


def test_a_bird_is_cut_out_and_seen_as_in_the_official_photograph(official, tmp_path):
    """Its crop from the small copy is that of the original, but for the resampling."""
    cub_subset.write_subset(official, tmp_path / "made")
    small, large = (Cub.for_nerfinv(root, "train", 64) for root in (tmp_path / "made", official))
    for index, name in enumerate(small.names):
        ours, original = small[index], large[large.names.index(name)]
        assert (ours.rgb - original.rgb).abs().mean() < 0.04
        overlap = torch.minimum(ours.mask, original.mask).sum() / torch.maximum(ours.mask, original.mask).sum()
        assert overlap > 0.95
        points = torch.from_numpy(SHAPE).float()[None]
        np.testing.assert_allclose(
            ours.camera.project(points)[..., :2], original.camera.project(points)[..., :2], atol=0.04
        )


def test_the_archive_of_cmr_may_lie_as_it_was_unpacked_and_testval_may_be_missing(official, tmp_path):
    for folder in ("data", "sfm"):
        (official / "cachedir/cub").mkdir(parents=True, exist_ok=True)
        (official / folder).rename(official / "cachedir/cub" / folder)
    for path in official.glob("cachedir/cub/*/*testval*"):
        path.unlink()
    write_cmr(official / "cachedir/cub", "test", [5, 12])
    write_cmr(official / "cachedir/cub", "val", [12])  # as published: one bird is in both
    cub_subset.write_subset(official, tmp_path / "made")
    assert Cub(tmp_path / "made", "test").names == ["005.Kind/Kind_5", "012.Kind/Kind_12"]


def test_looking_leaves_nothing_and_a_second_run_changes_nothing(official, tmp_path, capsys):
    before = everything_in(tmp_path)
    assert prepare_data.main(["cub-subset", str(official), "--check", "--even-train"]) == 0
    out = capsys.readouterr().out
    assert "train: 3 birds of 3 species; 3 of the masks drawn by a person" in out
    assert "test: 1 birds" in out
    assert everything_in(tmp_path) == before
    target = tmp_path / "made"
    assert prepare_data.main(["cub-subset", str(official), str(target)]) == 0
    before = everything_in(target)
    assert prepare_data.main(["cub-subset", str(official), str(target)]) == 0
    assert everything_in(target) == before
    assert prepare_data.main(["cub-subset", str(official), str(target), "--even-train"]) == 1


def test_what_the_official_files_lack_is_named_and_nothing_is_left(official, tmp_path, capsys):
    (official / "CUB_200_2011/images" / path_of(3)).unlink()
    assert prepare_data.main(["cub-subset", str(official), str(tmp_path / "made")]) == 1
    assert "Kind_3.jpg" in capsys.readouterr().err
    (official / "data/testval_cub_cleaned.mat").write_bytes(b"noise")
    assert prepare_data.main(["cub-subset", str(official), str(tmp_path / "made")]) == 1
    assert "testval_cub_cleaned.mat" in capsys.readouterr().err
    write_cmr(official, "testval", [5])
    Image.fromarray(photograph(3)).save(official / "CUB_200_2011/images" / path_of(3))
    assert prepare_data.main(["cub-subset", str(official), "--check"]) == 1
    assert "Kind_12.jpg (image 12) is not in the annotations" in capsys.readouterr().err
    shutil.rmtree(official / "CUB_200_2011")
    assert prepare_data.main(["cub-subset", str(official), str(tmp_path / "made")]) == 1
    said = capsys.readouterr().err
    assert "CUB_200_2011/" in said
    assert "good_ids.txt" in said
    assert [path.name for path in tmp_path.iterdir()] == ["cub"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../../../../scripts/demo.py", "leads out of its folder"),
        ("../../../outside.jpg", "leads out of its folder"),
        ("/tmp/outside.jpg", "is not a relative path"),
        ("007.Kind/demo.py", "does not end in"),
    ],
)
def test_a_name_that_leads_out_is_refused(request, tmp_path, capsys, name, reason):
    for fixture, list_name in (("source", "good_ids.txt"), ("official", "CUB_200_2011/images.txt")):
        root = request.getfixturevalue(fixture)
        listed = root / list_name
        first, *rest = listed.read_text().splitlines()
        number, _, *flag = first.split()
        listed.write_text("\n".join([" ".join([number, name, *flag]), *rest]) + "\n")
        before = everything_in(tmp_path)
        assert prepare_data.main(["cub-subset", str(root), str(tmp_path / "a/b/c/made")]) == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2, said  # the reason, and the count
        assert f"{listed}: the name '{name}' {reason}" in said[0]
        assert everything_in(tmp_path).keys() - before.keys() <= {"a", "a/b", "a/b/c"}


def test_a_link_that_leads_out_is_refused(source, official, tmp_path, capsys):  # noqa: F811
    secret = tmp_path / "secret.jpg"
    Image.fromarray(photograph(3)).save(secret)
    for root, photo in (
        (source, source / "images_320/007.Kind/Kind_0.jpg"),
        (official, official / "CUB_200_2011/images" / path_of(3)),
    ):
        photo.unlink()
        photo.symlink_to(secret)
        assert prepare_data.main(["cub-subset", str(root), str(tmp_path / "made")]) == 1
        assert "is a link that leads out of" in capsys.readouterr().err
        assert not (tmp_path / "made").exists()


def test_a_loader_refuses_a_name_that_leads_out(official):
    file = official / "data/train_cub_cleaned.mat"
    entries = [{"rel_path": f"../../{i}.jpg", "bbox": dict.fromkeys(("x1", "y1", "x2", "y2"), 1.0), "mask": np.eye(3)}
               for i in range(3)]  # fmt: skip
    scipy.io.savemat(file, {"images": structs(entries)})
    with pytest.raises(ValueError, match="leads out of its folder"):
        Cub(official, "train")


# ---- The real subset ---------------------------------------------------------------------------------------------

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the prepared subset is not here")


@needs_real
def test_the_choice_and_the_sizes_are_those_of_the_prepared_subset():
    rows = [line.split() for line in (REAL / "good_ids.txt").read_text().splitlines()]
    assert {int(row[0]) for row in rows} == cub_release.CHOSEN
    flags = dict(line.split() for line in (REAL / "annotations/train_test_split.txt").read_text().splitlines())
    assert all(flags[row[0]] == row[2] for row in rows)
    for line in (REAL / "image_sizes.txt").read_text().splitlines():
        *_, width, height, small_width, small_height = line.split()
        assert cub_release.small_size(int(width), int(height)) == (int(small_width), int(small_height))


@needs_real
def test_real_birds_come_out_as_in_the_prepared_subset(tmp_path, monkeypatch):
    """From CUB's own lists and CMR's own cameras; enlarged copies stand for photographs and silhouettes."""
    prepared = cub_subset.read_subset(REAL)
    birds = {bird.image_id: bird for bird in (*prepared.birds[:3], *prepared.birds[-3:])}
    release = tmp_path / "cub/CUB_200_2011"
    (release / "parts").mkdir(parents=True)
    for name in cub_release._LISTS:
        shutil.copyfile(REAL / "annotations" / name, release / name)
    originals = {int(line.split()[0]): line.split()[-4:-2] for line in (REAL / "image_sizes.txt").open()}
    with np.load(REAL / "cameras_cmr/cmr_cameras.npz") as archive:
        ids, of_train = archive["image_id"], archive["split"] == "train"
    for split, listed in (("train", ids[of_train]), ("testval", ids[~of_train])):
        contents = read_mat(REAL / f"cameras_cmr/anno_{split}.mat")
        images, poses = [], []
        for image_id, pose in zip(listed.tolist(), contents["sfm_anno"][: len(listed)], strict=True):
            if image_id in birds:
                size = tuple(map(int, originals[image_id]))
                bird = birds[image_id]
                photo = release / "images" / bird.path
                photo.parent.mkdir(parents=True, exist_ok=True)
                Image.open(bird.photo).resize(size).save(photo, quality=95)
                mask = np.asarray(Image.open(bird.mask).convert("L").resize(size)) > 127
                images.append({"rel_path": bird.path, "mask": mask})
                poses.append({"rot": pose.rot, "scale": pose.scale, "trans": pose.trans[:, None]})
        for folder, file, content in (
            ("data", f"{split}_cub_cleaned.mat", {"images": structs(images)}),
            ("sfm", f"anno_{split}.mat",
             {"sfm_anno": structs(poses), "S": contents["S"], "conv_tri": contents["conv_tri"]}),
        ):  # fmt: skip
            (tmp_path / "cub" / folder).mkdir(exist_ok=True)
            scipy.io.savemat(tmp_path / "cub" / folder / file, content)
    monkeypatch.setattr(cub_release, "CHOSEN", frozenset(birds))
    assert cub_release.write_source(tmp_path / "cub", tmp_path / "small") == []
    made = cub_subset.read_subset(tmp_path / "small")
    assert len(made.birds) == len(birds)
    np.testing.assert_array_equal(made.mean_shape, prepared.mean_shape)
    np.testing.assert_array_equal(made.triangles, prepared.triangles)
    for bird in made.birds:
        same = birds[bird.image_id]
        for field in ("path", "split", "label", "width", "height", "scale"):
            assert getattr(bird, field) == getattr(same, field)
        for field in ("box", "parts", "rot", "trans"):
            np.testing.assert_array_equal(getattr(bird, field), getattr(same, field))
        assert (read_image(bird.photo) - read_image(same.photo)).abs().mean() < 0.02
        ours, theirs = cub_subset.read_mask(bird), cub_subset.read_mask(same)
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97

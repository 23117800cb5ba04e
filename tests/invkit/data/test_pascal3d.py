"""The PASCAL3D+ loader against the crop rule and the camera of CMR, written out in NumPy, on fabricated trees."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data.dataset import Preparation
from invkit.data.pascal3d import Pascal3D, annotation_files, mean_shape, problems, read_records, read_shapes
from invkit.types import Views

SOFT = Preparation(mask_threshold=None)
SHAPE = np.random.default_rng(3).normal(size=(3, 12))


@dataclass
class Entry:
    """One fabricated object, 1-based as MATLAB counts."""

    path: str
    pixels: np.ndarray
    mask: np.ndarray
    box: tuple[float, float, float, float]
    rot: np.ndarray
    scale: float
    trans: np.ndarray
    cad_index: int

    @property
    def name(self) -> str:
        return self.path.replace("\\", "/").rpartition(".")[0]


def fabricate(split: str = "train") -> list[Entry]:
    """Two masks of each type, paths with either separator; in train two objects of one photograph."""
    kinds = {
        "train": [
            ("car_pascal/2008_000021.jpg", (70, 95), (12.4, 9.7, 80.25, 51.5)),
            ("car_imagenet\\n02814533_10026.JPEG", (64, 51), (1.0, 20.0, 40.0, 64.0)),
            ("car_imagenet/n02958343_77.JPEG", (48, 110), (5.0, 6.0, 60.0, 40.0)),
            ("car_imagenet/n02958343_77.JPEG", (48, 110), (70.0, 10.0, 110.0, 33.0)),
        ],
        "val": [
            ("car_pascal/2009_000004.jpg", (41, 40), (9.0, 9.0, 33.0, 30.0)),
            ("car_pascal\\2010_001111.jpg", (55, 75), (20.5, 3.5, 60.0, 48.0)),
        ],
    }[split]
    rng = np.random.default_rng(len(kinds))
    entries = []
    for i, (path, (height, width), box) in enumerate(kinds):
        ys, xs = np.mgrid[1 : height + 1, 1 : width + 1]
        center, radius = np.array([box[0] + box[2], box[1] + box[3]]) / 2, np.array([box[2] - box[0], box[3] - box[1]])
        mask = ((xs - center[0]) / radius[0]) ** 2 + ((ys - center[1]) / radius[1]) ** 2 <= 0.25
        entries.append(
            Entry(
                path=path,
                pixels=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
                mask=mask if i % 2 else mask.astype(np.uint8),
                box=box,
                rot=Rotation.random(random_state=i).as_matrix(),
                scale=float(rng.uniform(20, 40)),
                trans=rng.uniform(20, 60, 2),
                cad_index=3 * i + 1,
            )
        )
    if split == "train":
        entries[3].pixels = entries[2].pixels
    return entries


def structs(rows: list[dict]) -> np.ndarray:
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def write(root: Path, split: str = "train", entries: list[Entry] | None = None) -> list[Entry]:
    """The published layout; gives the entries, with the pixels that JPEG leaves of them."""
    entries = fabricate(split) if entries is None else entries
    images_mat, cameras_mat = annotation_files(root, split)
    for path in (images_mat, cameras_mat):
        path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {
            "width": float(e.mask.shape[1]),
            "cad_index": float(e.cad_index),
            "height": float(e.mask.shape[0]),
            "voc_image_id": e.name.split("/")[1],
            "voc_rec_id": 1.0,
            "is_train": split == "train",
            "rel_path": e.path,
            "bbox": dict(zip(("x1", "y1", "x2", "y2"), e.box, strict=True)),
            "parts": np.ones((3, 12)),
            "mask": e.mask,
        }
        for e in entries
    ]
    poses = [
        {
            "rot": e.rot,
            "scale": e.scale,
            "trans": e.trans[None] if i else e.trans[:, None],
            "err_sfm_reproj": 0.001,
        }
        for i, e in enumerate(entries)
    ]
    scipy.io.savemat(images_mat, {"images": structs(images)})
    scipy.io.savemat(cameras_mat, {"sfm_anno": structs(poses), "S": SHAPE, "conv_tri": np.ones((4, 3))})
    decoded = []
    for e in entries:
        place = photograph(root, e)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(e.pixels).save(place, quality=95, subsampling=0)
        decoded.append(replace(e, pixels=np.asarray(Image.open(place))))
    return decoded


def photograph(root: Path, entry: Entry) -> Path:
    return root / "PASCAL3D+_release1.1" / "Images" / entry.path.replace("\\", "/")


def write_labels(root: Path, rows: str = "") -> Path:
    path = root / "p3d_labels.csv"
    path.write_text(
        "filename,color1,color2,shape,notes\n"
        "n02958343_77.JPEG,red,none,suv,\n"
        "n02814533_10026.JPEG,white,black,hatchback,x\n"
        "n04285965_1.JPEG,white,none,sedan,\n" + rows
    )
    return path


def linear(source: int, target: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR along one axis, as a matrix."""
    weights = np.zeros((target, source))
    for d in range(target):
        f = (d + 0.5) * source / target - 0.5
        i = int(np.floor(f))
        weights[d, np.clip(i, 0, source - 1)] += 1 - (f - i)
        weights[d, np.clip(i + 1, 0, source - 1)] += f - i
    return weights


def expected(
    entry: Entry, size: int, *, mirrored: bool = False, jitter: float = 0.0, u: np.ndarray = np.full(4, 0.5)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colors in [-1, 1] and soft mask, channels last, and CMR's seven numbers; all float64."""
    box = np.array(entry.box) - 1
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    box += np.array([-1, -1, 1, 1]) * 0.05 * [w, h, w, h] - (1 - 2 * u) * jitter * [w, h, -w, -h]
    left, top, right, bottom = (round(side) for side in box.tolist())
    w, h = right - left + 1, bottom - top + 1
    side = max(w, h)
    left, top = left - round((side - w) / 2), top - round((side - h) / 2)

    pixels = np.concatenate([entry.pixels / 255.0, entry.mask[..., None].astype(np.float64)], axis=2)
    square = np.concatenate([np.ones((side, side, 3)), np.zeros((side, side, 1))], axis=2)
    for y in range(max(top, 0), min(top + side, pixels.shape[0])):
        for x in range(max(left, 0), min(left + side, pixels.shape[1])):
            square[y - top, x - left] = pixels[y, x]
    weights = linear(side, size)
    cut = np.einsum("ay,yxc,bx->abc", weights, square, weights)

    scale, trans, rot = entry.scale * size / side, (entry.trans - [left, top]) * size / side, entry.rot
    if mirrored:
        flip = np.diag([-1, 1, 1])
        cut, trans, rot = cut[:, ::-1], np.array([size - trans[0] - 1, trans[1]]), flip @ rot @ flip
    quat = Rotation.from_matrix(rot).as_quat()[[3, 0, 1, 2]]
    pose = np.concatenate([[scale * (1 / size + 1 / size)], 2 * trans / size - 1, quat * np.sign(quat[0])])
    return 2 * cut[..., :3] - 1, cut[..., 3], pose


def assert_item(views: Views, image: np.ndarray, mask: np.ndarray, pose: np.ndarray) -> None:
    np.testing.assert_allclose(views.rgb[0].permute(1, 2, 0), image, atol=1e-6)
    np.testing.assert_allclose(views.mask[0, 0], mask, atol=1e-6)
    np.testing.assert_allclose(views.camera.to_cmr()[0], pose, atol=1e-6)
    assert views.camera.inv_focal.tolist() == [0.0]


def test_the_resampling_written_here_is_opencvs():
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    image = np.random.default_rng(0).random((37, 37))
    for size in (16, 90):
        weights = linear(37, size)
        np.testing.assert_allclose(weights @ image @ weights.T, cv2.resize(image, (size, size)), atol=1e-12)


@pytest.mark.parametrize("split", ["train", "val"])
def test_items_are_cut_as_cmr_cuts_them(tmp_path, split):
    entries = write(tmp_path, split)
    hard, soft = Pascal3D(tmp_path, split, 48), Pascal3D(tmp_path, split, 48, preparation=SOFT)
    assert (len(hard), hard.num_classes, hard.size, hard.classes) == (len(entries), 0, 48, [])
    for i, entry in enumerate(entries):
        image, mask, pose = expected(entry, 48)
        assert 0.1 < mask.mean() < 0.9
        assert_item(soft[i], image, mask, pose)
        thresholded = (mask > 0.95).astype(float)
        near = np.abs(mask - 0.95) < 1e-6  # where rounding decides
        thresholded[near] = hard[i].mask[0, 0].numpy()[near]
        assert_item(hard[i], image, thresholded, pose)
        assert (hard[i].label, hard[i].index.tolist()) == (None, [i])
        assert hard[i].rgb.dtype == hard[i].camera.shift.dtype == torch.float32
    assert hard.batch([1, 0]).index.tolist() == [1, 0]


def test_mirrored_copies_follow_the_items_in_any_order(tmp_path):
    entries = write(tmp_path)
    dataset = Pascal3D(tmp_path, "train", 40, mirrored=True, preparation=SOFT)
    assert len(dataset) == len(set(dataset.names)) == 8
    for index in (6, 2, 6, 4, 7, 3, 4):
        views = dataset[index]
        assert_item(views, *expected(entries[index % 4], 40, mirrored=index >= 4))
        assert views.index.tolist() == [index]


def test_jitter_is_drawn_from_seed_and_index(tmp_path):
    entries = write(tmp_path)
    dataset = Pascal3D(tmp_path, "train", 32, jitter=0.05, seed=7, mirrored=True, preparation=SOFT)
    for index in (5, 1, 3):
        u = np.random.default_rng([7, index]).random(4)
        assert_item(dataset[index], *expected(entries[index % 4], 32, mirrored=index >= 4, jitter=0.05, u=u))


def test_objects_are_chosen_by_path_and_remember_their_place(tmp_path):
    entries = write(tmp_path)
    dataset = Pascal3D(tmp_path, "train", 32, path_prefix="car_imagenet", mirrored=True, preparation=SOFT)
    assert [record.position for record in dataset.records] == [1, 2, 3]
    assert len(dataset) == 6
    for index in range(6):
        entry = entries[dataset.records[index % 3].position]
        assert_item(dataset[index], *expected(entry, 32, mirrored=index >= 3))
        assert dataset[index].index.tolist() == [index]
    with pytest.raises(ValueError, match=r"'car_vw'.*car_imagenet, car_pascal"):
        Pascal3D(tmp_path, "train", path_prefix="car_vw")


def test_two_objects_of_a_photograph_have_two_names(tmp_path):
    write(tmp_path)
    names = ["car_pascal/2008_000021", "car_imagenet/n02814533_10026"]
    names += ["car_imagenet/n02958343_77", "car_imagenet/n02958343_77-2"]
    assert Pascal3D(tmp_path, "train").names == names


def test_the_annotated_cad_model_is_kept_where_there_is_one(tmp_path):
    write(tmp_path)
    assert [record.cad_index for record in Pascal3D(tmp_path, "train").records] == [1, 4, 7, 10]
    rewrite(tmp_path, "images", lambda row: {key: value for key, value in row.items() if key != "cad_index"})
    assert [record.cad_index for record in Pascal3D(tmp_path, "train").records] == [None] * 4


def test_classes_are_body_shapes_in_alphabetical_order(tmp_path):
    write(tmp_path)
    labels = write_labels(tmp_path)
    dataset = Pascal3D(tmp_path, "train", 16, path_prefix="car_imagenet", labels=labels, mirrored=True)
    assert (dataset.num_classes, dataset.classes) == (3, ["hatchback", "sedan", "suv"])
    assert dataset.batch(range(6)).label.tolist() == [0, 2, 2, 0, 2, 2]
    assert read_shapes(write_labels(tmp_path, "\nn04285965_1.JPEG,a,b,pickup,\n"))["n04285965_1"] == "pickup"
    with pytest.raises(ValueError, match=r"p3d_labels.csv has no row for 1 of 4 objects, first car_pascal/2008_000021"):
        Pascal3D(tmp_path, "train", labels=labels)


def test_labels_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        Pascal3D(tmp_path, "train", labels=tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"p3d_labels.csv: line 5"):
        Pascal3D(tmp_path, "train", labels=write_labels(tmp_path, "n1.JPEG,red\n"))
    (tmp_path / "p3d_labels.csv").write_bytes(b"\xff\xfe\x81" * 9)
    with pytest.raises(ValueError, match=r"cannot read .*p3d_labels.csv"):
        Pascal3D(tmp_path, "train", labels=tmp_path / "p3d_labels.csv")


def test_a_mask_of_any_numbers_is_a_silhouette(tmp_path):
    entries = fabricate("val")
    entries[0].mask = entries[0].mask * np.uint8(255)
    write(tmp_path, "val", entries)
    masks = [record.mask for record in read_records(tmp_path, "val")]
    for mask, entry in zip(masks, entries, strict=True):
        assert mask.dtype == bool
        assert np.array_equal(mask, entry.mask > 0)


def test_a_split_of_one_object_is_read(tmp_path):
    entry = write(tmp_path, "val", fabricate("val")[1:])[0]
    dataset = Pascal3D(tmp_path, "val", 16, preparation=SOFT)
    assert len(dataset) == 1
    assert_item(dataset[-1], *expected(entry, 16))


def test_another_category_is_in_files_of_its_name(tmp_path):
    write(tmp_path)
    for path in annotation_files(tmp_path, "train"):
        path.rename(path.with_name("aeroplane_train.mat"))
    assert len(Pascal3D(tmp_path, "train", category="aeroplane")) == 4
    with pytest.raises(FileNotFoundError, match="car_train"):
        Pascal3D(tmp_path, "train")


def test_the_mean_shape_comes_with_the_training_split(tmp_path):
    write(tmp_path)
    np.testing.assert_array_equal(mean_shape(tmp_path), SHAPE.T)
    scipy.io.savemat(annotation_files(tmp_path, "train")[1], {"S": np.ones((3, 15))})
    with pytest.raises(ValueError, match=r"car_train.mat has no mean shape S of 3 x 12"):
        mean_shape(tmp_path)


def test_the_config_fits_the_loader():
    config = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[3] / "configs/data/p3d_car.yaml"))
    assert config.pop("_target_") == f"{Pascal3D.__module__}.{Pascal3D.__qualname__}"
    inspect.signature(Pascal3D).bind(**config)


# ---- What is wrong with a folder -----------------------------------------------------------------------------------


def rewrite(root: Path, variable: str, change) -> None:
    """Put other rows into a file of the training split."""
    path = annotation_files(root, "train")[variable == "sfm_anno"]
    array = scipy.io.loadmat(path)[variable]
    rows = [{name: entry[name] for name in array.dtype.names} for entry in array[0]]
    scipy.io.savemat(path, {variable: structs([change(row) for row in rows])})


@pytest.mark.parametrize("file", [0, 1])
def test_a_missing_annotation_file_is_named(tmp_path, file):
    write(tmp_path)
    path = annotation_files(tmp_path, "train")[file]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.parent.name}/car_train.mat is missing.*docs/datasets.md"):
        Pascal3D(tmp_path, "train")
    assert [str(path) in text for text in problems(tmp_path, "train")] == [True]


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, file, keep):
    write(tmp_path)
    path = annotation_files(tmp_path, "train")[file]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=rf"{path.parent.name}/car_train.mat"):
        Pascal3D(tmp_path, "train")
    assert [str(path) in text for text in problems(tmp_path, "train")] == [True]


@pytest.mark.parametrize(
    "variable, field",
    [("images", field) for field in ("rel_path", "bbox", "mask")]
    + [("sfm_anno", field) for field in ("rot", "scale", "trans")],
)
def test_a_missing_field_is_named(tmp_path, variable, field):
    write(tmp_path)
    rewrite(tmp_path, variable, lambda row: {key: value for key, value in row.items() if key != field})
    with pytest.raises(ValueError, match=rf"car_train.mat: entry 0 of `{variable}` lacks the field {field}"):
        Pascal3D(tmp_path, "train")


@pytest.mark.parametrize(
    "variable, field, value, complaint",
    [
        ("images", "bbox", {"x1": 1.0, "y1": 2.0, "x2": 3.0}, "bbox of car_pascal/2008_000021.jpg"),
        ("images", "bbox", {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": "four"}, "bbox of car_pascal/2008_000021.jpg"),
        ("images", "mask", np.ones((2, 3, 4)), "mask of car_pascal/2008_000021.jpg"),
        ("images", "mask", "none", "mask of car_pascal/2008_000021.jpg"),
        ("images", "cad_index", "sedan", "cad_index of car_pascal/2008_000021.jpg"),
        ("images", "cad_index", np.zeros((0, 0)), "cad_index of car_pascal/2008_000021.jpg"),
        ("sfm_anno", "rot", np.eye(2), "rot 3 x 3"),
        ("sfm_anno", "trans", np.ones((1, 3)), "trans 2"),
        ("sfm_anno", "scale", np.ones((1, 2)), "scale"),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path, variable, field, value, complaint):
    write(tmp_path)
    rewrite(tmp_path, variable, lambda row: {**row, field: value})
    with pytest.raises(ValueError, match=rf"car_train.mat.*{complaint}"):
        Pascal3D(tmp_path, "train")


def test_files_of_unequal_length_are_refused(tmp_path):
    write(tmp_path)
    cameras_mat = annotation_files(tmp_path, "train")[1]
    poses = scipy.io.loadmat(cameras_mat)["sfm_anno"]
    scipy.io.savemat(cameras_mat, {"sfm_anno": poses[:, :3]})
    with pytest.raises(ValueError, match=r"4 images and .* 3 cameras"):
        Pascal3D(tmp_path, "train")
    scipy.io.savemat(cameras_mat, {"other": poses})
    with pytest.raises(ValueError, match=r"sfm/car_train.mat has no variable `sfm_anno`"):
        Pascal3D(tmp_path, "train")


def test_every_missing_and_damaged_photograph_is_named(tmp_path):
    entries = write(tmp_path)
    assert problems(tmp_path, "train") == []
    first, second = photograph(tmp_path, entries[0]), photograph(tmp_path, entries[1])
    second.write_bytes(second.read_bytes()[:200])
    Image.fromarray(entries[2].pixels[:-1]).save(photograph(tmp_path, entries[2]))
    dataset = Pascal3D(tmp_path, "train")
    with pytest.raises(ValueError, match=second.name):
        dataset[1]
    with pytest.raises(ValueError, match=r"\(47, 110\).*mask \(48, 110\)"):
        dataset[3]
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 4 photographs .*{first.name}: .*docs/datasets.md"):
        Pascal3D(tmp_path, "train")
    assert len(Pascal3D(tmp_path, "train", path_prefix="car_imagenet")) == 3
    found = problems(tmp_path, "train")
    assert len(found) == 4
    for text, name in zip(found, (first.name, second.name, "n02958343_77", "n02958343_77-2"), strict=True):
        assert name in text


def test_empty_masks_boxes_and_cameras_are_named(tmp_path):
    entries = fabricate()
    entries[0].mask = entries[0].mask * 0
    entries[1].box = (30.0, 5.0, 20.0, 50.0)
    entries[2].scale = -1.0
    write(tmp_path, "train", entries)
    found = problems(tmp_path, "train")
    assert len(found) == 3
    for text, entry, words in zip(found, entries, ("mask", "box", "camera"), strict=False):
        assert f"{entry.name} of car_train" in text
        assert words in text

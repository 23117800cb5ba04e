"""The CUB loader against a second implementation with OpenCV and NumPy, on fabricated trees."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data.cub import Cub, annotation_files, mean_shape, problems
from invkit.data.dataset import Preparation, subset
from invkit.images import resize_bilinear
from invkit.types import Views

# opencv-python needs libGL, which a machine without a window system may lack.
cv2 = pytest.importorskip("cv2", exc_type=ImportError)


@dataclass
class Entry:
    """One fabricated photograph, 1-based as MATLAB counts."""

    path: str
    pixels: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]
    rot: np.ndarray
    scale: float
    trans: np.ndarray
    label: int


SHAPES = [(60, 90), (91, 64), (70, 70), (53, 77), (40, 41)]
BOXES = [
    (20, 15, 70, 48),
    (1, 30, 41, 91),
    (11, 12, 60, 64),
    (50, 3, 77, 53),
    (9, 9, 33, 30),
]  # the 2nd, 4th at borders


def fabricate(count: int = 4, seed: int = 0) -> list[Entry]:
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(count):
        (height, width), box = SHAPES[i], BOXES[i]
        pixels = rng.integers(0, 256, (height, width) if i == 2 else (height, width, 3), dtype=np.uint8)
        ys, xs = np.mgrid[:height, :width]
        center, radius = (
            ((box[0] + box[2]) / 2 - 1, (box[1] + box[3]) / 2 - 1),
            ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2),
        )
        mask = ((xs - center[0]) / radius[0]) ** 2 + ((ys - center[1]) / radius[1]) ** 2 <= 1
        entries.append(
            Entry(
                path=f"{i + 1:03d}.Kind_{i}/Kind_{i}_00{i}_{seed}.png",
                pixels=pixels,
                mask=mask,
                box=box,
                rot=Rotation.random(random_state=10 * seed + i).as_matrix(),
                scale=float(rng.uniform(20, 40)),
                trans=rng.uniform(20, 60, 2),
                label=i * 40 + 7,
            )
        )
    return entries


def structs(rows: list[dict]) -> np.ndarray:
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def write(root: Path, entries: list[Entry], split: str = "test") -> Path:
    """The published layout, as far as the loader reads it, and some fields that it does not."""
    images_mat, cameras_mat, paths, labels = annotation_files(root, split)
    for path in (images_mat, cameras_mat, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {
            "id": float(i + 5),
            "rel_path": e.path.replace("/", "\\") if i == 1 else e.path,
            "bbox": dict(zip(("x1", "y1", "x2", "y2"), map(float, e.box), strict=True)),
            "parts": np.ones((3, 15)),
            "mask": e.mask,
        }
        for i, e in enumerate(entries)
    ]
    poses = [{"rot": e.rot, "scale": e.scale, "trans": e.trans[:, None]} for e in entries]
    scipy.io.savemat(images_mat, {"images": structs(images)})
    shape = np.arange(45.0).reshape(3, 15)
    scipy.io.savemat(cameras_mat, {"sfm_anno": structs(poses), "S": shape, "conv_tri": np.ones((4, 3))})
    paths.write_text("1 900.Other/other.jpg\n" + "".join(f"{i + 5} {e.path}\n" for i, e in enumerate(entries)))
    labels.write_text("1 200\n" + "".join(f"{i + 5} {e.label}\n" for i, e in enumerate(entries)))
    for e in entries:
        place = paths.parent / "images" / e.path
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(e.pixels).save(place)
    return root


def expected_square(entry: Entry, whole: bool, jitter: float, u: np.ndarray) -> tuple[int, int, int]:
    """Left, top, side, by the crop rule of CMR."""
    height, width = entry.mask.shape
    box = np.array([0, 0, width - 1, height - 1] if whole else entry.box, dtype=np.float64) - (0 if whole else 1)
    if not whole:
        w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
        box += np.array([-1, -1, 1, 1]) * (0.05 + (1 - 2 * u) * jitter) * np.array([w, h, w, h])
    x1, y1, x2, y2 = np.rint(box).astype(int)
    w, h = x2 - x1 + 1, y2 - y1 + 1
    side = max(w, h)
    return x1 - int(np.rint((side - w) / 2)), y1 - int(np.rint((side - h) / 2)), side


def expected_item(
    entry: Entry, size: int, flag: int, *, whole: bool = False, jitter: float = 0.0, u: np.ndarray = np.full(4, 0.5)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colors in [-1, 1] and soft mask, channels last, and CMR's seven numbers; all float64."""
    left, top, side = expected_square(entry, whole, jitter, u)
    pixels = entry.pixels if entry.pixels.ndim == 3 else np.repeat(entry.pixels[..., None], 3, axis=2)
    image, mask = np.ones((side, side, 3)), np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = top + row, left + column
            if 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]:
                image[row, column], mask[row, column] = pixels[y, x] / 255.0, entry.mask[y, x]
    image, mask = (cv2.resize(each, (size, size), interpolation=flag) for each in (image, mask))
    scale, trans = entry.scale * size / side, (entry.trans - [left, top]) * size / side
    scale, trans = scale * (1 / size + 1 / size), 2 * trans / size - 1
    quat = Rotation.from_matrix(entry.rot).as_quat()[[3, 0, 1, 2]]
    return 2 * image - 1, mask, np.concatenate([[scale], trans, quat * np.sign(quat[0])])


def assert_item(views: Views, image: np.ndarray, mask: np.ndarray, pose: np.ndarray, pixels: float = 1e-6) -> None:
    np.testing.assert_allclose(views.rgb[0].permute(1, 2, 0), image, atol=pixels)
    np.testing.assert_allclose(views.mask[0, 0], mask, atol=pixels)
    np.testing.assert_allclose(views.camera.to_cmr()[0], pose, atol=1e-6)


def test_items_are_those_of_meshinversion(tmp_path):
    entries = fabricate()
    dataset = Cub(write(tmp_path, entries), "test", 64)
    assert (len(dataset), dataset.num_classes, dataset.size) == (4, 200, 64)
    assert dataset.names == [entry.path.removesuffix(".png") for entry in entries]
    for i, entry in enumerate(entries):
        views = dataset[i]
        image, mask, pose = expected_item(entry, 64, cv2.INTER_LINEAR)
        hard = (mask > 0.95).astype(float)
        near = np.abs(mask - 0.95) < 1e-6  # where rounding decides
        hard[near] = views.mask[0, 0].numpy()[near]
        assert_item(views, image, hard, pose)
        assert (views.label.tolist(), views.index.tolist()) == ([entry.label - 1], [i])
        assert views.rgb.dtype == views.camera.quat.dtype == torch.float32


@pytest.mark.parametrize("whole", [False, True])
def test_items_are_those_of_radiance_field_inversion(tmp_path, whole):
    entries = fabricate()
    dataset = Cub.for_nerfinv(write(tmp_path, entries), "test", 32, whole_image=whole)
    for i, entry in enumerate(entries):
        assert_item(dataset[i], *expected_item(entry, 32, cv2.INTER_AREA, whole=whole))


def test_growing_crops_follow_opencvs_area_rule_too(tmp_path):
    entries = fabricate(5)
    dataset = Cub.for_nerfinv(write(tmp_path, entries), "test", 64)
    assert_item(dataset[4], *expected_item(entries[4], 64, cv2.INTER_AREA))


def test_the_camera_projects_as_the_annotation_does_then_the_crop(tmp_path):
    entries = fabricate()
    dataset = Cub(write(tmp_path, entries), "test", 50)
    points = np.random.default_rng(0).normal(size=(7, 3))
    for i, entry in enumerate(entries):
        in_source = entry.scale * (points @ entry.rot.T)[:, :2] + entry.trans
        left, top, side = expected_square(entry, False, 0.0, np.full(4, 0.5))
        in_crop = (in_source - [left, top]) * 50 / side
        projected = dataset[i].camera.project(torch.from_numpy(points).float()[None])[0, :, :2]
        np.testing.assert_allclose(projected, 2 * in_crop / 50 - 1, atol=2e-6)


def test_mirrored_copies_follow_the_items(tmp_path):
    entries = fabricate()
    root = write(tmp_path, entries)
    for dataset, drift in (
        (Cub(root, "test", 40, mirrored=True), 2 / 40),
        (Cub.for_nerfinv(root, "test", 40, mirrored=True), 0.0),
    ):
        assert len(dataset) == len(set(dataset.names)) == 8
        for i in (0, 3):
            flipped, plain = dataset[4 + i], dataset[i]  # read out of order on purpose
            assert torch.equal(flipped.rgb, plain.rgb.flip(-1))
            assert torch.equal(flipped.mask, plain.mask.flip(-1))
            assert (flipped.index.tolist(), flipped.label.tolist()) == ([4 + i], plain.label.tolist())
            s, tx, ty, w, x, y, z = plain.camera.to_cmr()[0].tolist()
            np.testing.assert_allclose(flipped.camera.to_cmr()[0], [s, -tx - drift, ty, w, x, -y, -z], atol=1e-6)
            again = dataset[4 + i]
            assert torch.equal(again.camera.to_cmr(), flipped.camera.to_cmr())


def test_a_point_and_its_mirror_image_land_on_the_same_pixel_column(tmp_path):
    dataset = Cub(write(tmp_path, fabricate()), "test", 40, mirrored=True)
    point = torch.tensor([[[0.3, -0.4, 0.2]]])
    seen = dataset[1].camera.project(point)[0, 0, 0]
    mirrored = dataset[5].camera.project(point * torch.tensor([-1.0, 1, 1]))[0, 0, 0]
    index, mirrored_index = ((x.item() + 1) * 20 for x in (seen, mirrored))
    assert mirrored_index == pytest.approx(39 - index, abs=1e-4)  # CMR counts pixels by their index


def test_jitter_is_drawn_from_seed_and_index(tmp_path):
    entries = fabricate()
    root = write(tmp_path, entries)
    soft = Preparation(mask_threshold=None)
    dataset = Cub(root, "test", 32, jitter=0.2, seed=5, preparation=soft)
    for i, entry in enumerate(entries):
        u = np.random.default_rng([5, i]).random(4)
        assert_item(dataset[i], *expected_item(entry, 32, cv2.INTER_LINEAR, jitter=0.2, u=u))
    other = Cub(root, "test", 32, jitter=0.2, seed=6, preparation=soft)
    assert any(not torch.equal(other[i].rgb, dataset[i].rgb) for i in range(4))


def test_masking_makes_the_background_mid_grey(tmp_path):
    entries = fabricate()
    dataset = Cub(write(tmp_path, entries), "test", 32, preparation=Preparation(masked=True, mask_threshold=None))
    image, mask, pose = expected_item(entries[0], 32, cv2.INTER_LINEAR)
    assert_item(dataset[0], image * mask[..., None], mask, pose)


def test_predicted_masks_replace_the_annotated_ones_by_position(tmp_path):
    entries = fabricate()
    root = write(tmp_path / "cub", entries)
    masks = tmp_path / "predicted_mask"
    masks.mkdir()
    for i, entry in enumerate(entries[:3]):
        entry.mask = np.roll(entry.mask, 5, axis=1)
        np.save(
            masks / f"{i}.npy", entry.mask.astype([np.uint8, np.float32, bool][i])[..., None][..., : 1 if i else None]
        )
    dataset = Cub(root, "test", 32, predicted_masks=masks, preparation=Preparation(mask_threshold=None))
    for i in range(3):
        assert_item(dataset[i], *expected_item(entries[i], 32, cv2.INTER_LINEAR))
    with pytest.raises(FileNotFoundError, match=r"3\.npy"):
        dataset[3]
    (masks / "3.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"3\.npy"):
        dataset[3]
    np.save(masks / "3.npy", np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        dataset[3]


def test_the_annotated_items_have_the_annotated_masks_and_only_these(tmp_path):
    entries = fabricate()
    root = write(tmp_path / "cub", entries)
    plain = Cub(root, "test", 32)
    assert plain.annotated() is plain
    masks = tmp_path / "predicted_mask"
    masks.mkdir()
    for i, entry in enumerate(entries):
        np.save(masks / f"{i}.npy", np.roll(entry.mask, 5, axis=1).astype(np.uint8))
    predicted = Cub(root, "test", 32, predicted_masks=masks)
    assert not torch.equal(predicted[1].mask, plain[1].mask)
    assert predicted.annotated().names == plain.names
    assert torch.equal(predicted.annotated()[1].mask, plain[1].mask)
    (root / "annotated_masks.txt").write_text(f"{plain.names[2]}\nsome/other\n{plain.names[0]}\n")
    for dataset in (plain, predicted, subset(predicted, [2, 1, 0])):
        assert sorted(dataset.annotated().names) == sorted([plain.names[0], plain.names[2]])
        assert torch.equal(dataset.annotated()[0].mask, plain[plain.names.index(dataset.annotated().names[0])].mask)


def test_predicted_cameras_are_taken_where_they_overlap_well(tmp_path):
    entries = fabricate()
    root = write(tmp_path, entries)
    good = torch.tensor([0.8, 0.1, -0.2, 0.5, 0.5, -0.5, 0.5])
    overlaps = [0.71, 0.70, 0.2, 0.95]
    file = {
        Path(entry.path).stem: {"pred_cam": good + 0.0 * i, "pred_pose_overlay_iou": overlap}
        for i, (entry, overlap) in enumerate(zip(entries, overlaps, strict=True))
    }
    torch.save(file, tmp_path / "cameras.pth")
    dataset = Cub(root, "test", 32, predicted_cameras=tmp_path / "cameras.pth")
    plain = Cub(root, "test", 32)
    for i, overlap in enumerate(overlaps):
        expected = good if overlap > 0.7 else plain[i].camera.to_cmr()[0]
        torch.testing.assert_close(dataset[i].camera.to_cmr()[0], expected)
    with pytest.raises(ValueError, match="jitter 0"):
        Cub(root, "test", 32, predicted_cameras=tmp_path / "cameras.pth", jitter=0.05)
    del file[Path(entries[2].path).stem]
    torch.save(file, tmp_path / "cameras.pth")
    with pytest.raises(ValueError, match=Path(entries[2].path).stem):
        Cub(root, "test", 32, predicted_cameras=tmp_path / "cameras.pth")
    (tmp_path / "cameras.pth").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"cameras\.pth"):
        Cub(root, "test", 32, predicted_cameras=tmp_path / "cameras.pth")


def test_a_split_of_one_photograph_is_read(tmp_path):
    dataset = Cub(write(tmp_path, fabricate(1)), "test", 16)
    assert len(dataset) == 1
    assert dataset[-1].rgb.shape == (1, 3, 16, 16)
    with pytest.raises(IndexError):
        dataset[1]


def test_the_mean_shape_comes_with_the_training_split(tmp_path):
    root = write(tmp_path, fabricate(), "train")
    assert mean_shape(root)[2].tolist() == [2.0, 17.0, 32.0]
    with pytest.raises(FileNotFoundError, match="anno_train"):
        mean_shape(tmp_path / "none")


@pytest.mark.parametrize("file", range(4))
def test_a_missing_annotation_file_is_named(tmp_path, file):
    path = annotation_files(write(tmp_path, fabricate()), "test")[file]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        Cub(tmp_path, "test")
    assert [path.name in text for text in problems(tmp_path, "test")] == [True]


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, file, keep):
    path = annotation_files(write(tmp_path, fabricate()), "test")[file]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=path.name):
        Cub(tmp_path, "test")
    assert [path.name in text for text in problems(tmp_path, "test")] == [True]


@pytest.mark.parametrize(
    "variable, field", [("images", "mask"), ("images", "bbox"), ("images", "rel_path"), ("sfm_anno", "trans")]
)
def test_a_missing_field_is_named(tmp_path, variable, field):
    path = annotation_files(write(tmp_path, fabricate()), "test")[variable == "sfm_anno"]
    array = scipy.io.loadmat(path)[variable]
    kept = [{name: entry[name] for name in array.dtype.names if name != field} for entry in array[0]]
    scipy.io.savemat(path, {variable: structs(kept)})
    with pytest.raises(ValueError, match=rf"{path.name}.*{variable}.*{field}"):
        Cub(tmp_path, "test")


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    entries = fabricate()
    root = write(tmp_path, entries)
    _, cameras_mat, _, labels = annotation_files(root, "test")
    poses = scipy.io.loadmat(cameras_mat)["sfm_anno"]
    scipy.io.savemat(cameras_mat, {"sfm_anno": poses[:, :3]})
    with pytest.raises(ValueError, match=r"4 images and .* 3 cameras"):
        Cub(root, "test")
    scipy.io.savemat(cameras_mat, {"other": poses})
    with pytest.raises(ValueError, match="sfm_anno"):
        Cub(root, "test")
    scipy.io.savemat(cameras_mat, {"sfm_anno": poses})
    text = labels.read_text()
    labels.write_text(text.replace(f"6 {entries[1].label}\n", ""))
    with pytest.raises(ValueError, match=entries[1].path):
        Cub(root, "test")
    labels.write_text(text + "9\n")
    with pytest.raises(ValueError, match="line 6"):
        Cub(root, "test")


def test_every_missing_and_damaged_photograph_is_named(tmp_path):
    entries = fabricate()
    root = write(tmp_path, entries)
    assert problems(root, "test") == []
    photos = [root / "CUB_200_2011" / "images" / entry.path for entry in entries]
    photos[0].unlink()
    photos[1].write_bytes(photos[1].read_bytes()[:200])
    Image.fromarray(entries[3].pixels[:-1]).save(photos[3])
    with pytest.raises(FileNotFoundError, match=photos[0].name):
        Cub(root, "test")
    found = problems(root, "test")
    assert len(found) == 3
    for text, place in zip(found, (0, 1, 3), strict=True):
        assert photos[place].name in text
    assert "(52, 77)" in found[2]


def test_a_preparation_is_any_resampling(tmp_path):
    entries = fabricate()
    preparation = Preparation(partial(resize_bilinear), mask_threshold=None, crop_padding=None)
    dataset = Cub(write(tmp_path, entries), "test", 48, preparation=preparation)
    assert_item(dataset[1], *expected_item(entries[1], 48, cv2.INTER_LINEAR, whole=True))

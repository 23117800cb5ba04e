import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from invkit.data.dataset import Cached, Preparation, subset
from invkit.data.folder import SIDE_VIEW, Folder, problems

SOFT = Preparation(mask_threshold=None, crop_padding=0.0)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def block(height: int = 40, width: int = 60, box: tuple[int, int, int, int] = (10, 5, 29, 24)) -> np.ndarray:
    """A filled box (left, top, right, bottom, inclusive)."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return mask


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photographs with masks, one with alpha."""
    for seed, name in enumerate(("b.png", "a.png")):
        save(tmp_path / name, picture(seed=seed))
        save(tmp_path / "masks" / name, block())
    save(tmp_path / "c.png", np.dstack([picture(seed=2), block(box=(0, 0, 19, 19))]))
    return tmp_path


def manifest(root: Path, rows: list[dict], **more: object) -> None:
    (root / "manifest.json").write_text(json.dumps({"images": rows, **more}))


def test_photographs_are_found_without_a_manifest(root):
    dataset = Folder(root, size=20, preparation=SOFT)
    assert (dataset.names, dataset.num_classes, dataset.size) == (["a", "b", "c"], 0, 20)
    views = dataset.batch(range(3))
    assert views.label is None
    assert (views.mask == 1).all()  # the boxes are full squares, and the crops are their boxes
    for i, (seed, top, left) in enumerate([(1, 5, 10), (0, 5, 10), (2, 0, 0)]):
        pixels = picture(seed=seed)[top : top + 20, left : left + 20].transpose(2, 0, 1) / 127.5 - 1
        np.testing.assert_allclose(views.rgb[i], pixels, atol=1e-6)


def test_pictures_may_be_in_a_folder_of_their_own(tmp_path):
    save(tmp_path / "images" / "a.png", picture())
    save(tmp_path / "masks" / "a.png", block())
    assert Folder(tmp_path).names == ["images/a"]


def test_the_crop_is_the_padded_square_around_the_silhouette_and_white_beside_the_photograph(tmp_path):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "masks" / "a.png", block(box=(0, 10, 19, 19)))  # 20 x 10: padded 22 x 11, rounded, on a square
    views = Folder(tmp_path, size=22)[0]
    # left -1, right 20; top 9.5 -> 10 (even), bottom 19.5 -> 20 (even), and (22 - 11) / 2 = 5.5 -> 6 more above.
    expected = torch.ones(22, 22, 3, dtype=torch.float64)
    expected[:, 1:] = torch.from_numpy(picture()[4:26, 0:21] / 127.5 - 1)
    np.testing.assert_allclose(views.rgb[0].permute(1, 2, 0), expected, atol=1e-6)
    mask = torch.zeros(22, 22)
    mask[6:16, 1:21] = 1
    assert torch.equal(views.mask[0, 0], mask)


def test_transparent_pixels_become_white_and_soft_edges_blend(tmp_path):
    alpha = block(box=(0, 0, 19, 19))
    alpha[5, 5], alpha[6, 6] = 0, 128
    save(tmp_path / "a.png", np.dstack([np.zeros((40, 60, 3), np.uint8), alpha]))
    views = Folder(tmp_path, size=20, preparation=SOFT)[0]
    assert views.rgb[0, :, 5, 5].tolist() == [1.0] * 3
    assert views.rgb[0, 0, 0, 0] == -1
    assert views.rgb[0, 0, 6, 6].item() == pytest.approx(1 - 2 * 128 / 255, abs=1e-6)
    assert views.mask[0, 0, 6, 6].item() == pytest.approx(128 / 255, abs=1e-6)


def test_a_mask_beside_an_rgba_picture_wins(tmp_path):
    save(tmp_path / "a.png", np.dstack([picture(), block(box=(0, 0, 9, 9))]))
    save(tmp_path / "masks" / "a.png", block(box=(30, 10, 49, 29)))
    np.testing.assert_allclose(
        Folder(tmp_path, size=20, preparation=SOFT)[0].rgb[0].permute(1, 2, 0),
        picture()[10:30, 30:50] / 127.5 - 1,
        atol=1e-6,
    )


def test_without_a_camera_the_object_is_guessed_from_its_side_as_large_as_its_box(root):
    camera = Folder(root, size=20)[0].camera
    assert camera.quat[0].tolist() == pytest.approx([0.612372, 0.353553, -0.612372, 0.353553], abs=1e-6)
    assert np.linalg.norm(SIDE_VIEW) == pytest.approx(1)
    # 20 pixels in a square of 22: an object of diameter 2 spans 20 / 22 of the picture. 10 - 1 = 9 is the corner.
    assert camera.scale.item() == pytest.approx(20 / 22)
    assert camera.shift[0].tolist() == pytest.approx([2 * (20 - 9) / 22 - 1, 2 * (15 - 4) / 22 - 1], abs=1e-6)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_manifest_gives_masks_labels_splits_and_cameras(root, kind):
    save(root / "elsewhere" / "m.png", block(box=(20, 10, 39, 29)))
    camera = [12.5, 31.0, 19.0, -1.0, 0.5, 2.0, 0.25]
    rows = [
        {"image": "b.png", "mask": "elsewhere/m.png", "label": "wren", "split": "test", "camera": camera},
        {"image": "a.png", "label": "robin", "split": "train"},
        {"image": "c.png", "label": "wren", "split": "test"},
    ]
    if kind == "json":
        manifest(root, rows)
    else:
        with (root / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "mask", "label", "split", "camera"])
            writer.writeheader()
            writer.writerows(
                {**row, **({"camera": " ".join(map(str, camera))} if "camera" in row else {})} for row in rows
            )
    assert Folder(root).names == ["b", "a", "c"]
    assert Folder(root).batch(range(3)).label.tolist() == [1, 0, 1]
    dataset = Folder(root, "test", 32)
    assert (dataset.names, dataset.num_classes) == (["b", "c"], 2)
    assert Folder(root, "train").num_classes == 2

    views = dataset[0]
    points = np.random.default_rng(0).normal(size=(5, 3))
    w, x, y, z = np.array(camera[3:]) / np.linalg.norm(camera[3:])
    in_photograph = 12.5 * (Rotation.from_quat([x, y, z, w]).as_matrix() @ points.T).T[:, :2] + [31.0, 19.0]
    left, top, side = 19, 9, 22  # 20 pixels from (20, 10), a pixel of padding on each side
    expected = 2 * (in_photograph - [left, top]) / side - 1
    projected = views.camera.project(torch.from_numpy(points).float()[None])[0, :, :2]
    np.testing.assert_allclose(projected, expected, atol=2e-6)


def test_a_camera_hits_the_middle_of_the_pixel_that_it_names(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[17, 33] = 255
    save(tmp_path / "a.png", pixels)
    save(tmp_path / "masks" / "a.png", block(box=(20, 8, 43, 31)))
    # The center of pixel (column 33, row 17) is 33.5, 17.5 from the corner of the photograph.
    manifest(tmp_path, [{"image": "a.png", "camera": [10, 33.5, 17.5, 1, 0, 0, 0]}])
    views = Folder(tmp_path, size=24, preparation=SOFT)[0]
    row, column = divmod(int(views.rgb[0, 0].argmax()), 24)
    center = (torch.tensor([column, row]) + 0.5) * 2 / 24 - 1
    torch.testing.assert_close(views.camera.project(torch.zeros(1, 1, 3))[0, 0, :2], center)


def test_guessed_cameras_are_named_and_stay_so_in_a_choice_and_in_memory(root):
    rows = [{"image": "a.png"}, {"image": "b.png", "camera": [10, 30, 20, 1, 0, 0, 0]}, {"image": "c.png"}]
    manifest(root, rows)
    dataset = Folder(root)
    assert dataset.guessed_cameras == ["a", "c"]
    assert Cached(dataset).guessed_cameras == ["a", "c"]
    assert subset(dataset, [2, 1]).guessed_cameras == ["c"]
    manifest(root, rows[1:2])
    assert not Folder(root).guessed_cameras


def test_classes_keep_the_order_they_are_given_in(root):
    rows = [{"image": name, "label": label} for name, label in (("a.png", "z"), ("b.png", "a"))]
    manifest(root, rows, classes=["z", "m", "a"])
    assert Folder(root).num_classes == 3
    assert Folder(root).batch([0, 1]).label.tolist() == [0, 2]
    manifest(root, [{"image": "a.png", "label": 4}, {"image": "b.png", "label": 0}])
    assert Folder(root).num_classes == 5
    assert Folder(root).batch([0, 1]).label.tolist() == [4, 0]


def test_photographs_are_turned_upright_like_their_masks(tmp_path):
    pixels, exif = picture(60, 40), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "a.png", exif=exif)
    save(tmp_path / "masks" / "a.png", block(60, 40, (3, 20, 12, 29)))
    views = Folder(tmp_path, size=10, preparation=SOFT)[0]
    np.testing.assert_allclose(views.rgb[0].permute(1, 2, 0), pixels[20:30, 3:13] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"image": "a.png", "colour": "red"}], "unknown key 'colour'"),
        ([{"mask": "a.png"}], "entry 0 has no image"),
        ([{"image": "a.png", "label": 1}, {"image": "b.png", "label": "wren"}], "all numbers"),
        ([{"image": "a.png", "label": 1}, {"image": "b.png"}], "every image or none"),
        ([{"image": "a.png", "camera": [1, 2, 3]}], r"camera of a\.png"),
        ([{"image": "a.png", "camera": [0, 0, 0, 1, 0, 0, 0]}], r"camera of a\.png"),
        ([{"image": "a.png", "camera": [1, 0, 0, 0, 0, 0, 0]}], r"camera of a\.png"),
        ([{"image": "a.png", "camera": [1, 0, math.nan, 1, 0, 0, 0]}], r"camera of a\.png"),
        ([{"image": "a.png"}, {"image": "a.png"}], "a is there twice"),
        ([], "no photographs"),
        (["a.png"], "not a manifest"),
    ],
)
def test_mistakes_in_a_manifest_are_named(root, rows, message):
    manifest(root, rows)
    with pytest.raises(ValueError, match=rf"manifest\.json.*{message}"):
        Folder(root)
    assert len(problems(root)) == 1


def test_other_mistakes_are_named(root):
    (root / "manifest.json").write_text("[")
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest"):
        Folder(root)
    manifest(root, [{"image": "a.png", "label": "owl"}], classes=["wren"])
    with pytest.raises(ValueError, match="'owl'"):
        Folder(root)
    manifest(root, [{"image": "a.png", "label": 1}], classes=["wren"])
    with pytest.raises(ValueError, match="outside the 1 classes"):
        Folder(root)
    manifest(root, [{"image": "a.png", "split": "train"}])
    with pytest.raises(ValueError, match=r"'test' \(there are: train\)"):
        Folder(root, "test")
    (root / "manifest.csv").write_text("image\na.png\n")
    with pytest.raises(ValueError, match="keep one"):
        Folder(root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Folder(root / "nowhere")
    (root / "manifest.csv").unlink()
    (root / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no splits"):
        Folder(root, "test")


def test_every_missing_damaged_or_unfit_photograph_is_named(root):
    assert problems(root) == []
    save(root / "opaque.png", picture())
    save(root / "other.png", picture())
    save(root / "masks" / "other.png", block(39, 60))
    save(root / "empty.png", picture())
    save(root / "masks" / "empty.png", np.zeros((40, 60), np.uint8))
    (root / "noise.jpg").write_bytes(b"noise")
    found = problems(root)
    assert len(found) == 4
    for name, fix in (("opaque", "alpha"), ("other", "the same"), ("empty", "white"), ("noise", "replace")):
        assert any(name in text and fix in text for text in found)
    for i, name in enumerate(Folder(root).names):
        if name in ("opaque", "other", "empty", "noise"):
            with pytest.raises(ValueError, match=name):
                Folder(root)[i]

    manifest(
        root, [{"image": "a.png"}, {"image": "gone.png", "mask": "masks/a.png"}, {"image": "b.png", "mask": "m.png"}]
    )
    with pytest.raises(FileNotFoundError, match=r"2 files .*gone\.png"):
        Folder(root)
    found = problems(root)
    assert [("gone.png" in text, "m.png" in text) for text in found] == [(True, False), (False, True)]

"""Data sets that somebody else has made, or damaged: one line that names the file, and nothing silently wrong."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invkit.data.cub import Cub, read_table
from invkit.data.folder import Folder, problems
from invkit.data.imagenet import ImageNet
from invkit.data.names import checked_name
from invkit.data.pascal3d import Pascal3D
from invkit.data.pascal3d import problems as car_problems
from invkit.data.srn import Srn
from tests.invkit.data import detected, test_pascal3d, test_srn

# ---- The user's own folder -------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photographs with masks."""
    folder = tmp_path / "photographs"
    (folder / "masks").mkdir(parents=True)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 255
    for seed, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def manifest(root: Path, *rows: dict, **more: object) -> None:
    (root / "manifest.json").write_text(json.dumps({"images": list(rows), **more}))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "../secret.png"}, "leads out of its folder"),
        ({"image": "/etc/secret.png"}, "is not a relative path"),
        ({"image": "a.png", "mask": "masks/../../secret.png"}, "leads out of its folder"),
        ({"image": "a.py"}, "does not end in"),
        ({"image": "link.png"}, "is a link that leads out of"),
        ({"image": "a.png", "mask": 3}, "mask of entry 0 is 3, not the path of a file"),
        ({"image": "a" * 5000 + ".png"}, "is longer than 255 bytes"),
        ({"image": "a.png", "label": True}, "labels must be given"),
        ({"image": "a.png", "label": 10**9}, "label 1000000000 is above 9999"),
    ],
)
def test_names_and_labels_of_a_manifest_are_checked(root, row, message):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    manifest(root, row)
    with pytest.raises(ValueError, match=message) as caught:
        Folder(root)
    assert len(str(caught.value)) < 400 + len(str(root))
    assert len(problems(root)) == 1


def test_classes_are_a_list_of_different_names(root):
    for classes, message in ((5, "must be a list of names"), (["owl", "owl"], "'owl' is there twice")):
        manifest(root, {"image": "a.png", "label": "owl"}, classes=classes)
        with pytest.raises(ValueError, match=message):
            Folder(root)


def test_a_manifest_of_a_hundred_thousand_lists_is_none(root):
    (root / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest \(RecursionError"):
        Folder(root)


@pytest.mark.parametrize(
    "camera, message",
    [
        ([12, 5000, 20, 1, 0, 0, 0], r"object's center at \(5000, 20\), far from its box"),
        ([0.1, 30, 20, 1, 0, 0, 0], "has the scale 0.1, in a box of 30 pixels"),
    ],
)
def test_a_camera_of_other_units_is_refused(root, camera, message):
    manifest(root, {"image": "a.png", "camera": camera}, {"image": "b.png", "camera": [12, 30, 20, 1, 0, 0, 0]})
    dataset = Folder(root)
    with pytest.raises(ValueError, match=rf"a\.png: its camera .*{message}.*pixels of the upright"):
        dataset[0]
    assert dataset[1].camera.scale.item() > 0
    assert len(problems(root)) == 1


def test_a_silhouette_that_vanishes_in_the_item_is_named(root):
    mask = np.zeros((40, 60), np.uint8)
    mask[::2, ::2] = 255
    Image.fromarray(mask).save(root / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: nothing is left of its silhouette at 9 pixels"):
        Folder(root, size=9)[0]


def test_masks_are_found_however_they_are_spelt(root):
    composed, decomposed = (unicodedata.normalize(form, "f\u00e9e") for form in ("NFC", "NFD"))
    (root / "a.png").rename(root / f"{composed}.png")
    (root / "masks" / "a.png").rename(root / "masks" / f"{decomposed}.PNG")
    (root / "masks" / "b.png").rename(root / "masks" / "b.PNG")
    dataset = Folder(root)
    assert [photo.mask.name for photo in dataset.photos] == ["b.PNG", f"{decomposed}.PNG"]
    assert dataset.batch([0, 1]).mask.any()


def test_what_is_no_photograph_is_left_out_and_what_is_not_read_is_named(root):
    (root / "._a.png").write_bytes(b"resource fork")
    (root / ".hidden.jpg").write_bytes(b"")
    assert Folder(root).names == ["a", "b"]
    assert problems(root) == []
    (root / "c.HEIC").write_bytes(b"")
    (root / "d.gif").write_bytes(b"")
    assert problems(root) == [f"{root}: c.HEIC and 1 more are not read; convert to one of " + FORMATS]
    (root / "images").mkdir()
    (root / "b.png").rename(root / "images" / "b.png")
    assert f"{root}: a.png is not read, as there is a folder images: move them into it" in problems(root)


FORMATS = ".png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff"


# ---- Published annotations -------------------------------------------------------------------------------------------


def cars(root: Path, **changes: object) -> Path:
    """Four annotated cars; the second with these changes."""
    entries = test_pascal3d.fabricate()
    for name, value in changes.items():
        setattr(entries[1], name, value)
    test_pascal3d.write(root, "train", entries)
    return root


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rot": np.full((3, 3), np.nan)}, "entry 1: rot is not finite"),
        ({"rot": 5 * np.eye(3)}, "entry 1: rot is no rotation"),
        ({"rot": np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1.0]])}, "entry 1: rot is no rotation"),
        ({"rot": np.diag([1.0, 1, -1])}, "entry 1: rot mirrors space"),
        ({"scale": -1.0}, "1 of 4 annotations are impossible, first of .*no positive scale"),
        ({"scale": np.nan}, "the scale of its camera is not finite"),
        ({"trans": np.array([np.inf, 0])}, "the translation of its camera is not finite"),
        ({"box": (1.0, 1.0, 1e9, 9.0)}, "its box is more than 4 times as long as the photograph"),
        ({"box": (-90.0, 1.0, -5.0, 9.0)}, "its box lies outside of the photograph"),
        ({"box": (np.nan, 1.0, 5.0, 9.0)}, "its box is not finite"),
    ],
)
def test_impossible_boxes_and_cameras_are_named_when_the_data_set_is_opened(tmp_path, changes, message):
    cars(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        Pascal3D(tmp_path, "train")
    assert len(car_problems(tmp_path, "train")) == 1


@pytest.mark.parametrize(
    "changes, message", [({"trans": np.array([1e6, 0])}, "far from its box"), ({"scale": 1e-3}, "has the scale")]
)
def test_a_camera_in_other_units_is_found_by_the_check(tmp_path, changes, message):
    (found,) = car_problems(cars(tmp_path, **changes), "train")
    assert message in found


def test_photographs_that_are_links_out_of_their_folder_are_refused(tmp_path):
    cars(tmp_path)
    entry = test_pascal3d.fabricate()[0]
    photo = test_pascal3d.photograph(tmp_path, entry)
    photo.rename(tmp_path / "outside.JPEG")
    photo.symlink_to(tmp_path / "outside.JPEG")
    with pytest.raises(ValueError, match="is a link that leads out of"):
        Pascal3D(tmp_path, "train")


def test_detections_do_not_lead_out_of_the_data_set(tmp_path):
    made = detected.objects()
    made[2].path = made[3].path = "../../../outside.JPEG"
    (tmp_path / "a" / "b").mkdir(parents=True)
    detected.write(tmp_path / "a" / "b", made=made)
    with pytest.raises(ValueError, match=r"detections\.npy: the name '.*outside.JPEG' leads out of its folder"):
        ImageNet(tmp_path / "a" / "b", "train", categories=["car"])


def test_a_box_of_a_detection_is_checked(tmp_path):
    made = detected.objects()
    made[0].box = (0, 0, 1e9, 1e9)
    detected.write(tmp_path, made=made)
    with pytest.raises(ValueError, match="1 of 4 annotations are impossible"):
        ImageNet(tmp_path, "train", categories=["car"])


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.full((60, 90), np.nan), "other numbers than 0 to 1"),
        (np.full((60, 90), 255, np.uint8), "divide by 255"),
        (np.zeros((60, 90)), "is empty"),
        (np.zeros(5), r"float64 \[5\], no image"),
    ],
)
def test_predicted_masks_are_looked_at(tmp_path, mask, message):
    test_cub = pytest.importorskip("tests.invkit.data.test_cub")
    root = test_cub.write(tmp_path / "cub", test_cub.fabricate())
    np.save(tmp_path / "0.npy", mask)
    with pytest.raises(ValueError, match=rf"0\.npy.*{message}"):
        Cub(root, "test", 32, predicted_masks=tmp_path)[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pred_cam": torch.full((7,), torch.nan)}, "not finite"),
        ({"pred_cam": torch.tensor([-1.0, 0, 0, 1, 0, 0, 0])}, "pred_cam of"),
        ({"pred_cam": torch.zeros(7)}, "pred_cam of"),
        ({"pred_pose_overlay_iou": float("nan")}, "not finite"),
    ],
)
def test_predicted_cameras_are_looked_at(tmp_path, change, message):
    test_cub = pytest.importorskip("tests.invkit.data.test_cub")
    entries = test_cub.fabricate()
    root = test_cub.write(tmp_path / "cub", entries)
    sound = {"pred_cam": torch.tensor([0.6, 0, 0, 1, 0, 0, 0]), "pred_pose_overlay_iou": 0.9}
    torch.save({Path(entry.path).stem: {**sound, **change} for entry in entries}, tmp_path / "cam.pth")
    with pytest.raises(ValueError, match=rf"cam\.pth: .*{message}"):
        Cub(root, "test", 32, predicted_cameras=tmp_path / "cam.pth")


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "images.txt").write_bytes(b"1 a.jpg\n2 \xff\xfe.jpg\n")
    with pytest.raises(ValueError, match=r"images\.txt: line 2 is not UTF-8"):
        read_table(tmp_path / "images.txt")


def test_a_long_name_is_told_in_short():
    with pytest.raises(ValueError, match=r"list: the name 'a{40}\.\.\.' is longer than 255 bytes"):
        checked_name("a" * 5000 + ".jpg", "list")


# ---- Views of ShapeNet -----------------------------------------------------------------------------------------------


@pytest.fixture
def views(tmp_path: Path) -> Path:
    test_srn.write_tree(tmp_path / "cars_train")
    return tmp_path / "cars_train"


def repose(views: Path, change) -> None:
    path = views / "a_first" / "pose" / "000001.txt"
    pose = np.array(path.read_text().split(), float).reshape(4, 4)
    path.write_text(" ".join(map(str, change(pose).ravel())))


def with_translation(pose: np.ndarray, value: float) -> np.ndarray:
    pose[0, 3] = value
    return pose


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda pose: with_translation(pose, np.nan), "not finite"),
        (np.linalg.inv, "has to be camera-to-world"),
        (lambda pose: with_translation(pose, 50.0), r"looks past the object|behind"),
        (lambda pose: pose @ np.diag([-1, 1, 1, 1]), "mirrors space"),
    ],
)
def test_poses_that_do_not_show_the_object_are_named(views, change, message):
    repose(views, change)
    dataset = Srn(views.parent, size=8)
    with pytest.raises(ValueError, match=rf"a_first/pose/000001\.txt.*({message})"):
        dataset[1]
    assert dataset[0].camera.scale.item() > 0


def test_views_and_poses_belong_together_by_name(views):
    (views / "a_first" / "pose" / "000001.txt").rename(views / "a_first" / "pose" / "000009.txt")
    with pytest.raises(ValueError, match="a_first: 000001 is in one of rgb/ and pose/ only"):
        Srn(views.parent, size=8)


def test_an_object_without_intrinsics_is_not_left_out_without_a_word(views):
    (views / "b_second" / "intrinsics.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 objects have no intrinsics\.txt, first .*b_second"):
        Srn(views.parent, size=8)


@pytest.mark.parametrize("lens", ["nan 4 4 0\n8 8\n", "inf 4 4 0\n8 8\n", "8 nan 4 0\n8 8\n", "8 4 4 0\ninf inf\n"])
def test_a_lens_of_no_numbers_is_named(views, lens):
    (views / "a_first" / "intrinsics.txt").write_text(lens)
    with pytest.raises(ValueError, match=r"a_first/intrinsics\.txt"):
        Srn(views.parent, size=8)

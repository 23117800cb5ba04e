"""Detected objects of ImageNet and PASCAL3D+, against the released code's rays and crops, written out in NumPy."""

import os

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from invkit.data.detections import in_frame
from invkit.data.imagenet import ImageNet, problems
from invkit.data.pascal3d import Pascal3D, detected_problems
from invkit.runtime.pickles import read_objects
from tests.invkit.data import detected, test_pascal3d

CAR = {"categories": ["car"]}


def square_of(box: tuple[float, ...]) -> tuple[int, int, int]:
    """Left, top and side by CMR's rule: 5 % more on each side, rounded half to even, then square."""
    box = np.float32(box).astype(np.float64)
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    left, top, right, bottom = (round(s) for s in (box + 0.05 * np.array([-w, -h, w, h])).tolist())
    w, h = right - left + 1, bottom - top + 1
    side = max(w, h)
    return left - round((side - w) / 2), top - round((side - h) / 2), side


def overlap(source: int, target: int) -> np.ndarray:
    """Shares of source pixels in each target pixel, for shrinking."""
    ratio = source / target
    return np.array(
        [
            [max(0, min(i + 1, (d + 1) * ratio) - max(i, d * ratio)) / ratio for i in range(source)]
            for d in range(target)
        ]
    )


def cut(one: detected.Object, left: int, top: int, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colors and mask, by area."""
    pixels = np.concatenate([one.pixels / 255.0, one.mask[..., None].astype(float)], axis=2)
    square = np.concatenate([np.ones((side, side, 3)), np.zeros((side, side, 1))], axis=2)
    for y in range(side):
        for x in range(side):
            if 0 <= y + top < pixels.shape[0] and 0 <= x + left < pixels.shape[1]:
                square[y, x] = pixels[y + top, x + left]
    weights = overlap(side, size)
    out = np.einsum("ay,yxc,bx->abc", weights, square, weights)
    return 2 * out[..., :3] - 1, out[..., 3]


def released_rays(poses: dict, row: int, box: tuple | None, shape: tuple[int, int], size: int) -> tuple:
    """Camera position and directions [size, size, 3] of the released code: pixels are their top-left corners.

    Args:
        box: (left, top, side) of the crop; None is the whole photograph.
    """
    quat, scale = poses["R"][row].double().numpy(), poses["s"][row, 0].item()
    f = 1 + np.exp(poses["z0"][row, 0].item())
    axes = Rotation.from_quat(quat[[1, 2, 3, 0]]).as_matrix()
    shift = np.array([*(poses["t"][row].double().numpy() / scale), f / scale])
    to_world, position = axes.T @ np.diag([1.0, -1, -1]), -axes.T @ shift
    start, extent = np.array([-1.0, -1.0]), 2.0
    if box is not None:
        long = max(shape)
        x, y = box[0] + (long - shape[1]) / 2, box[1] + (long - shape[0]) / 2
        extent = 2 * box[2] / long
        start = np.array([2 * x / long - 1, 2 * (1 - y / long - box[2] / long) - 1])
    b, a = np.mgrid[:size, :size] / size
    x, y = (extent * a + start[0]) / 2, -(extent * (1 - b) + start[1]) / 2
    directions = np.stack([x / (f / 2), -y / (f / 2), -np.ones_like(x)], axis=-1) @ to_world.T
    return position, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def assert_rays(camera, position: np.ndarray, directions: np.ndarray) -> None:
    rays = camera.rays(directions.shape[0], offset=0.0)
    np.testing.assert_allclose(rays.directions[0], directions, atol=2e-6)
    toward = rays.origins[0].numpy() - position
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    np.testing.assert_allclose(toward, directions, atol=1e-5)


def test_crops_are_placed_as_published():
    """Boxes in a photograph of 300 x 200 and in its transpose; the released code's y goes up."""
    left, top, side = square_of((50, 55, 230, 165))
    assert (left, top, left + side - 1, top + side - 1) == (41, 11, 239, 209)
    x0, y0, x1, y1 = in_frame((41, 11, 239, 209), 200, 300)[0].tolist()
    assert (x0, -y1, x1 - x0, y1 - y0) == pytest.approx((-0.7266667, -0.7333333, 1.3266667, 1.3266667))
    x0, y0, _, y1 = in_frame((11, 41, 209, 239), 300, 200)[0].tolist()
    assert (x0, -y1) == pytest.approx((-0.5933333, -0.6))


@pytest.mark.parametrize("kind", ["imagenet", "p3d"])
def test_items_are_those_of_the_released_code(tmp_path, kind):
    made = [one for one in detected.write(tmp_path, kind) if one.posed]
    poses = detected.poses(detected.objects())
    load = (lambda **more: ImageNet(tmp_path, "train", 16, **CAR, **more)) if kind == "imagenet" else (
        lambda **more: Pascal3D.for_nerfinv(tmp_path, "train", 16, **more)
    )  # fmt: skip
    cropped, whole = load(), load(whole_image=True)
    assert (len(cropped), cropped.num_classes, cropped.size) == (4, 0, 16)
    folder = made[0].path.split("/")[0]
    assert cropped.names == [f"{folder}/{folder}_{name}" for name in ("10", "12", "12-2", "14")]
    for row, one in enumerate(made):
        height, width = one.mask.shape
        box = square_of(one.box)
        rgb, mask = cut(one, *box, 16)
        assert 0.2 < mask.mean() < 0.8
        np.testing.assert_allclose(cropped[row].rgb[0].permute(1, 2, 0), rgb, atol=1e-6)
        np.testing.assert_allclose(cropped[row].mask[0, 0], mask, atol=1e-6)
        assert_rays(cropped[row].camera, *released_rays(poses, row, box, (height, width), 5))
        long = max(height, width)
        rgb, mask = cut(one, -round((long - width) / 2), -round((long - height) / 2), long, 16)
        np.testing.assert_allclose(whole[row].rgb[0].permute(1, 2, 0), rgb, atol=1e-6)
        np.testing.assert_allclose(whole[row].mask[0, 0], mask, atol=1e-6)
        assert_rays(whole[row].camera, *released_rays(poses, row, None, (height, width), 5))
        z0, shift, scale, _ = whole[row].camera.to_augmented()
        torch.testing.assert_close(z0, poses["z0"][row])
        torch.testing.assert_close(shift[0], poses["t"][row])
        torch.testing.assert_close(scale, poses["s"][row])
        assert torch.equal(cropped.camera(row).center, cropped[row].camera.center)
        assert (cropped[row].label, cropped[row].rgb.dtype) == (None, torch.float32)


def test_mirrored_copies_show_the_mirrored_object_in_any_order(tmp_path):
    detected.write(tmp_path)
    dataset = ImageNet(tmp_path, "train", 16, **CAR, mirrored=True)
    assert len(set(dataset.names)) == len(dataset) == 8
    points = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    flip = torch.tensor([-1.0, 1, 1])
    for index in (6, 2, 6, 2):
        views, other = dataset[index], dataset[(index + 4) % 8]
        assert torch.equal(views.rgb.flip(-1), other.rgb)
        seen, mirrored = views.camera.project(points), other.camera.project(points * flip)
        torch.testing.assert_close(seen * flip, mirrored)


def test_several_categories_are_classes(tmp_path):
    detected.write(tmp_path)
    other = detected.objects("n02391049", count=3, seed=4)
    detected.write(tmp_path, made=other, category="zebra")
    dataset = ImageNet(tmp_path, "train", 16, categories=["zebra", "car"])
    assert (dataset.num_classes, dataset.classes) == (2, ["zebra", "car"])
    assert dataset.batch(range(6)).label.tolist() == [0, 0, 1, 1, 1, 1]
    assert dataset.names[0] == "n02391049/n02391049_10"
    for categories in ("car", [], ["car", "car"]):
        with pytest.raises(ValueError, match=r"a list with each category once, such as \[car\]"):
            ImageNet(tmp_path, "train", categories=categories)


def test_photographs_of_another_set_are_left_out_by_their_file_names(tmp_path):
    detected.write(tmp_path)
    others = detected.objects("car_imagenet", count=2)
    others[0].path = "car_imagenet/n02814533_12.JPEG"  # its camera does not matter, and it has two objects here
    others[1].path = "car_imagenet/n02814533_10.JPEG"
    detected.write(tmp_path / "p3d", "p3d", others)
    dataset = ImageNet(tmp_path, "train", 16, **CAR, without=detected.files(tmp_path / "p3d", "p3d")[0])
    assert dataset.names == ["n02814533/n02814533_14"]
    with pytest.raises(ValueError, match="leaves none"):
        ImageNet(tmp_path, "train", 16, **CAR, without=detected.files(tmp_path, "imagenet")[0])


def test_weak_perspective_of_pascal3d_has_to_be_asked_for(tmp_path):
    test_pascal3d.write(tmp_path)
    test_pascal3d.write(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"p3d_car/detections.npy is missing.*weak_perspective: true"):
        Pascal3D.for_nerfinv(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split train only, not of val.*weak_perspective: true"):
        Pascal3D.for_nerfinv(tmp_path, "val")
    weak = Pascal3D.for_nerfinv(tmp_path, "val", 16, weak_perspective=True)
    assert (len(weak), weak[0].camera.inv_focal.item()) == (2, 0.0)
    detected.write(tmp_path, "p3d")
    assert len(Pascal3D.for_nerfinv(tmp_path, "train", 16)) == 4
    assert len(Pascal3D.for_nerfinv(tmp_path, "train", 16, weak_perspective=True)) == 4


# ---- What is wrong with a folder -----------------------------------------------------------------------------------


def rewrite(root, change) -> None:
    """Alter the entries of detections.npy."""
    entries = [detected.entry("imagenet", i, one) for i, one in enumerate(detected.objects())]
    np.save(detected.files(root, "imagenet")[0], np.array([change(i, e) for i, e in enumerate(entries)], dtype=object))


@pytest.mark.parametrize("file", [0, 1])
def test_a_missing_or_damaged_file_is_named(tmp_path, file):
    detected.write(tmp_path)
    path = detected.files(tmp_path, "imagenet")[file]
    whole = path.read_bytes()
    for keep in (0, 9, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=path.name):
            ImageNet(tmp_path, "train", **CAR)
        assert [path.name in text for text in problems(tmp_path, "car")] == [True]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"imagenet_car/{path.name} is missing.*docs/datasets.md"):
        ImageNet(tmp_path, "train", **CAR)
    assert [str(path) in text for text in problems(tmp_path, "car")] == [True]


class Call:
    """Pickles as a call of the shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_file_that_would_run_something_is_refused_and_nothing_runs(tmp_path):
    detected.write(tmp_path)
    canary, (detections_npy, poses_bin) = tmp_path / "canary", detected.files(tmp_path, "imagenet")
    sound = detections_npy.read_bytes()
    rewrite(tmp_path, lambda i, entry: {**entry, "parts": [Call(f"touch {canary}")]})
    with pytest.raises(ValueError, match=r"detections.npy names posix.system.*nothing was run"):
        ImageNet(tmp_path, "train", **CAR)
    detections_npy.write_bytes(sound)
    torch.save({**torch.load(poses_bin, weights_only=True), "w": Call(f"touch {canary}")}, poses_bin)
    with pytest.raises(ValueError, match=r"perspective.bin asks for posix.system"):
        ImageNet(tmp_path, "train", **CAR)
    assert not canary.exists()


def test_an_array_of_something_else_is_refused(tmp_path):
    for content in (np.arange(3), np.array({"a": 1}, dtype=object)):
        np.save(tmp_path / "detections.npy", content)
        with pytest.raises(ValueError, match=r"detections.npy is no list of objects"):
            read_objects(tmp_path / "detections.npy")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_objects(tmp_path / "nowhere")


@pytest.mark.parametrize("field", ["image_path", "bbox", "mask"])
def test_a_missing_field_is_named(tmp_path, field):
    detected.write(tmp_path)
    rewrite(tmp_path, lambda i, entry: {k: v for k, v in entry.items() if (i, k) != (3, field)})
    with pytest.raises(ValueError, match=rf"detections.npy: entry 3 lacks the field {field}; .*docs/datasets.md"):
        ImageNet(tmp_path, "train", **CAR)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_path": "/home/me/x.jpg"}, "image_path of entry 2 is '/home/me/x.jpg', not datasets/"),
        ({"bbox": np.ones((1, 3))}, "entry 2: bbox is not 4 numbers"),
        ({"bbox": "left"}, "entry 2: bbox is not 4 numbers"),
        ({"mask": None}, "entry 2: mask has no size of 2 numbers and counts"),
        ({"mask": {"size": [3], "counts": b""}}, "entry 2: mask has no size"),
        ({"mask": {"size": [3, 4]}}, "entry 2: mask has no size"),
        ({"mask": {"size": [3, 4], "counts": 5}}, "entry 2: counts of its mask are a int"),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path, change, message):
    detected.write(tmp_path)
    rewrite(tmp_path, lambda i, entry: {**entry, **change} if i == 2 else entry)
    with pytest.raises(ValueError, match=rf"detections.npy.*{message}"):
        ImageNet(tmp_path, "train", **CAR)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"z0": None}, "has no tensor z0"),
        ({"indices": torch.tensor([0.0, 2, 3, 4])}, "indices must be whole numbers, each once"),
        ({"indices": torch.tensor([0, 2, 2, 4])}, "indices must be whole numbers, each once"),
        ({"indices": torch.tensor([0, 2, 3, 9])}, "indices go from 0 to 9, but .*detections.npy has 5 detections"),
        ({"indices": torch.tensor([0, 2, 3])}, "z0 is .4, 1., not 3 x 1 finite numbers"),
        ({"t": torch.zeros(4, 3)}, "t is .4, 3., not 4 x 2 finite numbers"),
        ({"z0": torch.full((4, 1), torch.nan)}, "z0 is .4, 1., not 4 x 1 finite numbers"),
        ({"s": torch.tensor([[1.0], [0.0], [1.0], [1.0]])}, "s of row 1 is .0.0."),
        ({"R": torch.zeros(4, 4)}, "R of row 0"),
    ],
)
def test_cameras_that_are_none_are_named(tmp_path, change, message):
    detected.write(tmp_path)
    path = detected.files(tmp_path, "imagenet")[1]
    torch.save({**detected.poses(detected.objects()), **change}, path)
    with pytest.raises(ValueError, match=rf"multitpl_perspective.bin.*{message}"):
        ImageNet(tmp_path, "train", **CAR)


def test_there_is_no_other_split(tmp_path):
    detected.write(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'test'.*split: train"):
        ImageNet(tmp_path, "test", **CAR)


def test_every_bad_photograph_and_mask_is_named(tmp_path):
    made = detected.write(tmp_path, "p3d")
    assert detected_problems(tmp_path) == []
    photos = [detected.photograph(tmp_path, "p3d", one) for one in made]
    photos[0].write_bytes(photos[0].read_bytes()[:200])
    entries = [detected.entry("p3d", i, one) for i, one in enumerate(made)]
    entries[2]["mask"]["counts"] = b"d0"
    entries[3]["mask"] = detected.encoded(made[3].mask * 0)
    entries[4]["mask"] = detected.encoded(made[4].mask[:-1])
    np.save(detected.files(tmp_path, "p3d")[0], np.array(entries, dtype=object))
    found = detected_problems(tmp_path)
    words = ("cannot decode", "mask of entry 2 (1 runs of 20", "is empty", "its mask (32, 48)")
    for text, name, word in zip(found, ("_10", "_12", "_12-2", "_14"), words, strict=True):
        assert f"car_imagenet{name}" in text
        assert word in text
    photos[4].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 photographs are missing, first .*_14.JPEG"):
        Pascal3D.for_nerfinv(tmp_path, "train")

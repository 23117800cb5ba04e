"""The CARLA loader on a fabricated tree, against GRAF's pinhole and the published numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from invkit.data.carla import Carla
from invkit.images import composite
from tests.invkit.data.detected import write_carla


def test_items_are_area_averages_on_white(tmp_path):
    made = write_carla(tmp_path)
    full, half = Carla(tmp_path, size=32), Carla(tmp_path, size=16)
    assert (full.names, full.num_classes, len(full)) == (["000000", "000001", "000002"], 0, 3)
    for index, (pixels, _) in enumerate(made):
        stored = pixels[..., :3] / 127.5 - 1
        np.testing.assert_allclose(full[index].rgb[0].permute(1, 2, 0), stored, atol=1e-6)
        np.testing.assert_array_equal(full[index].mask[0, 0], (stored != 1).any(-1))
        blocks = stored.reshape(16, 2, 16, 2, 3).mean((1, 3))
        on_white = composite(half[index].rgb, half[index].mask, 1.0)
        np.testing.assert_allclose(on_white[0].permute(1, 2, 0), blocks, atol=1e-6)
        assert (half[index].rgb[0, :, 0, 0] == 1).all()
        assert (half[index].label, half[index].index.tolist()) == (None, [index])
    with pytest.raises(IndexError):
        full[3]


def test_cameras_have_the_published_augmented_parameters(tmp_path):
    """A camera 10 from the center with a view of 30 degrees has z0 = 1.00505, t = 0, s = 0.3732 ."""
    write_carla(tmp_path)
    for index in range(3):
        z0, shift, scale, _ = Carla(tmp_path).camera(index).to_augmented()
        assert z0.item() == pytest.approx(1.00505, abs=1e-5)
        assert scale.item() == pytest.approx(0.3732, abs=1e-4)
        assert shift.abs().max() < 1e-6


def test_points_land_where_the_pinhole_puts_them(tmp_path):
    made = write_carla(tmp_path)
    points = np.random.default_rng(1).uniform(-2, 2, (20, 3))
    focal = 16 / np.tan(np.radians(15))
    for index, (_, matrix) in enumerate(made):
        seen = (points - matrix[:, 3]) @ matrix[:, :3]
        column, row = 16 + focal * seen[:, 0] / -seen[:, 2], 16 - focal * seen[:, 1] / -seen[:, 2]
        for size in (32, 8):
            projected = Carla(tmp_path, size=size)[index].camera.project(torch.from_numpy(points).float()[None])[0]
            np.testing.assert_allclose(projected[:, 0], column / 16 - 1, atol=1e-5)
            np.testing.assert_allclose(projected[:, 1], row / 16 - 1, atol=1e-5)


def test_faults_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no \*\.png"):
        Carla(tmp_path)
    write_carla(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'test'.*split: train"):
        Carla(tmp_path, "test")
    pose, lens = (tmp_path / "carla_poses" / name for name in ("000001_extrinsics.npy", "intrinsics.npy"))
    matrix, lenses = np.load(pose, allow_pickle=False), np.load(lens, allow_pickle=False)
    for content, message in (
        (np.eye(4), r"shape \[4, 4\], not 3 x 4"),
        (2 * matrix, "not a rotation"),
        (matrix * np.nan, "not a rotation"),
        (matrix * [1, 1, 1, -1], "behind"),
    ):
        np.save(pose, content)
        with pytest.raises(ValueError, match=rf"000001_extrinsics.npy.*{message}"):
            Carla(tmp_path)[1]
    np.save(pose, np.array([None]))
    with pytest.raises(ValueError, match=r"cannot read .*000001_extrinsics.npy"):
        Carla(tmp_path)[1]
    pose.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*000001_extrinsics.npy"):
        Carla(tmp_path)[1]
    pose.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files of cameras are missing, first .*000001_extrinsics.npy"):
        Carla(tmp_path)
    np.save(pose, matrix)
    for content, message in (
        (lenses[..., :2], "not 3 x 3"),
        (-lenses, "has to be positive"),
        (lenses[:0], "not 3 x 3"),
    ):
        np.save(lens, content)
        with pytest.raises(ValueError, match=rf"intrinsics.npy.*{message}"):
            Carla(tmp_path)
    np.save(lens, lenses)
    Image.new("RGB", (32, 30)).save(tmp_path / "000002.png")
    with pytest.raises(ValueError, match=r"000002.png is 32 x 30"):
        Carla(tmp_path)[2]

"""Disturbed cameras: how far, about which axes, and that nothing else changes."""

from dataclasses import replace

import pytest
import torch

from invkit.data.dataset import ImageSet, subset
from invkit.data.noisy_cameras import NoisyCameras
from invkit.data.synthetic import write_birds
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Views

UP = torch.tensor([[[0.0, 0.0, 1.0]]])


class Poses(ImageSet):
    """Pictures of nothing, from any direction."""

    def __init__(self, count: int) -> None:
        self.names, self.num_classes, self.size = [str(i) for i in range(count)], 0, 1
        quat = rotation.random(count, torch.Generator().manual_seed(0))
        self.camera = Camera(quat, torch.rand(count) + 0.5, torch.rand(count, 2), torch.zeros(count))

    def __getitem__(self, index: int) -> Views:
        nothing = torch.zeros(1, 3, 1, 1)
        return Views(nothing, nothing[:, :1], self.camera[[index]], None, torch.tensor([index]))


def quats(dataset: ImageSet) -> torch.Tensor:
    return dataset.batch(range(len(dataset))).camera.quat


def test_errors_of_azimuth_turn_about_the_objects_up_axis():
    poses = Poses(800)
    found = quats(NoisyCameras(poses, azimuth=6.0, elevation=0.0))
    true = poses.camera.quat
    # The mean of |x| over 800 normal x has a relative standard error of 2.7 %.
    assert rotation.angle(found, true).mean() == pytest.approx(6.0, rel=0.1)
    up = UP.expand(len(true), 1, 3)
    torch.testing.assert_close(rotation.rotate(found, up), rotation.rotate(true, up), atol=1e-5, rtol=0)


def test_errors_of_elevation_turn_about_the_horizontal_of_the_picture():
    poses = Poses(800)
    found = quats(NoisyCameras(poses, azimuth=0.0, elevation=4.0))
    true = poses.camera.quat
    assert rotation.angle(found, true).mean() == pytest.approx(4.0, rel=0.1)
    corners = torch.eye(3).expand(len(true), 3, 3)
    same = [rotation.rotate(quat, corners)[..., 0] for quat in (found, true)]
    torch.testing.assert_close(*same, atol=1e-5, rtol=0)


def test_an_image_keeps_its_error_and_all_that_is_not_its_rotation():
    poses = Poses(6)
    noisy = NoisyCameras(poses)
    torch.testing.assert_close(quats(subset(noisy, [4, 1])), quats(noisy)[[4, 1]])
    assert (rotation.angle(quats(NoisyCameras(poses, camera_seed=1)), quats(noisy)) > 0.01).all()
    views, true = noisy[3], poses[3]
    restored = replace(views, camera=replace(views.camera, quat=true.camera.quat))
    torch.testing.assert_close(restored.camera.scale, true.camera.scale)
    torch.testing.assert_close(restored.camera.shift, true.camera.shift)
    assert torch.equal(quats(noisy.annotated()), poses.camera.quat)


def test_errors_below_zero_are_refused():
    with pytest.raises(ValueError, match="azimuth and elevation"):
        NoisyCameras(Poses(1), azimuth=-1.0)


def test_birds_are_those_of_the_data_set_but_for_their_cameras(tmp_path):
    write_birds(tmp_path, train=2, val=2, test=2, num_species=2, novel_views=0, photo_size=(64, 80))
    noisy = NoisyCameras.of_cub(root=str(tmp_path), split="test", size=32)
    true = noisy.annotated()
    assert noisy.names == true.names
    assert torch.equal(noisy[1].rgb, true[1].rgb)
    assert rotation.angle(noisy[1].camera.quat, true[1].camera.quat).item() > 0.1

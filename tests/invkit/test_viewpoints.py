"""Viewpoints against published quaternions and projected points, and against plain matrices."""

import math

import pytest
import torch

from invkit import rotation, viewpoints
from invkit.camera import Camera

RING = {
    0: (0.612372, 0.353553, -0.612372, 0.353553),
    30: (0.75, 0.433013, -0.433013, 0.25),
    90: (0.866025, 0.5, 0.0, 0.0),
    180: (0.612372, 0.353553, 0.612372, -0.353553),
    270: (0.0, 0.0, 0.866025, -0.5),
}


@pytest.mark.parametrize("azimuth, expected", RING.items())
def test_the_ring_is_that_of_the_specification(azimuth, expected):
    ring = viewpoints.azimuth_ring()
    assert len(ring) == 12
    quat = ring.quat[azimuth // 30]
    # A quaternion and its negative are the same rotation; the published zero w leaves the sign open.
    sign = torch.sign((quat * torch.tensor(expected)).sum())
    torch.testing.assert_close(sign * quat, torch.tensor(expected), rtol=0, atol=1e-6)
    assert ring.scale[0] == pytest.approx(0.7)
    assert not ring.shift.any()
    assert not ring.inv_focal.any()


def test_the_canonical_rotation_is_that_of_the_specification():
    half = math.sqrt(3) / 2
    expected = torch.tensor([[0, -half, -0.5], [0, 0.5, -half], [1.0, 0, 0]])
    torch.testing.assert_close(rotation.to_matrix(viewpoints.canonical(1))[0], expected, rtol=0, atol=1e-6)


def test_the_ring_shows_sides_head_and_tail():
    ring = viewpoints.azimuth_ring(4)
    head = torch.tensor([[[0.0, -1.0, 0.0]]]).expand(4, 1, 3)
    depth = ring.project(head)[:, 0, 2]
    assert depth[1] < -0.5 * 0.7, "at 90 degrees the head is near"
    assert depth[3] > 0.5 * 0.7, "at 270 degrees it is far"
    torch.testing.assert_close(depth[[0, 2]], torch.zeros(2), rtol=0, atol=1e-6)


def test_an_orbit_turns_each_object_about_its_own_axis(rng):
    quat = rotation.random(3, rng)
    camera = Camera(
        quat, torch.tensor([0.5, 0.7, 0.9]), torch.randn(3, 2, generator=rng), torch.tensor([0.0, 0.1, 0.2])
    )
    points = torch.randn(3, 5, 3, generator=rng)
    degrees = torch.tensor([0.0, 90.0, 180.0, 250.0])
    turned = viewpoints.orbit(camera, degrees)
    assert len(turned) == 12
    assert not turned.shift.any()
    for b in range(3):
        for k, angle in enumerate(degrees.deg2rad().tolist()):
            c, s = math.cos(angle), math.sin(angle)
            about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            here = camera[b].in_camera((points[b] @ about_z.T)[None])
            there = turned[4 * b + k].in_camera(points[b : b + 1])
            torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
            assert turned.inv_focal[4 * b + k] == camera.inv_focal[b]


def test_random_views_keep_their_elevation_and_are_repeatable():
    first = viewpoints.random(200, torch.Generator().manual_seed(3), max_elevation=20.0, default_orientation=0.0)
    again = viewpoints.random(200, torch.Generator().manual_seed(3), max_elevation=20.0, default_orientation=0.0)
    assert torch.equal(first.quat, again.quat)
    # With a body that is not inclined the object's up axis leans towards the camera by the elevation and no more.
    up = rotation.rotate(first.quat, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(200, 1, 3))[:, 0]
    lean = torch.rad2deg(torch.asin(up[:, 2].clamp(-1, 1))).abs()
    assert lean.max() <= 20 + 1e-3
    assert lean.max() > 15
    front = rotation.rotate(first.quat, torch.tensor([[[1.0, 0.0, 0.0]]]).expand(200, 1, 3))[:, 0]
    azimuth = torch.atan2(front[:, 2], front[:, 0])
    assert all(bool(((azimuth > low) & (azimuth < low + math.pi / 2)).any()) for low in (-math.pi, -math.pi / 2, 0))

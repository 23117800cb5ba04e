"""Viewpoints against published quaternions and projected points, and against plain matrices."""

import math

import pytest
import torch

from invkit.evaluation import viewpoints
from invkit.evaluation.viewpoints import Frame, NovelViews, Ring
from invkit.geometry import rotation
from invkit.geometry.camera import Camera

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


# ---- One object in two frames ----------------------------------------------------------------------------------------


def random_cameras(rng: torch.Generator, count: int = 3, perspective: bool = False) -> Camera:
    shift, center = torch.randn(2, count, 2, generator=rng) * 0.3
    inv_focal = 0.3 * torch.rand(count, generator=rng) if perspective else torch.zeros(count)
    scale = 0.5 + torch.rand(count, generator=rng)
    return Camera(rotation.random(count, rng), scale, shift, inv_focal, center)


@pytest.mark.parametrize("perspective", [False, True])
def test_a_camera_through_a_frame_sees_what_the_frame_moves(perspective, rng):
    camera = random_cameras(rng, perspective=perspective).to("cpu", dtype=torch.float64)
    offset = 0.2 * torch.randn(3, 3, generator=rng)
    frame = Frame(rotation.random(3, rng), 0.5 + torch.rand(3, generator=rng), offset).to("cpu", dtype=torch.float64)
    points = torch.randn(3, 7, 3, generator=rng).double() * 0.5
    moved = frame.scale[:, None, None] * (points @ rotation.to_matrix(frame.quat).transpose(1, 2)) + offset[:, None]
    torch.testing.assert_close(frame.apply(points), moved.double(), rtol=0, atol=1e-6)
    there = viewpoints.through(camera, frame).project(points)[..., :2]
    torch.testing.assert_close(there, camera.project(frame.apply(points))[..., :2], rtol=0, atol=2e-6)


def test_an_aligned_estimate_looks_to_the_true_camera_as_to_the_found_one(rng):
    found, true = random_cameras(rng), random_cameras(rng)
    points = torch.randn(3, 7, 3, generator=rng)
    frame = viewpoints.seen_alike(found, true)
    torch.testing.assert_close(
        true.project(frame.apply(points))[..., :2], found.project(points)[..., :2], rtol=0, atol=1e-5
    )
    # The center stays at the depth of the true object's.
    torch.testing.assert_close(true.project(frame.apply(points))[..., 2], found.project(points)[..., 2])
    unmoved = viewpoints.same(found, true).apply(points)
    assert torch.equal(unmoved, points)


# ---- What protocols look from ----------------------------------------------------------------------------------------


def test_a_ring_is_the_same_around_every_object(rng):
    cameras = Ring(4, scale=0.5)(random_cameras(rng), None, None)
    assert len(cameras) == 12
    for b in range(3):
        torch.testing.assert_close(cameras.quat[4 * b : 4 * b + 4], viewpoints.azimuth_ring(4).quat, rtol=0, atol=0)
    assert (cameras.scale == 0.5).all()
    assert Ring(4).degrees == [0, 90, 180, 270]


def test_novel_views_are_the_true_cameras_or_follow_the_found_ones(rng):
    found, true, novel = random_cameras(rng, 2), random_cameras(rng, 2), random_cameras(rng, 6)
    plain = NovelViews()(found, true, novel)
    torch.testing.assert_close(plain.to_cmr(), novel.to_cmr())
    points = torch.randn(2, 5, 3, generator=rng)
    aligned = NovelViews(aligned=True)(found, true, novel)
    moved = viewpoints.seen_alike(found, true).apply(points).repeat_interleave(3, dim=0)
    torch.testing.assert_close(
        aligned.project(points.repeat_interleave(3, dim=0))[..., :2],
        novel.project(moved)[..., :2],
        rtol=0,
        atol=1e-5,
    )
    # Where the found camera is the true one there is nothing to align.
    torch.testing.assert_close(
        NovelViews(aligned=True)(true, true, novel).project(moved)[..., :2], novel.project(moved)[..., :2]
    )

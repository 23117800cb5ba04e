"""Moves of images and cameras: numbers of the released code, brute force, and what happens to projected points."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from invkit.geometry import rotation
from invkit.geometry.augment import Similarity, blurred, random_similarity
from invkit.geometry.camera import Camera
from tests.nerfinv.filled import images

TURNS, SCALES = torch.tensor([0.5, -1.2]), torch.tensor([1.15, 0.85])
SHIFTS = torch.tensor([[0.08, -0.05], [-0.1, 0.12]])
"""Of the released code: the image is sampled at scale A(turn) (p + (t_x, -t_y)); y of t points up."""

MOVES = Similarity(-TURNS, 1 / SCALES, SHIFTS * torch.tensor([-1.0, 1.0]))


def cameras(weak: bool) -> Camera:
    quat = rotation.normalize(torch.tensor([[0.8, 0.2, -0.4, 0.4], [0.5, 0.5, 0.6, -0.4]]))
    z0 = None if weak else torch.tensor([0.3, -1.0])
    return Camera.from_augmented(z0, torch.tensor([[0.1, -0.2], [0.0, 0.15]]), torch.tensor([0.7, 0.55]), quat)


def test_images_are_warped_as_by_the_released_code():
    image = images(2, 3, 32, 32)
    gray, white = MOVES.warp(image), MOVES.warp(image, 1.0)
    found = [gray.mean(), gray.std(correction=0), gray.min(), gray.max()]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([-0.0050225, 0.6246465, -0.9993531, 0.9998602]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(gray[0, :, 10, 20], torch.tensor([0.8243219, -0.5863699, -0.7939188]), rtol=0, atol=2e-6)
    torch.testing.assert_close(white.mean(), torch.tensor(0.1579686), rtol=0, atol=2e-6)
    torch.testing.assert_close(white.std(correction=0), torch.tensor(0.7236305), rtol=0, atol=2e-6)


def test_each_channel_may_have_its_own_fill():
    image = images(2, 4, 16, 16)
    both = MOVES.warp(image, torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None, None])
    torch.testing.assert_close(both[:, :3], MOVES.warp(image[:, :3], 1.0))
    torch.testing.assert_close(both[:, 3:], MOVES.warp(image[:, 3:]))


@pytest.mark.parametrize("weak", [False, True])
def test_moved_objects_are_those_of_the_released_code(weak):
    moved = MOVES.move_object(cameras(weak))
    shift = [[-0.0870668, -0.2443121], [-0.0644776, 0.1839456]]
    quat = [[0.8740915, 0.0948209, -0.4370458, 0.1896418], [0.6322337, 0.0731544, 0.7698621, -0.0473419]]
    torch.testing.assert_close(moved.shift, torch.tensor(shift), rtol=0, atol=2e-6)
    torch.testing.assert_close(moved.scale, torch.tensor([0.6086955, 0.6470587]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        rotation.to_matrix(moved.quat), rotation.to_matrix(torch.tensor(quat)), rtol=0, atol=1e-6
    )
    if weak:
        assert not moved.inv_focal.any()
        return
    torch.testing.assert_close(moved.to_augmented()[0], torch.tensor([0.0424419, -0.4954940]), rtol=0, atol=3e-6)
    matrix, focal = moved.to_matrix()
    torch.testing.assert_close(focal, torch.tensor([1.0216777, 0.8046349]), rtol=0, atol=1e-6)
    row = torch.tensor([0.5460539, -0.2486465, -0.8, -2.5076478])
    torch.testing.assert_close(matrix[0, 0], row, rtol=0, atol=1e-5)


def test_the_released_shift_of_objects_is_off_where_the_object_is_not_at_its_center():
    point = torch.tensor([[[0.2, 0.1, -0.3]]])
    for weak, object_moved, image_moved in (
        (True, [0.0871364, -0.0981051], [0.0871364, -0.0981051]),
        (False, [0.0876589, -0.0986933], [0.0881384, -0.0983937]),
    ):
        camera, moves = cameras(weak)[0], MOVES[0]
        for moved, expected in ((moves.move_object(camera), object_moved), (moves.move(camera), image_moved)):
            seen = moved.project(point)[0, 0, :2]
            torch.testing.assert_close(seen, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("perspective", [False, True])
def test_the_moved_camera_sees_points_where_the_warp_puts_them(perspective, rng):
    count = 5
    camera = (
        Camera(
            rotation.random(count, rng),
            0.5 + torch.rand(count, generator=rng),
            0.2 * torch.randn(count, 2, generator=rng),
            torch.full((count,), 0.4 if perspective else 0.0),
            0.3 * torch.randn(count, 2, generator=rng),
        )
        .to("cpu", dtype=torch.float64)
        .normalized()
    )
    moves = random_similarity(count, rng).to("cpu", dtype=torch.float64)
    points = torch.rand(count, 7, 3, generator=rng, dtype=torch.float64) - 0.5
    before, after = camera.project(points)[..., :2].numpy(), moves.move(camera).project(points)[..., :2].numpy()
    for b in range(count):
        angle, zoom = moves.angle[b].item(), moves.zoom[b].item()
        turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        np.testing.assert_allclose(after[b], before[b] @ turn.T + moves.shift[b].numpy(), atol=1e-12)


def test_a_blob_is_warped_to_where_its_middle_goes():
    size, place = 65, torch.tensor([[0.3, -0.2]])
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    blob = torch.exp(-((axis - place[0, 0]) ** 2 + (axis[:, None] - place[0, 1]) ** 2) / 0.01)[None, None]
    moves = Similarity(torch.tensor([0.7]), torch.tensor([1.3]), torch.tensor([[-0.1, 0.15]]))
    warped = moves.warp(blob)[0, 0]
    middle = torch.stack([(warped * axis).sum(), (warped * axis[:, None]).sum()]) / warped.sum()
    torch.testing.assert_close(middle, (moves.turned(place) + moves.shift)[0], rtol=0, atol=2e-3)


def test_draws_are_distributed_as_in_the_released_code(rng):
    moves = random_similarity(20_000, rng, probability=0.5)
    for values, unmoved, law in (
        (moves.angle, 0.0, stats.uniform(-math.pi, 2 * math.pi)),
        (torch.log2(moves.zoom), 0.0, stats.norm(0, 0.2)),
        (moves.shift[:, 0], 0.0, stats.norm(0, 0.1)),
        (moves.shift[:, 1], 0.0, stats.norm(0, 0.1)),
    ):
        happened = values != unmoved
        assert happened.float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert stats.kstest(values[happened].numpy(), law.cdf).pvalue > 1e-3
    turned, zoomed, shifted = moves.angle != 0, moves.zoom != 1, moves.shift != 0
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    for one, other in ((turned, zoomed), (turned, shifted[:, 0]), (zoomed, shifted[:, 0])):
        assert (one & other).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_nothing_moves_at_probability_0(rng):
    moves = random_similarity(9, rng, probability=0.0)
    assert not torch.cat([moves.angle, moves.shift.flatten(), moves.zoom - 1]).any()
    # The same numbers are consumed whatever the probability, so what is drawn next does not depend on it.
    other = torch.Generator().manual_seed(0)
    random_similarity(9, other, probability=1.0)
    assert torch.equal(rng.get_state(), other.get_state())


@pytest.mark.parametrize(
    "sigma, pixels, total",
    [
        (10.0, {(16, 16): 0.0022077989}, 0.8994557),
        (6.0, {(16, 16): 0.0061321608, (16, 17): 0.0060152211, (10, 16): 0.0030660804}, 0.9981889),
        (1.2, {(16, 16): 0.1533291042, (16, 17): 0.0947492868}, 1.0),
        (0.4, {(16, 16): 0.9494453669, (16, 17): 0.0124747688}, 1.0),
        (0.1, {(16, 16): 1.0, (16, 17): 0.0}, 1.0),
    ],
)
def test_a_point_is_smoothed_as_by_the_released_code(sigma, pixels, total):
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    smooth = blurred(image, sigma)
    assert smooth.sum().item() == pytest.approx(total, abs=2e-6)
    for place, value in pixels.items():
        assert smooth[0, 0][place].item() == pytest.approx(value, abs=1e-7)


def test_white_stays_white_at_the_border():
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    assert blurred(point, 6.0, 1.0)[0, 0, 0, 0].item() == pytest.approx(0.7093135, abs=1e-6)
    ones = torch.ones(1, 3, 33, 33)
    torch.testing.assert_close(blurred(ones, 6.0, 1.0), ones)
    assert blurred(ones, 6.0)[0, 0, 0, 0].item() == pytest.approx(0.2906869, abs=1e-6)


def test_smoothing_is_a_convolution():
    image = images(2, 3, 12, 14).double()
    kernel = 2.0 ** -((np.arange(-4, 5) / 1.5) ** 2)
    kernel /= kernel.sum()
    expected = ndimage.convolve(image.numpy(), np.outer(kernel, kernel)[None, None], mode="constant")
    np.testing.assert_allclose(blurred(image, 1.5).numpy(), expected, atol=1e-12)

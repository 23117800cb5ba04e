"""One camera formula against published numbers, explicit pinholes and finite differences."""

import pytest
import torch

from invkit.geometry import rotation
from invkit.geometry.camera import Camera

DOUBLE = {"dtype": torch.float64}
QUAT = torch.tensor([[0.8, 0.2, -0.4, 0.4]], **DOUBLE)


def spec_camera(*, perspective: bool) -> Camera:
    z0 = torch.tensor([0.3], **DOUBLE) if perspective else None
    return Camera.from_augmented(z0, torch.tensor([[0.1, -0.2]], **DOUBLE), torch.tensor([0.7], **DOUBLE), QUAT)


def random_camera(rng, count: int = 5, *, perspective: bool = True, centered: bool = False) -> Camera:
    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=rng, **DOUBLE)

    return Camera(
        rotation.normalize(torch.randn(count, 4, generator=rng, **DOUBLE)),
        uniform(0.3, 0.9, count),
        uniform(-0.3, 0.3, count, 2),
        uniform(0.1, 0.7, count) if perspective else torch.zeros(count, **DOUBLE),
        None if centered else uniform(-0.4, 0.4, count, 2),
    )


# ---- published numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("perspective", "rows"),
    [
        (
            True,
            [
                [0.36, -0.48, -0.8, -2.59983897],
                [-0.8, -0.6, 0, 0.28571433],
                [-0.48, 0.64, -0.6, -2.12845039],
                [0, 0, 0, 1],
            ],
        ),
        (
            False,
            [
                [0.51428568, -0.68571430, -1.14285731, -11.34285831],
                [-1.14285731, -0.85714293, 0, 0.28571433],
                [-0.68571430, 0.91428578, -0.85714281, -8.68571377],
                [0, 0, 0, 1.42857146],
            ],
        ),
    ],
)
def test_matrix_form_has_the_published_numbers(perspective, rows):
    camera = spec_camera(perspective=perspective)
    matrix, focal = camera.to_matrix()
    # The published figures are float32: seven digits, of numbers up to 11.
    torch.testing.assert_close(matrix, torch.tensor([rows], **DOUBLE), atol=1e-6, rtol=1e-7)
    if perspective:
        assert focal.item() == pytest.approx(1.17492938, abs=5e-8)
    else:
        assert focal.isinf().all()
    back = Camera.from_matrix(matrix, focal if perspective else None)
    for name in ("quat", "scale", "shift", "inv_focal"):
        torch.testing.assert_close(getattr(back, name), getattr(camera, name), atol=1e-9, rtol=0)


def test_a_point_lands_where_it_is_published_to():
    x, y, _ = spec_camera(perspective=True).project(torch.tensor([[[0.2, 0.1, -0.3]]], **DOUBLE))[0, 0]
    assert x.item() / 2 == pytest.approx(0.09818496, abs=1e-7)  # in image widths, as it is published
    assert -y.item() / 2 == pytest.approx(-0.02193072, abs=1e-7)


def test_rays_have_the_published_directions():
    rays = spec_camera(perspective=True).rays((6, 8), offset=0.0)
    for (row, column), direction in {
        (0, 0): (0.4425318, 0.0851115, 1.0766244),
        (2, 5): (0.7702110, -0.1702230, 0.6397187),
    }.items():
        expected = torch.nn.functional.normalize(torch.tensor(direction, **DOUBLE), dim=0)
        torch.testing.assert_close(rays.directions[0, row, column], expected, atol=1e-6, rtol=0)
    weak = spec_camera(perspective=False).rays((6, 8), offset=0.0)
    torch.testing.assert_close(weak.directions[0, 0, 0], torch.tensor([0.8, 0, 0.6], **DOUBLE), atol=1e-6, rtol=0)
    # The published origin lies elsewhere on the same line.
    origin = torch.tensor([-12.5428581, 0.5714287, -7.0857134], **DOUBLE)
    between = weak.origins[0, 0, 0] - origin
    torch.testing.assert_close(
        torch.linalg.cross(between, weak.directions[0, 0, 0]), torch.zeros(3, **DOUBLE), atol=1e-5, rtol=0
    )


def test_rays_of_a_crop_have_the_published_directions():
    # Published box: start (-0.6, -0.9), range 1.1, y up; in our y-down NDC its top edge is 0.9 - 1.1.
    box = torch.tensor([[-0.6, -0.2, 0.5, 0.9]], **DOUBLE)
    rays = spec_camera(perspective=True).crop(box).rays((6, 8), offset=0.0)
    expected = torch.nn.functional.normalize(torch.tensor([0.6672261, 0.1532007, 0.7770319], **DOUBLE), dim=0)
    torch.testing.assert_close(rays.directions[0, 0, 0], expected, atol=1e-6, rtol=0)


# ---- the formula itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("perspective", [True, False])
def test_projection_equals_an_explicit_pinhole(rng, perspective):
    camera = random_camera(rng, perspective=perspective)
    points = torch.randn(5, 7, 3, generator=rng, **DOUBLE) * 0.5
    turned = torch.einsum("bij,bnj->bni", rotation.to_matrix(camera.quat), points)
    if perspective:
        # f (X + T) / (Z + f / s) + c, the pinhole of the survey literature, with T = (t - c) / s.
        f, s = 1 / camera.inv_focal[:, None, None], camera.scale[:, None, None]
        moved = turned[..., :2] + (camera.shift - camera.center)[:, None] / s
        expected = f * moved / (turned[..., 2:] + f / s) + camera.center[:, None]
    else:
        expected = camera.scale[:, None, None] * turned[..., :2] + camera.shift[:, None]
    torch.testing.assert_close(camera.project(points)[..., :2], expected, atol=1e-12, rtol=0)


def test_perspective_tends_to_weak_perspective(rng):
    weak = random_camera(rng, perspective=False, centered=True)
    nearly = Camera(weak.quat, weak.scale, weak.shift, torch.full_like(weak.scale, 1e-9))
    points = torch.randn(5, 7, 3, generator=rng, **DOUBLE)
    torch.testing.assert_close(nearly.project(points), weak.project(points), atol=1e-7, rtol=0)


@pytest.mark.parametrize("perspective", [True, False])
def test_every_ray_projects_onto_its_pixel(rng, perspective):
    camera = random_camera(rng, perspective=perspective)
    rays = camera.rays((3, 4))
    for along in (-0.4, 0.0, 0.8):
        points = (rays.origins + along * rays.directions).reshape(5, -1, 3)
        xy = camera.project(points)[..., :2].reshape(5, 3, 4, 2)
        column = (torch.arange(4, **DOUBLE) + 0.5) / 2 - 1
        row = (torch.arange(3, **DOUBLE) + 0.5) * 2 / 3 - 1
        torch.testing.assert_close(xy[..., 0], column.expand(5, 3, 4), atol=1e-10, rtol=0)
        torch.testing.assert_close(xy[..., 1], row[:, None].expand(5, 3, 4), atol=1e-10, rtol=0)


def test_depth_grows_away_from_the_viewer():
    camera = Camera.from_cmr(torch.tensor([[0.5, 0, 0, 1, 0, 0, 0]], **DOUBLE))
    near, far = camera.project(torch.tensor([[[0.0, 0, -1], [0, 0, 1]]], **DOUBLE))[0, :, 2]
    assert near < far


@pytest.mark.parametrize("perspective", [True, False])
def test_crop_moves_the_picture_exactly(rng, perspective):
    camera = random_camera(rng, perspective=perspective)
    points = torch.randn(5, 7, 3, generator=rng, **DOUBLE) * 0.4
    corner, side = torch.rand(5, 2, generator=rng, **DOUBLE) - 0.8, 0.5 + torch.rand(5, 1, generator=rng, **DOUBLE)
    cropped = camera.crop(torch.cat([corner, corner + side], dim=1))
    expected = (camera.project(points)[..., :2] - corner[:, None]) * 2 / side[:, None] - 1
    torch.testing.assert_close(cropped.project(points)[..., :2], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("box", [[0.0, 0.0, 0.5, 0.2], [0.5, 0.0, 0.0, 0.5]])
def test_a_crop_that_is_not_a_square_is_refused(box):
    with pytest.raises(ValueError, match="square"):
        spec_camera(perspective=True).crop(torch.tensor([box], **DOUBLE))


@pytest.mark.parametrize("perspective", [True, False])
def test_mirror_is_the_flipped_picture_of_the_mirrored_object(rng, perspective):
    camera = random_camera(rng, perspective=perspective)
    points = torch.randn(5, 7, 3, generator=rng, **DOUBLE) * 0.4
    flip = torch.tensor([-1.0, 1.0, 1.0], **DOUBLE)
    torch.testing.assert_close(
        camera.mirror().project(points * flip), camera.project(points) * flip, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(camera.mirror().mirror().shift, camera.shift)


def test_mirror_in_the_index_convention_is_cmrs_rule(rng):
    camera = random_camera(rng, perspective=False, centered=True)
    width = 256
    pixels = (camera.shift[:, 0] + 1) * width / 2
    expected = 2 * (width - pixels - 1) / width - 1
    torch.testing.assert_close(camera.mirror(index_width=width).shift[:, 0], expected, atol=1e-12, rtol=0)


# ---- conversions -----------------------------------------------------------------------------------------------


def test_round_trips_through_every_form(rng):
    weak = random_camera(rng, perspective=False, centered=True)
    torch.testing.assert_close(Camera.from_cmr(weak.to_cmr()).to_cmr(), weak.to_cmr())
    full = random_camera(rng)
    points = torch.randn(5, 7, 3, generator=rng, **DOUBLE) * 0.4
    matrix, focal = full.to_matrix()
    again = Camera.from_matrix(matrix, focal, full.center)
    torch.testing.assert_close(again.project(points), full.project(points), atol=1e-10, rtol=0)
    again = Camera.from_augmented(*full.to_augmented())
    torch.testing.assert_close(again.inv_focal, full.inv_focal, atol=1e-10, rtol=0)


def test_a_look_at_matrix_sees_the_origin_in_the_middle_and_up_above(rng):
    # A camera on the +x axis, 3 units out, world z up; columns are right, up, backward (OpenGL).
    matrix = torch.tensor([[[0.0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]], **DOUBLE)
    camera = Camera.from_matrix(matrix, torch.tensor([1.2], **DOUBLE))
    (origin, above, right) = camera.project(torch.tensor([[[0.0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]]], **DOUBLE))[0]
    torch.testing.assert_close(origin, torch.zeros(3, **DOUBLE))
    # f / distance = 2.4 / 3 NDC per unit; up in the world is up in the picture, which is negative y.
    torch.testing.assert_close(above[:2], torch.tensor([0.0, -0.4], **DOUBLE))
    torch.testing.assert_close(right[:2], torch.tensor([0.4, 0.0], **DOUBLE))


def test_user_mistakes_are_named():
    behind = torch.diag(torch.tensor([1.0, 1, 1, 1], **DOUBLE))[None].clone()
    behind[0, 2, 3] = -5  # looks along -z from z = -5: the origin is behind
    with pytest.raises(ValueError, match="behind"):
        Camera.from_matrix(behind, torch.tensor([1.0], **DOUBLE))
    mixed = Camera.cat([spec_camera(perspective=True), spec_camera(perspective=False)])
    with pytest.raises(ValueError, match="mixes"):
        mixed.to_matrix()


@pytest.mark.parametrize("perspective", [True, False])
def test_gradients_agree_with_finite_differences(rng, perspective):
    camera = random_camera(rng, 2, perspective=perspective)
    points = torch.randn(2, 3, 3, generator=rng, **DOUBLE) * 0.4

    def project(points, *fields):
        return Camera(*fields).project(points)

    def rays(*fields):
        return Camera(*fields).rays(2).directions + Camera(*fields).rays(2).origins

    fields = [camera.quat, camera.scale, camera.shift, camera.inv_focal, camera.center]
    inputs = [t.clone().requires_grad_() for t in (points, *fields)]
    assert torch.autograd.gradcheck(project, inputs)
    assert torch.autograd.gradcheck(rays, inputs[1:])

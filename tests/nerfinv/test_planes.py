"""The tri-plane lookup against torch's grid_sample, brute force and finite differences, to second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from nerfinv import planes as triplanes


def sampled(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[B, N, C]: the mean of three `grid_sample`s."""
    total = 0.0
    for index, (x, y) in enumerate(((0, 1), (0, 2), (1, 2))):
        grid = points[:, None][..., [x, y]]
        total = total + F.grid_sample(planes[:, index], grid, align_corners=True, padding_mode="border")
    return (total / 3).squeeze(2).transpose(1, 2)


def looked_up(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    images, count, _ = points.shape
    image = torch.arange(images).repeat_interleave(count)
    weight, corners = triplanes.locate(points.flatten(0, 1), image, planes.shape[-1])
    return triplanes.lookup(triplanes.table_of(planes), weight, corners).view(images, count, -1)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 4, 7, 7, generator=rng, dtype=torch.float64)
    points = torch.rand(2, 50, 3, generator=rng, dtype=torch.float64) * 2.6 - 1.3  # some outside
    return planes, points


def test_values_and_gradients_are_those_of_grid_sample(scene):
    planes, points = (tensor.requires_grad_() for tensor in scene)
    ours, theirs = looked_up(planes, points), sampled(planes, points)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, torchs in zip(
        torch.autograd.grad(ours, (planes, points), cotangent),
        torch.autograd.grad(theirs, (planes, points), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, torchs, rtol=1e-10, atol=1e-12)


def test_many_points_are_gathered_in_several_chunks():
    rng = torch.Generator().manual_seed(2)
    planes = torch.randn(1, 3, 3, 9, 9, generator=rng).requires_grad_()
    points = (torch.rand(1, triplanes.CHUNK * 2 + 5, 3, generator=rng) * 2 - 1).requires_grad_()
    ours, theirs = looked_up(planes, points), sampled(planes, points)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, torchs in zip(
        torch.autograd.grad(ours.square().sum(), (planes, points)),
        torch.autograd.grad(theirs.square().sum(), (planes, points)),
        strict=True,
    ):
        torch.testing.assert_close(mine, torchs, rtol=1e-3, atol=1e-3)


def test_first_and_second_derivatives_by_finite_differences():
    rng = torch.Generator().manual_seed(3)
    planes = torch.randn(1, 3, 2, 4, 4, generator=rng, dtype=torch.float64).requires_grad_()
    # Between texels: at a texel the derivative jumps.
    cells = torch.randint(0, 3, (1, 5, 3), generator=rng)
    inside = torch.rand(1, 5, 3, generator=rng, dtype=torch.float64) * 0.8 + 0.1
    points = ((cells + inside) * (2 / 3) - 1).requires_grad_()
    assert gradcheck(looked_up, (planes, points))
    assert gradgradcheck(looked_up, (planes, points))


def test_a_third_derivative_exists():
    """Training on normals inside a penalized gradient would need it."""
    planes = torch.randn(1, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    planes.requires_grad_()
    points = torch.full((1, 1, 3), 0.2, dtype=torch.float64).requires_grad_()
    value = looked_up(planes, points).pow(3).sum()
    (first,) = torch.autograd.grad(value, points, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), points, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), planes)
    assert bool(third.isfinite().all())
    assert third.abs().sum() > 0


# One plane alone, of sines, with known values: the corners and weights of a plane are every third of the lookup's.
POINTS = torch.tensor(
    [(-0.73, 0.31), (0.2, -0.45), (0.95, 0.99), (1.3, -1.7), (1 / 3, 0.5), (-1.0, 1.0)], dtype=torch.float64
)


def plane_value(points: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Values of a square image [C, R, R] at points [N, 2]: the plane xy is the image, the others are 0."""
    planes = torch.stack([image, torch.zeros_like(image), torch.zeros_like(image)])[None]
    return 3 * looked_up(planes, F.pad(points, (0, 1))[None])[0]


def wave(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.sin(0.9 * x + 0.4 * y), torch.cos(0.5 * x - 0.8 * y)])


def test_derivatives_of_a_known_image_by_the_formula_of_bilinear_interpolation():
    """Within a cell f = a + b x + c y + d x y, so d|grad f|^2 / dx = 2 (c + d x) d, and in the same way by y."""
    side = 7
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    image = wave(columns, rows)
    points = POINTS.clone().requires_grad_()
    value = plane_value(points, image)
    (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), points)
    for number, (px, py) in enumerate(((POINTS + 1) * (side - 1) / 2).tolist()):
        held = [min(max(p, 0.0), side - 1) for p in (px, py)]
        x0, y0 = (min(int(p), side - 2) for p in held)
        u, v = held[0] - x0, held[1] - y0
        f00, f10 = image[:, y0, x0], image[:, y0, x0 + 1]
        f01, f11 = image[:, y0 + 1, x0], image[:, y0 + 1, x0 + 1]
        twist = f00 - f10 - f01 + f11
        expected = f00 + (f10 - f00) * u + (f01 - f00) * v + twist * u * v
        torch.testing.assert_close(value[number], expected)
        step = (side - 1) / 2
        by_x, by_y = (f10 - f00 + twist * v) * step, (f01 - f00 + twist * u) * step
        moves_x, moves_y = (0 <= p < side - 1 for p in (px, py))
        slope = torch.stack([by_x.sum() * moves_x, by_y.sum() * moves_y])
        torch.testing.assert_close(gradient[number], slope)
        bend = twist.sum() * step**2 * moves_x * moves_y
        torch.testing.assert_close(second[number], torch.stack([2 * slope[1] * bend, 2 * slope[0] * bend]))


def test_beyond_the_ends_nothing_varies():
    planes = torch.randn(1, 3, 2, 5, 5, generator=torch.Generator().manual_seed(5))
    points = torch.tensor([[[1.5, 2.0, -3.0], [1.0, 1.0, -1.0]]]).requires_grad_()
    value = looked_up(planes, points)
    torch.testing.assert_close(value[0, 0], value[0, 1])
    (gradient,) = torch.autograd.grad(value[0, 0].sum(), points)
    assert not gradient.any()


def test_a_point_that_is_not_a_number_spoils_itself_alone():
    planes = torch.randn(1, 3, 2, 5, 5, generator=torch.Generator().manual_seed(6))
    points = torch.tensor([[[0.1, 0.2, 0.3], [torch.nan, 0.0, 0.0], [0.0, 0.0, torch.inf]]])
    value = looked_up(planes, points)[0]
    assert bool(value[1].isnan().all())
    torch.testing.assert_close(value[:1], looked_up(planes, points[:, :1])[0])


def test_known_numbers_of_a_5_by_7_image():
    """Values, gradients and gradients of the squared gradient; the image's last row is repeated to make it square."""
    rows, columns = torch.meshgrid(
        torch.arange(5, dtype=torch.float64), torch.arange(7, dtype=torch.float64), indexing="ij"
    )
    image = wave(columns, rows).requires_grad_()
    points = POINTS.clone().requires_grad_()
    square = torch.cat([image, image[:, -1:].expand(-1, 2, -1)], dim=1)
    value = plane_value(torch.stack([points[:, 0], (points[:, 1] + 1) * 2 / 3 - 1], dim=1), square)
    expected = [
        (0.900325486678, -0.111712319505),
        (-0.464831762531, 0.566080201091),
        (0.524136095157, 0.945842978822),
        (-0.772764487556, -0.989992496600),
        (-0.996164608836, 0.921060994003),
        (0.999573603042, -0.998294775795),
    ]
    torch.testing.assert_close(value, value.new_tensor(expected), rtol=0, atol=2e-12)
    (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    expected = [
        (1.50530941275, -1.65418688930),
        (-3.44477109972, 0.30692286343),
        (3.14141157237, 0.89180785493),
        (0, 0),
        (1.55826671254, -0.89198657282),
        (-0.92063647548, 0),
    ]
    torch.testing.assert_close(gradient, value.new_tensor(expected), rtol=0, atol=2e-11)
    by_point, by_image = torch.autograd.grad(gradient.square().sum(), (points, image))
    expected = [
        (8.17492412773, -7.43917771179),
        (1.93768594745, -21.7477592823),
        (3.87203498314, 13.6393231315),
        (0, 0),
        (-6.25483476740, 10.9269591223),
        (0, 0),
    ]
    torch.testing.assert_close(by_point, value.new_tensor(expected), rtol=0, atol=1e-8)
    assert by_image.abs().sum().item() == pytest.approx(260.661979415, abs=1e-8)
    expected = value.new_tensor([0, 0, 0, 18.1106873571, -19.3383787108, 0, 0])
    torch.testing.assert_close(by_image[0, 1], expected, rtol=0, atol=2e-7)

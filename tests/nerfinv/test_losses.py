"""Regularizers of the generator: numbers of the released code, and surfaces of which the answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nerfinv.field import LaplaceDensity, RadianceField, SoftplusDensity
from nerfinv.generator.generator import Generator
from nerfinv.losses import surface
from nerfinv.losses.path_length import PathLength, path_lengths
from nerfinv.losses.surface import BESIDE
from tests.nerfinv.filled import filled_generator, latents
from tests.nerfinv.tiny_fields import bumpy_balls


def half(*shape: int, **like) -> Tensor:
    return torch.full(shape, 0.5, **like)


def waves(tensor: Tensor) -> Tensor:
    """What stands for normal draws of that shape."""
    index = torch.arange(tensor.numel(), dtype=torch.float64)
    return (math.sqrt(2) * torch.sin(0.37 * index)).to(tensor).view(tensor.shape)


@pytest.fixture
def known_draws(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", half)
    monkeypatch.setattr(torch, "randn_like", waves)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return filled_generator(scene_range=2.0)


def close(found: Tensor, *expected: float, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected).view(found.shape), rtol=rtol, atol=0)


@pytest.mark.usefixtures("known_draws")
def test_surface_losses_are_those_of_the_released_code(generator):
    field = generator(generator.style(latents()))
    points = surface.stratified_points(field)
    value, gradient = surface.value_and_gradient(field, points)
    beside = field.value(points + BESIDE * field.half_side * torch.randn_like(points))
    eikonal, variation = surface.eikonal(gradient), surface.total_variation(field.density, value, beside)
    close(eikonal, 0.4568456, 1.6647412)
    close(variation, 0.0082971, 0.00094373)
    close(surface.entropy(field.density, value), 1.0818318, 0.0441687)
    close(surface.sphere(value, points), 1.1251956, 1.1405150)
    # Without signed distances the same network gives raw densities, at the same points relative to the box.
    close(surface.total_variation(SoftplusDensity(), value, beside), 0.0014698, 0.0025438)
    close(surface.entropy(SoftplusDensity(), value), 0.1995894, 0.2319912)
    weight = generator.decoder.hidden.weight
    (by_weight,) = torch.autograd.grad(eikonal.mean(), weight, retain_graph=True)
    close(by_weight.std(correction=0), 0.01619193)
    close(by_weight.abs().sum(), 19.63572)
    close(by_weight.flatten()[:3], -0.0010196, -0.00463917, -0.00774952, rtol=1e-3)
    (by_width,) = torch.autograd.grad(variation.mean(), generator.density.beta)
    close(by_width.squeeze(), -0.00407702)


@pytest.mark.usefixtures("known_draws")
def test_path_lengths_are_those_of_the_released_code(generator):
    style = generator.style(latents())
    styles = style[:, None].expand(-1, generator.num_styles, -1)
    field = generator(styles)
    lengths = path_lengths(styles, field)
    # Sums of millions of numbers of both signs: in float64 they are 3.3696 and 3.8137.
    close(lengths, 3.3707063, 3.8133256, rtol=2e-3)
    close(PathLength()(torch.tensor([3.3707063, 3.8133256])).mean(), 0.0489780)
    parameters = [generator.mapping.fc1.weight, generator.synthesis.b4.const]
    by_mapping, by_const = torch.autograd.grad(lengths.mean(), parameters, retain_graph=True)
    # Their gradients even more so: from one processor's kernels to another's they differ in the third digit.
    close(by_mapping.abs().sum(), 1.62783, rtol=5e-3)
    close(by_const.abs().sum(), 9.79481, rtol=5e-3)
    # Without a palette there are as many slots as the planes have, of the same network.
    alone = path_lengths(styles, replace(field, palette=None)) * math.sqrt(
        generator.num_styles / (generator.num_styles - 1)
    )
    close(alone, 3.4434090, 3.9002960, rtol=2e-3)


@pytest.mark.usefixtures("known_draws")
def test_points_lie_where_those_of_the_released_code_do():
    points = surface.stratified_points(bumpy_balls(half_side=1.4, side=4))
    assert points.shape == (2, 29791, 3)
    close(points[0, 0], -1.3548387, -1.3548387, -1.3548387, rtol=1e-6)
    close(points[1, 1], -1.3548387, -1.3548387, -1.2645161, rtol=1e-6)


def test_each_cell_has_one_point():
    field = bumpy_balls(half_side=0.7)
    points = surface.stratified_points(field, 5)
    cells = ((points / 0.7 + 1) * 2.5).floor().long()
    for of_one in cells:
        assert sorted(map(tuple, of_one.tolist())) == [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    assert not torch.equal(points[0], points[1])


class Plane(nn.Module):
    """Distances to the plane x = 0.2, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(features), features

    def value(self, features: Tensor) -> Tensor:
        # The coordinate is in two of the three planes, whose mean is taken.
        return self.factor * (features[:, 0] * 1.5 - 0.2)


def flat(density: nn.Module, factor: float = 1.0) -> RadianceField:
    axis = torch.linspace(-1.0, 1.0, 5)
    planes = torch.zeros(1, 3, 1, 5, 5)
    planes[0, :2, 0] = axis
    return RadianceField(planes, None, Plane(factor), density, 1.0)


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_distances_have_slope_1(factor):
    field = flat(LaplaceDensity(), factor)
    _, gradient = surface.value_and_gradient(field, surface.stratified_points(field, 4))
    loss = surface.eikonal(gradient)
    assert loss.item() == pytest.approx((factor - 1) ** 2, abs=1e-5)
    (change,) = torch.autograd.grad(loss.sum(), field.decoder.factor)
    assert change.item() == pytest.approx(2 * (factor - 1), abs=1e-5)


def test_entropy_and_variation_are_integrals_over_the_surface():
    # The integral of the derivative of the occupancy over x is 1, and the box is 2 wide.
    field = flat(LaplaceDensity(beta=0.05))
    points = surface.stratified_points(field, 40)
    value = field.value(points)
    assert surface.entropy(field.density, value).item() == pytest.approx(0.5, rel=0.02)
    beside = field.value(points + torch.tensor([0.004, 0.3, -0.2]))
    assert surface.total_variation(field.density, value, beside).item() == pytest.approx(0.5 * 0.004, rel=0.03)
    raw = SoftplusDensity()
    assert surface.entropy(raw, torch.ones(1, 4)).item() == pytest.approx(0.25)


def test_a_sphere_costs_nothing():
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    distance = points.norm(dim=2) - 0.4
    assert surface.sphere(distance, points, 0.4).abs().max() < 1e-12
    close(surface.sphere(distance, points, 1.0), 0.36, 0.36, rtol=1e-5)


def test_the_running_mean_starts_at_the_first_lengths_and_moves_before_it_is_used():
    module = PathLength(decay=0.9)
    close(module(torch.tensor([1.0, 3.0])), 1.0, 1.0)
    lengths = torch.tensor([6.0, 8.0], requires_grad=True)
    penalty = module(lengths)
    mean = 0.9 * 2 + 0.1 * 7
    close(module.mean, mean, rtol=1e-6)
    close(penalty, (6 - mean) ** 2, (8 - mean) ** 2, rtol=1e-5)
    (gradient,) = torch.autograd.grad(penalty.sum(), lengths)
    close(gradient, 2 * (6 - mean), 2 * (8 - mean), rtol=1e-5)
    other = PathLength(decay=0.9)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(torch.tensor([1.0, 2.0])), module(torch.tensor([1.0, 2.0])))


def test_path_lengths_are_those_of_gradients_taken_one_by_one():
    torch.manual_seed(0)
    size = {
        "latent_dim": 5,
        "style_dim": 6,
        "plane_size": 8,
        "plane_channels": 2,
        "max_channels": 4,
        "decoder_width": 4,
    }
    generator = Generator(**size, palette_size=3).double()
    styles = torch.randn(2, generator.num_styles, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    found = path_lengths(styles, generator(styles))
    torch.manual_seed(1)
    field = generator(styles)
    planes, palette = torch.randn_like(field.planes) / 8, torch.randn_like(field.palette)
    for b in range(2):
        one = styles[b : b + 1].detach().requires_grad_()
        made = generator(one)
        along = (made.planes[0] * planes[b]).sum() + (made.palette[0] * palette[b]).sum()
        (gradient,) = torch.autograd.grad(along, one)
        expected = math.sqrt(sum(float((slot**2).sum()) for slot in gradient[0]) / generator.num_styles)
        assert found[b].item() == pytest.approx(expected, rel=1e-10)


class Balls(nn.Module):
    """A decoder whose features are coordinates: the union of balls, so that distances outside are exact."""

    def __init__(self, *balls: tuple[tuple[float, float, float], float], slope: float = 1.0) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.tensor([center for center, _ in balls]))
        self.radii = torch.tensor([radius for _, radius in balls])
        self.slope = slope

    def value(self, features: Tensor) -> Tensor:
        points = 1.5 * features[:, :3]  # each coordinate lies in two of three planes
        distance = (points[:, None] - self.centers).norm(dim=2) - self.radii
        return self.slope * distance.amin(dim=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(features), features.new_zeros(len(features), 2)


def balls(decoder: Balls, count: int = 1, side: int = 33) -> RadianceField:
    planes = torch.zeros(count, 3, 3, side, side)
    axis = torch.linspace(-1, 1, side)
    along, down = axis.expand(side, side), axis[:, None].expand(side, side)
    for plane, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
        planes[:, plane, first], planes[:, plane, second] = along, down
    return RadianceField(planes, None, decoder, LaplaceDensity(), 1.0)


def test_points_are_taken_to_the_surface_whatever_the_slope():
    torch.manual_seed(0)
    for slope in (1.0, 2.5):
        field = balls(Balls(((0.1, 0.0, -0.2), 0.5), slope=slope))
        points = surface.stratified_points(field, 12)
        value, gradient = surface.value_and_gradient(field, points)
        near = surface.nearest_to_surface(points, value, gradient, 100, spread=0.0)
        distance = (near[0] - torch.tensor([0.1, 0.0, -0.2])).norm(dim=1) - 0.5
        assert near.shape == (1, 100, 3)
        assert distance.abs().max() < 1e-4
        assert surface.nearest_to_surface(points, value, gradient, 9999, spread=0.0).shape == points.shape
        beside = surface.nearest_to_surface(points, value, gradient, 100, spread=0.05)
        assert 0.03 < (beside[0] - near[0]).std() < 0.07


def test_the_eikonal_loss_about_the_surface_is_that_of_its_slope():
    torch.manual_seed(0)
    field = balls(Balls(((0.0, 0.0, 0.0), 0.5), slope=2.5))
    terms = surface.SurfaceTerms(eikonal_weight=2.0, cells=8, surface_points=64)(field, 1.0)
    assert terms["eikonal_surface"].item() == pytest.approx(2.0 * 1.5**2, rel=1e-3)
    assert "eikonal_surface" not in surface.SurfaceTerms(cells=8)(field, 1.0)
    assert "one_piece" not in terms


def test_one_ball_is_one_piece_and_a_second_one_is_not():
    torch.manual_seed(0)
    main = ((-0.3, 0.0, 0.0), 0.5)
    alone, two = balls(Balls(main)), balls(Balls(main, ((0.7, 0.6, 0.6), 0.2)))
    assert surface.one_piece(alone, 24, 0.04).item() == 0
    # Of the points of the smaller ball and the margin about it, the mean of what they lack; by integration over radii.
    radius = torch.linspace(0, 0.24, 10_000)
    expected = (radius**2 * (0.24 - radius)).sum() / (radius**2).sum()
    found = torch.stack([surface.one_piece(two, 24, 0.04) for _ in range(5)]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=0.1)


def test_what_nearly_touches_counts_as_connected():
    torch.manual_seed(0)
    near = balls(Balls(((-0.3, 0.0, 0.0), 0.5), ((0.41, 0.0, 0.0), 0.2)))
    assert surface.one_piece(near, 24, 0.04).item() == 0


def test_a_floater_shrinks_and_the_object_stays():
    torch.manual_seed(0)
    decoder = Balls(((-0.3, 0.0, 0.0), 0.5), ((0.7, 0.6, 0.6), 0.2))
    (gradient,) = torch.autograd.grad(surface.one_piece(balls(decoder), 24, 0.04).sum(), decoder.centers)
    assert (gradient[0] == 0).all()
    field = balls(decoder)
    points = surface.stratified_points(field, 24)
    beside = surface.stray(field.value(points), 24, 0.04)
    assert (points[beside] - torch.tensor([0.7, 0.6, 0.6])).norm(dim=1).max() < 0.25
    value = field.value(points).detach().requires_grad_()
    assert surface.stray(value, 24, 0.04).sum() == beside.sum()


def test_each_object_has_pieces_of_its_own():
    torch.manual_seed(0)
    value = torch.stack([field.value(surface.stratified_points(field, 16))[0] for field in (
        balls(Balls(((-0.3, 0.0, 0.0), 0.5))), balls(Balls(((-0.3, 0.0, 0.0), 0.5), ((0.7, 0.6, 0.6), 0.2))),
    )])  # fmt: skip
    assert (surface.stray(value, 16, 0.05).sum(dim=1) > 0).tolist() == [False, True]
    nothing = torch.ones(1, 16**3)
    assert not surface.stray(nothing, 16, 0.05).any()

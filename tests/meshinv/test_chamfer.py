"""The Chamfer losses against published numbers and against dense float64 forms written here."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from invkit.geometry.camera import Camera
from invkit.types import Estimate, Rendering, Views
from meshinv.losses import points
from meshinv.losses.appearance import Colors
from meshinv.losses.chamfer_mask import ChamferMask
from meshinv.losses.chamfer_texture import ChamferTexture, Locality, match
from meshinv.losses.points import ColoredPoints

NO_TURN = [1.0, 0.0, 0.0, 0.0]


def disc(size: int, column: float, row: float, radius: float) -> Tensor:
    """(x - column)^2 + (y - row)^2 <= radius^2 as a mask [1, size, size]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((x - column) ** 2 + (y - row) ** 2 <= radius**2).float()[None]


def camera(batch: int, dtype: torch.dtype = torch.float32) -> Camera:
    one = torch.ones(batch, dtype=dtype)
    return Camera(torch.tensor([NO_TURN] * batch, dtype=dtype), one, torch.zeros(batch, 2, dtype=dtype), 0 * one)


def views(mask: Tensor, rgb: Tensor | None = None) -> Views:
    rgb = torch.zeros(len(mask), 3, *mask.shape[-2:], dtype=mask.dtype) if rgb is None else rgb
    return Views(rgb, mask, camera(len(mask), mask.dtype), None, torch.arange(len(mask)) + 40)


def estimate(vertices: Tensor | None = None, rgb: Tensor | None = None, mask: Tensor | None = None) -> Estimate:
    like = vertices if vertices is not None else mask
    mask = torch.zeros(len(like), 1, 4, 4, dtype=like.dtype) if mask is None else mask
    rgb = mask.expand(-1, 3, -1, -1) if rgb is None else rgb
    scene = SimpleNamespace(vertices=vertices)
    return Estimate(torch.zeros(len(like), 1), camera(len(like), like.dtype), scene, Rendering(rgb, mask))


def chamfer_mask(estimate: Estimate, views: Views, **options) -> Tensor:
    term = ChamferMask(**options)
    return term(estimate, term.target(views))


def chamfer_texture(estimate: Estimate, views: Views, **options) -> Tensor:
    term = ChamferTexture(**options)
    return term(estimate, term.target(views))


def pixel_positions(mask: Tensor, offset: float = 0.0) -> Tensor:
    """Foreground positions of one mask [H, W] by a plain loop."""
    height, width = mask.shape
    return torch.tensor(
        [
            [2 * (c + offset) / width - 1, 2 * (r + offset) / height - 1]
            for r in range(height)
            for c in range(width)
            if mask[r, c] > 0.9
        ],
        dtype=torch.float64,
    )


def dense_chamfer_mask(vertices: Tensor, mask: Tensor, offset: float = 0.0) -> Tensor:
    distance = torch.cdist(vertices.double(), pixel_positions(mask, offset)).square()
    return distance.min(dim=1).values.mean() + distance.min(dim=0).values.mean()


def dense_cost(a: Tensor, p: Tensor, b: Tensor, q: Tensor, k: float, tau: float, alpha: float, eps: float) -> Tensor:
    appearance = (a[:, None].double() - b[None].double()).square().sum(-1)
    distance = (p[:, None].double() - q[None].double()).square().sum(-1)
    return ((1 - (2 * k * tau) ** 2 + k * distance) ** alpha).clamp(min=1) * (appearance + eps)


# ---- points ----------------------------------------------------------------------------------------------------------


def test_points_are_those_of_the_specification():
    mask = torch.zeros(1, 1, 8, 8)
    for row, column, value in ((2, 5, 1.0), (3, 1, 0.95), (0, 0, 0.9), (7, 7, 0.91)):
        mask[0, 0, row, column] = value
    chosen = points.foreground(mask)
    position = chosen.positions(8, 8, dtype=torch.float32)[0]
    # The published y points up, ours down.
    torch.testing.assert_close(
        position * torch.tensor([1.0, -1.0]), torch.tensor([[0.25, 0.5], [-0.75, 0.25], [0.75, -0.75]])
    )
    image = torch.arange(64.0).view(1, 1, 8, 8)
    assert chosen.read(image).flatten().tolist() == [21, 25, 63]
    interpolated = torch.nn.functional.grid_sample(image, position[None, None], align_corners=True)
    torch.testing.assert_close(interpolated.flatten(), torch.tensor([18.375, 21.875, 55.125]))


def test_drawn_points_are_a_fixed_subset_of_the_right_size():
    mask = torch.cat([disc(32, 16, 16, 12), disc(32, 10, 20, 2)])[:, None]
    seeds = torch.tensor([3, 8])
    drawn = points.foreground(mask, max_points=100, seeds=seeds)
    few = int(mask[1].sum())
    assert drawn.counts() == [100, few]
    flat = drawn.row * 32 + drawn.column
    assert bool((flat[0].diff() > 0).all()), "row-major order, nothing twice"
    assert bool((mask[0].flatten()[flat[0]] > 0.9).all())
    alone = points.foreground(mask[:1], max_points=100, seeds=seeds[:1])
    assert torch.equal(alone.row, drawn.row[:1])
    assert torch.equal(alone.column, drawn.column[:1])
    other = points.foreground(mask[:1], max_points=100, seeds=torch.tensor([4]))
    assert not torch.equal(other.row, alone.row)


def test_drawn_points_cover_the_mask_evenly():
    mask = torch.ones(1, 1, 64, 64)
    drawn = points.foreground(mask, max_points=1024, seeds=torch.tensor([0]))
    quarter = [int(((drawn.row // 32 == i) & (drawn.column // 32 == j)).sum()) for i in (0, 1) for j in (0, 1)]
    # 256 expected in each quarter, standard deviation 12.
    assert all(abs(count - 256) < 60 for count in quarter)


# ---- Chamfer mask ----------------------------------------------------------------------------------------------------


def test_chamfer_mask_of_a_hand_made_case():
    # A = {(0,0), (1,0), (0,2)} against B = {(0,1), (1,1)} is 2; here B as pixels of an 8 x 8 mask, all scaled by 1/4.
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 5, 4] = mask[0, 0, 5, 5] = 1
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]]) / 4
    torch.testing.assert_close(chamfer_mask(estimate(vertices), views(mask)), torch.tensor([2.0 / 16]))


@pytest.mark.parametrize("half_pixel", [False, True])
def test_chamfer_mask_equals_the_dense_float64_form_with_its_gradient(rng, half_pixel):
    masks = torch.stack([disc(24, 13, 11, 6), disc(24, 4, 20, 3.2), disc(24, 12, 12, 30)])
    vertices = torch.rand(3, 50, 3, generator=rng) * 1.6 - 0.8
    ours = vertices.clone().requires_grad_()
    value = chamfer_mask(estimate(ours), views(masks), half_pixel=half_pixel)
    (gradient,) = torch.autograd.grad(value.sum(), ours)
    dense = vertices.double().requires_grad_()
    expected = torch.stack(
        [dense_chamfer_mask(v[:, :2], m[0], 0.5 if half_pixel else 0.0) for v, m in zip(dense, masks, strict=True)]
    )
    (exact,) = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-6)


def test_chamfer_mask_passes_gradcheck(rng):
    mask = disc(8, 4, 3, 2.5)[None].double()
    vertices = (torch.rand(1, 7, 3, generator=rng, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: chamfer_mask(estimate(v), views(mask)), vertices)


def test_tiles_do_not_change_the_mask_loss(rng, monkeypatch):
    mask = disc(32, 15, 17, 9)[None]
    vertices = torch.rand(1, 40, 3, generator=rng) - 0.5
    whole = chamfer_mask(estimate(vertices), views(mask))
    monkeypatch.setattr(points, "PAIRS_IN_CACHE", 333)
    assert torch.equal(chamfer_mask(estimate(vertices), views(mask)), whole)


def test_an_empty_mask_is_refused_by_name():
    masks = torch.stack([disc(8, 4, 4, 2), torch.zeros(1, 8, 8)])
    vertices = torch.zeros(2, 3, 3)
    for term, guess in ((chamfer_mask, estimate(vertices)), (chamfer_texture, estimate(vertices, mask=masks))):
        with pytest.raises(ValueError, match=r"\[41\]"):
            term(guess, views(masks))


# ---- Chamfer texture -------------------------------------------------------------------------------------------------


def published_points(dtype: torch.dtype) -> tuple[ColoredPoints, ColoredPoints]:
    i, j = torch.arange(6, dtype=dtype)[:, None], torch.arange(5, dtype=dtype)[:, None]
    c = torch.arange(3, dtype=dtype)
    source = torch.stack([torch.linspace(-0.5, 0.5, 6), torch.linspace(0.3, -0.4, 6)], dim=1).to(dtype)
    target = torch.stack([torch.linspace(0.6, -0.6, 5), torch.linspace(-0.2, 0.5, 5)], dim=1).to(dtype)
    return (
        ColoredPoints((0.7 * i + c).sin()[None], source[None], torch.ones(1, 6, dtype=torch.bool)),
        ColoredPoints((0.9 * j + c).cos()[None], target[None], torch.ones(1, 5, dtype=torch.bool)),
    )


def test_pairwise_distances_are_those_of_the_specification():
    source, target = published_points(torch.float32)
    appearance = points.ExactDistances(source.appearance[0], target.appearance[0])(slice(1))[0]
    distance = points.ExactDistances(source.position[0], target.position[0])(slice(1))[0]
    torch.testing.assert_close(
        appearance, torch.tensor([2.847505, 5.278427, 6.124084, 4.521502, 1.731458]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(distance, torch.tensor([1.46, 0.745625, 0.2725, 0.040625, 0.05]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "exponent, gain, slack, floor, forth, back",
    [
        (1, 1, 0.16, 1, 1.9746373, 2.1204854),
        (2, 1, 0.16, 1, 2.5260131, 2.6564053),
        (1, 2, 0.16, 1, 2.2184865, 2.4733188),
        (1, 1, 0.0, 1, 2.0882011, 2.2399660),
        (1, 1, 0.16, 0, 0.6874207, 0.7306204),
    ],
)
def test_matches_are_those_of_the_specification(exponent, gain, slack, floor, forth, back):
    source, target = published_points(torch.float32)
    locality = Locality(slack, float(gain), float(exponent), float(floor))
    torch.testing.assert_close(match(source, target, locality), torch.tensor([forth]), rtol=0, atol=1e-6)
    torch.testing.assert_close(match(target, source, locality), torch.tensor([back]), rtol=0, atol=1e-6)


def test_distances_as_a_matrix_product_are_those_of_the_differences(rng):
    first, second = torch.randn(9, 40, generator=rng), torch.randn(7, 40, generator=rng)
    exact = torch.cdist(first.double(), second.double()).square()
    torch.testing.assert_close(points.Distances(first, second)(slice(2, 6)).double(), exact[2:6], rtol=1e-5, atol=1e-5)


def test_exact_distances_of_any_rows_are_those_of_the_differences(rng):
    first, second = torch.randn(9, 2, generator=rng), torch.randn(7, 2, generator=rng)
    exact = (first[:, None] - second).square().sum(dim=2)
    distances = points.ExactDistances(first, second)
    for rows in (slice(2, 4), slice(0, 9), slice(8, 9)):  # more rows and fewer than before
        torch.testing.assert_close(distances(rows), exact[rows], rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [1, 63, 64, 127, 128, 129, 300])
def test_the_first_of_the_least_values_is_found(rng, columns):
    values = torch.randint(0, 40, (50, columns), generator=rng).float()
    expected = [row.index(min(row)) for row in values.tolist()]
    assert points.first_least(values).tolist() == expected


@pytest.mark.parametrize("back", [0.0, 0.5])
@pytest.mark.parametrize("exponent", [1.0, 1.7])
def test_chamfer_texture_equals_the_dense_float64_form_with_its_gradient(rng, back, exponent):
    size = 20
    theirs = torch.stack([disc(size, 9, 9, 6), disc(size, 14, 5, 4)])
    ours = torch.stack([disc(size, 11, 8, 5), disc(size, 2, 16, 3)])
    photo = torch.rand(2, 3, size, size, generator=rng) * 2 - 1
    render = (torch.rand(2, 3, size, size, generator=rng) * 2 - 1) * ours
    leaf = render.clone().requires_grad_()
    value = chamfer_texture(
        estimate(rgb=leaf, mask=ours), views(theirs, photo), back=back, exponent=exponent, slack=0.05
    )
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    dense = render.double().requires_grad_()
    expected = []
    for b in range(2):
        p, q = pixel_positions(ours[b, 0]), pixel_positions(theirs[b, 0])
        index = (p + 1) * size / 2 * ((size - 1) / size)  # where the authors read: index c (W - 1) / W
        low = index.floor().long()
        part = index - low
        a = 0
        for dy in (0, 1):
            for dx in (0, 1):
                weight = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
                rows, columns = (low[:, 1] + dy).clamp(max=size - 1), (low[:, 0] + dx).clamp(max=size - 1)
                a = a + dense[b][:, rows, columns].T * weight[:, None]
        pixel = ((q + 1) * size / 2).round().long()
        colors = photo[b][:, pixel[:, 1], pixel[:, 0]].T
        cost = dense_cost(a, p, colors, q, 1.0, 0.05, exponent, 1.0)
        expected.append(cost.min(dim=1).values.mean() + back * cost.min(dim=0).values.mean())
    expected = torch.stack(expected)
    (exact,) = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-6)


def test_chamfer_texture_passes_gradcheck(rng):
    mask = disc(6, 3, 2, 1.5)[None].double()
    photo = torch.rand(1, 3, 6, 6, generator=rng, dtype=torch.float64) * 2 - 1
    leaf = (torch.rand(1, 3, 6, 6, generator=rng, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rgb: chamfer_texture(estimate(rgb=rgb, mask=mask), views(mask, photo), back=1.0), leaf
    )


def test_equal_pictures_cost_the_floor_and_a_shift_within_the_slack_is_free():
    size = 64
    color = torch.tensor([0.3, -0.2, 0.8])[None, :, None, None]
    here, near, far = (disc(size, c, 32, 8)[None] for c in (20, 24, 58))
    target = views(here, color * here)

    def loss(mask: Tensor) -> float:
        return chamfer_texture(estimate(rgb=color * mask, mask=mask), target, appearance=Colors(resampled=False)).item()

    assert loss(here) == pytest.approx(1.0, abs=1e-6)
    assert loss(near) == pytest.approx(1.0, abs=1e-6)
    assert loss(far) > 1.1


def test_a_rendering_without_foreground_is_the_worst_match_and_has_no_gradient(rng):
    masks = torch.stack([disc(16, 8, 8, 4), torch.zeros(1, 16, 16)])
    target = views(disc(16, 8, 8, 4).expand(2, 1, 16, 16), torch.rand(2, 3, 16, 16, generator=rng))
    rgb = torch.rand(2, 3, 16, 16, generator=rng).requires_grad_()
    for back in (0.0, 1.0):
        value = chamfer_texture(estimate(rgb=rgb, mask=masks), target, back=back)
        (gradient,) = torch.autograd.grad(value.sum(), rgb)
        assert value[1].item() == pytest.approx((1 + back) * (0.8976 + 8) * 13, rel=1e-5)
        assert value[1] > value[0] > 1
        assert bool(gradient.isfinite().all())
        assert not gradient[1].any()
        assert gradient[0].any()
    nowhere = chamfer_texture(estimate(rgb=rgb, mask=0 * masks), target)
    assert bool(nowhere.isfinite().all())


def test_a_batch_gives_what_each_image_gives_alone(rng):
    ours = torch.stack([disc(24, 11, 8, 5), disc(24, 2, 16, 3), disc(24, 12, 12, 20)])
    theirs = torch.stack([disc(24, 9, 9, 8), disc(24, 14, 5, 4), disc(24, 12, 12, 9)])
    rgb, photo = (torch.rand(3, 3, 24, 24, generator=rng) for _ in range(2))
    vertices = torch.rand(3, 30, 3, generator=rng) - 0.5
    guess, target = estimate(vertices, rgb * ours, ours), views(theirs, photo)
    for term in (chamfer_mask, lambda e, t: chamfer_texture(e, t, max_points=50)):
        together = term(guess, target)
        for b in range(3):
            alone = term(estimate(vertices[b : b + 1], (rgb * ours)[b : b + 1], ours[b : b + 1]), target[b])
            torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-6, atol=1e-7)


def test_a_slack_that_makes_the_weight_negative_is_refused():
    with pytest.raises(ValueError, match="slack"):
        Locality(slack=0.7)
    same = torch.zeros(())
    assert math.isclose(float(Locality().cost(same, torch.tensor(0.32**2))), 1.0, rel_tol=1e-6)
    assert Locality().cost(same, torch.tensor(0.33**2)) > 1

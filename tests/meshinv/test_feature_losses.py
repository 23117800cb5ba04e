"""The texture losses on features of a network, against dense float64 forms written here."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.features.vgg import VGG19
from invkit.features.weights import RANDOM
from invkit.types import Estimate, Views
from meshinv.losses import points
from meshinv.losses.appearance import Features
from meshinv.losses.chamfer_texture import ChamferTexture, Locality, match
from meshinv.losses.contextual_texture import ContextualTexture
from meshinv.losses.points import ColoredPoints
from tests.invkit.losses.test_contextual import by_definition
from tests.meshinv.test_chamfer import dense_cost, disc, estimate, views

SIZE, GRID = 48, 12
Picture = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def network() -> VGG19:
    """Features of a quarter of the size, with weights that are no trained ones."""
    return VGG19(("relu3_1",), weights=RANDOM)


def pictures(rng: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Picture, Picture]:
    """(color, mask) of renderings and of photographs; the sets of points are of different sizes."""
    ours = torch.stack([disc(SIZE, 22, 20, 12), disc(SIZE, 12, 30, 8), disc(SIZE, 24, 24, 40)]).to(dtype)
    theirs = torch.stack([disc(SIZE, 26, 24, 14), disc(SIZE, 34, 14, 9), disc(SIZE, 20, 20, 7)]).to(dtype)
    # Noise: neighbors that see the same would be equally good partners, and rounding would choose.
    rgb, photo = (torch.randn(3, 3, SIZE, SIZE, generator=rng, dtype=dtype).tanh() for _ in range(2))
    return (rgb * ours, ours), (photo, theirs)


def dense_points(network: VGG19, rgb: Tensor, mask: Tensor, *, resampled: bool) -> tuple[Tensor, Tensor]:
    """Unit features and positions of one picture [3, H, W], by plain loops."""
    (features,) = network(rgb[None], mask[None])
    cells = [
        (row, column)
        for row in range(GRID)
        for column in range(GRID)
        if float(mask[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].sum()) >= 8
    ]
    scale = (GRID - 1) / GRID if resampled else 1.0
    read = []
    for row, column in cells:
        y, x = row * scale, column * scale
        top, left = int(y), int(x)
        value = 0
        for i in (top, min(top + 1, GRID - 1)):
            for j in (left, min(left + 1, GRID - 1)):
                weight = (y - top if i > top else 1 - (y - top)) * (x - left if j > left else 1 - (x - left))
                value = value + weight * features[0, :, i, j]
                if left + 1 > GRID - 1:
                    break
            if top + 1 > GRID - 1:
                break
        read.append(value / value.norm())
    position = torch.tensor([[2 * column / GRID - 1, 2 * row / GRID - 1] for row, column in cells])
    return torch.stack(read), position


def value_of(term: ChamferTexture | ContextualTexture, guess: Estimate, target: Views) -> Tensor:
    return term(guess, term.target(target))


@pytest.mark.parametrize("resampled", [True, False])
def test_feature_level_equals_the_dense_float64_form_with_its_gradient(rng, network, resampled):
    (rgb, ours), (photo, theirs) = pictures(rng)
    leaf = rgb.clone().requires_grad_()
    term = ChamferTexture(Features(network, resampled=resampled), slack=0.1, forth=0.5, back=0.5)
    value = value_of(term, estimate(rgb=leaf, mask=ours), views(theirs, photo))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    network.double()
    exact = rgb.double().requires_grad_()
    expected = []
    for b in range(3):
        a, p = dense_points(network, exact[b], ours[b].double(), resampled=resampled)
        with torch.no_grad():
            c, q = dense_points(network, photo[b].double(), theirs[b].double(), resampled=resampled)
        cost = dense_cost(a, p, c, q, 1.0, 0.1, 1.0, 1.0)
        expected.append((cost.min(dim=1).values.mean() + cost.min(dim=0).values.mean()) / 2)
    expected = torch.stack(expected)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))
    assert float(expected.detach().min()) > 1.01
    assert not gradient[(1 - ours).expand_as(gradient).bool()].any(), "only the object's colors matter"


def test_feature_level_passes_gradcheck(rng):
    term = ChamferTexture(Features(VGG19(("conv1_1",), weights=RANDOM)), forth=0.5, back=0.5)
    mask = disc(4, 2, 2, 1)[None].double()
    photo = torch.rand(1, 3, 4, 4, generator=rng, dtype=torch.float64) * 2 - 1
    leaf = (torch.rand(1, 3, 4, 4, generator=rng, dtype=torch.float64) * 2 - 1).requires_grad_()
    target = term.target(views(mask, photo))
    assert torch.autograd.gradcheck(lambda rgb: term(estimate(rgb=rgb, mask=mask), target), leaf)


def test_contextual_texture_matches_the_same_points_by_the_other_rule(rng, network):
    (rgb, ours), (photo, theirs) = pictures(rng)
    value = value_of(ContextualTexture(Features(network)), estimate(rgb=rgb, mask=ours), views(theirs, photo))
    for b in range(3):
        with torch.no_grad():
            source, _ = dense_points(network, rgb[b], ours[b], resampled=True)
            target, _ = dense_points(network, photo[b], theirs[b], resampled=True)
        assert value[b].item() == pytest.approx(by_definition(source, target), rel=1e-3)


@pytest.mark.parametrize("kind", [ChamferTexture, ContextualTexture])
def test_a_batch_gives_what_each_image_gives_alone(rng, network, kind):
    (rgb, ours), (photo, theirs) = pictures(rng)
    term, guess, target = kind(Features(network)), estimate(rgb=rgb, mask=ours), views(theirs, photo)
    together, prepared = term(guess, term.target(target)), term.target(target)
    for b in range(3):
        alone = estimate(rgb=rgb[b : b + 1], mask=ours[b : b + 1])
        torch.testing.assert_close(value_of(term, alone, target[b]), together[b : b + 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(term(alone, prepared[b]), together[b : b + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, worst", [(ChamferTexture, (0.8976 + 8) * 5), (ContextualTexture, None)])
def test_a_rendering_that_covers_no_cell_is_the_worst_match_and_has_no_gradient(rng, network, kind, worst):
    (rgb, ours), (photo, theirs) = pictures(rng)
    ours = ours.clone()
    ours[0] = 0
    ours[1] = 0
    ours[1, :, 10, 10] = 1  # a pixel is seen, and yet no cell is half covered
    leaf = rgb.requires_grad_()
    term, target = kind(Features(network)), views(theirs, photo)
    prepared = term.target(target)
    value = term(estimate(rgb=leaf, mask=ours), prepared)
    if worst is None:
        expected = prepared.points.valid.sum(dim=1).float().log()[:2]
    else:
        expected = torch.full((2,), worst)
    torch.testing.assert_close(value[:2], expected, rtol=1e-5, atol=0)
    assert value[2] < value[:2].min() or kind is ContextualTexture
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert bool(gradient.isfinite().all())
    assert not gradient[:2].any()
    assert gradient[2].any()
    nowhere = term(estimate(rgb=leaf, mask=0 * ours), prepared)
    assert bool(nowhere.isfinite().all())


def test_a_mask_that_covers_no_cell_is_refused_by_name(rng, network):
    _, (photo, theirs) = pictures(rng)
    thin = theirs.clone()
    thin[1] = 0
    thin[1, :, :, 20] = 1
    for term in (ChamferTexture(Features(network)), ContextualTexture(Features(network))):
        with pytest.raises(ValueError, match=r"\[41\].*12 x 12 features.*50%"):
            term.target(views(thin, photo))
    ChamferTexture(Features(network, subpool_threshold=0.25)).target(views(thin, photo))


def test_points_can_be_drawn_and_lie_at_half_pixels(rng, network):
    (rgb, ours), (photo, theirs) = pictures(rng)
    guess, target = estimate(rgb=rgb, mask=ours), views(theirs, photo)
    few = Features(network).photographed(target, 10)
    assert few.counts() == [10, 10, 10]
    corner, middle = (
        Features(network, resampled=False, half_pixel=half).photographed(target, None) for half in (False, True)
    )
    torch.testing.assert_close(
        (middle.position - corner.position)[corner.valid].mean(dim=0), torch.full((2,), 1 / GRID)
    )
    exact = ChamferTexture(Features(network, resampled=False))
    moved = ChamferTexture(Features(network, resampled=False, half_pixel=True))
    # Only differences of positions count, up to their rounding.
    torch.testing.assert_close(value_of(exact, guess, target), value_of(moved, guess, target), rtol=1e-5, atol=0)


def test_mixed_precision_is_near(rng, network):
    (rgb, ours), (photo, theirs) = pictures(rng)
    leaf = rgb.requires_grad_()
    guess, target = estimate(rgb=leaf, mask=ours), views(theirs, photo)
    full, half = (value_of(ChamferTexture(Features(network, bfloat16=b)), guess, target) for b in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=1e-2, atol=0)
    one, other = (torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0].flatten() for value in (full, half))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_a_network_of_several_layers_is_refused():
    with pytest.raises(ValueError, match="relu1_1, relu1_2"):
        Features(VGG19(("relu1_1", "relu1_2"), weights=RANDOM))


def test_directions_without_weight_are_refused():
    for forth, back in ((0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(ValueError, match="forth and back"):
            ChamferTexture(forth=forth, back=back)


def random_points(rng: torch.Generator, count: int, channels: int = 256) -> ColoredPoints:
    appearance = torch.nn.functional.normalize(torch.rand(1, count, channels, generator=rng), dim=2)
    position = torch.rand(1, count, 2, generator=rng) * 2 - 1
    return ColoredPoints(appearance, position, torch.ones(1, count, dtype=torch.bool))


def test_many_channels_match_within_rounding_of_float64(rng):
    source, target = random_points(rng, 200), random_points(rng, 150)
    cost = dense_cost(
        source.appearance[0], source.position[0], target.appearance[0], target.position[0], 1.0, 0.16, 1.0, 1.0
    )
    value = match(source, target, Locality())
    assert value.item() == pytest.approx(float(cost.min(dim=1).values.mean()), rel=1e-5)


@pytest.mark.parametrize("channels", [3, 256])
def test_no_table_of_all_pairs_is_ever_held(rng, monkeypatch, channels):
    source, target = random_points(rng, 8192, channels), random_points(rng, 8192, channels)
    tiles, find = [], points.first_least
    monkeypatch.setattr(points, "first_least", lambda values: tiles.append(values.numel()) or find(values[:, :64]))
    leaf = source.appearance.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        match(replace(source, appearance=leaf), target, Locality())
    assert sum(tiles) == 8192**2
    assert max(tiles) * 4 <= 16e6
    assert max(kept) <= 8192 * 256

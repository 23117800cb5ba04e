"""FID and KID against pytorch-fid, SciPy's matrix root, closed forms, plain loops and published numbers."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from invkit.geometry.camera import Camera
from invkit.metrics.fid import Fid, frechet_distance, gaussian_of
from invkit.metrics.gaussian import Gaussian, Moments
from invkit.metrics.kid import Kid, features_of, kid, squared_mmd
from invkit.types import Estimate, Rendering, Views


class Pooled(nn.Module):
    """Eight numbers of a picture: the four corner quarters' means of two channels."""

    name, dim = "pooled", 8

    def forward(self, image):
        return nn.functional.adaptive_avg_pool2d(image[:, :2], 2).flatten(1)


def statistics(x):
    x = torch.as_tensor(x, dtype=torch.float64)
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments.gaussian()


def photographs(count, rng, shift=0.0):
    camera = Camera(
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4), torch.ones(count), torch.zeros(count, 2), torch.zeros(count)
    )
    rgb = (torch.rand(count, 3, 8, 8, generator=rng) * 2 - 1 + shift).clamp(-1, 1)
    mask = torch.rand(count, 1, 8, 8, generator=rng).round()
    return Views(rgb, mask, camera, None, torch.arange(count))


def renderings(views, rng):
    """Pictures of what the views show, and empty estimates to go with them."""
    rgb = (views.rgb + 0.3 * torch.randn(views.rgb.shape, generator=rng)).clamp(-1, 1)
    image = Rendering(rgb * views.mask, views.mask)
    return Estimate(torch.zeros(len(views), 1), views.camera, None, image), image


def measure(metric, views, images, chosen):
    estimate, image = images
    part = Estimate(estimate.latent[chosen], estimate.camera[chosen], None, image[chosen])
    metric.update(part, image[chosen], views[chosen])


# ---- Frechet distance --------------------------------------------------------------------------------------------


def test_the_distance_has_the_published_values():
    i, j = np.arange(12)[:, None], np.arange(3)[None]
    first = statistics(np.sin(0.9 * i + 1.3 * j) + 0.1 * i * (j == 1))
    second = statistics(np.cos(0.7 * i * (j + 1)) + 0.5 * j)
    np.testing.assert_allclose(first.mean, [0.143891, 0.554912, -0.141263], atol=1e-6)
    assert float(first.covariance.trace()) == pytest.approx(1.4889290, abs=1e-6)
    assert frechet_distance(first, second) == pytest.approx(1.6933632, abs=1e-6)

    a = np.random.RandomState(0).standard_normal((50, 8))
    b = 1.1 * a + 0.2 + 0.3 * np.random.RandomState(1).standard_normal((50, 8))
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(0.595474, abs=1e-6)


@pytest.fixture
def well_conditioned():
    draw = np.random.default_rng(0)
    mix = draw.standard_normal((24, 24)) / 5 + np.eye(24)
    return draw.standard_normal((400, 24)), draw.standard_normal((300, 24)) @ mix + 0.3


def test_the_distance_is_that_of_scipys_matrix_root(well_conditioned):
    first, second = (np.cov(x, rowvar=False) for x in well_conditioned)
    means = [x.mean(axis=0) for x in well_conditioned]
    root = linalg.sqrtm(first @ second)
    assert np.abs(np.imag(root)).max() < 1e-8
    expected = np.square(means[0] - means[1]).sum() + np.trace(first + second - 2 * np.real(root))
    assert frechet_distance(*map(statistics, well_conditioned)) == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_that_of_pytorch_fid(well_conditioned, monkeypatch):
    from pytorch_fid import fid_score

    root = linalg.sqrtm
    # SciPy dropped the argument `disp`, with which the root came in a pair with an error estimate.
    monkeypatch.setattr(
        fid_score.linalg, "sqrtm", lambda matrix, disp=True: root(matrix) if disp else (root(matrix), 0)
    )
    both = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in well_conditioned]
    expected = fid_score.calculate_frechet_distance(*both[0], *both[1])
    assert frechet_distance(*map(statistics, well_conditioned)) == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_dimensions_are_no_trouble(rng):
    # Two point clouds in different planes of 64 dimensions: with m = 0 the distance of diagonal covariances is known.
    x = torch.zeros(5, 64, dtype=torch.float64)
    y = torch.zeros(5, 64, dtype=torch.float64)
    x[:, :4], y[:, 2:6] = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(64, 64, generator=rng, dtype=torch.float64)).Q
    small = frechet_distance(statistics(x[:, :6]), statistics(y[:, :6]))
    assert frechet_distance(statistics(x @ turn), statistics(y @ turn)) == pytest.approx(small, rel=1e-9)
    assert frechet_distance(statistics(x @ turn), statistics(x @ turn)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(statistics(x @ turn), statistics(x @ turn + 1)) == pytest.approx(64, rel=1e-9)


def test_the_closed_form_of_diagonal_covariances(rng):
    first, second = (torch.rand(9, generator=rng, dtype=torch.float64) for _ in range(2))
    first[:3] = 0
    second[2:4] = 0
    zero = torch.zeros(9, dtype=torch.float64)
    expected = float((first.sqrt() - second.sqrt()).square().sum())
    distance = frechet_distance(Gaussian(zero, first.diag(), 9), Gaussian(zero, second.diag(), 9))
    assert distance == pytest.approx(expected, rel=1e-12)
    point = Gaussian(zero, torch.zeros(9, 9, dtype=torch.float64), 9)
    assert frechet_distance(point, Gaussian(zero + 2, second.diag(), 9)) == pytest.approx(36 + float(second.sum()))


def test_a_distance_of_unequal_or_broken_statistics_is_an_error():
    good = Gaussian(torch.zeros(3), torch.eye(3), 5)
    with pytest.raises(ValueError, match="3 and 2"):
        frechet_distance(good, Gaussian(torch.zeros(2), torch.eye(2), 5))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(good, Gaussian(torch.zeros(3), torch.eye(3) * math.nan, 5))


# ---- statistics --------------------------------------------------------------------------------------------------


def test_moments_are_numpys_mean_and_covariance_however_the_images_are_split(rng):
    x = torch.randn(40, 6, generator=rng, dtype=torch.float64) + 5
    parts = [Moments(6) for _ in range(3)]
    for i, batch in enumerate(x.split(7)):
        parts[i % 2].add(batch)
    whole = Moments(6)
    whole.merge([part.state() for part in parts])
    result = whole.gaussian()
    assert result.count == 40
    np.testing.assert_allclose(result.mean, x.mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        parts[2].gaussian()


def test_a_statistics_file_holds_a_lower_triangle(tmp_path, rng):
    gaussian = statistics(torch.randn(30, 5, generator=rng))
    full = gaussian.covariance.numpy()
    np.savez(
        tmp_path / "stats.npz",
        stats_m=gaussian.mean.numpy().astype(np.float32),
        stats_s=np.tril(full).astype(np.float32),
        num_images=30,
        resolution=299,
    )
    read = Gaussian.read(tmp_path / "stats.npz")
    assert (read.count, read.features) == (30, None)
    np.testing.assert_allclose(read.covariance, full, rtol=1e-6)
    np.testing.assert_allclose(read.mean, gaussian.mean, rtol=1e-6)

    Gaussian(gaussian.mean, gaussian.covariance, 30, "pooled").write(tmp_path / "own" / "stats.npz")
    again = Gaussian.read(tmp_path / "own" / "stats.npz")
    assert (again.count, again.features) == (30, "pooled")
    assert torch.equal(again.covariance, read.covariance)
    with np.load(tmp_path / "own" / "stats.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["stats_s"], np.tril(full).astype(np.float32))
        assert int(stored["resolution"]) == 299
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["stats.npz"]


def test_a_missing_or_damaged_statistics_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Gaussian.read(tmp_path / "absent.npz")
    path = tmp_path / "stats.npz"
    np.savez(path, stats_m=np.zeros(3), stats_s=np.eye(3))
    with pytest.raises(ValueError, match=r"stats\.npz.*num_images"):
        Gaussian.read(path)
    np.savez(path, stats_m=np.zeros(3), stats_s=np.eye(4), num_images=5)
    with pytest.raises(ValueError, match=r"stats\.npz.*do not fit"):
        Gaussian.read(path)
    np.savez(path, stats_m=np.full(3, np.nan), stats_s=np.eye(3), num_images=5)
    with pytest.raises(ValueError, match=r"stats\.npz.*not finite"):
        Gaussian.read(path)
    np.savez(path, stats_m=np.array([{}], dtype=object), stats_s=np.eye(3), num_images=5)
    with pytest.raises(ValueError, match=r"stats\.npz"):
        Gaussian.read(path)
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"stats\.npz"):
            Gaussian.read(path)


# ---- running FID -------------------------------------------------------------------------------------------------


def test_running_fid_measures_the_distance_of_what_it_saw_and_merges(rng):
    views = photographs(60, rng)
    images = renderings(views, rng)
    features = Pooled()
    metric = Fid(features, background=-1.0)
    measure(metric, views, images, list(range(60)))
    black = [views.rgb * views.mask - (1 - views.mask), images[1].rgb * views.mask - (1 - views.mask)]
    expected = frechet_distance(*(statistics(features(rgb)) for rgb in black))
    with pytest.warns(UserWarning, match="60 and 60 images: below 2048"):
        whole = metric.compute()
    assert metric.name == "fid@pooled"
    assert whole == pytest.approx(expected, rel=1e-9)

    ranks = [Fid(features, background=-1.0) for _ in range(3)]
    for i in range(0, 60, 6):
        measure(ranks[(i // 6) % 2], views, images, list(range(i, i + 6)))
    merged = Fid(features, background=-1.0)
    merged.merge([rank.state() for rank in ranks])
    with pytest.warns(UserWarning, match="below 2048"):
        assert merged.compute() == pytest.approx(whole, rel=1e-9)


def test_fid_against_a_reference_leaves_the_targets_alone(rng):
    views, others = photographs(30, rng), photographs(50, rng, shift=0.4)
    images = renderings(views, rng)
    features = Pooled()
    reference = gaussian_of(features, [others[slice(0, 20)], others[slice(20, 50)]])
    assert (reference.count, reference.features) == (50, "pooled")
    np.testing.assert_allclose(reference.covariance, np.cov(features(others.rgb).numpy(), rowvar=False), atol=1e-7)
    metric = Fid(features, reference=reference)
    measure(metric, views, images, list(range(30)))
    with pytest.warns(UserWarning, match="30 and 50"):
        assert metric.compute() == pytest.approx(
            frechet_distance(statistics(features(images[1].rgb)), reference), rel=1e-9
        )
    assert set(metric.state()) == {"fake.count", "fake.total", "fake.outer"}


def test_a_reference_of_another_network_is_refused():
    zero, one = torch.zeros(8), torch.eye(8)
    with pytest.raises(ValueError, match="measured with inception_tv"):
        Fid(Pooled(), reference=Gaussian(zero, one, 5000, "inception_tv"))
    Fid(Pooled(), reference=Gaussian(zero, one, 5000, None))


def test_enough_images_do_not_warn(rng):
    metric = Fid(Pooled(), reference=Gaussian(torch.zeros(8), torch.eye(8), 2048))
    views = photographs(2048, rng)
    measure(metric, views, renderings(views, rng), slice(None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute() > 0


# ---- KID ---------------------------------------------------------------------------------------------------------


def mmd_by_loops(x, y):
    dim = len(x[0])

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / dim + 1) ** 3

    def within(side):
        pairs = [(i, j) for i in range(len(side)) for j in range(len(side)) if i != j]
        return sum(kernel(side[i], side[j]) for i, j in pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_the_discrepancy_is_that_of_loops_over_pairs(rng, monkeypatch):
    x, y = (torch.randn(n, 5, generator=rng, dtype=torch.float64) + 0.1 * n for n in (6, 9))
    expected = mmd_by_loops(x.tolist(), y.tolist())
    assert float(squared_mmd(x, y)) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("invkit.metrics.kid._ROWS", 4)
    assert float(squared_mmd(x, y)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        squared_mmd(x[:1], y)


def test_the_discrepancy_of_equal_distributions_is_zero_on_average(rng):
    estimates = torch.stack([squared_mmd(*torch.randn(2, 20, 4, generator=rng)) for _ in range(400)])
    assert abs(float(estimates.mean())) < 4 * float(estimates.std()) / 20
    assert float(estimates.min()) < 0


def test_subsets_are_drawn_without_replacement_and_average_to_the_whole(rng):
    x, y = torch.randn(30, 4, generator=rng), torch.randn(40, 4, generator=rng) + 0.5
    assert kid(x, x.clone(), subsets=3).shape == (3,)
    # A subset as large as the side is the side.
    torch.testing.assert_close(kid(x, y[:30], subsets=2), squared_mmd(x, y[:30]).expand(2))
    estimates = kid(x, y, subsets=600, subset_size=12, seed=3)
    assert float(estimates.mean()) == pytest.approx(float(squared_mmd(x, y)), abs=4 * float(estimates.std()) / 600**0.5)
    assert torch.equal(estimates[:5], kid(x, y, subsets=5, subset_size=12, seed=3))
    assert not torch.equal(estimates[:5], kid(x, y, subsets=5, subset_size=12, seed=4))


@pytest.mark.parametrize("subsets", [None, 10])
def test_running_kid_does_not_depend_on_how_images_are_spread(subsets, rng):
    views = photographs(24, rng)
    images = renderings(views, rng)
    options = {"subsets": subsets, "subset_size": 8}
    whole = Kid(Pooled(), **options)
    measure(whole, views, images, list(range(24)))
    ranks = [Kid(Pooled(), **options) for _ in range(3)]
    for rank in range(2):
        measure(ranks[rank], views, images, list(range(rank, 24, 2)))
    merged = Kid(Pooled(), **options)
    merged.merge([rank.state() for rank in ranks])
    assert merged.name == "kid@pooled"
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-9)
    if subsets is None:
        both = Pooled()(images[1].rgb), Pooled()(views.rgb)
        assert whole.compute() == pytest.approx(float(squared_mmd(*both)), rel=1e-9)


def test_kid_against_a_reference(rng):
    views, others = photographs(12, rng), photographs(20, rng)
    images = renderings(views, rng)
    reference = features_of(Pooled(), [others[slice(0, 5)], others[slice(5, 20)]], background=1.0)
    metric = Kid(Pooled(), reference=reference, background=1.0, subsets=None)
    measure(metric, views, images, list(range(12)))
    white = [
        views_rgb * mask + 1 - mask for views_rgb, mask in ((images[1].rgb, views.mask), (others.rgb, others.mask))
    ]
    assert metric.compute() == pytest.approx(float(squared_mmd(*map(Pooled(), white))), rel=1e-6)

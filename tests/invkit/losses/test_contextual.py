"""The contextual similarity against its definition, spelled out pair by pair in float64."""

import math

import pytest
import torch
from torch import Tensor

from invkit.losses import contextual as module
from invkit.losses.contextual import contextual


def by_definition(source: Tensor, target: Tensor, bandwidth: float = 0.5) -> float:
    mean = [float(column.mean()) for column in target.double().T]
    source, target = (
        [[float(value) - m for value, m in zip(row, mean, strict=True)] for row in points]
        for points in (source.double(), target.double())
    )

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    distance = [[1 - cosine(x, y) for y in target] for x in source]
    weight = [[math.exp((1 - d / (min(row) + 1e-5)) / bandwidth) for d in row] for row in distance]
    similarity = [[w / sum(row) for w in row] for row in weight]
    return -math.log(sum(max(row[j] for row in similarity) for j in range(len(target))) / len(target))


@pytest.mark.parametrize("sources, targets, bandwidth", [(7, 5, 0.5), (3, 9, 0.2), (1, 4, 0.5), (6, 1, 0.5)])
def test_it_is_its_definition(rng, sources, targets, bandwidth):
    source, target = torch.randn(sources, 6, generator=rng) + 0.7, torch.randn(targets, 6, generator=rng)
    if targets == 1:  # a single target lies at its own mean, where there are no angles
        assert contextual(source, target).item() == pytest.approx(0, abs=1e-6)
    else:
        expected = by_definition(source, target, bandwidth)
        assert contextual(source, target, bandwidth=bandwidth).item() == pytest.approx(expected, abs=1e-5)


def test_it_lies_between_nothing_and_the_logarithm_of_the_number_of_targets(rng):
    target = torch.randn(40, 16, generator=rng)
    assert 0 <= contextual(target[torch.randperm(40, generator=rng)], target).item() < 1e-3
    # One source has one share of similarity to give away.
    assert contextual(torch.randn(1, 16, generator=rng), target).item() == pytest.approx(math.log(40), abs=1e-5)


def test_its_gradient(rng):
    source = torch.randn(6, 4, generator=rng, dtype=torch.float64).requires_grad_()
    target = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda points: contextual(points, target), source)


def test_tiles_change_nothing_and_bound_what_is_kept(rng, monkeypatch):
    source, target = torch.randn(300, 8, generator=rng).requires_grad_(), torch.randn(200, 8, generator=rng)
    whole = contextual(source, target)
    (gradient,) = torch.autograd.grad(whole, source)
    monkeypatch.setattr(module, "PAIRS", 200 * 7)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        tiled = contextual(source, target)
    torch.testing.assert_close(tiled, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(tiled, source)[0], gradient, rtol=1e-4, atol=1e-7)
    assert max(kept) <= 300 * 8, "no table of pairs waits for the backward pass"

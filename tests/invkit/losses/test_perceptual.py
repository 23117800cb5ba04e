"""The perceptual losses against their formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.features.lpips import LPIPS
from invkit.features.vgg import VGG19
from invkit.features.weights import RANDOM
from invkit.geometry.augment import Similarity
from invkit.geometry.camera import Camera
from invkit.losses.perceptual import LearnedPerceptual, Perceptual, WarpedPerceptual
from invkit.losses.pixel import picture_l1, picture_mse
from invkit.types import Estimate, Rendering, Views

LAYERS = ("relu1_2", "relu2_2")


def pair(rng: torch.Generator, dtype: torch.dtype = torch.float32, size: int = 24) -> tuple[Estimate, Views]:
    rendered, photographed = (torch.rand(3, 3, size, size, generator=rng, dtype=dtype) * 2 - 1 for _ in range(2))
    ours, theirs = ((torch.rand(3, 1, size, size, generator=rng) > 0.4).to(dtype) for _ in range(2))
    pose = Camera.from_cmr(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]] * 3, dtype=dtype))
    image = Rendering(rendered, ours)
    return Estimate(torch.zeros(3, 1), pose, None, image), Views(photographed, theirs, pose, None, torch.arange(3))


def seen(network: VGG19, rgb: Tensor, mask: Tensor) -> list[Tensor]:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    signal = (rgb / 2 + 0.5 - mean[:, None, None]) / std[:, None, None] * mask
    convs = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    maps = []
    for number, conv in enumerate(convs):
        signal = torch.nn.functional.conv2d(signal, conv.weight, conv.bias, padding=1).relu()
        if number % 2:
            maps.append(signal)
            signal = torch.nn.functional.max_pool2d(signal, 2)
    return maps


def test_perceptual_is_the_sum_of_the_layers_mean_squares(rng):
    network = VGG19(LAYERS, weights=RANDOM)
    estimate, views = pair(rng)
    term = Perceptual(network)
    target = term.target(views)
    value = term(estimate, target)
    expected = torch.zeros(3)
    image = estimate.image
    for ours, theirs in zip(seen(network, image.rgb, image.mask), seen(network, views.rgb, views.mask), strict=True):
        expected += torch.stack([(a - b).square().mean() for a, b in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    same = term(Estimate(estimate.latent, views.camera, None, Rendering(views.rgb, views.mask)), target)
    torch.testing.assert_close(same, torch.zeros(3), rtol=0, atol=1e-9)
    for b in range(3):
        torch.testing.assert_close(term(estimate[b], target[b]), value[b : b + 1], rtol=1e-5, atol=1e-7)


def test_the_network_follows_the_photographs_and_the_gradient_is_right(rng):
    term = Perceptual(VGG19(("conv1_1",), weights=RANDOM))
    estimate, views = pair(rng, torch.float64, size=4)
    target = term.target(views)
    leaf = estimate.image.rgb.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rgb: term(Estimate(estimate.latent, views.camera, None, Rendering(rgb, estimate.image.mask)), target),
        leaf,
    )


def test_nothing_rendered_is_a_finite_difference(rng):
    estimate, views = pair(rng)
    nothing = Estimate(estimate.latent, views.camera, None, Rendering(0 * views.rgb, 0 * views.mask))
    term = Perceptual(VGG19(LAYERS, weights=RANDOM))
    value = term(nothing, term.target(views))
    assert bool(value.isfinite().all())
    assert bool((value > 0.01).all())


def test_learned_perceptual_is_lpips_of_the_objects_cut_out(rng):
    network = LPIPS("alex", weights=RANDOM)
    estimate, views = pair(rng, size=64)
    image = estimate.image
    expected = LPIPS("alex", weights=RANDOM)(image.rgb * image.mask, views.rgb * views.mask)
    assert float(expected.min()) > 0
    term = LearnedPerceptual(network)
    torch.testing.assert_close(term(estimate, term.target(views)), expected, rtol=1e-4, atol=1e-7)


# ---- Warped pictures -------------------------------------------------------------------------------------------------


def by_hand(image: Tensor, move: Similarity, fill: float) -> Tensor:
    """One warped picture, pixel by pixel; `image` [C, H, W] is continued by `fill`."""
    size, angle, zoom, shift = image.shape[-1], float(move.angle), float(move.zoom), move.shift[0].to(image)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    back = torch.tensor([[cos, sin], [-sin, cos]]).to(image)
    padded = torch.nn.functional.pad(image, (40, 40, 40, 40), value=fill)
    warped = torch.empty_like(image)
    for row in range(size):
        for column in range(size):
            place = torch.tensor([(2 * column + 1) / size - 1, (2 * row + 1) / size - 1], dtype=image.dtype)
            x, y = ((back @ (place - shift) + 1) * size / 2 - 0.5).tolist()
            left, top = math.floor(x), math.floor(y)
            corners = padded[:, top + 40 : top + 42, left + 40 : left + 42]
            along, down = torch.tensor([left + 1 - x, x - left]), torch.tensor([top + 1 - y, y - top])
            warped[:, row, column] = (corners * down.to(image)[:, None] * along.to(image)).sum(dim=(1, 2))
    return warped


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_warped_lpips_is_the_mean_over_the_warped_pairs(rng, background):
    network = LPIPS("squeeze", weights=RANDOM)
    estimate, views = pair(rng, torch.float64)
    term = WarpedPerceptual(network, warps=3, background=background, seed=7)
    target = term.target(views)
    value = term(replace(estimate, steps=4), target)
    moves = term.moves(views.index, 4)
    photographs = views.rgb * views.mask + background * (1 - views.mask)
    for b in range(3):
        ours, theirs = [estimate.image.rgb[b]], [photographs[b]]
        for move in range(3 * b, 3 * b + 3):
            ours.append(by_hand(estimate.image.rgb[b], moves[move], background))
            theirs.append(by_hand(photographs[b], moves[move], background))
        expected = network(torch.stack(ours), torch.stack(theirs)).mean()
        torch.testing.assert_close(value[b], expected, rtol=1e-6, atol=1e-9)


def test_without_warps_it_is_lpips(rng):
    network = LPIPS("squeeze", weights=RANDOM)
    estimate, views = pair(rng)
    term = WarpedPerceptual(network, warps=0)
    expected = network(estimate.image.rgb, views.rgb * views.mask)
    torch.testing.assert_close(term(estimate, term.target(views)), expected)


def test_warps_are_drawn_by_seed_image_and_step_alone(rng):
    term = WarpedPerceptual(LPIPS("squeeze", weights=RANDOM), warps=4)

    def angles(index: list[int], step: int, seed: int = 0) -> Tensor:
        term.seed = seed
        return term.moves(torch.tensor(index), step).angle.view(-1, 4)

    drawn = angles([5, 0, 12], 9)
    assert torch.equal(angles([12], 9)[0], drawn[2])
    others = [drawn[1], angles([5], 10)[0], angles([5], 9, seed=1)[0]]
    assert all(float((other - drawn[0]).abs().max()) > 0.1 for other in others)
    assert float(drawn.abs().max()) > 1, "whole turns"
    term.seed = 0
    estimate, views = pair(rng)
    views = replace(views, index=torch.tensor([5, 0, 12]))
    target, moved = term.target(views), replace(estimate, steps=9)
    value = term(moved, target)
    for b in range(3):
        torch.testing.assert_close(term(moved[b], target[b]), value[b : b + 1], rtol=1e-4, atol=1e-6)
    # Several hypotheses about one image meet the same warps.
    twice = term(moved[[0, 0, 1]], target[[0, 0, 1]])
    torch.testing.assert_close(twice[0], twice[1])


def test_a_plain_picture_stays_plain_under_every_warp(rng):
    network = LPIPS("squeeze", weights=RANDOM)
    _, views = pair(rng)
    white = replace(views, rgb=torch.ones_like(views.rgb))
    term = WarpedPerceptual(network, warps=5, background=1.0)
    same = Estimate(torch.zeros(3, 1), views.camera, None, Rendering(white.rgb, white.mask))
    torch.testing.assert_close(term(same, term.target(white)), torch.zeros(3), rtol=0, atol=1e-6)


def test_the_gradient_of_warped_lpips_is_right(rng):
    estimate, views = pair(rng, torch.float64, size=18)
    term = WarpedPerceptual(LPIPS("squeeze", weights=RANDOM), warps=2)
    target = term.target(views)
    leaf = estimate.image.rgb[:, :, 4:6, 4:6].clone().requires_grad_()

    def value(patch: Tensor) -> Tensor:
        rgb = estimate.image.rgb.clone()
        rgb[:, :, 4:6, 4:6] = patch
        return term(replace(estimate, image=Rendering(rgb, estimate.image.mask)), target)

    assert torch.autograd.gradcheck(value, (leaf,), rtol=1e-3, atol=1e-7)


def test_whole_pictures_are_compared_on_the_renderings_background(rng):
    estimate, views = pair(rng)
    photographs = torch.where(views.mask > 0, views.rgb, torch.ones(()))
    difference = (estimate.image.rgb - photographs).double()
    l1 = picture_l1(estimate, views, background=1.0)
    torch.testing.assert_close(l1.double(), difference.abs().mean(dim=(1, 2, 3)))
    mse = picture_mse(estimate, views, background=1.0)
    torch.testing.assert_close(mse.double(), difference.square().mean(dim=(1, 2, 3)))

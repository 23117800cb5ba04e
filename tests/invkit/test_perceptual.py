"""The perceptual losses against their formulas."""

import torch
from torch import Tensor

from invkit.camera import Camera
from invkit.features.lpips import LPIPS
from invkit.features.vgg import VGG19
from invkit.features.weights import RANDOM
from invkit.losses.perceptual import LearnedPerceptual, Perceptual
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

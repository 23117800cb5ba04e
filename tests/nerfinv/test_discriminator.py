"""The discriminator and what it is told of cameras, against the released code's answers."""

import math

import pytest
import torch
import torch.nn.functional as F

from nerfinv.discriminator import Discriminator, batch_variety, pose_vector
from tests.nerfinv.filled import (
    assert_numbers,
    assert_stats,
    cameras,
    filled_discriminator,
    images,
    parameter_count,
)

SMALL = {"size": 16, "channel_base": 128, "max_channels": 8}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """New networks are the same in every run."""
    torch.manual_seed(0)


# ---- The released code's answers ---------------------------------------------------------------------------------


def test_logits_and_gradient_penalties_of_images_with_silhouettes():
    network = filled_discriminator(channels=4).requires_grad_(False)
    image = images(4, 4, 128, 128).requires_grad_()
    pose = pose_vector(cameras(perspective=False))
    logits = network(image, pose.repeat(2, 1))
    assert_numbers(logits, (-0.0948570, -0.1356277, -0.1940299, -0.2011496))
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    penalties = gradient.square().sum(dim=(1, 2, 3))
    assert_numbers(penalties, (5.557278e-5, 4.492937e-5, 6.289072e-5, 4.365827e-5), 1e-3)
    assert_stats(network.mapping(pose), (0.2257468, 0.4978336, -0.5112457, 3.169562))
    assert F.softplus(-logits).mean().item() == pytest.approx(0.7746477, rel=1e-5)
    assert F.softplus(logits).mean().item() == pytest.approx(0.6182315, rel=1e-5)


def test_logits_of_images_in_opengl_axes():
    network = filled_discriminator(channels=3).requires_grad_(False)
    pose = pose_vector(cameras(perspective=True, flipped=False), opengl_axes=True)
    logits = network(images(4, 3, 128, 128), pose.repeat(2, 1))
    assert_numbers(logits, (-0.1119957, -0.1117429, -0.1023747, -0.1639996))
    assert_stats(network.mapping(pose), (0.2298809, 0.5024319, -0.5188278, 3.167259))


def test_variety_within_groups():
    found = batch_variety(images(8, 2, 2, 2), 4)
    assert_numbers(found, (0.6414095, 0.6929141) * 4)


@pytest.mark.parametrize("perspective, first", [(True, 0.16120805), (False, 0.0)])
@pytest.mark.parametrize("flipped", [True, False])
def test_cameras_as_vectors(perspective, first, flipped):
    """One pose, in OpenCV's axes and in OpenGL's, is told alike."""
    camera = cameras(perspective=perspective, flipped=flipped)
    expected = (first, 0.1, -0.2, 0.7, 0.36, -0.8, -0.48, 0.48, 0.6, -0.64, 0.8, 0, 0.6)
    assert_numbers(pose_vector(camera, opengl_axes=not flipped)[0], expected, 1e-6)


@pytest.mark.parametrize("channels, count", [(4, 28_921_344), (3, 28_921_088)])
def test_parameter_counts(channels, count):
    with torch.device("meta"):
        assert parameter_count(Discriminator(channels=channels)) == count


# ---- What holds in general ---------------------------------------------------------------------------------------


def test_the_focal_length_is_that_over_the_image_width():
    camera = cameras(perspective=True)
    _, focal = camera.to_matrix()
    torch.testing.assert_close(pose_vector(camera)[:, 0], focal.log())


def test_a_principal_point_does_not_move_what_is_told():
    camera = cameras(perspective=True)
    matrix, focal = camera.to_matrix()
    moved = type(camera).from_matrix(matrix, focal, center=torch.tensor([[0.1, -0.3], [0.0, 0.2]]))
    torch.testing.assert_close(pose_vector(moved), pose_vector(camera))


def test_gradient_penalties_can_be_trained(rng):
    """Second derivatives by weights, against differences in double precision."""
    network = Discriminator(**{**SMALL, "size": 8, "max_channels": 2}, group_size=2).double()
    image = torch.randn(2, 4, 8, 8, generator=rng).double().requires_grad_()
    pose = torch.randn(2, 13, generator=rng).double()

    def penalty() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(network(image, pose).sum(), image, create_graph=True)
        return gradient.square().sum()

    penalty().backward()
    step = 1e-6
    for weight in (network.b8.conv1.weight, network.b8.skip.weight, network.b4.fc.weight):
        flat, place = weight.data.view(-1), 3
        flat[place] += step
        above = penalty().item()
        flat[place] -= 2 * step
        below = penalty().item()
        flat[place] += step
        assert weight.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_groups_take_what_the_batch_allows(rng):
    maps = torch.randn(6, 3, 4, 4, generator=rng)
    found = batch_variety(maps, 4)
    pairs = torch.stack([maps[:3], maps[3:]])
    expected = (pairs.std(dim=0, correction=0).square() + 1e-8).sqrt().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected.repeat(2))
    torch.testing.assert_close(batch_variety(maps[:1], 4), torch.tensor([1e-4]))


def test_conditions_count_and_have_to_be_given(rng):
    image, pose = torch.rand(4, 4, 16, 16, generator=rng), torch.randn(4, 13, generator=rng)
    label = torch.tensor([0, 1, 2, 0])
    network = Discriminator(**SMALL, num_classes=3)
    assert (network(image, pose, label) != network(image, pose.flip(0), label)).all()
    differ = network(image, pose, label) != network(image, pose, torch.tensor([0, 2, 1, 0]))
    assert differ.tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="give labels"):
        network(image, pose)
    with pytest.raises(ValueError, match="give poses"):
        Discriminator(**SMALL)(image)
    assert Discriminator(**SMALL, conditional=False)(image).shape == (4,)
    with pytest.raises(ValueError, match="part of the condition"):
        Discriminator(**SMALL, conditional=False, num_classes=3)
    with pytest.raises(ValueError, match="power of two"):
        Discriminator(size=100)


def test_logits_keep_the_spread_of_the_features():
    """Sums over the embedding are divided by the square root of its length."""
    network = Discriminator(size=16, channel_base=1024, max_channels=64)
    image, pose = torch.rand(4, 4, 16, 16), torch.randn(4, 13)
    features = []
    network.b4.register_forward_hook(lambda _, __, found: features.append(found))
    logits = network(image, pose)
    torch.testing.assert_close(logits, torch.einsum("bc,bc->b", features[0], network.mapping(pose)) / math.sqrt(64))

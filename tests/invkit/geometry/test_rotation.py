"""Quaternion algebra against SciPy, matrices and published numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from invkit.geometry import rotation


def scipy_of(quat: torch.Tensor) -> Rotation:
    return Rotation.from_quat(quat.numpy()[..., [1, 2, 3, 0]])


@pytest.fixture
def quats(rng) -> torch.Tensor:
    return rotation.normalize(torch.randn(64, 4, generator=rng, dtype=torch.float64))


def test_published_numbers():
    point = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    turned = rotation.rotate(torch.tensor([[0.8, 0.2, -0.4, 0.4]], dtype=torch.float64), point)
    torch.testing.assert_close(turned, torch.tensor([[[-2.68, -0.24, 2.6]]], dtype=torch.float64), atol=1e-12, rtol=0)
    quarter = torch.tensor([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]], dtype=torch.float64)
    expected = torch.tensor([[[-2.0, 1.0, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(rotation.rotate(quarter, point), expected, atol=1e-12, rtol=0)
    cyclic = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation.from_matrix(cyclic), torch.tensor([0.5, 0.5, -0.5, 0.5], dtype=torch.float64))
    product = rotation.multiply(torch.tensor([0.5, 0.5, -0.5, 0.5]), torch.tensor([0.8, 0.0, 0.6, 0.0]))
    torch.testing.assert_close(product, torch.tensor([0.7, 0.1, -0.1, 0.7]))


def test_product_matrix_and_rotation_agree_with_scipy(quats, rng):
    left, right = quats[:32], quats[32:]
    points = torch.randn(32, 5, 3, generator=rng, dtype=torch.float64)
    np.testing.assert_allclose(rotation.to_matrix(left), scipy_of(left).as_matrix(), atol=1e-14)
    product = scipy_of(left) * scipy_of(right)
    np.testing.assert_allclose(rotation.to_matrix(rotation.multiply(left, right)), product.as_matrix(), atol=1e-14)
    expected = np.einsum("bij,bnj->bni", scipy_of(left).as_matrix(), points)
    np.testing.assert_allclose(rotation.rotate(left, points), expected, atol=1e-13)


def test_matrix_round_trip_near_every_singularity(quats):
    half_turns = torch.eye(4, dtype=torch.float64)  # the identity and the half turns about each axis
    nearly = rotation.normalize(half_turns + 1e-9 * quats[:4])
    for quat in (quats, half_turns, nearly):
        back = rotation.from_matrix(rotation.to_matrix(quat))
        assert (back[..., 0] >= 0).all()
        # q and -q are one rotation, so the product of the two must be +-1.
        torch.testing.assert_close((back * quat).sum(-1).abs(), torch.ones(len(quat), dtype=torch.float64))


def test_a_reflection_is_refused():
    with pytest.raises(ValueError, match="determinant"):
        rotation.from_matrix(torch.diag(torch.tensor([-1.0, 1.0, 1.0])))


def test_angle_is_the_geodesic_and_exact_near_zero(quats):
    left, right = quats[:32], quats[32:]
    expected = np.degrees((scipy_of(left).inv() * scipy_of(right)).magnitude())
    np.testing.assert_allclose(rotation.angle(left, right), expected, atol=1e-10)
    tiny = rotation.from_axis_angle(torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([1e-5]))
    assert rotation.angle(rotation.identity(1), tiny).item() == pytest.approx(1e-5, rel=1e-5)


def test_axis_angle_agrees_with_scipy(rng):
    axis = torch.randn(8, 3, generator=rng, dtype=torch.float64)
    degrees = torch.linspace(-200, 300, 8, dtype=torch.float64)
    unit = (axis / axis.norm(dim=1, keepdim=True)).numpy()
    expected = Rotation.from_rotvec(unit * np.radians(degrees.numpy())[:, None]).as_matrix()
    np.testing.assert_allclose(rotation.to_matrix(rotation.from_axis_angle(axis, degrees)), expected, atol=1e-13)


def test_mirror_conjugates_the_matrix(quats):
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(rotation.to_matrix(rotation.mirror(quats)), flip @ rotation.to_matrix(quats) @ flip)


def test_random_rotations_are_uniform(rng):
    turned = rotation.to_matrix(rotation.random(20000, rng))
    assert turned.mean(0).abs().max() < 0.02  # the mean of uniform rotations is the zero matrix
    # The trace of a uniform rotation has variance 1.
    assert turned.diagonal(dim1=1, dim2=2).sum(-1).var().item() == pytest.approx(1.0, abs=0.05)

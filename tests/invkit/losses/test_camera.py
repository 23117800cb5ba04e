"""What a search pays for leaving a given camera."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.losses.camera import camera_prior
from invkit.types import Estimate, Rendering, Views

COUNT = 3


def cameras() -> Camera:
    rng = torch.Generator().manual_seed(0)
    return Camera(
        rotation.random(COUNT, rng).double(),
        torch.tensor([0.5, 0.7, 1.1], dtype=torch.float64),
        torch.tensor([[0.1, 0.0], [-0.2, 0.1], [0.0, 0.3]], dtype=torch.float64),
        torch.zeros(COUNT, dtype=torch.float64),
    )


def cost(found: Camera, given: Camera, guessed: torch.Tensor | None = None, **options: float) -> torch.Tensor:
    picture = torch.zeros(COUNT, 3, 2, 2)
    image = Rendering(picture, picture[:, :1])
    views = Views(picture, picture[:, :1], given, None, torch.arange(COUNT), guessed)
    return camera_prior(Estimate(torch.zeros(COUNT, 1), found, None, image), views, **options)


def turned(camera: Camera, degrees: float) -> Camera:
    half = math.radians(degrees) / 2
    axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    turn = torch.cat([torch.tensor([math.cos(half)], dtype=torch.float64), math.sin(half) * axis])
    return replace(camera, quat=rotation.multiply(turn.expand(COUNT, 4), camera.quat))


def test_the_given_camera_costs_nothing_in_either_sign_or_length_of_its_quaternion():
    given = cameras()
    assert cost(given, given).abs().max() < 1e-12
    assert cost(replace(given, quat=-3 * given.quat), given).abs().max() < 1e-12


@pytest.mark.parametrize("degrees", [2.0, 8.0, 16.0])
def test_turns_count_in_standard_deviations(degrees):
    given = cameras()
    found = cost(turned(given, degrees), given, degrees=8.0)
    torch.testing.assert_close(found, torch.full_like(found, (degrees / 8) ** 2 / 2), rtol=0.01, atol=0)


def test_zoom_and_shift_count_in_standard_deviations():
    given = cameras()
    wider = replace(given, scale=given.scale * math.exp(0.2))
    torch.testing.assert_close(cost(wider, given, zoom=0.1), torch.full((COUNT,), 2.0, dtype=torch.float64))
    moved = replace(given, shift=given.shift + torch.tensor([0.3, -0.4]))
    torch.testing.assert_close(cost(moved, given, shift=0.1), torch.full((COUNT,), 12.5, dtype=torch.float64))


def test_a_guessed_camera_costs_nothing():
    given = cameras()
    guessed = torch.tensor([False, True, False])
    assert (cost(turned(given, 20), given, guessed) > 0).tolist() == [True, False, True]


def test_gradients():
    given = cameras()

    def of_numbers(quat: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return partial(cost, given=given)(Camera(quat, scale, shift, given.inv_focal))

    start = turned(given, 5)
    inputs = [value.clone().requires_grad_() for value in (start.quat, start.scale + 0.1, start.shift + 0.05)]
    assert torch.autograd.gradcheck(of_numbers, inputs)

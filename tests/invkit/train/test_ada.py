"""How strongly images are augmented."""

import pytest
import torch

from invkit.train.ada import Ada


def test_the_probability_goes_up_and_down_by_the_released_step():
    ada = Ada()
    ada.update(torch.tensor(0.7), 32 * 4)
    assert ada.probability.item() == pytest.approx(0.000256)
    ada.update(torch.tensor(0.61), 32 * 4)
    assert ada.probability.item() == pytest.approx(0.000512)
    ada.update(torch.tensor(-1.0), 32 * 4)
    assert ada.probability.item() == pytest.approx(0.000256)
    ada.update(torch.tensor(0.6), 32 * 4)
    assert ada.probability.item() == pytest.approx(0.000256)


def test_the_probability_keeps_its_bounds():
    ada = Ada(highest=0.5, images=100)
    ada.update(torch.tensor(0.0), 30)
    assert ada.probability.item() == 0.0
    for _ in range(3):
        ada.update(torch.tensor(1.0), 30)
    assert ada.probability.item() == 0.5


def test_the_probability_is_saved():
    ada, other = Ada(images=10), Ada(images=10)
    ada.update(torch.tensor(1.0), 3)
    other.load_state_dict(ada.state_dict())
    assert other.probability.item() == pytest.approx(0.3)

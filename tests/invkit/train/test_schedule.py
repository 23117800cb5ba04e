import pytest

from invkit.protocols import always
from invkit.train.schedule import (
    constant,
    every,
    except_every,
    linear_decay,
    product,
    ramp,
    step_decay,
    warm_up,
)


def test_rates_at_their_corners():
    assert [constant(0.5)(step) for step in (0, 9)] == [0.5, 0.5]
    assert [step_decay(10, 0.5)(step) for step in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    assert [linear_decay(10, 20)(step) for step in (0, 10, 15, 20, 30)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert [warm_up(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0)(0) == 1.0
    assert warm_up(9, start=0.1)(0) == pytest.approx(0.2)
    assert product(constant(0.5), step_decay(2, 0.1), warm_up(4))(2) == pytest.approx(0.5 * 0.1 * 0.75)
    with pytest.raises(ValueError, match="20 <= 20"):
        linear_decay(20, 20)


def test_the_ramps_of_the_two_papers():
    mesh = ramp(0.999, fast=10, medium=100)
    assert [round(mesh(step), 6) for step in (0, 9, 10, 99, 100)] == [0.904792, 0.904792, 0.990045, 0.990045, 0.999]
    field = ramp(0.5 ** (32 / 10000), fast=1000, medium=10000)
    values = [field(step) for step in (999, 1000, 9999, 10000)]
    assert values == pytest.approx([0.8010698776, 0.9780634733, 0.9780634733, 0.9977843871], abs=1e-9)


def test_occasions():
    steps = range(9)
    assert [step for step in steps if every(3)(step)] == [0, 3, 6]
    assert [step for step in steps if every(4, offset=3)(step)] == [3, 7]
    assert [step for step in steps if every(2, offset=5)(step)] == [5, 7]
    assert [step for step in steps if except_every(3)(step)] == [1, 2, 4, 5, 7, 8]
    assert all(always(step) for step in steps)

"""Quantities and occasions that are functions of the step, so that a resumed run needs no memory of them.

`step` is 0-based everywhere: the number of steps already done.
"""

from collections.abc import Callable
from math import prod

Rate = Callable[[int], float]
"""step -> factor (of a learning rate, a decay, a weight)."""

Due = Callable[[int], bool]
"""step -> whether something happens at it."""


def constant(value: float = 1.0) -> Rate:
    return lambda step: value


def step_decay(every: int, factor: float) -> Rate:
    """Multiplied by `factor` after every `every` steps."""
    return lambda step: factor ** (step // every)


def linear_decay(start: int, stop: int) -> Rate:
    """1 until `start`, then straight down to 0 at `stop`."""
    if not start < stop:
        raise ValueError(f"a linear decay must stop after it starts, not at {stop} <= {start}")
    return lambda step: min(max((stop - step) / (stop - start), 0.0), 1.0)


def warm_up(steps: int, start: float = 0.0) -> Rate:
    """Straight up from `start` to 1, which the step number `steps - 1` is the first to get; `steps` 0 is off."""
    return lambda step: start + (1 - start) * min((step + 1) / max(steps, 1), 1.0)


def product(*rates: Rate) -> Rate:
    """All the rates at once, such as a warm-up and a decay."""
    return lambda step: prod(rate(step) for rate in rates)


def ramp(decay: float, fast: int, medium: int) -> Rate:
    """Decay of a running average that forgets its poor beginnings sooner: decay^100 before step `fast`, decay^10 before
    `medium`, `decay` from there on (the rule of both papers' code)."""
    return lambda step: decay**100 if step < fast else decay**10 if step < medium else decay


def every(n: int, offset: int = 0) -> Due:
    """At steps offset, offset + n, offset + 2n, ..."""
    return lambda step: step % n == offset % n and step >= offset


def except_every(n: int, offset: int = 0) -> Due:
    """At the steps at which `every(n, offset)` is not due."""
    due = every(n, offset)
    return lambda step: not due(step)

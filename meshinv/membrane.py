"""Maps over the UV square continued to where they are not known: a membrane on the template's sphere, and its tint."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CELLS = 8
"""Side of the coarsest grid: what is larger than its cells is tint, what is smaller is detail."""
SWEEPS = 24
"""Relaxations on each grid; the coarser one has done the long distances."""
STIFFNESS = 30.0
"""How much a fully known texel outweighs its four neighbors."""


def continued(
    values: Float[Tensor, "B C T T"], alpha: Float[Tensor, "B 1 T T"], reach: float = math.inf
) -> Float[Tensor, "B C T T"]:
    """The values where they are known, and between these a membrane: a harmonic function on the template's sphere.

    It is solved by relaxation from coarse grids to fine ones. Columns wrap around; rows get shorter towards the poles.

    Args:
        values: at a side that is a power of 2.
        alpha: how well a value is known, 0 to 1.
        reach: radians over which a value fades, by about e, where there are none.
    """
    levels = [(values, alpha)]
    while levels[-1][1].shape[-1] > CELLS:
        value, weight = levels[-1]
        pooled = functional.avg_pool2d(weight, 2)
        levels.append((functional.avg_pool2d(value * weight, 2) / pooled.clamp(min=1e-6), pooled))
    value, weight = levels[-1]
    mean = (value * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
    membrane = mean.expand_as(value)
    for value, weight in reversed(levels):
        if membrane.shape[-1] != value.shape[-1]:
            membrane = _doubled(membrane)
        membrane = _relaxed(membrane, value, weight, reach)
    return membrane


def tint(values: Float[Tensor, "B C T T"], alpha: Float[Tensor, "B 1 T T"]) -> Float[Tensor, "B C T T"]:
    """The values without what is finer than `CELLS`: means of the known ones around, weighted; 0 far from any."""
    cell = values.shape[-1] // CELLS
    coarse = functional.avg_pool2d(torch.cat([values * alpha, alpha], dim=1), cell)
    while coarse.shape[-1] < values.shape[-1]:
        coarse = _doubled(coarse)
    return coarse[:, :-1] / coarse[:, -1:].clamp(min=1e-6)


def _doubled(maps: Float[Tensor, "B C T T"]) -> Float[Tensor, "B C W W"]:
    """Twice as large, across the seam too."""
    wrapped = functional.pad(maps, (1, 1, 0, 0), mode="circular")
    size = (2 * maps.shape[2], 2 * wrapped.shape[3])
    return functional.interpolate(wrapped, size=size, mode="bilinear", align_corners=False)[..., 2:-2]


def _relaxed(
    membrane: Float[Tensor, "B C T T"], value: Float[Tensor, "B C T T"], weight: Float[Tensor, "B 1 T T"], reach: float
) -> Float[Tensor, "B C T T"]:
    """The membrane after some sweeps of red-black relaxation."""
    side = value.shape[-1]
    rows = torch.arange(side, device=value.device, dtype=value.dtype)
    step = math.pi / side  # between rows; columns are two of it apart at the equator
    # How well neighbors conduct: across rows by the length of the circle between them, along a row by its inverse.
    above = 2 * (rows * step).sin()[:, None]
    below = 2 * ((rows + 1) * step).sin().clamp(min=0)[:, None]
    circle = ((rows + 0.5) * step).sin()[:, None]
    beside = 0.5 / circle
    around = above + below + 2 * beside
    # What is surely known is pinned, what is hardly known only pulls.
    pull = STIFFNESS * weight / (1.02 - weight) * around
    total = around + pull + 2 * circle * step**2 / reach**2
    columns = torch.arange(side, device=value.device)
    red = (columns[:, None] + columns) % 2 == 0
    for sweep in range(2 * SWEEPS):
        up = torch.cat([membrane[:, :, :1], membrane[:, :, :-1]], dim=2)
        down = torch.cat([membrane[:, :, 1:], membrane[:, :, -1:]], dim=2)
        sideways = membrane.roll(1, 3) + membrane.roll(-1, 3)
        update = (above * up + below * down + beside * sideways + pull * value) / total
        membrane = torch.where(red if sweep % 2 else ~red, update, membrane)
    return membrane

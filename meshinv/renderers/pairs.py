"""Which pixels can a face touch? Candidate (face, pixel) pairs from bounding boxes, without a loop over either.

Image axes here are those of DIB-R: x right, y up, row 0 at the top; the center of pixel (row i, column j) is
x = (2 j + 1 - W) / W, y = (H - 1 - 2 i) / H. A box is half-open: a center on its lower border is in, on
its upper one out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Boxes(NamedTuple):
    """Pixel rectangles: columns left <= j < right, rows top <= i < bottom; empty where the first is not smaller."""

    left: Int[Tensor, "F"]
    right: Int[Tensor, "F"]
    top: Int[Tensor, "F"]
    bottom: Int[Tensor, "F"]

    def area(self) -> Int[Tensor, "F"]:
        return (self.right - self.left) * (self.bottom - self.top)


def by_component(corner_xy: Float[Tensor, "B F 3 2"]) -> Float[Tensor, "6 BF"]:
    """The x of the three corners of every face, then their y; one contiguous row each, which gathers fast."""
    return corner_xy.permute(3, 2, 0, 1).flatten(0, 1).flatten(1).contiguous()


def centers(count: int, like: Tensor) -> Float[Tensor, "count"]:
    """Coordinates of `count` pixel centers from left to right (or from the bottom up)."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1 - count) / count


def positions(batch: int, height: int, width: int, like: Tensor) -> Float[Tensor, "2 N"]:
    """x and y of the center of every pixel of the flattened [batch, height, width]."""
    x, y = centers(width, like), centers(height, like).flip(0)
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)]).flatten(1).repeat(1, batch)


def boxes(corners: Float[Tensor, "F 3 2"], height: int, width: int, margin: float = 0.0) -> Boxes:
    """The pixels with their center in the corners' bounding box, widened by `margin` on all sides.

    A face with a corner that is not a number has an empty box.
    """
    low, high = corners.amin(1) - margin, corners.amax(1) + margin
    columns, rows = centers(width, corners), centers(height, corners)
    left, right = (torch.searchsorted(columns, edge[:, 0].contiguous()) for edge in (low, high))
    bottom, top = (height - torch.searchsorted(rows, edge[:, 1].contiguous()) for edge in (low, high))
    return Boxes(left, right, top, bottom)


def ranges(start: Int[Tensor, "N"], length: Int[Tensor, "N"]) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
    """start[n], start[n] + 1, ..., start[n] + length[n] - 1 for each n in turn, as (n, value)."""
    owner = torch.repeat_interleave(length)
    before = start - (length.cumsum(0) - length)
    return owner, torch.arange(len(owner), device=start.device) + before.index_select(0, owner)


def spans(
    x: Float[Tensor, "3 L"],
    dy: Float[Tensor, "3 L"],
    left: Int[Tensor, "L"],
    right: Int[Tensor, "L"],
    width: int,
) -> tuple[Int[Tensor, "L"], Int[Tensor, "L"]]:
    """Columns left <= j < right narrowed to where a line of pixel centers can meet a triangle.

    Never too narrow: the bounds allow for the rounding of an inside test in the same precision.

    Args:
        x: of the triangle's corners.
        dy: y of the corners minus that of the line; the triangle is counter-clockwise in (x, dy).
    """
    slack = 64 * torch.finfo(x.dtype).eps * x.abs().amax(0) * dy.abs().amax(0)
    first, last = left, right
    for i, j in ((1, 2), (2, 0), (0, 1)):
        # The edge function is area + slope x; it must not be negative.
        slope = dy[i] - dy[j]
        area = x[i] * dy[j] - x[j] * dy[i] + slack
        column = (-area / slope * width + (width - 1)) / 2
        # A bound far away (or none at all) must not overflow the integers.
        column = column.nan_to_num(0.0).clamp(-1, width)
        first = torch.where(slope > 0, torch.maximum(first, column.floor().long()), first)
        last = torch.where(slope < 0, torch.minimum(last, column.ceil().long() + 1), last)
    return first, torch.maximum(last, first)


def chunks(counts: Int[Tensor, "N"], limit: int) -> Iterator[slice]:
    """Consecutive slices of items whose counts sum to at most `limit`, as far as single items allow."""
    if len(counts) == 0:
        return
    total = counts.cumsum(0)
    # One pass over the (few) multiples of the limit; cheaper than asking the device item by item.
    cuts = torch.searchsorted(
        total, torch.arange(0, int(total[-1]) + limit, limit, device=counts.device)[1:], right=True
    )
    previous = 0
    for cut in cuts.tolist():
        end = min(max(cut, previous + 1), len(counts))
        if end > previous:
            yield slice(previous, end)
        previous = end

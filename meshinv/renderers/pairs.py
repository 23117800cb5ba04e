"""Which pixels can a face touch? Candidate (face, pixel) pairs from bounding boxes, without a loop over either.

Image axes here are those of DIB-R: x right, y up, row 0 at the top; the center of pixel (row i, column j) is
x = (2 j + 1 - W) / W, y = (H - 1 - 2 i) / H. A box is half-open: a center on its lower border is in, on its upper one out.
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


def centers(count: int, like: Tensor) -> Float[Tensor, "count"]:
    """Coordinates of `count` pixel centers from left to right (or from the bottom up)."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1 - count) / count


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

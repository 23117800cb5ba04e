"""Bilinear lookup in tri-planes, differentiable any number of times (section 3.1; EG3D).

torch's `grid_sample` reads one channel after another and has no second derivative; normals that are trained (Eikonal
loss) and penalized gradients need one. Here a texel is a row of a table, so that one fetch brings all its channels, and
a lookup is the trilinear form

    T(table, weight, g) = sum over points n and corners k of weight[n, k] <table[corner(n, k)], g[n]>.

Its derivatives by g (the lookup), by the table (a scatter) and by the weights (dot products) are three functions whose
own derivatives are again these three. So each has a fast kernel, and autograd goes as deep as one likes. The weights
are ordinary functions of the points.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 8192
"""Points at once in the kernels that write out all corners: what they write then stays in the cache of a CPU."""


@dataclass(frozen=True)
class Corners:
    """Where points fall in a table of square planes.

    Args:
        first: row of the table with the upper left texel of the cell of each point, in each of its planes.
        side: texels along a plane; the other corners are 1, `side` and `side` + 1 further.
    """

    first: Int[Tensor, "N L"]
    side: int

    def all(self, points: slice = slice(None)) -> Int[Tensor, "M K"]:
        """Rows of all corners, four for each plane: upper left, upper right, lower left, lower right."""
        first = self.first[points]
        steps = first.new_tensor([0, 1, self.side, self.side + 1])
        return (first[..., None] + steps).flatten(1)


class _Lookup(torch.autograd.Function):
    """sum_k weight[n, k] table[corner(n, k)]: dT / dg."""

    @staticmethod
    def forward(ctx, table: Tensor, weight: Tensor, corners: Corners) -> Tensor:
        ctx.save_for_backward(table, weight)
        ctx.corners = corners
        return F.embedding_bag(corners.all(), table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, weight = ctx.saved_tensors
        by_table, by_weight, _ = ctx.needs_input_grad
        return (
            _Scatter.apply(weight, gradient, ctx.corners, len(table)) if by_table else None,
            _Dot.apply(table, gradient, ctx.corners) if by_weight else None,
            None,
        )


class _Scatter(torch.autograd.Function):
    """The table with weight[n, k] g[n] added at every corner: dT / dtable."""

    @staticmethod
    def forward(ctx, weight: Tensor, g: Tensor, corners: Corners, rows: int) -> Tensor:
        ctx.save_for_backward(weight, g)
        ctx.corners = corners
        # The four corners of a cell are gathered at its first one, in one long row, and moved to their places at the
        # end: a quarter of the scattered additions.
        channels, side = g.shape[1], corners.side
        cells = g.new_zeros(rows, 4 * channels)
        for start in range(0, len(g), CHUNK):
            part = slice(start, start + CHUNK)
            for plane in range(corners.first.shape[1]):
                share = weight[part, 4 * plane : 4 * plane + 4, None] * g[part, None]
                cells.index_add_(0, corners.first[part, plane], share.flatten(1))
        cells = cells.view(rows, 4, channels)
        table = cells[:, 0].clone()
        for corner, step in ((1, 1), (2, side), (3, side + 1)):
            table[step:] += cells[:-step, corner]
        return table

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, g = ctx.saved_tensors
        by_weight, by_g, _, _ = ctx.needs_input_grad
        return (
            _Dot.apply(gradient, g, ctx.corners) if by_weight else None,
            _Lookup.apply(gradient, weight, ctx.corners) if by_g else None,
            None,
            None,
        )


class _Dot(torch.autograd.Function):
    """<table[corner(n, k)], g[n]>: dT / dweight."""

    @staticmethod
    def forward(ctx, table: Tensor, g: Tensor, corners: Corners) -> Tensor:
        ctx.save_for_backward(table, g)
        ctx.corners = corners
        result = g.new_empty(len(g), 4 * corners.first.shape[1])
        for start in range(0, len(g), CHUNK):
            part = slice(start, start + CHUNK)
            texels = F.embedding(corners.all(part), table)
            torch.bmm(texels, g[part, :, None], out=result[part].unsqueeze(2))
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, g = ctx.saved_tensors
        by_table, by_g, _ = ctx.needs_input_grad
        return (
            _Scatter.apply(gradient, g, ctx.corners, len(table)) if by_table else None,
            _Lookup.apply(table, gradient, ctx.corners) if by_g else None,
            None,
        )


def lookup(table: Float[Tensor, "V C"], weight: Float[Tensor, "N K"], corners: Corners) -> Float[Tensor, "N C"]:
    """The weighted sums of the corners' rows."""
    return _Lookup.apply(table, weight, corners)


def locate(
    points: Float[Tensor, "N 3"], image: Int[Tensor, "N"] | None, side: int
) -> tuple[Float[Tensor, "N 12"], Corners]:
    """Bilinear weights of points and where they apply; the weights are divided by 3, the number of planes.

    Texels sit at the ends of the range (align_corners) and are repeated outside of it, where nothing varies.

    Args:
        points: in [-1, 1] inside the planes.
        image: whose planes each point is looked up in; None: there is one image.
        side: texels along a plane.
    """
    position = (points + 1) * ((side - 1) / 2)
    held = position.detach().clamp(0, side - 1)
    # What is not a number is looked up somewhere, and its weights stay not a number.
    corner = held.floor().clamp(max=side - 2).nan_to_num(0.0)
    # The derivative is that to the right, so none at the far end; the near end belongs to the inside.
    moves = (position.detach() >= 0) & (position.detach() < side - 1)
    fraction = torch.where(moves, position, held) - corner
    x, y = fraction[:, [0, 0, 1]], fraction[:, [1, 2, 2]]
    low, high = (1 - y) / 3, y / 3
    weight = torch.stack([low * (1 - x), low * x, high * (1 - x), high * x], dim=2).flatten(1)
    cell = corner.int()
    first = cell[:, [1, 2, 2]] * side + cell[:, [0, 0, 1]]
    first += torch.arange(3, dtype=torch.int32, device=points.device) * side**2
    if image is not None:
        first += (image * (3 * side**2)).int()[:, None]
    return weight, Corners(first, side)


def table_of(planes: Float[Tensor, "B 3 C R R"]) -> Float[Tensor, "V C"]:
    """The texels of all planes of all images as rows."""
    return planes.permute(0, 1, 3, 4, 2).reshape(-1, planes.shape[2])

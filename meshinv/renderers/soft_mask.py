"""The soft silhouette of DIB-R: outside the outline it fades with the distance to the nearby faces.

The gradient is that of the published kernel: through the nearest edge or corner of each nearby face, not through the
choice of faces, edges or corners; covered pixels contribute nothing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from meshinv.renderers.pairs import boxes, by_component, chunks, positions, ranges
from meshinv.renderers.raster import KAOLIN, MAX_PAIRS, Constants


def soft_mask(
    corner_xy: Float[Tensor, "B F 3 2"],
    face: Int[Tensor, "B H W"],
    *,
    sigma_inv: float = 7000.0,
    box: float = 0.02,
    max_faces: int = 30,
    constants: Constants = KAOLIN,
    max_pairs: int = MAX_PAIRS,
) -> Float[Tensor, "B H W"]:
    """1 where `face` says covered, elsewhere 1 - prod(1 - exp(-sigma_inv d^2)) over the nearby faces of either side.

    Args:
        face: as in `Raster`; only its sign matters.
        sigma_inv: sharpness, 1 / NDC^2.
        box: faces are near where the pixel center is in their bounding box widened by this much, NDC.
        max_faces: the first so many of them in index order count.
        max_pairs: (face, pixel) pairs looked at together; bounds the memory.
    """
    return _SoftMask.apply(corner_xy, face, sigma_inv, box, max_faces, constants, max_pairs)


class _SoftMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, corner_xy, face, sigma_inv, box, max_faces, constants, max_pairs):
        corners = by_component(corner_xy.detach())
        owner, pixel = _nearby(corners, face, corner_xy.shape[1], box, max_faces, max_pairs)
        x, y = positions(*face.shape, corners).index_select(1, pixel)
        start, end, part, dx, dy = _nearest_on_outline(corners, owner, x, y)
        exponent = -sigma_inv * (dx * dx + dy * dy)
        # Not 1 - closeness: a pixel center almost on an edge keeps its digits.
        closeness, away = exponent.exp(), -exponent.expm1()
        clear = corners.new_ones(face.numel()).scatter_reduce_(0, pixel, away, "prod")
        clear = torch.where(face.flatten() >= 0, 0, clear)
        slope = -sigma_inv * clear.index_select(0, pixel) * closeness / (away + constants.soft)
        ctx.save_for_backward(pixel, start, end, part, dx, dy, slope)
        ctx.shape = corner_xy.shape
        return (1 - clear).view(face.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        pixel, start, end, part, dx, dy, slope = ctx.saved_tensors
        # d^2 = |pixel - nearest point|^2, and by the envelope theorem the nearest point's place on its edge stays.
        pull = -2 * slope * grad.reshape(-1).index_select(0, pixel)
        gradient = grad.new_zeros(2, ctx.shape[0] * ctx.shape[1] * 3)
        for axis, difference in enumerate((dx, dy)):
            moved = pull * difference
            gradient[axis].index_add_(0, start, moved * (1 - part)).index_add_(0, end, moved * part)
        batch, num_faces = ctx.shape[:2]
        return gradient.view(2, 3, batch, num_faces).permute(2, 3, 1, 0), None, None, None, None, None, None


def _nearby(
    corners: Tensor, face: Tensor, num_faces: int, box: float, max_faces: int, max_pairs: int
) -> tuple[Tensor, Tensor]:
    """(face, uncovered pixel) pairs of the widened boxes, the first `max_faces` of every pixel in face order.

    Both are flat indices, into [B, F] and [B, H, W].
    """
    height, width = face.shape[1:]
    empty = (face < 0).flatten()
    open_pixels = empty.nonzero().squeeze(1)
    # rank[p]: uncovered pixels before p. A stretch of a row thus is a stretch of the list of uncovered pixels.
    rank = torch.nn.functional.pad(empty.cumsum(0), (1, 0))
    edges = boxes(corners.view(2, 3, -1).permute(2, 1, 0), height, width, box)
    reached = ((edges.left < edges.right) & (edges.top < edges.bottom)).nonzero().squeeze(1)
    left, right, top, bottom = (edge.index_select(0, reached) for edge in edges)
    line_face, row = ranges(top, bottom - top)
    line_owner = reached.index_select(0, line_face)
    base = (torch.div(line_owner, num_faces, rounding_mode="floor") * height + row) * width
    first = rank.index_select(0, base + left.index_select(0, line_face))
    length = rank.index_select(0, base + right.index_select(0, line_face)) - first
    occupied = length.nonzero().squeeze(1)
    line_owner, first, length = (t.index_select(0, occupied) for t in (line_owner, first, length))
    owners, pixels, count = [], [], torch.zeros_like(rank)
    for part in chunks(length, max_pairs):
        line, place = ranges(first[part], length[part])
        owner, pixel = line_owner[part].index_select(0, line), open_pixels.index_select(0, place)
        before = count.index_select(0, pixel)
        count.scatter_add_(0, pixel, torch.ones_like(pixel))
        if bool((count.index_select(0, pixel) > max_faces).any()):
            pixel, order = pixel.sort(stable=True)
            owner, before = owner.index_select(0, order), before.index_select(0, order)
            position = torch.arange(len(pixel), device=pixel.device) - torch.searchsorted(pixel, pixel)
            kept = (before + position < max_faces).nonzero().squeeze(1)
            owner, pixel = owner.index_select(0, kept), pixel.index_select(0, kept)
        owners.append(owner)
        pixels.append(pixel)
    nothing = first.new_zeros(0)
    return torch.cat([nothing, *owners]), torch.cat([nothing, *pixels])


def _nearest_on_outline(
    corners: Tensor, owner: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The point of each face's outline nearest to (x, y).

    Returns the edge it is on as flat indices of its ends into the flattened [3, B F], how far along it lies (0 to 1),
    and (x, y) minus the point.
    """
    num_faces = corners.shape[1]
    taken = corners.index_select(1, owner)
    dx, dy = x - taken[:3], y - taken[3:]
    start, end, part, gap_x, gap_y, nearest = owner, owner, None, None, None, None
    for edge, following in ((0, 1), (1, 2), (2, 0)):
        edge_x, edge_y = dx[edge] - dx[following], dy[edge] - dy[following]
        length = (edge_x * edge_x + edge_y * edge_y).clamp_(min=torch.finfo(x.dtype).tiny)
        along = ((dx[edge] * edge_x + dy[edge] * edge_y) / length).clamp_(0, 1)
        off_x, off_y = dx[edge] - along * edge_x, dy[edge] - along * edge_y
        distance = off_x * off_x + off_y * off_y
        if nearest is None:
            end, part, gap_x, gap_y, nearest = owner + following * num_faces, along, off_x, off_y, distance
            continue
        closer = distance < nearest
        start = torch.where(closer, owner + edge * num_faces, start)
        end = torch.where(closer, owner + following * num_faces, end)
        part, gap_x, gap_y = (
            torch.where(closer, new, old) for new, old in ((along, part), (off_x, gap_x), (off_y, gap_y))
        )
        nearest = torch.minimum(distance, nearest)
    return start, end, part, gap_x, gap_y

"""The hard part of DIB-R: which face is seen at each pixel, and with which weights of its corners.

The search runs without gradient over candidate (face, pixel) pairs and scatter reductions: no loop over faces or
pixels, no table of faces times pixels. The barycentric weights are then recomputed with autograd for the faces that
are seen, at pixel centers held fixed. So occlusion borders and the silhouette carry no gradient, as published.

Axes are DIB-R's: x right, y up, larger z is nearer.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meshinv.renderers.pairs import boxes, by_component, centers, chunks, positions, ranges, spans

MAX_PAIRS = 1 << 20


class Constants(NamedTuple):
    """Numerical guards in which the two generations of NVIDIA's kernel differ (images differ by at most 3e-6).

    Args:
        area: added to twice the area of a face, NDC, before dividing by it.
        soft: added to 1 - e in the gradient of the soft mask.
        farthest: nothing at this depth or behind it is drawn.
    """

    area: float
    soft: float
    farthest: float


# NVIDIA's kernels multiply coordinates by 1000, and guard the areas by 1e-15 (2019) or 1e-8 (0.18) after that.
KAOLIN_2019 = Constants(area=1e-21, soft=1e-15, farthest=-1000.0)
KAOLIN = Constants(area=1e-14, soft=1e-7, farthest=-float("inf"))


@dataclass(frozen=True)
class Raster:
    """What a rasterization saw: the face at every pixel, and the covered pixels as a list.

    Args:
        face: index of the face, -1 where there is none.
        pixel: covered pixels in order, indices into the flattened [B, H, W].
        owner: the face seen at each of them, indices into the flattened [B, F].
        weights: its barycentric weights, differentiable in the corners.
    """

    face: Int[Tensor, "B H W"]
    pixel: Int[Tensor, "N"]
    owner: Int[Tensor, "N"]
    weights: Float[Tensor, "3 N"]

    def interpolate(self, attribute: Float[Tensor, "B F 3 C"]) -> Float[Tensor, "C N"]:
        """An attribute of the corners at the covered pixels."""
        channels = attribute.shape[3]
        table = attribute.permute(3, 2, 0, 1).reshape(3 * channels, -1)
        taken = table.gather(1, self.owner.expand(3 * channels, -1)).unflatten(0, (channels, 3))
        return (taken * self.weights).sum(1)

    def per_face(self, attribute: Float[Tensor, "B F C"]) -> Float[Tensor, "C N"]:
        """An attribute of the faces at the covered pixels."""
        channels = attribute.shape[2]
        return attribute.permute(2, 0, 1).flatten(1).gather(1, self.owner.expand(channels, -1))

    def image(self, values: Float[Tensor, "C N"]) -> Float[Tensor, "B C H W"]:
        """Values of the covered pixels as an image, 0 elsewhere."""
        blank = values.new_zeros(len(values), self.face.numel())
        filled = blank.scatter(1, self.pixel.expand(len(values), -1), values)
        return filled.view(len(values), *self.face.shape).transpose(0, 1)


def rasterize(
    corner_xy: Float[Tensor, "B F 3 2"],
    corner_z: Float[Tensor, "B F 3"],
    normal_z: Float[Tensor, "B F"],
    height: int,
    width: int,
    *,
    corner_weight: Float[Tensor, "B F 3"] | None = None,
    constants: Constants = KAOLIN,
    max_pairs: int = MAX_PAIRS,
) -> Raster:
    """The nearest front face at every pixel center; of faces equally near, the first.

    Args:
        corner_z: depth, larger is nearer, interpolated affinely over the screen.
        normal_z: faces where it is negative are not drawn.
        corner_weight: homogeneous weights (1 / w of the corners) for perspective-correct interpolation of attributes.
        max_pairs: (face, pixel) pairs looked at together; bounds the memory.
    """
    batch, num_faces = normal_z.shape
    corners = by_component(corner_xy)
    with torch.no_grad():
        winner = _nearest(corners, corner_z, normal_z, height, width, constants, max_pairs)
        pixel = (winner >= 0).nonzero().squeeze(1)
        owner = winner.index_select(0, pixel)
        first_face = torch.arange(batch, device=pixel.device)[:, None] * num_faces
        face = (winner.view(batch, height * width) - first_face).clamp(min=-1).view(batch, height, width)
        x, y = positions(batch, height, width, corners).index_select(1, pixel)
    taken = corners.gather(1, owner.expand(6, -1))
    areas = torch.stack(_edge_functions(taken[:3] - x, taken[3:] - y))
    total = areas.sum(0)
    weights = areas / (total + constants.area * total.detach().sign())
    if corner_weight is not None:
        weights = perspective_correct(weights, owner, corner_weight)
    return Raster(face, pixel, owner, weights)


def perspective_correct(
    weights: Float[Tensor, "3 N"], owner: Int[Tensor, "N"], corner_weight: Float[Tensor, "B F 3"]
) -> Float[Tensor, "3 N"]:
    """Weights on the screen as weights in space; see `rasterize`."""
    homogeneous = corner_weight.permute(2, 0, 1).flatten(1).gather(1, owner.expand(3, -1))
    weights = weights * homogeneous
    return weights / weights.sum(0)


def _edge_functions(dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the signed areas of the triangles pixel - next corner - last corner; their sum is twice the face's.

    Written so that swapping the two corners of an edge flips the sign exactly: neighbors leave no gap between them.
    """
    return dx[1] * dy[2] - dx[2] * dy[1], dx[2] * dy[0] - dx[0] * dy[2], dx[0] * dy[1] - dx[1] * dy[0]


def _nearest(
    corners: Tensor, corner_z: Tensor, normal_z: Tensor, height: int, width: int, constants: Constants, max_pairs: int
) -> Tensor:
    """Flat index of the face seen at every pixel of the flattened [B, H, W], or -1."""
    batch, num_faces = normal_z.shape
    box = boxes(corners.view(2, 3, -1).permute(2, 1, 0), height, width)
    orientation = sum(_edge_functions(corners[:3] - corners[:1], corners[3:] - corners[3:4])).sign()
    drawn = (normal_z.flatten() >= 0) & (orientation != 0) & (box.left < box.right) & (box.top < box.bottom)
    drawn = drawn.nonzero().squeeze(1)
    x_centers, y_centers = centers(width, corners), centers(height, corners).flip(0)
    depths = corner_z.permute(2, 0, 1).flatten(1)
    nearest = corners.new_full((batch * height * width,), constants.farthest)
    winner = torch.full_like(nearest, -1, dtype=torch.long)
    nobody = batch * num_faces
    for part in chunks(box.area().index_select(0, drawn), max_pairs):
        faces = drawn[part]
        left, right, top, bottom = (edge.index_select(0, faces) for edge in box)
        face, row = ranges(top, bottom - top)
        owner = faces.index_select(0, face)
        # A face seen from behind but asked for is turned around, so that inside means three areas >= 0 for all.
        turn = orientation.index_select(0, owner)
        x = corners[:3].index_select(1, owner)
        dy = (corners[3:].index_select(1, owner) - y_centers.index_select(0, row)) * turn
        left, right = spans(x, dy, left.index_select(0, face), right.index_select(0, face), width)
        line, column = ranges(left, right - left)
        pair = torch.cat([x, dy]).index_select(1, line)
        areas = _edge_functions(pair[:3] - x_centers.index_select(0, column), pair[3:])
        inside = (torch.minimum(torch.minimum(areas[0], areas[1]), areas[2]) >= 0).nonzero().squeeze(1)
        line, column = line.index_select(0, inside), column.index_select(0, inside)
        first_pixel = (torch.div(owner, num_faces, rounding_mode="floor") * height + row) * width
        owner, pixel = owner.index_select(0, line), first_pixel.index_select(0, line) + column
        areas = torch.stack([area.index_select(0, inside) for area in areas])
        z = (areas * depths.index_select(1, owner)).sum(0) / areas.sum(0)
        before = nearest.index_select(0, pixel)
        z = torch.where(z > before, z, before)
        nearest.scatter_reduce_(0, pixel, z, "amax")
        front = ((z == nearest.index_select(0, pixel)) & (z > before)).nonzero().squeeze(1)
        owner, pixel = owner.index_select(0, front), pixel.index_select(0, front)
        winner.scatter_(0, pixel, nobody)
        winner.scatter_reduce_(0, pixel, owner, "amin")
    return winner

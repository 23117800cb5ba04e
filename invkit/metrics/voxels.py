"""The inside of a triangle mesh as a grid of voxels.

Of a closed mesh, a voxel is inside if a ray from its center along z crosses the surface an odd number of times. All
columns of voxels and all faces are treated at once, and where a ray meets an edge or a corner exactly one of the faces
there counts. Of other meshes, inside is what lies between faces (`enclosed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MAX_PAIRS = 1 << 22  # (column, face) pairs examined at a time; bounds the memory


@dataclass(frozen=True)
class Grid:
    """`size`^3 voxels over the cube [low, high]^3. The default holds an object of about 2 units and some error."""

    size: int = 64
    low: float = -1.5
    high: float = 1.5


def union(parts: Sequence[tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]], grid: Grid) -> Bool[Tensor, "X Y Z"]:
    """The solid that is made of closed meshes (vertices, faces), which may overlap.

    Raises:
        ValueError: a part is not closed, or there are none.
    """
    if not parts:
        raise ValueError("a solid needs at least one mesh")
    filled = [voxelize(vertices[None], faces, grid.size, low=grid.low, high=grid.high)[0] for vertices, faces in parts]
    return torch.stack(filled).any(dim=0)


def enclosed(parts: Sequence[tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]], grid: Grid) -> Bool[Tensor, "X Y Z"]:
    """The solid that meshes (vertices, faces) surround which need not be closed, such as CAD models for pictures.

    A voxel belongs to it if a face passes through it, or if it lies between two such voxels along two of the three
    axes at least: models without an underside are solid too.

    Raises:
        ValueError: there are no meshes, or one of them leaves the grid, where it would be cut off.
    """
    if not parts:
        raise ValueError("a solid needs at least one mesh")
    reach = max(float(vertices.abs().max()) for vertices, _ in parts)
    if reach > min(-grid.low, grid.high):
        raise ValueError(
            f"a model reaches {reach:.2f} from the origin, beyond the grid: give a larger grid.low and .high"
        )
    step = (grid.high - grid.low) / grid.size
    shell = torch.zeros((grid.size,) * 3, dtype=torch.bool, device=parts[0][0].device)
    for vertices, faces in parts:
        voxel = ((_samples(vertices.double()[faces], step / 2) - grid.low) / step).long().clamp(0, grid.size - 1)
        shell[tuple(voxel.T)] = True
    between = torch.zeros_like(shell, dtype=torch.uint8)
    for axis in range(3):
        before, after = shell.cummax(dim=axis).values, shell.flip(axis).cummax(dim=axis).values.flip(axis)
        between += before & after
    return shell | (between >= 2)


def _samples(corners: Float[Tensor, "F 3 3"], spacing: float) -> Float[Tensor, "N 3"]:
    """Points on triangles, no farther from each other along the edges than that."""
    longest = (corners - corners.roll(-1, dims=1)).norm(dim=2).amax(dim=1)
    pieces = (longest / spacing).ceil().clamp(min=1).long()
    # Few numbers of pieces, each a power of two, so that many faces are sampled at once.
    pieces = 2 ** (pieces.double().log2().ceil().long())
    found = []
    for count in pieces.unique().tolist():
        first, second = torch.meshgrid(*[torch.arange(count + 1, dtype=corners.dtype) / count] * 2, indexing="ij")
        inside = first + second <= 1 + 0.5 / count
        weights = torch.stack([first, second, 1 - first - second], dim=-1)[inside].to(corners.device)
        chosen = corners[pieces == count]
        found += [(weights @ part).reshape(-1, 3) for part in chosen.split(max(1, _MAX_PAIRS // len(weights)))]
    return torch.cat(found)


def voxelize(
    vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], size: int, *, low: float = -0.5, high: float = 0.5
) -> Bool[Tensor, "B size size size"]:
    """Solid grids, indexed [x, y, z]: voxel i of an axis has its center at low + (i + 1/2) (high - low) / size.

    What lies outside the cube [low, high]^3 is cut off. Where a mesh passes through itself, a region it covers twice is
    outside, as the rule says.

    Raises:
        ValueError: the surface is not closed (an edge has an odd number of faces).
    """
    return torch.stack([_fill(mesh, faces, size, low, high) for mesh in vertices.double()])


def _fill(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], size: int, low: float, high: float) -> Tensor:
    # Corners at the same place become one, so that faces that touch share their edges to the last bit.
    corners, of_vertex = torch.unique(vertices, dim=0, return_inverse=True)
    faces = of_vertex[faces]
    sides = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values  # [F, 3, 2], ends in one order
    edges, of_side, uses = torch.unique(sides.view(-1, 2), dim=0, return_inverse=True, return_counts=True)
    # An edge of no length belongs to a face that has collapsed; no ray meets it.
    if bool((uses[edges[:, 0] != edges[:, 1]] % 2).any()):
        raise ValueError("the mesh is not closed: an edge has an odd number of faces, so it has no inside")
    step = (high - low) / size
    centers = low + (torch.arange(size, dtype=vertices.dtype, device=vertices.device) + 0.5) * step
    columns = torch.cartesian_prod(centers, centers)
    flips = torch.zeros(size * size, size + 1, dtype=torch.int32, device=vertices.device)
    part = max(1, _MAX_PAIRS // max(len(faces), 1))
    for start in range(0, len(columns), part):
        xy = columns[start : start + part]
        crossed = _right_of(xy, corners[edges[:, 0]], corners[edges[:, 1]])
        first, second, third = (crossed[:, side] for side in of_side.view(-1, 3).T)
        column, face = (first ^ second ^ third).nonzero(as_tuple=True)
        depth = _depth(xy[column], corners[faces[face]])
        # The first voxel whose center lies behind the crossing; from there on inside and outside change places.
        voxel = ((depth - low) / step - 0.5).ceil().clamp(0, size).long()
        flips.index_put_((start + column, voxel), torch.ones_like(voxel, dtype=torch.int32), accumulate=True)
    return (flips.cumsum(dim=1)[:, :size] % 2).bool().view(size, size, size)


def _right_of(xy: Float[Tensor, "N 2"], start: Float[Tensor, "E 3"], end: Float[Tensor, "E 3"]) -> Bool[Tensor, "N E"]:
    """Whether a ray in the plane from each point towards larger x crosses each edge.

    An edge owns its lower but not its upper end. A point is inside a triangle if an odd number of its edges is crossed,
    and then the triangles of a closed outline are met an even number of times, whatever the rounding.
    """
    x, y = xy[:, :1], xy[:, 1:]
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    height = end[:, 1] - start[:, 1]
    slope = (end[:, 0] - start[:, 0]) / torch.where(height == 0, 1.0, height)
    return spans & (x < start[:, 0] + (y - start[:, 1]) * slope)


def _depth(xy: Float[Tensor, "N 2"], corners: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N"]:
    """z of each face's plane at its point; a face seen edge-on gives some z of its own range."""
    origin = corners[:, 0]
    normal = torch.linalg.cross(corners[:, 1] - origin, corners[:, 2] - origin)
    upright = normal[:, 2]
    rise = ((xy - origin[:, :2]) * normal[:, :2]).sum(dim=1) / torch.where(upright == 0, 1.0, upright)
    return torch.clamp(origin[:, 2] - rise, corners[..., 2].amin(dim=1), corners[..., 2].amax(dim=1))

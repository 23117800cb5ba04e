"""Radiance fields as triangle meshes with vertex colors (marching cubes; appendix A.2).

The surface is where the signed distance is 0, found on the nodes of a grid over the box. Two things make that cheap
without changing it:

1. Nodes lie in rows, so planes are enlarged to the grid once, and a node's features are the mean of three entries.
2. First every fourth node alone is looked at. Where distances vary too little to reach 0 in between, only the sign is
   kept; from where the surface is found it is followed, so that it has no holes.
"""

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from jaxtyping import Bool, Float, Int
from skimage.measure import marching_cubes
from torch import Tensor

from invkit.export import y_up
from invkit.images import to_uint8
from invkit.precision import widened
from invkit.protocols import NoSurface
from nerfinv.field import RadianceField

STRIDE = 4
"""Cells along a side of the bricks that are looked at as a whole first."""

MARGIN = 2.0
"""How much more than between its corners, and those of its neighbors, distances may vary inside a brick."""

SMALL = 32
"""Nodes along a side below which all of them are decoded: an object could hide in a brick."""

AT_ONCE = 65536
"""Points decoded at once."""

WALL = 0.01
"""How far outside the box it is closed, in cells: just so far that no two vertices there are the same."""


def models(
    field: RadianceField, names: list[str], resolution: int = 256, *, largest: bool = False
) -> list[trimesh.Trimesh]:
    """Each field of the batch for trimesh: y up, object units, closed, counter-clockwise seen from outside.

    Colors and normals are the field's own; a color that depends on the view is that seen from straight above the
    surface. Where an object reaches out of the box it is cut off.

    Args:
        names: of the fields, for errors.
        resolution: nodes along a side of the grid; its cells are 2 r / (resolution - 1).
        largest: leave out what floats beside the object (see `largest_piece`).

    Raises:
        NoSurface: one of the fields is nowhere solid.
        ValueError: the grid is too coarse, or there are not as many names as fields.
    """
    if len(names) != len(field):
        raise ValueError(f"names: {len(names)} of them for {len(field)} fields")
    return [model(field[index], name, resolution, largest=largest) for index, name in enumerate(names)]


@torch.no_grad()
def model(field: RadianceField, name: str, resolution: int = 256, *, largest: bool = False) -> trimesh.Trimesh:
    """The only field of a batch as in `models`."""
    vertices, faces = surface(grid_distances(field, resolution), field.half_side, name)
    if largest:
        vertices, faces = largest_piece(vertices, faces)
    shape = trimesh.Trimesh(vertices, faces, process=False)
    points = torch.from_numpy(vertices).to(field.planes)
    colors, normals = [], []
    for part, own in zip(
        points.split(AT_ONCE), torch.tensor(shape.vertex_normals).to(points).split(AT_ONCE), strict=True
    ):
        found = outward(field, part)
        # On the walls of the box the field says nothing of the direction.
        usable = field.inside(part) & (found.norm(dim=-1) > 0.5)
        found = torch.where(usable[:, None], found, own)
        normals.append(found.cpu())
        colors.append(field.color(part[None], -found[None])[0].cpu())
    pixels = to_uint8(torch.cat(colors).T[None, :, None].float())[0, 0]
    return trimesh.Trimesh(
        vertices=y_up(torch.from_numpy(vertices)).numpy(),
        faces=faces,
        vertex_normals=y_up(torch.cat(normals)).double().numpy(),
        vertex_colors=np.concatenate([pixels.numpy(), np.full((len(pixels), 1), 255, np.uint8)], axis=1),
        process=False,
    )


def signed(field: RadianceField, value: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Negative inside and positive outside: the distance, or how far a raw density is from half occupied."""
    return value if field.density.signed_distance else 1 - value


def outward(field: RadianceField, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Unit normals of the only field of a batch."""
    normals = field.normals(points[None])[0]
    return normals if field.density.signed_distance else -normals


def surface(
    distances: Float[Tensor, "R R R"], half_side: float, name: str
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """Vertices (object frame and units) and faces of the zero set of distances at the nodes of a grid over the box.

    Raises:
        NoSurface: no distance is negative.
    """
    lowest = float(distances.min())
    if not lowest < 0:
        raise NoSurface(f"{name}: the field has no surface: the least distance to one is {lowest:.3g} in its box")
    resolution = len(distances)
    # A node exactly on the surface would make triangles without area.
    distances = torch.where(distances == 0, torch.finfo(distances.dtype).tiny, distances)
    outside = float(distances.abs().max()) / WALL
    volume = F.pad(distances, (1,) * 6, value=outside).cpu().numpy()
    vertices, faces, _, _ = marching_cubes(volume, level=0.0, gradient_direction="descent")
    cell = 2 * half_side / (resolution - 1)
    return (vertices.astype(np.float64) - 1) * cell - half_side, faces.astype(np.int64)


def largest_piece(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """The connected piece with the most faces."""
    piece = trimesh.graph.connected_component_labels(trimesh.geometry.faces_to_edges(faces), node_count=len(vertices))
    kept = piece == np.bincount(piece[faces[:, 0]]).argmax()
    return vertices[kept], (np.cumsum(kept) - 1)[faces[kept[faces[:, 0]]]]


@torch.no_grad()
def grid_distances(field: RadianceField, resolution: int, *, every_node: bool = False) -> Float[Tensor, "R R R"]:
    """Signed distances of the only field of a batch at nodes that divide its box evenly, indexed [x, y, z].

    Where there is no surface near, only the sign is that of the field.

    Args:
        every_node: decode all nodes, which takes many times as long.

    Raises:
        ValueError: the grid is too coarse, or the batch does not hold exactly one field.
    """
    if resolution < 2 or len(field) != 1:
        raise ValueError(
            f"resolution={resolution} must be 2 or more, and the batch hold one field and not {len(field)}"
        )
    nodes = _Nodes(field, resolution)
    like = field.planes
    if every_node or resolution < SMALL:
        index = torch.arange(resolution, device=like.device)
        return nodes.at(torch.cartesian_prod(index, index, index)).view((resolution,) * 3)
    corner = torch.tensor([*range(0, resolution - 1, STRIDE), resolution - 1], device=like.device)
    coarse = nodes.at(torch.cartesian_prod(corner, corner, corner)).view((len(corner),) * 3)
    # Until they are decoded, nodes have the distance of a corner of their brick: all its corners have the same sign.
    brick = (torch.arange(resolution, device=like.device) // STRIDE).clamp(max=len(corner) - 2)
    distances = coarse.index_select(0, brick).index_select(1, brick).index_select(2, brick)
    done = torch.zeros_like(distances, dtype=torch.bool)
    chosen = _near_surface(coarse)
    while True:
        wanted = (_nodes_of(chosen, resolution) & ~done).nonzero()
        if not len(wanted):
            return distances
        places = wanted.unbind(1)
        distances[places] = nodes.at(wanted)
        done[places] = True
        chosen = chosen | _mixed(distances > 0)


class _Nodes:
    """The features of grid nodes: of each plane a table of its own."""

    def __init__(self, field: RadianceField, resolution: int) -> None:
        self.field, self.resolution = field, resolution
        planes = widened(field.planes[0])
        planes = F.interpolate(planes, size=(resolution, resolution), mode="bilinear", align_corners=True)
        # Rows of a plane are its second coordinate; here the first comes first.
        self.tables = [plane.permute(2, 1, 0).reshape(resolution**2, -1) / 3 for plane in planes]

    def at(self, index: Int[Tensor, "P 3"]) -> Float[Tensor, "P"]:
        """Signed distances at nodes."""
        found = []
        for part in index.split(AT_ONCE):
            x, y, z = part.unbind(1)
            rows = x * self.resolution + y, x * self.resolution + z, y * self.resolution + z
            features = sum(table.index_select(0, row) for table, row in zip(self.tables, rows, strict=True))
            found.append(self.field.decoder.value(features))
        return signed(self.field, torch.cat(found))


def _near_surface(corners: Float[Tensor, "N N N"]) -> Bool[Tensor, "n n n"]:
    """Bricks in which the distance may become 0, judged by their corners.

    No point is farther from the next corner than half a brick along each axis; a distance that varies there MARGIN
    times as much as anywhere nearby between corners must not reach 0.
    """
    as_image = corners[None, None]
    least = -F.max_pool3d(-as_image.abs(), 2, stride=1)
    change = torch.zeros_like(least)
    for axis in (2, 3, 4):
        along = as_image.diff(dim=axis).abs()
        kernel = [2, 2, 2]
        kernel[axis - 2] = 1
        change += F.max_pool3d(along, tuple(kernel), stride=1) / 2
    change = F.max_pool3d(change, 3, stride=1, padding=1)
    return (least <= MARGIN * change)[0, 0] | _mixed(corners > 0, stride=1)


def _mixed(positive: Bool[Tensor, "R R R"], stride: int = STRIDE) -> Bool[Tensor, "n n n"]:
    """Bricks with nodes on both sides."""
    return _any_node(positive, stride) & _any_node(~positive, stride)


def _any_node(nodes: Bool[Tensor, "R R R"], stride: int) -> Bool[Tensor, "n n n"]:
    """Bricks of `stride` cells with any of these nodes; the last ones may have fewer cells."""
    for axis in range(3):
        rows = nodes.movedim(axis, 0)
        missing = -(len(rows) - 1) % stride
        rows = torch.cat([rows, rows[-1:].expand(missing, -1, -1)])
        rows = rows[:-1].unflatten(0, (-1, stride)).any(dim=1) | rows[stride::stride]
        nodes = rows.movedim(0, axis)
    return nodes


def _nodes_of(bricks: Bool[Tensor, "n n n"], resolution: int) -> Bool[Tensor, "R R R"]:
    """The nodes of chosen bricks, those on their faces included."""
    nodes = bricks
    for axis in range(3):
        cells = nodes.repeat_interleave(STRIDE, dim=axis).narrow(axis, 0, resolution - 1).movedim(axis, 0)
        nodes = torch.cat([cells[:1], cells[1:] | cells[:-1], cells[-1:]]).movedim(0, axis)
    return nodes

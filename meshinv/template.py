"""The UV sphere that every mesh is a displacement of.

A mesh generator draws a picture: three displacement channels over the UV square. The template says where each vertex
reads that picture and in which directions the three numbers push it. Vertices left of the mirror plane x = 0 read
where their partners read, so that a symmetric shape comes out of any picture at all.

Rings run from the north pole (+y, r = 0) to the south pole (r = R), segments j = 0..31 around it. UV: u = j / 32 to the
right, v = 1 - r / R up; the seam is doubled (u = 0 and u = 1) and a pole has one entry for each triangle that meets it.
Section and equation numbers of the sources are in the package README.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SEGMENTS = 32
MIN_RINGS = 3
CPU = torch.device("cpu")


class _Arrays(NamedTuple):
    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    face_uvs: Tensor
    vertex_uvs: Tensor
    partners: Tensor
    sides: Tensor
    frames: Tensor


class _Adjacency(NamedTuple):
    edges: Tensor
    edge_faces: Tensor
    face_neighbors: Tensor


@dataclass(frozen=True)
class Template:
    """A unit UV sphere; equal arguments give equal templates, and all of them share one set of arrays.

    Args:
        rings: latitude gaps R; 16 for birds (482 vertices, 960 faces), 31 for cars (962 vertices, 1920 faces).
        symmetric: meshes and textures are mirror images of themselves in x.
        device: where the arrays are; `to` moves them.
        dtype: of the floating-point arrays; they are exact in it, as they are built in float64.

    Raises:
        ValueError: fewer than 3 rings.
    """

    rings: int = 16
    symmetric: bool = True
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.rings < MIN_RINGS:
            raise ValueError(f"a template needs at least {MIN_RINGS} rings; got rings={self.rings}")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Template":
        """The same template with its arrays on `device`; always the same object for the same arguments."""
        return _template(self.rings, self.symmetric, torch.device(device), self.dtype if dtype is None else dtype)

    @property
    def vertices(self) -> Float[Tensor, "V 3"]:
        """The sphere itself: unit vectors, x = 0 the mirror plane, +y the north pole."""
        return self._arrays.vertices

    @property
    def faces(self) -> Int[Tensor, "F 3"]:
        """Vertex indices, counter-clockwise seen from outside."""
        return self._arrays.faces

    @property
    def uvs(self) -> Float[Tensor, "N 2"]:
        """Entries of the UV table; more than vertices, as the seam and the poles are repeated."""
        return self._arrays.uvs

    @property
    def face_uvs(self) -> Int[Tensor, "F 3"]:
        """UV entries of the corners of each face, counter-clockwise in the UV square."""
        return self._arrays.face_uvs

    @property
    def vertex_uvs(self) -> Float[Tensor, "V 2"]:
        """Where each vertex reads a displacement map: u = 0 on the seam, u = 1/2 at the poles."""
        return self._arrays.vertex_uvs

    @property
    def partners(self) -> Int[Tensor, "V"]:
        """The mirror image of each vertex; its own index on the mirror plane."""
        return self._arrays.partners

    @property
    def sides(self) -> Int[Tensor, "V"]:
        """Sign of x: 1, -1, and 0 on the mirror plane."""
        return self._arrays.sides

    @property
    def frames(self) -> Float[Tensor, "V 3 3"]:
        """Rows normal, tangent (east), bitangent (south); tangent and bitangent are 0 at the poles."""
        return self._arrays.frames

    @property
    def edges(self) -> Int[Tensor, "E 2"]:
        """The two vertices of every edge, each edge once."""
        return self._adjacency.edges

    @property
    def edge_faces(self) -> Int[Tensor, "E 2"]:
        """The two faces that share each edge."""
        return self._adjacency.edge_faces

    @property
    def face_neighbors(self) -> Int[Tensor, "F 3"]:
        """Faces across the edges (0, 1), (1, 2) and (2, 0) of each face."""
        return self._adjacency.face_neighbors

    @cached_property
    def _arrays(self) -> _Arrays:
        return _Arrays(*(self._placed(array) for array in _sphere(self.rings)))

    @cached_property
    def _adjacency(self) -> _Adjacency:
        return _Adjacency(*(self._placed(array) for array in _adjacency(self.rings)))

    def _placed(self, array: Tensor) -> Tensor:
        # An array first asked for during inference must still serve training later.
        with torch.inference_mode(False):
            return array.to(self.device, self.dtype if array.is_floating_point() else array.dtype, copy=True)

    def deform(self, displacement: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B V 3"]:
        """Vertices pushed along their frames by what they read in the map: channels normal, tangent, bitangent.

        Columns of the map are cell centers and wrap around, rows run from pole to pole. In a symmetric template the
        left half follows the right one and the mirror plane stays in place.
        """
        here = self.to(displacement.device, displacement.dtype)
        reads = _reads(here, *displacement.shape[2:])
        taps = displacement.flatten(2).index_select(2, reads.index).unflatten(2, (-1, 4))
        along = (taps * reads.weight).sum(3)
        return here.vertices + (along[..., None] * reads.directions).sum(1)

    def pad_texture(self, texture: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W_padded"]:
        """The texture with the columns repeated that a lookup across the seam needs; goes with `texture_uvs`."""
        if self.symmetric:
            return torch.cat([texture[..., -1:], texture, texture[..., :1]], dim=-1)
        return torch.cat([texture, texture[..., :1]], dim=-1)

    def texture_uvs(self, width: int) -> Float[Tensor, "N 2"]:
        """The UV table for a padded texture of `width` columns before padding, sampled with corners aligned.

        A point reads the unpadded column u W - 1/2 (symmetric) or u W, and the row (1 - v)(H - 1).
        """
        if not self.symmetric:
            return self.uvs
        u = (self.uvs[:, :1] + 1 / (2 * width)) * (width / (width + 1))
        return torch.cat([u, self.uvs[:, 1:]], dim=1)


@cache
def _template(rings: int, symmetric: bool, device: torch.device, dtype: torch.dtype) -> Template:
    return Template(rings, symmetric, device, dtype)


def average_poles(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The maps with their first and last rows replaced by the means of these rows: a pole is one point."""
    first, last = (
        maps[:, :, row : row + 1].mean(3, keepdim=True).expand(*maps.shape[:2], 1, maps.shape[3])
        for row in (0, -1 % maps.shape[2])
    )
    return torch.cat([first, maps[:, :, 1:-1], last], dim=2)


def unfold(half: Float[Tensor, "B C H N"]) -> Float[Tensor, "B C H W"]:
    """Full maps from the half 0.25 <= u <= 0.75, reflected evenly at both of its borders; twice as wide.

    Raises:
        ValueError: the half map has an odd number of columns.
    """
    columns = half.shape[3]
    if columns % 2:
        raise ValueError(f"a half map must have an even number of columns to be unfolded; got {columns}")
    mirrored = half.flip(3)
    return torch.cat([mirrored[..., columns // 2 :], half, mirrored[..., : columns // 2]], dim=3)


def mirror_maps(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """UV maps of the mirrored object: u becomes 1/2 - u."""
    return maps.flip(3).roll(-(maps.shape[3] // 2), 3)


@cache
def _sphere(rings: int) -> _Arrays:
    """The arrays of the sphere on the CPU, float64."""
    with torch.inference_mode(False):
        exact = {"dtype": torch.float64, "device": CPU}
        ring = torch.arange(1, rings, device=CPU).repeat_interleave(SEGMENTS)
        segment = torch.arange(SEGMENTS, device=CPU).repeat(rings - 1)
        north, south = 0, 1 + ring.numel()
        theta, phi = ring.to(torch.float64) * (math.pi / rings), segment.to(torch.float64) * (2 * math.pi / SEGMENTS)
        body = torch.stack([-theta.sin() * phi.cos(), theta.cos(), theta.sin() * phi.sin()], dim=1)
        poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], **exact)
        vertices = torch.cat([poles[:1], body, poles[1:]])
        mirrored = 1 + (ring - 1) * SEGMENTS + (SEGMENTS // 2 - segment) % SEGMENTS
        partners = torch.cat([torch.tensor([north]), mirrored, torch.tensor([south])])
        # Exactly symmetric, so that a vertex of the mirror plane has x = 0 and not 1e-17.
        flipped = vertices[partners] * torch.tensor([-1.0, 1.0, 1.0], **exact)
        vertices = (vertices + flipped) / 2
        at_pole = torch.tensor([[0.5, 1.0], [0.5, 0.0]], **exact)
        body_uvs = torch.stack([segment / SEGMENTS, 1 - ring / rings], dim=1).to(torch.float64)
        vertex_uvs = torch.cat([at_pole[:1], body_uvs, at_pole[1:]])
        east = torch.stack([-vertices[:, 2], torch.zeros_like(vertices[:, 0]), vertices[:, 0]], dim=1)
        east = torch.nn.functional.normalize(east, dim=1, eps=1e-12)
        frames = torch.stack([vertices, east, torch.linalg.cross(vertices, east)], dim=1)
        corners, uvs = _triangles(rings)
        return _Arrays(
            vertices=vertices,
            faces=corners[..., 0],
            uvs=uvs,
            face_uvs=corners[..., 1],
            vertex_uvs=vertex_uvs,
            partners=partners,
            sides=vertices[:, 0].sign().long(),
            frames=frames,
        )


def _triangles(rings: int) -> tuple[Tensor, Tensor]:
    """(vertex, UV entry) of every corner, [F, 3, 2], and the UV table, [N, 2]."""
    line = SEGMENTS + 1
    j = torch.arange(SEGMENTS, device=CPU)
    south = 1 + (rings - 1) * SEGMENTS

    def corner(r: Tensor, j: Tensor) -> Tensor:
        return torch.stack([1 + (r - 1) * SEGMENTS + j % SEGMENTS, (r - 1) * line + j], dim=-1)

    top, bottom = torch.ones_like(j), torch.full_like(j, rings - 1)
    first_pole_uv = (rings - 1) * line
    north_pole = torch.stack([torch.zeros_like(j), first_pole_uv + j], dim=-1)
    south_pole = torch.stack([torch.full_like(j, south), first_pole_uv + SEGMENTS + j], dim=-1)
    north_cap = torch.stack([corner(top, j + 1), north_pole, corner(top, j)], dim=1)
    south_cap = torch.stack([south_pole, corner(bottom, j + 1), corner(bottom, j)], dim=1)

    r, j_body = torch.meshgrid(torch.arange(1, rings - 1, device=CPU), j, indexing="ij")
    a, b, c, d = (corner(r + dr, j_body + dj) for dr, dj in ((0, 0), (0, 1), (1, 0), (1, 1)))
    # The diagonals lean away from the mirror plane, which keeps the triangulation symmetric in x. The two published
    # templates made opposite choices.
    inner = (j >= SEGMENTS // 4) & (j < 3 * SEGMENTS // 4)
    along_ad = (inner if rings % 2 == 0 else ~inner)[None, :, None, None, None]
    split_ad = torch.stack([torch.stack([d, a, c], dim=2), torch.stack([d, b, a], dim=2)], dim=2)
    split_bc = torch.stack([torch.stack([b, c, d], dim=2), torch.stack([b, a, c], dim=2)], dim=2)
    body = torch.where(along_ad, split_ad, split_bc).reshape(-1, 3, 2)

    exact = {"dtype": torch.float64, "device": CPU}
    v = 1 - torch.arange(1, rings, **exact) / rings
    grid = torch.cartesian_prod(v, torch.arange(line, **exact) / SEGMENTS).flip(1)
    middle = (torch.arange(SEGMENTS, **exact) + 0.5) / SEGMENTS
    caps = [torch.stack([middle, torch.full_like(middle, pole)], dim=1) for pole in (1.0, 0.0)]
    return torch.cat([north_cap, body, south_cap]), torch.cat([grid, *caps])


@cache
def _adjacency(rings: int) -> _Adjacency:
    """Edges and who shares them, on the CPU. The sphere is closed, so that every edge belongs to exactly two faces."""
    with torch.inference_mode(False):
        faces = _sphere(rings).faces
        num_faces = len(faces)
        halves = torch.stack([faces, faces.roll(-1, 1)], dim=2).sort(dim=2).values.reshape(-1, 2)
        order = (halves[:, 0] * (faces.max() + 1) + halves[:, 1]).argsort(stable=True).view(-1, 2)
        across = torch.empty(3 * num_faces, dtype=torch.long, device=CPU)
        across[order] = order.flip(1)
        return _Adjacency(
            edges=halves[order[:, 0]],
            edge_faces=order // 3,
            face_neighbors=across.view(num_faces, 3) // 3,
        )


class _Reads(NamedTuple):
    index: Tensor  # [4 V] pixels of the flattened map
    weight: Tensor  # [V, 4]
    directions: Tensor  # [3, V, 3] object-space direction of each channel


@lru_cache(maxsize=64)
def _reads(template: Template, height: int, width: int) -> _Reads:
    """Which pixels of a map each vertex reads, with which weights, and where the channels push it."""
    arrays = _sphere(template.rings)
    with torch.inference_mode(False):
        frames, source = arrays.frames, torch.arange(len(arrays.vertices), device=CPU)
        shift = 0.0
        if template.symmetric:
            source = torch.where(arrays.sides < 0, arrays.partners, source)
            reflect = torch.ones_like(arrays.vertices)
            reflect[:, 0] = torch.where(arrays.sides == 0, 0, torch.where(arrays.sides < 0, -1, 1))
            frames = frames[source] * reflect[:, None]
            shift = 0.5
        u, v = arrays.vertex_uvs[source].unbind(1)
        column, row = u * width - shift, (1 - v) * (height - 1)
        left, above = column.floor(), row.floor()
        right_part, lower_part = column - left, row - above
        left, above = left.long(), above.long()
        # The south pole lies exactly on the last row; the row below it has weight 0.
        rows = torch.stack([above, (above + 1).clamp(max=height - 1)], dim=1)
        columns = torch.stack([left, left + 1], dim=1) % width
        index = rows[:, :, None] * width + columns[:, None, :]
        by_row = torch.stack([1 - lower_part, lower_part], dim=1)
        by_column = torch.stack([1 - right_part, right_part], dim=1)
        weight = (by_row[:, :, None] * by_column[:, None, :]).flatten(1)
        return _Reads(
            index.flatten().to(template.device),
            weight.to(template.device, template.dtype),
            frames.transpose(0, 1).contiguous().to(template.device, template.dtype),
        )

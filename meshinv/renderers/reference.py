"""DIB-R in plain torch: the differentiable rasterizer of MeshInversion, on any device, in float32 and float64.

The search (which face is seen at which pixel, which faces are near a pixel) runs without gradient over candidate
(face, pixel) pairs and scatter reductions. What depends on it smoothly is then recomputed for the winners alone: the
barycentric weights with autograd, the soft silhouette with the gradient of the published kernel. As there, occlusion
borders carry no gradient, the hard mask none at all, and the soft mask reaches `box` beyond the outline.

Axes are DIB-R's: x right, y up, larger z is nearer; `corners_on_screen` converts from `Camera.project`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from invkit import rotation
from invkit.camera import Camera
from invkit.types import Rendering
from meshinv.mesh import TexturedMesh, face_corners
from meshinv.renderers.pairs import boxes, centers, chunks, positions, ranges, spans
from meshinv.template import Template

MAX_PAIRS = 1 << 20
OFF_SCREEN = 4.0
EXTRAS = frozenset({"soft_mask", "depth", "normals", "coords", "face"})


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
        return filled.view(-1, *self.face.shape).transpose(0, 1)


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
    corners = _by_component(corner_xy)
    with torch.no_grad():
        winner = _nearest(corners, corner_z, normal_z, height, width, constants, max_pairs)
        pixel = (winner >= 0).nonzero().squeeze(1)
        owner = winner.index_select(0, pixel)
        first_face = torch.arange(0, batch * num_faces, max(num_faces, 1), device=pixel.device)[:batch, None]
        face = (winner.view(batch, -1) - first_face).clamp(min=-1).view(batch, height, width)
        x, y = positions(batch, height, width, corners).index_select(1, pixel)
    taken = corners.gather(1, owner.expand(6, -1))
    areas = torch.stack(_edge_functions(taken[:3] - x, taken[3:] - y))
    total = areas.sum(0)
    weights = areas / (total + torch.copysign(total.new_tensor(constants.area), total.detach()))
    if corner_weight is not None:
        homogeneous = corner_weight.permute(2, 0, 1).flatten(1).gather(1, owner.expand(3, -1))
        weights = weights * homogeneous
        weights = weights / weights.sum(0)
    return Raster(face, pixel, owner, weights)


def _by_component(corner_xy: Tensor) -> Tensor:
    """[6, B F]: the x of the three corners, then their y."""
    return corner_xy.permute(3, 2, 0, 1).flatten(0, 1).flatten(1).contiguous()


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


def soft_mask(
    corner_xy: Float[Tensor, "B F 3 2"],
    face: Int[Tensor, "B H W"],
    *,
    sigma_inv: float = 7000.0,
    box: float = 0.02,
    max_faces: int = 30,
    constants: Constants = KAOLIN,
) -> Float[Tensor, "B H W"]:
    """1 where `face` says covered, elsewhere 1 - prod(1 - exp(-sigma_inv d^2)) over the nearby faces of either side.

    Args:
        face: as in `Raster`; only its sign matters.
        sigma_inv: sharpness, 1 / NDC^2.
        box: faces are near where the pixel center is in their bounding box widened by this much, NDC.
        max_faces: the first so many of them in index order count.
    """
    return _SoftMask.apply(corner_xy, face, sigma_inv, box, max_faces, constants)


class _SoftMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, corner_xy, face, sigma_inv, box, max_faces, constants):
        corners = _by_component(corner_xy.detach())
        found = _nearby(corners, face, box, max_faces)
        x, y = positions(*face.shape, corners).index_select(1, found.pixel)
        start, end, part, dx, dy = _nearest_on_outline(corners, found.owner, x, y)
        exponent = -sigma_inv * (dx * dx + dy * dy)
        # Not 1 - closeness: a pixel center almost on an edge keeps its digits.
        closeness, away = exponent.exp(), -exponent.expm1()
        clear = corners.new_ones(face.numel()).scatter_reduce_(0, found.pixel, away, "prod")
        clear = torch.where(face.flatten() >= 0, 0, clear)
        slope = -sigma_inv * clear.index_select(0, found.pixel) * closeness / (away + constants.soft)
        ctx.save_for_backward(found.pixel, start, end, part, dx, dy, slope)
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
        return gradient.view(2, 3, batch, num_faces).permute(2, 3, 1, 0), None, None, None, None, None


class _Nearby(NamedTuple):
    owner: Tensor
    pixel: Tensor


def _nearby(corners: Tensor, face: Tensor, box: float, max_faces: int) -> _Nearby:
    """(face, uncovered pixel) pairs of the widened boxes, the first `max_faces` of every pixel in face order."""
    batch, height, width = face.shape
    num_faces = corners.shape[1] // max(batch, 1)
    empty = (face < 0).flatten()
    open_pixels = empty.nonzero().squeeze(1)
    # rank[p]: uncovered pixels before p. A stretch of a row thus is a stretch of the list of uncovered pixels.
    rank = torch.nn.functional.pad(empty.cumsum(0), (1, 0))
    edges = boxes(corners.view(2, 3, -1).permute(2, 1, 0), height, width, box)
    reached = ((edges.left < edges.right) & (edges.top < edges.bottom)).nonzero().squeeze(1)
    left, right, top, bottom = (edge.index_select(0, reached) for edge in edges)
    line_face, row = ranges(top, bottom - top)
    owner = reached.index_select(0, line_face)
    base = (torch.div(owner, max(num_faces, 1), rounding_mode="floor") * height + row) * width
    first = rank.index_select(0, base + left.index_select(0, line_face))
    last = rank.index_select(0, base + right.index_select(0, line_face))
    occupied = (last > first).nonzero().squeeze(1)
    owner, first, last = (t.index_select(0, occupied) for t in (owner, first, last))
    line, place = ranges(first, last - first)
    owner, pixel = owner.index_select(0, line), open_pixels.index_select(0, place)
    count = torch.zeros_like(rank).scatter_add_(0, pixel, torch.ones_like(pixel))
    crowded = count.index_select(0, pixel) > max_faces
    if bool(crowded.any()):
        order = pixel.argsort(stable=True)
        owner, pixel = owner.index_select(0, order), pixel.index_select(0, order)
        position = torch.arange(len(pixel), device=pixel.device) - (count.cumsum(0) - count).index_select(0, pixel)
        kept = (position < max_faces).nonzero().squeeze(1)
        owner, pixel = owner.index_select(0, kept), pixel.index_select(0, kept)
    return _Nearby(owner, pixel)


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


def texture_positions(raster: Raster, template: Template, width: int) -> Float[Tensor, "2 N"]:
    """Where each covered pixel reads the padded texture that had `width` columns before padding."""
    uvs = template.texture_uvs(width)[template.face_uvs]
    return raster.interpolate(uvs.expand(len(raster.face), -1, -1, -1))


def sample(texture: Float[Tensor, "B C H W"], uv: Float[Tensor, "2 N"], raster: Raster) -> Float[Tensor, "C N"]:
    """The texture at the UV position of each covered pixel, bilinear, corners aligned, v up, 0 outside."""
    # grid_sample wants as many points in every image: only the covered pixels are looked up, in rows of equal length.
    batch = len(raster.face)
    counts = (raster.face >= 0).sum((1, 2))
    longest = int(counts.amax()) if batch else 0
    slot = ranges(torch.arange(batch, device=uv.device) * longest, counts)[1]
    to_grid = uv.new_tensor([[2.0], [-2.0]])
    offset = uv.new_tensor([[-1.0], [1.0]])
    grid = uv.new_zeros(2, batch * longest).scatter(1, slot.expand(2, -1), uv * to_grid + offset)
    grid = grid.view(2, batch, 1, longest).permute(1, 2, 3, 0)
    looked_up = torch.nn.functional.grid_sample(texture, grid, align_corners=True)
    return looked_up.squeeze(2).transpose(0, 1).flatten(1).gather(1, slot.expand(texture.shape[1], -1))


class MeshRenderer:
    """Renders textured meshes: nearest face, its texture, no lighting, background 0.

    Args:
        size: of the pictures; an integer, or (height, width).
        sigma_inv: sharpness of the soft mask, 1 / NDC^2.
        box: how far beyond a face's bounding box the soft mask looks, NDC.
        max_faces: faces that count for a pixel of the soft mask.
        supersample: samples along each side of a pixel; their mean is shown.
        constants: numerical guards of a generation of the published kernel.
        max_pairs: bounds the memory of the search.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        sigma_inv: float = 7000.0,
        box: float = 0.02,
        max_faces: int = 30,
        supersample: int = 1,
        constants: Constants = KAOLIN,
        max_pairs: int = MAX_PAIRS,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.supersample = supersample
        self.search = {"constants": constants, "max_pairs": max_pairs}
        self.soft = {"constants": constants, "sigma_inv": sigma_inv, "box": box, "max_faces": max_faces}

    def __call__(self, scene: TexturedMesh, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        """The pictures, with the hard silhouette as mask (no gradient).

        Args:
            extras: any of "soft_mask", "depth", "normals", "coords", "face". With supersampling the geometric ones are
                means over the covered samples, and "face" is the largest index among them.

        Raises:
            ValueError: an extra this renderer does not know.
        """
        if extras - EXTRAS:
            raise ValueError(f"MeshRenderer can add {sorted(EXTRAS)}; it was asked for {sorted(extras - EXTRAS)}")
        height, width = (side * self.supersample for side in self.size)
        corner_xy, corner_z, corner_weight = corners_on_screen(scene, camera)
        raster = rasterize(
            corner_xy, corner_z, facing(corner_xy), height, width, corner_weight=corner_weight, **self.search
        )
        template = scene.template
        uv = texture_positions(raster, template, scene.texture.shape[3])
        rgb = raster.image(sample(template.pad_texture(scene.texture), uv, raster))
        covered = (raster.face >= 0)[:, None].to(rgb.dtype)
        seen: dict[str, Tensor] = {}
        if "soft_mask" in extras:
            seen["soft_mask"] = self._pooled(soft_mask(corner_xy, raster.face, **self.soft)[:, None])
        mask = self._pooled(covered)
        share = mask.clamp(min=0.5 / self.supersample**2)
        if "depth" in extras:
            depth = face_corners(camera.project(scene.vertices)[..., 2:], template)
            seen["depth"] = self._pooled(raster.image(raster.interpolate(depth))) / share
        if "normals" in extras:
            normals = torch.nn.functional.normalize(rotation.rotate(camera.quat, scene.normals()), dim=2, eps=1e-12)
            seen["normals"] = torch.nn.functional.normalize(
                self._pooled(raster.image(raster.per_face(normals))), dim=1, eps=1e-12
            )
        if "coords" in extras:
            seen["coords"] = self._pooled(raster.image(raster.interpolate(scene.corners()))) / share
        if "face" in extras:
            samples = raster.face[:, None].unflatten(3, (-1, self.supersample)).unflatten(2, (-1, self.supersample))
            seen["face"] = samples.amax((3, 5))
        return Rendering(rgb=self._pooled(rgb), mask=mask, **seen)

    def _pooled(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return image if self.supersample == 1 else torch.nn.functional.avg_pool2d(image, self.supersample)


def corners_on_screen(
    scene: TexturedMesh, camera: Camera
) -> tuple[Float[Tensor, "B F 3 2"], Float[Tensor, "B F 3"], Float[Tensor, "B F 3"]]:
    """The corners of all faces as `rasterize` wants them: xy with y up, screen-affine depth, homogeneous weight.

    With sZ the scaled depth of `Camera.project` and k the inverse focal length, z = -sZ / (1 + k sZ) is affine over the
    screen, and so is 1 + k z = 1 / (1 + k sZ), the weight. For weak perspective (k = 0) they are DIB-R's -sZ and 1.
    A face with a corner at or behind the camera's center is put off screen: nothing of it is drawn.
    """
    x, y, depth = camera.project(scene.vertices).unbind(2)
    divisor = 1 + camera.inv_focal[:, None] * depth
    screen = torch.stack([x, -y, -depth / divisor, 1 / divisor], dim=2)
    corners = face_corners(screen, scene.template)
    behind = (corners[..., 3:] <= 0).any(2, keepdim=True)
    return torch.where(behind, OFF_SCREEN, corners[..., :2]), corners[..., 2], corners[..., 3]


def facing(corner_xy: Float[Tensor, "B F 3 2"]) -> Float[Tensor, "B F"]:
    """z of the faces' normals on the screen, not normalized: negative for a face seen from behind. No gradient."""
    first, second, third = corner_xy.detach().unbind(2)
    (ax, ay), (bx, by) = (second - first).unbind(2), (third - first).unbind(2)
    return ax * by - ay * bx

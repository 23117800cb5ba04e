"""What the photograph shows decides (in neither paper): colors of the texture after the search.

A generator has seen other birds than this one. Its texture is near the photograph's, but it is not the photograph. So
every texel that the photograph shows takes its color from there, as far as it is shown well: not at grazing angles, not
behind something, and not at the outline, where found shape and photograph never quite agree. Objects that are mirror
images of themselves show their far side too. What is left keeps the generator's texture, brought to agree with its new
surroundings: the difference known - generator is continued smoothly over it, like a membrane, and added. Details of the
generator stay, and no seam is left where the photograph ends.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import resize_antialias
from invkit.protocols import Prior, Renderer
from invkit.types import Guess, Views
from meshinv.membrane import CELLS, continued, tint
from meshinv.mesh import TexturedMesh, face_corners
from meshinv.renderers.raster import rasterize
from meshinv.renderers.reference import corners_on_screen, facing
from meshinv.template import Template, mirror_maps

BEHIND = -1e4
"""Depth where nothing is drawn: farther than anything."""


class TextureRefinement:
    """Textures with the colors of the photographs.

    Args:
        size: side of the texture that is made, a power of 2; larger than the generator's keeps the photograph's
            sharpness.
        supersample: places looked at along each side of a texel; their mean is taken.
        full_angle: degrees between surface and line of sight up to which a texel is fully believed.
        max_angle: degrees from which it is not believed at all; in between confidence falls smoothly.
        rim: width of the band inside the mask's outline that is not believed, as a fraction of the picture's side; at
            least one pixel.
        feather: width of the band within it over which confidence rises to 1, likewise.
        mirror: weight at least of the mirror image of a texel, against the generator's, where the texel itself is not
            shown, 0 to 1; it concerns details only, the tint is the mirror image's. None does not look at it. Only for
            objects that are symmetric (`Template.symmetric`).
        reach: how far the colors of the photograph tint what it does not show, radians on the template's sphere; the
            tint fades by about e over this distance. Infinite does not fade.
        visibility_size: side of the depth picture that decides what is hidden.
        min_known: fraction of the texels that must be known, each counted by its confidence; with fewer, the
            generator's texture is left as it is.

    Raises:
        ValueError: a number is out of its range.
    """

    name = "texture"

    def __init__(
        self,
        *,
        size: int = 256,
        supersample: int = 2,
        full_angle: float = 45.0,
        max_angle: float = 75.0,
        rim: float = 0.012,
        feather: float = 0.016,
        mirror: float | None = 0.5,
        reach: float = math.inf,
        visibility_size: int = 512,
        min_known: float = 0.002,
    ) -> None:
        if size < CELLS or size & (size - 1):
            raise ValueError(f"the side of the texture must be a power of 2, at least {CELLS}; got size={size}")
        if not 0 <= full_angle < max_angle < 90:
            raise ValueError(f"0 <= full_angle < max_angle < 90 must hold; got {full_angle} and {max_angle}")
        if mirror is not None and not 0 <= mirror <= 1:
            raise ValueError(f"mirror is a weight between 0 and 1, or None; got {mirror}")
        if min(rim, feather) < 0 or reach <= 0 or supersample < 1:
            raise ValueError(f"out of range: one of {rim=}, {feather=}, {reach=}, {supersample=}")
        self.size, self.supersample, self.visibility_size = size, supersample, visibility_size
        self.full_cosine, self.min_cosine = (math.cos(math.radians(angle)) for angle in (full_angle, max_angle))
        self.rim, self.feather, self.mirror, self.reach = rim, feather, mirror, reach
        self.min_known = min_known

    @torch.no_grad()
    def __call__(
        self, prior: Prior[TexturedMesh], renderer: Renderer[TexturedMesh], guess: Guess, views: Views
    ) -> dict[str, Tensor]:
        """The details of each image: `texture`, [B, 3, size, size] in [-1, 1]; images do not affect each other.

        An image whose mesh or camera is not finite, or whose photograph shows next to nothing of it, keeps the
        generator's texture.
        """
        mesh = prior.decode(guess.latent, guess.label)
        generated = resampled(mesh.texture, mesh.template, self.size)
        mesh, camera, usable = _made_finite(mesh, guess.camera, views)
        seen, confidence = self.seen(mesh, camera, views.rgb.nan_to_num(), views.mask.nan_to_num())
        known, alpha = seen, confidence
        if mesh.template.symmetric and self.mirror is not None:
            known, alpha = self._mirrored(seen, confidence, generated.nan_to_num())
        texture = torch.lerp(self._agreeing(generated.nan_to_num(), known, alpha), known, alpha)
        usable = usable & (alpha.mean((1, 2, 3)) >= self.min_known)
        return {"texture": torch.where(usable[:, None, None, None], texture, generated)}

    def seen(
        self, mesh: TexturedMesh, camera: Camera, rgb: Float[Tensor, "B 3 S S"], mask: Float[Tensor, "B 1 S S"]
    ) -> tuple[Float[Tensor, "B 3 T T"], Float[Tensor, "B 1 T T"]]:
        """The colors that the photographs have at each texel, and the confidence in them, 0 to 1."""
        if rgb.shape[-1] > 2 * self.size:  # finer than the texels: it would alias
            rgb, mask = resize_antialias(rgb, 2 * self.size), resize_antialias(mask, 2 * self.size)
        surface = _surface(mesh.template, self.size, self.supersample)
        points = surface.interpolate(mesh.corners())
        normals = functional.normalize(surface.interpolate(_corner_normals(mesh)), dim=2, eps=1e-12)
        place = camera.project(points)
        confidence = self._facing(camera, place, normals)
        confidence = confidence * self._in_front(mesh, camera, place, confidence > 0, normals)
        grid = place[:, None, :, :2].nan_to_num().clamp(-4, 4)
        believed = inside(mask, self.rim, self.feather)
        # The rim is never believed, so no color that is mixed with background has any weight.
        colors = functional.grid_sample(torch.cat([rgb, believed], dim=1), grid, align_corners=False)[:, :, 0]
        weight = confidence[:, None] * colors[:, 3:]
        fine = torch.cat([colors[:, :3] * weight, weight], dim=1).index_select(2, surface.source)
        pooled = functional.avg_pool2d(fine.unflatten(2, (surface.side, surface.side)), self.supersample)
        alpha = pooled[:, 3:]
        return pooled[:, :3] / alpha.clamp(min=1e-6), alpha

    def _facing(
        self, camera: Camera, place: Float[Tensor, "B N 3"], normals: Float[Tensor, "B N 3"]
    ) -> Float[Tensor, "B N"]:
        """Confidence by the angle between surface and line of sight alone."""
        ramp = (_cosine(camera, place, normals) - self.min_cosine) / (self.full_cosine - self.min_cosine)
        ramp = ramp.clamp(0, 1)
        return ramp * ramp * (3 - 2 * ramp)

    def _in_front(
        self,
        mesh: TexturedMesh,
        camera: Camera,
        place: Float[Tensor, "B N 3"],
        wanted: Bool[Tensor, "B N"],
        normals: Float[Tensor, "B N 3"],
    ) -> Bool[Tensor, "B N"]:
        """Which points nothing hides, not even something a pixel beside them."""
        corner_xy, corner_z, _ = corners_on_screen(mesh, camera)
        side = self.visibility_size
        raster = rasterize(corner_xy, corner_z, facing(corner_xy), side, side)
        depth = raster.image(raster.interpolate(corner_z[..., None]))
        nearest = functional.max_pool2d(depth.where(raster.face[:, None] >= 0, BEHIND), 3, stride=1, padding=1)
        grid = place[:, None, :, :2].nan_to_num().clamp(-4, 4)
        found = functional.grid_sample(nearest, grid, mode="nearest", padding_mode="border", align_corners=False)
        divisor = 1 + camera.inv_focal[:, None] * place[..., 2]
        own = -place[..., 2] / divisor.clamp(min=1e-3)
        cosine = _cosine(camera, place, normals).clamp(min=self.min_cosine)
        slope = (1 - cosine.square()).clamp(min=0).sqrt() / cosine
        # A slanted surface is nearer two pixels further on; that must not count as something in front of it.
        slack = 0.01 + 3 * (2 / side) * slope
        return wanted & (divisor > 1e-3) & (found[:, 0, 0] - own < slack)

    def _mirrored(
        self, seen: Float[Tensor, "B 3 T T"], confidence: Float[Tensor, "B 1 T T"], generated: Float[Tensor, "B 3 T T"]
    ) -> tuple[Float[Tensor, "B 3 T T"], Float[Tensor, "B 1 T T"]]:
        """Colors and confidence where the mirror image of a texel stands in as far as the texel is not shown.

        A camera that is found a little turned puts details to one side of where they are, and their mirror images to
        the other. The generator has its own details in place, if it knows this object; then the mean of the two is
        nearest to the truth. If it does not know it, they differ in tint too, and not in details alone: the share of
        the tint in what they differ in is how far the mirror image is believed.
        """
        difference = seen - generated
        explained = (tint(difference, confidence).square() * confidence).sum((1, 2, 3))
        share = explained / (difference.square() * confidence).sum((1, 2, 3)).clamp(min=1e-6)
        weight = share.clamp(self.mirror, 1)[:, None, None, None]
        away, there = mirror_maps(seen) - generated, mirror_maps(confidence)
        stand_in = generated + torch.lerp(tint(away, there), away, weight)
        other = (1 - confidence) * there
        total = confidence + other
        return (confidence * seen + other * stand_in) / total.clamp(min=1e-6), total

    def _agreeing(
        self, generated: Float[Tensor, "B 3 T T"], known: Float[Tensor, "B 3 T T"], alpha: Float[Tensor, "B 1 T T"]
    ) -> Float[Tensor, "B 3 T T"]:
        """The generator's texture with its colors brought to those that are known around it."""
        moved = generated + continued(known - generated, alpha, self.reach)
        # Where details of the two lie side by side at the seam, their difference is no tint, and added further on it
        # makes colors that are in neither. So the sum stays between the generator's color and the continued known one.
        smooth = continued(known, alpha)
        return moved.clamp(torch.minimum(generated, smooth), torch.maximum(generated, smooth))


def inside(mask: Float[Tensor, "B 1 S S"], rim: float, feather: float) -> Float[Tensor, "B 1 S S"]:
    """0 outside the mask and within a band along its outline, rising to 1 over a second band.

    Args:
        rim, feather: widths of the bands as fractions of the side; the first is at least a pixel wide.
    """
    side = mask.shape[-1]
    eroded = (mask > 0.5).to(mask)
    for _ in range(max(1, round(rim * side))):
        eroded = _eroded(eroded)
    total, steps = eroded, round(feather * side)
    for _ in range(steps):
        eroded = _eroded(eroded)
        total = total + eroded
    return total / (steps + 1)


def _eroded(inside: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B 1 S S"]:
    """Without the pixels that touch the outside, corners included; the border of the picture is no outside."""
    return -functional.max_pool2d(-inside, 3, stride=1, padding=1)


def resampled(texture: Float[Tensor, "B 3 H W"], template: Template, size: int) -> Float[Tensor, "B 3 T T"]:
    """The texture with other texels, so that the renderer reads the same colors; itself where it has that size."""
    if texture.shape[2:] == (size, size):
        return texture
    width = texture.shape[3]
    rows = torch.linspace(-1, 1, size, device=texture.device, dtype=texture.dtype)
    shift = 0.5 if template.symmetric else 0.0
    columns = (torch.arange(size, device=texture.device, dtype=texture.dtype) + shift) / size * width
    columns = columns - shift + (1 if template.symmetric else 0)
    padded = template.pad_texture(texture)
    columns = 2 * columns / (padded.shape[3] - 1) - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2).expand(len(texture), -1, -1, -1)
    return functional.grid_sample(padded, grid, align_corners=True)


@dataclass(frozen=True)
class _Surface:
    """Which point of a mesh each texel is, or part of a texel.

    Args:
        side: parts of texels along each side.
        face: of the parts that lie on a triangle of the UV table.
        weights: barycentric, in that face.
        source: for every part, its place among those on triangles; of one between triangles, that of the nearest.
    """

    side: int
    face: Int[Tensor, "N"]
    weights: Float[Tensor, "3 N"]
    source: Int[Tensor, "P"]

    def interpolate(self, corners: Float[Tensor, "B F 3 C"]) -> Float[Tensor, "B N C"]:
        """What the corners of the faces carry, at the texels."""
        return torch.einsum("bnkc,kn->bnc", corners.index_select(1, self.face), self.weights)


@lru_cache(maxsize=4)
def _surface(template: Template, size: int, supersample: int) -> _Surface:
    """The triangles of the UV table drawn so that a texel lies where the renderer reads it."""
    side = size * supersample
    u, v = template.uvs.unbind(1)
    # Row 0 is the pole itself and the last row the other one; columns begin half a texel in, or at the seam.
    column = u * size + (0.0 if template.symmetric else 0.5)
    row = (1 - v) * (size - 1) + 0.5
    places = torch.stack([2 * column / size - 1, 1 - 2 * row / size], dim=1)
    with torch.inference_mode(False), torch.no_grad():
        corner_xy = places[template.face_uvs][None]
        raster = rasterize(corner_xy, corner_xy.new_zeros(corner_xy.shape[:3]), facing(corner_xy), side, side)
        source = torch.full((side * side,), -1, device=places.device)
        source[raster.pixel] = torch.arange(len(raster.pixel), device=places.device)
        source = source.view(side, side)
        # At the poles triangles stand side by side like teeth. What lies between them is read by interpolation only.
        while bool((source < 0).any()):
            for shift, axis in ((1, 1), (-1, 1), (1, 0), (-1, 0)):
                beside = source.roll(shift, axis)
                if axis == 0:  # the poles are not neighbors
                    beside[0 if shift == 1 else -1] = -1
                source = torch.where(source < 0, beside, source)
        return _Surface(side, raster.owner, raster.weights, source.flatten())


def _cosine(camera: Camera, place: Float[Tensor, "B N 3"], normals: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
    """Of the angle between the outward normal and the direction to the viewer."""
    aside = (place[..., :2] - camera.center[:, None]) * camera.inv_focal[:, None, None]
    sight = torch.cat([aside, torch.ones_like(aside[..., :1])], dim=2)
    return -(rotation.rotate(rotation.normalize(camera.quat), normals) * functional.normalize(sight, dim=2)).sum(2)


def _corner_normals(mesh: TexturedMesh) -> Float[Tensor, "B F 3 3"]:
    """Normals of the vertices, means of their faces' weighted by area, at the corners of every face."""
    first, second, third = mesh.corners().unbind(2)
    weighted = torch.linalg.cross(second - first, third - first)
    total = torch.zeros_like(mesh.vertices)
    for corner in mesh.template.faces.T:
        total = total.index_add(1, corner, weighted)
    return face_corners(functional.normalize(total, dim=2, eps=1e-12), mesh.template)


def _made_finite(mesh: TexturedMesh, camera: Camera, views: Views) -> tuple[TexturedMesh, Camera, Bool[Tensor, "B"]]:
    """Meshes and cameras with something harmless in place of those that are not finite, and which were."""
    parts = (mesh.vertices, mesh.texture, camera.quat, camera.scale, camera.shift, camera.inv_focal, camera.center)
    finite = torch.stack([part.flatten(1).isfinite().all(1) if part.dim() > 1 else part.isfinite() for part in parts])
    usable = finite.all(0) & views.rgb.flatten(1).isfinite().all(1) & views.mask.flatten(1).isfinite().all(1)
    upright = rotation.identity(len(camera), device=camera.quat.device, dtype=camera.quat.dtype)
    zero = torch.zeros_like(camera.shift)
    harmless = Camera(upright, torch.ones_like(camera.scale), zero, torch.zeros_like(camera.scale), zero)
    vertices = mesh.vertices.where(usable[:, None, None], mesh.template.vertices)
    return replace(mesh, vertices=vertices), camera.where(usable, harmless), usable

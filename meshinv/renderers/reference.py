"""The renderer of MeshInversion in plain torch (DIB-R), on any device, in float32 and float64.

A picture is the nearest front face at every pixel and its texture there: no lighting, background 0. `Camera.project`
has y down and z away from the viewer, rasterization y up and larger z nearer; `corners_on_screen` stands between.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Rendering
from meshinv.mesh import TexturedMesh, Topology, face_corners
from meshinv.renderers.pairs import ranges
from meshinv.renderers.raster import KAOLIN, MAX_PAIRS, Constants, Raster, rasterize
from meshinv.renderers.soft_mask import soft_mask
from meshinv.template import Template

OFF_SCREEN = 4.0
NEAR = 1e-3
"""Nothing nearer to the camera than this is drawn, as a fraction of the distance to the object's center."""
EXTRAS = frozenset({"soft_mask", "depth", "normals", "coords", "face"})


def texture_positions(raster: Raster, template: Template | Topology, width: int) -> Float[Tensor, "2 N"]:
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
    grid = torch.stack([2 * uv[0] - 1, 1 - 2 * uv[1]])
    grid = grid.new_zeros(2, batch * longest).scatter(1, slot.expand(2, -1), grid)
    grid = grid.view(2, batch, 1, longest).permute(1, 2, 3, 0)
    looked_up = torch.nn.functional.grid_sample(texture.to(grid.dtype), grid, align_corners=True)
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
        self.soft = {"sigma_inv": sigma_inv, "box": box, "max_faces": max_faces}

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
        corners = corners_on_screen(scene, camera)
        corner_z, corner_weight = corners[1:]
        raster, soft = self.draw(*corners, with_soft_mask="soft_mask" in extras)
        template = scene.template
        uv = texture_positions(raster, template, scene.texture.shape[3])
        rgb = raster.image(sample(template.pad_texture(scene.texture), uv, raster))
        covered = (raster.face >= 0)[:, None].to(rgb.dtype)
        seen: dict[str, Tensor] = {}
        if soft is not None:
            seen["soft_mask"] = self._pooled(soft[:, None])
        mask = self._pooled(covered)
        share = mask.clamp(min=0.5 / self.supersample**2)
        if "depth" in extras:
            depth = (-corner_z / corner_weight)[..., None]
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

    def attributes(
        self, scene: TexturedMesh, camera: Camera, values: Float[Tensor, "B V C"]
    ) -> Float[Tensor, "B C H W"]:
        """Pictures of what the vertices carry (colors, normals, part labels, ...), any number of channels; else 0."""
        raster, _ = self.draw(*corners_on_screen(scene, camera), with_soft_mask=False)
        return self._pooled(raster.image(raster.interpolate(face_corners(values, scene.template))))

    def draw(
        self,
        corner_xy: Float[Tensor, "B F 3 2"],
        corner_z: Float[Tensor, "B F 3"],
        corner_weight: Float[Tensor, "B F 3"],
        *,
        with_soft_mask: bool,
    ) -> tuple[Raster, Float[Tensor, "B H W"] | None]:
        """What is seen at every sample, and the soft mask if it is asked for: the step that a backend replaces."""
        height, width = self.samples
        raster = rasterize(
            corner_xy, corner_z, facing(corner_xy), height, width, corner_weight=corner_weight, **self.search
        )
        return raster, soft_mask(corner_xy, raster.face, **self.soft, **self.search) if with_soft_mask else None

    @property
    def samples(self) -> tuple[int, int]:
        """Rows and columns of what is drawn before it is averaged down to `size`."""
        height, width = self.size
        return height * self.supersample, width * self.supersample

    def _pooled(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return image if self.supersample == 1 else torch.nn.functional.avg_pool2d(image, self.supersample)


def corners_on_screen(
    scene: TexturedMesh, camera: Camera
) -> tuple[Float[Tensor, "B F 3 2"], Float[Tensor, "B F 3"], Float[Tensor, "B F 3"]]:
    """The corners of all faces as `rasterize` wants them: xy with y up, screen-affine depth, homogeneous weight.

    With sZ the scaled depth of `Camera.project` and k the inverse focal length, z = -sZ / (1 + k sZ) is affine over the
    screen, and so is 1 + k z = 1 / (1 + k sZ), the weight. For weak perspective (k = 0) they are DIB-R's -sZ and 1.
    A face with a corner at or behind the camera's center, or `NEAR` it, is put off screen: nothing of it is drawn.
    """
    with torch.no_grad():
        too_near = 1 + camera.inv_focal[:, None] * camera.in_camera(scene.vertices)[..., 2] < NEAR
    # Such a vertex is replaced before it is projected: dividing by its depth, 0 perhaps, would turn gradients into NaN.
    x, y, depth = camera.project(torch.where(too_near[..., None], 0, scene.vertices)).unbind(2)
    divisor = 1 + camera.inv_focal[:, None] * depth
    screen = torch.stack([x, -y, -depth / divisor, 1 / divisor], dim=2)
    corners = face_corners(screen, scene.template)
    hidden = face_corners(too_near[..., None], scene.template).any(2, keepdim=True)
    return torch.where(hidden, OFF_SCREEN, corners[..., :2]), corners[..., 2], corners[..., 3]


def facing(corner_xy: Float[Tensor, "B F 3 2"]) -> Float[Tensor, "B F"]:
    """z of the faces' normals on the screen, not normalized: negative for a face seen from behind. No gradient."""
    first, second, third = corner_xy.detach().unbind(2)
    (ax, ay), (bx, by) = (second - first).unbind(2), (third - first).unbind(2)
    return ax * by - ay * bx

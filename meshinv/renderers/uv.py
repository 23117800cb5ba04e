"""From photographs to textures: the renderer with the roles of image and UV square exchanged (section 6.4).

The triangles drawn are those of the UV table, which never change; what is looked up is the photograph, at the places
where the points of the surface land in it. Which of these points the photograph really shows is a question to the
ordinary renderer: a texel is visible if some pixel of a fine rendering reads it.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.geometry.camera import Camera
from meshinv.mesh import TexturedMesh
from meshinv.renderers.raster import Raster, rasterize
from meshinv.renderers.reference import corners_on_screen, facing, sample, texture_positions
from meshinv.template import Template

MIN_PIXELS_PER_TEXEL = 8


def project_to_uv(
    mesh: TexturedMesh, camera: Camera, image: Float[Tensor, "B C H W"], size: int
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B 1 S S"]]:
    """The image pulled back onto the UV square, and the texels that belong to the surface (1) or to no triangle (0).

    Surface points that land outside the image read 0, hidden ones read what hides them (see `visible_texels`).

    Args:
        size: side of the texture.
    """
    raster = _uv_raster(mesh.template, size)
    on_surface = mesh.corners().permute(0, 3, 2, 1).index_select(3, raster.owner)
    points = (on_surface * raster.weights).sum(2).transpose(1, 2)
    grid = camera.project(points)[..., :2]
    colors = torch.nn.functional.grid_sample(image, grid[:, None], align_corners=True).squeeze(2)
    texture = colors.new_zeros(*colors.shape[:2], size * size)
    texture = texture.index_copy(2, raster.pixel, colors).unflatten(2, (size, size))
    covered = (raster.face >= 0)[:, None].to(colors.dtype).expand(len(mesh), -1, -1, -1)
    return texture, covered


def visible_texels(mesh: TexturedMesh, camera: Camera, render_size: int) -> Bool[Tensor, "B 1 T T"]:
    """Texels that at least one pixel of a rendering reads, its bilinear footprint included.

    Args:
        render_size: side of that rendering. The texture looked at is as large as the mesh's, but at most an eighth
            of this: with fewer pixels to a texel, texels in plain view would be missed.
    """
    side = max(1, min(mesh.texture.shape[2], render_size // MIN_PIXELS_PER_TEXEL))
    with torch.no_grad():
        corner_xy, corner_z, corner_weight = corners_on_screen(mesh, camera)
        raster = rasterize(
            corner_xy, corner_z, facing(corner_xy), render_size, render_size, corner_weight=corner_weight
        )
        uv = texture_positions(raster, mesh.template, side)
    with torch.enable_grad():
        probe = uv.new_zeros(len(mesh), 1, side, side, requires_grad=True)
        read = sample(mesh.template.pad_texture(probe), uv, raster)
        (times_read,) = torch.autograd.grad(read.sum(), probe)
    return times_read > 0


@lru_cache(maxsize=4)
def _uv_raster(template: Template, size: int) -> Raster:
    """The triangles of the UV table drawn over the UV square; one image."""
    with torch.inference_mode(False), torch.no_grad():
        corner_xy = (2 * template.uvs - 1)[template.face_uvs][None]
        flat = corner_xy.new_zeros(corner_xy.shape[:3])
        return rasterize(corner_xy, flat, facing(corner_xy), size, size)

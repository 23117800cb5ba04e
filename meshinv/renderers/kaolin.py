"""DIB-R with the CUDA kernels of NVIDIA Kaolin (`kaolin.render.mesh`, as of 0.18): the same step as in plain torch.

Corners, depths and normals go in as the reference takes them, with no change of sign. What comes back besides the face
of every pixel is the picture of three corner attributes, (1, 0, 0), (0, 1, 0) and (0, 0, 1): the barycentric weights,
with Kaolin's gradient. From there on everything is shared with the reference. Kaolin's results differ from its by
rounding: images by at most 3e-6 in float32.

Written against the published source and documentation. The tests run it with a stand-in that follows these. Those
marked `gpu` compare it with the reference where Kaolin and a CUDA device are present; that has not happened yet.
"""

import warnings
from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meshinv.renderers.raster import KAOLIN, Constants, Raster, perspective_correct

FEWEST_PIXELS = 512
"""Of a batch: the backward pass of Kaolin's rasterizer is launched in blocks of so many, rounded down."""


@cache
def mesh_module() -> ModuleType | None:
    """`kaolin.render.mesh`, or None where it is not installed; warns, once, where it is but does not import."""
    try:
        from kaolin.render import mesh

        return mesh
    except ModuleNotFoundError as error:
        if error.name == "kaolin":
            return None
        problem = error
    except Exception as error:  # a wheel for another torch fails with whatever its loader meets first
        problem = error
    warnings.warn(f"Kaolin is installed but does not import, so it is not used: {problem}", stacklevel=2)
    return None


def can_draw(normal_z: Float[Tensor, "B F"], height: int, width: int, constants: Constants) -> bool:
    """Whether Kaolin's kernels are here and up to it: CUDA, its own constants, enough pixels, a face to the front."""
    return (
        normal_z.is_cuda
        and mesh_module() is not None
        and constants == KAOLIN
        and len(normal_z) * height * width >= FEWEST_PIXELS
        and bool((normal_z >= 0).any())
    )


def draw(
    corner_xy: Float[Tensor, "B F 3 2"],
    corner_z: Float[Tensor, "B F 3"],
    normal_z: Float[Tensor, "B F"],
    height: int,
    width: int,
    *,
    corner_weight: Float[Tensor, "B F 3"],
    soft: dict[str, float] | None,
) -> tuple[Raster, Float[Tensor, "B H W"] | None]:
    """What `rasterize` and `soft_mask` of the reference give.

    Args:
        soft: sigma_inv, box and max_faces of the soft mask; None for no soft mask, which is the expensive half.
    """
    mesh = mesh_module()
    unit = torch.eye(3, dtype=corner_xy.dtype, device=corner_xy.device).expand(*normal_z.shape, 3, 3)
    if soft is None:
        weights, face = mesh.rasterize(height, width, corner_z, corner_xy, unit, normal_z >= 0)
        return _raster(weights, face, corner_weight), None
    weights, faded, face = mesh.dibr_rasterization(
        height,
        width,
        corner_z,
        corner_xy,
        unit,
        normal_z,
        sigmainv=soft["sigma_inv"],
        boxlen=soft["box"],
        knum=soft["max_faces"],
    )
    return _raster(weights, face, corner_weight), faded


def _raster(
    weights: Float[Tensor, "B H W 3"], face: Int[Tensor, "B H W"], corner_weight: Float[Tensor, "B F 3"]
) -> Raster:
    batch, num_faces = corner_weight.shape[:2]
    pixel = (face >= 0).flatten().nonzero().squeeze(1)
    first_face = torch.arange(batch, device=face.device)[:, None, None] * num_faces
    owner = (face + first_face).flatten().index_select(0, pixel)
    weights = weights.flatten(0, 2).index_select(0, pixel).T
    return Raster(face, pixel, owner, perspective_correct(weights, owner, corner_weight))

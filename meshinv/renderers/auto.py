"""The fastest renderer that works here: Kaolin's kernels where they can draw, plain torch everywhere else."""

import torch
from jaxtyping import Float
from torch import Tensor

from meshinv.renderers import kaolin
from meshinv.renderers.raster import Raster
from meshinv.renderers.reference import MeshRenderer, facing


class AutoRenderer(MeshRenderer):
    """As `MeshRenderer`, on CUDA with NVIDIA Kaolin's kernels if it is installed.

    Decided anew at every call: what is on the CPU, has fewer pixels than Kaolin's backward pass needs, shows nothing
    but back faces, or asks for constants of the first generation is drawn by the reference. The two agree within
    rounding.
    """

    def draw(
        self,
        corner_xy: Float[Tensor, "B F 3 2"],
        corner_z: Float[Tensor, "B F 3"],
        corner_weight: Float[Tensor, "B F 3"],
        *,
        with_soft_mask: bool,
    ) -> tuple[Raster, Float[Tensor, "B H W"] | None]:
        normal_z = facing(corner_xy)
        if not kaolin.can_draw(normal_z, *self.samples, self.search["constants"]):
            return super().draw(corner_xy, corner_z, corner_weight, with_soft_mask=with_soft_mask)
        soft = self.soft if with_soft_mask else None
        return kaolin.draw(corner_xy, corner_z, normal_z, *self.samples, corner_weight=corner_weight, soft=soft)


def backend(device: torch.device) -> str:
    """What `AutoRenderer` draws with on a device, in words for a log."""
    return "Kaolin" if device.type == "cuda" and kaolin.mesh_module() is not None else "plain torch"

"""The inside of a textured mesh, for overlaps of solids."""

from jaxtyping import Bool
from torch import Tensor

from invkit.evaluation.viewpoints import Frame
from invkit.metrics.voxels import Grid, voxelize
from meshinv.mesh import TexturedMesh


def solid(mesh: TexturedMesh, frame: Frame, grid: Grid) -> Bool[Tensor, "B X Y Z"]:
    """The voxels inside each mesh, seen in another frame; where a mesh passes through itself see `voxelize`."""
    return voxelize(frame.apply(mesh.vertices), mesh.template.faces, grid.size, low=grid.low, high=grid.high)

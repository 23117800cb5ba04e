"""The inside of a radiance field, for overlaps of solids."""

import torch
from jaxtyping import Bool
from torch import Tensor

from invkit.evaluation.viewpoints import Frame
from invkit.geometry import rotation
from invkit.metrics.voxels import Grid
from nerfinv.field import RadianceField

AT_ONCE = 65536
"""Points decoded at once."""


@torch.no_grad()
def solid(field: RadianceField, frame: Frame, grid: Grid) -> Bool[Tensor, "B X Y Z"]:
    """The voxels whose centers lie inside each field, seen in another frame.

    Inside is where the signed distance is negative (or a raw density makes more than half occupied), in the box.
    """
    opened = field.opened()
    table = opened.table
    step = (grid.high - grid.low) / grid.size
    axis = grid.low + (torch.arange(grid.size, dtype=table.dtype, device=table.device) + 0.5) * step
    centers = torch.cartesian_prod(axis, axis, axis)
    found = torch.zeros(len(field), len(centers), dtype=torch.bool, device=table.device)
    back = rotation.conjugate(rotation.normalize(frame.quat)).to(table)
    for image in range(len(field)):
        offset, scale = frame.offset[image].to(table), frame.scale[image].to(table)
        points = rotation.rotate(back[image : image + 1], ((centers - offset) / scale)[None])[0]
        # Most of a grid is commonly outside the box, and nothing is decoded there.
        within = field.inside(points).nonzero().squeeze(1)
        for part in within.split(AT_ONCE):
            value = opened.value(points[part], torch.full_like(part, image))
            found[image, part] = field.density.occupancy(value) > 0.5
    return found.view(len(field), grid.size, grid.size, grid.size)

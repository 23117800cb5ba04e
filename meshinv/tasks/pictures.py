"""What both training stages draw to show how far they are."""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.evaluation.viewpoints import azimuth_ring
from invkit.protocols import Renderer
from meshinv.mesh import TexturedMesh


@torch.no_grad()
def from_all_sides(mesh: TexturedMesh, renderer: Renderer, count: int) -> Float[Tensor, "B K 3 H W"]:
    """Each mesh on white from `count` evenly spaced azimuths."""
    ring = azimuth_ring(count).to(mesh.vertices.device)
    image = renderer(mesh.centered().repeat(count), type(ring).cat([ring] * len(mesh)))
    return image.over(1.0).unflatten(0, (len(mesh), count))

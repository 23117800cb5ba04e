"""Smoothness of the surface (MeshInversion, Eq. 8; the flatness loss of ConvMesh)."""

from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Views
from meshinv.mesh import flatness


def smoothness(estimate: Estimate, target: Views) -> Float[Tensor, "B"]:
    """Sum over the edges of (1 - cos)^2 of the angle between their two faces; the photograph does not matter."""
    return flatness(estimate.scene)

"""What keeps a generated field a surface and not a fog (Bootstrapped Radiance Field Inversion, section 3.1, Eqs. 2-3).

All are means over points that fill the box evenly. Total variation and entropy are in the released code only.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfinv.field import LaplaceDensity, RadianceField, SoftplusDensity


def stratified_points(field: RadianceField, cells: int = 31) -> Float[Tensor, "B N 3"]:
    """One random point in each of cells^3 equal cubes that fill the box, for each object; from torch's generator."""
    like = {"dtype": field.planes.dtype, "device": field.planes.device}
    index = torch.arange(cells, **like)
    corner = torch.stack(torch.meshgrid(index, index, index, indexing="xy"), dim=-1).view(1, -1, 3)
    inside = torch.rand(len(field), cells**3, 3, **like)
    return ((corner + inside) * (2 / cells) - 1) * field.half_side


def value_and_gradient(
    field: RadianceField, points: Float[Tensor, "B N 3"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
    """The signed distance and its gradient in space, both differentiable in the field."""
    free = points.detach().requires_grad_()
    value = field.value(free)
    (gradient,) = torch.autograd.grad(value.sum(), free, create_graph=True)
    return value, gradient


def eikonal(gradient: Float[Tensor, "B N 3"]) -> Float[Tensor, "B"]:
    """Mean squared difference of the gradient's norm from 1, which that of a distance has (Eq. 2)."""
    return (torch.linalg.vector_norm(gradient, dim=2) - 1).square().mean(dim=1)


def total_variation(
    density: LaplaceDensity | SoftplusDensity, value: Float[Tensor, "B N"], beside: Float[Tensor, "B N"]
) -> Float[Tensor, "B"]:
    """Mean absolute difference of the occupancies at points and right beside them."""
    return (density.occupancy(value) - density.occupancy(beside)).abs().mean(dim=1)


def entropy(density: LaplaceDensity | SoftplusDensity, value: Float[Tensor, "B N"]) -> Float[Tensor, "B"]:
    """How much is neither inside nor outside: the mean of the occupancy's derivative."""
    return density.surface(value).mean(dim=1)


def sphere(value: Float[Tensor, "B N"], points: Float[Tensor, "B N 3"], radius: float = 1.0) -> Float[Tensor, "B"]:
    """Mean squared difference from the signed distance to a sphere about the origin (Eq. 3)."""
    return (value - torch.linalg.vector_norm(points, dim=2) + radius).square().mean(dim=1)

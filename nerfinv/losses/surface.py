"""What keeps a generated field a surface and not a fog (Bootstrapped Radiance Field Inversion, section 3.1, Eqs. 2-3).

All are means over points that fill the box evenly. Total variation and entropy are in the released code only; points
near the surface and the loss of what floats beside an object are in neither.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerfinv.field import LaplaceDensity, RadianceField, SoftplusDensity

SURFACE_SPREAD = 0.02
"""Standard deviation about the surface of the points that the Eikonal loss is taken at, relative to half the box."""

BESIDE = 0.004
"""Standard deviation of the distance to the second point of the total variation, relative to half the box."""


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


def nearest_to_surface(
    points: Float[Tensor, "B N 3"],
    value: Float[Tensor, "B N"],
    gradient: Float[Tensor, "B N 3"],
    count: int,
    spread: float,
) -> Float[Tensor, "B M 3"]:
    """Points about the surface: the nearest of those given, taken onto it by a step of Newton's, and disturbed.

    Points that fill the box evenly hardly meet the surface, where the distance matters most.

    Args:
        count: M, of each object; at most all of those given.
        spread: standard deviation of the disturbance, object units.
    """
    chosen = value.detach().abs().topk(min(count, value.shape[1]), dim=1, largest=False).indices
    distance = value.detach().gather(1, chosen)[..., None]
    slope = gradient.detach().gather(1, chosen[..., None].expand(-1, -1, 3))
    steps = distance * slope / slope.square().sum(dim=2, keepdim=True).clamp(min=0.25)
    near = points.detach().gather(1, chosen[..., None].expand(-1, -1, 3)) - steps
    return near + spread * torch.randn_like(near)


def stray(value: Float[Tensor, "B N"], cells: int, margin: float) -> Bool[Tensor, "B N"]:
    """Which points of a grid are in the object, or within `margin` of it, and not connected with its largest piece.

    Points of neighboring cells (corners too) are connected. Computed on the CPU.

    Args:
        value: signed distances at `stratified_points` of so many cells along each side.
    """
    solid = (value.detach() < margin).view(-1, cells, cells, cells).cpu().numpy()
    found = np.zeros_like(solid)
    for scene, inside in zip(found, solid, strict=True):
        pieces, count = scipy.ndimage.label(inside, np.ones((3, 3, 3)))
        if count > 1:
            largest = np.bincount(pieces.ravel())[1:].argmax() + 1
            scene[...] = inside & (pieces != largest)
    return torch.from_numpy(found).view(value.shape).to(value.device)


def one_piece(field: RadianceField, cells: int, margin: float) -> Float[Tensor, "B"]:
    """How far what floats beside an object is from not being there: the mean of margin - d over its points; 0 if there
    is nothing.

    Silhouettes from a few sides cannot tell a floater from a part of the object, so nothing else in the training ends
    them. What is near (thin legs, say) counts as connected: cells are coarse and `margin` widens every piece.

    Args:
        cells: of the grid, along each side.
        margin: object units; about half a cell.
    """
    points = stratified_points(field, cells)
    with torch.no_grad():
        beside = stray(field.value(points), cells, margin)
    most = int(beside.sum(dim=1).max())
    if not most:
        return field.planes.new_zeros(len(field))
    # The same number of points for each object, those beside it first.
    order = beside.to(torch.uint8).topk(most, dim=1).indices
    counted = beside.gather(1, order)
    distance = field.value(points.gather(1, order[..., None].expand(-1, -1, 3)))
    missing = (margin - distance).clamp(min=0) * counted
    return missing.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class SurfaceTerms:
    """All of them, weighted, as the GAN of radiance fields takes them.

    Args:
        eikonal_weight, variation_weight, entropy_weight: 0 leaves a term out.
        cells: they are taken at cells^3 points of each object.
        surface_points: so many more points, about the surface, for the Eikonal loss (ours).
        piece_weight: of what floats beside an object (`one_piece`; ours).
        piece_cells: cells along each side of the box in which pieces are told apart.
    """

    eikonal_weight: float = 0.1
    variation_weight: float = 0.5
    entropy_weight: float = 0.05
    cells: int = 31
    surface_points: int = 0
    piece_weight: float = 0.0
    piece_cells: int = 32

    def __call__(self, field: RadianceField, ramped: float) -> dict[str, Float[Tensor, ""]]:
        """The terms by name, means over the objects; total variation and entropy grow with `ramped`."""
        points = stratified_points(field, self.cells)
        terms = {}
        if self.eikonal_weight:
            value, gradient = value_and_gradient(field, points)
            terms["eikonal"] = self.eikonal_weight * eikonal(gradient).mean()
            if self.surface_points:
                spread = SURFACE_SPREAD * field.half_side
                near = nearest_to_surface(points, value, gradient, self.surface_points, spread)
                _, gradient = value_and_gradient(field, near)
                terms["eikonal_surface"] = self.eikonal_weight * eikonal(gradient).mean()
        else:
            value = field.value(points)
        if self.variation_weight:
            beside = field.value(points + BESIDE * field.half_side * torch.randn_like(points))
            variation = total_variation(field.density, value, beside).mean()
            terms["total_variation"] = ramped * self.variation_weight * variation
        if self.entropy_weight:
            terms["entropy"] = ramped * self.entropy_weight * entropy(field.density, value).mean()
        if self.piece_weight:
            margin = field.half_side / self.piece_cells
            terms["one_piece"] = self.piece_weight * one_piece(field, self.piece_cells, margin).mean()
        return terms

"""The scene of this method: tri-planes, a small decoder and a palette (Bootstrapped Radiance Field Inversion, 3.1).

A point is looked up in three planes, the mean of what is found is decoded into a signed distance (or a raw density) and
attributes, and the attributes into a color: by attention over a palette of colors, or directly. Density is a function
of the distance (Eq. 1). Everything is in object units; the object lives in the box [-r, r]^3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn

from invkit.batch import Batch
from invkit.precision import widened
from nerfinv import planes as triplanes

MIN_DENSITY_PARAMETER = 1e-3
NODES = 48
"""Along a side of the grid on which it is looked how far a field reaches."""
AT_ONCE = 65536
"""Points decoded at once for that."""


class LaplaceDensity(nn.Module):
    """Density of a signed distance: sigma(d) = Psi_beta(-d) / alpha (Eq. 1), Psi the Laplace distribution function.

    VolSDF ties alpha to beta; here they are learned apart. beta is the width of the surface and alpha the distance in
    which light is absorbed inside.
    """

    signed_distance = True

    def __init__(self, alpha: float = 1.0, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([beta]))
        self.alpha = nn.Parameter(torch.tensor([alpha]))

    def forward(self, distance: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return self.occupancy(distance) / self.alpha

    def occupancy(self, distance: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Psi_beta(-d): 1 deep inside, 1/2 on the surface, 0 far outside."""
        tail = 0.5 * torch.exp(-distance.abs() / self.beta)
        return torch.where(distance < 0, 1 - tail, tail)

    def surface(self, distance: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """The derivative of `occupancy`, exp(-|d| / beta) / (2 beta): how much of a surface there is here."""
        return torch.exp(-distance.abs() / self.beta) / (2 * self.beta)

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Return what an optimizer made smaller than 0.001 to it."""
        self.alpha.clamp_(min=MIN_DENSITY_PARAMETER)
        self.beta.clamp_(min=MIN_DENSITY_PARAMETER)


class SoftplusDensity(nn.Module):
    """Density of an unbounded number, softplus(v - 1), as in EG3D: for the ablation without signed distances."""

    signed_distance = False

    def forward(self, raw: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return F.softplus(raw - 1)

    def occupancy(self, raw: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return torch.sigmoid(raw - 1)

    def surface(self, raw: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """p (1 - p) of the occupancy p: large where neither inside nor outside."""
        occupancy = self.occupancy(raw)
        return occupancy * (1 - occupancy)

    def keep_in_range(self) -> None:
        """Nothing here has a range."""


def wide_sigmoid(value: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Colors of unbounded numbers: a sigmoid onto [-1.002, 1.002], so that black and white are within reach."""
    return 2.004 * torch.sigmoid(value) - 1.002


@runtime_checkable
class Decoder(Protocol):
    """What plane features mean."""

    def __call__(self, features: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
        """Signed distance (or raw density) and attributes of each point."""
        ...

    def value(self, features: Float[Tensor, "P C"]) -> Float[Tensor, "P"]:
        """The first of these alone."""
        ...


@runtime_checkable
class ViewHead(Protocol):
    """How attributes look from a direction."""

    def embed(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N E"]: ...

    def __call__(self, embedding: Float[Tensor, "P E"], attributes: Float[Tensor, "P E"]) -> Float[Tensor, "P A"]: ...


@dataclass(frozen=True)
class RadianceField(Batch):
    """Scenes of a batch; the decoder and the density are the same for all of them.

    Args:
        planes: features over the planes xy, xz and yz: the first coordinate along columns, the second along rows.
        palette: K colors in [-1.002, 1.002] that attributes choose from; None: attributes are colors themselves.
        half_side: r of the box [-r, r]^3, outside of which there is nothing.
    """

    planes: Float[Tensor, "B 3 C R R"]
    palette: Float[Tensor, "B K 3"] | None
    decoder: Decoder
    density: LaplaceDensity | SoftplusDensity
    half_side: float
    view_head: ViewHead | None = None

    def centered(self) -> "RadianceField":
        """The scenes themselves: the middle of the box is the origin."""
        return self

    @torch.no_grad()
    def outermost(self) -> Float[Tensor, "B P 3"]:
        """Points beyond which there is nothing: nodes of a grid around the largest piece; the box, where none is solid.

        Those of one scene may be repeated, so that all have as many.
        """
        side = torch.linspace(-self.half_side, self.half_side, NODES, device=self.planes.device)
        nodes = torch.cartesian_prod(side, side, side)
        ends = torch.cartesian_prod(side[[0, -1]], side[[0, -1]], side[[0, -1]])
        found = []
        for scene in range(len(self)):
            parts = [self[scene].value(part[None])[0] for part in nodes.split(AT_ONCE)]
            solid = (self.density.occupancy(torch.cat(parts)) > 0.5).view(NODES, NODES, NODES).cpu().numpy()
            pieces, count = ndimage.label(solid)
            if not count:
                found.append(ends)
                continue
            largest = pieces == np.bincount(pieces[solid]).argmax()
            shell = ndimage.binary_dilation(largest) & ~largest
            shell = torch.from_numpy(shell if shell.any() else largest).flatten()
            found.append(nodes[shell.to(nodes.device)])
        most = max(len(points) for points in found)
        return torch.stack([torch.cat([points, points[:1].expand(most - len(points), 3)]) for points in found])

    def with_palette(self, palette: Float[Tensor, "B K 3"]) -> "RadianceField":
        """The same shapes and regions in other colors."""
        return replace(self, palette=palette)

    def with_details(self, details: Mapping[str, Tensor]) -> "RadianceField":
        """The scenes with what a refinement found added: "planes" and "palette", those of them that there are.

        Raises:
            ValueError: there are details of something else, or of a palette that the field does not have.
        """
        if unknown := sorted(set(details) - {"planes", "palette"}):
            raise ValueError(f"details of {', '.join(unknown)}: a field has planes and palette")
        if "palette" in details and self.palette is None:
            raise ValueError("this field has no palette, so there are no details of it")
        added = {name: getattr(self, name) + value.to(getattr(self, name)) for name, value in details.items()}
        return replace(self, **added)

    def opened(self) -> "OpenField":
        """The scenes for many lookups: their planes are put in order once. Half precision is widened: distances near
        the surface need all digits."""
        return OpenField(self, triplanes.table_of(widened(self.planes)))

    def inside(self, points: Float[Tensor, "*P 3"]) -> Bool[Tensor, "*P"]:
        """Whether points lie in the box."""
        return points.detach().abs().amax(dim=-1) <= self.half_side

    def value(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        """Signed distance to the surface, negative inside (or the raw density); differentiable any number of times."""
        return self.opened().value(*_one_after_another(points)).view(points.shape[:2])

    def sigma(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        """Density per object unit; 0 outside the box."""
        return self.density(self.value(points)) * self.inside(points)

    def normals(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """Unit gradient of the signed distance, without gradient itself."""
        return self.opened().normals(*_one_after_another(points)).view(points.shape)

    def attributes(
        self, points: Float[Tensor, "B N 3"], directions: Float[Tensor, "B N 3"] | None = None
    ) -> Float[Tensor, "B N A"]:
        """What colors are made of.

        Raises:
            ValueError: colors depend on the view and no directions are given.
        """
        _, found = self.opened().decoded(*_one_after_another(points))
        if self.view_head is not None:
            if directions is None:
                raise ValueError("colors of this field depend on the viewing direction: give directions")
            found = self.view_head(self.view_head.embed(directions.flatten(0, 1)), found)
        return found.view(*points.shape[:2], -1)

    def shares(
        self, points: Float[Tensor, "B N 3"], directions: Float[Tensor, "B N 3"] | None = None
    ) -> Float[Tensor, "B N K"]:
        """How much of each palette color the points have; they sum to 1.

        Raises:
            ValueError: the field has no palette.
        """
        if self.palette is None:
            raise ValueError("this field has no palette, so there are no shares of its colors")
        return self.attributes(points, directions).softmax(dim=-1)

    def color(
        self, points: Float[Tensor, "B N 3"], directions: Float[Tensor, "B N 3"] | None = None
    ) -> Float[Tensor, "B N 3"]:
        """Colors in [-1.002, 1.002].

        Args:
            directions: unit, from the camera to the points; for fields whose colors depend on the view.
        """
        if self.palette is None:
            return wide_sigmoid(self.attributes(points, directions))
        return self.shares(points, directions) @ self.palette


@dataclass(frozen=True)
class OpenField:
    """Scenes that are asked for points in any order, each of the scene that its number names.

    Args:
        table: the planes as they are looked up.
    """

    field: RadianceField
    table: Float[Tensor, "V C"]

    def _features(self, points: Float[Tensor, "P 3"], scene: Int[Tensor, "P"]) -> Float[Tensor, "P C"]:
        """What the planes hold, the mean over the three."""
        weight, corners = triplanes.locate(points / self.field.half_side, scene, self.field.planes.shape[-1])
        return triplanes.lookup(self.table, weight, corners)

    def value(self, points: Float[Tensor, "P 3"], scene: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
        """Signed distance or raw density, as `RadianceField.value`."""
        return self.field.decoder.value(self._features(points, scene))

    def decoded(
        self, points: Float[Tensor, "P 3"], scene: Int[Tensor, "P"]
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
        """Signed distance or raw density, and attributes, before any view head."""
        return self.field.decoder(self._features(points, scene))

    def sigma(self, points: Float[Tensor, "P 3"], value: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """Density per object unit where the value is that; 0 outside the box."""
        return self.field.density(value) * self.field.inside(points)

    def normals(self, points: Float[Tensor, "P 3"], scene: Int[Tensor, "P"]) -> Float[Tensor, "P 3"]:
        """Unit gradient of the signed distance, object axes, without gradient itself."""
        constant = replace(self, table=self.table.detach())
        with torch.enable_grad():
            free = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(constant.value(free, scene).sum(), free)
        return F.normalize(gradient, dim=-1)


def _one_after_another(points: Float[Tensor, "B N 3"]) -> tuple[Float[Tensor, "P 3"], Int[Tensor, "P"]]:
    """The points of all scenes, and the scene of each."""
    scene = torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])
    return points.flatten(0, 1), scene

"""Chamfer texture loss (MeshInversion, section 3.2).

Foreground points of the rendering and of the photograph carry what is seen there: colors (L_pCT), or features of a
network (L_fCT). Each looks for a partner of similar appearance that is not
far away, so a wrong pose by a few pixels costs nothing and does not blur the texture. Position only weighs the
appearance: it carries no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.batch import Batch
from invkit.types import Estimate, Views
from meshinv.losses import points
from meshinv.losses.appearance import Appearance, Colors
from meshinv.losses.points import ColoredPoints

FARTHEST_PLACE = 8.0  # the squared diagonal of [-1, 1]^2


@dataclass(frozen=True)
class Locality:
    """How the distance of two points in the image weighs the difference of their appearance (Eq. 7).

    D = S (D^a + floor) with S = max((1 - (2 k slack)^2 + k D^s)^exponent, 1), k = gain, D^a and D^s squared distances.

    Args:
        slack: for gain 1, points within 2 slack (NDC) of each other count as coincident; 0.16 is 16 % of the width.
        floor: the least cost of a pair before weighing, so that equal colors do not match over any distance.

    Raises:
        ValueError: gain is negative or 2 gain slack is above 1 (the base of the power could become negative).
    """

    slack: float = 0.16
    gain: float = 1.0
    exponent: float = 1.0
    floor: float = 1.0

    def __post_init__(self) -> None:
        if self.gain < 0 or not 0 <= 2 * self.gain * self.slack <= 1:
            raise ValueError(f"gain must be >= 0 and 2 gain slack within [0, 1]; got {self.gain} and {self.slack}")

    @property
    def offset(self) -> float:
        """The base of the power where two points coincide: the paper's eps_s."""
        return 1 - (2 * self.gain * self.slack) ** 2

    def weight(self, base: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """S of the base of its power, `offset` + k D^s, which is overwritten."""
        return (base if self.exponent == 1 else base.pow_(self.exponent)).clamp_(min=1)

    def cost(self, appearance: Float[Tensor, "*N"], distance: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """D of squared differences of appearance and squared image distances."""
        return self.weight(self.offset + self.gain * distance) * (appearance + self.floor)

    def costs(
        self,
        appearance: tuple[Float[Tensor, "N C"], Float[Tensor, "M C"]],
        position: tuple[Float[Tensor, "N 2"], Float[Tensor, "M 2"]],
    ) -> Callable[[slice], Float[Tensor, "n M"]]:
        """D of chosen sources to all targets, without gradient; the constants ride along in the matrix products."""
        shifted = points.Distances(*appearance, offset=self.floor)
        base = points.Distances(*position, gain=self.gain, offset=self.offset)
        return lambda chunk: shifted(chunk).mul_(self.weight(base(chunk)))


def match(source: ColoredPoints, target: ColoredPoints, locality: Locality) -> Float[Tensor, "B"]:
    """The mean over the source points of the least cost to a target point; 0 where an image has no source points.

    The gradient is that of the matched pairs, through their appearance.

    Raises:
        ValueError: an image has source points but no target points.
    """
    source_counts, target_counts = source.counts(), target.counts()

    def costs(image: int) -> Callable[[slice], Tensor]:
        mine, yours = slice(source_counts[image]), slice(target_counts[image])
        return locality.costs(
            (source.appearance[image, mine], target.appearance[image, yours]),
            (source.position[image, mine], target.position[image, yours]),
        )

    partner = points.nearest(source_counts, target_counts, costs, like=source.appearance)
    appearance = (source.appearance - points.pick(target.appearance, partner)).square().sum(dim=-1)
    distance = (source.position - points.pick(target.position, partner)).square().sum(dim=-1)
    return points.mean_of_valid(locality.cost(appearance, distance), source.valid)


@dataclass(frozen=True)
class Photograph(Batch):
    """What texture losses need of the photographs.

    Args:
        points: those of each.
        index: the photographs', by which points of the renderings are drawn too.
    """

    points: ColoredPoints
    index: Int[Tensor, "B"]


class ChamferTexture:
    """Chamfer texture distance of rendered and photographed foreground points (L_pCT; of features, L_fCT).

    An image whose rendering has no foreground gets the largest value the term can take, as a constant: it has no colors
    to learn from, and losing the object must not look like a good match.

    Args:
        appearance: what is compared: by default colors (the pixel level); `Features` makes it the feature level.
        slack, gain, exponent, floor: see `Locality`; the value is never below (forth + back) floor.
        forth: weight of the mean over rendered points of the least cost to a photographed one.
        back: weight of that over photographed points to a rendered one. The paper has the sum of both (Eq. 6); the
            released code 1 and 0 for pixels, 1/2 and 1/2 for features.
        max_points: points drawn from each side; None takes all of them.

    Raises:
        ValueError: `forth` or `back` is negative, or both are 0; see `Locality` for the rest.
    """

    def __init__(
        self,
        appearance: Appearance | None = None,
        *,
        slack: float = 0.16,
        gain: float = 1.0,
        exponent: float = 1.0,
        floor: float = 1.0,
        forth: float = 1.0,
        back: float = 0.0,
        max_points: int | None = 8192,
    ) -> None:
        if min(forth, back) < 0 or forth + back == 0:
            raise ValueError(f"forth and back must be >= 0 and not both 0; got {forth} and {back}")
        self.appearance = Colors() if appearance is None else appearance
        self.locality = Locality(slack, gain, exponent, floor)
        self.forth, self.back, self.max_points = forth, back, max_points

    def target(self, views: Views) -> Photograph:
        """The points of the photographs.

        Raises:
            ValueError: an image has none.
        """
        return Photograph(self.appearance.photographed(views, self.max_points), views.index)

    def __call__(self, estimate: Estimate, target: Photograph) -> Float[Tensor, "B"]:
        """The distance for each image."""
        rendered, photo = self.appearance.rendered(estimate.image, target.index, self.max_points), target.points
        visible = rendered.valid.any(dim=1)
        value = torch.zeros_like(rendered.position[:, 0, 0])
        if self.forth:
            value = value + self.forth * match(rendered, photo, self.locality)
        if self.back:
            seen = replace(photo, valid=photo.valid & visible[:, None])
            value = value + self.back * match(seen, rendered, self.locality)
        worst = self.locality.cost(*rendered.position.new_tensor([self.appearance.farthest, FARTHEST_PLACE]))
        return torch.where(visible, value, (self.forth + self.back) * worst)

"""Chamfer texture loss (MeshInversion, section 3.2).

Pixels of the rendering and of the photograph are colored points. Each looks for a partner of similar color that is not
far away, so a wrong pose by a few pixels costs nothing and does not blur the texture. Position only weighs the
appearance: it carries no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.batch import Batch
from invkit.types import Estimate, Views
from meshinv.losses import points

RENDERED, PHOTOGRAPHED = 0, 1  # the two sides draw their points independently of each other
FARTHEST_COLOR, FARTHEST_PLACE = 12.0, 8.0  # squared diagonals of [-1, 1]^3 and [-1, 1]^2


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


@dataclass(frozen=True)
class ColoredPoints(Batch):
    """Points of each image with what is seen there; padded, see `valid`. `position` is NDC and a constant."""

    appearance: Float[Tensor, "B M C"]
    position: Float[Tensor, "B M 2"]
    valid: Bool[Tensor, "B M"]

    def counts(self) -> list[int]:
        return self.valid.sum(dim=1).tolist()


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


def chamfer_texture(
    estimate: Estimate,
    target: Views,
    *,
    slack: float = 0.16,
    gain: float = 1.0,
    exponent: float = 1.0,
    floor: float = 1.0,
    two_sided: bool = False,
    interpolated: bool = True,
    max_points: int = 8192,
) -> Float[Tensor, "B"]:
    """Chamfer texture distance of rendered to photographed foreground pixels (L_pCT); never below `floor`.

    An image whose rendering has no foreground gets the largest value the term can take, as a constant: it has no colors
    to learn from, and losing the object must not look like a good match.

    Args:
        slack, gain, exponent, floor: see `Locality`.
        two_sided: add the distance of photographed to rendered pixels (Eq. 6); the released code does not.
        interpolated: read rendered colors at the authors' point positions, at index c (W - 1) / W, bilinearly, so that
            each is mixed a little with its left and upper neighbors. False reads the pixels themselves.
        max_points: pixels drawn from each side.

    Raises:
        ValueError: an image of `target` has an empty mask.
    """
    locality = Locality(slack, gain, exponent, floor)
    photo = _points_of_photograph(target, max_points)
    rendered = _points_of_rendering(estimate, target, max_points, interpolated)
    visible = rendered.valid.any(dim=1)
    worst = locality.cost(*rendered.position.new_tensor([FARTHEST_COLOR, FARTHEST_PLACE]))
    value = match(rendered, photo, locality)
    if two_sided:
        seen = ColoredPoints(photo.appearance, photo.position, photo.valid & visible[:, None])
        value = value + match(seen, rendered, locality)
        worst = 2 * worst
    return torch.where(visible, value, worst)


def _points_of_photograph(target: Views, max_points: int) -> ColoredPoints:
    pixels = points.foreground(target.mask, max_points=max_points, seeds=2 * target.index + PHOTOGRAPHED)
    pixels.require_some(target.index)
    position = pixels.positions(*target.mask.shape[-2:], dtype=target.rgb.dtype)
    return ColoredPoints(pixels.read(target.rgb), position, pixels.valid)


def _points_of_rendering(estimate: Estimate, target: Views, max_points: int, interpolated: bool) -> ColoredPoints:
    image = estimate.image
    pixels = points.foreground(image.mask, max_points=max_points, seeds=2 * target.index + RENDERED)
    position = pixels.positions(*image.mask.shape[-2:], dtype=image.rgb.dtype)
    if interpolated:
        colors = torch.nn.functional.grid_sample(image.rgb, position[:, None], align_corners=True)
        return ColoredPoints(colors.squeeze(2).transpose(1, 2), position, pixels.valid)
    return ColoredPoints(pixels.read(image.rgb), position, pixels.valid)

"""What pivotal tuning bends: planes and palettes themselves, or the weights of the generator that draws the planes.

The first are a few numbers for each object, at several resolutions. The second is how the method was published (Roich
et al. 2021): a copy of the generator for every photograph. Either way what is kept is what planes and palette gain by
it, so that records, evaluation and export see no difference. docs/photographs.md compares the two.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.inversion.search_state import finite_rows
from nerfinv.field import RadianceField
from nerfinv.generator.synthesis import Synthesis

BRIGHTEST = 1.002
"""What palettes reach; see `nerfinv.field.wide_sigmoid`."""

LEVELS = 3
"""Resolutions at which planes are changed, each half of the next."""


class Change(ABC):
    """What is added to the objects, and Adam on it; images do not touch each other.

    Args:
        found: the objects, without gradient.
        of_planes: the variables that the planes depend on; see `rows`.
    """

    def __init__(self, found: RadianceField, of_planes: Sequence[Tensor]) -> None:
        self.found = found
        self.palette = None if found.palette is None else torch.zeros_like(found.palette).requires_grad_()
        self.unit = found.planes.flatten(1).std(dim=1).nan_to_num(0.0)[:, None, None, None, None]
        self.sound = found.planes.new_ones(len(found), dtype=torch.bool)
        groups = [list(of_planes), *([] if self.palette is None else [[self.palette]])]
        self.variables = [variable for group in groups for variable in group]
        self.adam = torch.optim.Adam([{"params": group} for group in groups], betas=(0.9, 0.99))

    @abstractmethod
    def planes(self) -> Float[Tensor, "B 3 C R R"]:
        """What is added to the planes, with gradient."""

    @abstractmethod
    def finite(self, gradients: Sequence[Tensor]) -> Bool[Tensor, "B"]:
        """Whether all gradients of an image, in the order of the variables that planes depend on, are finite."""

    @abstractmethod
    def of(self, sound: Bool[Tensor, "B"], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients with zeros for the other images."""

    def details(self) -> dict[str, Tensor]:
        """What is added, without gradient; zeros of images that broke down."""
        found = {"planes": self.planes().detach()}
        if self.palette is not None:
            found["palette"] = self.palette.detach().clone()
        sound = self.sound & finite_rows(list(found.values()))
        return {name: _where(sound, value, torch.zeros_like(value)) for name, value in found.items()}

    def field(self) -> RadianceField:
        """The changed objects, with gradient."""
        planes = self.found.planes + self.planes()
        return replace(
            self.found, planes=planes, palette=None if self.palette is None else self.found.palette + self.palette
        )

    def size(self) -> Float[Tensor, "B"]:
        """Mean square of the planes' change, in standard deviations of each object's own planes."""
        squares = (self.planes() / self.unit.clamp(min=1e-12)).square()
        return squares.flatten(1).mean(dim=1)

    def palette_to(self, added: Float[Tensor, "B K 3"] | None) -> None:
        """Set what is added to the palette."""
        if added is not None:
            self.palette.data.copy_(added)
            self._hold()

    def step(self, value: Float[Tensor, "B"], rate: float, palette_rate: float) -> None:
        """A step of Adam on each image's objective; an image that is not finite stays where it was from then on."""
        gradients = torch.autograd.grad(value.sum(), self.variables, allow_unused=True, materialize_grads=True)
        *of_planes, last = gradients
        of_palette = [last]
        if self.palette is None:
            of_planes, of_palette = [*of_planes, last], []
        self.sound &= value.detach().isfinite() & self.finite(of_planes)
        if of_palette:
            self.sound &= finite_rows(of_palette)
        gradients = [*self.of(self.sound, of_planes), *(_where(self.sound, g, torch.zeros_like(g)) for g in of_palette)]
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = gradient
        for group, own in zip(self.adam.param_groups, (rate, palette_rate), strict=False):
            group["lr"] = own
        self.adam.step()
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        """Keep the palette within the colors that there are."""
        if self.palette is not None:
            whole = (self.found.palette + self.palette).clamp(-BRIGHTEST, BRIGHTEST)
            self.palette.copy_(whole - self.found.palette)


class PlaneChange(Change):
    """Planes are changed at several resolutions at once: what pixels agree about moves together, and parts between the
    texels that were seen move along.
    """

    def __init__(self, found: RadianceField) -> None:
        side, flat = found.planes.shape[-1], found.planes.flatten(0, 1)
        levels = [flat.new_zeros(*flat.shape[:2], s, s) for s in (side >> n for n in range(LEVELS)) if s >= 4]
        self.levels = [level.requires_grad_() for level in levels]
        super().__init__(found, self.levels)

    def planes(self) -> Float[Tensor, "B 3 C R R"]:
        first, *coarser = self.levels
        side = first.shape[-1]
        for level in coarser:
            first = first + F.interpolate(level, size=side, mode="bilinear", align_corners=True)
        return first.unflatten(0, (-1, 3)) * self.unit

    def finite(self, gradients: Sequence[Tensor]) -> Bool[Tensor, "B"]:
        return finite_rows([gradient.unflatten(0, (-1, 3)) for gradient in gradients])

    def of(self, sound: Bool[Tensor, "B"], gradients: Sequence[Tensor]) -> list[Tensor]:
        rows = [gradient.unflatten(0, (-1, 3)) for gradient in gradients]
        return [_where(sound, row, torch.zeros_like(row)).flatten(0, 1) for row in rows]


class GeneratorChange(Change):
    """The weights of the network that draws the planes, a copy for every image.

    Args:
        synthesis: of the generator.
        styles: of the objects, one for each of its slots.
    """

    def __init__(self, found: RadianceField, synthesis: Synthesis, styles: Float[Tensor, "B W S"]) -> None:
        self.styles = styles
        self.copies = [copy.deepcopy(synthesis).requires_grad_() for _ in range(len(found))]
        super().__init__(found, [weight for one in self.copies for weight in one.parameters()])

    def planes(self) -> Float[Tensor, "B 3 C R R"]:
        drawn = [one(style[None]) for one, style in zip(self.copies, self.styles, strict=True)]
        return torch.cat(drawn).unflatten(1, (3, -1)) - self.found.planes

    def finite(self, gradients: Sequence[Tensor]) -> Bool[Tensor, "B"]:
        rows = self._by_image(gradients)
        return torch.stack([torch.stack([part.isfinite().all() for part in row]).all() for row in rows])

    def of(self, sound: Bool[Tensor, "B"], gradients: Sequence[Tensor]) -> list[Tensor]:
        rows = self._by_image(gradients)
        return [
            torch.where(own, part, torch.zeros_like(part)) for own, row in zip(sound, rows, strict=True) for part in row
        ]

    def _by_image(self, gradients: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        each = len(gradients) // len(self.copies)
        return [gradients[start : start + each] for start in range(0, len(gradients), each)]


def _where(rows: Bool[Tensor, "B"], first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (first.dim() - 1)), first, second)

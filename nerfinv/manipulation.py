"""What can be done to found or generated objects: exchanging palettes, walking between them (section 4; appendix A.2).

The last style of an object makes its palette and all others its shape and regions, so either can come from another
object. A picture is linear in the palette, so the palette that explains a picture best is a least-squares solution.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerfinv.field import RadianceField


def with_palettes_of(shapes: RadianceField, colors: RadianceField) -> RadianceField:
    """Each object in the colors of the other (palette transfer); exchanged arguments are identity transfer.

    Raises:
        ValueError: the fields have no palettes, or not equally many objects or colors.
    """
    if shapes.palette is None or colors.palette is None:
        raise ValueError("colors can be exchanged between fields with palettes alone; these decode colors directly")
    if shapes.palette.shape != colors.palette.shape:
        raise ValueError(
            f"palettes of {list(shapes.palette.shape)} and {list(colors.palette.shape)} cannot be exchanged: there "
            "must be equally many objects, and of the same number of colors"
        )
    return shapes.with_palette(colors.palette)


def styles_with_palettes_of(
    shapes: Float[Tensor, "B W S"], colors: Float[Tensor, "B W S"], *, palette_slots: int = 1
) -> Float[Tensor, "B W S"]:
    """The same for styles, such as those of an inversion: the last one is the palette's.

    Args:
        palette_slots: last slots that are taken from `colors`. More than one is mixing by layers, which is what a
            generator without palettes offers.
    """
    return torch.cat([shapes[:, :-palette_slots], colors[:, -palette_slots:]], dim=1)


def all_pairs(field: RadianceField) -> RadianceField:
    """Every shape in every palette: shape by shape, and for each of them palette by palette.

    Raises:
        ValueError: the field has no palette.
    """
    count = len(field)
    palette = torch.arange(count).repeat(count)
    return with_palettes_of(field.repeat(count), field[palette])


def path(stops: Float[Tensor, "K *L"], count: int, *, closed: bool = True) -> Float[Tensor, "count *L"]:
    """`count` latents evenly spread over straight lines from stop to stop, of which none takes longer than another.

    Args:
        stops: styles; of latents before the mapping network straight lines leave the distribution.
        closed: from the last one back to the first, which is not repeated; otherwise both ends are part of it.

    Raises:
        ValueError: there are fewer than two stops.
    """
    if len(stops) < 2:
        raise ValueError(f"a path has two stops or more, not {len(stops)}")
    legs = len(stops) if closed else len(stops) - 1
    place = torch.arange(count, dtype=torch.float64) * (legs / (count if closed else max(count - 1, 1)))
    leg = place.floor().clamp(max=legs - 1).long()
    share = (place - leg).to(stops).view(-1, *[1] * (stops.ndim - 1))
    return torch.lerp(stops[leg], stops[(leg + 1) % len(stops)], share)


def explaining_palette(
    shares: Float[Tensor, "B K H W"],
    rgb: Float[Tensor, "B 3 H W"],
    *,
    background: float = 0.0,
    near: Float[Tensor, "B K 3"] | None = None,
    ridge: float = 1e-4,
) -> Float[Tensor, "B K 3"]:
    """The palette with which the rendering of `shares` comes closest to a picture, in the mean square.

    rgb = sum_k share_k palette_k + background (1 - sum_k share_k) at every pixel. Colors are clamped to [-1, 1].

    Args:
        rgb: where the object is not, it must show the background, such as `invkit.images.composite` puts there.
        background: what the picture has behind the object: 0 mid grey, 1 white.
        near: what colors tend to that are not, or hardly, seen; grey where not given.
        ridge: how much, relative to the pixels of a color.
    """
    weight = shares.flatten(2).double()
    target = rgb.flatten(2).double() - background * (1 - weight.sum(dim=1, keepdim=True))
    start = weight.new_zeros(*weight.shape[:2], 3) if near is None else near.double()
    normal = weight @ weight.transpose(1, 2)
    # At least a pixel's worth, so that colors that are nowhere have a solution.
    size = normal.diagonal(dim1=1, dim2=2).amax(dim=1).clamp(min=1)[:, None, None]
    normal = normal + ridge * size * torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    error = weight @ (target.transpose(1, 2) - weight.transpose(1, 2) @ start)
    return (start + torch.linalg.solve(normal, error)).clamp(-1, 1).to(rgb)


PALETTE: Sequence[tuple[float, float, float]] = (
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
    (0, 0, 0),
    (1, 0.5, 0),
    (0.5, 1, 0),
    (0, 0.5, 1),
)
"""The released code's colors for showing regions, in [0, 1]."""


def region_colors(count: int) -> Float[Tensor, "K 3"]:
    """Colors in [-1, 1] that tell regions apart; beyond ten they come again, darker each time."""
    rounds = torch.arange(count) // len(PALETTE)
    return torch.tensor(PALETTE)[torch.arange(count) % len(PALETTE)] * 0.6 ** rounds[:, None] * 2 - 1

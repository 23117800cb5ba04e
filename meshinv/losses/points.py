"""Pictures as sets of points, and who is nearest to whom.

Both Chamfer losses of MeshInversion compare point sets of different sizes. A batch of them is padded and carries
`valid`; the search for nearest neighbors runs image by image on the true sizes, in tiles, without gradient. The losses
then take the distances of the matched pairs alone, so neither memory nor the backward pass ever sees an N x M matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invkit.batch import Batch

FOREGROUND = 0.9  # a pixel belongs to the object where its mask is above this, as in the released code
PAIRS_IN_CACHE, PAIRS_IN_A_LAUNCH = 2**18, 2**22  # tile sizes: what stays in a core's cache; what keeps a GPU busy
BLOCK = 64  # columns of which the least is found in one go


@dataclass(frozen=True)
class PixelSet(Batch):
    """The chosen pixels of each image, in row-major order, padded to the longest.

    Args:
        row, column: pixel indices; 0 in the padding.
        valid: False in the padding.
    """

    row: Int[Tensor, "B M"]
    column: Int[Tensor, "B M"]
    valid: Bool[Tensor, "B M"]

    def counts(self) -> list[int]:
        """How many pixels each image has."""
        return self.valid.sum(dim=1).tolist()

    def require_some(self, names: Int[Tensor, "B"], reason: str = f"no pixel is above {FOREGROUND}") -> None:
        """
        Raises:
            ValueError: an image has no pixels; `names` says which.
        """
        empty = [name for name, count in zip(names.tolist(), self.counts(), strict=True) if count == 0]
        if empty:
            raise ValueError(f"the masks of images {empty} are empty: {reason}")

    def positions(self, height: int, width: int, *, offset: float = 0.0, dtype: torch.dtype) -> Float[Tensor, "B M 2"]:
        """(x, y) in NDC, y down. Index i lies at 2 (i + offset) / size - 1; the authors use offset 0."""
        x = (self.column.to(dtype) + offset) * (2 / width) - 1
        y = (self.row.to(dtype) + offset) * (2 / height) - 1
        return torch.stack([x, y], dim=-1)

    def read(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B M C"]:
        """The values of these very pixels."""
        flat = self.row * image.shape[-1] + self.column
        values = image.flatten(2).gather(2, flat[:, None].expand(-1, image.shape[1], -1))
        return values.transpose(1, 2)


@dataclass(frozen=True)
class ColoredPoints(Batch):
    """Points of each image with what is seen there; padded, see `valid`. `position` is NDC and a constant."""

    appearance: Float[Tensor, "B M C"]
    position: Float[Tensor, "B M 2"]
    valid: Bool[Tensor, "B M"]

    def counts(self) -> list[int]:
        """How many points each image has."""
        return self.valid.sum(dim=1).tolist()


def colored(
    pixels: PixelSet, image: Float[Tensor, "B C H W"], *, resampled: bool, half_pixel: bool = False
) -> ColoredPoints:
    """These pixels as points with their values in `image`.

    Args:
        resampled: read at the place that bilinear sampling with aligned corners gives a point's position, as the
            authors do: at index c (W - 1) / W, so that each is mixed a little with its left and upper neighbors.
            False reads the pixels themselves.
        half_pixel: put points at the centers of their pixels; see `PixelSet.positions`.
    """
    position = pixels.positions(*image.shape[-2:], offset=0.5 if half_pixel else 0.0, dtype=image.dtype)
    if resampled:
        values = torch.nn.functional.grid_sample(image, position[:, None], align_corners=True)
        return ColoredPoints(values.squeeze(2).transpose(1, 2), position, pixels.valid)
    return ColoredPoints(pixels.read(image), position, pixels.valid)


def foreground(
    mask: Float[Tensor, "B 1 H W"],
    *,
    max_points: int | None = None,
    seeds: Int[Tensor, "B"] | None = None,
) -> PixelSet:
    """The pixels of `mask` above 0.9.

    Args:
        max_points: where an image has more, this many of them are drawn. Whether a pixel is drawn early or late depends
            on its position and the image's seed alone, so the choice is stable while an outline moves and is the same
            on every device and in every batch.
        seeds: one for each image; needed with `max_points`.
    """
    batch, width = len(mask), mask.shape[-1]
    inside = mask.detach().flatten(1) > FOREGROUND
    if max_points is not None:
        inside = _drawn(inside, max_points, seeds)
    image, pixel = inside.nonzero(as_tuple=True)
    counts = inside.sum(dim=1)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(image), device=mask.device) - starts[image]
    longest = max(int(counts.max()) if batch else 0, 1)  # never of length 0, which some operators refuse
    padded = pixel.new_zeros(batch, longest)
    padded[image, place] = pixel
    valid = torch.arange(longest, device=mask.device) < counts[:, None]
    return PixelSet(padded // width, padded % width, valid)


def _drawn(inside: Bool[Tensor, "B P"], max_points: int, seeds: Int[Tensor, "B"] | None) -> Bool[Tensor, "B P"]:
    """At most `max_points` of the pixels inside, those of the lowest hash."""
    if seeds is None:
        raise ValueError("drawing pixels needs `seeds`, one for each image")
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1; got {max_points}")
    if inside.shape[1] <= max_points or int(inside.sum(dim=1).max()) <= max_points:
        return inside
    order = _hash(torch.arange(inside.shape[1], device=inside.device) + _hash(seeds)[:, None])
    order = order.masked_fill(~inside, torch.iinfo(torch.int64).max)
    last = order.kthvalue(max_points, dim=1, keepdim=True).values
    return inside & (order <= last)


def _hash(value: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """A 63-bit integer hash (the finalizer of splitmix64), equal on every device."""
    mixed = value.long() * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        # torch shifts signed integers arithmetically; the mask makes it the logical shift the hash is made for.
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor
    return (mixed ^ ((mixed >> 31) & (2**33 - 1))) & (2**63 - 1)


class ExactDistances:
    """|a - b|^2 of every pair of two sets, from the differences: exact, for few channels."""

    def __init__(self, first: Float[Tensor, "N C"], second: Float[Tensor, "M C"]) -> None:
        self.first, self.second = first, second.T.contiguous()
        self.tile = second.new_empty(2, 0)

    def __call__(self, rows: slice) -> Float[Tensor, "N M"]:
        """Those of these rows of the first set to all of the second; the next call writes over them.

        Memory is taken once: fresh pages for every tile would cost as much as the arithmetic.
        """
        first = self.first[rows]
        shape = len(first), self.second.shape[1]
        if self.tile.shape[1] < shape[0] * shape[1]:
            self.tile = self.tile.new_empty(2, shape[0] * shape[1])
        total, difference = self.tile[:, : shape[0] * shape[1]].view(2, *shape)
        total.zero_()
        for a, b in zip(first.T, self.second, strict=True):
            torch.sub(a[:, None], b, out=difference)
            total.addcmul_(difference, difference)
        return total


class Distances:
    """gain |a - b|^2 + offset of every pair of two sets as one matrix product: [a, |a|^2, 1] [-2 b, 1, |b|^2].

    As fast as the differences for three channels, six times faster for 256. It rounds at the size of |a|^2, so that of
    partners equally near but for that the first may be missed.
    """

    def __init__(
        self, first: Float[Tensor, "N C"], second: Float[Tensor, "M C"], *, gain: float = 1.0, offset: float = 0.0
    ) -> None:
        def length(points: Tensor) -> Tensor:
            return points.square().sum(dim=1, keepdim=True)

        one = torch.ones_like(second[:, :1])
        self.first = torch.cat([first, length(first), torch.ones_like(first[:, :1])], dim=1)
        self.second = torch.cat([-2 * gain * second, gain * one, gain * length(second) + offset], dim=1).T.contiguous()
        self.tile = self.second.new_empty(0, self.second.shape[1])

    def __call__(self, rows: slice) -> Float[Tensor, "N M"]:
        """Those of these rows of the first set to all of the second; the next call writes over them."""
        first = self.first[rows]
        if len(self.tile) < len(first):
            self.tile = self.tile.new_empty(len(first), self.tile.shape[1])
        return torch.mm(first, self.second, out=self.tile[: len(first)])


@torch.no_grad()
def nearest(
    source_counts: Sequence[int],
    target_counts: Sequence[int],
    costs: Callable[[int], Callable[[slice], Float[Tensor, "N M"]]],
    *,
    like: Float[Tensor, "B N C"],
) -> Int[Tensor, "B N"]:
    """For every source point of every image the target point of least cost; 0 in the padding.

    Args:
        costs: image -> (sources -> their costs against all targets of that image).
        like: the padded source points; gives the padded length and the device.

    Raises:
        ValueError: an image has sources but no targets.
    """
    found = torch.zeros(like.shape[:2], dtype=torch.long, device=like.device)
    pairs = PAIRS_IN_CACHE if like.device.type == "cpu" else PAIRS_IN_A_LAUNCH
    for image, (sources, targets) in enumerate(zip(source_counts, target_counts, strict=True)):
        if sources and not targets:
            raise ValueError(f"image {image} of the batch has {sources} source points and nothing to match them with")
        rows = max(1, pairs // max(targets, 1))
        cost = costs(image)
        for start in range(0, sources, rows):
            chunk = slice(start, min(start + rows, sources))
            found[image, chunk] = first_least(cost(chunk))
    return found


def first_least(values: Float[Tensor, "N M"]) -> Int[Tensor, "N"]:
    """Column of the least value of each row, the first of several.

    In two levels, because finding a minimum is several times faster than finding where it is.
    """
    num_blocks = values.shape[1] // BLOCK
    if num_blocks < 2:
        return values.argmin(dim=1)
    blocks = values[:, : num_blocks * BLOCK].unflatten(1, (num_blocks, BLOCK))
    least, block = blocks.amin(dim=2).min(dim=1)
    found = block * BLOCK + blocks[torch.arange(len(values), device=values.device), block].argmin(dim=1)
    if num_blocks * BLOCK == values.shape[1]:
        return found
    rest, place = values[:, num_blocks * BLOCK :].min(dim=1)
    return torch.where(rest < least, num_blocks * BLOCK + place, found)


def pick(values: Float[Tensor, "B N C"], index: Int[Tensor, "B M"]) -> Float[Tensor, "B M C"]:
    """values[b, index[b, m]], differentiable."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def mean_of_valid(values: Float[Tensor, "B M"], valid: Bool[Tensor, "B M"]) -> Float[Tensor, "B"]:
    """The mean over each image's true points; 0 for an image that has none."""
    kept = torch.where(valid, values, values.new_zeros(()))
    return kept.sum(dim=1) / valid.sum(dim=1).clamp(min=1)

"""What is seen at the points of pictures that texture losses compare: colors, or features of a network.

The two levels of MeshInversion's texture loss (section 3.2) differ in nothing else, and a loss with another rule of
matching can look at the same features at the same points.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from invkit.features.frozen import Stack
from invkit.types import Rendering, Views
from meshinv.losses import points
from meshinv.losses.points import ColoredPoints

RENDERED, PHOTOGRAPHED = 0, 1  # the two sides draw their points independently of each other


@runtime_checkable
class Appearance(Protocol):
    """Foreground points of a picture, with what is seen there.

    farthest: the largest squared difference that two points can have.
    """

    farthest: float

    def photographed(self, views: Views, max_points: int | None) -> ColoredPoints:
        """The points of photographs.

        Raises:
            ValueError: an image has none.
        """
        ...

    def rendered(self, image: Rendering, index: Int[Tensor, "B"], max_points: int | None) -> ColoredPoints:
        """The points of renderings, perhaps none; `index` of the photographs decides which of too many are drawn."""
        ...


class Colors:
    """The colors of foreground pixels.

    Args:
        resampled: how colors of the rendering are read, see `points.colored`; those of the photograph are read exactly.
        half_pixel: whether points lie at the centers of their pixels. Distances do not depend on it, only where
            resampled colors are read.
    """

    farthest = 12.0  # the squared diagonal of [-1, 1]^3

    def __init__(self, *, resampled: bool = True, half_pixel: bool = False) -> None:
        self.resampled, self.half_pixel = resampled, half_pixel

    def photographed(self, views: Views, max_points: int | None) -> ColoredPoints:
        """The points of photographs.

        Raises:
            ValueError: the mask of an image is empty.
        """
        pixels = points.foreground(views.mask, max_points=max_points, seeds=2 * views.index + PHOTOGRAPHED)
        pixels.require_some(views.index)
        return points.colored(pixels, views.rgb, resampled=False, half_pixel=self.half_pixel)

    def rendered(self, image: Rendering, index: Int[Tensor, "B"], max_points: int | None) -> ColoredPoints:
        """The points of renderings."""
        pixels = points.foreground(image.mask, max_points=max_points, seeds=2 * index + RENDERED)
        return points.colored(pixels, image.rgb, resampled=self.resampled, half_pixel=self.half_pixel)


class Features:
    """Features of a network that sees the object alone, at the cells of its grid that the object covers.

    The authors read relu3_1 of VGG-19: 256 channels on a grid of a quarter of the picture. Each point's features are
    normalized to unit length. The network follows the photographs to their device and precision.

    Args:
        network: of a single layer.
        subpool_threshold: how much of a cell the mask has to cover.
        resampled, half_pixel: how features of both sides are read, see `Colors`; True and False are the authors'.
        bfloat16: run the network in mixed precision: twice as fast where the hardware has it, and about two digits.

    Raises:
        ValueError: the network reads several layers.
    """

    farthest = 4.0  # between unit vectors

    def __init__(
        self,
        network: Stack,
        *,
        subpool_threshold: float = 0.5,
        resampled: bool = True,
        half_pixel: bool = False,
        bfloat16: bool = False,
    ) -> None:
        if len(network.layers) != 1:
            raise ValueError(f"features are those of one layer; the network reads {', '.join(network.layers)}")
        self.network, self.subpool_threshold = network, subpool_threshold
        self.resampled, self.half_pixel, self.bfloat16 = resampled, half_pixel, bfloat16

    def photographed(self, views: Views, max_points: int | None) -> ColoredPoints:
        """The points of photographs.

        Raises:
            ValueError: the mask of an image covers no cell.
        """
        self.network.follow(views.rgb)
        return self._points(views.rgb, views.mask, 2 * views.index + PHOTOGRAPHED, max_points, named=views.index)

    def rendered(self, image: Rendering, index: Int[Tensor, "B"], max_points: int | None) -> ColoredPoints:
        """The points of renderings."""
        return self._points(image.rgb, image.mask, 2 * index + RENDERED, max_points)

    def _points(
        self,
        rgb: Float[Tensor, "B 3 H W"],
        mask: Float[Tensor, "B 1 H W"],
        seeds: Int[Tensor, "B"],
        max_points: int | None,
        *,
        named: Int[Tensor, "B"] | None = None,
    ) -> ColoredPoints:
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=self.bfloat16):
            (features,) = self.network(rgb, mask)
        # Average pooling by the network's stride, 4 x 4 pixels for relu3_1.
        covered = functional.adaptive_avg_pool2d(mask, features.shape[-2:]) >= self.subpool_threshold
        cells = points.foreground(covered.to(mask.dtype), max_points=max_points, seeds=seeds)
        if named is not None:
            size = " x ".join(map(str, features.shape[-2:]))
            cells.require_some(named, f"no cell of the {size} features is covered by {self.subpool_threshold:.0%}")
        read = points.colored(cells, features.to(rgb.dtype), resampled=self.resampled, half_pixel=self.half_pixel)
        return ColoredPoints(functional.normalize(read.appearance, dim=2), read.position, read.valid)

"""What photographs say of the objects that were found in them: pixels for a rendering, and colors of places.

A rendering is compared with some of the pixels at a time. Of a place on the surface a photograph may show the color, or
nothing at all, because something is before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import composite, resize_antialias
from invkit.types import Views
from nerfinv.field import RadianceField
from nerfinv.renderers.volume import VolumeRenderer, resized

CLOSE = 0.05
"""Share of the half box within which a point belongs to the surface that a pixel shows."""

SOLID = 0.5
"""Opacity from which on a pixel shows a surface."""

CERTAIN = 0.9
"""Opacity of all pixels about a place whose color is trusted."""


@dataclass(frozen=True)
class Look:
    """Pixels of the photographs, evenly spread, and what renders the same of a scene.

    Args:
        rgb: on the renderer's background.
    """

    renderer: VolumeRenderer
    camera: Camera
    rgb: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]


@dataclass(frozen=True)
class Shown:
    """What the photographs say of points.

    Args:
        behind: 1 where something of the object is before them.
        trust: in the color; the cosine of the view to the surface, 0 where it is not seen or lies at the outline.
        color: where they are in the picture.
    """

    behind: Float[Tensor, "B N"]
    trust: Float[Tensor, "B N"]
    color: Float[Tensor, "B N 3"]


class Looks:
    """The photographs, a part of their pixels at a time.

    A photograph twice as large as the renderer's pictures is four interleaved ones, of which a step takes one: as much
    work as for a small photograph, and in the end every pixel has been looked at.

    Args:
        renderer: what is drawn at once has its size, or that of the photographs if they are less than twice as large.
        camera: of the photographs, as found.
    """

    def __init__(self, renderer: VolumeRenderer, camera: Camera, views: Views) -> None:
        size = views.rgb.shape[-1]
        self.every = max(1, size // renderer.size)
        side = size // self.every
        rgb, mask = views.rgb, views.mask
        if side * self.every != size:
            rgb, mask = (resize_antialias(part, side * self.every) for part in (rgb, mask))
        self.rgb, self.mask = composite(rgb, mask, renderer.background), mask
        self.renderer, self.camera = resized(renderer, side), camera
        small = [resize_antialias(part, side) for part in (self.rgb, mask)] if self.every > 1 else [self.rgb, mask]
        self.whole = Look(self.renderer, camera, *small)

    def some(self, count: int) -> Iterator[Look]:
        """So many looks, all pixels in turn."""
        for number in range(count):
            # Backwards, so that the first two of four are opposite ones.
            place = (number * (self.every**2 - 1)) % self.every**2
            row, column = divmod(place, self.every)
            part = (..., slice(row, None, self.every), slice(column, None, self.every))
            yield Look(self.renderer, self._moved(column, row), self.rgb[part], self.mask[part])

    def shown(self, pivot: RadianceField, points: Float[Tensor, "B N 3"]) -> Shown:
        """What the photographs say of points on the surface."""
        look = self.whole
        image = look.renderer(pivot, look.camera, extras=frozenset({"depth"}))
        projected = look.camera.project(points)
        place = projected[:, None, :, :2]

        def at(picture: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C N"]:
            return F.grid_sample(picture, place, mode="bilinear", align_corners=False).squeeze(2)

        depth = at(image.depth / image.mask.clamp(min=SOLID)).squeeze(1)
        beyond = projected[..., 2] - depth
        margin = CLOSE * pivot.half_side * look.camera.scale[:, None]
        behind = (beyond > margin) & (at(image.mask).squeeze(1) > SOLID)
        # Pixels at the outline mix the object with what is behind it.
        inner = -F.max_pool2d(-torch.minimum(look.mask, image.mask), 3, stride=1, padding=1)
        trusted = (at(inner).squeeze(1) > CERTAIN) & (beyond.abs() < margin)
        facing = -rotation.rotate(look.camera.quat, pivot.normals(points))[..., 2]
        return Shown(
            behind.to(points),
            (facing.clamp(min=0) * trusted).nan_to_num(0.0),
            at(self.rgb).transpose(1, 2).nan_to_num(0.0),
        )

    def _moved(self, column: int, row: int) -> Camera:
        """The camera whose pixel centers lie on these pixels of the photograph."""
        middle = (self.every - 1) / 2
        offset = self.camera.shift.new_tensor([column - middle, row - middle]) * (2 / self.rgb.shape[-1])
        return replace(self.camera, shift=self.camera.shift - offset, center=self.camera.center - offset)

"""Chamfer mask loss (MeshInversion, section 3.3).

Rasterizing a mesh rounds its outline to pixels, and a small change of shape then changes nothing. So the projected
vertices are compared, before any rounding, with the places of the foreground pixels. Hidden vertices take part: they
project into the silhouette like the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from invkit.batch import Batch
from invkit.types import Estimate, Views
from meshinv.losses import points


@dataclass(frozen=True)
class Foreground(Batch):
    """The places (NDC) of the foreground pixels of each image; padded, see `valid`."""

    position: Float[Tensor, "B M 2"]
    valid: Bool[Tensor, "B M"]


class ChamferMask:
    """Two-sided squared Chamfer distance between projected vertices and foreground pixels, NDC units (L_CM).

    The mean over all vertices of the squared distance to the nearest pixel of the target mask, plus the mean over these
    pixels of that to the nearest vertex.

    Args:
        max_points: foreground pixels drawn per image; None takes all of them, as the authors do. Memory does not depend
            on it, time does.
        half_pixel: put pixels at their centers, where the rasterizer sees them, instead of at the authors' 2 c / W - 1
            (half a pixel to the top left).
    """

    def __init__(self, *, max_points: int | None = None, half_pixel: bool = False) -> None:
        self.max_points, self.half_pixel = max_points, half_pixel

    def target(self, views: Views) -> Foreground:
        """The places of the foreground pixels.

        Raises:
            ValueError: an image has an empty mask.
        """
        pixels = points.foreground(views.mask, max_points=self.max_points, seeds=views.index)
        pixels.require_some(views.index)
        offset = 0.5 if self.half_pixel else 0.0
        position = pixels.positions(*views.mask.shape[-2:], offset=offset, dtype=views.mask.dtype)
        return Foreground(position, pixels.valid)

    def __call__(self, estimate: Estimate, target: Foreground) -> Float[Tensor, "B"]:
        """The distance for each image."""
        vertices = estimate.camera.project(estimate.scene.vertices)[..., :2]
        places, counts = target.position, target.valid.sum(dim=1).tolist()
        num_vertices = [vertices.shape[1]] * len(counts)

        def from_vertices(image: int) -> Callable[[slice], Tensor]:
            return points.ExactDistances(vertices[image], places[image, : counts[image]])

        def from_pixels(image: int) -> Callable[[slice], Tensor]:
            return points.ExactDistances(places[image, : counts[image]], vertices[image])

        pixel_of_vertex = points.nearest(num_vertices, counts, from_vertices, like=vertices)
        vertex_of_pixel = points.nearest(counts, num_vertices, from_pixels, like=places)
        to_pixels = (vertices - points.pick(places, pixel_of_vertex)).square().sum(dim=-1)
        to_vertices = (places - points.pick(vertices, vertex_of_pixel)).square().sum(dim=-1)
        return to_pixels.mean(dim=1) + points.mean_of_valid(to_vertices, target.valid)

"""A scan converter of its own for making data: exact spans, a z-buffer, supersampling, no loop over pixels.

It is deliberately not the renderer that is trained through, so that data and method cannot share a mistake.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from invkit.data.synthetic.surfaces import Surface
from invkit.geometry.camera import Camera

EDGE = 1e-7  # samples; spans are widened by this, so that rounding opens no seam between neighbors


@dataclass(frozen=True)
class Picture:
    """What is seen of a surface.

    Args:
        rgb: color times coverage (premultiplied), in [0, 1].
        coverage: the share of each pixel that the surface covers.
        depth: s Z / (1 + s Z / f) at every sample, infinite where nothing is hit; [H S, W S] for S samples a side.
    """

    rgb: Float64[np.ndarray, "H W 3"]
    coverage: Float64[np.ndarray, "H W"]
    depth: Float64[np.ndarray, "HS WS"]

    def over(self, background: Float64[np.ndarray, "H W 3"] | float) -> Float64[np.ndarray, "H W 3"]:
        """The picture on a background."""
        return self.rgb + (1 - self.coverage[..., None]) * background


def in_pixels(camera: Camera, points: Float64[np.ndarray, "N 3"], side: int) -> Float64[np.ndarray, "N 3"]:
    """x, y in pixels from the top-left corner of a square canvas, and scaled depth, by the one camera of a batch."""
    projected = camera.project(torch.from_numpy(points)[None])[0].numpy()
    return np.concatenate([(projected[:, :2] + 1) * (side / 2), projected[:, 2:]], axis=1)


def picture(
    surface: Surface,
    colors: Float64[np.ndarray, "V 3"],
    camera: Camera,
    *,
    height: int,
    width: int,
    supersample: int = 3,
) -> Picture:
    """The surface seen by a float64 camera whose NDC spans a square of side max(height, width) from the top left.

    Args:
        colors: of the vertices, shading included.
        supersample: samples per pixel and side.
    """
    points = in_pixels(camera, surface.vertices, max(height, width) * supersample)
    weight = 1 / (1 + float(camera.inv_focal[0]) * points[:, 2])
    points[:, 2] *= weight  # linear across the picture under perspective too, and still increasing with depth
    rows, columns = height * supersample, width * supersample
    face, pixel, depth = nearest(points, surface.faces, rows, columns)

    corner = surface.faces[face]
    place = np.stack([pixel % columns + 0.5, pixel // columns + 0.5], axis=1)
    a, b, c = (points[corner[:, k], :2] for k in range(3))
    share = np.stack([_cross(b - place, c - place), _cross(c - place, a - place), _cross(a - place, b - place)], axis=1)
    share *= weight[corner]
    share /= share.sum(axis=1, keepdims=True)
    seen = np.einsum("nk,nkc->nc", share, colors[corner])

    coarse = (pixel // columns // supersample) * width + pixel % columns // supersample
    sums = [np.bincount(coarse, seen[:, k], height * width) for k in range(3)]
    sums.append(np.bincount(coarse, minlength=height * width).astype(np.float64))
    mean = np.stack(sums, axis=-1).reshape(height, width, 4) / supersample**2
    return Picture(mean[..., :3], mean[..., 3], depth.reshape(rows, columns))


def nearest(
    points: Float64[np.ndarray, "V 3"], faces: Int64[np.ndarray, "F 3"], rows: int, columns: int
) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"], Float64[np.ndarray, "HW"]]:
    """(face, sample) of every covered sample, and the depths of all samples; back faces are left out.

    Args:
        points: x, y in samples (sample i has its center at i + 1/2) and a depth that is linear across the picture.
    """
    corner = points[faces]
    area = _cross(corner[:, 1, :2] - corner[:, 0, :2], corner[:, 2, :2] - corner[:, 0, :2])
    front = np.flatnonzero(area < -1e-12)  # outward normals that point to the viewer, in axes with y down
    corner, area = corner[front], area[front]

    # Every row that a face crosses is one span.
    low = np.clip(np.ceil(corner[..., 1].min(axis=1) - 0.5), 0, rows).astype(np.int64)
    high = np.clip(np.floor(corner[..., 1].max(axis=1) - 0.5) + 1, 0, rows).astype(np.int64)
    owner, step = _expand(np.maximum(high - low, 0))
    row = low[owner] + step
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for k in range(3):
        start, end = corner[owner, k], corner[owner, (k + 1) % 3]
        offset, rise = row + 0.5 - start[:, 1], end[:, 1] - start[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = offset / rise
        crossing = start[:, 0] + ratio * (end[:, 0] - start[:, 0])
        crosses = (ratio >= 0) & (ratio <= 1)
        left = np.where(crosses, np.minimum(left, crossing), left)
        right = np.where(crosses, np.maximum(right, crossing), right)
    begin = np.clip(np.ceil(left - 0.5 - EDGE), 0, columns)
    end = np.clip(np.floor(right - 0.5 + EDGE) + 1, 0, columns)
    span, step = _expand(np.maximum(end - begin, 0).astype(np.int64))
    column = begin.astype(np.int64)[span] + step

    # Depth is a plane over each face.
    along, across = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    slope_x = (along[:, 2] * across[:, 1] - across[:, 2] * along[:, 1]) / area
    slope_y = (across[:, 2] * along[:, 0] - along[:, 2] * across[:, 0]) / area
    base = corner[:, 0, 2] - slope_x * corner[:, 0, 0] - slope_y * corner[:, 0, 1]
    at_row = base[owner] + slope_y[owner] * (row + 0.5)
    depth = at_row[span] + slope_x[owner][span] * (column + 0.5)

    pixel = (row * columns)[span] + column
    buffer = np.full(rows * columns, np.inf)
    np.minimum.at(buffer, pixel, depth)
    winner = np.full(rows * columns, -1, np.int64)
    closest = np.flatnonzero(depth == buffer[pixel])
    winner[pixel[closest]] = front[owner[span[closest]]]
    covered = np.flatnonzero(winner >= 0)
    return winner[covered], covered, buffer


def _cross(first: Float64[np.ndarray, "N 2"], second: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N"]:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def _expand(counts: Int64[np.ndarray, "N"]) -> tuple[Int64[np.ndarray, "M"], Int64[np.ndarray, "M"]]:
    """For item i repeated counts[i] times: i, and 0, 1, ... counts[i] - 1."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]

"""Closed triangle surfaces with a color at every vertex, and the ways procedural objects are put together from them.

An object is a union of closed parts that may overlap; all are oriented outward, so a picture needs front faces only.
Everything is float64, and a mirrored part repeats the very numbers of its original: symmetry in x is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Surface:
    """Triangles with vertex colors in [0, 1]; `part` says which closed part a face belongs to."""

    vertices: Float64[np.ndarray, "V 3"]
    faces: Int64[np.ndarray, "F 3"]
    colors: Float64[np.ndarray, "V 3"]
    part: Int64[np.ndarray, "F"]

    def mirrored(self) -> "Surface":
        """The reflection in the plane x = 0, oriented outward again."""
        return replace(self, vertices=self.vertices * [-1.0, 1.0, 1.0], faces=self.faces[:, ::-1].copy())

    def normals(self) -> Float64[np.ndarray, "V 3"]:
        """Unit vertex normals: face normals averaged by area."""
        corner = self.vertices[self.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        total = np.zeros_like(self.vertices)
        for k in range(3):
            np.add.at(total, self.faces[:, k], normal)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)


def join(parts: Sequence[Surface]) -> Surface:
    """One surface of all parts, numbered in this order."""
    first = np.cumsum([0] + [len(part.vertices) for part in parts])
    number = np.cumsum([0] + [int(part.part.max()) + 1 for part in parts])
    return Surface(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, first, strict=False)]),
        np.concatenate([part.colors for part in parts]),
        np.concatenate([part.part + start for part, start in zip(parts, number, strict=False)]),
    )


def tube(
    rings: Float64[np.ndarray, "K N 3"],
    start: Float64[np.ndarray, "3"],
    end: Float64[np.ndarray, "3"],
    ring_colors: Float64[np.ndarray, "K N 3"],
) -> Surface:
    """A closed tube through `rings`, capped by fans around the points `start` and `end`.

    Vertex k N + n is point n of ring k; the last two vertices are the caps' points, colored like the rings beside them.
    """
    count, around = rings.shape[:2]
    here = np.arange(count * around).reshape(count, around)
    beside = np.roll(here, -1, axis=1)
    first, last = count * around, count * around + 1
    a, b, c, d = here[:-1], beside[:-1], here[1:], beside[1:]
    later = np.arange(around) >= around // 2  # cut along the other diagonal: a ring's two halves mirror each other
    one = np.where(later[:, None], np.stack([a, b, d], axis=-1), np.stack([a, b, c], axis=-1))
    two = np.where(later[:, None], np.stack([a, d, c], axis=-1), np.stack([b, d, c], axis=-1))
    faces = np.concatenate(
        [
            one.reshape(-1, 3),
            two.reshape(-1, 3),
            np.stack([np.full(around, first), beside[0], here[0]], axis=1),
            np.stack([np.full(around, last), here[-1], beside[-1]], axis=1),
        ]
    ).astype(np.int64)
    vertices = np.concatenate([rings.reshape(-1, 3), start[None], end[None]])
    colors = np.concatenate(
        [ring_colors.reshape(-1, 3), ring_colors[:1].mean(axis=1), ring_colors[-1:].mean(axis=1)]
    ).clip(0, 1)
    corner = vertices[faces] - vertices.mean(axis=0)
    if np.einsum("fi,fi->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) < 0:
        faces = faces[:, ::-1].copy()
    return Surface(vertices, faces, colors, np.zeros(len(faces), np.int64))


def half_circle(steps: int) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
    """(sine, cosine) at 2 `steps` points of a circle that starts on top: sines come in exactly opposite pairs."""
    angle = np.pi * np.arange(steps + 1) / steps
    sine, cosine = np.sin(angle), np.cos(angle)
    sine[[0, -1]] = 0
    return np.concatenate([sine, -sine[-2:0:-1]]), np.concatenate([cosine, cosine[-2:0:-1]])


def straddling_rings(
    line: Float64[np.ndarray, "K 2"],
    width: Float64[np.ndarray, "K"],
    height: Float64[np.ndarray, "K"],
    steps: int,
    *,
    squareness: float = 1.0,
) -> Float64[np.ndarray, "K N 3"]:
    """Elliptical rings across a curve in the plane x = 0, symmetric in x; point 0 of each is on top, then comes x > 0.

    Args:
        line: (y, z) of the rings' centers.
        width: half extents along x.
        height: half extents across the curve.
        squareness: below 1 turns the ellipses into superellipses, towards rectangles.
    """
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    up = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    sine, cosine = (np.sign(v) * np.abs(v) ** squareness for v in half_circle(steps))
    rise = height[:, None] * cosine
    return np.stack(
        [
            width[:, None] * sine,
            line[:, None, 0] + rise * up[:, None, 0],
            line[:, None, 1] + rise * up[:, None, 1],
        ],
        axis=-1,
    )


def ball(
    center: Float64[np.ndarray, "3"],
    radii: Float64[np.ndarray, "3"],
    color: Float64[np.ndarray, "3"],
    *,
    rings: int = 6,
    around: int = 10,
) -> Surface:
    """An ellipsoid with its poles along x; the last vertex is the pole at larger x."""
    polar = np.pi * np.arange(1, rings + 1) / (rings + 1)
    angle = 2 * np.pi * np.arange(around) / around
    unit = np.stack(
        [
            np.broadcast_to(-np.cos(polar)[:, None], (rings, around)),
            np.sin(polar)[:, None] * np.cos(angle),
            np.sin(polar)[:, None] * np.sin(angle),
        ],
        axis=-1,
    )
    pole = np.array([1.0, 0, 0])
    colors = np.broadcast_to(color, (rings, around, 3))
    return tube(center + unit * radii, center - pole * radii, center + pole * radii, colors)

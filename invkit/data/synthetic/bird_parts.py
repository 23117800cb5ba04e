"""The parts of a procedural bird: surfaces of torso, beak, tail, wings, legs and eyes, with their plumage.

Lengths are in body units, before the bird is scaled; the frame is that of `invkit.data.synthetic.birds`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import PchipInterpolator

from invkit.data.synthetic.surfaces import Surface, ball, join, straddling_rings, tube

WING_KNOTS, WING_AROUND = 32, 20


@dataclass(frozen=True)
class Species:
    """What the members of a species have in common; lengths in body units before the bird is scaled.

    Args:
        dyes: color of each part of the plumage.
        bars: places of the wing bars, 0 at the shoulder and 1 at the tip.
        spots: strength of the breast's spots in [0, 1].
        eye_line, collar: strength of a dark line through the eye, of a band around the neck.
    """

    name: str
    head: float
    beak: float
    beak_depth: float
    droop: float
    neck: float
    length: float
    depth: float
    tail: float
    spread: float
    legs: float
    crest: float
    dyes: dict[str, Float64[np.ndarray, "3"]]
    bars: tuple[float, ...]
    spots: float
    eye_line: float
    collar: float


@dataclass(frozen=True)
class Posture:
    """What varies from one individual to the next."""

    fatness: float
    neck: float
    wings_open: float
    tail_angle: float
    tail_spread: float
    legs: float
    tilt: float


@dataclass(frozen=True)
class Torso:
    """The head, neck and body in one: a surface, and the profile that wings and other parts are attached to."""

    surface: Surface
    line: Float64[np.ndarray, "K 2"]
    width: Float64[np.ndarray, "K"]
    height: Float64[np.ndarray, "K"]
    along: Float64[np.ndarray, "K"]
    around: int

    def ring(self, place: float) -> int:
        return int(np.abs(self.along - place).argmin())

    def vertex(self, place: float, turn: float) -> int:
        """The vertex at `place` along (0 bill, 1 rump), `turn` of the left half circle from top (0) to bottom (1)."""
        return self.ring(place) * self.around + round(turn * self.around / 2)


def torso_of(kind: Species, pose: Posture, rings: int = 44, steps: int = 16) -> Torso:
    fat, depth, head, length = pose.fatness, kind.depth, kind.head, kind.length
    top = 0.33 + pose.neck + 0.3 * (head - 0.17)
    knots = np.array([0, 0.04, 0.12, 0.20, 0.29, 0.44, 0.60, 0.76, 0.90, 1])
    y = np.array([-0.80, -0.775, -0.66, -0.555, -0.46, -0.25, 0.04, 0.33, 0.55, 0.66])
    y = np.where(knots < 0.25, -0.46 * length + (y + 0.46) * head / 0.17, y * length)
    z = np.array([top - 0.03, top - 0.02, top, top - 0.03, 0.205 + 0.7 * pose.neck, 0.05, -0.03, -0.01, 0.05, 0.08])
    wide = np.array([0, 0.55 * head, 0.94 * head, 0.98 * head, 0.175, 0.245, 0.265, 0.205, 0.105, 0])
    tall = np.array([0, 0.60 * head, 1.02 * head, 1.06 * head, 0.205, 0.265, 0.275, 0.205, 0.100, 0])
    body = (knots > 0.25).astype(float)
    wide, tall = wide * (1 + body * (fat - 1)), tall * (1 + body * (fat * depth - 1))

    cosine = (1 - np.cos(np.pi * np.arange(1, rings + 1) / (rings + 1))) / 2
    along = 0.5 * cosine + 0.5 * np.arange(1, rings + 1) / (rings + 1)
    # Squares of radii are interpolated: they vanish linearly at both ends, which rounds them.
    line = np.stack([PchipInterpolator(knots, y)(along), PchipInterpolator(knots, z)(along)], axis=1)
    width, height = (np.sqrt(PchipInterpolator(knots, r**2)(along)) for r in (wide, tall))
    points = straddling_rings(line, width, height, steps)
    colors = _torso_colors(kind, along, steps)
    ends = [np.array([0.0, y[k], z[k]]) for k in (0, -1)]
    return Torso(tube(points, ends[0], ends[1], colors), line, width, height, along, 2 * steps)


def _torso_colors(kind: Species, along: Float64[np.ndarray, "K"], steps: int) -> Float64[np.ndarray, "K N 3"]:
    """Plumage by place along the body and by height on it, painted from the back layer to the details."""
    turn = np.abs(np.arange(2 * steps) - 0.0)
    turn = np.minimum(turn, 2 * steps - turn) / steps  # 0 on top, 1 below; equal left and right
    s, t = np.meshgrid(along, turn, indexing="ij")
    dye = kind.dyes
    color = np.broadcast_to(dye["back"], (*s.shape, 3)).copy()

    def paint(part: str, cover: Float64[np.ndarray, "K N"]) -> None:
        color[:] += cover[..., None] * (dye[part] - color)

    ripple = 0.03 * np.sin(9 * s * 2 * np.pi) * np.sin(3 * np.pi * t)
    color *= 1 + ripple[..., None]
    paint("belly", _above(t, 0.60, 0.04) * _above(s, 0.30, 0.03))
    paint("breast", _above(t, 0.52, 0.04) * _above(s, 0.27, 0.02) * _below(s, 0.47, 0.03))
    paint("rump", _below(t, 0.45, 0.05) * _above(s, 0.82, 0.02))
    spot = _above(np.sin(2 * np.pi * 16 * s) * np.cos(2 * np.pi * 5 * t), 0.45, 0.15)
    paint("line", kind.spots * spot * _above(t, 0.60, 0.04) * _above(s, 0.36, 0.02) * _below(s, 0.66, 0.02))
    paint("cheek", _below(s, 0.22, 0.015) * _above(t, 0.30, 0.03))
    paint("throat", _above(t, 0.72, 0.04) * _above(s, 0.03, 0.01) * _below(s, 0.30, 0.02))
    paint("cap", _below(t, 0.34, 0.03) * _below(s, 0.235, 0.012))
    paint("line", kind.eye_line * _below(np.abs(t - 0.42 - 0.3 * (s - 0.12)), 0.075, 0.02) * _below(s, 0.24, 0.01))
    paint("line", kind.collar * _below(np.abs(s - 0.29), 0.022, 0.008))
    return color


def beak_of(kind: Species, torso: Torso, rings: int = 10, steps: int = 6) -> Surface:
    t = np.linspace(0.03, 0.96, rings)
    base = torso.line[0] + [0.06, 0.0]
    line = base + np.stack([-(kind.beak + 0.06) * t, -kind.droop * t**3 - 0.015 * t], axis=1)
    depth = kind.beak_depth * (1 - t**1.3) + 0.006
    color = np.where(_above(t, 0.8, 0.05)[:, None] > 0.5, 0.55, 1.0) * kind.dyes["beak"]
    tip = base - [kind.beak + 0.06, kind.droop + 0.015]
    rings_at = straddling_rings(line, 0.8 * depth, depth, steps)
    colors = np.broadcast_to(color[:, None], rings_at.shape)
    return tube(rings_at, np.array([0.0, *base]), np.array([0.0, *tip]), colors)


def crest_of(kind: Species, torso: Torso) -> Surface:
    t = np.linspace(0.05, 0.95, 9)
    ring = torso.ring(0.14)
    base = torso.line[ring] + [-0.02, 0.55 * torso.height[ring]]
    reach = kind.crest + 0.5 * kind.head
    line = base + np.stack([reach * 0.85 * t, reach * (0.95 * t - 0.25 * t**2)], axis=1)
    size = 0.62 * kind.head * np.sqrt(1 - t) * (1 - 0.35 * t)
    rings_at = straddling_rings(line, 0.55 * size, size, 6)
    colors = np.broadcast_to(kind.dyes["cap"], rings_at.shape)
    tip = line[-1] + (line[-1] - line[-2]) / 2
    return tube(rings_at, np.array([0.0, *base]), np.array([0.0, *tip]), colors)


def tail_of(kind: Species, pose: Posture, torso: Torso, rings: int = 16, steps: int = 10) -> Surface:
    t = np.linspace(0.02, 0.985, rings)
    base = torso.line[torso.ring(0.86)]
    heading = np.array([np.cos(pose.tail_angle), np.sin(pose.tail_angle)])
    reach = kind.tail + 0.16
    line = base + reach * t[:, None] * heading
    spread = kind.spread * pose.tail_spread
    width = (0.05 + (spread - 0.05) * t**1.2) * np.sqrt(np.minimum(1, (1 - t) / 0.12 + 0.12))
    height = 0.055 * (1 - t) + 0.012
    color = np.broadcast_to(kind.dyes["tail"], (rings, 3)) * (1 - 0.12 * (np.arange(rings) % 2))[:, None]
    color = color + _above(t, 0.80, 0.03)[:, None] * (kind.dyes["tail_tip"] - color)
    rings_at = straddling_rings(line, width, height, steps)
    tip = base + reach * heading
    colors = np.broadcast_to(color[:, None], rings_at.shape)
    return tube(rings_at, np.array([0.0, *base]), np.array([0.0, *tip]), colors)


def left_wing(kind: Species, pose: Posture, torso: Torso) -> Surface:
    """A leaf that lies on the flank when folded; opening moves every point straight towards the spread wing."""
    t = np.linspace(0.015, 0.985, WING_KNOTS)[:, None]
    turn = 2 * np.pi * np.arange(WING_AROUND) / WING_AROUND
    chord, thick = np.cos(turn), np.sin(turn)  # chord +1 trailing edge, thick +1 upper (outer) side
    shape = np.sqrt(np.minimum(1, t / 0.10)) * np.sqrt((1 - t).clip(0)) * (1 - 0.25 * t) / 0.86
    thickness = 0.028 * (1 - 0.6 * t) * np.sqrt(np.minimum(1, np.minimum(t, 1 - t) / 0.05))

    start, end = -0.32 * kind.length, (0.62 + 0.30 * kind.tail) * kind.length
    y = start + (end - start) * t[:, 0]
    center = np.interp(y, torso.line[:, 0], torso.line[:, 1]) + 0.04 * t[:, 0]
    wide = np.maximum(np.interp(y, torso.line[:, 0], torso.width), 0.085)[:, None]
    tall = np.maximum(np.interp(y, torso.line[:, 0], torso.height), 0.10)[:, None]
    half = 0.185 * shape
    angle = np.radians(74 - 22 * t) - half * chord / tall
    lift = 0.012 + thickness * thick
    folded = np.stack(
        [
            (wide + lift) * np.sin(angle),
            np.broadcast_to(y[:, None], angle.shape) + 0.05 * chord * (1 - t),
            center[:, None] + (tall + lift) * np.cos(angle),
        ],
        axis=-1,
    )
    span = 1.05 * kind.length
    sweep = 0.10 * t + 0.25 * t**2
    spread = np.stack(
        [
            np.broadcast_to(0.12 + span * t, angle.shape) + 0 * thick,
            start + 0.18 + sweep + 0.22 * shape * chord,
            center[0] + 0.12 + 0.25 * t - 0.10 * t**2 + thickness * thick - 0.02 * chord**2,
        ],
        axis=-1,
    )
    points = (1 - pose.wings_open) * folded + pose.wings_open * spread
    points[..., 0] = np.maximum(points[..., 0], 0.004)
    colors = _wing_colors(kind, t, chord)
    ends = [
        points[k].mean(axis=0) + 0.02 * (points[k].mean(axis=0) - points[j].mean(axis=0)) for k, j in ((0, 1), (-1, -2))
    ]
    return tube(points, ends[0], ends[1], colors)


def _wing_colors(
    kind: Species, t: Float64[np.ndarray, "K 1"], chord: Float64[np.ndarray, "N"]
) -> Float64[np.ndarray, "K N 3"]:
    dye = kind.dyes
    place = t + 0.10 * chord  # bars and feather groups run askew
    color = np.broadcast_to(dye["wing"], (*place.shape, 3)).copy()
    color += (_above(place, 0.62, 0.04) * _below(chord, 0.35, 0.1))[..., None] * (dye["primaries"] - color)
    color *= (1 - 0.10 * (0.5 + 0.5 * np.cos(2 * np.pi * 3 * chord)) * _above(t, 0.3, 0.05))[..., None]
    for bar in kind.bars:
        color += _below(np.abs(place - bar), 0.035, 0.012)[..., None] * (dye["bar"] - color)
    return color


def left_leg(kind: Species, pose: Posture, torso: Torso) -> Surface:
    hip_ring = torso.ring(0.62)
    x, y = 0.42 * torso.width[hip_ring], torso.line[hip_ring, 0] + 0.02
    hip = torso.line[hip_ring, 1] - 0.80 * torso.height[hip_ring]
    foot = torso.line[hip_ring, 1] - torso.height[hip_ring] - pose.legs
    joints = np.array([[x, y, hip], [x, y + 0.03, foot + 0.4 * (hip - foot)], [x, y - 0.02, foot + 0.02]])
    parts = [_stick(joints[0], joints[1], 0.050, 0.022, kind), _stick(joints[1], joints[2], 0.020, 0.016, kind)]
    for dx, dy in ((0.045, -0.11), (0.0, -0.12), (-0.04, -0.10), (0.0, 0.07)):
        parts.append(_stick(joints[2], joints[2] + [dx, dy, -0.02], 0.018, 0.010, kind, rings=3))
    return join(parts)


def _stick(
    start: Float64[np.ndarray, "3"],
    end: Float64[np.ndarray, "3"],
    thick: float,
    thin: float,
    kind: Species,
    rings: int = 5,
    around: int = 6,
) -> Surface:
    t = np.linspace(0, 1, rings)[:, None, None]
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, [0.36, 0.48, 0.8] if abs(axis[2]) < 0.9 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    turn = 2 * np.pi * np.arange(around) / around
    circle = np.cos(turn)[:, None] * side + np.sin(turn)[:, None] * np.cross(axis, side)
    points = start + t * (end - start) + (thick + (thin - thick) * t) * circle
    return tube(points, start, end, np.broadcast_to(kind.dyes["legs"], points.shape))


def left_eye(kind: Species, torso: Torso) -> Surface:
    on_head = torso.surface.vertices[torso.vertex(0.105, 0.375)]
    size = 0.17 * kind.head
    return ball(on_head - [0.3 * size, 0, 0], np.array([0.75 * size, size, size]), np.array([0.03, 0.03, 0.04]))


def _above(value: Float64[np.ndarray, "*S"], edge: float, soft: float) -> Float64[np.ndarray, "*S"]:
    """0 below the edge, 1 above, blended over a width of `soft`."""
    return 1 / (1 + np.exp(np.clip((edge - value) * (4 / soft), -60, 60)))


def _below(value: Float64[np.ndarray, "*S"], edge: float, soft: float) -> Float64[np.ndarray, "*S"]:
    return 1 - _above(value, edge, soft)

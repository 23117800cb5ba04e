"""Procedural birds: species with their own build and plumage, individuals that vary around them.

Object frame (CMR's): x = 0 is the symmetry plane and +x the bird's left, +y runs from head to tail, +z is up. A bird is
exactly symmetric in x, in shape and color. Its key points average to the origin in y and z; its largest extent is 2.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64
from scipy.interpolate import PchipInterpolator

from invkit.data.synthetic.surfaces import Surface, ball, join, straddling_rings, tube

KEY_POINTS = (
    "Back", "Beak", "Belly", "Breast", "Crown", "FHead", "LEye", "LLeg", "LWing", "Nape", "REye", "RLeg", "RWing",
    "Tail", "Throat",
)  # fmt: skip
MIRRORED_KEY_POINTS = (0, 1, 2, 3, 4, 5, 10, 11, 12, 9, 6, 7, 8, 13, 14)

DYES = {
    "Crimson": (0.74, 0.10, 0.13), "Azure": (0.16, 0.42, 0.78), "Golden": (0.93, 0.72, 0.10),
    "Sooty": (0.13, 0.13, 0.15), "Olive": (0.42, 0.46, 0.16), "Snowy": (0.92, 0.92, 0.90),
    "Chestnut": (0.48, 0.22, 0.10), "Slaty": (0.42, 0.47, 0.54), "Emerald": (0.07, 0.46, 0.30),
    "Orange": (0.91, 0.45, 0.08), "Sandy": (0.74, 0.60, 0.42), "Violet": (0.36, 0.20, 0.52),
}  # fmt: skip
DYE_NAMES = tuple(DYES)
BUILDS = {
    # head, beak length, beak depth, droop, neck, body length, body depth, tail, spread, legs, crest
    "Finch": (0.185, 0.14, 0.085, 0.02, 0.00, 1.00, 1.04, 0.42, 0.12, 0.20, 0.0),
    "Warbler": (0.165, 0.17, 0.040, 0.00, 0.00, 1.00, 0.92, 0.48, 0.10, 0.24, 0.0),
    "Jay": (0.180, 0.22, 0.055, 0.02, 0.02, 1.02, 0.94, 0.72, 0.15, 0.22, 0.20),
    "Gull": (0.165, 0.26, 0.055, 0.05, 0.06, 1.12, 0.94, 0.34, 0.14, 0.26, 0.0),
    "Wren": (0.175, 0.18, 0.035, 0.03, -0.02, 0.86, 1.10, 0.36, 0.10, 0.20, 0.0),
    "Dove": (0.145, 0.13, 0.040, 0.02, 0.05, 1.10, 1.08, 0.62, 0.16, 0.14, 0.0),
    "Kingfisher": (0.205, 0.40, 0.075, 0.00, 0.00, 0.94, 1.00, 0.30, 0.11, 0.10, 0.16),
    "Crow": (0.175, 0.26, 0.080, 0.04, 0.02, 1.10, 0.98, 0.52, 0.17, 0.26, 0.0),
}
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
class Bird:
    """A bird: its surface, and the vertices that are its 15 key points in CUB's order."""

    surface: Surface
    key_points: Int64[np.ndarray, "15"]


def species(number: int) -> Species:
    """The species of a label; the same in every data set."""
    rng = np.random.default_rng([20110, number])
    build = tuple(BUILDS)[(number * 3 + number // len(BUILDS)) % len(BUILDS)]
    back = DYE_NAMES[number % len(DYE_NAMES)]
    varied = np.array(BUILDS[build]) * (1 + rng.normal(0, 0.04, 11))

    def dye(*choices: str) -> Float64[np.ndarray, "3"]:
        others = [name for name in (choices or DYE_NAMES) if name != back]
        return np.array(DYES[others[rng.integers(len(others))]])

    main = np.array(DYES[back])
    belly = dye("Snowy", "Sandy", "Golden", "Slaty", "Orange", "Snowy")
    wing = 0.65 * main if rng.random() < 0.5 else dye("Sooty", "Slaty", "Chestnut", "Azure", "Olive")
    dyes = {
        "back": main,
        "belly": belly,
        "breast": dye() if rng.random() < 0.6 else belly,
        "cap": dye("Sooty", "Crimson", "Golden", "Chestnut", "Azure", "Snowy", "Violet"),
        "cheek": main if rng.random() < 0.4 else dye("Snowy", "Sandy", "Sooty", "Golden", "Slaty"),
        "throat": dye("Snowy", "Sooty", "Crimson", "Golden", "Orange"),
        "rump": dye("Snowy", "Golden", "Chestnut") if rng.random() < 0.4 else main,
        "wing": wing,
        "bar": dye("Snowy", "Golden", "Crimson", "Orange"),
        "primaries": dye("Sooty", "Chestnut", "Slaty"),
        "tail": wing * 0.9,
        "tail_tip": dye("Snowy", "Sooty", "Golden"),
        "beak": dye("Orange", "Sooty", "Golden", "Slaty"),
        "legs": dye("Orange", "Sooty", "Chestnut"),
        "line": np.array(DYES["Sooty" if back != "Sooty" else "Snowy"]),
    }
    bars = ((), (0.34,), (0.28, 0.42), (0.5,))[rng.integers(4)]
    return Species(
        f"{back}_{('backed', 'mantled', 'rumped')[number // len(DYE_NAMES) % 3]}_{build}",
        *varied.tolist(),
        dyes=dyes,
        bars=bars,
        spots=float(rng.choice([0.0, 0.0, 0.8])),
        eye_line=float(rng.choice([0.0, 0.9])),
        collar=float(rng.choice([0.0, 0.0, 0.9])),
    )


def individual(kind: Species, rng: np.random.Generator) -> tuple[Species, Posture]:
    """A member of the species: its colors jittered a little, and how it holds itself."""
    gain = rng.normal(1, 0.06)
    dyes = {part: (dye * gain + rng.normal(0, 0.02, 3)).clip(0.02, 0.96) for part, dye in kind.dyes.items()}
    resting = rng.random() < 0.7
    posture = Posture(
        fatness=float(np.clip(rng.normal(1, 0.06), 0.85, 1.18)),
        neck=float(kind.neck + rng.normal(0, 0.03)),
        wings_open=float(rng.uniform(0, 0.06) if resting else rng.uniform(0.06, 0.55)),
        tail_angle=float(np.radians(np.clip(rng.normal(4, 9), -15, 30))),
        tail_spread=float(rng.uniform(0.8, 1.4)),
        legs=float(kind.legs * rng.uniform(0.6, 1.1)),
        tilt=float(np.radians(rng.uniform(0, 35))),
    )
    return replace(kind, dyes=dyes), posture


# ---- The parts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Torso:
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


def _torso(kind: Species, pose: Posture, rings: int = 44, steps: int = 16) -> _Torso:
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
    return _Torso(tube(points, ends[0], ends[1], colors), line, width, height, along, 2 * steps)


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


def _beak(kind: Species, torso: _Torso, rings: int = 10, steps: int = 6) -> Surface:
    t = np.linspace(0.03, 0.96, rings)
    base = torso.line[0] + [0.06, 0.0]
    line = base + np.stack([-(kind.beak + 0.06) * t, -kind.droop * t**3 - 0.015 * t], axis=1)
    depth = kind.beak_depth * (1 - t**1.3) + 0.006
    color = np.where(_above(t, 0.8, 0.05)[:, None] > 0.5, 0.55, 1.0) * kind.dyes["beak"]
    tip = base - [kind.beak + 0.06, kind.droop + 0.015]
    rings_at = straddling_rings(line, 0.8 * depth, depth, steps)
    colors = np.broadcast_to(color[:, None], rings_at.shape)
    return tube(rings_at, np.array([0.0, *base]), np.array([0.0, *tip]), colors)


def _crest(kind: Species, torso: _Torso) -> Surface:
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


def _tail(kind: Species, pose: Posture, torso: _Torso, rings: int = 16, steps: int = 10) -> Surface:
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


def _left_wing(kind: Species, pose: Posture, torso: _Torso) -> Surface:
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


def _left_leg(kind: Species, pose: Posture, torso: _Torso) -> Surface:
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


def _left_eye(kind: Species, torso: _Torso) -> Surface:
    on_head = torso.surface.vertices[torso.vertex(0.105, 0.375)]
    size = 0.17 * kind.head
    return ball(on_head - [0.3 * size, 0, 0], np.array([0.75 * size, size, size]), np.array([0.03, 0.03, 0.04]))


# ---- The whole -------------------------------------------------------------------------------------------------------


def build(kind: Species, pose: Posture) -> Bird:
    """The bird of a species in a posture."""
    torso = _torso(kind, pose)
    eye, wing, leg = _left_eye(kind, torso), _left_wing(kind, pose, torso), _left_leg(kind, pose, torso)
    central = [torso.surface, _beak(kind, torso), _tail(kind, pose, torso)]
    if kind.crest > 0.02:
        central.append(_crest(kind, torso))
    parts = [*central, eye, eye.mirrored(), wing, wing.mirrored(), leg, leg.mirrored()]
    whole = join(parts)
    first = np.cumsum([0] + [len(part.vertices) for part in parts])
    beak, tail = first[1], first[2]
    eyes, wings, legs = (first[len(central) + k :][:2] for k in (0, 2, 4))
    on_wing = round(0.42 * WING_KNOTS) * WING_AROUND + WING_AROUND // 4
    on_leg = 5 * 6 + 2 + 2 * 6  # the middle of the second stick
    places = {
        "Back": torso.vertex(0.56, 0.0),
        "Beak": beak + len(central[1].vertices) - 1,
        "Belly": torso.vertex(0.66, 1.0),
        "Breast": torso.vertex(0.44, 1.0),
        "Crown": torso.vertex(0.14, 0.0),
        "FHead": torso.vertex(0.055, 0.0),
        "LEye": eyes[0] + len(eye.vertices) - 1,
        "LLeg": legs[0] + on_leg,
        "LWing": wings[0] + on_wing,
        "Nape": torso.vertex(0.26, 0.0),
        "REye": eyes[1] + len(eye.vertices) - 1,
        "RLeg": legs[1] + on_leg,
        "RWing": wings[1] + on_wing,
        "Tail": tail + len(central[2].vertices) - 1,
        "Throat": torso.vertex(0.20, 1.0),
    }
    key_points = np.array([places[name] for name in KEY_POINTS])
    low, high = whole.vertices.min(axis=0), whole.vertices.max(axis=0)
    middle = whole.vertices[key_points].mean(axis=0) * [0, 1, 1]
    return Bird(replace(whole, vertices=(whole.vertices - middle) * (2 / (high - low).max())), key_points)


def _above(value: Float64[np.ndarray, "*S"], edge: float, soft: float) -> Float64[np.ndarray, "*S"]:
    """0 below the edge, 1 above, blended over a width of `soft`."""
    return 1 / (1 + np.exp(np.clip((edge - value) * (4 / soft), -60, 60)))


def _below(value: Float64[np.ndarray, "*S"], edge: float, soft: float) -> Float64[np.ndarray, "*S"]:
    return 1 - _above(value, edge, soft)

"""Procedural cars: sedans, hatchbacks, vans and pickups with windows, wheels and lights.

Object frame: x = 0 is the symmetry plane and +x the car's left, +y runs from hood to trunk, +z is up. A car is exactly
symmetric in x, centered on its bounding box, and 1 long: it lies inside the cube of half extent 0.55 of ShapeNet-SRN.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64
from scipy.interpolate import PchipInterpolator

from invkit.data.synthetic.surfaces import Surface, ball, half_circle, join, tube

PAINTS = np.array(
    [
        (0.72, 0.08, 0.10), (0.10, 0.20, 0.55), (0.80, 0.80, 0.80), (0.12, 0.12, 0.13), (0.45, 0.47, 0.50),
        (0.90, 0.70, 0.10), (0.10, 0.40, 0.22), (0.85, 0.42, 0.08), (0.25, 0.55, 0.75), (0.50, 0.38, 0.28),
        (0.42, 0.12, 0.35), (0.66, 0.72, 0.62),
    ]
)  # fmt: skip
BODIES = {
    # where the cabin starts, its roof starts, its roof ends, it ends; roof, belt and hood heights
    "sedan": (-0.24, -0.08, 0.20, 0.36, 0.315, 0.205, 0.185),
    "hatchback": (-0.27, -0.12, 0.34, 0.465, 0.345, 0.215, 0.200),
    "van": (-0.36, -0.22, 0.42, 0.485, 0.400, 0.225, 0.215),
    "pickup": (-0.22, -0.10, 0.06, 0.12, 0.370, 0.230, 0.225),
    "coupe": (-0.18, 0.02, 0.16, 0.44, 0.275, 0.190, 0.165),
}
GLASS = np.array([0.16, 0.20, 0.25])
DARK = np.array([0.07, 0.07, 0.08])
HUB = np.array([0.62, 0.63, 0.65])
HEADLIGHT = np.array([0.90, 0.88, 0.72])
TAILLIGHT = np.array([0.70, 0.04, 0.05])
LOWEST = 0.045  # ground clearance
FRONT_AXLE, REAR_AXLE = -0.31, 0.29


@dataclass(frozen=True)
class Car:
    """The measures of one car before it is scaled; its length is 1 and the ground is at z = 0.

    Args:
        cabin: y of the windshield's foot and head, of the rear window's head and foot.
        roof, belt, hood: heights.
        width: half of it.
        wheel: radius.
        paint, second: the body, and the roof (the same paint on most cars).
    """

    body: str
    cabin: tuple[float, float, float, float]
    roof: float
    belt: float
    hood: float
    width: float
    wheel: float
    taper: float
    paint: Float64[np.ndarray, "3"]
    second: Float64[np.ndarray, "3"]


def draw_car(rng: np.random.Generator) -> Car:
    """A random car."""
    body = str(rng.choice(list(BODIES)))
    measures = np.array(BODIES[body])
    cabin = measures[:4] + rng.normal(0, 0.012, 4)
    roof, belt, hood = measures[4:] * rng.normal(1, 0.04, 3).clip(0.9, 1.1)
    paint, other = (PAINTS[rng.choice(len(PAINTS), 2, replace=False)] + rng.normal(0, 0.04, (2, 3))).clip(0.03, 0.92)
    return Car(
        body,
        tuple(cabin.tolist()),
        float(max(roof, belt + 0.07)),
        float(belt),
        float(min(hood, belt - 0.01)),
        float(rng.uniform(0.185, 0.215)),
        float(rng.uniform(0.064, 0.078)),
        float(rng.uniform(0.14, 0.26)),
        paint,
        other if rng.random() < 0.15 else paint,
    )


def build_car(car: Car) -> Surface:
    """The surface of a car."""
    wheels = [_left_wheel(car, axle) for axle in (FRONT_AXLE, REAR_AXLE)]
    front, rear = _front_light(car), _rear_light(car)
    mirror = ball(
        np.array([0.97 * car.width, car.cabin[0] + 0.07, car.belt + 0.02]), np.array([0.028, 0.014, 0.016]), car.paint
    )
    left = [*wheels, front, rear, mirror]
    whole = join([_body(car), _cabin(car), *left, *(part.mirrored() for part in left)])
    low, high = whole.vertices.min(axis=0), whole.vertices.max(axis=0)
    middle = (low + high) / 2 * [0, 1, 1]
    return replace(whole, vertices=(whole.vertices - middle) / (high - low).max())


def _rings(
    y: Float64[np.ndarray, "K"],
    low: Float64[np.ndarray, "K"],
    high: Float64[np.ndarray, "K"],
    width: Float64[np.ndarray, "K"],
    steps: int,
    squareness: float,
) -> Float64[np.ndarray, "K N 3"]:
    """Upright rounded rectangles at each y."""
    sine, cosine = (np.sign(v) * np.abs(v) ** squareness for v in half_circle(steps))
    z = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * cosine
    return np.stack([width[:, None] * sine, np.broadcast_to(y[:, None], z.shape), z], axis=-1)


def _along(count: int) -> Float64[np.ndarray, "K"]:
    """Places in (0, 1), closer together near both ends."""
    even = np.arange(1, count + 1) / (count + 1)
    return 0.5 * even + 0.25 * (1 - np.cos(np.pi * even))


def _body(car: Car, rings: int = 60, steps: int = 28) -> Surface:
    back = car.belt if car.body != "pickup" else car.belt - 0.015
    knots = np.array([-0.5, -0.49, -0.45, car.cabin[0], 0.0, 0.30, 0.45, 0.49, 0.5])
    high = np.array([0.13, 0.155, car.hood - 0.015, car.hood + 0.004, car.belt, back, back - 0.01, back - 0.03, 0.14])
    low = np.array([0.09, 0.065, LOWEST, LOWEST, LOWEST, LOWEST, LOWEST + 0.005, 0.065, 0.09])
    width = car.width * np.array([0.70, 0.86, 0.95, 0.99, 1.0, 1.0, 0.97, 0.90, 0.72])
    y = -0.5 + _along(rings)
    points = _rings(y, *(PchipInterpolator(knots, v)(y) for v in (low, high, width)), steps, 0.34)
    x, z = np.abs(points[..., 0]), points[..., 2]
    color = np.broadcast_to(car.paint, points.shape).copy()
    for axle in (FRONT_AXLE, REAR_AXLE):
        arch = np.hypot(points[..., 1] - axle, z - car.wheel) < 1.22 * car.wheel
        color[arch & (x > 0.93 * car.width) & (z < car.hood - 0.03)] = DARK
    color[z < LOWEST + 0.012] = DARK
    color[(points[..., 1] < -0.455) & (z < 0.135) & (x < 0.62 * car.width)] = DARK
    if car.body == "pickup":
        bed = (points[..., 1] > car.cabin[3] + 0.03) & (points[..., 1] < 0.46) & (x < 0.84 * car.width)
        color[bed & (z > back - 0.03)] = 0.45 * car.paint
    caps = [np.array([0.0, end, 0.11]) for end in (-0.5, 0.5)]
    return tube(points, caps[0], caps[1], color)


def _cabin(car: Car, rings: int = 64, steps: int = 32) -> Surface:
    foot, head, tail_head, tail_foot = car.cabin
    knots = np.array([foot, (foot + head) / 2, head, (head + tail_head) / 2, tail_head, tail_foot])
    rise = car.roof - car.belt
    high = car.belt + rise * np.array([-0.10, 0.50, 0.96, 1.0, 0.95, -0.05])
    y = foot + (tail_foot - foot) * _along(rings)
    roof_line = PchipInterpolator(knots, high)
    low, width = np.full_like(y, car.belt - 0.04), np.full_like(y, 0.93 * car.width)
    points = _rings(y, low, np.maximum(roof_line(y), low + 0.01), width, steps, 0.30)
    up = (points[..., 2] - car.belt) / rise
    points[..., 0] *= 1 - car.taper * up.clip(0, 1)
    color = np.broadcast_to(car.paint, points.shape).copy()
    color[up > 0.80] = car.second
    color[_glass(car, points, up, roof_line(y)[:, None])] = GLASS
    ends = [np.array([0.0, end, car.belt - 0.035]) for end in (foot, tail_foot)]
    return tube(points, ends[0], ends[1], color)


def _glass(
    car: Car, points: Float64[np.ndarray, "K N 3"], up: Float64[np.ndarray, "K N"], roof: Float64[np.ndarray, "K 1"]
) -> Bool[np.ndarray, "K N"]:
    _, head, tail_head, _ = car.cabin
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    side = x > 0.96 * 0.93 * car.width * (1 - car.taper * up.clip(0, 1))
    pillar = np.abs(y - (head + tail_head) / 2) < 0.011
    windows = side & (up > 0.10) & (up < 0.80) & (z < roof - 0.022) & ~pillar
    wide = x < 0.80 * car.width
    windshield = ~side & wide & (y < head - 0.005) & (up > 0.06) & (up < 0.93)
    rear = ~side & wide & (y > tail_head + 0.01) & (up > 0.12) & (up < 0.90)
    return windows | windshield | rear


def _left_wheel(car: Car, axle: float, around: int = 24) -> Surface:
    outer, inner = car.width + 0.008, car.width - 0.055
    across = np.array([inner, outer - 0.008, outer, outer, outer - 0.004, outer - 0.002])
    radius = car.wheel * np.array([1.0, 1.0, 0.92, 0.66, 0.62, 0.2])
    turn = 2 * np.pi * np.arange(around) / around
    points = np.stack(
        [
            np.broadcast_to(across[:, None], (6, around)),
            axle + radius[:, None] * np.cos(turn),
            car.wheel + radius[:, None] * np.sin(turn),
        ],
        axis=-1,
    )
    colors = np.where((radius < 0.64 * car.wheel)[:, None, None], HUB, DARK) * np.ones((6, around, 1))
    spokes = (np.cos(5 * turn) < -0.2)[None, :, None] & (radius < 0.64 * car.wheel)[:, None, None]
    colors = np.where(spokes, 0.45 * HUB, colors)
    ends = [np.array([x, axle, car.wheel]) for x in (inner, outer - 0.002)]
    return tube(points, ends[0], ends[1], colors)


def _front_light(car: Car) -> Surface:
    return ball(np.array([0.68 * car.width, -0.470, 0.145]), np.array([0.042, 0.026, 0.020]), HEADLIGHT)


def _rear_light(car: Car) -> Surface:
    return ball(np.array([0.72 * car.width, 0.484, 0.155]), np.array([0.040, 0.018, 0.022]), TAILLIGHT)

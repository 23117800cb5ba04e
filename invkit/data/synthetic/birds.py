"""Procedural birds: species with their own build and plumage, individuals that vary around them.

Object frame (CMR's): x = 0 is the symmetry plane and +x the bird's left, +y runs from head to tail, +z is up. A bird is
exactly symmetric in x, in shape and color. Its key points average to the origin in y and z; its largest extent is 2.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from invkit.data.synthetic.bird_parts import (
    WING_AROUND,
    WING_KNOTS,
    Posture,
    Species,
    beak_of,
    crest_of,
    left_eye,
    left_leg,
    left_wing,
    tail_of,
    torso_of,
)
from invkit.data.synthetic.surfaces import Surface, join

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


def build(kind: Species, pose: Posture) -> Bird:
    """The bird of a species in a posture."""
    torso = torso_of(kind, pose)
    eye, wing, leg = left_eye(kind, torso), left_wing(kind, pose, torso), left_leg(kind, pose, torso)
    central = [torso.surface, beak_of(kind, torso), tail_of(kind, pose, torso)]
    if kind.crest > 0.02:
        central.append(crest_of(kind, torso))
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

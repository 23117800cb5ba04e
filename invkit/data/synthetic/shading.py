"""Light and scenery of the synthetic photographs."""

import numpy as np
from jaxtyping import Float64

from invkit.data.synthetic.surfaces import Surface


def shade(surface: Surface, light: Float64[np.ndarray, "3"], *, ambient: float = 0.62) -> Float64[np.ndarray, "V"]:
    """What the vertex colors are multiplied by, in [ambient, 1]: half-Lambert, so soft that the texture stays readable.

    Args:
        light: unit, object frame, towards the light.
    """
    return ambient + (1 - ambient) * (0.5 + 0.5 * surface.normals() @ light)


def scenery(rng: np.random.Generator, height: int, width: int) -> Float64[np.ndarray, "H W 3"]:
    """A blurred landscape in [0, 1]: two muted colors from top to bottom and soft noise at three sizes."""
    top, bottom = rng.uniform(0.25, 0.85, (2, 1)) + rng.normal(0, 0.1, (2, 3))
    ramp = 1 / (1 + np.exp(-(np.linspace(0, 1, height) - rng.uniform(0.3, 0.8)) * rng.uniform(4, 14)))
    picture = top + (bottom - top) * ramp[:, None, None]
    for cells, strength in ((4, 0.13), (9, 0.09), (17, 0.05)):
        noise = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 2.5, (cells, cells, 3))
        picture = picture + _stretch(_stretch(noise, height).swapaxes(0, 1), width).swapaxes(0, 1)
    return picture.clip(0, 1)


def _stretch(knots: Float64[np.ndarray, "N M 3"], size: int) -> Float64[np.ndarray, "S M 3"]:
    """`size` rows from a few, smoothed by a cosine between neighbors."""
    place = np.linspace(0, len(knots) - 1, size)
    low = np.minimum(place.astype(int), len(knots) - 2)
    share = (0.5 - 0.5 * np.cos(np.pi * (place - low)))[:, None, None]
    return knots[low] * (1 - share) + knots[low + 1] * share

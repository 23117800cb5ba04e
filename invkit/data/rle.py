"""Silhouettes as COCO stores them: run lengths, column by column, beginning with the zeros.

The runs are numbers, or a text of them: from the fourth on as the difference from the run two places before, each
number in groups of five bits, lowest first, whose sixth bit says that more follow, as characters from "0" on.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

FIRST = 48  # "0"
MAX_PIXELS = 2**26
LONGEST = 35
"""Bits of a number in the text: more than any silhouette has pixels."""


def decode(counts: bytes | str | Sequence[int], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The silhouette of these runs.

    Args:
        counts: runs as numbers, or as COCO's text.

    Raises:
        ValueError: the runs do not fill the image, it is larger than `MAX_PIXELS`, or the text is none.
    """
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a silhouette of {height} x {width}; it may have 1 to {MAX_PIXELS:,} pixels")
    text = counts.encode("latin1", "replace") if isinstance(counts, str) else counts
    runs = runs_of(text) if isinstance(text, bytes) else list(text)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"{len(runs)} runs of {sum(runs)} pixels for an image of {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def runs_of(text: bytes) -> list[int]:
    """The numbers in COCO's text.

    Raises:
        ValueError: a character is none of COCO's, or the last number is cut off.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = character - FIRST
        if not 0 <= group < 64:
            raise ValueError(f"character {character} is none of run lengths")
        value |= (group & 31) << shift
        shift += 5
        if shift > LONGEST:
            raise ValueError("a number of too many digits")
        if group & 32:
            continue
        if group & 16:  # the highest bit of the last group is the sign
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the text of run lengths is cut off")
    return runs

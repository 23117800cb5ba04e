"""When a result should not be believed: what a silhouette and a search say about it themselves.

A search always ends somewhere. Shown the background for the object, a photograph for its mask, or a car to a prior of
birds, it bends the prior until the outlines agree as well as they can, and nothing breaks. Two things tell. A mask that
was mixed up does not look like the silhouette of one thing, which is seen before any search; and outlines of what the
prior cannot make agree less in the end. The thresholds were measured; scripts/doubt.py measures them for a prior.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.inversion.records import DOUBTFUL, OK

FOREGROUND = 0.5


@dataclass(frozen=True)
class Thresholds:
    """Beyond which a mask or a result is doubted.

    Of 899 silhouettes of birds, photographs and crops, none is doubted: the most of `rim` is 0.18, the least of
    `largest` 0.66. Of the same inverted all are (rim from 0.95); and all of 647 photographs as their own masks.

    Args:
        min_iou: overlap of what was found with the silhouette, after the search. Measured for each prior by
            scripts/doubt.py; docs/photographs.md has the numbers. It catches letters and gross mistakes. What is about
            as large and as round as a bird (an ellipse, a car) overlaps as well as a bird does.
        max_rim: part of the border of its own box that the mask covers; more is the picture's frame.
        max_gray: pixels that are neither in nor out, as a part of those that are not out.
        min_largest: part of the mask that is its largest piece.
        min_pixels: of the mask.
        max_cover: part of the picture that is the mask.
    """

    min_iou: int | float = 0.6
    max_rim: int | float = 0.8
    max_gray: int | float = 0.4
    min_largest: int | float = 0.6
    min_pixels: int = 256
    max_cover: int | float = 0.92


@dataclass(frozen=True)
class Shape:
    """What is measured of a mask; see `Thresholds`. A mask that is empty has no shape, and all of it is zero."""

    rim: float
    gray: float
    largest: float
    pixels: int
    cover: float


def shape(mask: Float[Tensor, "1 H W"]) -> Shape:
    """What tells the silhouette of one thing from what was taken for it."""
    values = mask[0].detach().cpu().numpy()
    inside = values > FOREGROUND
    if not inside.any():
        return Shape(0.0, 0.0, 0.0, 0, 0.0)
    gray = ((values > 0.1) & (values < 0.9)).sum() / (values > 0.1).sum()
    pieces, _ = ndimage.label(inside, structure=np.ones((3, 3)))
    largest = np.bincount(pieces[inside]).max() / inside.sum()
    return Shape(_rim(inside), float(gray), float(largest), int(inside.sum()), float(inside.mean()))


def doubts_about_mask(mask: Float[Tensor, "1 H W"], than: Thresholds = Thresholds()) -> list[str]:
    """Why a mask may not be the silhouette of one object, in words; none where it may be.

    Args:
        mask: of a photograph, or of a square cut out of it around the object.
    """
    of, reasons = shape(mask), []
    if of.gray > than.max_gray:
        reasons.append(f"{of.gray:.0%} of the mask is gray, as if it were a photograph: draw it white on black")
    if of.rim > than.max_rim:
        reasons.append(f"the mask runs along {of.rim:.0%} of its border, as if it were inverted: white is the object")
    elif of.cover > than.max_cover:
        reasons.append(f"the mask covers {of.cover:.0%} of the picture: white is the object alone")
    if of.largest < than.min_largest:
        reasons.append(f"the mask is in pieces, the largest of which is {of.largest:.0%} of it: draw one object")
    if of.pixels < than.min_pixels:
        reasons.append(f"the object is only {of.pixels} pixels large: take a larger photograph")
    return reasons


def doubts_about_search(iou: float, than: Thresholds = Thresholds()) -> list[str]:
    """Why what a search has found may not be the object, in words; none where it may be.

    Args:
        iou: of what was found with the silhouette.
    """
    if iou >= than.min_iou:
        return []
    return [
        f"the reconstruction overlaps the silhouette by only {iou:.2f} (below {than.min_iou:g}): check that the mask "
        "is that of the object, and that the prior knows this kind of object"
    ]


def judged(images: Mapping[str, Mapping[str, Any]], dataset: ImageSet, than: Thresholds) -> dict[str, dict[str, Any]]:
    """What is known of each image, with its doubts, in words, and DOUBTFUL for OK where there are any.

    Args:
        images: by name: status and, where there is a result, iou_of_search. A refinement bends what was found until it
            agrees with any silhouette, so its overlap says nothing.
    """
    place = {name: index for index, name in enumerate(dataset.names)}
    found = {}
    for name, image in images.items():
        reasons = []
        if "iou_of_search" in image:
            reasons = doubts_about_mask(dataset[place[name]].mask[0], than)
            reasons += doubts_about_search(image["iou_of_search"], than)
        status = DOUBTFUL if reasons and image["status"] == OK else image["status"]
        found[name] = {**image, "status": status, "doubts": reasons}
    return found


@dataclass(frozen=True)
class Rates:
    """How often a threshold of the IoU is wrong: results of right masks doubted, and of wrong ones believed."""

    threshold: float
    false_alarms: float
    misses: float


def rates(right: Sequence[float], wrong: Sequence[float], thresholds: Sequence[float]) -> list[Rates]:
    """What each threshold would do with IoUs that were reached with right masks and with wrong ones.

    Raises:
        ValueError: there are none of either.
    """
    if not len(right) or not len(wrong):
        raise ValueError(f"a threshold needs right and wrong results; got {len(right)} and {len(wrong)}")
    right, wrong = np.asarray(right), np.asarray(wrong)
    return [Rates(float(t), float((right < t).mean()), float((wrong >= t).mean())) for t in thresholds]


def _rim(inside: Bool[np.ndarray, "H W"]) -> float:
    """Part of the sides of the mask's box that it covers."""
    rows, columns = inside.any(axis=1).nonzero()[0], inside.any(axis=0).nonzero()[0]
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return float(np.concatenate([box[0], box[-1], box[:, 0], box[:, -1]]).mean())


# ---- Masks that are wrong, to measure with ---------------------------------------------------------------------------


def inverted(mask: Float[Tensor, "1 H W"]) -> Float[Tensor, "1 H W"]:
    """The background for the object."""
    return 1 - mask


def brightness(rgb: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 H W"]:
    """A photograph given as its own mask.

    Args:
        rgb: in [0, 1].
    """
    return rgb.mean(dim=0, keepdim=True)


def shifted(mask: Float[Tensor, "1 H W"], part: float = 1 / 3) -> Float[Tensor, "1 H W"]:
    """The mask beside its object, right and down by a part of the picture; what leaves the picture is lost."""
    down, right = round(part * mask.shape[1]), round(part * mask.shape[2])
    moved = torch.zeros_like(mask)
    moved[:, down:, right:] = mask[:, : mask.shape[1] - down, : mask.shape[2] - right]
    return moved

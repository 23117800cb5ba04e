"""The silhouette of an object in a photograph, without a network: GrabCut from a box, or from a mask drawn badly.

GrabCut (Rother et al., 2004) learns the colors inside and outside, and cuts where neighboring pixels differ. What it
needs to be told is where the object surely is not, and where it perhaps is: a box drawn around it says both; of a mask
it is only the outline that is doubted. OpenCV's is used, at a bounded size and with a fixed seed, so the same
photograph gives the same silhouette.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

from invkit.images import Box, resize_antialias, resize_bilinear

LONG_SIDE = 512
"""Of what is cut at once, in pixels. Larger photographs are cut smaller and the outline is enlarged."""
ITERATIONS = 5
MARGIN = 0.5
"""How far beyond the box the colors of the background are learned, in sides of the box."""
BAND = 0.08
"""Width of the doubted outline of a mask to either side, as a part of the square root of its area. A wider band rescues
worse masks and spoils good ones: masks of birds that are off by 5 % to 10 % go from an IoU of 0.67 to 0.8."""
SMALLEST_BOX = 16
LEAST, MOST = 0.05, 0.98
"""Between these parts of its box an object lies that has been told from its background."""
JOINED = 0.02
"""Pieces are one where they are no farther apart than this, as a part of the longer side of what is cut."""
MIDDLE = 0.22
"""Of the ellipse that fills a box: the part, in radii, that is taken to be the object."""
SEED = 0

Labels = UInt8[np.ndarray, "h w"]


def cut_out(
    rgb: Float[Tensor, "3 H W"],
    box: Sequence[int | float],
    *,
    iterations: int = ITERATIONS,
    margin: float = MARGIN,
    long_side: int = LONG_SIDE,
) -> Float[Tensor, "1 H W"]:
    """1 on the object in the box, 0 elsewhere.

    Args:
        rgb: in [0, 1].
        box: left, top, right, bottom around all of the object, in pixels from the corner of the picture.
        margin: how far beyond the box the background is looked at, in sides of the box.
        long_side: of what is cut at once, in pixels.

    Raises:
        ValueError: the box is none, lies outside the picture or leaves no background; or no object is found in it.
    """
    height, width = rgb.shape[1:]
    left, top, right, bottom = box_inside(box, width, height)
    reach = margin * max(right - left, bottom - top)
    window = _grown((left, top, right, bottom), reach, width, height)
    picture, zoom = _shrunk(rgb, window, long_side)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    inside = (
        (x > (left - window[0]) * zoom)
        & (x < (right - window[0]) * zoom)
        & (y > (top - window[1]) * zoom)
        & (y < (bottom - window[1]) * zoom)
    )
    found = _largest(_grab_cut(picture, _from_box(inside), iterations))
    share = found.sum() / inside.sum()
    if not LEAST < share < MOST:
        what = "nothing" if share <= LEAST else "no background"
        raise ValueError(
            f"{what} was found in box={_told(box)}: draw it closely around all of the object, or give mask=FILE"
        )
    return _enlarged(found, window, rgb)


def improved(
    rgb: Float[Tensor, "3 H W"],
    mask: Float[Tensor, "1 H W"],
    *,
    band: float = BAND,
    iterations: int = ITERATIONS,
    long_side: int = LONG_SIDE,
) -> Float[Tensor, "1 H W"]:
    """The mask with its outline laid where the colors change; 1 on the object, 0 elsewhere.

    For masks that are off by a few percent and more. One drawn carefully is better than what comes out.

    Args:
        rgb: in [0, 1].
        mask: the object is where it is above 1/2.
        band: how far the outline may move to either side, as a part of the square root of the mask's area.

    Raises:
        ValueError: the mask is empty or full.
    """
    object_ = (mask[0] > 0.5).numpy()
    if object_.all() or not object_.any():
        raise ValueError(f"a mask that is {'full' if object_.all() else 'empty'} has no outline to improve")
    rows, columns = object_.nonzero()
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    height, width = object_.shape
    window = _grown(box, 4 * band * math.sqrt(object_.sum()) + 2, width, height)
    picture, _ = _shrunk(rgb, window, long_side)
    small = _shrunk(mask.to(rgb), window, long_side)[0][..., 0] > 127
    found = _largest(_grab_cut(picture, _from_mask(small, band), iterations))
    return _enlarged(found, window, rgb)


def filled(box: Sequence[int | float], rgb: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 H W"]:
    """1 in the part of the box that lies in the picture, 0 elsewhere.

    Raises:
        ValueError: see `box_inside`.
    """
    left, top, right, bottom = box_inside(box, rgb.shape[2], rgb.shape[1])
    mask = rgb.new_zeros(1, *rgb.shape[1:])
    mask[:, top:bottom, left:right] = 1
    return mask


def refuse_malformed(box: object) -> None:
    """Do nothing where this is a box of some picture.

    Raises:
        ValueError: it is none.
    """
    numbers = isinstance(box, Sequence) and all(type(side) in (int, float) and np.isfinite(side) for side in box)
    if not numbers or len(box) != 4 or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(
            f"box={_told(box)} is no box: give [left,top,right,bottom] in pixels, left < right, top < bottom"
        )


def box_inside(box: Sequence[int | float], width: int, height: int) -> Box:
    """The part of a box that lies in a picture: left, top, right, bottom, the latter two exclusive.

    Raises:
        ValueError: it is no box, or lies outside, or is too small, or leaves no background.
    """
    refuse_malformed(box)
    told = _told(box)
    left, right = (round(float(np.clip(side, 0, width))) for side in (box[0], box[2]))
    top, bottom = (round(float(np.clip(side, 0, height))) for side in (box[1], box[3]))
    if right <= left or bottom <= top:
        raise ValueError(f"box={told} lies outside the photograph, which is {width} wide and {height} high")
    if min(right - left, bottom - top) < SMALLEST_BOX:
        raise ValueError(
            f"only {right - left} x {bottom - top} pixels of box={told} lie in the photograph; each side needs at "
            f"least {SMALLEST_BOX}"
        )
    if (right - left) * (bottom - top) > MOST * width * height:
        raise ValueError(f"box={told} is all of the photograph: draw it closely around the object, or give mask=FILE")
    return left, top, right, bottom


# ---- What GrabCut is told --------------------------------------------------------------------------------------------

_OUTSIDE, _INSIDE, _PERHAPS_OUTSIDE, _PERHAPS_INSIDE = range(4)
"""OpenCV's numbers."""


def _from_box(inside: Bool[np.ndarray, "h w"]) -> Labels:
    """Perhaps the object is in the ellipse that fills the box, surely in its middle; outside of the box it is not."""
    rows, columns = inside.nonzero()
    half_height, half_width = (np.ptp(rows) + 1) / 2, (np.ptp(columns) + 1) / 2
    y, x = np.mgrid[: inside.shape[0], : inside.shape[1]] + 0.5
    distance = np.hypot((y - rows.min()) / half_height - 1, (x - columns.min()) / half_width - 1)
    labels = np.where(distance < 1, _PERHAPS_INSIDE, _PERHAPS_OUTSIDE)
    labels[distance < MIDDLE] = _INSIDE
    return np.where(inside, labels, _OUTSIDE).astype(np.uint8)


def _from_mask(mask: Bool[np.ndarray, "h w"], band: float) -> Labels:
    """Sure is what lies deeper inside or farther outside than the band is wide; of a thin object, its middle."""
    width = band * np.sqrt(mask.sum())
    depth, distance = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    labels = np.where(mask, _PERHAPS_INSIDE, _PERHAPS_OUTSIDE)
    labels[depth > min(width, depth.max() / 2)] = _INSIDE
    labels[distance > min(width, distance.max() / 2)] = _OUTSIDE
    return labels.astype(np.uint8)


def _grab_cut(picture: UInt8[np.ndarray, "h w 3"], labels: Labels, iterations: int) -> Bool[np.ndarray, "h w"]:
    import cv2

    # In CIELAB distances are those that are seen; with its colors at twice their weight, shadows count for less.
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    picture = (lab * [1, 2, 2] + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    cv2.setRNGSeed(SEED)
    labels, colors = labels.copy(), np.zeros((2, 1, 65))
    cv2.grabCut(picture, labels, None, colors[0], colors[1], iterations, cv2.GC_INIT_WITH_MASK)
    return (labels == _INSIDE) | (labels == _PERHAPS_INSIDE)


# ---- Shapes ----------------------------------------------------------------------------------------------------------


def _largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest piece with those close to it, holes filled."""
    reach = max(1, round(JOINED * max(mask.shape) / 2))
    pieces, count = ndimage.label(ndimage.distance_transform_edt(~mask) <= reach)
    if count == 0 or not mask.any():
        return mask
    sizes = np.bincount(pieces[mask], minlength=count + 1)
    return ndimage.binary_fill_holes(mask & (pieces == sizes.argmax()))


def _grown(box: Box, reach: float, width: int, height: int) -> Box:
    left, top, right, bottom = box
    reach = math.ceil(reach)
    return max(left - reach, 0), max(top - reach, 0), min(right + reach, width), min(bottom + reach, height)


def _shrunk(image: Float[Tensor, "C H W"], window: Box, long_side: int) -> tuple[UInt8[np.ndarray, "h w C"], float]:
    """The window as bytes with a bounded long side, and its size relative to that in the image."""
    left, top, right, bottom = window
    zoom = min(1.0, long_side / max(right - left, bottom - top))
    size = max(1, round((bottom - top) * zoom)), max(1, round((right - left) * zoom))
    small = resize_antialias(image[None, :, top:bottom, left:right], size)[0]
    return np.ascontiguousarray((255 * small.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()), zoom


def _enlarged(found: Bool[np.ndarray, "h w"], window: Box, rgb: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 H W"]:
    left, top, right, bottom = window
    mask = resize_bilinear(torch.from_numpy(found)[None, None].to(rgb), (bottom - top, right - left))[0]
    whole = rgb.new_zeros(1, *rgb.shape[1:])
    whole[:, top:bottom, left:right] = (mask > 0.5).to(rgb)
    return whole


def _told(box: object) -> str:
    return str(box).replace(" ", "")

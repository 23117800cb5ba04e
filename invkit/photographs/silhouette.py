"""A photograph and the silhouette in it, from what is known: a mask, transparency, a box, or nothing at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invkit.data import cutout
from invkit.data.folder import with_silhouette
from invkit.features.silhouette import MaskRCNN
from invkit.features.weights import WEIGHTS
from invkit.images import composite, read_image, read_rgba

Image = np.ndarray | Tensor
"""uint8 [H W C] or numbers in [0, 1] (torch: [C H W] if they are no bytes); C is 3, or 4 with transparency."""

Finder = Callable[[Float[Tensor, "3 H W"]], Float[Tensor, "1 H W"]]


@dataclass(frozen=True)
class Photograph:
    """A photograph, in steps of 1 / 255 from 0 to 1, and the silhouette that was found in it.

    Args:
        source: given, alpha, box or mask_rcnn, with +grabcut if it was improved.
        hint: the box as a mask, or the mask before it was improved; None where the silhouette is the mask.
    """

    name: str
    rgb: Float[Tensor, "3 H W"]
    mask: Float[Tensor, "1 H W"]
    source: str
    hint: Float[Tensor, "1 H W"] | None = None

    def __post_init__(self) -> None:
        for name in ("rgb", "mask", "hint"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (255 * value.double()).round().contiguous() / 255)

    @property
    def mask_given(self) -> Float[Tensor, "1 H W"]:
        """The mask as somebody drew or found it, before it was improved; of a box what was cut out of it."""
        hinted = self.hint is not None and not self.source.startswith("box")
        return self.hint if hinted else self.mask


@cache
def finder(category: str) -> Finder:
    """Mask R-CNN, read when the first photograph needs it."""
    network = cache(lambda: MaskRCNN(category))
    return lambda image: network()(image)


def opened(
    image: Path,
    mask: Path | None = None,
    box: Sequence[int | float] | None = None,
    *,
    find: Finder | None = None,
    improve: bool = False,
) -> Photograph:
    """The photograph of a file, upright; see `silhouetted`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or there is no silhouette.
    """
    rgba = read_rgba(image, upright=True)
    drawn = None if mask is None else read_image(mask, upright=True)[:1]
    return silhouetted(rgba, drawn, box, find=find, improve=improve, names=(str(image), str(mask or "alpha")))


def silhouetted(
    rgba: Float[Tensor, "4 H W"],
    mask: Float[Tensor, "1 h w"] | None = None,
    box: Sequence[int | float] | None = None,
    *,
    find: Finder | None = None,
    improve: bool = False,
    names: tuple[str, str] = ("the photograph", "the mask"),
) -> Photograph:
    """A photograph with its silhouette: what is given, or alpha, or what is in the box, or what is found.

    Args:
        rgba: in [0, 1].
        box: left, top, right, bottom in pixels.
        find: gives the silhouette of an opaque photograph, where neither mask nor box is given.
        improve: lay the outline where the colors change.
        names: of photograph and mask, for errors.

    Raises:
        ValueError: there is no silhouette.
    """
    name, hint = names[0], None
    if mask is not None and box is not None:
        raise ValueError(f"both box and mask are given for {name}: leave one away (mask_refine improves a mask)")
    if box is not None:
        cutout.refuse_malformed(box)
        source, rgb = "box", composite(rgba[None, :3], rgba[None, 3:])[0]
        try:
            hint = cutout.filled(box, rgb)
            mask = cutout.cut_out(rgb, box)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    elif mask is None and bool((rgba[3] == 1).all()):
        source, rgb = "mask_rcnn", rgba[:3]
        mask = _found(rgb, find, name)
    else:
        source = "alpha" if mask is None else "given"
        rgb, mask = with_silhouette(rgba, mask, *names)
    if improve:
        hint = mask if hint is None else hint
        try:
            source, mask = f"{source}+grabcut", cutout.improved(rgb, mask)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; leave mask_refine away") from error
    return Photograph(name, rgb, mask, source, hint)


def _found(rgb: Float[Tensor, "3 H W"], find: Finder | None, name: str) -> Float[Tensor, "1 H W"]:
    way_out = "give a mask, white on the object, or a box, [left, top, right, bottom], around it"
    if find is None:
        raise ValueError(f"{name} has no transparency: {way_out}")
    try:
        return find(rgb)
    except FileNotFoundError as error:
        raise ValueError(
            f"{name} has no transparency: {way_out} (mask=FILE, box=[...] on the command line); or get the weights of "
            f"the network that would find it, {WEIGHTS['mask_rcnn'].url} (python scripts/doctor.py says where they "
            "belong)"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def as_rgba(image: Image, name: str) -> Float[Tensor, "4 H W"]:
    """An array as a picture in [0, 1] with transparency, which is 1 where it has none.

    Raises:
        ValueError: it is no picture.
    """
    pixels = _unit(image, name)
    if pixels.ndim != 3 or pixels.shape[0] not in (3, 4):
        raise ValueError(f"{name} has the shape {tuple(image.shape)}: it must be [H W 3] or [H W 4] (torch: C first)")
    return pixels if len(pixels) == 4 else torch.cat([pixels, torch.ones_like(pixels[:1])])


def as_mask(image: Image, name: str) -> Float[Tensor, "1 H W"]:
    """An array of bytes, booleans or numbers in [0, 1] as a mask: [H W], or with a channel. Bytes may be 0 and 1 too.

    Raises:
        ValueError: it is no mask.
    """
    if image.ndim == 2:
        image = image[..., None]
        if isinstance(image, Tensor) and image.dtype not in (torch.uint8, torch.bool):
            image = image.permute(2, 0, 1)
    mask = _unit(image, name)
    if 0 < float(mask.max()) <= 1 / 255:
        mask = 255 * mask
    if mask.ndim != 3 or mask.shape[0] not in (1, 3):
        raise ValueError(f"{name} has the shape {tuple(image.shape)}: it must be [H W]")
    return mask[:1]


def _unit(image: Image, name: str) -> Float[Tensor, "C H W"]:
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"{name} is a {type(image).__name__}: give an array of numpy or torch, or the path of a file")
    channels_first = isinstance(image, Tensor) and image.dtype not in (torch.uint8, torch.bool)
    pixels = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image.detach().cpu()
    largest = 255 if pixels.dtype == torch.uint8 else 1
    pixels = pixels.double() / largest
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError(f"{name} has values outside of [0, 1] (bytes: 0 to 255)")
    return pixels if channels_first or pixels.ndim != 3 else pixels.permute(2, 0, 1)

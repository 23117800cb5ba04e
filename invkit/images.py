"""Images as tensors: resampling, cropping, warping, compositing, files.

The two papers prepared their data with OpenCV, and a resampler that is almost OpenCV's moves outlines by a fraction of
a pixel. So its bilinear and area filters are written out here (no OpenCV needed) and compared with it in the tests.

Ranges: files and crops are in [0, 1]; networks and everything that flows through the framework are in [-1, 1].
"""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from invkit.runtime.files import written_aside

Size = int | tuple[int, int]
Box = tuple[int, int, int, int]

# ---- Resampling --------------------------------------------------------------------------------------------------


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def resize_bilinear(image: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """OpenCV's INTER_LINEAR: pixel centers at half integers, edges replicated, no filtering before shrinking."""
    return functional.interpolate(image, size=_pair(size), mode="bilinear", align_corners=False)


def resize_antialias(image: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """Triangle filter as wide as the shrinking needs: no aliasing, and never outside the range of the input."""
    return functional.interpolate(image, size=_pair(size), mode="bilinear", align_corners=False, antialias=True)


def resize_area(image: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """OpenCV's INTER_AREA: the mean over each output pixel's footprint.

    Where either axis grows, OpenCV leaves the footprint for a linear rule of its own (neither bilinear nor nearest) on
    both axes; so does this. Equal to OpenCV for outputs up to 1000 pixels, beyond which OpenCV drops slivers of
    footprint below a thousandth of a pixel.
    """
    (height, width), (to_height, to_width) = image.shape[-2:], _pair(size)
    weights = _area_weights if height >= to_height and width >= to_width else _enlarging_weights
    rows, columns = weights(height, to_height).to(image), weights(width, to_width).to(image)
    return rows @ image @ columns.T


def _area_weights(source: int, target: int) -> Float[Tensor, "target source"]:
    ratio = 1 / (target / source)
    left = torch.arange(target, dtype=torch.float64)[:, None] * ratio
    cell = torch.arange(source, dtype=torch.float64)[None]
    overlap = torch.minimum(left + ratio, cell + 1) - torch.maximum(left, cell)
    return overlap.clamp(min=0) / ratio


def _enlarging_weights(source: int, target: int) -> Float[Tensor, "target source"]:
    """Weights 1 - f at floor(d s) and f at the next, f = frac((d + 1) - (floor(d s) + 1) / s) where positive."""
    per_source = target / source
    index = torch.arange(target, dtype=torch.float64)
    cell = (index * (1 / per_source)).floor()
    # OpenCV rounds f to single precision before it takes the fraction; without that, 1 - 1e-16 would not become 0.
    excess = ((index + 1) - (cell + 1) * per_source).float()
    second = torch.where(excess <= 0, 0.0, excess - excess.floor()).double()
    first = cell.long().clamp(max=source - 1)
    weights = torch.zeros(target, source, dtype=torch.float64)
    rows = torch.arange(target)
    weights.index_put_((rows, first), 1 - second, accumulate=True)
    weights.index_put_((rows, (first + 1).clamp(max=source - 1)), second, accumulate=True)
    return weights


def warp_affine(
    image: Float[Tensor, "B C H W"], matrix: Float[Tensor, "B 2 3"], *, fill: float = 0.0
) -> Float[Tensor, "B C H W"]:
    """The image seen through an affine map, sampled bilinearly.

    Args:
        matrix: takes NDC (x, y, 1) of the result to NDC of `image` (pixel centers at half integers).
        fill: value outside the image; it is blended in over the last half pixel.
    """
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    return functional.grid_sample(image - fill, grid, mode="bilinear", align_corners=False) + fill


# ---- Cropping ----------------------------------------------------------------------------------------------------


def square_box(
    box: Sequence[float | int], pad: float = 0.05, jitter: float = 0.0, u: Sequence[float] = (0.5, 0.5, 0.5, 0.5)
) -> Box:
    """The square around a box by CMR's rule: pad and jitter each side, round half to even, grow the shorter extent.

    Args:
        box: left, top, right, bottom; 0-based pixels, all four inclusive.
        pad: growth of each side relative to the box's own extent along that side.
        jitter: largest random shift of each side, relative likewise.
        u: four numbers in [0, 1) that place the jitter of left, top, right, bottom; 1/2 is no shift.

    Returns:
        Left, top, right, bottom, inclusive; right - left = bottom - top. It may reach outside the image.

    Raises:
        ValueError: the box is empty.
    """
    x0, y0, x1, y1 = (float(side) for side in box)
    width, height = x1 - x0 + 1, y1 - y0 + 1
    if not (width > 0 and height > 0):
        raise ValueError(f"a box must have right >= left and bottom >= top (inclusive pixels); got {tuple(box)}")
    left = round(x0 - (pad * width + (1 - 2 * u[0]) * jitter * width))
    top = round(y0 - (pad * height + (1 - 2 * u[1]) * jitter * height))
    right = round(x1 + (pad * width + (1 - 2 * u[2]) * jitter * width))
    bottom = round(y1 + (pad * height + (1 - 2 * u[3]) * jitter * height))
    width, height = right - left + 1, bottom - top + 1
    side = max(width, height)
    left -= round((side - width) / 2)
    top -= round((side - height) / 2)
    return left, top, left + side - 1, top + side - 1


def crop_pad(image: Float[Tensor, "C H W"], box: Box, fill: float) -> Float[Tensor, "C h w"]:
    """The pixels of `box` (inclusive); those outside the image are `fill`."""
    left, top, right, bottom = box
    height, width = image.shape[-2:]
    out = image.new_full((image.shape[0], bottom - top + 1, right - left + 1), fill)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
    if x0 < x1 and y0 < y1:
        out[:, y0 - top : y1 - top, x0 - left : x1 - left] = image[:, y0:y1, x0:x1]
    return out


# ---- Values ------------------------------------------------------------------------------------------------------


def to_uint8(image: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B H W 3"]:
    """From [-1, 1], clamped and rounded to the nearest of 256 values, channels last."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def from_uint8(image: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """To [-1, 1] float32, channels first."""
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1


def composite(
    rgb: Float[Tensor, "B C H W"], mask: Float[Tensor, "B 1 H W"], background: float = 1.0
) -> Float[Tensor, "B C H W"]:
    """The object over a plain background; 1 is white and 0 mid grey in [-1, 1]."""
    return rgb * mask + background * (1 - mask)


def grid(images: Float[Tensor, "B 3 H W"], columns: int) -> Float[Tensor, "3 h w"]:
    """The images side by side in rows of `columns`, left to right, top to bottom; white where there are none left.

    Raises:
        ValueError: there are no images, or no columns.
    """
    count, _, height, width = images.shape
    if count == 0 or columns < 1:
        raise ValueError(f"a grid needs images and columns; got {count} images, {columns} columns")
    rows = math.ceil(count / columns)
    sheet = images.new_ones(rows * columns, 3, height, width)
    sheet[:count] = images
    return sheet.view(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)


# ---- Files -------------------------------------------------------------------------------------------------------


FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""What an image file may be, whatever its suffix. Pillow knows more, and hands some of that to other programs."""
MAX_PIXELS = 2**26
"""More than any camera takes; a file of some kilobytes may say that it has more, and they would be held in memory."""
_HALF = 0.5
_HELD_AS_MASK = 0.02
"""Below this all of a mask is black to the eye: it holds 0 and 1 where 0 and 255 are meant."""

# The size is checked here, before anything is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _decode(path: str | os.PathLike, upright: bool) -> Image.Image:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return ImageOps.exif_transpose(image) if upright else image
            size = f"{image.width} x {image.height}"
    except UnidentifiedImageError as error:
        raise ValueError(
            f"cannot decode the image {path}: it is damaged or none of {', '.join(FORMATS)}: replace it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path, "too many")) from error
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # damaged tags and chunks fail in any of the decoders' ways
        raise ValueError(f"cannot decode the image {path} ({error}); it is damaged: replace it") from error
    raise ValueError(_too_large(path, size))


def _too_large(path: str | os.PathLike, size: str) -> str:
    return f"the image {path} has {size} pixels, more than {MAX_PIXELS:,} altogether: make it smaller"


def _pixels(image: Image.Image, mode: str) -> Float[Tensor, "C H W"]:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit gray: Pillow would clip it at 255 instead of rescaling
        values = np.array(image, dtype=np.float64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError("its pixels are not numbers of 16 bits; save it with 8 or 16 bits")
        gray = torch.from_numpy(values / 65535)
        opaque = torch.ones_like(gray)
        return torch.stack([gray] * 3 + [opaque] * (mode == "RGBA"))
    stored = np.asarray(image.convert(mode)).transpose(2, 0, 1)
    # Divided into its place: a large photograph is not held twice as floating-point numbers.
    return torch.from_numpy(np.divide(stored, 255, out=np.empty(stored.shape)))


def _read(path: str | os.PathLike, mode: str, upright: bool) -> Float[Tensor, "C H W"]:
    image = _decode(path, upright)
    try:
        return _pixels(image, mode)
    except ValueError as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error


def read_image(path: str | os.PathLike, *, upright: bool = False) -> Float[Tensor, "3 H W"]:
    """The colors of an image file, float64 in [0, 1]; gray is replicated, alpha dropped.

    Args:
        upright: turn the picture as its EXIF tag says. Published annotations refer to the pixels as stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded.
    """
    return _read(path, "RGB", upright)


def read_rgba(path: str | os.PathLike, *, upright: bool = False) -> Float[Tensor, "4 H W"]:
    """The colors and the opacity of an image file, float64 in [0, 1]; opaque where the file has no alpha.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded.
    """
    return _read(path, "RGBA", upright)


def read_mask(path: str | os.PathLike, *, upright: bool = False) -> Float[Tensor, "1 H W"]:
    """A silhouette that is stored as a picture, float64 in [0, 1]: white on the object, black elsewhere; or its alpha.

    Alpha is the silhouette where the visible pixels are not themselves both black and white: the object cut out, or
    painted in one color.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or it holds 0 and 1 where black and white are meant.
    """
    rgba = read_rgba(path, upright=upright)
    mask, alpha = rgba[:1], rgba[3:]
    if bool((alpha < 1).any()):
        visible = mask[alpha > _HALF]
        black, white = visible < 0.1, visible > 0.9
        drawn = bool(black.any()) and bool(white.any()) and int((black | white).sum()) >= 0.95 * len(visible)
        mask = mask * alpha if drawn else alpha
    if 0 < float(mask.max()) < _HELD_AS_MASK:
        raise ValueError(
            f"the largest value of the mask {path} is {255 * float(mask.max()):.3g} of 255: multiply it, so that the "
            "object is white (255)"
        )
    return mask


def write_webp(path: str | os.PathLike, image: Float[Tensor, "3 H W"], *, quality: int = 90) -> None:
    """Write colors in [-1, 1] in a small file for pages; whole or not there.

    Args:
        quality: up to 100.
    """
    pixels = to_uint8(image.detach()[None])[0].cpu().numpy()
    with written_aside(Path(path)) as aside:
        Image.fromarray(pixels).save(aside, format="WEBP", quality=quality)


def write_png(path: str | os.PathLike, image: Float[Tensor, "3 H W"] | UInt8[Tensor, "H W C"]) -> None:
    """Write colors in [-1, 1], or bytes as they are (1, 3 or 4 channels), so that the file is whole or not there."""
    if image.is_floating_point():
        image = to_uint8(image.detach()[None]).squeeze(0)
    pixels = image.cpu().numpy()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(aside, format="PNG")
    aside.replace(path)


def write_jpeg(path: str | os.PathLike, image: Float[Tensor, "3 H W"], *, quality: int = 90) -> None:
    """Write colors in [-1, 1] so that the file is whole or not there.

    Args:
        quality: up to 100.
    """
    pixels = to_uint8(image.detach()[None])[0].cpu().numpy()
    with written_aside(Path(path)) as aside:
        Image.fromarray(pixels).save(aside, format="JPEG", quality=quality)

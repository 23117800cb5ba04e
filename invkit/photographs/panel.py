"""What a reconstruction saw and made of a photograph, step by step, as one picture with words on it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invkit.data.dataset import Preparation
from invkit.evaluation import viewpoints
from invkit.geometry.camera import Camera
from invkit.images import composite, resize_antialias, resize_bilinear, to_uint8
from invkit.inversion.inverter import Inverter
from invkit.metrics.iou import iou
from invkit.photographs.silhouette import Photograph
from invkit.protocols import Encoding, Renderer, Scene
from invkit.types import Estimate, Views

TILE, CAPTION, COLUMNS = 256, 22, 6
TURNS = (45.0, 90.0, 180.0, 270.0)
RED = (1.0, -1.0, -1.0)
FILL = 0.95
"""Of half a picture, how far an object that is turned reaches from its middle."""


@torch.no_grad()
def panel(
    photograph: Photograph, views: Views, steps: Mapping[str, Estimate], inverter: Inverter
) -> UInt8[Tensor, "H W 3"]:
    """Photograph, outline, crop, what was found at each step, and the normals and other sides of the last.

    Where the silhouette was cut out or improved, also the box or mask it was made from; where an encoder begins, also
    what it took the pixels for.

    Args:
        views: the crop that was searched.
        steps: what was found at each step by its name, the last of which is shown from other sides too.
    """
    height, width = photograph.rgb.shape[1:]
    whole = Preparation(resample=resize_antialias, crop_padding=None, mask_threshold=None)
    square = whole.square((), height, width)
    photo, outline = whole.cut(photograph.rgb, photograph.mask, square, TILE)
    tiles = {"photograph": photo}
    if photograph.hint is not None:
        hint = whole.cut(photograph.rgb, photograph.hint, square, TILE)[1]
        tiles["box or mask given"] = outlined(photo, hint)
    tiles["silhouette"] = outlined(photo, outline)
    tiles["crop"] = composite(views.rgb, views.mask).cpu()
    found = list(steps.values())[-1]
    if isinstance(inverter.init, Encoding):
        tiles["canonical map"] = inverter.init.canonical_map(views, found.scene).cpu()
    views = views.to("cpu")
    for name, estimate in steps.items():
        image = estimate.image.to("cpu")
        overlap = iou(image.mask, views.mask).item()
        tiles[f"{name}, IoU {overlap:.2f}"] = outlined(image.over(1.0), views.mask)
    image = inverter.renderer(found.scene, found.camera, extras=frozenset({"normals"}))
    tiles["normals"] = replace(image, rgb=image.normals, background=0.0).over(1.0).cpu()
    for degrees, side in zip(TURNS, sides(found, inverter.renderer), strict=True):
        tiles[f"turned by {degrees:.0f} degrees"] = side[None]
    return captioned(tiles)


def sides(found: Estimate, renderer: Renderer) -> Float[Tensor, "K 3 H W"]:
    """The object turned about its own up axis, on white, as large as it fits; what floats beside it may be cut off."""
    scene = found.scene.centered()
    camera = fitted(scene, viewpoints.orbit(found.camera, torch.tensor(TURNS)))
    return renderer(scene.repeat(len(TURNS)), camera).over(1.0).cpu()


def fitted(scene: Scene, camera: Camera) -> Camera:
    """Cameras that look at the middle of the only scene of a batch, so near that it just fits into all the pictures."""
    points = scene.outermost().expand(len(camera), -1, -1)
    reach = camera.project(points)[..., :2].abs().max()
    return replace(camera, scale=FILL * camera.scale / reach)


def outlined(image: Float[Tensor, "1 3 H W"], mask: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "1 3 T T"]:
    """The picture at the size of a tile, with a red line around the mask."""
    image, mask = resize_bilinear(image, TILE), (resize_bilinear(mask, TILE) > 0.5).to(mask)
    edge = torch.nn.functional.max_pool2d(mask, 3, stride=1, padding=1) - mask
    return torch.where(edge > 0, image.new_tensor(RED)[None, :, None, None], image)


def captioned(tiles: Mapping[str, Float[Tensor, "1 3 _ _"]]) -> UInt8[Tensor, "H W 3"]:
    """The pictures in rows, each below its name."""
    rows = math.ceil(len(tiles) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (name, tile) in enumerate(tiles.items()):
        left, top = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        draw.text((left + 4, top + 5), f"{number + 1}  {name}", fill="black", font=font)
        pixels = to_uint8(resize_bilinear(tile.float(), TILE))[0].numpy()
        sheet.paste(Image.fromarray(pixels), (left, top + CAPTION))
    return torch.from_numpy(np.array(sheet))

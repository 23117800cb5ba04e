"""Sheets of radiance fields: colors, normals, depth and regions side by side, all on white."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import grid
from invkit.types import Rendering
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.manipulation import region_colors
from nerfinv.renderers.volume import VolumeRenderer, resized

SAMPLES, AZIMUTHS = 6, 4
ELEVATION = 20.0
"""Degrees above the horizon from which sample pictures look; z is up."""

NEAREST, FARTHEST = 0.9, -0.8
"""Grey values of depth."""


def on_white(renderer: VolumeRenderer, size: int | None = None) -> VolumeRenderer:
    """The same renderer with white behind, without chance, and for pictures of another size where one is given."""
    changed = resized(renderer, size or renderer.size)
    changed.background = 1.0
    return changed


@torch.no_grad()
def sheet(field: RadianceField, camera: Camera, renderer: VolumeRenderer) -> Float[Tensor, "3 h w"]:
    """A row for each object: colors, normals (of signed distances), depth and (where there is a palette) regions."""
    extras = {"depth"}
    extras |= {"normals"} if field.density.signed_distance else set()
    extras |= {"shares"} if field.palette is not None else set()
    image = on_white(renderer)(field, camera, extras=frozenset(extras))
    columns = [image.rgb]
    if image.normals is not None:
        columns.append(normals(image))
    columns.append(depth(image))
    if image.shares is not None:
        columns.append(regions(image))
    return grid(torch.stack(columns, dim=1).flatten(0, 1), columns=len(columns))


@torch.no_grad()
def sample_sheets(
    generator: Generator, renderer: VolumeRenderer, cameras: Camera, labels: Int[Tensor, "N"] | None, seed: int
) -> dict[str, Float[Tensor, "3 h w"]]:
    """Colors, depth and (of signed distances) normals of the same latents each time, from all sides, an object a row.

    Args:
        cameras: of the data; sides are looked at from as far as from the median of these.
        labels: of the data, of which present ones are shown in turn; None: there are no classes.
    """
    rng = torch.Generator().manual_seed(seed)
    like = next(generator.parameters())
    latent = torch.randn(SAMPLES, generator.latent_dim, generator=rng).to(like)
    label = None
    if labels is not None:
        present = torch.tensor(sorted(set(labels.tolist())))
        label = present[torch.linspace(0, len(present) - 1, SAMPLES).long()].to(like.device)
    sides = [common(cameras, ELEVATION, index * 360 / AZIMUTHS) for index in range(AZIMUTHS)]
    camera = Camera.cat(sides * SAMPLES).to(like.device, dtype=like.dtype)
    field = generator(generator.style(latent, label)).repeat(AZIMUTHS)
    extras = {"depth"} | ({"normals"} if generator.density.signed_distance else set())
    image = on_white(renderer)(field, camera, extras=frozenset(extras))
    sheets = {"samples": image.rgb, "depth": depth(image)}
    if image.normals is not None:
        sheets["normals"] = normals(image)
    return {name: grid(sheet, columns=AZIMUTHS) for name, sheet in sheets.items()}


def normals(image: Rendering) -> Float[Tensor, "B 3 H W"]:
    """Normals as colors: red to the right, green up, blue towards the viewer."""
    return image.normals * image.normals.new_tensor([1.0, -1.0, -1.0])[:, None, None] + 1 - image.mask


def depth(image: Rendering) -> Float[Tensor, "B 3 H W"]:
    """The nearer the lighter, over the range of each picture."""
    solid = image.mask > 0.5
    at = image.depth / image.mask.clamp(min=0.5)
    near = torch.where(solid, at, torch.inf).amin(dim=(2, 3), keepdim=True)
    far = torch.where(solid, at, -torch.inf).amax(dim=(2, 3), keepdim=True)
    share = ((at - near) / (far - near).clamp(min=1e-6)).clamp(0, 1)
    grey = NEAREST + (FARTHEST - NEAREST) * share
    return torch.where(image.mask > 0, image.mask * grey + 1 - image.mask, 1.0).expand(-1, 3, -1, -1)


def regions(image: Rendering) -> Float[Tensor, "B 3 H W"]:
    """Which color of the palette is where, in colors that are the same for all objects."""
    colors = region_colors(image.shares.shape[1]).to(image.shares)
    return torch.einsum("bkhw,kc->bchw", image.shares, colors) + 1 - image.mask


def seen_from(elevation: float, azimuth: float, *, scale: float, inv_focal: float = 0.0) -> Camera:
    """The camera that looks at the origin of a frame whose z axis is up; one.

    Args:
        elevation, azimuth: degrees above the horizon, and from +x to +y; 0 and 0 look from +x.
        scale: NDC per object unit at the origin.
    """
    up, around = math.radians(elevation), math.radians(azimuth)
    cos_up, sin_up, cos, sin = math.cos(up), math.sin(up), math.cos(around), math.sin(around)
    # Rows are the image's right, down and forward.
    matrix = torch.tensor(
        [
            [-sin, cos, 0.0],
            [sin_up * cos, sin_up * sin, -cos_up],
            [-cos_up * cos, -cos_up * sin, -sin_up],
        ]
    )
    quat = rotation.from_matrix(matrix[None])
    return Camera(quat, torch.tensor([scale]), torch.zeros(1, 2), torch.tensor([inv_focal]))


def common(cameras: Camera, elevation: float, azimuth: float) -> Camera:
    """The camera at a place of our choice with the median scale and focal length of others; one, centered."""
    found = seen_from(elevation, azimuth, scale=1.0)
    return replace(found, scale=cameras.scale.median()[None], inv_focal=cameras.inv_focal.median()[None])

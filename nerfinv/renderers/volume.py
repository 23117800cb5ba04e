"""Pictures of radiance fields by volume rendering, without decoding what cannot be seen.

The values are those of `plain.PlainRenderer`: coarse samples along every ray, fine ones where these found something,
all of them composited together. What is saved changes nothing that can be told:

1. Rays that miss the box are not sampled.
2. Where the samples lie and how much each adds to its pixel is found first, without gradient, from the density alone:
   no colors, no graph. Behind full opacity not even that is decoded.
3. Only samples that add something to their pixel are decoded in full and with gradient. For a sample before or behind
   the surface the gradient vanishes with its weight: the density falls off exponentially there (d sigma / d distance
   is -sigma / beta), and so does the light that comes through.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Rendering
from nerfinv.field import OpenField, RadianceField, wide_sigmoid
from nerfinv.renderers.rays import Bundle, bundle, important, stratified, weights_of

OPAQUE = 1e-6
"""Light that still comes through, below which nothing behind is looked at."""

BLOCKS = 4
"""Parts of the coarse samples that are decoded one after another, front to back."""

AT_ONCE = 32768
"""Points decoded at once without gradient: few enough for the cache of a CPU, enough to keep a GPU busy."""


@dataclass(frozen=True)
class _Part:
    """Rays that are rendered at once, and what they meet.

    Args:
        image: of each ray, which of the scenes.
    """

    opened: OpenField
    rays: Bundle
    image: Int[Tensor, "N"]


@dataclass(frozen=True)
class _Samples:
    """The samples of some rays, near to far, and those of them that are decoded in full.

    Args:
        sigma: densities, without gradient.
        ray, number: which samples those are, ray by ray.
    """

    t: Float[Tensor, "N S"]
    sigma: Float[Tensor, "N S"]
    ray: Int[Tensor, "P"]
    number: Int[Tensor, "P"]

    def of(self, values: Float[Tensor, "N S"]) -> Float[Tensor, "P"]:
        """The entries that belong to those samples."""
        return values.flatten().index_select(0, self.ray * self.t.shape[1] + self.number)

    def points(self, rays: Bundle) -> Float[Tensor, "P 3"]:
        """Where those samples lie; with gradient to the rays."""
        origins, directions = rays.origins.index_select(0, self.ray), rays.directions.index_select(0, self.ray)
        return torch.addcmul(origins, directions, self.of(self.t)[:, None])


class VolumeRenderer:
    """Pictures of radiance fields, differentiable in field and camera.

    Extras: "depth", "normals" (both without gradient), "coords" (the canonical map: composited positions, not divided
    by the mask), "shares" (composited shares of the palette).

    Args:
        size: pixels along a side.
        coarse: samples of each ray, evenly spread over the part of it that lies in the box.
        fine: samples placed where the coarse ones found something; 0 is none.
        background: what is behind: 0 mid grey, 1 white.
        offset: where in its cell a pixel lies: 0.5 its center; 0 its upper left corner, as in the released code.
        from_camera: gradients of the camera as in the released code; see `rays.bundle`.
        random: draw the samples' places, as training and the released code do; otherwise the middle is taken.
        dropped: most that the samples left out may add to a pixel together.
        max_points: samples of the rays that are rendered at once; bounds the memory and changes nothing else.
        checkpointing: decode again in the backward pass instead of keeping the graph: less memory, more time.
    """

    def __init__(
        self,
        size: int = 128,
        *,
        coarse: int = 64,
        fine: int = 64,
        background: float = 0.0,
        offset: float = 0.5,
        from_camera: bool = False,
        random: bool = False,
        dropped: float = 1e-5,
        max_points: int = 2**21,
        checkpointing: bool = False,
    ) -> None:
        if size < 1 or coarse < 4 or fine < 0:
            raise ValueError(f"size={size} must be positive, coarse={coarse} at least 4 and fine={fine} at least 0")
        self.size, self.coarse, self.fine = size, coarse, fine
        self.background, self.offset, self.from_camera, self.random = background, offset, from_camera, random
        self.dropped, self.max_points, self.checkpointing = dropped, max_points, checkpointing

    def __call__(self, scene: RadianceField, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        """The pictures; where nothing is hit, `mask` and the extras are 0.

        Raises:
            ValueError: `extras` asks for shares of a palette and the field has none.
        """
        if "shares" in extras and scene.palette is None:
            raise ValueError("this field has no palette, so there are no shares of its colors to render")
        rays, hit = bundle(camera, self.size, scene.half_side, self.offset, from_camera=self.from_camera)
        chosen = hit.nonzero().squeeze(1)
        opened = scene.opened()
        at_once = max(self.max_points // (self.coarse + self.fine), 1)
        parts = [
            self._pixels(_Part(opened, rays[rows], rows // self.size**2), camera, extras)
            for rows in chosen.split(at_once)
        ]
        image = {name: self._image(len(camera), chosen, torch.cat([part[name] for part in parts])) for name in parts[0]}
        image["rgb"] = image["rgb"] + self.background * (1 - image["mask"])
        return Rendering(**image, background=self.background)

    def _image(self, count: int, pixels: Int[Tensor, "N"], values: Float[Tensor, "N C"]) -> Float[Tensor, "B C H W"]:
        flat = values.new_zeros(count * self.size**2, values.shape[1]).index_copy(0, pixels, values)
        return flat.view(count, self.size, self.size, -1).permute(0, 3, 1, 2)

    def _pixels(self, part: _Part, camera: Camera, extras: frozenset[str]) -> dict[str, Tensor]:
        """Colors (without background), opacity and extras of some rays, [N, C] each."""
        scene, rays, image = part.opened.field, part.rays, part.image
        with torch.no_grad():
            samples = self._sampled(part)
        decode = _checkpointed if self.checkpointing and torch.is_grad_enabled() else _decoded
        sigma, look = decode(part, samples)
        weights, _ = weights_of(samples.sigma.index_put((samples.ray, samples.number), sigma), samples.t)
        weight = samples.of(weights)[:, None]

        def composited(values: Float[Tensor, "P C"], weight: Float[Tensor, "P 1"] = weight) -> Float[Tensor, "N C"]:
            return values.new_zeros(len(rays), values.shape[1]).index_add(0, samples.ray, weight * values)

        color = composited(look)
        found = {"mask": weights.sum(dim=1, keepdim=True)}
        if scene.palette is None:
            found["rgb"] = color
        else:
            # Compositing and the palette are both linear, so the palette comes last: once a pixel.
            found["rgb"] = torch.einsum("nk,nkc->nc", color, scene.palette[image])
            if "shares" in extras:
                found["shares"] = color
        if "depth" in extras:
            found["depth"] = (weights.detach() * samples.t).sum(dim=1, keepdim=True) * rays.depth_scale[:, None]
        if "coords" in extras:
            found["coords"] = composited(samples.points(rays))
        if "normals" in extras:
            normals = _normals(part.opened, samples.points(rays), image.index_select(0, samples.ray))
            seen = composited(normals, weight.detach())
            found["normals"] = rotation.rotate(camera.quat[image].detach(), seen[:, None]).squeeze(1)
        return found

    def _sampled(self, part: _Part) -> _Samples:
        """Where samples lie, their densities, and which of them are seen."""
        rays = part.rays
        t = stratified(rays.near, rays.far, self.coarse, self.random)
        sigma, spacing = torch.zeros_like(t), t.diff(dim=1)
        lit = torch.arange(len(t), device=t.device)
        for block in torch.arange(self.coarse).tensor_split(BLOCKS):
            columns = slice(int(block[0]), int(block[-1]) + 1)
            sigma[lit, columns] = _densities(part, lit, t[:, columns].index_select(0, lit))
            passed = spacing[:, : columns.stop]
            optical = (sigma[:, : passed.shape[1]] * passed).sum(dim=1)
            lit = (optical < -math.log(OPAQUE)).nonzero().squeeze(1)
        if self.fine:
            weights, transmittance = weights_of(sigma, t)
            more = important(t, weights, self.fine, self.random)
            before = (torch.searchsorted(t, more) - 1).clamp(min=0)
            place = (transmittance.gather(1, before) > OPAQUE).flatten().nonzero().squeeze(1)
            ray = place // self.fine
            extra = torch.zeros_like(more)
            chosen = more.flatten().index_select(0, place)[:, None]
            extra.view(-1)[place] = _densities(part, ray, chosen).squeeze(1)
            t, order = torch.cat([t, more], dim=1).sort(dim=1)
            sigma = torch.cat([sigma, extra], dim=1).gather(1, order)
        weights, _ = weights_of(sigma, t)
        ascending, order = weights.sort(dim=1)
        seen = torch.zeros_like(weights, dtype=torch.bool)
        seen.scatter_(1, order, ascending.cumsum(dim=1) > self.dropped)
        return _Samples(t, sigma, *seen.nonzero(as_tuple=True))


def _densities(part: _Part, chosen: Int[Tensor, "M"], t: Float[Tensor, "M S"]) -> Float[Tensor, "M S"]:
    """Densities at distances along the chosen rays; 0 outside the box."""
    found = [t.new_zeros(0)]
    samples = t.shape[1]
    at_once = max(AT_ONCE // samples, 1)
    for ray, places in zip(chosen.split(at_once), t.split(at_once), strict=True):
        origins, directions = part.rays.origins.index_select(0, ray), part.rays.directions.index_select(0, ray)
        points = torch.addcmul(origins[:, None], directions[:, None], places[..., None]).view(-1, 3)
        which = part.image.index_select(0, ray)
        value = part.opened.value(points, which if samples == 1 else which.repeat_interleave(samples))
        found.append(part.opened.sigma(points, value))
    return torch.cat(found).view(t.shape)


def _decoded(part: _Part, samples: _Samples) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
    """Density of the samples that are seen, and their shares of the palette, or colors where there is none."""
    scene, points = part.opened.field, samples.points(part.rays)
    value, look = part.opened.decoded(points, part.image.index_select(0, samples.ray))
    if scene.view_head is not None:
        look = scene.view_head(scene.view_head.embed(part.rays.directions).index_select(0, samples.ray), look)
    return part.opened.sigma(points, value), wide_sigmoid(look) if scene.palette is None else look.softmax(dim=-1)


def _checkpointed(part: _Part, samples: _Samples) -> tuple[Float[Tensor, "P"], Float[Tensor, "P A"]]:
    """`_decoded` in parts of `AT_ONCE` samples, each decoded again when its gradient is due."""
    parts = [
        checkpoint(_decoded, part, replace(samples, ray=ray, number=number), use_reentrant=False)
        for ray, number in zip(samples.ray.split(AT_ONCE), samples.number.split(AT_ONCE), strict=True)
    ]
    sigma, look = zip(*parts, strict=True)
    return torch.cat(sigma), torch.cat(look)


def _normals(opened: OpenField, points: Float[Tensor, "P 3"], image: Int[Tensor, "P"]) -> Float[Tensor, "P 3"]:
    """Unit gradients of the signed distance, object axes, a part of the points at once."""
    parts = zip(points.split(AT_ONCE), image.split(AT_ONCE), strict=True)
    return torch.cat([points.new_zeros(0, 3), *(opened.normals(*part) for part in parts)])


def resized(renderer: VolumeRenderer, size: int) -> VolumeRenderer:
    """The renderer at another size, without randomness: an image must not depend on its place in the batch."""
    other = copy.copy(renderer)
    other.size, other.random = size, False
    return other

"""The slow twin of `volume.VolumeRenderer`: every sample of every ray, decoded from three `grid_sample`s.

It is what the formulas say and nothing else, in any precision: what the fast renderer's values and gradients are held
to, and what the benchmark compares with.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Rendering
from nerfinv.field import RadianceField, wide_sigmoid
from nerfinv.renderers.rays import bundle, important, stratified, weights_of


class PlainRenderer:
    """Pictures of radiance fields; see `volume.VolumeRenderer`, whose arguments these are."""

    def __init__(
        self, size: int = 128, *, coarse: int = 64, fine: int = 64, background: float = 0.0, offset: float = 0.5
    ) -> None:
        self.size, self.coarse, self.fine = size, coarse, fine
        self.background, self.offset = background, offset

    def __call__(self, scene: RadianceField, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering:
        rays, hit = bundle(camera, self.size, scene.half_side, self.offset)
        # What the others miss is sampled anyway, outside the box, where there is nothing.
        near, far = torch.where(hit, rays.near, 0.0), torch.where(hit, rays.far, 1.0)
        t = stratified(near, far, self.coarse, random=False)
        sigma, color, shares = self._look(scene, rays.points(t), rays.directions)
        if self.fine:
            with torch.no_grad():
                weights, _ = weights_of(sigma, t)
                more = important(t, weights, self.fine, random=False)
            sigma, color, shares = (
                torch.cat(pair, dim=1)
                for pair in zip(
                    (sigma, color, shares), self._look(scene, rays.points(more), rays.directions), strict=True
                )
            )
            t, order = torch.cat([t, more], dim=1).sort(dim=1)
            sigma = sigma.gather(1, order)
            color, shares = (part.gather(1, order[..., None].expand_as(part)) for part in (color, shares))
        weights, _ = weights_of(sigma * hit[:, None], t)
        mask = weights.sum(dim=1, keepdim=True)
        rgb = (weights[..., None] * color).sum(dim=1) + self.background * (1 - mask)
        points = rays.points(t)
        found = {"depth": lambda: (weights * t * rays.depth_scale[:, None]).detach().sum(dim=1, keepdim=True)}
        found["coords"] = lambda: (weights[..., None] * points).sum(dim=1)
        found["shares"] = lambda: (weights[..., None] * shares).sum(dim=1)
        found["normals"] = lambda: self._normals(scene, camera, points, weights)
        return Rendering(
            rgb=self._image(rgb, camera),
            mask=self._image(mask, camera),
            background=self.background,
            **{name: self._image(make(), camera) for name, make in found.items() if name in extras},
        )

    def _image(self, values: Float[Tensor, "N C"], camera: Camera) -> Float[Tensor, "B C H W"]:
        return values.view(len(camera), self.size, self.size, -1).permute(0, 3, 1, 2)

    def _features(self, scene: RadianceField, points: Float[Tensor, "N S 3"]) -> Float[Tensor, "P C"]:
        grid = (points / scene.half_side).view(len(scene), 1, -1, 3)
        total = sum(
            F.grid_sample(scene.planes[:, index], grid[..., axes], align_corners=True, padding_mode="border")
            for index, axes in enumerate(([0, 1], [0, 2], [1, 2]))
        )
        return (total / 3).squeeze(2).transpose(1, 2).flatten(0, 1)

    def _look(
        self, scene: RadianceField, points: Float[Tensor, "N S 3"], directions: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N S"], Float[Tensor, "N S 3"], Float[Tensor, "N S A"]]:
        value, attributes = scene.decoder(self._features(scene, points))
        samples = points.shape[1]
        if scene.view_head is not None:
            embedding = scene.view_head.embed(directions).repeat_interleave(samples, dim=0)
            attributes = scene.view_head(embedding, attributes)
        sigma = scene.density(value).view(points.shape[:2]) * scene.inside(points)
        if scene.palette is None:
            color = wide_sigmoid(attributes).view(*points.shape[:2], 3)
            return sigma, color, color
        shares = attributes.softmax(dim=-1)
        color = shares.view(len(scene), -1, shares.shape[-1]) @ scene.palette
        return sigma, color.view(*points.shape[:2], 3), shares.view(*points.shape[:2], -1)

    def _normals(
        self, scene: RadianceField, camera: Camera, points: Float[Tensor, "N S 3"], weights: Float[Tensor, "N S"]
    ) -> Float[Tensor, "N 3"]:
        with torch.enable_grad():
            free = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(scene.decoder.value(self._features(scene, free)).sum(), free)
        normals = F.normalize(gradient, dim=-1)
        seen = (weights.detach()[..., None] * normals).sum(dim=1).view(len(camera), -1, 3)
        return rotation.rotate(camera.quat, seen).flatten(0, 1)

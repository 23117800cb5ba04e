"""The Chamfer losses with all distances in one table of float64: what the tiled ones are compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.types import Estimate, Views
from meshinv.losses.chamfer_mask import ChamferMask, Foreground
from meshinv.losses.chamfer_texture import ChamferTexture, Photograph


class DenseChamferMask(ChamferMask):
    """Every vertex against every foreground pixel at once; the gradient by autograd."""

    def target(self, views: Views) -> Foreground:
        return super().target(views.to(views.rgb.device, dtype=torch.float64))

    def __call__(self, estimate: Estimate, target: Foreground) -> Float[Tensor, "B"]:
        vertices = estimate.camera.project(estimate.scene.vertices)[..., :2].double()
        values = []
        for ours, places, valid in zip(vertices, target.position, target.valid, strict=True):
            squared = torch.cdist(ours, places[valid]).square()
            values.append(squared.min(dim=1).values.mean() + squared.min(dim=0).values.mean())
        return torch.stack(values)


class DenseChamferTexture(ChamferTexture):
    """Every rendered against every photographed point at once; the gradient by autograd. Renderings are not empty."""

    def target(self, views: Views) -> Photograph:
        return super().target(views.to(views.rgb.device, dtype=torch.float64))

    def __call__(self, estimate: Estimate, target: Photograph) -> Float[Tensor, "B"]:
        image = estimate.image.to(estimate.image.rgb.device, dtype=torch.float64)
        rendered, photo = self.appearance.rendered(image, target.index, self.max_points), target.points
        slack, gain, exponent = self.locality.slack, self.locality.gain, self.locality.exponent
        values = []
        for i in range(len(target)):
            ours, theirs = rendered.valid[i], photo.valid[i]
            appearance = torch.cdist(rendered.appearance[i, ours], photo.appearance[i, theirs]).square()
            distance = torch.cdist(rendered.position[i, ours], photo.position[i, theirs]).square()
            weight = ((1 - (2 * gain * slack) ** 2 + gain * distance) ** exponent).clamp(min=1)
            cost = weight * (appearance + self.locality.floor)
            values.append(self.forth * cost.min(dim=1).values.mean() + self.back * cost.min(dim=0).values.mean())
        return torch.stack(values)

"""Two slow ways to draw what `MeshRenderer` draws: what it is compared with, in results and in speed."""

import numpy as np
import torch
from torch import Tensor

from meshinv.renderers.pairs import positions
from meshinv.renderers.raster import Raster, perspective_correct
from meshinv.renderers.reference import MeshRenderer, facing
from tests.meshinv import brute_force


class BruteForceRenderer(MeshRenderer):
    """Every face for every pixel, one face after another; no gradient to the shape."""

    def draw(self, corner_xy: Tensor, corner_z: Tensor, corner_weight: Tensor, *, with_soft_mask: bool):
        seen, soft = [], []
        inputs = (corner_xy, corner_z, facing(corner_xy))
        for xy, z, normal_z in zip(*(t.detach().double().numpy() for t in inputs), strict=True):
            face, weights, _ = brute_force.nearest_faces(xy, z, normal_z, *self.samples)
            seen.append((face, weights))
            if with_soft_mask:
                soft.append(brute_force.soft_mask(xy, face, **self.soft))
        face, weights = (torch.from_numpy(np.stack(parts)) for parts in zip(*seen, strict=True))
        raster = raster_of(face, weights.to(corner_xy.dtype), corner_weight)
        return raster, torch.from_numpy(np.stack(soft)).to(corner_xy.dtype) if with_soft_mask else None


class DenseRenderer(MeshRenderer):
    """Every face for every pixel at once, in tables of pixels times faces; all gradients by autograd."""

    def draw(self, corner_xy: Tensor, corner_z: Tensor, corner_weight: Tensor, *, with_soft_mask: bool):
        height, width = self.samples
        batch = len(corner_z)
        x, y = positions(1, height, width, corner_xy)
        dx = corner_xy[:, None, :, :, 0] - x[:, None, None]
        dy = corner_xy[:, None, :, :, 1] - y[:, None, None]
        areas = dx.roll(-1, 3) * dy.roll(-2, 3) - dx.roll(-2, 3) * dy.roll(-1, 3)
        weights = areas / areas.sum(3, keepdim=True)
        drawn = (weights >= 0).all(3) & (facing(corner_xy) >= 0)[:, None]
        z = torch.where(drawn, (weights * corner_z[:, None]).sum(3), -torch.inf)
        nearest, face = z.max(2)
        taken = weights.gather(2, face[..., None, None].expand(-1, -1, 1, 3)).squeeze(2)
        face = torch.where(nearest > -torch.inf, face, -1).view(batch, height, width)
        raster = raster_of(face, taken.view(batch, height, width, 3), corner_weight)
        return raster, self.soft_mask(dx, dy, face) if with_soft_mask else None

    def soft_mask(self, dx: Tensor, dy: Tensor, face: Tensor) -> Tensor:
        """From the corners' places seen from every pixel, [B, P, F, 3]."""
        edge_x, edge_y = dx.roll(-1, 3) - dx, dy.roll(-1, 3) - dy
        along = -(dx * edge_x + dy * edge_y) / (edge_x.square() + edge_y.square())
        along = along.clamp(0, 1).detach()
        squared = ((dx + along * edge_x).square() + (dy + along * edge_y).square()).amin(3)
        box = self.soft["box"]
        near = (dx.amin(3) <= box) & (dx.amax(3) > -box) & (dy.amin(3) <= box) & (dy.amax(3) > -box)
        near &= near.cumsum(2) <= self.soft["max_faces"]
        away = torch.where(near, -torch.expm1(-self.soft["sigma_inv"] * squared), 1)
        return torch.where(face >= 0, 1, 1 - away.prod(2).view(face.shape))


def raster_of(face: Tensor, weights: Tensor, corner_weight: Tensor) -> Raster:
    """From faces [B, H, W] and barycentric weights [B, H, W, 3] on the screen."""
    image, row, column = (face >= 0).nonzero(as_tuple=True)
    owner = image * corner_weight.shape[1] + face[image, row, column]
    weights = weights[image, row, column].T
    pixel = (face >= 0).flatten().nonzero().squeeze(1)
    return Raster(face, pixel, owner, perspective_correct(weights, owner, corner_weight))

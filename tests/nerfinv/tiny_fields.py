"""Small radiance fields with surfaces, for tests: bumpy balls of a few planes and a decoder of random weights."""

import torch
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from nerfinv.field import LaplaceDensity, RadianceField, SoftplusDensity
from nerfinv.generator.decoder import PlaneDecoder
from nerfinv.generator.view import ViewHead


class BallDecoder(PlaneDecoder):
    """The decoder with the distance to a ball added: the first three plane features are the coordinates."""

    radius = 0.7

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        value, attributes = super().forward(features)
        return 0.1 * value + self.ball(features), attributes

    def value(self, features: Tensor) -> Tensor:
        return 0.1 * super().value(features) + self.ball(features)

    def ball(self, features: Tensor) -> Tensor:
        # Each coordinate lies in two of the three planes, whose mean is taken.
        return (features[:, :3] * 1.5).norm(dim=1) - self.radius


def bumpy_balls(
    count: int = 2,
    *,
    channels: int = 8,
    side: int = 16,
    palette: int = 5,
    half_side: float = 1.0,
    signed_distance: bool = True,
    view_dependent: bool = False,
    beta: float = 0.03,
    alpha: float = 0.05,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> RadianceField:
    """Scenes whose planes and networks require gradients."""
    torch.manual_seed(seed)
    planes = 0.5 * torch.randn(count, 3, channels, side, side)
    axis = torch.linspace(-half_side, half_side, side)
    along, down = axis.expand(side, side), axis[:, None].expand(side, side)
    for plane, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
        planes[:, plane, :3] = 0
        planes[:, plane, first], planes[:, plane, second] = along, down
    attributes = 6 if view_dependent else palette or 3
    decoder: nn.Module = (BallDecoder if signed_distance else PlaneDecoder)(channels, attributes, width=16)
    density = LaplaceDensity(alpha, beta) if signed_distance else SoftplusDensity()
    head = ViewHead(6, palette or 3) if view_dependent else None
    if head is not None:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.5)
    colors = torch.rand(count, palette, 3) * 2 - 1 if palette else None
    for module in (decoder, density, head):
        if module is not None:
            module.to(dtype)
    return RadianceField(
        planes.to(dtype).requires_grad_(),
        None if colors is None else colors.to(dtype).requires_grad_(),
        decoder,
        density,
        half_side,
        head,
    )


def around(count: int = 2, *, perspective: bool, seed: int = 0, dtype: torch.dtype = torch.float32) -> Camera:
    """Cameras from random sides, a little off center, whose fields require gradients."""
    rng = torch.Generator().manual_seed(seed)
    quat = rotation.random(count, rng).to(dtype).requires_grad_()
    scale = (0.6 + 0.2 * torch.rand(count, generator=rng)).to(dtype).requires_grad_()
    shift = (0.1 * torch.randn(count, 2, generator=rng)).to(dtype).requires_grad_()
    inv_focal = torch.full((count,), 0.35 if perspective else 0.0, dtype=dtype).requires_grad_()
    return Camera(quat, scale, shift, inv_focal)

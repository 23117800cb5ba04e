"""Discriminators of maps over the sphere: does this texture, on this shape, look like one of the class? (ConvMesh)

A photograph shows part of the surface only, so a real texture has holes. The texture of a fake is cut to the visible
part of a paired real one, the visible part is an input of its own, and each logit comes with the share of its cell
that is visible: the loss weighs by it. Positions are told to the convolutions by sines and cosines of longitude and
latitude.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.runtime.networks import storable
from meshinv.layers import SpectralMapConv, scaled_channels
from meshinv.mesh import UVMaps


def positional_encoding(size: int) -> Float[Tensor, "1 4 N N"]:
    """Channels cos y, sin y, cos x, sin x with y = pi i / N for row i and x = -pi + 2 pi j / N for column j."""
    steps = torch.arange(size, dtype=torch.float64) / size
    y = (math.pi * steps)[:, None].expand(size, size)
    x = (2 * math.pi * steps - math.pi)[None, :].expand(size, size)
    return torch.stack([y.cos(), y.sin(), x.cos(), x.sin()])[None].to(torch.get_default_dtype())


class MapDiscriminator(nn.Module):
    """Logits for the cells of one map: strided convolutions, then a 5x5 head plus the projection on the class
    embedding.

    Args:
        channels: of conv1, conv2, ...; all after the first halve the map.
        size: side of the maps.
        first_stride: 1 (5x5 kernel) or 2 (4x4 kernel).
    """

    positions: Float[Tensor, "1 4 N N"]

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], *, size: int, first_stride: int, num_classes: int
    ) -> None:
        super().__init__()
        self.register_buffer("positions", positional_encoding(size), persistent=False)
        self._layers = [f"conv{i + 1}" for i in range(len(channels))]
        self._head = f"conv{len(channels) + 1}"
        wide = in_channels + 4
        for name, out_channels in zip(self._layers, channels, strict=True):
            stride = first_stride if name == "conv1" else 2
            kernel = 5 if stride == 1 else 4
            self.add_module(name, SpectralMapConv(wide, out_channels, kernel, stride=stride, wrap=True, bias=True))
            wide = out_channels
        self.add_module(self._head, SpectralMapConv(wide, 1, 5, wrap=True, bias=True))
        self.projector = nn.Embedding(num_classes, wide) if num_classes else None

    def forward(
        self, maps: Float[Tensor, "B C N N"], label: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B 1 h w"]:
        features = torch.cat([maps, self.positions.to(maps.dtype).expand(len(maps), -1, -1, -1)], dim=1)
        for name in self._layers:
            features = F.leaky_relu(self.get_submodule(name)(features), 0.2)
        logits = self.get_submodule(self._head)(features)
        if self.projector is None:
            return logits
        if label is None:
            raise ValueError(f"a discriminator of {self.projector.num_embeddings} classes needs a label for each map")
        return logits + (features * self.projector(label)[..., None, None]).sum(dim=1, keepdim=True)


@storable
class UVDiscriminator(nn.Module):
    """Discriminators of the texture (d1), of shape and coarse texture (d2) and of the texture at a quarter of the
    side (d3).

    Args:
        num_classes: 0 for discriminators without classes.
        texture_size: side of the texture, mesh_size times a power of two. From 512 on the first layer of d1 halves the
            map, from 1024 on that of d3 too.
        num_scales: 2 leaves d3 out; None takes 3 from a texture of 512 on and else 2.
        width: factor on all channel counts, rounded to multiples of 8 (at least 8).
        mesh_size: side of the displacement map, to which d2 pools the texture.

    Attributes:
        scale_weights: what the losses of the scales should count: 2 to 1 for two scales from 512 on, else alike.
    """

    def __init__(
        self,
        num_classes: int = 200,
        texture_size: int = 512,
        width: float = 1.0,
        num_scales: int | None = None,
        mesh_size: int = 32,
    ) -> None:
        super().__init__()
        if texture_size % mesh_size or texture_size < 2 * mesh_size or mesh_size % 8:
            raise ValueError(
                f"texture_size {texture_size} and mesh_size {mesh_size}: need a multiple of 8 and a multiple of that"
            )
        if num_scales not in (None, 2, 3):
            raise ValueError(f"num_scales {num_scales}: there are 2 or 3 of them")
        if num_scales is None:
            num_scales = 3 if texture_size >= 512 else 2
        self.texture_size, self.mesh_size = texture_size, mesh_size
        self.scale_weights = (2.0, 1.0) if num_scales == 2 and texture_size >= 512 else (1.0,) * num_scales
        channels = tuple(scaled_channels(count, width) for count in (64, 128, 256, 512))
        self.d1 = MapDiscriminator(
            4, channels, size=texture_size, first_stride=2 if texture_size >= 512 else 1, num_classes=num_classes
        )
        self.d2 = MapDiscriminator(7, channels[:3], size=mesh_size, first_stride=1, num_classes=num_classes)
        self.d3 = None
        if num_scales == 3:
            first_stride = 2 if texture_size >= 1024 else 1
            self.d3 = MapDiscriminator(
                4, channels, size=texture_size // 4, first_stride=first_stride, num_classes=num_classes
            )

    def forward(
        self, maps: UVMaps, alpha: Float[Tensor, "B 1 T T"], label: Int[Tensor, "B"] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits [B, 1, h, w] and, of the same size, the visible share of each logit's cell, for each scale.

        Args:
            alpha: which texels are visible, in [0, 1]; the texture is multiplied by it here.
        """
        texture = torch.cat([maps.texture * alpha, alpha], dim=1)
        coarse = F.avg_pool2d(texture, self.texture_size // self.mesh_size)
        logits = [self.d1(texture, label), self.d2(torch.cat([coarse, maps.displacement], dim=1), label)]
        if self.d3 is not None:
            logits.append(self.d3(F.avg_pool2d(texture, 4), label))
        return [(scale, F.avg_pool2d(alpha, self.texture_size // scale.shape[-1])) for scale in logits]

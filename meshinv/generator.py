"""The generator of ConvMesh: a latent and a class become a texture map and a displacement map over the sphere.

Where the maps of a mirror-symmetric object are wanted, only the half between u = 1/4 and u = 3/4 is computed and then
unfolded. Every batch normalization is conditioned on the latent and the embedded class. The names of the
submodules, and so of the entries of the state dict, are those of the published checkpoints.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.runtime.networks import storable
from meshinv.layers import ConditionalBatchNorm, MapConv, SpectralMapConv, double_size, scaled_channels
from meshinv.mesh import UVMaps
from meshinv.template import average_poles, unfold

_SLOPE = 0.2


class ConditionalBlock(nn.Module):
    """Two convolutions with conditional normalization and leaky ReLU, added to a shortcut of the input."""

    def __init__(
        self, in_channels: int, out_channels: int, condition_dim: int, *, wrap: bool, clamp_variance: bool
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.conv1 = SpectralMapConv(in_channels, middle, 3, wrap=wrap)
        self.conv2 = SpectralMapConv(middle, out_channels, 3, wrap=wrap)
        self.norm1 = ConditionalBatchNorm(middle, condition_dim, clamp_variance=clamp_variance)
        self.norm2 = ConditionalBatchNorm(out_channels, condition_dim, clamp_variance=clamp_variance)
        if in_channels == out_channels:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = SpectralMapConv(in_channels, out_channels, 1, wrap=wrap)

    def forward(self, maps: Float[Tensor, "B C H W"], condition: Float[Tensor, "B E"]) -> Float[Tensor, "B D H W"]:
        branch = F.leaky_relu(self.norm1(self.conv1(maps), condition), _SLOPE)
        branch = F.leaky_relu(self.norm2(self.conv2(branch), condition), _SLOPE)
        return branch + self.shortcut(maps)


@storable
class Generator(nn.Module):
    """Class-conditional generator of texture and displacement maps.

    A fresh generator yields displacement 0, the undeformed sphere.

    Args:
        num_classes: 0 for a generator without classes; its condition is the latent alone.
        latent_dim: length of the latent and of the class embedding.
        width: factor on all channel counts, rounded to multiples of 8 (at least 8).
        texture_size: side of the texture, mesh_size times a power of two. Doublings are taken from the side of the
            trunk: from 512 on blk3b, from 256 on blk3a exist (blk3c at 1024); at 64 blk4 works at the resolution of the
            trunk and only the output of blk5 is doubled.
        symmetric: the maps are even about u = 1/4 and u = 3/4, and only half of each is computed.
        mesh_size: side of the displacement map, a multiple of 8.
        clamp_variance: see `layers.BatchNorm`.
    """

    def __init__(
        self,
        num_classes: int = 200,
        latent_dim: int = 64,
        width: float = 1.0,
        texture_size: int = 512,
        symmetric: bool = True,
        mesh_size: int = 32,
        clamp_variance: bool = False,
    ) -> None:
        super().__init__()
        sizes = [mesh_size * 2**doublings for doublings in range(1, 6)]
        if texture_size not in sizes:
            raise ValueError(f"texture_size {texture_size}: with mesh_size {mesh_size} it has to be one of {sizes}")
        if mesh_size % 8:
            raise ValueError(f"mesh_size {mesh_size} is not a multiple of 8")
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.texture_size, self.mesh_size, self.symmetric = texture_size, mesh_size, symmetric
        wrap = not symmetric
        condition_dim = 2 * latent_dim if num_classes else latent_dim
        c64, c128, c256, c512 = (scaled_channels(channels, width) for channels in (64, 128, 256, 512))

        def block(in_channels: int, out_channels: int) -> ConditionalBlock:
            return ConditionalBlock(in_channels, out_channels, condition_dim, wrap=wrap, clamp_variance=clamp_variance)

        doublings = sizes.index(texture_size) + 1
        self._num_doublings = doublings
        self._texture_blocks = [*("blk3a", "blk3b", "blk3c")[: max(doublings - 2, 0)], "blk4", "blk5"]
        self._start = (c512, mesh_size // 4, mesh_size // (8 if symmetric else 4))

        if num_classes:
            self.emb_class = nn.Embedding(num_classes, latent_dim)
        self.fc = nn.Linear(condition_dim, self._start[0] * self._start[1] * self._start[2])
        self.blk1 = block(c512, c512)
        self.blk2 = block(c512, c256)
        for name in self._texture_blocks[:-2]:
            self.add_module(name, block(c256, c256))
        self.blk4 = block(c256, c128)
        self.blk5 = block(c128, c128)
        self.blk6 = block(c128, c64)
        self.conv_final = MapConv(c64, 3, 5, wrap=wrap)
        self.blk3_mesh = block(c256, c64)
        self.conv_mesh = MapConv(c64, 3, 5, wrap=wrap)
        nn.init.zeros_(self.conv_mesh.weight)
        nn.init.zeros_(self.conv_mesh.bias)

    def condition(self, latent: Float[Tensor, "B L"], label: Int[Tensor, "B"] | None) -> Float[Tensor, "B E"]:
        """What every layer is conditioned on: the latent, followed by the embedded class where there are classes.

        Raises:
            ValueError: the generator has classes and `label` is None.
        """
        if not self.num_classes:
            return latent
        if label is None:
            raise ValueError(f"a generator of {self.num_classes} classes needs a label for each latent")
        return torch.cat([latent, self.emb_class(label)], dim=1)

    def forward(self, latent: Float[Tensor, "B L"], label: Int[Tensor, "B"] | None = None) -> UVMaps:
        """Texture in [-1, 1] and displacement in the template's tangent frames, object units, for each latent."""
        condition = self.condition(latent, label)
        trunk = self.fc(condition).view(-1, *self._start)
        trunk = double_size(self.blk1(trunk, condition))
        trunk = double_size(self.blk2(trunk, condition))
        return UVMaps(texture=self._texture(trunk, condition), displacement=self._displacement(trunk, condition))

    def _texture(self, trunk: Float[Tensor, "B C H W"], condition: Float[Tensor, "B E"]) -> Float[Tensor, "B 3 T T"]:
        maps = trunk
        for left, name in zip(range(len(self._texture_blocks), 0, -1), self._texture_blocks, strict=True):
            maps = self.get_submodule(name)(maps, condition)
            if left <= self._num_doublings:
                maps = double_size(maps)
        texture = torch.tanh(self.conv_final(F.leaky_relu(self.blk6(maps, condition), _SLOPE)))
        return unfold(texture) if self.symmetric else texture

    def _displacement(
        self, trunk: Float[Tensor, "B C H W"], condition: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B 3 M M"]:
        maps = average_poles(self.conv_mesh(F.leaky_relu(self.blk3_mesh(trunk, condition), _SLOPE)))
        return unfold(maps) if self.symmetric else maps

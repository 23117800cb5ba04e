"""The reconstruction network: a photograph becomes a texture map and a displacement map (ConvMesh, first stage).

It is trained through the renderer on single photographs and makes the pseudo ground truth from which the generator
learns. The names of the submodules are those of the published checkpoints.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from invkit.runtime.networks import storable
from meshinv.layers import BatchNorm, MapConv, double_size, scaled_channels
from meshinv.mesh import UVMaps
from meshinv.template import average_poles, unfold


class Block(nn.Module):
    """Two convolutions with normalization and ReLU, added to a shortcut of the input."""

    def __init__(self, in_channels: int, out_channels: int, *, wrap: bool) -> None:
        super().__init__()
        self.conv1 = MapConv(in_channels, in_channels, 3, wrap=wrap, bias=False)
        self.conv2 = MapConv(in_channels, out_channels, 3, wrap=wrap, bias=False)
        self.bn1 = BatchNorm(in_channels, affine=True)
        self.bn2 = BatchNorm(out_channels, affine=True)
        if in_channels == out_channels:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = MapConv(in_channels, out_channels, 1, wrap=wrap, bias=False)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        branch = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(branch))) + self.shortcut(maps)


@storable
class ReconstructionNet(nn.Module):
    """Photograph and mask to maps. A fresh network yields displacement 0, the undeformed sphere.

    Args:
        width: factor on all channel counts, rounded to multiples of 8 (at least 8).
        texture_size: side of the texture, 2 or 4 times mesh_size; at 2 blk3b_tex is not doubled.
        mesh_size: side of the displacement map, a multiple of 16.
        image_size: side of the photograph: 64, 128 or 256. The encoder has five convolutions and ends at 8x8; for
            smaller photographs its last ones do not halve.
        symmetric: the maps are even about u = 1/4 and u = 3/4, and only half of each is computed.
    """

    def __init__(
        self,
        width: float = 1.0,
        texture_size: int = 128,
        mesh_size: int = 32,
        image_size: int = 256,
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        if texture_size not in (2 * mesh_size, 4 * mesh_size):
            raise ValueError(f"texture_size {texture_size} is neither 2 nor 4 times mesh_size {mesh_size}")
        if mesh_size % 16:
            raise ValueError(f"mesh_size {mesh_size} is not a multiple of 16")
        if image_size not in (64, 128, 256):
            raise ValueError(f"image_size {image_size} is none of 64, 128, 256")
        self.texture_size, self.mesh_size, self.image_size = texture_size, mesh_size, image_size
        self.symmetric = symmetric
        wrap = not symmetric
        c64, c128, c256, c512, c1024 = (scaled_channels(channels, width) for channels in (64, 128, 256, 512, 1024))
        halvings = {64: 3, 128: 4, 256: 5}[image_size]
        strides = [2] * halvings + [1] * (5 - halvings)
        self._start = (c256, mesh_size // 8, mesh_size // (16 if symmetric else 8))

        self.conv1e = nn.Conv2d(4, c64, 5, strides[0], padding=2, bias=False)
        self.bn1e = BatchNorm(c64, affine=True)
        self.conv2e = nn.Conv2d(c64, c128, 3, strides[1], padding=1, bias=False)
        self.bn2e = BatchNorm(c128, affine=True)
        self.conv3e = nn.Conv2d(c128, c256, 3, strides[2], padding=1, bias=False)
        self.bn3e = BatchNorm(c256, affine=True)
        self.conv4e = nn.Conv2d(c256, c512, 3, strides[3], padding=1, bias=False)
        self.bn4e = BatchNorm(c512, affine=True)
        self.conv5e = nn.Conv2d(c512, c64, 3, strides[4], padding=1, bias=False)
        self.bn5e = BatchNorm(c64, affine=True)
        self.fc1e = nn.Linear(c64 * 64, c256, bias=False)
        self.bnfc1e = BatchNorm(c256, affine=True)
        self.fc3e = nn.Linear(c256, c1024, bias=False)
        self.bnfc3e = BatchNorm(c1024, affine=True)

        self.fc1_tex = nn.Linear(c1024, self._start[0] * self._start[1] * self._start[2])
        self.blk1 = Block(c256, c512, wrap=wrap)
        self.blk2 = Block(c512, c256, wrap=wrap)
        self.blk3 = Block(c256, c256, wrap=wrap)
        self.blk3b_tex = Block(c256, c256, wrap=wrap)
        self.blk4_tex = Block(c256, c128, wrap=wrap)
        self.blk5_tex = Block(c128, c64, wrap=wrap)
        self.conv_tex = MapConv(c64, 3, 5, wrap=wrap)
        self.blk4_mesh = Block(c256, c64, wrap=wrap)
        self.conv_mesh = MapConv(c64, 3, 5, wrap=wrap)
        nn.init.zeros_(self.conv_mesh.weight)
        nn.init.zeros_(self.conv_mesh.bias)

    def forward(self, image: Float[Tensor, "B 4 S S"]) -> UVMaps:
        """Texture in [-1, 1] and displacement in the template's tangent frames, object units.

        Args:
            image: the photograph in [-1, 1], set to 0 in the background, and its mask in [0, 1].

        Raises:
            ValueError: the photographs do not have the side the network was made for.
        """
        if image.shape[-1] != self.image_size:
            raise ValueError(f"photographs of side {image.shape[-1]} for a network made for {self.image_size}")
        trunk = self.fc1_tex(self._encode(image)).view(-1, *self._start)
        for block in (self.blk1, self.blk2, self.blk3):
            trunk = double_size(block(trunk))
        return UVMaps(texture=self._texture(trunk), displacement=self._displacement(trunk))

    def _encode(self, image: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B E"]:
        code = image
        for conv, norm in (
            (self.conv1e, self.bn1e),
            (self.conv2e, self.bn2e),
            (self.conv3e, self.bn3e),
            (self.conv4e, self.bn4e),
            (self.conv5e, self.bn5e),
        ):
            code = F.relu(norm(conv(code)))
        code = F.relu(self.bnfc1e(self.fc1e(code.flatten(1))))
        return F.relu(self.bnfc3e(self.fc3e(code)))

    def _texture(self, trunk: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 T T"]:
        maps = self.blk3b_tex(trunk)
        if self.texture_size == 4 * self.mesh_size:
            maps = double_size(maps)
        maps = self.blk5_tex(double_size(self.blk4_tex(maps)))
        texture = torch.tanh(self.conv_tex(F.relu(maps)))
        return unfold(texture) if self.symmetric else texture

    def _displacement(self, trunk: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 M M"]:
        maps = average_poles(self.conv_mesh(F.relu(self.blk4_mesh(trunk))))
        return unfold(maps) if self.symmetric else maps

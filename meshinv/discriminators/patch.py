"""Discriminator of pictures: does every patch of this rendering look like one of a photograph? (MeshInversion, Eq. 3)

It closes the gap that the maps leave: what is wrong only once a texture lies on a shape, and where the photographs show
nothing in UV. It is the PatchGAN of pix2pix (Isola et al. 2017): a logit for each patch of 70 x 70 pixels.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.runtime.networks import storable
from meshinv.layers import scaled_channels


class LayoutKeepingInstanceNorm(nn.InstanceNorm2d):
    """Torch answers in channels-first memory whatever it gets; the layers after it then convert back and forth."""

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        channels_last = features.is_contiguous(memory_format=torch.channels_last)
        normalized = super().forward(features)
        return normalized.contiguous(memory_format=torch.channels_last) if channels_last else normalized


@storable
class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches; 4x4 convolutions, instance normalization without weights, leaky ReLU.

    The entries of the state dict are those of the published checkpoints (`model.0.weight`, ...). Convolutions start
    with normal weights of deviation 0.02 and without bias.

    Args:
        in_channels: of the pictures.
        num_layers: strided convolutions; with 3 a logit sees 70 pixels.
        width: factor on all channel counts, rounded to multiples of 8 (at least 8).
    """

    def __init__(self, in_channels: int = 3, num_layers: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}")
        widths = [scaled_channels(64 * min(2**i, 8), width) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1), LayoutKeepingInstanceNorm(after), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.model = nn.Sequential(*layers)
        self.num_layers = num_layers

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        """The logits.

        Args:
            image: in [-1, 1], the background 0.

        Raises:
            ValueError: the picture is too small for a single logit.
        """
        needed = 3 * 2**self.num_layers
        if min(image.shape[-2:]) < needed:
            raise ValueError(
                f"a picture of {image.shape[-2]} x {image.shape[-1]} has no patch for {self.num_layers} strided "
                f"layers; it needs {needed} pixels on each side, or fewer layers"
            )
        return self.model(image)

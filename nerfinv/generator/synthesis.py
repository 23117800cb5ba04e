"""From styles to planes: the synthesis network of StyleGAN2 with skip connections.

Each layer has a style of its own. A layer's style scales its inputs; the outputs are then divided by the norm that the
scaled weights would have ("demodulation"), so one set of weights serves the whole batch in an ordinary convolution.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfinv.layers import SLOPE, EqualizedLinear, channels_last, conv_up, resample_filter, up2


class Synthesis(nn.Module):
    """Planes of `size` pixels, from 4 x 4 up.

    Args:
        size: a power of two, at least 8.
        channel_base: a layer at resolution r has channel_base / r channels, at most `max_channels`.
        noise: layers add noise, with a strength each that is learned and starts at 0.
        random_noise_in_eval: this noise is new in every call also in eval mode, as in the released code; otherwise it
            is then the layer's stored one.

    Raises:
        ValueError: `size` is not a power of two from 8 on.
    """

    def __init__(
        self,
        style_dim: int,
        out_channels: int,
        *,
        size: int = 256,
        channel_base: int = 32768,
        max_channels: int = 512,
        noise: bool = False,
        random_noise_in_eval: bool = False,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"planes of {size} pixels: their side must be a power of two from 8 on")
        self.resolutions = [2**power for power in range(2, size.bit_length())]
        self.num_styles = 2 * len(self.resolutions)
        in_channels = None
        for resolution in self.resolutions:
            width = max(1, min(channel_base // resolution, max_channels))
            block = SynthesisBlock(
                in_channels,
                width,
                out_channels,
                style_dim,
                resolution,
                noise=noise,
                random_noise_in_eval=random_noise_in_eval,
            )
            self.add_module(f"b{resolution}", block)
            in_channels = width

    def forward(self, styles: Float[Tensor, "B W S"]) -> Float[Tensor, "B C R R"]:
        """Planes in channels-last memory.

        Args:
            styles: one for each convolution in order, and one for the last output layer; the output layer of a lower
                resolution shares that of the convolution that follows.
        """
        maps = planes = None
        slot = 0
        for resolution in self.resolutions:
            block = getattr(self, f"b{resolution}")
            maps, planes = block(maps, planes, styles[:, slot : slot + block.num_convs + 1])
            slot += block.num_convs
        return planes


class SynthesisBlock(nn.Module):
    """The layers of one resolution; the first block starts from a learned constant."""

    def __init__(
        self,
        in_channels: int | None,
        width: int,
        out_channels: int,
        style_dim: int,
        resolution: int,
        *,
        noise: bool,
        random_noise_in_eval: bool,
    ) -> None:
        super().__init__()
        options = {"noise": noise, "random_noise_in_eval": random_noise_in_eval}
        if in_channels is None:
            self.const = nn.Parameter(torch.randn(width, resolution, resolution))
        else:
            self.register_buffer("taps", resample_filter(), persistent=False)
            self.conv0 = SynthesisLayer(in_channels, width, style_dim, resolution, up=True, **options)
        self.conv1 = SynthesisLayer(width, width, style_dim, resolution, **options)
        self.torgb = OutputLayer(width, out_channels, style_dim)
        self.num_convs = 1 if in_channels is None else 2

    def forward(
        self,
        maps: Float[Tensor, "B I H H"] | None,
        planes: Float[Tensor, "B C H H"] | None,
        styles: Float[Tensor, "B N S"],
    ) -> tuple[Float[Tensor, "B O R R"], Float[Tensor, "B C R R"]]:
        """Maps, and planes with this block's share added."""
        *inner, last = styles.unbind(dim=1)
        if maps is None:
            maps = channels_last(self.const.expand(len(styles), *self.const.shape))
        else:
            maps = self.conv0(maps, inner[0])
        maps = self.conv1(maps, inner[-1])
        added = self.torgb(maps, last)
        return maps, added if planes is None else up2(planes, self.taps) + added


class SynthesisLayer(nn.Module):
    """A 3 x 3 convolution modulated by a style, noise, sqrt(2) times a leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        resolution: int,
        *,
        up: bool = False,
        noise: bool = False,
        random_noise_in_eval: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        if up:
            self.register_buffer("taps", resample_filter(), persistent=False)
        self.affine = EqualizedLinear(style_dim, in_channels, bias_init=1.0)
        self.up, self.noise, self.random_noise_in_eval = up, noise, random_noise_in_eval

    def forward(self, maps: Float[Tensor, "B I H H"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B O R R"]:
        scale = self.affine(style)
        demodulation = torch.rsqrt(F.linear(scale.square(), self.weight.square().sum(dim=(2, 3))) + 1e-8)
        maps = maps * scale[..., None, None]
        maps = conv_up(maps, self.weight, self.taps) if self.up else F.conv2d(maps, self.weight, padding=1)
        gain = math.sqrt(2)  # before the leaky ReLU, which lets it pass
        maps = maps * (demodulation * gain).to(maps.dtype)[..., None, None]
        if self.noise:
            maps = maps + (self._noise(maps) * (self.noise_strength * gain)).to(maps.dtype)
        maps = maps + (self.bias * gain).to(maps.dtype)[:, None, None]
        return F.leaky_relu(maps, SLOPE, inplace=True)

    def _noise(self, maps: Tensor) -> Float[Tensor, "*B R R"]:
        if self.training or self.random_noise_in_eval:
            like = self.noise_const
            return torch.randn(len(maps), 1, *like.shape, dtype=like.dtype, device=like.device)
        return self.noise_const


class OutputLayer(nn.Module):
    """A 1 x 1 convolution modulated by a style, without demodulation."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = EqualizedLinear(style_dim, in_channels, bias_init=1.0)
        self.gain = 1 / math.sqrt(in_channels)

    def forward(self, maps: Float[Tensor, "B I R R"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B O R R"]:
        scale = self.affine(style) * self.gain
        # There is no norm to divide by, so the style goes into the weights: 1 x 1 ones are few.
        weight = self.weight[None, :, :, 0, 0] * scale[:, None]
        height, width = maps.shape[2:]
        pixels = maps.permute(0, 2, 3, 1).flatten(1, 2) @ weight.transpose(1, 2) + self.bias.to(maps.dtype)
        return pixels.view(len(maps), height, width, -1).permute(0, 3, 1, 2)

"""Layers of StyleGAN2 in plain torch.

Stored weights are of unit variance and are scaled when used ("equalized" learning rates), so that the steps of the
optimizer mean the same in every layer; gains are folded into the weights, never applied to activations. All of it is
built from operations that can be differentiated any number of times, as gradient penalties and path lengths need.

Resampling is the depthwise 4 x 4 filter of StyleGAN2. Networks keep their maps in channels-last memory, in which that
filter costs a fraction of what it does otherwise.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2


class EqualizedLinear(nn.Module):
    """x W^T m / sqrt(in) + m b with W stored as N(0, 1) / m.

    Args:
        lr_mult: m; below 1 the layer learns more slowly.
        activate: sqrt(2) times a leaky ReLU follows.
        bias_init: what the effective bias starts at; None is no bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lr_mult: float = 1.0,
        activate: bool = False,
        bias_init: float | None = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mult)
        self.bias = None if bias_init is None else nn.Parameter(torch.full([out_features], bias_init / lr_mult))
        self.activate = activate
        self.bias_gain = lr_mult * (math.sqrt(2) if activate else 1.0)
        self.weight_gain = self.bias_gain / math.sqrt(in_features)

    def forward(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        bias = self.bias
        if bias is not None and self.bias_gain != 1:
            bias = bias * self.bias_gain
        outputs = F.linear(inputs, self.weight * self.weight_gain, bias)
        return F.leaky_relu(outputs, SLOPE) if self.activate else outputs


class EqualizedConv2d(nn.Module):
    """Convolution with W / sqrt(in k^2) that keeps the size, or halves it after smoothing.

    Args:
        activate: sqrt(2) times a leaky ReLU follows; the bias is multiplied too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        down: bool = False,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.down, self.activate = down, activate
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        if down:
            self.register_buffer("taps", resample_filter(), persistent=False)

    def forward(self, maps: Float[Tensor, "B I H W"], gain: float = 1.0) -> Float[Tensor, "B O P Q"]:
        """The maps convolved.

        Args:
            gain: multiplies the result.
        """
        gain = gain * (math.sqrt(2) if self.activate else 1.0)
        weight = self.weight * (self.weight_gain * gain)
        bias = None if self.bias is None else self.bias * gain
        if self.down:
            maps = conv_down(maps, weight, self.taps, bias)
        else:
            maps = F.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2)
        return F.leaky_relu(maps, SLOPE, inplace=True) if self.activate else maps


def resample_filter() -> Float[Tensor, "4 4"]:
    """The outer product of [1, 3, 3, 1] / 8 with itself, which every resampling here takes."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(taps, taps)


def smooth(maps: Float[Tensor, "B C H W"], taps: Float[Tensor, "4 4"], padding: int) -> Float[Tensor, "B C P Q"]:
    """Every channel filtered, zeros around it: the side grows by 2 * padding - 3."""
    return _Smooth.apply(maps, taps, padding)


def up2(maps: Float[Tensor, "B C H W"], taps: Float[Tensor, "4 4"]) -> Float[Tensor, "B C P Q"]:
    """Twice the size."""
    return _Spread.apply(maps, taps * 4)


def down2(maps: Float[Tensor, "B C H W"], taps: Float[Tensor, "4 4"]) -> Float[Tensor, "B C P Q"]:
    """Half the size."""
    return _Gather.apply(maps, taps)


class _Smooth(torch.autograd.Function):
    """As an operation of its own: what is differentiated twice as a convolution gets a gradient for the filter too, a
    convolution for every channel alone, and nobody asks for it. The filter is symmetric, so its transpose is itself."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, taps: Tensor, padding: int) -> Tensor:
        ctx.taps, ctx.padding = taps, padding
        return F.conv2d(maps, _each(taps, maps), padding=padding, groups=maps.shape[1])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Smooth.apply(grad, ctx.taps, 3 - ctx.padding), None, None


class _Spread(torch.autograd.Function):
    """Zeros between the pixels, then the filter."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, taps: Tensor) -> Tensor:
        ctx.taps = taps
        return F.conv_transpose2d(maps, _each(taps, maps), stride=2, padding=1, groups=maps.shape[1])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.taps), None


class _Gather(torch.autograd.Function):
    """The filter at every other pixel: the transpose of `_Spread`."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, taps: Tensor) -> Tensor:
        ctx.taps = taps
        return F.conv2d(maps, _each(taps, maps), stride=2, padding=1, groups=maps.shape[1])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.taps), None


def conv_up(
    maps: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I 3 3"], taps: Float[Tensor, "4 4"]
) -> Float[Tensor, "B O P Q"]:
    """Maps of twice the size: zeros between the pixels, convolution, then the filter.

    The convolution meets every pixel once in this order; filtered maps would cost it four times as much.
    """
    return smooth(F.conv_transpose2d(maps, weight.transpose(0, 1), stride=2), taps * 4, padding=1)


def conv_down(
    maps: Float[Tensor, "B I H W"],
    weight: Float[Tensor, "O I K K"],
    taps: Float[Tensor, "4 4"],
    bias: Float[Tensor, "O"] | None = None,
) -> Float[Tensor, "B O P Q"]:
    """Maps of half the size: the filter, then the convolution at the pixels that are left; K is 3 or 1."""
    if weight.shape[-1] == 1:
        return F.conv2d(down2(maps, taps), weight, bias)
    return F.conv2d(smooth(maps, taps, padding=2), weight, bias, stride=2)


def channels_last(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return maps.contiguous(memory_format=torch.channels_last)


def _each(taps: Tensor, maps: Tensor) -> Tensor:
    return taps.to(maps.dtype).expand(maps.shape[1], 1, 4, 4)

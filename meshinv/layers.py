"""Layers of the networks whose pictures are maps over the sphere (ConvMesh).

A map's rows run from pole to pole and its columns around the equator, so rows are padded with zeros and columns
either wrap around or, where the map is half of a mirror-symmetric one, repeat their border. Batch statistics are
pooled over all ranks: several processes then train as one process with the joint batch would. Spectral normalization
is written out here because its state (`weight_orig`, `weight_u`, `weight_v`) is part of the published checkpoints'
layout and because averaged copies of a generator hold vectors that are not unit length, which must be used as they are.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from invkit.precision import widened


def scaled_channels(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8 and at least 8."""
    return max(8, 8 * round(channels * width / 8))


def pad_columns(maps: Float[Tensor, "B C H W"], amount: int, *, wrap: bool) -> Float[Tensor, "B C H P"]:
    """The maps with `amount` more columns on either side.

    Args:
        wrap: columns go around the sphere; otherwise the border column is repeated (which is even reflection for one
            column).
    """
    return _PadColumns.apply(maps, amount, wrap) if amount else maps


class _PadColumns(torch.autograd.Function):
    """As an operation of its own: the gradient of slices that are joined makes a picture of zeros for each slice and
    adds them all up, which in channels-last memory takes as long as a convolution."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, amount: int, wrap: bool) -> Tensor:
        ctx.amount, ctx.wrap = amount, wrap
        if not wrap:
            return F.pad(maps, (amount, amount, 0, 0), mode="replicate")
        # The same as mode="circular", at half its cost.
        return torch.cat([maps[..., -amount:], maps, maps[..., :amount]], dim=-1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _FoldColumns.apply(grad, ctx.amount, ctx.wrap), None, None


class _FoldColumns(torch.autograd.Function):
    """The gradient of `_PadColumns`: what the columns outside got is added to the columns they are copies of."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, padded: Tensor, amount: int, wrap: bool) -> Tensor:
        ctx.amount, ctx.wrap = amount, wrap
        before, after = padded[..., :amount], padded[..., -amount:]
        maps = padded[..., amount:-amount].clone()
        if wrap:
            maps[..., -amount:] += before
            maps[..., :amount] += after
        else:
            maps[..., :1] += before.sum(-1, keepdim=True)
            maps[..., -1:] += after.sum(-1, keepdim=True)
        return maps

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _PadColumns.apply(grad, ctx.amount, ctx.wrap), None, None


def double_size(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C P Q"]:
    """Every pixel as a square of four."""
    return F.interpolate(maps, scale_factor=2, mode="nearest")


class MapConv(nn.Conv2d):
    """Convolution over a map: rows padded with zeros, columns as in `pad_columns`, by (kernel - 1) // 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, wrap: bool, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=((kernel - 1) // 2, 0), bias=bias)
        self.wrap = wrap

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D P Q"]:
        return super().forward(pad_columns(maps, self.padding[0], wrap=self.wrap))


class SpectralMapConv(nn.Module):
    """`MapConv` whose kernel, as a matrix [out, in k k], is divided by an estimate of its largest singular value.

    One power iteration for each forward pass in training. In evaluation the stored vectors are used as they are,
    without normalizing them: sigma = u' W v. The gradient flows through sigma with u and v held fixed.
    """

    weight_u: Float[Tensor, "D"]
    weight_v: Float[Tensor, "N"]

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, wrap: bool, bias: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.wrap = stride, (kernel - 1) // 2, wrap
        fan_in = in_channels * kernel * kernel
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-1, 1) / math.sqrt(fan_in)) if bias else None
        self.weight_orig = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight_orig, a=math.sqrt(5))
        self.register_buffer("weight_u", F.normalize(torch.randn(out_channels), dim=0, eps=1e-12))
        self.register_buffer("weight_v", torch.zeros(fan_in))
        # A fresh network is usable in evaluation mode only if its vectors know the kernel already.
        for _ in range(5):
            self._iterate()

    @torch.no_grad()
    def _iterate(self) -> tuple[Float[Tensor, "D"], Float[Tensor, "N"]]:
        """One power iteration; the new vectors are stored and returned as tensors that later iterations leave alone."""
        matrix = self.weight_orig.flatten(1)
        v = F.normalize(matrix.T @ self.weight_u, dim=0, eps=1e-12)
        u = F.normalize(matrix @ v, dim=0, eps=1e-12)
        self.weight_u.copy_(u)
        self.weight_v.copy_(v)
        return u, v

    def sigma(self) -> Float[Tensor, ""]:
        """The estimate of the largest singular value; advances the power iteration in training mode."""
        # Half precision would cost the estimate its use, and matrix-vector products are cheap.
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            u, v = self._iterate() if self.training else (self.weight_u, self.weight_v)
            return u @ (self.weight_orig.flatten(1) @ v)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D P Q"]:
        padded = pad_columns(maps, self.padding, wrap=self.wrap)
        return F.conv2d(padded, self.weight_orig / self.sigma(), self.bias, self.stride, (self.padding, 0))


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks. Every rank's loss depends on every rank's term, so the gradient is summed too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone()
        torch.distributed.all_reduce(total)
        return total


def _several_ranks() -> bool:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


class BatchNorm(nn.Module):
    """Batch normalization with statistics over the joint batch of all ranks (eps 1e-5, momentum 0.1).

    In training mode every rank has to run it, for the ranks wait for each other; within `alone` none does. The running
    variance is the unbiased estimate. `num_batches_tracked` stays 0: it is there for the layout of checkpoints, and a
    fixed momentum needs no count.

    Args:
        affine: with a gain and an offset of its own.
        clamp_variance: several ranks together divide by sqrt(max(var, eps)) instead of sqrt(var + eps), as the
            synchronized normalization of the released MeshInversion code does.
    """

    running_mean: Float[Tensor, "C"]
    running_var: Float[Tensor, "C"]
    eps = 1e-5
    momentum = 0.1

    def __init__(self, channels: int, *, affine: bool, clamp_variance: bool = False) -> None:
        super().__init__()
        self.clamp_variance, self.alone = clamp_variance, False
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, values: Float[Tensor, "B C *P"]) -> Float[Tensor, "B C *P"]:
        if self.training and not self.alone and _several_ranks():
            return self._forward_jointly(values)
        return F.batch_norm(
            values,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _forward_jointly(self, values: Float[Tensor, "B C *P"]) -> Float[Tensor, "B C *P"]:
        channels = values.shape[1]
        axes = [axis for axis in range(values.ndim) if axis != 1]
        exact = widened(values)
        local_var, local_mean = torch.var_mean(exact, axes, correction=0)
        # In float64 the moments of the ranks can be merged by plain sums without loss.
        mean, var = local_mean.double(), local_var.double()
        count = mean.new_tensor([values.numel() // channels])
        total = _SumOverRanks.apply(torch.cat([count, count * mean, count * (var + mean.square())]))
        count, mean = total[0], total[1 : channels + 1] / total[0]
        var = (total[channels + 1 :] / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        shape = (1, channels) + (1,) * (values.ndim - 2)
        safe = var.clamp_min(self.eps) if self.clamp_variance else var + self.eps
        white = (exact - mean.to(exact).view(shape)) * safe.rsqrt().to(exact).view(shape)
        if self.weight is not None:
            white = torch.addcmul(self.bias.view(shape), white, self.weight.view(shape))
        return white.to(values.dtype)


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """While open, the network's batches are normalized by this rank's part alone, and no other rank has to run it."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.alone = True
    try:
        yield
    finally:
        for norm in norms:
            norm.alone = False


class ConditionalBatchNorm(nn.Module):
    """Batch normalization whose gain and offset are linear in a condition: BN(x) (1 + gamma(e)) + beta(e)."""

    def __init__(self, channels: int, condition_dim: int, *, clamp_variance: bool = False) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, affine=False, clamp_variance=clamp_variance)
        self.fc_gamma = nn.Linear(condition_dim, channels)
        self.fc_beta = nn.Linear(condition_dim, channels)

    def forward(self, maps: Float[Tensor, "B C H W"], condition: Float[Tensor, "B E"]) -> Float[Tensor, "B C H W"]:
        gain = 1 + self.fc_gamma(condition)
        return torch.addcmul(self.fc_beta(condition)[..., None, None], self.norm(maps), gain[..., None, None])

"""SegFormer: the Mix Transformer (MiT) and the decode head of linear maps, the encoder's backbone.

Bootstrapped Radiance Field Inversion, section 3.2. Attributes have the names of the published weights (`patch_embed1`,
`block1`, `norm1`, ..., `linear_fuse`), so that a file of weights is loaded as it is. Tokens are [B, N, C] and maps are
views of them, which lie in memory as channels-last maps do: nothing is copied between the two.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from invkit.runtime.networks import storable

STAGES = (1, 2, 3, 4)
STRIDE = 4
"""Pixels of the image per pixel of the finest map."""

SIDE = 32
"""Image sides are multiples of this, so that every stage halves its map exactly."""

Tokens = Float[Tensor, "B N C"]


def to_tokens(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
    return maps.flatten(2).transpose(1, 2)


def to_map(tokens: Float[Tensor, "B N C"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    return tokens.transpose(1, 2).unflatten(2, size)


class DropPath(nn.Module):
    """While training, drops a whole residual branch of an image with probability `rate` and scales up the others.

    Draws from torch's default generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tokens) -> Tokens:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * kept / keep


class PatchEmbedding(nn.Module):
    """Overlapping patches as normalized tokens, `stride` times fewer along each side."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> tuple[Tokens, tuple[int, int]]:
        """Tokens and the size of the map that they are of."""
        maps = self.proj(maps)
        height, width = maps.shape[-2:]
        return self.norm(to_tokens(maps)), (height, width)


class Attention(nn.Module):
    """Self-attention whose keys and values come from a map that is `reduction` times coarser along each side."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr = self.norm = None
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tokens, size: tuple[int, int]) -> Tokens:
        source = tokens
        if self.sr is not None:
            source = self.norm(to_tokens(self.sr(to_map(tokens, size))))
        key, value = (self._heads(part) for part in self.kv(source).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(self._heads(self.q(tokens)), key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Float[Tensor, "B M C"]) -> Float[Tensor, "B heads M D"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """3 x 3 convolution of each channel; its zero padding is all that tells the network where a token is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tokens, size: tuple[int, int]) -> Tokens:
        return to_tokens(self.dwconv(to_map(tokens, size)))


class MixFeedForward(nn.Module):
    """The transformer's two linear layers, with a depth-wise convolution and GELU in between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tokens, size: tuple[int, int]) -> Tokens:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class Block(nn.Module):
    """One layer of the transformer, pre-normalized."""

    def __init__(self, dim: int, num_heads: int, reduction: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFeedForward(dim, expansion * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tokens, size: tuple[int, int]) -> Tokens:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size))


class MixTransformer(nn.Module):
    """Maps at 1/4, 1/8, 1/16 and 1/32 of the image's side. The defaults are MiT-B5.

    Args:
        dims, depths, num_heads: channels, blocks and attention heads of the four stages.
        reductions: how much coarser the keys' map is along each side than the queries'.
        expansion: hidden channels of a feed-forward part over its channels.
        drop_path: drop rate of the last block; the blocks before it get rates that rise linearly from 0.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 6, 40, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        expansion: int = 4,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        for name, values in {"dims": dims, "depths": depths, "num_heads": num_heads, "reductions": reductions}.items():
            if len(values) != len(STAGES) or min(values) < 1:
                raise ValueError(f"{name} must be four numbers of at least 1, not {list(values)}")
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise ValueError(f"{dim} channels (dims) cannot be shared equally by {heads} heads (num_heads)")
        self.dims = tuple(dims)
        last = max(sum(depths) - 1, 1)
        rates = (drop_path * index / last for index in count())
        sources = (3, *dims)
        for stage, dim, depth, heads, reduction in zip(STAGES, dims, depths, num_heads, reductions, strict=True):
            kernel, stride = (7, STRIDE) if stage == 1 else (3, 2)
            embedding = PatchEmbedding(sources[stage - 1], dim, kernel, stride)
            blocks = [Block(dim, heads, reduction, expansion, next(rates)) for _ in range(depth)]
            setattr(self, f"patch_embed{stage}", embedding)
            setattr(self, f"block{stage}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage}", nn.LayerNorm(dim, eps=1e-6))
        self.apply(initialize)

    def stages(self, image: Float[Tensor, "B 3 H W"]) -> Iterator[tuple[Tokens, tuple[int, int]]]:
        """The tokens of each stage and the size of their map.

        Args:
            image: in [-1, 1], background included.

        Raises:
            ValueError: a side of the image is not a multiple of `SIDE`.
        """
        if any(side % SIDE or side < SIDE for side in image.shape[-2:]):
            raise ValueError(f"images of {list(image.shape[-2:])} pixels; sides must be multiples of {SIDE}")
        maps = image
        for stage in STAGES:
            tokens, size = getattr(self, f"patch_embed{stage}")(maps)
            for block in getattr(self, f"block{stage}"):
                tokens = block(tokens, size)
            tokens = getattr(self, f"norm{stage}")(tokens)
            yield tokens, size
            maps = to_map(tokens, size)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of the four stages; see `stages`."""
        return [to_map(tokens, size) for tokens, size in self.stages(image)]


class TokenLinear(nn.Module):
    """A linear map of tokens."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, width)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B N D"]:
        return self.proj(tokens)


@storable
class SegFormer(MixTransformer):
    """One map of features at 1/4 of the image's side, made of all stages.

    The decode head is linear throughout: unlike the published SegFormer's it has no normalization and no ReLU.

    Args:
        width: channels that all stages are brought to, and of their joint map.
        out_channels: of the features.
        options: of `MixTransformer`.
    """

    def __init__(self, *, width: int = 768, out_channels: int = 512, **options: Sequence[int] | int | float) -> None:
        super().__init__(**options)
        self.out_channels = out_channels
        head = [TokenLinear(dim, width) for dim in self.dims]
        for stage in reversed(STAGES):
            setattr(self, f"linear_c{stage}", head[stage - 1])
        self.linear_fuse = nn.Conv2d(len(STAGES) * width, width, 1)
        self.linear_pred = nn.Conv2d(width, out_channels, 1)
        for module in (*head, self.linear_fuse, self.linear_pred):
            module.apply(initialize)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The features; see `stages` for the image."""
        # The published head enlarges each stage's map, joins all four and fuses them. As both are linear, and the
        # weights of the enlargement sum to 1, fusing first and adding up is the same for a fraction of the work.
        shares = self.linear_fuse.weight.flatten(1).chunk(len(STAGES), dim=1)
        fused, finest = 0, None
        for stage, share, (tokens, size) in zip(STAGES, reversed(shares), self.stages(image), strict=True):
            part = to_map(F.linear(getattr(self, f"linear_c{stage}")(tokens), share), size)
            finest = finest or size
            same = size == finest
            fused = fused + (part if same else F.interpolate(part, finest, mode="bilinear", align_corners=False))
        return self.linear_pred(fused + self.linear_fuse.bias.view(1, -1, 1, 1))


def initialize(module: nn.Module) -> None:
    """SegFormer's rule for fresh weights: convolutions He-normal in their outputs, linear layers N(0, 0.02^2)."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# ---- Sizes -------------------------------------------------------------------------------------------------------


def tiny(width: int = 64, out_channels: int = 64, drop_path: float = 0.0) -> SegFormer:
    """A backbone for CPUs: narrower than B0, 2.2 million numbers."""
    dims, num_heads = (32, 64, 128, 192), (1, 2, 4, 6)
    return SegFormer(
        width=width, out_channels=out_channels, dims=dims, depths=(2, 2, 2, 2), num_heads=num_heads, drop_path=drop_path
    )


def mit_b0(width: int = 256, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels, dims=(32, 64, 160, 256), depths=(2, 2, 2, 2))


def mit_b1(width: int = 256, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels, depths=(2, 2, 2, 2))


def mit_b2(width: int = 768, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels, depths=(3, 4, 6, 3))


def mit_b3(width: int = 768, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels, depths=(3, 4, 18, 3))


def mit_b4(width: int = 768, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels, depths=(3, 8, 27, 3))


def mit_b5(width: int = 768, out_channels: int = 512) -> SegFormer:
    return SegFormer(width=width, out_channels=out_channels)

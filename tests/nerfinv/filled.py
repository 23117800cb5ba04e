"""Networks filled with known numbers, and the inputs with which the released code was asked about them.

Every entry is drawn from the name that it has in the released checkpoints, so that the networks can be filled here as
the released ones were. Names are told here once more, apart from nerfinv.compat, which is tested with them.
"""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from nerfinv.discriminator import Discriminator
from nerfinv.generator.generator import Generator

RELEASED_NAMES = (
    (r"^mapping\.class_embedding\.", "class_embedding."),
    (r"^mapping\.", "mapping_network.backbone."),
    (r"^synthesis\.", "synthesis_network."),
    (r"^decoder\.hidden\.", "decoder.net.0."),
    (r"^decoder\.output\.", "decoder.net.2."),
    (r"^view_head\.", "viewdir_mapper."),
    (r"^palette\.", "texture_mapper."),
    (r"^density\.", ""),
)
"""Ours and theirs, of the generator."""


def normal(name: str, shape: Sequence[int]) -> Tensor:
    """Draws from N(0, 1) that the name seeds."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(draws, dtype=np.float32))


def value(name: str, shape: Sequence[int]) -> Tensor:
    """What the entry of that released name is filled with."""
    if name in ("alpha", "beta"):
        return torch.full(tuple(shape), {"alpha": 1.0, "beta": 0.1}[name])
    if name.endswith("noise_strength"):
        return torch.zeros(tuple(shape))
    draws = normal(name, shape)
    if "mapping" in name.partition(".")[0] or ".mapping." in name:
        return draws * (10 if name.endswith("bias") else 100)
    if name.endswith(".affine.bias") or re.match(r"viewdir_mapper\.norm\d\.weight", name):
        return 1 + 0.1 * draws
    return 0.1 * draws if name.endswith("bias") else draws


def fill(network: nn.Module, names: Sequence[tuple[str, str]], prefix: str = "") -> nn.Module:
    """The network in eval mode, its entries filled by the names that the replacements make of ours."""
    for ours, entry in network.state_dict().items():
        released = ours
        for pattern, replacement in names:
            released = re.sub(pattern, replacement, released)
        entry.copy_(value(prefix + released, entry.shape))
    return network.eval()


def filled_generator(**options) -> Generator:
    return fill(Generator(**options), RELEASED_NAMES)


def filled_discriminator(**options) -> Discriminator:
    return fill(Discriminator(**options), (), prefix="backbone.")


def latents() -> Tensor:
    """Two latents, [2, 512]."""
    index = torch.arange(512, dtype=torch.float64)
    return (1.3 * torch.sin(0.1 * index + torch.arange(2)[:, None])).float()


def images(*shape: int, phase: float = 0.0) -> Tensor:
    """Waves, [B, C, H, W]."""
    b, c, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return torch.from_numpy(np.sin(0.05 * x * (c + 1) + 0.07 * y + 0.9 * b + 0.4 * c + phase).astype(np.float32))


def cameras(*, perspective: bool, flipped: bool = True) -> Camera:
    """Two cameras of the same two poses.

    Args:
        flipped: the pose is of OpenCV's axes, as in this project; otherwise of OpenGL's, as in the released code's
            un-flipped data sets, where (q, t) means rotation diag(1, -1, -1) R_q and shift (-t_x, t_y).
    """
    quat = F.normalize(torch.tensor([[0.8, 0.2, -0.4, 0.4], [0.5, 0.5, 0.6, -0.4]]), dim=-1)
    z0 = torch.tensor([0.3, -1.0])
    shift = torch.tensor([[0.1, -0.2], [0.0, 0.15]])
    scale = torch.tensor([0.7, 0.55])
    if not flipped:
        quat = rotation.multiply(torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(2, 4), quat)
        shift = shift * torch.tensor([-1.0, 1.0])
    return Camera.from_augmented(z0 if perspective else None, shift, scale, quat)


def stats(values: Tensor) -> Tensor:
    """Mean, population standard deviation, minimum, maximum."""
    values = values.detach().double()
    return torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])


def assert_stats(values: Tensor, expected: Sequence[float], tolerance: float = 1e-4) -> None:
    """All four to within `tolerance` of the standard deviation."""
    expected = torch.tensor(expected, dtype=torch.float64)
    assert torch.all((stats(values) - expected).abs() <= tolerance * expected[1]), stats(values)


def assert_numbers(values: Tensor, expected: Sequence[float], tolerance: float = 1e-4) -> None:
    """Every number to within `tolerance` of the largest."""
    expected = torch.tensor(expected, dtype=torch.float64)
    found = values.detach().double().reshape(expected.shape)
    assert torch.all((found - expected).abs() <= tolerance * expected.abs().max()), found


def parameter_count(network: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in network.parameters())

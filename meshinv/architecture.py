"""Which network published tensors are of: constructors' arguments read off names and shapes."""

from typing import Any

from torch import Tensor

from invkit.runtime.conversion import (
    State,
    shape_of,
)
from meshinv.discriminators.patch import PatchDiscriminator
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.reconstruction import ReconstructionNet

BUILDABLE = {
    Generator: {"width": (1.0,), "mesh_size": (32,), "texture_size": (128, 256, 512, 1024)},
    UVDiscriminator: {"width": (1.0,), "mesh_size": (32,), "texture_size": (128, 256, 512, 1024)},
    PatchDiscriminator: {},
    ReconstructionNet: {"width": (1.0,), "mesh_size": (32,), "texture_size": (128,), "image_size": (256,)},
}
"""What the released code can be asked for, where ours can be asked for more."""


def architecture(state: State) -> dict[str, Any]:
    """The keywords of the `Generator` that these published tensors are of.

    Raises:
        ValueError: an entry that tells is missing, or the generator is of a kind that we do not have.
    """
    for name in state:
        if name.startswith("att."):
            raise ValueError(f"has {name}: it is conditioned on text, and there is no such generator here")
        if name.startswith("emb") and name != "emb_class.weight":
            raise ValueError(
                f"has the embedding {name}: it is conditioned on more than classes (such as colors), and there is no "
                "such generator here"
            )
    channels = shape_of(state, "blk1.conv1.weight_orig", 4)[0]
    rows, condition_dim = shape_of(state, "fc.weight", 2)
    num_classes, latent_dim = 0, condition_dim
    if "emb_class.weight" in state:
        num_classes, embedding_dim = shape_of(state, "emb_class.weight", 2)
        latent_dim = condition_dim - embedding_dim
        if latent_dim != embedding_dim:
            raise ValueError(
                f"emb_class.weight has {embedding_dim} columns and fc.weight leaves {latent_dim} to the latent; "
                "in our generators the two are equal"
            )
    if rows not in (32 * channels, 64 * channels):
        raise ValueError(f"fc.weight has {rows} rows, not {channels} x 8 x 4 (symmetric) or {channels} x 8 x 8")
    blocks = {name.partition(".")[0] for name in state}
    doublings = max((i for i, name in enumerate(("blk3a", "blk3b", "blk3c"), start=1) if name in blocks), default=0)
    return {
        "num_classes": num_classes,
        "latent_dim": latent_dim,
        "width": channels / 512,
        "texture_size": 128 * 2**doublings,
        "symmetric": rows == 32 * channels,
    }


def discriminator_architecture(state: State, texture_size: int) -> dict[str, Any]:
    """The keywords of the `UVDiscriminator` that these published tensors are of.

    Args:
        texture_size: the generator's; convolutions do not tell it.

    Raises:
        ValueError: an entry that tells is missing, or the discriminator is of a kind that we do not have.
    """
    if "d2.conv5.weight_orig" in state:
        raise ValueError("d2 judges the texture alone (texture_only), and there is no such discriminator here")
    classes = "d1.projector.weight"
    return {
        "num_classes": shape_of(state, classes, 2)[0] if classes in state else 0,
        "texture_size": texture_size,
        "width": shape_of(state, "d1.conv4.weight_orig", 4)[0] / 512,
        "num_scales": 3 if any(name.startswith("d3.") for name in state) else 2,
    }


def image_discriminator_architecture(state: State) -> dict[str, Any]:
    """The keywords of the `PatchDiscriminator` that these published tensors are of.

    Raises:
        ValueError: an entry that tells is missing.
    """
    channels, in_channels = shape_of(state, "model.0.weight", 4)[:2]
    kernels = [name for name, value in state.items() if isinstance(value, Tensor) and value.ndim == 4]
    return {"in_channels": in_channels, "num_layers": len(kernels) - 2, "width": channels / 64}


def reconstruction_architecture(state: State) -> dict[str, Any]:
    """The keywords of the `ReconstructionNet` that these published tensors are of.

    Raises:
        ValueError: an entry that tells is missing.
    """
    channels = shape_of(state, "blk1.conv2.weight", 4)[0]
    rows = shape_of(state, "fc1_tex.weight", 2)[0]
    if rows not in (4 * channels, 8 * channels):
        raise ValueError(f"fc1_tex.weight has {rows} rows, not {channels // 2} x 4 x 2 (symmetric) or x 4 x 4")
    return {"width": channels / 512, "texture_size": 128, "symmetric": rows == 4 * channels}

"""The released encoder of bootstrapped radiance-field inversion as ours, and ours in its layout.

Every tensor is copied as it is; what differs is names:

    released (each with the prefix "module.")       ours
    model_coord: backbone.*                         modules.encoder: backbone.*
    backbone_latent.*                               latent_backbone.*
    post.{0, 2, 4}                                  canonical_head.{0, 2, 4}
    w_regressor_pre.0                               latent_head.conv
    w_regressor_post.{0, 2}                         latent_head.{fc1, fc2}
    iteration, lr                                   step, released.lr
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from invkit.runtime.conversion import State, keywords_of, node_of
from nerfinv.encoder.encoder import Encoder
from nerfinv.encoder.pretrained import check_entries
from nerfinv.encoder.segformer import STAGES, SegFormer

NAMES = {
    "backbone.": "backbone.",
    "backbone_latent.": "latent_backbone.",
    "post.": "canonical_head.",
    "w_regressor_pre.0.": "latent_head.conv.",
    "w_regressor_post.0.": "latent_head.fc1.",
    "w_regressor_post.2.": "latent_head.fc2.",
}
"""Beginnings of released names, and what they are in `Encoder`."""

RELEASED = {
    "dims": [64, 128, 320, 512],
    "depths": [3, 6, 40, 3],
    "num_heads": [1, 2, 5, 8],
    "reductions": [8, 4, 2, 1],
    "width": 768,
    "out_channels": 512,
}
"""The one backbone that the released code builds, on which its heads, too, are 512 wide."""

PREFIX = "module."


def architecture(state: State) -> dict[str, Any]:
    """The keywords of the `Encoder` that these tensors, in our names, are of; those of a backbone are a node.

    What shapes do not tell, the number of attention heads, is that of all published backbones.

    Raises:
        ValueError: an entry that tells is missing.
    """
    keywords = {"backbone": _backbone(state, "backbone.")}
    if any(name.startswith("latent_backbone.") for name in state):
        keywords["latent_backbone"] = _backbone(state, "latent_backbone.")
    keywords["head_width"] = _shape(state, "canonical_head.0.weight")[0]
    keywords["latent_dim"] = _shape(state, "latent_head.fc2.weight")[0]
    return keywords


def from_released(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Our checkpoint of a released one: step, config.task.encoder, modules.encoder, released.lr.

    Raises:
        ValueError: there is no encoder in it, or an entry is missing, unknown or of the wrong shape.
    """
    if "modules" in payload:
        raise ValueError("this is one of our checkpoints and no released one")
    stored = payload.get("model_coord")
    if not isinstance(stored, Mapping):
        raise ValueError(f"has no networks named model_coord, only {sorted(map(str, payload))}: it is no encoder")
    state = {}
    for name, value in stored.items():
        bare = str(name).removeprefix(PREFIX)
        begin = next((begin for begin in NAMES if bare.startswith(begin)), None)
        if begin is None:
            raise ValueError(f"model_coord: has {name}, which no released encoder has")
        state[NAMES[begin] + bare.removeprefix(begin)] = value
    keywords = architecture(state)
    iteration = payload.get("iteration", 0)
    if not isinstance(iteration, int):
        raise ValueError(f"iteration is {iteration!r} and not a whole number")
    lr = payload.get("lr")
    return {
        "step": iteration,
        "config": {"task": {"encoder": node_of(Encoder, keywords)}},
        "modules": {"encoder": _fitting(state, keywords)},
        "released": {"lr": lr if isinstance(lr, float) else None},
    }


def to_released(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The released layout of one of our checkpoints, in float32, for use but not for further training.

    Raises:
        ValueError: there is no encoder in it, or one that the released code cannot build.
    """
    modules = payload.get("modules")
    if not isinstance(modules, Mapping) or "encoder" not in modules:
        raise ValueError("this is not one of our checkpoints of an encoder: it has no modules.encoder")
    state = modules["encoder"]
    keywords = architecture(state)
    described = payload.get("config", {}).get("task", {}).get("encoder", {})
    for backbone in ("backbone", "latent_backbone"):
        if backbone in keywords:
            # The number of heads is known to the configuration alone.
            found = {**keywords[backbone], "num_heads": (described.get(backbone) or {}).get("num_heads", [1, 2, 5, 8])}
            for field, value in RELEASED.items():
                if found[field] != value:
                    raise ValueError(
                        f"task.encoder.{backbone}.{field}={found[field]}: the released code builds {value} only"
                    )
    for field in ("head_width", "latent_dim"):
        if keywords[field] != 512:
            raise ValueError(f"task.encoder.{field}={keywords[field]}: the released code builds 512 only")
    fitting = _fitting(state, keywords)
    released = {
        f"{PREFIX}{theirs}{name.removeprefix(ours)}": value.float()
        for theirs, ours in NAMES.items()
        for name, value in fitting.items()
        if name.startswith(ours)
    }
    lr = payload.get("released", {}).get("lr")
    return {"model_coord": released, "iteration": payload.get("step", 0), "lr": 6e-6 if lr is None else lr}


def _backbone(state: State, prefix: str) -> dict[str, Any]:
    """The node of a `SegFormer`."""
    depths, reductions, dims = [], [], []
    for stage in STAGES:
        block = f"{prefix}block{stage}."
        depths.append(len({name.removeprefix(block).partition(".")[0] for name in state if name.startswith(block)}))
        dims.append(_shape(state, f"{prefix}patch_embed{stage}.proj.weight")[0])
        reduced = f"{block}0.attn.sr.weight"
        reductions.append(_shape(state, reduced)[2] if reduced in state else 1)
    out_channels, width = _shape(state, f"{prefix}linear_pred.weight")[:2]
    keywords = {"dims": dims, "depths": depths, "reductions": reductions, "width": width, "out_channels": out_channels}
    return node_of(SegFormer, keywords)


def _fitting(state: State, keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """The entries in the network's order, the very tensors.

    Raises:
        ValueError: they are not those of the network.
    """
    with torch.device("meta"):
        backbones = {
            name: SegFormer(**keywords_of(node)) for name, node in keywords.items() if isinstance(node, Mapping)
        }
        network = Encoder(**{**keywords, **backbones})
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    check_entries(state, shapes)
    return {name: state[name].detach() for name in shapes}


def _shape(state: State, name: str) -> tuple[int, ...]:
    if not isinstance(state.get(name), Tensor) or state[name].ndim not in (2, 4):
        raise ValueError(f"lacks {name}, or it is no matrix or kernel")
    return tuple(state[name].shape)

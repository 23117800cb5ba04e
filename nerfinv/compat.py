"""The released generators and discriminators of bootstrapped radiance-field inversion as ours, and ours as theirs.

Every tensor is copied as it is, for weights are stored here, too, before they are scaled. What differs are names, and
the filters of resampling, which the released files repeat for every layer and which are no weights here:

    released                                            ours
    model                                               modules.generator
    model_ema                                           modules.generator_ema, every name with the prefix "module."
      alpha, beta                                         density.*
      class_embedding.*                                   mapping.class_embedding.*
      mapping_network.backbone.*                          mapping.*
      synthesis_network.*                                 synthesis.*
      decoder.net.{0, 2}.*                                decoder.{hidden, output}.*
      viewdir_mapper.*                                    view_head.*
      texture_mapper.*                                    palette.*
    discriminator: backbone.*                           modules.discriminator: *
    iteration                                           step
    lr_g, augment_p, ppl_running_avg, best_fid, ...     released.*

The arguments of the constructors are read off the shapes and stored as `config.task`, so that
`invkit.runtime.run.load_module` rebuilds the networks. Two are not in the shapes: how large the box is, which has to be
said, and whether there is noise, for which its strengths are asked. Optimizers and random states are left behind.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from invkit.runtime.conversion import (
    State,
    bare,
    buildable,
    check_fits,
    keywords_of,
    modules_and_task,
    node_of,
    shape_of,
    speaking_of,
)
from nerfinv.discriminator import POSE_SIZE, Discriminator
from nerfinv.generator.generator import Generator
from nerfinv.layers import resample_filter

SCENE_RANGES = {"ShapeNet": 0.55, "CARLA": 3.0, "CUB": 2.0, "Pascal3D+ and ImageNet": 1.4}
"""Half sides of the released generators' boxes."""

BUILDABLE = {
    Generator: {
        "style_dim": (512,),
        "plane_size": (256,),
        "plane_channels": (32,),
        "channel_base": (32768,),
        "max_channels": (512,),
        "decoder_width": (64,),
    },
    Discriminator: {
        "size": (128,),
        "channels": (3, 4),
        "channel_base": (32768,),
        "max_channels": (512,),
        "group_size": (4,),
    },
}
"""What the released code can be asked for, where ours can be asked for more."""

# Beginnings of names, ours and theirs; the first that fits counts.
_NAMES = {
    Generator: (
        ("density.", ""),
        ("mapping.class_embedding.", "class_embedding."),
        ("mapping.", "mapping_network.backbone."),
        ("synthesis.", "synthesis_network."),
        ("decoder.hidden.", "decoder.net.0."),
        ("decoder.output.", "decoder.net.2."),
        ("view_head.", "viewdir_mapper."),
        ("palette.", "texture_mapper."),
    ),
    Discriminator: (
        ("mapping.class_embedding.", "label_embedding."),
        ("", "backbone."),
    ),
}
# What a layer's filter follows in the released order, and the first layer of a block, which its block's precedes.
_FILTER_FOLLOWS = re.compile(
    r"(synthesis_network\.b4)\.const|(.*\.b\d+\.(?:fromrgb|conv\d?))\.bias|(backbone\.b\d+\.skip)\.weight"
)
_FILTER_PRECEDES = re.compile(r"(synthesis_network\.b\d+)\.conv0\.weight")

_NUMBERS = ("lr_g", "lr_d", "best_fid", "fid_untrunc", "augment_p", "ppl_running_avg")


def recognizes(payload: Mapping[str, Any]) -> bool:
    """Whether this looks like a released file of generators or discriminators of this method."""
    discriminator = payload.get("discriminator")
    judges = isinstance(discriminator, Mapping) and any("backbone." in str(name) for name in discriminator)
    return "model" in payload or "model_ema" in payload or judges


def architecture(state: State) -> dict[str, Any]:
    """The keywords of the `Generator` that these published tensors are of; the box is not among them.

    Raises:
        ValueError: an entry that tells is missing, or the generator is of a kind that we do not have.
    """
    if any(name.startswith("emb.") for name in state):
        raise ValueError("has emb.*: it starts from an image (use_encoder), and there is no such generator here")
    style_dim, inputs = shape_of(state, "mapping_network.backbone.fc0.weight", 2)
    num_classes, embedded = 0, 0
    if "class_embedding.weight" in state:
        num_classes, embedded = shape_of(state, "class_embedding.weight", 2)
    size = _largest_block(state, "synthesis_network.b")
    widths = {side: shape_of(state, f"synthesis_network.b{side}.conv1.weight", 4)[0] for side in (4, size)}
    decoder_width, plane_channels = shape_of(state, "decoder.net.0.weight", 2)
    values = "texture_mapper.fc_values.weight"
    strengths = [value for name, value in state.items() if name.endswith(".noise_strength")]
    return {
        "latent_dim": inputs - embedded,
        "style_dim": style_dim,
        "palette_size": shape_of(state, values, 2)[0] // 3 if values in state else 0,
        "signed_distance": "beta" in state,
        "view_dependent": any(name.startswith("viewdir_mapper.") for name in state),
        "noise": any(isinstance(value, Tensor) and bool((value != 0).any()) for value in strengths),
        "num_classes": num_classes,
        "plane_size": size,
        "plane_channels": plane_channels,
        "channel_base": widths[size] * size,
        "max_channels": widths[4],
        "decoder_width": decoder_width,
    }


def discriminator_architecture(state: State) -> dict[str, Any]:
    """The keywords of the `Discriminator` that these published tensors are of.

    Raises:
        ValueError: an entry that tells is missing, or the discriminator is of a kind that we do not have.
    """
    size = _largest_block(state, "backbone.b")
    width, channels = shape_of(state, f"backbone.b{size}.fromrgb.weight", 4)[:2]
    condition = "backbone.mapping.fc0.weight"
    num_classes = 0
    if "label_embedding.weight" in state:
        num_classes = shape_of(state, "label_embedding.weight", 2)[0]
    max_channels = shape_of(state, "backbone.b4.fc.weight", 2)[0]
    if condition in state:
        inputs = shape_of(state, condition, 2)[1]
        expected = POSE_SIZE + (max_channels if num_classes else 0)
        if inputs != expected:
            raise ValueError(
                f"{condition} has {inputs} columns and not {expected}: it is conditioned on more than poses and "
                "classes (such as an image, use_encoder), and there is no such discriminator here"
            )
    return {
        "size": size,
        "channels": channels,
        "conditional": condition in state,
        "num_classes": num_classes,
        "channel_base": width * size,
        "max_channels": max_channels,
    }


def from_released(
    payload: Mapping[str, Any], *, scene_range: float | None = None, random_noise_in_eval: bool = True
) -> dict[str, Any]:
    """Our checkpoint of a released one: step, config.task, modules, released.

    Args:
        scene_range: half side of the box, which released files do not tell; see `SCENE_RANGES`.
        random_noise_in_eval: where the generator has noise, it is new in every call, as in the released code.

    Raises:
        ValueError: an entry is missing, unknown or of the wrong shape, a network is of a kind that we do not have, or
            `scene_range` is None and there is a generator.
    """
    if "modules" in payload:
        raise ValueError("this is one of our checkpoints; --to-released converts it to the released layout")
    entries = {"model": ("generator", ""), "model_ema": ("generator_ema", "module.")}
    if not {*entries, "discriminator"} & payload.keys():
        raise ValueError(f"has neither model, model_ema nor discriminator, only {sorted(map(str, payload))}")
    task, modules = {}, {}
    for entry, (name, prefix) in entries.items():
        if entry not in payload:
            continue
        with speaking_of(entry):
            state = bare(payload[entry])
            if "generator" not in task:
                task["generator"] = node_of(Generator, _in_its_box(state, scene_range, random_noise_in_eval))
            fitting = _ours(state, Generator, keywords_of(task["generator"]))
        modules[name] = {f"{prefix}{key}": value for key, value in fitting.items()}
    if "discriminator" in payload:
        with speaking_of("discriminator"):
            # Files written by earlier versions of this package call it as the generator's.
            embedding = re.compile(r".*embedding\.weight")
            stored = bare(payload["discriminator"])
            state = {embedding.sub("label_embedding.weight", name): value for name, value in stored.items()}
            keywords = discriminator_architecture(state)
            modules["discriminator"] = _ours(state, Discriminator, keywords)
        task["discriminator"] = node_of(Discriminator, keywords)
    iteration = _number(payload.get("iteration", 0), "iteration")
    if not isinstance(iteration, int):
        raise ValueError(f"iteration is {iteration!r} and not a whole number")
    numbers = {name: _number(payload[name], name) for name in _NUMBERS if payload.get(name) is not None}
    return {"step": iteration, "config": {"task": task}, "modules": modules, "released": numbers}


def to_released(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The released layout of one of our checkpoints, in float32: networks, iteration and what the file once told.

    The released code can render and invert with such a generator, but not go on training: its optimizers are missing.

    Raises:
        ValueError: there is no network of the method in it, or one that the released code cannot build; the field is
            named.
    """
    modules, task = modules_and_task(payload)
    kinds = {
        "generator": ("model", "generator", Generator),
        "generator_ema": ("model_ema", "generator", Generator),
        "discriminator": ("discriminator", "discriminator", Discriminator),
    }
    if not kinds.keys() & modules.keys():
        raise ValueError(f"holds no generator, generator_ema or discriminator, only {sorted(modules)}")
    released = {}
    for name, (entry, key, network) in kinds.items():
        if name in modules:
            keywords = buildable(task, key, network, BUILDABLE[network])
            with speaking_of(name):
                released[entry] = _theirs(bare(modules[name]), network, keywords)
    return {**released, **payload.get("released", {}), "iteration": payload.get("step", 0)}


# ---- One network -------------------------------------------------------------------------------------------------


def _in_its_box(state: State, scene_range: float | None, random_noise_in_eval: bool) -> dict[str, Any]:
    """`architecture` with what shapes do not tell."""
    keywords = architecture(state)
    if scene_range is None:
        known = ", ".join(f"{value} for {name}" for name, value in SCENE_RANGES.items())
        raise ValueError(
            f"the file does not store the size of the scene; give --scene-range; the released ones are: {known}"
        )
    return {
        **keywords,
        "scene_range": float(scene_range),
        "random_noise_in_eval": keywords["noise"] and random_noise_in_eval,
    }


def _ours(state: State, network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """The published tensors under our names and in our order.

    Raises:
        ValueError: they are not those of the network, or it resamples with another filter.
    """
    for name, value in state.items():
        if name.endswith("resample_filter") and not _is_our_filter(value):
            raise ValueError(f"{name} is not the filter [1, 3, 3, 1], with which networks here resample")
    weights = {name: value for name, value in state.items() if not name.endswith("resample_filter")}
    layout = _layout(network, keywords)
    names = {_released_name(ours, network): ours for ours in layout}
    check_fits(weights, {name: layout[ours] for name, ours in names.items()}, network, keywords)
    return {ours: weights[name].detach() for name, ours in names.items()}


def _theirs(state: State, network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """Our tensors under the published names and in the published order, filters in between."""
    layout = _layout(network, keywords)
    check_fits(state, layout, network, keywords)
    released = {}
    for ours in layout:
        name = _released_name(ours, network)
        if first := _FILTER_PRECEDES.fullmatch(name):
            released[f"{first[1]}.resample_filter"] = resample_filter()
        released[name] = state[ours].detach().float()
        if last := _FILTER_FOLLOWS.fullmatch(name):
            layer = next(found for found in last.groups() if found)
            released[f"{layer}.resample_filter"] = resample_filter()
    return released


def _released_name(name: str, network: type[nn.Module]) -> str:
    ours, theirs = next(pair for pair in _NAMES[network] if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def _layout(network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """The network's entries without values, on the meta device."""
    with torch.device("meta"):
        return network(**keywords).state_dict()


# ---- Values ------------------------------------------------------------------------------------------------------


def _largest_block(state: State, prefix: str) -> int:
    """The highest resolution that there are layers for."""
    sides = [int(found[1]) for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))]
    if not sides:
        raise ValueError(f"lacks {prefix}*, the layers of its resolutions")
    return max(sides)


def _is_our_filter(value: Any) -> bool:
    ours = resample_filter()
    return isinstance(value, Tensor) and value.shape == ours.shape and torch.allclose(value.to(ours), ours, atol=1e-6)


def _number(value: Any, name: str) -> float | int:
    """A number that a file holds as such or in a tensor of one."""
    found = value.item() if hasattr(value, "item") else value
    if not isinstance(found, int | float):
        raise ValueError(f"{name} is {value!r} and not a number")
    return found

"""The released checkpoints of MeshInversion and ConvMesh as ours, and ours in their layout.

Our networks have the published names and shapes, so every tensor is copied as it is. That includes the vectors of
spectral normalization: in a running average they are not of unit length, and the network was trained to be used with
just these, so nothing here normalizes or estimates them again. What differs is around the tensors:

    released                                            ours
    generator                                           modules.generator
    generator_running_avg                               modules.generator_ema, every name with the prefix "module."
    discriminator                                       modules.discriminator
    patchD (not in ConvMesh's files)                    modules.image_discriminator
    iteration                                           step
    epoch; "self.args" (ConvMesh: "args")               released.epoch, released.args
    ConvMesh, stage 1: generator                        modules.network
    ConvMesh, stage 1: dataset_params.ds_scale [N, 1],  modules.corrections.scale [N],
        .ds_translation [N, 2], .ds_z0 [N, 1]               .shift [N, 2], .z0 [N]

The arguments of the constructors are read off the shapes and stored as `config.task`, so that
`invkit.runtime.run.load_module` rebuilds the networks. Optimizers and logged curves are left behind in both directions.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from invkit.runtime.conversion import (
    State,
    bare,
    buildable,
    check_fits,
    modules_and_task,
    node_of,
    shape_of,
    speaking_of,
)
from meshinv.architecture import (
    BUILDABLE,
    architecture,
    discriminator_architecture,
    image_discriminator_architecture,
    reconstruction_architecture,
)
from meshinv.discriminators.patch import PatchDiscriminator
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.pseudo_truth import CameraCorrections
from meshinv.reconstruction import ReconstructionNet

# Arguments of a training whose networks have more inputs or other outputs than ours.
_NOT_HERE = ("conditional_text", "conditional_color", "conditional_encoding", "texture_only")


def from_released(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Our checkpoint of a released one: step, config.task, modules, released.{epoch, args}.

    Args:
        payload: of the GAN, of which evaluation-only files hold `generator_running_avg` alone, or of ConvMesh's first
            stage.

    Raises:
        ValueError: an entry is missing, unknown or of the wrong shape, or a network is of a kind that we do not have.
    """
    if "modules" in payload:
        raise ValueError("this is one of our checkpoints; --to-released converts it to the released layout")
    arguments = released_arguments(payload)
    for name in _NOT_HERE:
        if arguments.get(name):
            raise ValueError(f"was trained with {name}={arguments[name]!r}, and there is no such network here")
    states = {
        entry: bare(payload[entry], entry)
        for entry in ("generator", "generator_running_avg", "discriminator", "patchD", "dataset_params")
        if entry in payload
    }
    networks = _from_stage_1 if "conv1e.weight" in states.get("generator", {}) else _from_gan
    task, modules = networks(states)
    return {
        "step": _count(payload, "iteration"),
        "config": {"task": task},
        "modules": modules,
        "released": {"epoch": _count(payload, "epoch"), "args": arguments},
    }


def to_released(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The released layout of one of our checkpoints, in float32: networks, epoch, iteration and the arguments.

    The released code can draw from such networks and compare them, but not go on training: its optimizers are missing.
    Where the checkpoint was not itself converted, the epoch, which it does not know, is 0 and the arguments are those
    that describe the networks.

    Raises:
        ValueError: there is no network of the method in it, or one that the released code cannot build; the field is
            named.
    """
    modules, task = modules_and_task(payload)
    if "network" in modules:
        released, arguments, key = *_to_stage_1(task, modules), "args"
    else:
        released, arguments, key = *_to_gan(task, modules), "self.args"
    about = payload.get("released", {"epoch": 0, "args": arguments})
    return {**released, "epoch": about["epoch"], "iteration": payload.get("step", 0), key: about["args"] or arguments}


def released_arguments(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The training's arguments as a released file stores them, in plain values; empty where it stores none."""
    arguments = payload.get("self.args", payload.get("args", {}))
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the training arguments are a {type(arguments).__name__} and not a dictionary")
    return _plain(arguments)


# ---- From the released layout ------------------------------------------------------------------------------------


def _from_gan(states: Mapping[str, State]) -> tuple[dict[str, Any], dict[str, State]]:
    """config.task and modules."""
    generators = {
        "generator": ("generator", ""),
        "generator_running_avg": ("generator_ema", "module."),
    }
    first = next((entry for entry in generators if entry in states), None)
    if first is None:
        raise ValueError(f"has neither generator nor generator_running_avg, only {sorted(states) or 'other entries'}")
    with speaking_of(first):
        keywords = architecture(states[first])
    task, modules = {"generator": node_of(Generator, keywords)}, {}
    for entry, (name, prefix) in generators.items():
        if entry in states:
            with speaking_of(entry):
                fitting = _fitting(states[entry], Generator, keywords)
            modules[name] = {f"{prefix}{key}": value for key, value in fitting.items()}
    if "discriminator" in states:
        with speaking_of("discriminator"):
            state = states["discriminator"]
            keywords = discriminator_architecture(state, keywords["texture_size"])
            modules["discriminator"] = _fitting(state, UVDiscriminator, keywords)
        task["discriminator"] = node_of(UVDiscriminator, keywords)
    if "patchD" in states:
        with speaking_of("patchD"):
            keywords = image_discriminator_architecture(states["patchD"])
            modules["image_discriminator"] = _fitting(states["patchD"], PatchDiscriminator, keywords)
        task["image_discriminator"] = node_of(PatchDiscriminator, keywords)
    return task, modules


def _from_stage_1(states: Mapping[str, State]) -> tuple[dict[str, Any], dict[str, State]]:
    """config.task and modules."""
    with speaking_of("generator"):
        keywords = reconstruction_architecture(states["generator"])
        modules = {"network": _fitting(states["generator"], ReconstructionNet, keywords)}
    task = {"network": node_of(ReconstructionNet, keywords)}
    if "dataset_params" in states:
        with speaking_of("dataset_params"):
            table = states["dataset_params"]
            count = shape_of(table, "ds_scale", 2)[0]
            names = {"ds_scale": "scale", "ds_translation": "shift", "ds_z0": "z0"}
            corrections = {names.get(name, name): value for name, value in table.items()}
            for name in {"ds_scale", "ds_z0"} & table.keys():
                if shape_of(table, name, 2)[1] == 1:
                    corrections[names[name]] = table[name][:, 0]
            keywords = {"num_images": count, "perspective": "z0" in corrections}
            modules["corrections"] = _fitting(corrections, CameraCorrections, keywords)
        task["corrections"] = node_of(CameraCorrections, keywords)
    return task, modules


# ---- To the released layout --------------------------------------------------------------------------------------


def _to_gan(task: Mapping[str, Any], modules: Mapping[str, State]) -> tuple[dict[str, State], dict[str, Any]]:
    """Networks and the arguments that describe them."""
    if not {"generator", "generator_ema"} & modules.keys():
        raise ValueError(f"holds no generator or generator_ema, only {sorted(modules)}")
    kinds = {
        "generator": ("generator", "generator", Generator),
        "generator_ema": ("generator_running_avg", "generator", Generator),
        "discriminator": ("discriminator", "discriminator", UVDiscriminator),
        "image_discriminator": ("patchD", "image_discriminator", PatchDiscriminator),
    }
    released, keywords = {}, {}
    for name, (entry, key, network) in kinds.items():
        if name in modules:
            keywords[key] = buildable(task, key, network, BUILDABLE[network])
            released[entry] = _released_state(modules[name], name, network, keywords[key])
    made = keywords["generator"]
    if made["num_classes"] and made["latent_dim"] != 64:
        raise ValueError(
            f"task.generator.latent_dim={made['latent_dim']}: the released code embeds classes in 64 numbers"
        )
    arguments = {
        "texture_resolution": made["texture_size"],
        "mesh_resolution": 32,
        "symmetric_g": made["symmetric"],
        "conditional_class": made["num_classes"] > 0,
        "n_classes": [made["num_classes"]],
        "latent_dim": made["latent_dim"],
        "norm_g": "syncbatch",
    }
    if judge := keywords.get("discriminator"):
        for field in ("texture_size", "num_classes"):
            if judge[field] != made[field]:
                raise ValueError(
                    f"task.discriminator.{field}={judge[field]} and task.generator.{field}={made[field]}: the released "
                    "code builds both alike"
                )
        three = judge["num_scales"] == 3 or (judge["num_scales"] is None and judge["texture_size"] >= 512)
        arguments |= {"norm_d": "none", "num_discriminators": 3 if three else 2}
    if "patchD" in released:
        read = image_discriminator_architecture(released["patchD"])
        doubling = _layout(PatchDiscriminator, read)
        if any(value.shape != doubling[name].shape for name, value in released["patchD"].items()):
            raise ValueError(
                f"task.image_discriminator.width={keywords['image_discriminator']['width']}: its layers do not double "
                "in width, as all of the released code's do"
            )
        ndf = round(64 * read["width"])
        arguments |= {"input_nc": read["in_channels"], "ndf": ndf, "n_layers_D": read["num_layers"], "norm": "instance"}
        arguments["netD"] = "basic" if read["num_layers"] == 3 else "n_layers"
    return released, arguments


def _to_stage_1(task: Mapping[str, Any], modules: Mapping[str, State]) -> tuple[dict[str, State], dict[str, Any]]:
    """Networks and the arguments that describe them."""
    keywords = buildable(task, "network", ReconstructionNet, BUILDABLE[ReconstructionNet])
    released = {"generator": _released_state(modules["network"], "network", ReconstructionNet, keywords)}
    perspective = False
    if "corrections" in modules:
        # A run of ours builds the corrections from its data, so its configuration does not describe them.
        with speaking_of("corrections"):
            count, perspective = shape_of(modules["corrections"], "scale", 1)[0], "z0" in modules["corrections"]
        state = _released_state(
            modules["corrections"], "corrections", CameraCorrections, {"num_images": count, "perspective": perspective}
        )
        released["dataset_params"] = {
            {"scale": "ds_scale", "shift": "ds_translation", "z0": "ds_z0"}[name]: value.view(count, -1)
            for name, value in state.items()
        }
    arguments = {
        "texture_resolution": 128,
        "mesh_resolution": 32,
        "image_resolution": 256,
        "symmetric": keywords["symmetric"],
        "optimize_deltas": "corrections" in modules,
        "optimize_z0": perspective,
    }
    return released, arguments


def _released_state(
    state: State, name: str, network: type[nn.Module], keywords: Mapping[str, Any]
) -> dict[str, Shaped[Tensor, "..."]]:
    with speaking_of(name):
        fitting = _fitting(bare(state, name), network, keywords)
    return {key: value.float() if value.is_floating_point() else value for key, value in fitting.items()}


# ---- Both --------------------------------------------------------------------------------------------------------


def _layout(network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """The network's entries without values, on the meta device."""
    return _layout_of(network, tuple(sorted(keywords.items())))


@functools.lru_cache(maxsize=16)
def _layout_of(network: type[nn.Module], keywords: tuple[tuple[str, Any], ...]) -> dict[str, Shaped[Tensor, "..."]]:
    # Built on the CPU, as it is quicker than on the meta device; nobody's random numbers are used up.
    with torch.random.fork_rng(devices=[]):
        state = network(**dict(keywords)).state_dict()
    return {name: value.to("meta") for name, value in state.items()}


def _fitting(state: State, network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    """The entries in the network's order, the very tensors. A count of batches, which nothing uses, may be missing.

    Raises:
        ValueError: they are not those of the network.
    """
    layout = _layout(network, keywords)
    counts = [name for name in layout if name.endswith("num_batches_tracked")]
    state = {**{name: torch.zeros((), dtype=torch.int64) for name in counts}, **state}
    check_fits(state, layout, network, keywords)
    return {name: state[name].detach() for name in layout}


def _count(payload: Mapping[str, Any], name: str) -> int:
    """The number under that name; 0 where there is none."""
    value = _plain(payload.get(name, 0))
    if not isinstance(value, int):
        raise ValueError(f"{name} is {value!r} and not a whole number")
    return value


def _plain(value: Any) -> Any:
    """The value in what our checkpoints may hold; anything else as text."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key if isinstance(key, int | str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value if value is None or isinstance(value, bool | int | float | str | bytes | Tensor) else str(value)

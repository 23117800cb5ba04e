"""What converting checkpoints from and to the layouts of other projects takes: descriptions and checks of networks.

A file may hold anything, so every function here says what is wrong in a ValueError that names the entry.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

State = Mapping[str, Any]
"""Names and tensors of one network; values are checked, for a file may hold anything."""


def node_of(network: type[nn.Module], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The network as a configuration describes it, for `invkit.runtime.run.load_module` to build."""
    return {"_target_": f"{network.__module__}.{network.__qualname__}", **keywords}


def keywords_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a node of a configuration tells the constructor."""
    return {key: value for key, value in node.items() if not key.startswith("_")}


def modules_and_task(payload: Mapping[str, Any]) -> tuple[State, Any]:
    """States by name and the stored `config.task`, {} where there is none, of one of our checkpoints.

    Raises:
        ValueError: it is none.
    """
    modules, config = payload.get("modules"), payload.get("config")
    if not isinstance(modules, Mapping) or not isinstance(config, Mapping):
        raise ValueError("this is not one of our checkpoints: it has no modules and config")
    return modules, config.get("task", {})


def buildable(
    task: Mapping[str, Any], name: str, network: type[nn.Module], limits: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """All keywords of task.<name>, given or default.

    Args:
        limits: by keyword, what the released code can be asked for, where ours can be asked for more.

    Raises:
        ValueError: it is another network, or one that the released code cannot build.
    """
    node, target = task.get(name), node_of(network, {})["_target_"]
    if not isinstance(node, Mapping) or node.get("_target_") != target:
        found = node.get("_target_") if isinstance(node, Mapping) else node
        raise ValueError(f"task.{name} of its stored configuration is {found}; the released code has only {target}")
    defaults = {parameter.name: parameter.default for parameter in inspect.signature(network).parameters.values()}
    keywords = {**defaults, **keywords_of(node)}
    for field, allowed in limits.items():
        if keywords[field] not in allowed:
            listed = " or ".join(map(str, allowed))
            raise ValueError(f"task.{name}.{field}={keywords[field]}: the released code builds {listed} only")
    return keywords


def bare(state: Any, entry: str = "") -> dict[str, Any]:
    """The state without the prefix that DataParallel and running averages put before every name.

    Args:
        entry: where it is from, for the message; not needed inside `speaking_of`.

    Raises:
        ValueError: it is no dictionary with names for keys.
    """
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{entry} is not a dictionary of named tensors".lstrip())
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def shape_of(state: State, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of an entry that tells how the network is built.

    Raises:
        ValueError: it is missing or no tensor of `ndim` dimensions.
    """
    if name not in state:
        raise ValueError(f"lacks {name}")
    if not isinstance(state[name], Tensor) or state[name].ndim != ndim:
        found = list(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
        raise ValueError(f"{name} is {found} and not a tensor of {ndim} dimensions")
    return tuple(state[name].shape)


def check_fits(
    state: State, layout: Mapping[str, Tensor], network: type[nn.Module], keywords: Mapping[str, Any]
) -> None:
    """Check that the state has just the entries of the network.

    Args:
        layout: the network's entries, on any device; their values do not matter.
        keywords: what the network was built with, for the messages.

    Raises:
        ValueError: an entry is missing, unknown, of another shape, or a whole number and not of floating point (or the
            other way round).
    """
    described = f"{network.__name__}({', '.join(f'{key}={value}' for key, value in keywords.items())})"
    if missing := [name for name in layout if name not in state]:
        raise ValueError(f"lacks {first_of(missing)}; the other entries are those of {described}")
    if unknown := [name for name in state if name not in layout]:
        raise ValueError(f"has {first_of(unknown)}, which {described} does not have")
    for name, expected in layout.items():
        value = state[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__} and not a tensor")
        if value.shape != expected.shape:
            raise ValueError(f"{name} is {list(value.shape)} and not {list(expected.shape)}, as in {described}")
        if value.is_floating_point() != expected.is_floating_point():
            kind = "of floating point" if expected.is_floating_point() else "a whole number"
            raise ValueError(f"{name} is {value.dtype} and not {kind}")


def first_of(names: list[str]) -> str:
    """The first name and how many there are beside it, for a message; at least one name is given."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextmanager
def speaking_of(entry: str) -> Iterator[None]:
    """Puts the entry's name before what a ValueError says of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from None

"""Networks that stored configurations describe. A checkpoint may be somebody else's file.

So it may name networks alone, and only those that are marked for it, with plain numbers, text and lists as arguments.
All of it is checked before any of it is built. It is first built without memory, so that what does not fit the stored
weights, which have their size in the file, never asks for any.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from invkit.runtime.conversion import bare, check_fits, keywords_of, modules_and_task

Network = TypeVar("Network", bound=type[nn.Module])

MAX_NUMBER = 2**16
"""Of arguments: more than any size or count of a network."""
MAX_LENGTH = 64
"""Of lists among them, and of text."""
MAX_DEPTH = 4
"""Of networks and lists in one another."""
ROOM = 2**26
"""Numbers that a network may hold beside its weights, such as positions."""

_MARKED: set[type[nn.Module]] = set()


def storable(network: Network) -> Network:
    """Marks a class of networks that checkpoints may name: building one only makes numbers, of sizes it is told."""
    _MARKED.add(network)
    return network


def rebuilt(
    payload: Mapping[str, Any], name: str, state: str, locate: Callable[[Any, str], Callable[..., Any]]
) -> nn.Module:
    """The network task.<name> of a checkpoint's stored configuration, with the weights stored as `state`.

    Args:
        locate: the class that a name stands for.

    Raises:
        ValueError: the checkpoint has no such network or weights, they do not fit each other, or the configuration
            names anything that is not marked as `storable`.
    """
    states, task = modules_and_task(payload)
    if not isinstance(task, Mapping) or not isinstance(task.get(name), Mapping):
        there = ", ".join(sorted(map(str, task))) if isinstance(task, Mapping) else "nothing"
        raise ValueError(f"its stored configuration has no network task.{name}, only {there}")
    if state not in states:
        raise ValueError(f"no weights named {state}, only {', '.join(sorted(map(str, states)))}")
    weights = bare(states[state], state)
    plan = _planned(task[name], f"task.{name}", locate)
    try:
        with torch.device("meta"), _no_larger_than(weights):
            layout = plan.build().state_dict()
        check_fits(weights, layout, plan.network, keywords_of(task[name]))
    except ValueError as error:
        raise ValueError(f"the weights {state} do not fit task.{name}: {error}") from error
    except (TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        first = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"task.{name} cannot be built as its stored configuration says: {first}") from error
    network = plan.build()
    network.load_state_dict(weights, strict=True)
    return network


@dataclass(frozen=True)
class _Plan:
    """A network that may be built: its class, and arguments, among which are others."""

    network: type[nn.Module]
    keywords: Mapping[str, Any]

    def build(self) -> nn.Module:
        return self.network(**{key: _built(value) for key, value in self.keywords.items()})


def _built(value: Any) -> Any:
    if isinstance(value, _Plan):
        return value.build()
    return [_built(entry) for entry in value] if isinstance(value, list) else value


def _planned(node: Mapping[str, Any], where: str, locate: Callable[[Any, str], Callable[..., Any]]) -> _Plan:
    """What a node describes, all of it checked.

    Raises:
        ValueError: it is not allowed; the message names the key.
    """
    target = node.get("_target_")
    network = locate(target, where)
    if network not in _MARKED:
        raise ValueError(f"{where}: {target} is no network that a checkpoint may name; nothing of it was built")
    known = _arguments(network)
    for key in node:
        if key != "_target_" and key not in known:
            raise ValueError(f"{where}: {network.__name__} has no argument {str(key)[:MAX_LENGTH]!r}")
    return _Plan(network, {k: _plain(v, f"{where}.{k}", locate, 1) for k, v in node.items() if k != "_target_"})


def _arguments(network: type) -> set[str]:
    """Names of the arguments of a class; what it takes for its base is its base's."""
    parameters = inspect.signature(network.__init__).parameters.values()
    own = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} - {"self"}
    passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return own | _arguments(network.__base__) if passes_on and network.__base__ is not object else own


def _plain(value: Any, where: str, locate: Callable[[Any, str], Callable[..., Any]], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping) and "_target_" in value:
        plan = _planned(value, where, locate) if depth < MAX_DEPTH else None
        if plan is None:
            raise ValueError(f"{where} is nested deeper than {MAX_DEPTH}")
        return plan
    if isinstance(value, list | tuple) and len(value) <= MAX_LENGTH:
        return [_plain(entry, f"{where}[{index}]", locate, depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, str) and len(value) <= MAX_LENGTH:
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:  # NaN is not
        return value
    told = value if isinstance(value, int | float) else f"a {type(value).__name__}"
    raise ValueError(
        f"{where} of its stored configuration is {str(told)[:MAX_LENGTH]}; arguments are numbers up to {MAX_NUMBER}, "
        f"short text, or lists of up to {MAX_LENGTH} of these"
    )


@contextmanager
def _no_larger_than(weights: Mapping[str, Any]) -> Iterator[None]:
    """Ends the building of a network that has more, or larger, entries than these weights.

    Raises:
        ValueError: it has.
    """
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    left = {"entries": 2 * len(tensors) + MAX_LENGTH, "numbers": sum(value.numel() for value in tensors) + ROOM}

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        left["entries"] -= 1
        left["numbers"] -= 0 if value is None else math.prod(value.shape)
        if min(left.values()) < 0:
            raise ValueError(f"{type(module).__name__}.{name} makes it larger than the stored weights")

    handles = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Configurations as plain values: their dotted keys, where two of them differ, and what they describe."""

from collections.abc import Iterator, Mapping
from typing import Any

MACHINE_SPECIFIC = ("run.dir", "run.device", "run.wandb", "run.keep_every", "page", "detailed", "single_file", "tile")
"""Settings that say where and how a run is watched and shown, not what it computes; a run may go on with others."""

ROOT = "the configuration"
"""What has no key."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of each setting that differs, the machine-specific ones left out."""
    old, new = flat(old), flat(new)
    keys = [key for key in {**old, **new} if not any(key == m or key.startswith(m + ".") for m in MACHINE_SPECIFIC)]
    pairs = {key: (old.get(key, "nothing"), new.get(key, "nothing")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; a list is a value, as it is on the command line."""
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def dotted_keys(node: Mapping[str, Any]) -> list[str]:
    """The key of every value and of every mapping, in order."""
    parts = (key.split(".") for key in flat(node))
    return list(dict.fromkeys(".".join(words[:count]) for words in parts for count in range(1, len(words) + 1)))


def targets(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, `_target_`) of every node in `node`."""
    return ((place, child["_target_"]) for place, child in nodes(node, where))


def nodes(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, node) of everything in `node` that has a `_target_`."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where or ROOT, node
        for key, child in node.items():
            yield from nodes(child, f"{where}.{key}".removeprefix("."))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from nodes(child, f"{where}[{index}]")

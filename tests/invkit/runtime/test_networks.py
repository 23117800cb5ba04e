"""Checkpoints of somebody else, whose stored configuration says more than which network it is."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from invkit.runtime import checkpoint, networks, run
from invkit.runtime.networks import storable
from invkit.runtime.run import load_module

BUILT: list[str] = []
"""What has been built, in the order of it."""


@storable
class Net(nn.Module):
    """A network with sizes and a part."""

    def __init__(self, width: int = 2, depth: int = 1, label: str = "", part: nn.Module | None = None) -> None:
        super().__init__()
        BUILT.append("Net")
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("positions", torch.zeros(width, width), persistent=False)
        self.label, self.part = label, part


class Unmarked(Net):
    """Not marked itself, although its base is."""


class Touch:
    """Leaves a trace when it is built, as `invkit.log.Log` makes folders and opens connections."""

    def __init__(self, path: str) -> None:
        BUILT.append("Touch")
        Path(path).touch()


NET = f"{__name__}.Net"
SOUND = {"task": {"generator": {"_target_": NET}}}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "TRUSTED", (*run.TRUSTED, "tests."))
    monkeypatch.chdir(tmp_path)
    BUILT.clear()


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    def write(node: object, **modules: object) -> Path:
        modules = modules or {"generator": Net().state_dict()}
        checkpoint.save(tmp_path / "a.pt", {"config": {"task": {"generator": node}}, "modules": modules})
        return tmp_path / "a.pt"

    return write


HOSTILE = {
    "a log that goes online": ({"_target_": "invkit.runtime.log.Log", "dir": "stolen"}, "no network that"),
    "that log as an argument": ({"_target_": NET, "part": {"_target_": "invkit.runtime.log.Log"}}, "no network that"),
    "a class beside a sound part": (
        {"_target_": NET, "part": {"_target_": NET}, "label": {"_target_": f"{__name__}.Touch", "path": "stolen"}},
        r"task\.generator\.label: .*no network that",
    ),
    "one that is not marked": ({"_target_": f"{__name__}.Unmarked"}, "no network that"),
    "a loader": ({"_target_": "invkit.runtime.run.load_module", "path": "a.pt"}, "no network that"),
    "a mapping": ({"_target_": NET, "label": {"a": 1}}, r"task\.generator\.label of its .* is a dict"),
    "partial": ({"_target_": NET, "_partial_": True}, "no argument '_partial_'"),
    "positional arguments": ({"_target_": NET, "_args_": [4]}, "no argument '_args_'"),
    "an unknown argument": ({"_target_": NET, "widht": 4}, "no argument 'widht'"),
    "a large number": ({"_target_": NET, "width": 10**9}, "is 1000000000; arguments are numbers up to"),
    "no number": ({"_target_": NET, "width": math.nan}, "is nan; arguments"),
    "a long text": ({"_target_": NET, "label": "a" * 10**6}, "arguments are numbers up to"),
    "a long list": ({"_target_": NET, "label": [1] * 10**5}, "is a list; arguments"),
    "lists in lists": ({"_target_": NET, "label": [[[[[1]]]]]}, "nested deeper"),
    "a tensor": ({"_target_": NET, "width": torch.ones(1)}, "is a Tensor"),
    "a wide network": ({"_target_": NET, "width": 60_000}, "larger than the stored weights"),
    "a deep network": ({"_target_": NET, "depth": 60_000}, "larger than the stored weights"),
    "another width": ({"_target_": NET, "width": 3}, r"layers\.0\.weight is \[2, 2\] and not \[3, 3\]"),
    "text for a number": ({"_target_": NET, "width": "2"}, "cannot be built as its stored configuration says"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_checkpoint_builds_networks_alone_and_nothing_before_all_is_checked(stored, tmp_path, name, monkeypatch):
    node, message = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"a\.pt: .*{message}") as caught:
        load_module(stored(node))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - start < 5
    assert os.listdir(tmp_path) == ["a.pt"]
    if "no network that" in message or "no argument" in message:
        assert BUILT == ["Net"]  # the one whose weights were stored


def test_nothing_that_stands_in_a_checkpoint_is_resolved(stored, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert load_module(stored({"_target_": NET, "label": "${oc.env:SECRET_TOKEN}"})).label == "${oc.env:SECRET_TOKEN}"


def test_what_it_holds_beside_weights_is_bounded_too(stored, monkeypatch):
    monkeypatch.setattr(networks, "ROOM", 2)
    with pytest.raises(ValueError, match=r"Net\.positions makes it larger"):
        load_module(stored({"_target_": NET}))


@pytest.mark.parametrize(
    "payload, message",
    [
        ({"step": 1}, "not one of our checkpoints"),
        ({"config": {"task": 3}, "modules": {}}, r"no network task\.generator, only nothing"),
        ({"config": SOUND, "modules": {"generator": 3}}, "not a dictionary"),
        ({"config": SOUND, "modules": {"generator": {}}}, "lacks"),
        ({"config": SOUND, "modules": {"generator": {"layers.0.weight": 1, "layers.0.bias": 1}}}, "not a tensor"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, payload, message):
    checkpoint.save(tmp_path / "b.pt", payload)
    with pytest.raises(ValueError, match=rf"b\.pt: .*({message})"):
        load_module(tmp_path / "b.pt")

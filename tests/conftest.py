"""Shape annotations are checked while the tests run, in every package, before anything is imported."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
jaxtyping.install_import_hook(["invkit", "meshinv", "nerfinv"], "beartype.beartype")


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of its own, so that no test depends on what ran before it."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def convert(monkeypatch) -> Callable[..., None]:
    """scripts/convert_checkpoint.py in this process, as the command line would start it."""
    script = str(Path(__file__).resolve().parents[1] / "scripts" / "convert_checkpoint.py")

    def run(*arguments: Path | str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)

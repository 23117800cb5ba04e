"""Shape annotations are checked while the tests run, in every package, before anything is imported."""

import os

import jaxtyping
import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
jaxtyping.install_import_hook(["invkit", "meshinv", "nerfinv"], "beartype.beartype")


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of its own, so that no test depends on what ran before it."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)

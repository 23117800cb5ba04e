"""Every network that ships: small, told of by its card, and rebuilt from what is stored with it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from invkit.runtime import checkpoint
from invkit.runtime.run import load_module, locate_trusted
from meshinv.generator import Generator as MeshGenerator
from nerfinv.encoder.encoder import Encoder
from nerfinv.generator.generator import Generator as FieldGenerator

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(ROOT.glob("*/checkpoints/*.pt"))
KINDS = {"meshinv": MeshGenerator, "nerfinv": FieldGenerator}
MOST_BYTES = 25e6


def targets(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from targets(child)
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]


def test_all_of_them_together_are_small():
    assert len(SHIPPED) >= 3
    assert sum(path.stat().st_size for path in SHIPPED) <= MOST_BYTES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_network_has_its_card_and_is_rebuilt_from_its_file(path):
    card = path.with_suffix(".md").read_text()
    assert card.startswith(f"# {path.stem}\n")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert "python scripts/train.py experiment=" in card
    if "real" in path.stem:
        assert "non-commercial research and education" in card
    content = checkpoint.load(path)
    (state,) = content["modules"]
    for target in targets(content["config"]):
        locate_trusted(target)
    kind, module = (Encoder, "encoder") if state == "encoder" else (KINDS[path.parts[-3]], "generator")
    network = load_module(path, module, state)
    assert type(network) is kind
    assert not network.training
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("name", ["synthetic_birds", "real_birds"])
def test_meshes_of_samples_are_birds_of_many_colors(name):
    generator = load_module(ROOT / f"meshinv/checkpoints/{name}.pt", "generator", "generator_ema")
    latent = torch.randn(6, generator.latent_dim, generator=torch.Generator().manual_seed(1))
    label = torch.arange(6) if generator.num_classes else None
    with torch.no_grad():
        maps = generator(latent, label)
    assert 0.05 < maps.displacement.std() < 1.0
    assert (maps.texture.flatten(1).mean(dim=1)).std() > 0.05  # dark ones and light ones
    apart = (maps.displacement[:, None] - maps.displacement).abs().mean(dim=(2, 3, 4))
    assert apart[~torch.eye(6, dtype=torch.bool)].min() > 0.005

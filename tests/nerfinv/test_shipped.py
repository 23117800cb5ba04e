"""The small generator that ships with the package: birds with surfaces."""

from pathlib import Path

import pytest
import torch

from invkit.run import load_module
from invkit.viewpoints import azimuth_ring
from nerfinv.export import model
from nerfinv.renderers.volume import VolumeRenderer

WEIGHTS = Path(__file__).resolve().parents[2] / "nerfinv" / "checkpoints" / "synthetic_birds.pt"


@pytest.fixture(scope="module")
def generator():
    return load_module(WEIGHTS, "generator", state="generator_ema")


def test_the_file_is_small_and_has_its_card():
    assert WEIGHTS.stat().st_size < 6e6
    assert f"# {WEIGHTS.stem}" in WEIGHTS.with_suffix(".md").read_text()


def test_samples_are_opaque_objects_inside_the_picture(generator):
    latent = torch.randn(4, generator.latent_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        field = generator(generator.style(latent))
        image = VolumeRenderer(32, coarse=16, fine=16)(field, azimuth_ring(4, scale=0.8))
    cover = (image.mask > 0.5).float().mean(dim=(1, 2, 3))
    assert bool(((cover > 0.03) & (cover < 0.5)).all()), cover
    half = ((image.mask > 0.1) & (image.mask < 0.9)).float().mean(dim=(1, 2, 3))
    assert bool((half < 0.6 * cover).all()), half  # outlines, not fog
    assert image.rgb.flatten(2).std(dim=-1).mean() > 0.03


def test_a_sample_becomes_a_mesh(generator):
    latent = torch.randn(1, generator.latent_dim, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        mesh = model(generator(generator.style(latent)), "bird", 48)
    assert len(mesh.faces) > 300
    assert mesh.is_watertight
    assert mesh.volume > 0

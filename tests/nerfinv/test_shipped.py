"""The small generator and encoder that ship with the package: birds with surfaces, and where they are seen from."""

from pathlib import Path

import pytest
import torch

from invkit.evaluation.viewpoints import azimuth_ring
from invkit.geometry import rotation
from invkit.runtime.run import load_module
from nerfinv.export import model
from nerfinv.pnp import PoseSolver
from nerfinv.renderers.volume import VolumeRenderer

WEIGHTS = Path(__file__).resolve().parents[2] / "nerfinv" / "checkpoints" / "synthetic_birds.pt"
ENCODER = WEIGHTS.with_name("synthetic_birds_encoder.pt")


@pytest.fixture(scope="module")
def generator():
    return load_module(WEIGHTS, "generator", state="generator_ema")


def test_the_files_are_small_and_have_their_cards():
    assert WEIGHTS.stat().st_size + ENCODER.stat().st_size < 12e6
    for path in (WEIGHTS, ENCODER):
        assert f"# {path.stem}" in path.with_suffix(".md").read_text()


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


def test_the_encoder_sees_where_samples_are_seen_from(generator):
    encoder = load_module(ENCODER, "encoder")
    camera = azimuth_ring(16, scale=0.8)
    latent = torch.randn(16, generator.latent_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        field = generator(generator.style(latent))
        image = VolumeRenderer(64, coarse=24, fine=24)(field, camera, extras=frozenset({"coords"}))
        seen = encoder(image.rgb)
    assert ((seen.mask > 0.5) == (image.mask > 0.5)).float().mean() > 0.97
    inside = image.mask > 0.9
    apart = ((seen.coords - image.coords).norm(dim=1, keepdim=True) * inside).sum() / inside.sum()
    assert apart < 0.22  # 0.165 on these, of birds about 1.5 long; their mean position is 0.43 off
    poses = PoseSolver(None)(seen.coords, seen.mask)
    assert bool(poses.found.all())
    assert (
        rotation.angle(poses.camera.quat, camera.quat).median() < 20
    )  # few training cameras look from ahead or behind

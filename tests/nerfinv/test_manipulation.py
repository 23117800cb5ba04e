"""Exchanged palettes, paths, palettes found again, and the sheets and the script that show them."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image

from invkit.evaluation import viewpoints
from invkit.geometry.camera import Camera
from invkit.images import composite, read_image
from invkit.runtime import checkpoint
from invkit.types import Rendering
from nerfinv.generator.generator import Generator
from nerfinv.manipulation import (
    all_pairs,
    explaining_palette,
    path,
    region_colors,
    styles_with_palettes_of,
    with_palettes_of,
)
from nerfinv.prior import FieldPrior
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks import pictures
from tests.nerfinv.tiny_fields import around, bumpy_balls

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "latent_dim": 16,
    "style_dim": 16,
    "plane_size": 16,
    "plane_channels": 4,
    "channel_base": 64,
    "max_channels": 8,
    "decoder_width": 8,
    "palette_size": 4,
}


def generator(**options) -> Generator:
    torch.manual_seed(0)
    return Generator(**{**SIZES, **options}).eval().requires_grad_(False)


# ---- Exchange ----------------------------------------------------------------------------------------------------


def test_the_last_style_is_the_palette_and_the_others_are_the_shape():
    prior = FieldPrior(generator())
    shapes, colors = prior.sample(4, torch.Generator().manual_seed(1)).split(2)
    mixed = prior.decode(styles_with_palettes_of(shapes, colors), None)
    shape, color = prior.decode(shapes, None), prior.decode(colors, None)
    torch.testing.assert_close(mixed.planes, shape.planes)
    torch.testing.assert_close(mixed.palette, color.palette)
    assert not torch.allclose(shape.palette, color.palette, atol=1e-4)
    direct = with_palettes_of(shape, color)
    points = torch.rand(2, 50, 3) - 0.5
    torch.testing.assert_close(mixed.color(points), direct.color(points))
    # A generator without palettes mixes layers.
    two = styles_with_palettes_of(shapes, colors, palette_slots=2)
    assert torch.equal(two[:, -2:], colors[:, -2:])
    assert torch.equal(two[:, :-2], shapes[:, :-2])


def test_all_pairs_are_in_rows_of_shapes():
    field = bumpy_balls(3).detach()
    pairs = all_pairs(field)
    for shape in range(3):
        for palette in range(3):
            assert torch.equal(pairs.planes[3 * shape + palette], field.planes[shape])
            assert torch.equal(pairs.palette[3 * shape + palette], field.palette[palette])


def test_fields_without_palettes_are_refused():
    plain = bumpy_balls(1, palette=0)
    with pytest.raises(ValueError, match="with palettes alone"):
        with_palettes_of(plain, plain)
    with pytest.raises(ValueError, match="equally many objects"):
        with_palettes_of(bumpy_balls(1), bumpy_balls(2))


# ---- Paths -------------------------------------------------------------------------------------------------------


def test_a_closed_path_goes_by_all_stops_and_does_not_repeat_the_first():
    stops = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    found = path(stops, 6)
    expected = torch.tensor([[0, 0], [0.5, 0], [1, 0], [1, 1], [1, 2], [0.5, 1]])
    torch.testing.assert_close(found, expected)
    opened = path(stops, 5, closed=False)
    torch.testing.assert_close(opened, expected[:5])
    torch.testing.assert_close(path(stops[:, None], 6), found[:, None])
    with pytest.raises(ValueError, match="two stops"):
        path(stops[:1], 4)


# ---- Palettes of pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_the_palette_of_a_picture_is_found_again(background):
    """One rendering of shares is enough for a picture in any colors."""
    field, camera = bumpy_balls(2, alpha=0.01, beta=0.01).detach(), around(2, perspective=True).detach()
    renderer = VolumeRenderer(32, coarse=32, fine=16, background=background)
    with torch.no_grad():
        shares = renderer(field, camera, extras=frozenset({"shares"})).shares
        wanted = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
        picture = renderer(field.with_palette(wanted), camera).rgb
        found = explaining_palette(shares, picture, background=background, ridge=1e-10)
        again = renderer(field.with_palette(found), camera).rgb
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(again, picture, atol=1e-4, rtol=0)


def test_no_other_palette_explains_a_picture_better():
    """Also where the picture cannot be had: against torch's own least squares."""
    rng = torch.Generator().manual_seed(0)
    shares = torch.rand(1, 3, 6, 6, generator=rng)
    shares = shares / shares.sum(dim=1, keepdim=True) * torch.rand(1, 1, 6, 6, generator=rng)
    picture = torch.rand(1, 3, 6, 6, generator=rng) - 0.5
    found = explaining_palette(shares, picture, ridge=0.0)
    expected = torch.linalg.lstsq(shares.flatten(2)[0].T.double(), picture.flatten(2)[0].T.double()).solution
    assert expected.abs().max() < 1
    torch.testing.assert_close(found[0], expected.float(), atol=1e-5, rtol=0)


def test_a_color_that_is_not_seen_stays_as_it_was():
    shares = torch.zeros(1, 3, 8, 8)
    shares[:, 0, :4], shares[:, 1, 4:] = 1, 0.5
    near = torch.full((1, 3, 3), 0.25)
    picture = composite(torch.full((1, 3, 8, 8), -0.5), shares.sum(dim=1, keepdim=True), 1.0)
    found = explaining_palette(shares, picture, background=1.0, near=near, ridge=1e-6)
    expected = torch.tensor([-0.5, -0.5, 0.25])[None, :, None].expand(1, 3, 3)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert torch.equal(explaining_palette(shares * 0, picture), torch.zeros(1, 3, 3))


def test_regions_have_the_released_colors_and_beyond_them_darker_ones():
    colors = region_colors(12)
    assert colors[0].tolist() == [1, -1, -1]
    assert colors[7].tolist() == [1, 0, -1]
    torch.testing.assert_close(colors[10], torch.tensor([0.2, -1.0, -1.0]))
    assert len({tuple(color) for color in colors.tolist()}) == 12


# ---- Pictures ----------------------------------------------------------------------------------------------------


def test_a_camera_of_our_choice_looks_from_there():
    """+z is up in the image, what is nearer is what points to the camera."""
    camera = pictures.seen_from(30.0, 90.0, scale=0.5, inv_focal=0.2)
    points = torch.tensor([[[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]])
    up, front, side, origin = camera.project(points)[0]
    assert origin.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert up[0].abs() < 1e-6
    assert up[1] < -0.3  # y points down
    assert up[2] < 0  # seen from above, the top is nearer
    assert front[2] == front[2].clamp(max=-0.4)
    assert side[0] < -0.4  # from +y, with z up, +x is to the left
    assert side[2].abs() < 1e-6
    middle = pictures.common(Camera.cat([camera, around(2, perspective=True).detach()]), 0.0, 0.0)
    assert len(middle) == 1
    assert middle.inv_focal.item() == pytest.approx(0.35)


def test_normals_and_depth_are_shown_as_one_sees_them():
    mask = torch.ones(1, 1, 1, 4)
    mask[..., 3] = 0
    towards = torch.tensor([0.0, 0, -1])[None, :, None, None] * mask
    image = Rendering(torch.ones(1, 3, 1, 4), mask, depth=torch.tensor([[[[-0.2, 0.0, 0.2, 0.0]]]]), normals=towards)
    assert pictures.normals(image)[0, :, 0, 0].tolist() == [0, 0, 1]
    assert pictures.normals(image)[0, :, 0, 3].tolist() == [1, 1, 1]
    shown = pictures.depth(image)[0, 0, 0]
    assert shown.tolist() == pytest.approx([pictures.NEAREST, 0.05, pictures.FARTHEST, 1.0], abs=1e-6)
    nothing = Rendering(torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), depth=torch.zeros(1, 1, 2, 2))
    assert (pictures.depth(nothing) == 1).all()


@pytest.mark.parametrize("options, columns", [({}, 4), ({"palette": 0}, 3), ({"signed_distance": False}, 3)])
def test_a_sheet_has_what_a_field_has(options, columns):
    field, camera = bumpy_balls(2, **options).detach(), around(2, perspective=False).detach()
    sheet = pictures.sheet(field, camera, VolumeRenderer(12, coarse=8, fine=8, random=True, background=0.0))
    assert sheet.shape == (3, 2 * 12, columns * 12)
    plain = VolumeRenderer(12, coarse=8, fine=8, background=1.0)(field, camera)
    assert torch.equal(sheet[:, 12:, :12], plain.rgb[1].detach())


# ---- The script --------------------------------------------------------------------------------------------------


def test_the_script_shows_what_a_checkpoint_makes(tmp_path, monkeypatch):
    made = generator(scene_range=0.55)
    prior = FieldPrior(made)
    styles = prior.sample(2, torch.Generator().manual_seed(5))
    # Untrained fields have no surface in general; these two have.
    shift = made.decoder.output.bias
    shift[0] -= prior.decode(styles, None).value(torch.rand(2, 500, 3) - 0.5).median()
    config = {"_target_": "nerfinv.generator.generator.Generator", **SIZES, "scene_range": 0.55}
    weights = {f"module.{key}": value for key, value in made.state_dict().items()}
    file = tmp_path / "training" / "checkpoints" / "checkpoint-00000001.pt"
    checkpoint.save(file, {"step": 1, "config": {"task": {"generator": config}}, "modules": {"generator_ema": weights}})
    overrides = [
        "experiment=nerfinv_generator_synthetic_cars",
        f"training={tmp_path}/training",
        "run.device=cpu",
        "run.seed=5",
        "camera=[1.6,0.3]",
        "task.renderer.coarse=24",
        "task.renderer.fine=24",
        *("count=2", "size=16", "sides=3", "frames=4", "meshes=1", "resolution=24"),
    ]
    monkeypatch.setattr(sys, "argv", ["samples.py", *overrides])
    runpy.run_path(str(ROOT / "scripts" / "samples.py"), run_name="__main__")
    folder = tmp_path / "training" / "samples"
    assert read_image(folder / "samples.png").shape == (3, 32, 64)
    assert read_image(folder / "sides.png").shape == (3, 32, 48)
    assert read_image(folder / "transfers.png").shape == (3, 32, 32)
    with Image.open(folder / "interpolation.gif") as film:
        assert film.n_frames == 4
    assert trimesh.load(folder / "sample_0.glb", force="mesh", process=False).is_watertight
    assert not (folder / "sample_1.glb").exists()
    # The pictures are those of the weights: the first object from all sides.
    field = prior.decode(styles, None)
    camera = viewpoints.orbit(pictures.seen_from(20.0, -40.0, scale=1.6, inv_focal=0.3), torch.tensor([0.0, 120, 240]))
    renderer = VolumeRenderer(16, coarse=24, fine=24, background=1.0)
    expected = renderer(field[0].repeat(3), camera).rgb.clamp(-1, 1) / 2 + 0.5
    row = read_image(folder / "sides.png")[:, :16].unflatten(2, (3, 16)).movedim(2, 0)
    assert (row - expected).abs().max() < 0.01

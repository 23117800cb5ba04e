"""Meshes and solids of radiance fields against balls of known volume, and against the fields themselves."""

import json
import math
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from invkit.evaluation import viewpoints
from invkit.evaluation.viewpoints import Frame
from invkit.export import turntable, write_glb, write_ply
from invkit.geometry import rotation
from invkit.inversion.records import RecordStore, Trace
from invkit.metrics.voxels import Grid, voxelize
from invkit.runtime import checkpoint
from invkit.types import Estimate, Guess, Rendering
from nerfinv import export
from nerfinv.export import NoSurface, grid_distances, largest_piece, model, models, surface
from nerfinv.field import RadianceField
from nerfinv.generator.generator import Generator
from nerfinv.prior import FieldPrior
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.solid import solid
from tests.nerfinv.tiny_fields import around, bumpy_balls

ROOT = Path(__file__).resolve().parents[2]
TURN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # object frame (z up) to file (y up)


def bumpy(count: int = 1, **options) -> RadianceField:
    """`bumpy_balls` without gradients."""
    field = bumpy_balls(count, **options).detach()
    for part in (field.decoder, field.density, field.view_head):
        if part is not None:
            part.requires_grad_(False)
    if not field.density.signed_distance:
        field.decoder.output.bias[0] = 1 - field.value(torch.rand(count, 1000, 3) * 2 - 1).mean()
    return field


def ball(radius: float = 0.7, count: int = 1, **options) -> RadianceField:
    """Exact distances to balls: the decoder's random part is left out."""
    field = bumpy(count, **options)
    torch.nn.init.zeros_(field.decoder.output.weight[0])
    torch.nn.init.zeros_(field.decoder.output.bias[:1])
    field.decoder.radius = radius
    return field


def in_object_frame(shape: trimesh.Trimesh) -> torch.Tensor:
    return torch.tensor(shape.vertices @ TURN).float()


def attributes(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON of a GLB, and the arrays of its only primitive, read as the format says."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    tree = json.loads(data[20 : 20 + length])
    binary = data[20 + length + 8 :]
    (primitive,) = (primitive for mesh in tree["meshes"] for primitive in mesh["primitives"])
    found = {}
    for name, index in primitive["attributes"].items():
        accessor = tree["accessors"][index]
        view = tree["bufferViews"][accessor["bufferView"]]
        width = {"VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        kind = {5121: np.uint8, 5123: np.uint16, 5126: np.float32}[accessor["componentType"]]
        assert "byteStride" not in view
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        values = np.frombuffer(binary, kind, accessor["count"] * width, start).reshape(-1, width)
        found[name] = values / np.iinfo(kind).max if accessor.get("normalized") else values
    return tree["materials"][primitive["material"]], found


# ---- Shape -------------------------------------------------------------------------------------------------------


def test_a_ball_is_closed_and_has_its_volume_area_and_normals():
    shape = model(ball(0.7), "ball", 64)
    assert shape.is_watertight
    assert shape.is_winding_consistent
    assert shape.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)
    assert shape.area == pytest.approx(4 * math.pi * 0.7**2, rel=0.01)
    outward = shape.vertices / np.linalg.norm(shape.vertices, axis=1, keepdims=True)
    np.testing.assert_allclose(shape.vertex_normals, outward, atol=1e-3)
    first, second, third = np.moveaxis(shape.triangles, 1, 0)
    assert ((np.cross(second - first, third - first) * first).sum(axis=1) > 0).all()


def test_vertices_lie_where_the_field_says():
    """In object units, for every image of a batch; the file's axes are turned back."""
    fields = bumpy(2, half_side=1.0)
    cell = 2 / 47
    for index, shape in enumerate(models(fields, ["a", "b"], 48)):
        points = in_object_frame(shape)
        assert fields[index].value(points[None]).abs().max() < 0.25 * cell
        own = fields[index].normals(points[None])[0].numpy() @ TURN.T
        np.testing.assert_allclose(shape.vertex_normals, own, atol=1e-4)


def test_nodes_are_decoded_as_points_are():
    field = bumpy(1, side=7)
    axis = torch.linspace(-1, 1, 12)
    points = torch.cartesian_prod(axis, axis, axis)[None]
    found = grid_distances(field, 12, every_node=True)
    torch.testing.assert_close(found.flatten(), field.value(points)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", [5, 6, 33, 64, 91])
@pytest.mark.parametrize("margin", [export.MARGIN, 0.0])
def test_what_is_not_decoded_changes_nothing(resolution, margin, monkeypatch):
    """Also where bricks are chosen by the signs of their corners alone: the surface is then followed."""
    field = bumpy(1, side=24, seed=3)
    monkeypatch.setattr(export, "MARGIN", margin)
    decoded = 0
    value = type(field.decoder).value

    def counted(decoder, features):
        nonlocal decoded
        decoded += len(features)
        return value(decoder, features)

    monkeypatch.setattr(type(field.decoder), "value", counted)
    sparse = grid_distances(field, resolution)
    spent = decoded
    dense = grid_distances(field, resolution, every_node=True)
    assert torch.equal(sparse > 0, dense > 0)
    for mine, plain in zip(surface(sparse, 1.0, "it"), surface(dense, 1.0, "it"), strict=True):
        np.testing.assert_allclose(mine, plain, atol=1e-5)
    if resolution > 90:
        assert spent < 0.5 * (decoded - spent)


def test_an_object_that_reaches_out_of_the_box_is_cut_off_and_closed():
    shape = model(ball(1.2), "large", 64)
    assert shape.is_watertight
    cap = math.pi * 0.2**2 * (3 * 1.2 - 0.2) / 3
    assert shape.volume == pytest.approx(4 / 3 * math.pi * 1.2**3 - 6 * cap, rel=0.01)
    np.testing.assert_allclose(np.abs(shape.bounds), 1, atol=1e-3)
    wall = shape.vertices[:, 0] > 1
    inner = wall & (np.linalg.norm(shape.vertices[:, 1:], axis=1) < 0.5)
    np.testing.assert_allclose(shape.vertex_normals[inner], np.broadcast_to([1.0, 0, 0], (inner.sum(), 3)), atol=1e-3)


def test_the_largest_piece_is_the_object_without_what_floats_beside_it():
    nodes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 48)] * 3, indexing="ij"), dim=-1)
    body = (nodes - torch.tensor([0.3, 0.2, 0.0])).norm(dim=-1) - 0.4
    speck = (nodes - torch.tensor([-0.7, 0.0, 0.5])).norm(dim=-1) - 0.15
    both, alone = surface(torch.minimum(body, speck), 1.0, "both"), surface(body, 1.0, "alone")
    assert len(both[0]) > len(alone[0])
    kept = trimesh.Trimesh(*largest_piece(*both), process=False)
    assert kept.is_watertight
    assert len(kept.split()) == 1
    assert kept.volume == pytest.approx(trimesh.Trimesh(*alone, process=False).volume)
    assert np.array_equal(kept.bounds, trimesh.Trimesh(*alone, process=False).bounds)
    for mine, whole in zip(largest_piece(*alone), alone, strict=True):
        assert np.array_equal(mine, whole)


def test_outermost_points_lie_just_outside_of_the_largest_piece():
    points = ball(0.6).outermost()[0].norm(dim=1)
    assert points.min() >= 0.6
    assert points.max() < 0.6 + 2 * 1.8 * 2 / 47
    far = ball(0.6, count=2).outermost()
    assert far.shape[0] == 2


def test_a_field_without_a_surface_is_named():
    fields = ball(0.7, count=2)
    fields.planes[1, :, :3] = 2.0  # nowhere near the center
    with pytest.raises(NoSurface, match=r"second: the field has no surface: the least distance"):
        models(fields, ["first", "second"], 16)
    with pytest.raises(ValueError, match="1 of them for 2"):
        models(fields, ["first"], 16)
    with pytest.raises(ValueError, match="resolution=1"):
        model(fields[0], "first", 1)


def test_a_raw_density_has_its_surface_where_it_is_half_occupied():
    field = bumpy(1, signed_distance=False)
    dense = grid_distances(field, 24, every_node=True)
    axis = torch.linspace(-1, 1, 24)
    points = torch.cartesian_prod(axis, axis, axis)[None]
    raw = field.value(points)[0].view(24, 24, 24)
    assert 0 < (raw > 1).float().mean() < 1
    assert torch.equal(dense < 0, field.density.occupancy(raw) > 0.5)
    shape = model(field, "raw", 24)
    assert shape.is_watertight
    assert shape.volume > 0
    inner = field.inside(in_object_frame(shape)).numpy()
    found = -field.normals(in_object_frame(shape)[None])[0].numpy() @ TURN.T
    np.testing.assert_allclose(shape.vertex_normals[inner], found[inner], atol=1e-4)


def test_the_mesh_is_seen_where_the_field_is():
    """Projected vertices against the silhouette of a thin surface."""
    field, camera = bumpy(1, alpha=0.003, beta=0.003), around(1, perspective=True).detach()
    mask = VolumeRenderer(48, coarse=64, fine=0)(field, camera).mask[0, 0]
    points = in_object_frame(model(field, "it", 64))
    x, y = ((camera.project(points[None])[0, :, :2] + 1) * 24).floor().long().unbind(1)
    seen = torch.zeros_like(mask, dtype=torch.bool)
    seen[y, x] = True
    assert (seen == (mask > 0.3)).float().mean() > 0.98


# ---- Colors and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"palette": 0}, {"view_dependent": True}])
def test_vertices_have_the_colors_of_the_field(options):
    """Seen from straight above where colors depend on the view."""
    field = bumpy(1, **options)
    if field.view_head is not None:
        field.view_head.fc0.weight *= 20  # so that directions can be told apart in 256 values
        field.view_head.fc6.weight *= 20
    shape = model(field, "it", 32)
    points = in_object_frame(shape)[None]
    normals = field.normals(points)
    expected = (field.color(points, -normals)[0] / 2 + 0.5).clamp(0, 1) * 255
    assert np.abs(shape.visual.vertex_colors[:, :3] - expected.numpy()).max() <= 0.6
    if options.get("view_dependent"):
        assert (expected - (field.color(points, normals)[0] / 2 + 0.5) * 255).abs().max() > 3


def test_a_glb_has_linear_colors_as_its_format_wants(tmp_path):
    shape = model(bumpy(1), "it", 32)
    write_glb(tmp_path / "it.glb", shape)
    material, found = attributes(tmp_path / "it.glb")
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    np.testing.assert_allclose(found["POSITION"], shape.vertices, atol=1e-6)
    np.testing.assert_allclose(found["NORMAL"], shape.vertex_normals, atol=1e-6)
    linear = found["COLOR_0"]
    assert (linear[:, 3] == 1).all()
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    # 16 bits are enough for every one of 256 values, dark ones too.
    np.testing.assert_array_equal(np.round(255 * srgb), shape.visual.vertex_colors)
    read = trimesh.load(tmp_path / "it.glb", force="mesh", process=False)
    assert read.is_watertight
    np.testing.assert_array_equal(read.faces, shape.faces)


def test_a_ply_gives_everything_back(tmp_path):
    shape = model(bumpy(1), "it", 32)
    write_ply(tmp_path / "it.ply", shape)
    read = trimesh.load(tmp_path / "it.ply", process=False)
    assert read.is_watertight
    np.testing.assert_allclose(read.vertices, shape.vertices, atol=1e-6)
    np.testing.assert_allclose(read.vertex_normals, shape.vertex_normals, atol=1e-5)
    np.testing.assert_array_equal(read.visual.vertex_colors, shape.visual.vertex_colors)
    assert [path.name for path in tmp_path.iterdir()] == ["it.ply"]


# ---- Solids ------------------------------------------------------------------------------------------------------


def frame(seed: int = 0, count: int = 1) -> Frame:
    rng = torch.Generator().manual_seed(seed)
    quat = rotation.random(count, rng)
    return Frame(quat, 0.8 + 0.4 * torch.rand(count, generator=rng), 0.4 * torch.randn(count, 3, generator=rng))


def test_the_solid_of_a_ball_is_a_ball_elsewhere():
    moved, grid = frame(count=2), Grid(size=24, low=-1.6, high=1.4)
    found = solid(ball(0.7, count=2), moved, grid)
    axis = -1.6 + (torch.arange(24) + 0.5) * (3 / 24)
    centers = torch.cartesian_prod(axis, axis, axis)
    for index in range(2):
        distance = (centers - moved.offset[index]).norm(dim=1)
        expected = (distance < 0.7 * moved.scale[index]).view(24, 24, 24)
        clear = ((distance - 0.7 * moved.scale[index]).abs() > 1e-5).view(24, 24, 24)
        assert torch.equal(found[index][clear], expected[clear])


@pytest.mark.parametrize("signed_distance", [True, False])
def test_the_solid_is_the_inside_of_the_mesh(signed_distance):
    """Turned, and cut off where the object reaches out of the box."""
    field, moved, grid = bumpy(1, signed_distance=signed_distance), frame(1), Grid(size=20)
    shape = model(field, "it", 40)
    filled = voxelize(moved.apply(in_object_frame(shape)[None]), torch.tensor(shape.faces), 20, low=-1.5, high=1.5)
    found = solid(field, moved, grid)
    assert filled.sum() > 200
    assert (found != filled).sum() < 0.04 * filled.sum()


def test_a_turntable_is_on_white_whatever_the_renderer_puts_behind():
    field = ball(0.6, alpha=0.003, beta=0.01)
    camera = around(1, perspective=False).detach()
    tables = [
        turntable(field, camera, VolumeRenderer(24, coarse=16, fine=16, background=behind), 3) for behind in (0.0, 1.0)
    ]
    assert tables[0].shape == (3, 24, 24, 3)
    assert (tables[0].int() - tables[1].int()).abs().max() <= 1
    assert (tables[0][:, 0, 0] == 255).all()
    expected = VolumeRenderer(24, coarse=16, fine=16, background=1.0)(
        field, viewpoints.orbit(camera, torch.tensor([120.0]))
    ).rgb
    assert ((tables[0][1].permute(2, 0, 1) / 127.5 - 1) - expected[0]).abs().max() < 0.01


# ---- The script --------------------------------------------------------------------------------------------------


def test_the_script_exports_the_fields_of_records(tmp_path, monkeypatch):
    """And passes over what could not be searched and what has no surface, in so many words."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 8, "style_dim": 8, "plane_size": 8, "plane_channels": 4, "decoder_width": 8}
    sizes |= {"channel_base": 64, "max_channels": 8, "palette_size": 3, "scene_range": 0.55}
    prior = FieldPrior(Generator(**sizes))
    latent = prior.sample(2, torch.Generator().manual_seed(0))
    points = torch.rand(2, 2000, 3) * 1.1 - 0.55
    output = prior.generator.decoder.output
    output.weight[0] *= 100
    values = prior.decode(latent, None).value(points)
    # The one has a surface; of the other only so much is known as that its distances are larger.
    order = values.amin(dim=1).argsort()
    output.bias[0] -= values.amin(dim=1).mean()
    latent, values = latent[order], prior.decode(latent[order], None).value(points)
    assert values[0].min() < 0 < values[1].min()
    config = {"_target_": "nerfinv.generator.generator.Generator", **sizes}
    checkpoint.save(
        tmp_path / "generator.pt",
        {
            "step": 0,
            "config": {"task": {"generator": config}},
            "modules": {"generator_ema": prior.generator.state_dict()},
        },
    )
    camera = around(2, perspective=True).detach()
    store = RecordStore(tmp_path / "records")
    always = torch.ones(2, dtype=torch.bool)
    trace = Trace(Guess(latent, camera), (), torch.zeros(2, 1, 0), torch.zeros(2, 1), always, always)
    estimate = Estimate(latent, camera, None, Rendering(torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)))
    store.write(["solid/1", "empty/1"], [0, 1], estimate, trace)
    store.write_failure("damaged", 2, "no mask")
    settings = ["experiment=nerfinv_invert_synthetic_cars", f"inversion={tmp_path}", "run.device=cpu"]
    settings += [f"prior.generator.path={tmp_path}/generator.pt", "inverter.renderer.size=12", "resolution=24"]
    monkeypatch.setattr(sys, "argv", ["export.py", *settings, "ply=true", "turntable=3"])
    runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    folder = tmp_path / "meshes"
    made = {path.name for path in folder.glob("*.glb")} | {path.name for path in folder.glob("*.ply")}
    assert made == {"solid=2F1.glb", "solid=2F1.ply"}
    assert (folder / "solid=2F1.gif").is_file()
    shape = trimesh.load(folder / "solid=2F1.ply", process=False)
    assert shape.is_watertight
    direct = model(prior.decode(latent[:1], None), "it", 24)
    np.testing.assert_allclose(shape.vertices, direct.vertices, atol=1e-6)
    said = (folder / "log.jsonl").read_text()
    assert "empty/1: the field has no surface" in said
    assert "damaged: nothing to export: no mask" in said
    monkeypatch.setattr(sys, "argv", ["export.py", *settings, "obj=true"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")

"""Files are read back with trimesh and must show what the renderer shows, the right way up and round."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch.nn import functional

from invkit.export import turntable, write_gif, write_glb, write_mp4
from invkit.geometry.camera import Camera
from invkit.images import from_uint8
from invkit.types import Estimate
from meshinv.export import models, transfers, with_texture_of, write_obj
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template

TURN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # object frame (z up) to file (y up)
SIDE_VIEW = torch.tensor([[0.7, 0, 0, math.sqrt(0.5), math.sqrt(0.5), 0, 0]])  # z of the object is up in the image


def bumpy(rng: torch.Generator, symmetric: bool = True, count: int = 1) -> TexturedMesh:
    template = Template(16, symmetric)
    texture = torch.rand(count, 3, 24, 32, generator=rng) * 2 - 1
    return UVMaps(texture, 0.08 * torch.randn(count, 3, 32, 32, generator=rng)).mesh(template)


def load(path: Path) -> tuple[trimesh.Trimesh, torch.Tensor]:
    """The model of a file and its texture, [1, 3, H, W] in [-1, 1]."""
    model = trimesh.load(path, force="mesh", process=False)
    material = model.visual.material
    picture = material.baseColorTexture if hasattr(material, "baseColorTexture") else material.image
    return model, from_uint8(torch.tensor(np.asarray(picture.convert("RGB")))[None])


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_file_gives_back_geometry_uvs_and_texture(suffix, symmetric, rng, tmp_path):
    mesh = bumpy(rng, symmetric)
    (model,) = models(mesh)
    path = tmp_path / f"bird 1{suffix}"
    {".glb": write_glb, ".obj": write_obj}[suffix](path, model)
    found, picture = load(path)

    template = mesh.template
    assert len(found.faces) == len(template.faces)
    corners = mesh.corners()[0].double().numpy() @ TURN.T
    np.testing.assert_allclose(found.triangles, corners, atol=1e-6)
    np.testing.assert_allclose(found.visual.uv[found.faces], model.visual.uv[model.faces], atol=1e-6)
    # The vertices of a face with a UV entry of its own are split there and nowhere else.
    assert len(found.vertices) == len(template.uvs)
    padded = template.pad_texture(mesh.texture)
    assert (picture - padded).abs().max() <= 1 / 255 + 1e-6
    names = {".glb": ["bird 1.glb"], ".obj": ["bird 1.mtl", "bird 1.obj", "bird 1.png"]}[suffix]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_viewer_looks_up_the_colors_that_the_renderer_shows(symmetric, rng, tmp_path):
    """At every pixel of a rendering; a viewer has texel centers at half integers and v up."""
    mesh = bumpy(rng, symmetric)
    write_glb(tmp_path / "it.glb", models(mesh)[0])
    found, picture = load(tmp_path / "it.glb")
    camera = Camera.from_cmr(torch.tensor([[0.7, 0.0, 0.0, 0.8, 0.2, -0.4, 0.4]]))
    image = MeshRenderer(64)(mesh, camera, extras=frozenset({"face", "coords"}))
    covered = image.mask[0, 0] > 0
    face = image.face[0, 0][covered].numpy()
    points = image.coords[0][:, covered].T.double().numpy() @ TURN.T
    weights = trimesh.triangles.points_to_barycentric(found.triangles[face], points)
    uv = torch.from_numpy((weights[..., None] * found.visual.uv[found.faces[face]]).sum(1))
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=1)[None, None].float()
    shown = functional.grid_sample(picture, grid, align_corners=False)
    assert (shown[0, :, 0] - image.rgb[0][:, covered]).abs().max() < 0.02


def test_the_file_is_upright_and_not_mirrored():
    """A mark on the head (-y), one on the crown (+z) and one on the right side (+x) of a sphere."""
    template = Template(16)
    sphere = TexturedMesh(template.vertices[None], torch.zeros(1, 3, 8, 8), template)
    (model,) = models(sphere)
    assert model.is_winding_consistent
    assert model.volume > 0
    source = template.vertices[template.faces.flatten()].numpy().round(4)
    corner = {tuple(at): model.vertices[u] for at, u in zip(source, model.faces.flatten(), strict=True)}
    assert corner[(0, -1, 0)] == pytest.approx((0, 0, 1), abs=1e-6)
    assert corner[(0, 0, 1)] == pytest.approx((0, 1, 0), abs=1e-6)
    assert corner[(1, 0, 0)] == pytest.approx((1, 0, 0), abs=1e-6)


def test_normals_point_outwards_and_do_not_break_at_the_seam(rng):
    (model,) = models(bumpy(rng))
    merged = trimesh.Trimesh(model.vertices, model.faces, process=True)
    assert merged.is_watertight
    by_place = {}
    for place, normal in zip(np.round(model.vertices, 9), model.vertex_normals, strict=True):
        np.testing.assert_allclose(by_place.setdefault(tuple(place), normal), normal, atol=1e-9)
    facing = (model.face_normals * model.vertex_normals[model.faces].mean(1)).sum(1)
    assert (facing > 0).mean() > 0.95


def test_each_image_of_a_batch_is_a_model_of_its_own(rng):
    meshes = bumpy(rng, count=3)
    for i, model in enumerate(models(meshes)):
        (alone,) = models(meshes[i])
        np.testing.assert_array_equal(model.vertices, alone.vertices)
        assert model.visual.material.baseColorTexture.tobytes() == alone.visual.material.baseColorTexture.tobytes()


def test_transferred_textures_are_those_of_a_direct_rendering(rng):
    """Row by row: shape i with texture j, seen from the camera of shape i."""
    meshes = bumpy(rng, count=2)
    camera = Camera.from_cmr(torch.cat([SIDE_VIEW, torch.tensor([[0.5, 0.1, 0.2, 0.8, 0.2, -0.4, 0.4]])]))
    renderer = MeshRenderer(32)
    estimate = Estimate(torch.zeros(2, 1), camera, meshes, renderer(meshes, camera), torch.tensor([0, 1]))
    pairs = transfers(estimate, renderer)
    assert len(pairs) == 4
    for shape in range(2):
        for texture in range(2):
            direct = TexturedMesh(meshes.vertices[shape][None], meshes.texture[texture][None], meshes.template)
            expected = renderer(direct, camera[shape])
            torch.testing.assert_close(pairs.image.rgb[2 * shape + texture], expected.rgb[0], rtol=0, atol=1e-5)
    assert not torch.equal(pairs.image.rgb[1], pairs.image.rgb[0])
    assert torch.equal(pairs.image.mask[1], pairs.image.mask[0])


def test_textures_of_another_template_are_refused(rng):
    with pytest.raises(ValueError, match="one template"):
        with_texture_of(
            bumpy(rng), TexturedMesh(Template(31).vertices[None].float(), torch.zeros(1, 3, 8, 8), Template(31))
        )
    with pytest.raises(ValueError, match="equally many"):
        with_texture_of(bumpy(rng), bumpy(rng, count=2))


def test_a_turntable_goes_round_once_over_white(rng):
    mesh, camera = bumpy(rng), Camera.from_cmr(SIDE_VIEW)
    frames = turntable(mesh, camera, MeshRenderer(32, supersample=2), count=4)
    assert frames.shape == (4, 32, 32, 3)
    assert (frames[:, 0, 0] == 255).all()
    first = MeshRenderer(32, supersample=2)(mesh.centered(), camera)
    expected = (first.rgb + 1 - first.mask)[0].permute(1, 2, 0)
    assert (frames[0].float() / 127.5 - 1 - expected).abs().max() < 0.01
    masks = (frames != 255).any(3)
    # Half a turn about the image's vertical mirrors the silhouette of anything.
    assert (masks[0] ^ masks[2].flip(1)).float().mean() < 0.03
    with pytest.raises(ValueError, match="this batch has 2"):
        turntable(bumpy(rng, count=2), camera, MeshRenderer(8))


def test_an_animation_has_all_frames(tmp_path):
    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    frames[1] = 128
    frames[2] = 255
    write_gif(tmp_path / "turn.gif", frames)
    with Image.open(tmp_path / "turn.gif") as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        assert np.asarray(animation.convert("RGB")).min() == 255


@pytest.mark.parametrize("height, width", [(64, 64), (33, 47)])
def test_a_film_has_all_frames_in_order(height, width, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    grays = torch.tensor([20, 120, 220, 60], dtype=torch.uint8)
    frames = grays[:, None, None, None].expand(4, height, width, 3).clone()
    frames[:, : height // 2, :, 0] = 255  # the upper half is red
    frames[:, : height // 2, :, 1:] = 0
    write_mp4(tmp_path / "turn.mp4", frames, frames_per_second=10.0)
    reader = ffmpeg.read_frames(str(tmp_path / "turn.mp4"))
    about = next(reader)
    assert about["codec"] == "h264"
    assert about["fps"] == 10
    shown = [np.frombuffer(frame, np.uint8).reshape(*about["size"][::-1], 3) for frame in reader]
    assert len(shown) == 4
    for frame, gray in zip(shown, grays.tolist(), strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(frame[-8:].astype(int) - gray).max() < 8
        assert np.abs(frame[:8].astype(int) - [255, 0, 0]).max() < 16
    assert [path.name for path in tmp_path.iterdir()] == ["turn.mp4"]


def test_a_film_without_ffmpeg_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"\[video\]"):
        write_mp4(tmp_path / "turn.mp4", torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert list(tmp_path.iterdir()) == []

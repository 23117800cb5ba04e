"""The Kaolin backend, with a stand-in for Kaolin that draws by brute force.

The stand-in has the arguments, shapes and refusals of `kaolin.render.mesh` as published (0.18). It shows that what goes
in and comes back is understood; the kernels themselves are only met by the tests marked `gpu`.
"""

import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor

from invkit.geometry.camera import Camera
from meshinv.mesh import TexturedMesh
from meshinv.renderers import kaolin
from meshinv.renderers.auto import AutoRenderer, backend
from meshinv.renderers.raster import KAOLIN, KAOLIN_2019
from meshinv.renderers.reference import MeshRenderer
from tests.meshinv import brute_force
from tests.meshinv.test_renderer import EVERYTHING, random_scene

FLOATS = sorted({*EVERYTHING, "rgb", "mask"} - {"face"})


class StandIn(types.ModuleType):
    """`kaolin.render.mesh`: counts its calls."""

    def __init__(self) -> None:
        super().__init__("kaolin.render.mesh")
        self.calls = []

    def rasterize(
        self,
        height,
        width,
        face_vertices_z,
        face_vertices_image,
        face_features,
        valid_faces=None,
        multiplier=None,
        eps=None,
        backend="cuda",
    ) -> tuple[Tensor, Tensor]:
        self.calls.append("rasterize")
        batch, num_faces, corners = face_vertices_z.shape
        assert corners == 3
        assert face_vertices_image.shape == (batch, num_faces, 3, 2)
        assert face_features.shape[:3] == (batch, num_faces, 3)
        assert face_features.dtype == face_vertices_image.dtype == face_vertices_z.dtype
        assert valid_faces.dtype == torch.bool
        assert valid_faces.shape == (batch, num_faces)
        if not valid_faces.any():
            raise IndexError("index -1 is out of bounds for dimension 0 with size 0")  # the published code's
        if batch * height * width < 512:
            raise RuntimeError("CUDA error: invalid configuration argument")  # in backward
        face = np.stack(
            [
                brute_force.nearest_faces(
                    face_vertices_image[i].detach().double().numpy(),
                    face_vertices_z[i].detach().double().numpy(),
                    np.where(valid_faces[i].numpy(), 1.0, -1.0),
                    height,
                    width,
                )[0]
                for i in range(batch)
            ]
        )
        face = torch.from_numpy(face)
        x, y = (torch.tensor(axis).to(face_vertices_image.dtype) for axis in brute_force.pixel_centers(height, width))
        here = torch.arange(batch)[:, None, None].expand_as(face)
        (ax, ay), (bx, by), (cx, cy) = (c.unbind(-1) for c in face_vertices_image[here, face.clamp(min=0)].unbind(3))
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        second = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
        third = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
        weights = torch.stack([1 - second - third, second, third], dim=-1)
        features = (weights[..., None] * face_features[here, face.clamp(min=0)]).sum(3)
        return torch.where(face[..., None] >= 0, features, 0), face

    def dibr_rasterization(
        self,
        height,
        width,
        face_vertices_z,
        face_vertices_image,
        face_features,
        face_normals_z,
        sigmainv=7000,
        boxlen=0.02,
        knum=30,
        multiplier=None,
        eps=None,
        rast_backend="cuda",
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert face_normals_z.dtype == face_vertices_z.dtype
        features, face = self.rasterize(
            height, width, face_vertices_z, face_vertices_image, face_features, face_normals_z >= 0
        )
        self.calls.append("soft mask")
        soft = [
            brute_force.soft_mask(
                corners.detach().double().numpy(), seen.numpy(), sigma_inv=sigmainv, box=boxlen, max_faces=knum
            )
            for corners, seen in zip(face_vertices_image, face, strict=True)
        ]
        return features, torch.from_numpy(np.stack(soft)).to(face_vertices_z.dtype), face


@pytest.fixture
def fresh():
    """Nothing is remembered of an import of Kaolin, before the test or after it."""
    kaolin.mesh_module.cache_clear()
    yield
    kaolin.mesh_module.cache_clear()


@pytest.fixture
def installed(fresh, monkeypatch):
    """A stand-in for Kaolin, and tensors on the CPU taken for tensors on CUDA."""
    mesh = StandIn()
    render, package = types.ModuleType("kaolin.render"), types.ModuleType("kaolin")
    render.mesh, package.render = mesh, render
    for name, module in (("kaolin", package), ("kaolin.render", render), ("kaolin.render.mesh", mesh)):
        monkeypatch.setitem(sys.modules, name, module)
    can_draw = kaolin.can_draw
    monkeypatch.setattr(kaolin, "can_draw", lambda normal_z, *rest: can_draw(normal_z.as_subclass(OnCuda), *rest))
    return mesh


class OnCuda(Tensor):
    """A tensor that says it is on CUDA."""

    is_cuda = True


class Refusal:
    """Fails the import of Kaolin."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "kaolin":
            raise self.error


def refuse(monkeypatch, error: Exception) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "kaolin"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusal(error), *sys.meta_path])


@pytest.mark.parametrize("supersample", [1, 2])
def test_pictures_are_those_of_the_reference(installed, supersample, rng):
    mesh, camera = random_scene(2, rng, rings=6)  # the second in perspective
    options = {"size": (20, 28), "supersample": supersample, "sigma_inv": 3000.0, "box": 0.05, "max_faces": 20}
    ours = MeshRenderer(**options)(mesh, camera, extras=EVERYTHING)
    theirs = AutoRenderer(**options)(mesh, camera, extras=EVERYTHING)
    assert installed.calls == ["rasterize", "soft mask"]
    assert torch.equal(theirs.face, ours.face)
    assert (ours.face >= 0).any(3).any(2).all()
    for name in FLOATS:
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), atol=1e-9, rtol=0, msg=name)


def test_gradients_are_those_of_the_reference(installed, rng):
    mesh, camera = random_scene(2, rng, rings=6)
    found = []
    for renderer in (MeshRenderer(24), AutoRenderer(24)):
        leaves = [t.detach().clone().requires_grad_() for t in (mesh.vertices, mesh.texture, camera.quat, camera.shift)]
        vertices, texture, quat, shift = leaves
        image = renderer(
            TexturedMesh(vertices, texture, mesh.template),
            Camera(quat, camera.scale, shift, camera.inv_focal),
            extras=frozenset({"depth", "coords"}),
        )
        loss = image.rgb.square().sum() + image.depth.square().sum() + image.coords.square().sum()
        found.append(torch.autograd.grad(loss, leaves))
    assert installed.calls == ["rasterize"]
    for theirs, ours in zip(*found, strict=True):
        assert ours.abs().max() > 0.1
        torch.testing.assert_close(theirs, ours, atol=1e-7, rtol=1e-6)


def test_attributes_go_the_same_way(installed, rng):
    mesh, camera = random_scene(2, rng, rings=6)
    values = torch.randn(2, mesh.vertices.shape[1], 5, generator=rng, dtype=torch.float64)
    ours, theirs = (renderer(24).attributes(mesh, camera, values) for renderer in (MeshRenderer, AutoRenderer))
    assert installed.calls == ["rasterize"]
    torch.testing.assert_close(theirs, ours, atol=1e-9, rtol=0)


def test_the_soft_mask_is_not_made_unless_asked_for(installed, rng):
    AutoRenderer(24)(*random_scene(1, rng, rings=4), extras=frozenset({"normals"}))
    assert installed.calls == ["rasterize"]


@pytest.mark.parametrize("renderer", [AutoRenderer(22), AutoRenderer(24, constants=KAOLIN_2019)])
def test_few_pixels_and_other_constants_are_left_to_the_reference(installed, renderer, rng):
    mesh, camera = random_scene(1, rng, rings=4)
    expected = MeshRenderer(renderer.size)(mesh, camera, extras=EVERYTHING)
    found = renderer(mesh, camera, extras=EVERYTHING)
    assert installed.calls == []
    for name in FLOATS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


def test_faces_that_all_turn_their_backs_are_left_to_the_reference(installed):
    corner_xy = torch.tensor([[[[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5]]]])
    ones = torch.ones(1, 1, 3)
    raster, soft = AutoRenderer(24).draw(corner_xy, ones, ones, with_soft_mask=True)
    assert installed.calls == []
    assert (raster.face == -1).all()
    assert soft.max() > 0.1


def test_tensors_on_the_cpu_never_reach_kaolin(rng, monkeypatch):
    monkeypatch.setattr(kaolin, "mesh_module", StandIn)
    normal_z = torch.ones(1, 2)
    assert not kaolin.can_draw(normal_z, 64, 64, KAOLIN)
    assert kaolin.can_draw(normal_z.as_subclass(OnCuda), 64, 64, KAOLIN)
    assert backend(torch.device("cpu")) == "plain torch"
    assert backend(torch.device("cuda")) == "Kaolin"


def test_without_kaolin_the_reference_draws(fresh, monkeypatch, recwarn):
    refuse(monkeypatch, ModuleNotFoundError("No module named 'kaolin'", name="kaolin"))
    assert kaolin.mesh_module() is None
    assert backend(torch.device("cuda")) == "plain torch"
    assert not recwarn.list


def test_a_broken_kaolin_is_spoken_of(fresh, monkeypatch):
    refuse(monkeypatch, OSError("undefined symbol: _ZN3c10"))
    with pytest.warns(UserWarning, match="undefined symbol"):
        assert kaolin.mesh_module() is None


# ---- On CUDA ---------------------------------------------------------------------------------------------------------


def with_gradients(renderer: MeshRenderer, mesh: TexturedMesh, camera: Camera) -> tuple:
    leaves = [t.detach().clone().requires_grad_() for t in (mesh.vertices, mesh.texture, camera.quat, camera.scale)]
    vertices, texture, quat, scale = leaves
    image = renderer(
        TexturedMesh(vertices, texture, mesh.template),
        Camera(quat, scale, camera.shift, camera.inv_focal),
        extras=EVERYTHING,
    )
    loss = image.rgb.square().sum() + image.soft_mask.sum() + image.depth.square().sum()
    return image, torch.autograd.grad(loss, leaves)


def assert_alike(first: tuple, second: tuple, tolerance: float, of_gradients: float) -> None:
    """Pictures within `tolerance`, but for a pixel in a thousand on edges; gradients within a share of their norm."""
    (one, its_gradients), (other, other_gradients) = first, second
    same = (one.face.cpu() == other.face.cpu()).double()
    assert same.mean() > 1 - 1e-3
    for name in FLOATS:
        gap = (getattr(one, name).cpu() - getattr(other, name).cpu()).abs() * same
        assert gap.max() < tolerance, name
    for ours, theirs in zip(its_gradients, other_gradients, strict=True):
        assert (ours.cpu() - theirs.cpu()).norm() < of_gradients * ours.cpu().norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance, of_gradients", [(torch.float64, 1e-8, 1e-8), (torch.float32, 2e-4, 2e-2)])
def test_the_reference_draws_the_same_on_cuda(dtype, tolerance, of_gradients, rng):
    mesh, camera = (part.to("cpu", dtype=dtype) for part in random_scene(4, rng))
    on_cpu = with_gradients(MeshRenderer(96), mesh, camera)
    on_cuda = with_gradients(MeshRenderer(96), mesh.to("cuda"), camera.to("cuda"))
    assert_alike(on_cpu, on_cuda, tolerance, of_gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance, of_gradients", [(torch.float64, 1e-5, 1e-3), (torch.float32, 2e-4, 2e-2)])
def test_kaolin_draws_what_the_reference_draws(dtype, tolerance, of_gradients, rng):
    pytest.importorskip("kaolin")
    mesh, camera = (part.to("cuda", dtype=dtype) for part in random_scene(4, rng))
    assert backend(mesh.vertices.device) == "Kaolin"
    ours, theirs = (with_gradients(renderer(96), mesh, camera) for renderer in (MeshRenderer, AutoRenderer))
    assert_alike(ours, theirs, tolerance, of_gradients)


@pytest.mark.gpu
def test_odd_calls_on_cuda(rng):
    """Few pixels, and nothing in sight: with Kaolin or without."""
    mesh, camera = (part.to("cuda", dtype=torch.float32) for part in random_scene(1, rng))
    image, gradients = with_gradients(AutoRenderer((3, 5)), mesh, camera)
    assert torch.isfinite(image.rgb).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    away = TexturedMesh(mesh.vertices + 50, mesh.texture, mesh.template)
    assert (AutoRenderer(32)(away, camera).mask == 0).all()

"""Textured meshes as batches: geometry of the faces, moving, choosing, joining."""

import pytest
import torch

from invkit.geometry.camera import Camera
from meshinv.mesh import TexturedMesh, UVMaps, flatness
from meshinv.template import Template
from tests.meshinv.formulas import displacement_map
from tests.meshinv.test_template import at

TEMPLATE = Template(16)
FLIP = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)


def published_mesh() -> TexturedMesh:
    return UVMaps(torch.zeros(1, 3, 4, 4, dtype=torch.float64), displacement_map()).mesh(TEMPLATE)


def random_meshes(count: int, rng: torch.Generator) -> TexturedMesh:
    maps = UVMaps(torch.rand(count, 3, 4, 4, generator=rng), 0.1 * torch.randn(count, 3, 32, 32, generator=rng))
    return maps.mesh(TEMPLATE)


def test_normals_of_the_sphere_point_outwards():
    mesh = TexturedMesh(TEMPLATE.vertices[None], torch.zeros(1, 3, 2, 2), TEMPLATE)
    normals = mesh.normals()
    torch.testing.assert_close(normals.norm(dim=2), torch.ones(1, 960))
    center = torch.nn.functional.normalize(mesh.corners().mean(2), dim=2)
    assert (normals * center).sum(2).min() > 0.99


def test_a_face_without_area_has_normal_zero_and_no_nan_gradient():
    vertices = torch.zeros(1, len(TEMPLATE.vertices), 3, requires_grad=True)
    mesh = TexturedMesh(vertices, torch.zeros(1, 3, 2, 2), TEMPLATE)
    assert torch.equal(mesh.normals(), torch.zeros(1, 960, 3))
    flatness(mesh).sum().backward()
    assert torch.isfinite(vertices.grad).all()


def test_flatness_is_the_mean_over_neighbors_of_the_released_form(rng):
    mesh = random_meshes(3, rng)
    normals = mesh.normals()
    released = 0.0
    for i in range(3):
        cosine = (normals * normals[:, TEMPLATE.face_neighbors[:, i]]).sum(2)
        released = released + 480 * (cosine - 1).square().mean(1)
    torch.testing.assert_close(flatness(mesh), released)


def test_a_batch_of_meshes_is_indexed_and_joined_with_its_template(rng):
    mesh = random_meshes(3, rng)
    assert len(mesh) == 3
    assert mesh[1].template is mesh.template
    assert torch.equal(mesh[1].vertices, mesh.vertices[1:2])
    again = TexturedMesh.cat([mesh[i] for i in range(3)])
    assert torch.equal(again.vertices, mesh.vertices)
    assert torch.equal(again.texture, mesh.texture)
    assert again.template is mesh.template
    assert len(mesh.repeat(2)) == 6


def test_published_projections():
    camera = Camera.from_cmr(torch.tensor([[0.6, 0.1, -0.05, 0.8, 0.2, -0.4, 0.4]], dtype=torch.float64))
    points = (camera.project(published_mesh().vertices) * FLIP)[0]
    expected = {
        (0, 0): (-0.377041, -0.307780, 0),
        (8, 16): (0.292261, -0.283170, -0.471239),
        (4, 12): (-0.282089, -0.100539, -0.465543),
        (12, 3): (0.147311, 0.588229, 0.195698),
    }
    for place, position in expected.items():
        torch.testing.assert_close(points[at(16, *place)], points.new_tensor(position), atol=2e-6, rtol=0)
    torch.testing.assert_close(points.sum(0), points.new_tensor([39.99654, 26.60754, -5.19613]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "quat, expected",
    [
        (
            (0.612372, 0.353553, -0.612372, 0.353553),
            ((-0.012204, -0.061926, -0.707148), (-0.581397, -0.359873, 0), (-0.289905, 0.664047, 0)),
        ),
        (
            (0.75, 0.433013, -0.433013, 0.25),
            ((0.343005, -0.061926, -0.618510), (-0.503505, -0.359873, -0.290698), (-0.251066, 0.664047, -0.144953)),
        ),
        (
            (0.866025, 0.5, 0, 0),
            ((0.707148, -0.061926, -0.012204), (0, -0.359873, -0.581397), (0, 0.664047, -0.289905)),
        ),
    ],
)
def test_published_novel_views(quat, expected):
    """Azimuths 0, 30 and 90 of the centered mesh at scale 0.7."""
    pose = torch.tensor([[0.7, 0, 0, *quat]], dtype=torch.float64)
    points = (Camera.from_cmr(pose).project(published_mesh().centered().vertices) * FLIP)[0]
    for place, position in zip(((8, 16), (0, 0), (8, 8)), expected, strict=True):
        torch.testing.assert_close(points[at(16, *place)], points.new_tensor(position), atol=3e-6, rtol=0)

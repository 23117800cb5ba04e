"""The UV sphere and its deformation against published numbers and an independent reading of the maps."""

import math

import pytest
import torch
from torch.nn import functional

from meshinv.mesh import TexturedMesh, UVMaps, flatness
from meshinv.template import SEGMENTS, Template, average_poles, mirror_maps, unfold
from tests.meshinv.formulas import displacement_map

DOUBLE = {"dtype": torch.float64}


def at(rings: int, ring: int, segment: int = 0) -> int:
    """Index of the vertex on `ring` and `segment`."""
    if ring in (0, rings):
        return 0 if ring == 0 else 1 + (rings - 1) * SEGMENTS
    return 1 + (ring - 1) * SEGMENTS + segment


def flat_loss(vertices: torch.Tensor, template: Template) -> float:
    blank = vertices.new_zeros(len(vertices), 3, 2, 2)
    return flatness(TexturedMesh(vertices, blank, template)).item()


def texture_columns(count: int) -> torch.Tensor:
    return torch.arange(float(count)).view(1, 1, 1, count)


@pytest.mark.parametrize("rings, counts", [(16, (482, 960, 559, 1440)), (31, (962, 1920, 1054, 2880))])
def test_counts_and_symmetry_bookkeeping(rings, counts):
    template = Template(rings, **DOUBLE)
    found = tuple(map(len, (template.vertices, template.faces, template.uvs, template.edges)))
    assert found == counts
    on_plane = 2 * (rings - 1) + 2
    halves = (counts[0] - on_plane) // 2
    assert [(template.sides == side).sum().item() for side in (1, -1, 0)] == [halves, halves, on_plane]
    mirrored = template.vertices[template.partners] * torch.tensor([-1.0, 1, 1], **DOUBLE)
    assert torch.equal(mirrored, template.vertices)
    torch.testing.assert_close(template.vertices.norm(dim=1), torch.ones(counts[0], **DOUBLE))


@pytest.mark.parametrize("rings", [3, 16, 31])
def test_the_sphere_is_closed_and_oriented(rings):
    template = Template(rings, **DOUBLE)
    assert len(template.vertices) - len(template.edges) + len(template.faces) == 2
    halves = torch.cat([template.faces[:, [i, (i + 1) % 3]] for i in range(3)]).tolist()
    assert sorted(halves) == sorted([b, a] for a, b in halves), "every edge is walked once in each direction"
    a, b, c = template.vertices[template.faces].unbind(1)
    outwards = (torch.linalg.cross(b - a, c - a) * (a + b + c)).sum(1)
    assert (outwards > 0).all()
    a, b, c = template.uvs[template.face_uvs].unbind(1)
    (px, py), (qx, qy) = (b - a).unbind(1), (c - a).unbind(1)
    assert (px * qy - py * qx > 0).all()


def test_uv_entries_belong_to_their_vertices():
    template = Template(16, **DOUBLE)
    u, v = template.uvs[template.face_uvs].unbind(-1)
    polar, turn = math.pi * (1 - v), 2 * math.pi * u
    position = torch.stack([-polar.sin() * turn.cos(), polar.cos(), polar.sin() * turn.sin()], dim=-1)
    torch.testing.assert_close(position, template.vertices[template.faces])


def test_the_triangulation_is_its_own_mirror_image():
    for rings in (16, 31):
        template = Template(rings)
        faces = {frozenset(face) for face in template.faces.tolist()}
        mirrored = {frozenset(face) for face in template.partners[template.faces].tolist()}
        assert faces == mirrored


def test_the_two_templates_split_their_cells_along_opposite_diagonals():
    def has_edge(rings, first, second):
        a, b = at(rings, *first), at(rings, *second)
        return [min(a, b), max(a, b)] in Template(rings).edges.tolist()

    assert has_edge(16, (7, 12), (8, 13))
    assert has_edge(16, (7, 4), (8, 3))
    assert has_edge(31, (7, 13), (8, 12))
    assert has_edge(31, (7, 3), (8, 4))


def test_first_corners_are_those_of_the_published_file():
    faces = Template(16).faces.tolist()
    assert [at(16, 1, 6), at(16, 0), at(16, 1, 5)] in faces
    assert [at(16, 16), at(16, 15, 6), at(16, 15, 5)] in faces
    assert [at(16, 8, 13), at(16, 7, 12), at(16, 8, 12)] in faces
    assert [at(16, 7, 4), at(16, 8, 3), at(16, 8, 4)] in faces


def test_neighbors_share_the_edge_they_are_listed_for():
    template = Template(16)
    faces, neighbors = template.faces.tolist(), template.face_neighbors.tolist()
    for face, around in zip(faces, neighbors, strict=True):
        for i, other in enumerate(around):
            assert {face[i], face[(i + 1) % 3]} <= set(faces[other])
            assert faces[other] != face
    for (a, b), (first, second) in zip(template.edges.tolist(), template.edge_faces.tolist(), strict=True):
        assert {a, b} <= set(faces[first])
        assert {a, b} <= set(faces[second])
        assert first != second


def test_tangent_frames():
    template = Template(16, **DOUBLE)
    root = math.sqrt(0.5)
    expected = {
        (4, 12): [[0.5, root, 0.5], [-root, 0, root], [0.5, -root, 0.5]],
        (8, 8): [[0, 0, 1], [-1, 0, 0], [0, -1, 0]],
    }
    for (ring, segment), frame in expected.items():
        torch.testing.assert_close(
            template.frames[at(16, ring, segment)], torch.tensor(frame, **DOUBLE), atol=1e-6, rtol=0
        )
    for ring in (0, 16):
        assert torch.equal(template.frames[at(16, ring)][1:], torch.zeros(2, 3, **DOUBLE))


@pytest.mark.parametrize(
    "channel, expected",
    [
        (0, {(8, 16): (1.2, 0, 0), (4, 4): (-0.6, 0.84853, 0.6), (0, 0): (0, 1.2, 0)}),
        (
            1,
            {
                (8, 16): (1, 0, 0.2),
                (8, 8): (0, 0, 1),
                (4, 12): (0.35858, 0.70711, 0.64142),
                (4, 4): (-0.35858, 0.70711, 0.64142),
                (0, 0): (0, 1, 0),
            },
        ),
        (2, {(8, 8): (0, -0.2, 1), (4, 12): (0.6, 0.56569, 0.6)}),
    ],
)
def test_a_constant_map_moves_along_one_direction_of_the_frames(channel, expected):
    maps = torch.zeros(1, 3, 32, 32)
    maps[:, channel] = 0.2
    vertices = Template(16).deform(maps)[0]
    for place, position in expected.items():
        torch.testing.assert_close(vertices[at(16, *place)], torch.tensor(position).float(), atol=1e-5, rtol=0)


SYMMETRIC_16 = {
    (0, 0): (0, 0.993835, 0),
    (16, 0): (0, -0.985657, 0),
    (8, 16): (1.010212, 0.076822, -0.037951),
    (8, 8): (0, -0.098164, 1.058565),
    (8, 24): (0, -0.015133, -0.926375),
    (8, 0): (-1.010212, 0.076822, -0.037951),
    (4, 12): (0.511902, 0.659991, 0.610639),
    (4, 4): (-0.511902, 0.659991, 0.610639),
    (1, 20): (0.253906, 1.066409, -0.128408),
    (15, 13): (0.224235, -0.87675, 0.054391),
}
FREE_16 = {
    (0, 0): (0, 1.00875, 0),
    (16, 0): (0, -1.000443, 0),
    (8, 16): (0.995423, 0.086111, -0.051669),
    (8, 8): (-0.095537, -0.097171, 1.070513),
    (8, 24): (-0.019336, -0.029825, -0.936238),
    (8, 0): (-0.900586, 0.057195, 0.089228),
    (4, 12): (0.513693, 0.667145, 0.627283),
    (4, 4): (-0.343053, 0.69979, 0.483116),
    (1, 20): (0.240921, 1.069453, -0.124688),
    (15, 13): (0.208582, -0.881402, 0.054619),
}
SYMMETRIC_31 = {
    (15, 16): (1.015142, 0.122228, -0.028843),
    (15, 8): (0, -0.045482, 1.054291),
    (4, 12): (0.296825, 0.858457, 0.302084),
    (1, 20): (0.195953, 1.083373, -0.061067),
    (30, 13): (0.133389, -0.899223, 0.008455),
}


@pytest.mark.parametrize(
    "rings, symmetric, expected, total, squares, flat",
    [
        (16, True, SYMMETRIC_16, 22.86408, 488.96686, 15.18837),
        (16, False, FREE_16, 4.15107, 488.99714, 34.25660),
        (31, True, SYMMETRIC_31, 45.03886, 975.93837, 76.18772),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_vertices_of_a_map_given_by_a_formula(rings, symmetric, expected, total, squares, flat, dtype):
    template = Template(rings, symmetric)
    vertices = template.deform(displacement_map().to(dtype))
    assert vertices.dtype == dtype
    for place, position in expected.items():
        found = vertices[0, at(rings, *place)]
        torch.testing.assert_close(found, torch.tensor(position, dtype=dtype), atol=2e-6, rtol=0)
    assert vertices.sum().item() == pytest.approx(total, abs=1e-3)
    assert vertices.square().sum().item() == pytest.approx(squares, abs=1e-3)
    assert flat_loss(vertices, template) == pytest.approx(flat, abs=1e-3)


@pytest.mark.parametrize("rings, flat", [(16, 0.248119), (31, 0.163043)])
def test_flatness_of_the_sphere(rings, flat):
    template = Template(rings)
    assert flat_loss(template.vertices[None], template) == pytest.approx(flat, abs=1e-5)


def test_a_half_map_is_averaged_unfolded_and_read():
    template = Template(16)
    vertices = template.deform(unfold(average_poles(displacement_map(32, 16))))
    assert vertices.sum().item() == pytest.approx(-23.44025, abs=1e-3)
    assert vertices.square().sum().item() == pytest.approx(490.12377, abs=1e-3)
    for place, position in {(8, 16): (1.058565, -0.098164, 0.089296), (8, 12): (0.674351, -0.041692, 0.665676)}.items():
        found = vertices[0, at(16, *place)]
        torch.testing.assert_close(found, torch.tensor(position, **DOUBLE), atol=2e-6, rtol=0)
    torch.testing.assert_close(vertices[0, 0], torch.tensor([0, 0.982254, 0], **DOUBLE), atol=2e-6, rtol=0)
    assert flat_loss(vertices, template) == pytest.approx(45.64559, abs=1e-3)


def vertices_by_grid_sample(template: Template, maps: torch.Tensor) -> torch.Tensor:
    """The same by padding the map and sampling it with align_corners, as the released code does."""
    width = maps.shape[3]
    u, v = template.vertex_uvs.unbind(1)
    if template.symmetric:
        padded = functional.pad(maps, (1, 1, 0, 0), mode="circular")
        u = (u + 1 / (2 * width)) / ((width + 1) / width)
    else:
        padded = torch.cat([maps, maps[..., :1]], dim=3)
    grid = torch.stack([2 * u - 1, 1 - 2 * v], dim=1)[None, None].expand(len(maps), -1, -1, -1)
    along = functional.grid_sample(padded, grid, align_corners=True)[:, :, 0].transpose(1, 2)
    offset = torch.einsum("bvc,vcx->bvx", along, template.frames)
    if template.symmetric:
        flip = torch.tensor([-1.0, 1, 1], dtype=maps.dtype)
        offset = torch.where((template.sides < 0)[:, None], offset[:, template.partners] * flip, offset)
        offset[..., 0] *= (template.sides != 0).to(maps.dtype)
    return template.vertices + offset


@pytest.mark.parametrize("rings", [5, 16, 31])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (20, 16)])
def test_reading_a_map_equals_sampling_the_padded_map(rings, symmetric, size, rng):
    template = Template(rings, symmetric, **DOUBLE)
    maps = torch.rand(2, 3, *size, generator=rng, **DOUBLE)
    torch.testing.assert_close(template.deform(maps), vertices_by_grid_sample(template, maps), atol=1e-12, rtol=0)


def test_gradients_of_the_deformation(rng):
    template = Template(4, **DOUBLE)
    maps = torch.rand(1, 3, 5, 8, generator=rng, requires_grad=True, **DOUBLE)
    assert torch.autograd.gradcheck(template.deform, maps)


def test_a_symmetric_template_makes_symmetric_meshes_of_any_map(rng):
    template = Template(16)
    vertices = template.deform(torch.randn(2, 3, 32, 32, generator=rng))
    mirrored = vertices[:, template.partners] * torch.tensor([-1.0, 1, 1])
    assert torch.equal(vertices, mirrored)


def test_unfolding_reflects_at_both_borders():
    columns = unfold(texture_columns(16)).flatten().tolist()
    assert columns == [*range(7, -1, -1), *range(16), *range(15, 7, -1)]
    with pytest.raises(ValueError, match="even number of columns"):
        unfold(texture_columns(7))


def test_poles_are_averaged_over_columns_and_nothing_else(rng):
    maps = torch.rand(2, 3, 6, 8, generator=rng)
    averaged = average_poles(maps)
    assert torch.equal(averaged[:, :, 1:-1], maps[:, :, 1:-1])
    for row in (0, -1):
        torch.testing.assert_close(averaged[:, :, row], maps[:, :, row].mean(2, keepdim=True).expand(-1, -1, 8))


@pytest.mark.parametrize("width, order", [(8, [3, 2, 1, 0, 7, 6, 5, 4]), (7, [3, 2, 1, 0, 6, 5, 4])])
def test_columns_of_a_mirrored_map(width, order):
    assert mirror_maps(texture_columns(width)).flatten().tolist() == order


def test_mirroring_leaves_an_unfolded_map_alone(rng):
    maps = unfold(torch.rand(1, 3, 4, 8, generator=rng))
    assert torch.equal(mirror_maps(maps), maps)


@pytest.mark.parametrize("symmetric, shift", [(True, 0.5), (False, 0.0)])
def test_a_padded_texture_is_read_at_the_wrapped_column(symmetric, shift):
    """On a texture that is periodic and linear in between, sampling at u reads column u W - shift."""
    template, width = Template(16, symmetric, **DOUBLE), 12
    texture = torch.sin(2 * math.pi * torch.arange(width, **DOUBLE) / width).expand(1, 1, 5, width)
    padded, uvs = template.pad_texture(texture), template.texture_uvs(width)
    grid = torch.stack([2 * uvs[:, 0] - 1, 1 - 2 * uvs[:, 1]], dim=1)[None, None]
    found = functional.grid_sample(padded, grid, align_corners=True).flatten()
    column = template.uvs[:, 0] * width - shift
    low = column.floor()
    values = texture[0, 0, 0]
    expected = torch.lerp(values[low.long() % width], values[(low.long() + 1) % width], column - low)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_templates_are_values_and_moving_them_makes_no_copies():
    template = Template(16)
    assert template == Template(16)
    assert hash(template) == hash(Template(16))
    assert template != Template(16, symmetric=False)
    double = template.to("cpu", torch.float64)
    assert double is template.to("cpu", torch.float64)
    assert double.to("cpu") is double
    assert double.vertices.dtype == torch.float64
    assert double.faces.dtype == torch.int64


def test_a_template_first_used_in_inference_mode_can_be_trained_with():
    template = Template(7)
    with torch.inference_mode():
        template.deform(torch.zeros(1, 3, 8, 8))
    maps = torch.zeros(1, 3, 8, 8, requires_grad=True)
    template.deform(maps).square().sum().backward()
    assert maps.grad.abs().sum() > 0


def test_too_few_rings_are_refused():
    with pytest.raises(ValueError, match="rings=2"):
        Template(2)


def test_maps_become_meshes_and_the_template_follows_them():
    maps = UVMaps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 32, 32))
    mesh = maps.mesh(Template(16))
    assert torch.equal(mesh.vertices, Template(16).vertices.expand(2, -1, -1))
    assert mesh.to("cpu", dtype=torch.float64).template.dtype == torch.float64

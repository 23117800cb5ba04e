"""The rasterizer against published numbers, a brute-force one, ray casting, and finite differences."""

import math

import numpy as np
import pytest
import torch

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import resize_bilinear
from meshinv.mesh import TexturedMesh, Topology, UVMaps, face_corners
from meshinv.renderers.raster import KAOLIN, KAOLIN_2019, rasterize
from meshinv.renderers.reference import MeshRenderer, corners_on_screen, facing
from meshinv.renderers.soft_mask import soft_mask
from meshinv.renderers.uv import project_to_uv, visible_texels
from meshinv.template import Template
from tests.meshinv import brute_force
from tests.meshinv.formulas import displacement_map
from tests.meshinv.slow_renderers import BruteForceRenderer, DenseRenderer
from tests.meshinv.test_template import at

TEMPLATE = Template(16)
EVERYTHING = frozenset({"soft_mask", "depth", "normals", "coords", "face"})


def texture(height: int = 16, width: int = 16) -> torch.Tensor:
    """sin(2 pi (c + 1)(x + 1/2) / W) cos(pi (y + 1/2) / H); [1, 3, height, width], float64."""
    c, y, x = (torch.arange(n, dtype=torch.float64) for n in (3, height, width))
    around = torch.sin(2 * math.pi * (c[:, None, None] + 1) * (x + 0.5) / width)
    return (around * torch.cos(math.pi * (y[:, None] + 0.5) / height))[None]


def published_mesh(dtype: torch.dtype = torch.float64) -> TexturedMesh:
    return UVMaps(texture(), displacement_map()).mesh(TEMPLATE).to("cpu", dtype=dtype)


def published_camera(dtype: torch.dtype = torch.float64) -> Camera:
    return Camera.from_cmr(torch.tensor([[0.6, 0.1, -0.05, 0.8, 0.2, -0.4, 0.4]], dtype=dtype))


def random_scene(count: int, rng: torch.Generator, rings: int = 16) -> tuple[TexturedMesh, Camera]:
    """Bumpy meshes seen from anywhere, some of them reaching out of the image; every second one in perspective."""
    like = {"generator": rng, "dtype": torch.float64}
    maps = UVMaps(torch.rand(count, 3, 8, 8, **like) * 2 - 1, 0.1 * torch.randn(count, 3, 32, 32, **like))
    camera = Camera(
        rotation.normalize(torch.randn(count, 4, **like)),
        0.3 + 0.4 * torch.rand(count, **like),
        torch.rand(count, 2, **like) - 0.5,
        0.4 * (torch.arange(count) % 2).double(),
    )
    return maps.mesh(Template(rings)), camera


def soup(count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersecting triangles of all sizes, in and out of the image; [1, F, 3, 2] and [1, F, 3]."""
    like = {"generator": rng, "dtype": torch.float64}
    middle, size = 2.4 * torch.rand(count, 1, 2, **like) - 1.2, torch.rand(count, 1, 1, **like) ** 3
    corner_xy = middle + size * torch.randn(count, 3, 2, **like)
    corner_xy[:4] = corner_xy[:4, :1]  # a point
    corner_xy[4:8, 2] = 2 * corner_xy[4:8, 1] - corner_xy[4:8, 0]  # a line
    return corner_xy[None], torch.randn(1, count, 3, **like)


def clockwise_too(corner_xy: torch.Tensor) -> torch.Tensor:
    return torch.ones(corner_xy.shape[:2], dtype=corner_xy.dtype)


def brute(corner_xy, corner_z, normal_z, height, width):
    return brute_force.nearest_faces(*(t[0].numpy() for t in (corner_xy, corner_z, normal_z)), height, width)


# ---- Published numbers ---------------------------------------------------------------------------------------------

PUBLISHED = {
    32: (303, (-7.15801, -5.87331, -16.82226), 93.44675, 320.12863),
    64: (1212, (-29.33828, -21.65575, -61.40712), 378.56591, 1278.60571),
    256: (19411, (-438.0433, -353.4989, -1001.3761), 6102.7077, 20478.8733),
}


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constants", [KAOLIN, KAOLIN_2019])
def test_published_sums(size, dtype, constants):
    covered, colors, squares, soft = PUBLISHED[size]
    renderer = MeshRenderer(size, constants=constants)
    image = renderer(published_mesh(dtype), published_camera(dtype), extras=frozenset({"soft_mask", "depth"}))
    tolerance = 2e-6 * size**2
    assert image.rgb.dtype == dtype
    assert image.mask.sum() == covered
    assert image.rgb.sum((0, 2, 3)).tolist() == pytest.approx(colors, abs=tolerance)
    assert image.rgb.square().sum().item() == pytest.approx(squares, abs=tolerance)
    assert image.soft_mask.sum().item() == pytest.approx(soft, abs=tolerance)
    if size in (64, 256):
        depth = {64: 449.45197, 256: 7198.5175}[size]
        assert -image.depth.sum().item() == pytest.approx(depth, abs=tolerance)
    if size == 64 and dtype == torch.float64:
        assert ((image.soft_mask > 0) & (image.soft_mask < 1)).sum() == 182


@pytest.mark.parametrize(
    "size, pixel, color, depth, corners, weights",
    [
        (
            64,
            (32, 32),
            (-0.042891, -0.071704, -0.077091),
            0.55924,
            ((7, 30), (7, 29), (8, 29)),
            (0.15966, 0.28336, 0.55698),
        ),
        (
            64,
            (16, 32),
            (-0.097844, -0.182559, -0.244677),
            0.373248,
            ((10, 2), (10, 1), (11, 1)),
            (0.28437, 0.48605, 0.22959),
        ),
        (64, (40, 24), (-0.445211, -0.608354, -0.419770), 0.423577, ((4, 29), (4, 28), (5, 28)), None),
        (256, (128, 128), (-0.043148, -0.072472, -0.078781), None, None, None),
        (256, (64, 128), (-0.106942, -0.195533, -0.252926), None, None, None),
    ],
)
def test_published_pixels(size, pixel, color, depth, corners, weights):
    mesh, camera = published_mesh(), published_camera()
    image = MeshRenderer(size)(mesh, camera, extras=frozenset({"depth", "face"}))
    row, column = pixel
    assert image.rgb[0, :, row, column].tolist() == pytest.approx(color, abs=2e-5)
    if depth is not None:
        assert -image.depth[0, 0, row, column].item() == pytest.approx(depth, abs=2e-5)
        face = image.face[0, 0, row, column]
        named = [at(16, *corner) for corner in corners]
        assert sorted(mesh.template.faces[face].tolist()) == sorted(named)
    if weights is not None:
        corner_xy, corner_z, _ = corners_on_screen(mesh, camera)
        raster = rasterize(corner_xy, corner_z, facing(corner_xy), size, size)
        place = (raster.pixel == row * size + column).nonzero().item()
        by_vertex = dict(zip(mesh.template.faces[face].tolist(), raster.weights[:, place].tolist(), strict=True))
        assert [by_vertex[vertex] for vertex in named] == pytest.approx(weights, abs=2e-5)


@pytest.mark.parametrize(
    "size, of_vertices, of_texture, of_soft",
    [
        (32, ((-33.0775, -17.1301), 7649.89), (-59.7072, 970.026), ((21.8562, -71.8474), 21594.4)),
        (64, ((-504.29, -522.11), 315853.0), (-224.8023, 15110.52), ((62.9458, -176.9488), 263237.2)),
    ],
)
def test_published_gradients(size, of_vertices, of_texture, of_soft):
    """Of the sum of squared colors and of the soft mask, with respect to projected vertices and texture."""
    flat_view = Camera.from_cmr(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]], dtype=torch.float64))
    posed = published_camera().project(published_mesh().vertices).requires_grad_()
    colors = texture().requires_grad_()
    image = MeshRenderer(size)(TexturedMesh(posed, colors, TEMPLATE), flat_view, extras=frozenset({"soft_mask"}))
    upwards = posed.new_tensor([1.0, -1.0, -1.0])

    by_vertex, by_texel = torch.autograd.grad(image.rgb.square().sum(), [posed, colors], retain_graph=True)
    by_vertex = by_vertex * upwards
    assert by_vertex.sum((0, 1)).tolist() == pytest.approx([*of_vertices[0], 0], rel=1e-3, abs=1e-9)
    assert by_vertex.square().sum().item() == pytest.approx(of_vertices[1], rel=1e-3)
    assert by_texel.sum().item() == pytest.approx(of_texture[0], rel=1e-4)
    assert by_texel.square().sum().item() == pytest.approx(of_texture[1], rel=1e-4)

    (by_vertex,) = torch.autograd.grad(image.soft_mask.sum(), posed)
    by_vertex = by_vertex * upwards
    assert by_vertex.sum((0, 1)).tolist() == pytest.approx([*of_soft[0], 0], rel=5e-4, abs=1e-9)
    assert by_vertex.square().sum().item() == pytest.approx(of_soft[1], rel=1e-4)


def test_published_sphere():
    sphere = TexturedMesh(TEMPLATE.vertices[None], texture().float(), TEMPLATE)
    camera = Camera.from_cmr(torch.tensor([[0.7, 0, 0, 1, 0, 0, 0]]))
    image = MeshRenderer(64)(sphere, camera, extras=frozenset({"soft_mask", "depth"}))
    assert image.mask.sum() == 1568
    assert image.rgb.sum((0, 2, 3)).tolist() == pytest.approx((0.94309, 0.00002, -2.68002), abs=4e-3)
    for (row, column), color, depth in (
        ((32, 32), (-0.020624, 0.000938, 0.017484), 0.696922),
        ((20, 40), (0.427240, -0.361389, -0.069907), 0.532606),
    ):
        assert image.rgb[0, :, row, column].tolist() == pytest.approx(color, abs=2e-5)
        assert -image.depth[0, 0, row, column].item() == pytest.approx(depth, abs=2e-5)
    # Both poles lie on the outline, 32 faces around each: which 30 of them count depends on the order of the faces,
    # and only the published file has the published one.
    assert image.soft_mask.sum().item() == pytest.approx(1648.03898, abs=0.1)
    assert image.soft_mask[0, 0, 32, 7:11].tolist() == pytest.approx((0, 0, 0.998500, 1), abs=1e-5)


def test_published_texture_of_a_photograph():
    mesh, camera = published_mesh(torch.float32), published_camera(torch.float32)
    c, y, x = (torch.arange(float(n)) for n in (3, 64, 64))
    photo = (torch.sin(0.1 * (c[:, None, None] + 1) * x) * torch.cos(0.07 * y[:, None]))[None]
    colors, covered = project_to_uv(mesh, camera, photo, 64)
    assert covered.sum((0, 1, 3)).tolist() == [0, 0, *[64] * 60, 0, 0]
    assert colors.sum((0, 2, 3)).tolist() == pytest.approx((-301.4869, 466.2468, -36.2520), abs=4e-3)
    assert colors[0, :, 20, 30].tolist() == pytest.approx((-0.076215, 0.151377, -0.224454), abs=2e-5)

    visible = visible_texels(mesh, camera, 128)
    assert visible.sum() == 143
    seen = (resize_bilinear(visible.float(), 64) > 0).float()
    assert seen.sum() == 2672
    assert (seen * covered).sum() == 2576
    assert (colors * seen * covered).sum((0, 2, 3)).tolist() == pytest.approx((-146.1853, 238.2844, 3.8813), abs=4e-3)


# ---- Brute force ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(24, 24), (17, 40), (31, 5), (1, 1), (1, 30)])
@pytest.mark.parametrize("max_pairs", [1 << 20, 300])
def test_a_soup_of_triangles_equals_brute_force(height, width, max_pairs, rng):
    corner_xy, corner_z = soup(120, rng)
    normal_z = facing(corner_xy)
    raster = rasterize(corner_xy, corner_z, normal_z, height, width, max_pairs=max_pairs)
    face, weights, depth = brute(corner_xy, corner_z, normal_z, height, width)
    assert np.array_equal(raster.face[0].numpy(), face)
    assert np.array_equal(raster.pixel.numpy(), np.flatnonzero(face >= 0))
    covered = torch.from_numpy(weights[face >= 0])
    torch.testing.assert_close(raster.weights.T, covered, atol=1e-9, rtol=0)
    found = raster.image(raster.interpolate(corner_z[..., None]))[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(np.where(face >= 0, depth, 0)), atol=1e-8, rtol=0)

    soft = soft_mask(corner_xy, raster.face, sigma_inv=300.0, box=0.15, max_faces=9, max_pairs=max_pairs)
    expected = brute_force.soft_mask(corner_xy[0].numpy(), face, sigma_inv=300.0, box=0.15, max_faces=9)
    torch.testing.assert_close(soft[0], torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_back_faces_that_are_asked_for_are_drawn(rng):
    corner_xy, corner_z = soup(60, rng)
    raster = rasterize(corner_xy, corner_z, clockwise_too(corner_xy), 20, 20)
    face, weights, _ = brute(corner_xy, corner_z, clockwise_too(corner_xy), 20, 20)
    assert np.array_equal(raster.face[0].numpy(), face)
    assert (facing(corner_xy)[0, raster.owner] < 0).any()
    torch.testing.assert_close(raster.weights.T, torch.from_numpy(weights[face >= 0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [32, 64])
def test_meshes_equal_brute_force(size, rng):
    mesh, camera = random_scene(3, rng)
    corner_xy, corner_z, _ = corners_on_screen(mesh, camera)
    raster = rasterize(corner_xy, corner_z, facing(corner_xy), size, size)
    soft = soft_mask(corner_xy, raster.face)
    in_single = rasterize(corner_xy.float(), corner_z.float(), facing(corner_xy).float(), size, size)
    for i in range(3):
        one = slice(i, i + 1)
        face, _, _ = brute(corner_xy[one], corner_z[one], facing(corner_xy)[one], size, size)
        assert np.array_equal(raster.face[i].numpy(), face)
        expected = brute_force.soft_mask(corner_xy[i].numpy(), face)
        torch.testing.assert_close(soft[i], torch.from_numpy(expected), atol=1e-12, rtol=0)
        assert (in_single.face[i].numpy() != face).mean() < 1e-3


def test_colors_equal_a_texture_looked_up_by_hand(rng):
    mesh, camera = random_scene(1, rng)
    size, count = 40, mesh.texture.shape[3]
    image = MeshRenderer(size)(mesh, camera).rgb[0].numpy()
    corner_xy, corner_z, _ = corners_on_screen(mesh, camera)
    face, weights, _ = brute(corner_xy, corner_z, facing(corner_xy), size, size)
    template, colors = mesh.template, mesh.texture[0].numpy()
    for row, column in np.argwhere(face >= 0)[::7]:
        uvs = template.uvs[template.face_uvs[face[row, column]]].numpy()
        u, v = weights[row, column] @ uvs
        x, y = u * count - 0.5, (1 - v) * (count - 1)
        x0, y0 = math.floor(x), min(math.floor(y), count - 2)
        left, right = colors[:, :, x0 % count], colors[:, :, (x0 + 1) % count]
        line = left * (1 - (x - x0)) + right * (x - x0)
        expected = line[:, y0] * (1 - (y - y0)) + line[:, y0 + 1] * (y - y0)
        assert image[:, row, column] == pytest.approx(expected, abs=1e-9)
    assert (image[:, face < 0] == 0).all()


@pytest.mark.parametrize("slow", [BruteForceRenderer, DenseRenderer])
@pytest.mark.parametrize("supersample", [1, 2])
def test_pictures_equal_those_of_slow_renderers(slow, supersample, rng):
    mesh, camera = random_scene(2, rng, rings=5)  # the second in perspective
    options = {"size": (12, 17), "supersample": supersample, "sigma_inv": 2000.0, "box": 0.05}
    image, expected = (kind(**options)(mesh, camera, extras=EVERYTHING) for kind in (MeshRenderer, slow))
    for name in ("rgb", "mask", *EVERYTHING):
        torch.testing.assert_close(getattr(image, name), getattr(expected, name), atol=1e-9, rtol=0, msg=name)


def test_gradients_equal_those_of_autograd_over_all_pairs(rng):
    mesh, camera = random_scene(2, rng, rings=5)
    gradients = []
    for kind in (MeshRenderer, DenseRenderer):
        leaves = [t.detach().clone().requires_grad_() for t in (mesh.vertices, mesh.texture, *vars(camera).values())]
        vertices, colors, *pose = leaves
        posed = TexturedMesh(vertices, colors, mesh.template)
        image = kind(16, sigma_inv=1000.0, box=0.05)(posed, Camera(*pose), extras=EVERYTHING)
        loss = image.rgb.square().sum() + image.soft_mask.square().sum() + image.depth.square().sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
    assert gradients[0][0].norm() > 1


@pytest.mark.parametrize("inv_focal", [0.0, 0.5])
def test_pixels_show_what_their_rays_meet(inv_focal, rng):
    """Against ray casting in the object frame, which shares nothing with projecting and rasterizing."""
    mesh, camera = random_scene(1, rng, rings=6)
    camera = Camera(camera.quat, camera.scale, camera.shift, camera.inv_focal + inv_focal)
    size = 48
    image = MeshRenderer(size)(mesh, camera, extras=EVERYTHING)
    rays = camera.rays(size)
    origins, directions = (t.reshape(-1, 3).numpy() for t in (rays.origins, rays.directions))
    triangles = mesh.corners()[0].numpy()
    hit, face, point = brute_force.first_hits(origins, directions, triangles)
    assert np.array_equal(image.mask.flatten().numpy() > 0, hit)
    assert np.array_equal(image.face.flatten().numpy(), face)
    coords = image.coords[0].flatten(1).T.numpy()
    assert np.abs(coords[hit] - point[hit]).max() < 1e-9
    depth = camera.project(torch.from_numpy(point)[None])[0, :, 2].numpy()
    assert np.abs(image.depth.flatten().numpy()[hit] - depth[hit]).max() < 1e-9
    normals = rotation.rotate(camera.quat, mesh.normals())[0].numpy()
    assert np.abs(image.normals[0].flatten(1).T.numpy()[hit] - normals[face[hit]]).max() < 1e-9
    if inv_focal == 0:
        assert (image.normals[0, 2][image.mask[0, 0] > 0] < 0).all()


# ---- Gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inv_focal, supersample", [(0.0, 1), (0.3, 1), (0.3, 2)])
def test_gradients_of_the_picture(inv_focal, supersample, rng):
    """To vertices, texture and camera, by finite differences small enough to leave every pixel with its face."""
    mesh, camera = random_scene(1, rng, rings=4)
    mesh = TexturedMesh(mesh.vertices, torch.rand(1, 3, 3, 4, generator=rng, dtype=torch.float64), mesh.template)
    renderer = MeshRenderer((11, 9), supersample=supersample)
    carried = torch.randn(1, mesh.vertices.shape[1], 2, generator=rng, dtype=torch.float64)

    def picture(vertices, colors, quat, scale, shift, inverse):
        posed, seen_from = TexturedMesh(vertices, colors, mesh.template), Camera(quat, scale, shift, inverse)
        image = renderer(posed, seen_from, extras=frozenset({"depth", "coords", "normals"}))
        return image.rgb, image.depth, image.coords, image.normals, renderer.attributes(posed, seen_from, carried)

    inputs = [mesh.vertices, mesh.texture, camera.quat, camera.scale, camera.shift, camera.inv_focal + inv_focal]
    assert renderer(mesh, camera).mask.sum() >= 6
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(picture, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


def test_gradients_of_the_soft_mask(rng):
    corner_xy, corner_z = soup(40, rng)
    clear_cut = facing(corner_xy)[0].abs() > 1e-2  # of a tiny triangle the nearest edge changes within a step
    corner_xy, corner_z = corner_xy[:, clear_cut], corner_z[:, clear_cut]
    covered = rasterize(corner_xy, corner_z, facing(corner_xy), 9, 8).face
    assert 0 < (covered >= 0).sum() < covered.numel()

    def soft(corners):
        return soft_mask(corners, covered, sigma_inv=20.0, box=0.3, max_faces=4, constants=KAOLIN_2019)

    assert torch.autograd.gradcheck(soft, corner_xy.requires_grad_(), eps=1e-7, atol=1e-6)


def test_masks_and_occlusion_borders_carry_no_gradient(rng):
    mesh, camera = random_scene(1, rng)
    vertices = mesh.vertices.clone().requires_grad_()
    plain = TexturedMesh(vertices, torch.ones(1, 3, 4, 4, dtype=torch.float64), mesh.template)
    image = MeshRenderer(32)(plain, camera)
    assert not image.mask.requires_grad
    image.rgb.sum().backward()
    assert vertices.grad.abs().max() < 1e-9


def moved(mesh: TexturedMesh, camera: Camera, depth: list[float]) -> torch.Tensor:
    """The vertices with the first few of them moved to these depths, 0 at the object's center, -1 at the camera's."""
    seen = rotation.rotate(camera.quat, mesh.vertices).clone()
    focal = 1 / (camera.scale * camera.inv_focal).clamp(min=1e-3)
    seen[:, : len(depth), 2] = focal[:, None] * seen.new_tensor(depth)
    return rotation.rotate(rotation.conjugate(camera.quat), seen)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (3, 40)])
@pytest.mark.parametrize(
    "shape",
    ["collapsed", "flat", "beside the image", "across the border", "behind the camera", "at the camera", "needles"],
)
def test_no_gradient_is_nan(shape, size, rng):
    mesh, camera = random_scene(2, rng)
    needles = mesh.vertices.clone()
    needles[:, ::3] *= 1e-7
    vertices = {
        "collapsed": mesh.vertices * 0,
        "flat": mesh.vertices * torch.tensor([1.0, 0, 1]),
        "beside the image": mesh.vertices + 20,
        "across the border": mesh.vertices * 4,
        "behind the camera": mesh.vertices * 30,
        "at the camera": moved(mesh, camera, [-1.0, -1 + 1e-7, -1 - 1e-7, -1 + 1e-4, -1 + 2e-3]),
        "needles": needles,
    }[shape].float()
    leaves = [vertices, mesh.texture.float(), *(t.float() for t in (camera.quat, camera.scale, camera.shift))]
    leaves = [leaf.detach().requires_grad_() for leaf in (*leaves, camera.inv_focal.float())]
    vertices, colors, quat, scale, shift, inv_focal = leaves
    image = MeshRenderer(size)(
        TexturedMesh(vertices, colors, mesh.template), Camera(quat, scale, shift, inv_focal), extras=EVERYTHING
    )
    total = sum(t.sum() for t in (image.rgb, image.soft_mask, image.depth, image.normals, image.coords))
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_a_vertex_on_the_plane_of_the_camera_hides_its_faces_and_no_others():
    """Weight exactly 0 = 1 + k s Z, where projecting divides by nothing."""
    mesh = published_mesh()
    vertices = mesh.vertices.clone()
    vertices[0, at(16, 8, 24)] = torch.tensor([0.0, 0, -2]).double()  # 2 before the center, f = 1
    vertices.requires_grad_()
    camera = Camera(
        rotation.identity(1, dtype=torch.float64), *(torch.tensor(t).double() for t in ([0.5], [[0.0, 0]], [1.0]))
    )
    renderer = MeshRenderer(64)
    image = renderer(TexturedMesh(vertices, mesh.texture, TEMPLATE), camera, extras=EVERYTHING)
    whole = renderer(mesh, camera, extras=EVERYTHING)
    around = (TEMPLATE.faces == at(16, 8, 24)).any(1)
    seen = image.face.unique().tolist()
    assert not {*around.nonzero().flatten().tolist()} & {*seen}
    untouched = ~torch.isin(whole.face, around.nonzero().flatten()) & (whole.face >= 0)
    assert untouched.sum() > 500
    assert torch.equal(image.face[untouched], whole.face[untouched])
    (gradient,) = torch.autograd.grad(image.rgb.square().sum() + image.soft_mask.sum() + image.depth.sum(), vertices)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, at(16, 8, 24)] == 0).all()


# ---- Edge cases ----------------------------------------------------------------------------------------------------


def square(low: float, high: float) -> torch.Tensor:
    """Two triangles, counter-clockwise, [1, 2, 3, 2]."""
    a, b, c, d = (low, low), (high, low), (high, high), (low, high)
    return torch.tensor([[[a, b, c], [a, c, d]]], dtype=torch.float64)


def test_pixels_on_shared_edges_and_borders_are_covered_exactly_once():
    """The square's corners, its sides and its diagonal all run through pixel centers."""
    size = 16
    first, last = (2 * 3 + 1 - size) / size, (2 * 11 + 1 - size) / size
    corner_xy = square(first, last)
    faces = [
        rasterize(corner_xy[:, i : i + 1], torch.zeros(1, 1, 3).double(), torch.ones(1, 1).double(), size, size).face
        for i in (0, 1)
    ]
    both = rasterize(corner_xy, torch.zeros(1, 2, 3).double(), torch.ones(1, 2).double(), size, size).face
    expected = torch.zeros(size, size, dtype=torch.bool)
    expected[size - 11 : size - 3, 3:11] = True  # low borders are in, high ones out; rows count from the top
    assert torch.equal(both[0] >= 0, expected)
    assert torch.equal((faces[0] >= 0) | (faces[1] >= 0), both >= 0)
    on_both = (faces[0] >= 0) & (faces[1] >= 0)
    assert on_both.sum() == 8
    assert (both[on_both] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbors_leave_no_gap(dtype, rng):
    """A fan of slivers around a point covers a whole disk of pixels."""
    angle = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)[:-1].to(dtype)
    ring = 0.95 * torch.stack([angle.cos(), angle.sin()], dim=1)
    center = torch.rand(2, generator=rng).to(dtype).expand(len(ring), 2) * 0.1
    corner_xy = torch.stack([center, ring, ring.roll(-1, 0)], dim=1)[None]
    face = rasterize(corner_xy, corner_xy.new_zeros(corner_xy.shape[:3]), facing(corner_xy), 128, 128).face[0]
    x, y = brute_force.pixel_centers(128, 128)
    assert (face.numpy()[x**2 + y**2 < 0.94**2] >= 0).all()


@pytest.mark.parametrize("max_pairs", [1 << 20, 1])
def test_of_equally_near_faces_the_first_is_seen(max_pairs):
    corner_xy = square(-0.9, 0.9).repeat(1, 3, 1, 1)
    depth = torch.full((1, 6, 3), 0.25, dtype=torch.float64)
    face = rasterize(corner_xy, depth, facing(corner_xy), 8, 8, max_pairs=max_pairs).face
    assert set(face.unique().tolist()) <= {-1, 0, 1}
    depth[:, 4:] += 0.1
    face = rasterize(corner_xy, depth, facing(corner_xy), 8, 8, max_pairs=max_pairs).face
    assert set(face.unique().tolist()) <= {-1, 4, 5}


def test_the_first_generation_draws_nothing_behind_its_far_plane():
    corner_xy = square(-0.9, 0.9)
    depth = torch.full((1, 2, 3), -2000.0, dtype=torch.float64)
    normal_z = facing(corner_xy)
    assert (rasterize(corner_xy, depth, normal_z, 8, 8, constants=KAOLIN_2019).face < 0).all()
    assert (rasterize(corner_xy, depth, normal_z, 8, 8, constants=KAOLIN).face >= 0).any()


def test_a_corner_that_is_not_a_number_hides_its_face_and_no_other(rng):
    corner_xy, corner_z = soup(40, rng)
    normal_z = clockwise_too(corner_xy)
    broken = corner_xy.clone()
    broken[0, 20, 1, 0] = math.nan
    normal_z[0, 20] = -1
    expected = rasterize(corner_xy, corner_z, normal_z, 16, 16).face
    normal_z[0, 20] = 1
    assert torch.equal(rasterize(broken, corner_z, normal_z, 16, 16).face, expected)


def test_the_soft_mask_counts_the_first_faces_found_not_the_nearest():
    near, far = square(-0.5, 0.0)[:, :1], square(-0.58, -0.08)[:, :1]
    nothing = torch.full((1, 32, 32), -1)
    options = {"sigma_inv": 500.0, "box": 0.3}
    first_only = soft_mask(torch.cat([far, near], dim=1), nothing, max_faces=1, **options)
    far_box = soft_mask(far, nothing, max_faces=1, **options)
    inside = far_box > 1e-6
    assert torch.equal(first_only[inside], far_box[inside])
    both = soft_mask(torch.cat([far, near], dim=1), nothing, max_faces=2, **options)
    assert (both >= first_only - 1e-12).all()
    assert (both > first_only + 0.1).any()


def test_an_image_with_nothing_in_it(rng):
    mesh, camera = random_scene(2, rng)
    away = TexturedMesh(mesh.vertices + 50, mesh.texture, mesh.template)
    image = MeshRenderer((5, 9))(away, camera, extras=EVERYTHING)
    assert (image.face == -1).all()
    for name in ("rgb", "mask", "soft_mask", "depth", "normals", "coords"):
        assert (getattr(image, name) == 0).all(), name


def test_an_image_of_one_pixel_is_the_middle_of_an_odd_one(rng):
    mesh, camera = random_scene(3, rng)
    image = MeshRenderer(1)(mesh, camera, extras=EVERYTHING)
    large = MeshRenderer(5)(mesh, camera, extras=EVERYTHING)
    for name in ("rgb", "mask", "depth", "normals", "coords", "face"):
        torch.testing.assert_close(getattr(image, name), getattr(large, name)[:, :, 2:3, 2:3], msg=name)


def test_no_images_and_no_faces():
    mesh, camera = published_mesh(), published_camera()
    none = MeshRenderer(8)(mesh[:0], camera[:0], extras=EVERYTHING)
    assert none.rgb.shape == (0, 3, 8, 8)
    assert none.face.shape == (0, 1, 8, 8)
    nothing = torch.zeros(2, 0, 3, dtype=torch.float64)
    raster = rasterize(torch.zeros(2, 0, 3, 2, dtype=torch.float64), nothing, nothing[..., 0], 8, 8)
    assert (raster.face == -1).all()
    assert (soft_mask(torch.zeros(2, 0, 3, 2, dtype=torch.float64), raster.face) == 0).all()


def test_faces_crossing_the_border_are_cut_there(rng):
    """A picture is the middle of a larger one, whatever sticks out of it."""
    mesh, camera = random_scene(2, rng)
    close = Camera(camera.quat, 2 * camera.scale, 2 * camera.shift, camera.inv_focal / 2)
    image = MeshRenderer(20)(mesh, close, extras=EVERYTHING)
    border = image.mask.clone()
    border[:, :, 1:-1, 1:-1] = 0
    assert (border.sum((1, 2, 3)) > 10).all()
    large = MeshRenderer(40)(mesh, camera, extras=EVERYTHING)
    for name in ("rgb", "mask", "normals", "coords", "face"):
        torch.testing.assert_close(getattr(image, name), getattr(large, name)[:, :, 10:30, 10:30], msg=name)


def test_a_mesh_that_is_no_sphere_is_drawn_too():
    """A square of two faces, textured with its own places."""
    corners = torch.tensor([[-0.8, -0.6], [0.8, -0.6], [0.8, 0.6], [-0.8, 0.6]], dtype=torch.float64)
    vertices = torch.cat([corners, torch.zeros(4, 1).double()], dim=1)[None]
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])  # seen from -z, where weak perspective looks from
    topology = Topology(faces, (corners * torch.tensor([1.0, -1]).double() + 1) / 2, faces)
    ramp = torch.linspace(-1, 1, 9, dtype=torch.float64)
    colors = torch.stack([ramp.expand(9, 9), ramp[:, None].expand(9, 9), torch.zeros(9, 9).double()])[None]
    camera = Camera.from_cmr(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]]).double())
    mesh = TexturedMesh(vertices, colors, topology)
    image = MeshRenderer((10, 20))(mesh, camera, extras=frozenset({"coords"}))
    assert image.mask.sum() == 6 * 16
    torch.testing.assert_close(image.rgb[:, :2], image.coords[:, :2])
    single = mesh.to("cpu", dtype=torch.float32)
    assert single.template.uvs.dtype == torch.float32
    again = MeshRenderer((10, 20))(single, camera.to("cpu", dtype=torch.float32)).rgb
    torch.testing.assert_close(again, image.rgb.float())


def test_faces_at_or_behind_the_camera_are_not_drawn():
    """A sphere around the camera: what is in front of it is seen from inside, and the rest must not be mirrored in."""
    sphere = TexturedMesh(TEMPLATE.vertices[None].double(), torch.ones(1, 3, 4, 4).double(), TEMPLATE)
    identity = rotation.identity(1, dtype=torch.float64)
    inside = Camera(identity, torch.tensor([1.5]).double(), torch.zeros(1, 2).double(), torch.tensor([0.9]).double())
    assert MeshRenderer(16)(sphere, inside).mask.sum() == 0


def test_rows_and_columns_are_not_exchanged(rng):
    mesh, camera = random_scene(1, rng)
    wide = MeshRenderer((20, 44))(mesh, camera, extras=EVERYTHING)
    assert wide.rgb.shape == (1, 3, 20, 44)
    corner_xy, corner_z, _ = corners_on_screen(mesh, camera)
    face, _, _ = brute(corner_xy, corner_z, facing(corner_xy), 20, 44)
    assert np.array_equal(wide.face[0, 0].numpy(), face)


def test_a_batch_gives_what_each_image_gives_alone(rng):
    mesh, camera = random_scene(4, rng)
    renderer = MeshRenderer(40, max_pairs=5000)
    together = renderer(mesh, camera, extras=EVERYTHING)
    for i in range(4):
        alone = renderer(mesh[i], camera[i], extras=EVERYTHING)
        for name in ("rgb", "mask", "soft_mask", "depth", "normals", "coords"):
            torch.testing.assert_close(
                getattr(together, name)[i], getattr(alone, name)[0], atol=1e-12, rtol=0, msg=name
            )
        assert torch.equal(together.face[i], alone.face[0])


def test_the_picture_of_the_mirrored_object_is_the_mirrored_picture(rng):
    mesh, camera = random_scene(2, rng)
    maps = UVMaps(torch.rand(2, 3, 16, 16, generator=rng, dtype=torch.float64), torch.zeros(2, 3, 32, 32).double())
    here = MeshRenderer(33)(TexturedMesh(mesh.vertices, maps.texture, TEMPLATE), camera).rgb
    there = MeshRenderer(33)(TexturedMesh(mesh.vertices, maps.mirror().texture, TEMPLATE), camera.mirror()).rgb
    torch.testing.assert_close(there, here.flip(3), atol=1e-9, rtol=0)


def test_supersampling_averages_a_finer_picture(rng):
    mesh, camera = random_scene(2, rng)
    fine = MeshRenderer(48)(mesh, camera, extras=EVERYTHING)
    pooled = MeshRenderer(16, supersample=3)(mesh, camera, extras=EVERYTHING)
    mean = torch.nn.functional.avg_pool2d
    for name in ("rgb", "mask", "soft_mask"):
        torch.testing.assert_close(getattr(pooled, name), mean(getattr(fine, name), 3), msg=name)
    some = pooled.mask > 0
    assert ((pooled.mask > 0.2) & (pooled.mask < 0.8)).any()
    torch.testing.assert_close((pooled.depth * pooled.mask)[some], mean(fine.depth, 3)[some])
    torch.testing.assert_close(pooled.normals.norm(dim=1, keepdim=True)[some], torch.ones_like(pooled.mask)[some])
    assert torch.equal(pooled.face >= 0, some)


def test_an_unknown_extra_is_refused(rng):
    with pytest.raises(ValueError, match="albedo"):
        MeshRenderer(8)(*random_scene(1, rng), extras=frozenset({"albedo"}))


@pytest.mark.parametrize("supersample", [1, 2])
def test_what_vertices_carry_is_shown_perspective_or_not(supersample, rng):
    """Linear functions of the place on the object, four of them: known from the picture of the places."""
    mesh, camera = random_scene(2, rng)  # the second in perspective
    renderer = MeshRenderer((30, 40), supersample=supersample)
    matrix = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    image = renderer(mesh, camera, extras=frozenset({"coords"}))
    expected = torch.einsum("bchw,cd->bdhw", image.coords * image.mask, matrix)
    torch.testing.assert_close(renderer.attributes(mesh, camera, mesh.vertices @ matrix), expected)
    counted = renderer.attributes(mesh, camera, torch.ones_like(mesh.vertices[..., :1]))
    torch.testing.assert_close(counted, image.mask)


def test_attributes_are_differentiable(rng):
    mesh, camera = random_scene(1, rng, rings=4)
    carried = torch.zeros(1, mesh.vertices.shape[1], 2, dtype=torch.float64, requires_grad=True)
    picture = MeshRenderer(12).attributes(mesh, camera, carried)
    (gradient,) = torch.autograd.grad(picture.sum(), carried)
    assert gradient.sum().item() == pytest.approx(2 * MeshRenderer(12)(mesh, camera).mask.sum().item())


def test_attributes_of_any_width_are_interpolated(rng):
    corner_xy, corner_z = soup(30, rng)
    raster = rasterize(corner_xy, corner_z, facing(corner_xy), 12, 12)
    attribute = torch.randn(1, 30, 3, 7, generator=rng, dtype=torch.float64)
    face, weights, _ = brute(corner_xy, corner_z, facing(corner_xy), 12, 12)
    expected = np.einsum("hwk,hwkc->chw", weights, attribute[0].numpy()[face])
    expected[:, face < 0] = 0
    found = raster.image(raster.interpolate(attribute))[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-8, rtol=0)


# ---- Photographs to textures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inv_focal", [0.0, 0.4])
def test_a_rendering_projected_back_gives_its_texture(inv_focal):
    """Where the surface is seen; smooth colors, so that two interpolations change little."""
    mesh = TexturedMesh(TEMPLATE.vertices[None], texture(48, 48).float()[:, [0, 0, 0]], TEMPLATE)
    camera = Camera.from_cmr(torch.tensor([[0.7, 0.05, -0.1, 0.8, 0.2, -0.4, 0.4]]))
    camera = Camera(camera.quat, camera.scale, camera.shift, camera.inv_focal + inv_focal)
    photo = MeshRenderer(384)(mesh, camera).rgb
    size = 48
    colors, covered = project_to_uv(mesh, camera, photo, size)
    visible = visible_texels(mesh, camera, 384)
    # Away from the outline, where the picture is foreshortened and fades into the background.
    inner = -torch.nn.functional.max_pool2d(-(visible.float() * covered), 9, stride=1, padding=4) > 0
    assert inner.sum() > 300
    # The UV raster reads texel centers (x + 1/2) / S; a texture of the renderer has rows from pole to pole.
    v = 1 - (torch.arange(size) + 0.5) / size
    row = (1 - v) * (size - 1)
    low = row.floor().long().clamp(max=size - 2)
    expected = torch.lerp(mesh.texture[:, :, low], mesh.texture[:, :, low + 1], (row - low)[:, None])
    gap = ((colors - expected).abs() * inner).amax()
    assert gap < 0.03


def test_texels_of_the_far_side_are_not_visible():
    sphere = TexturedMesh(TEMPLATE.vertices[None], torch.zeros(1, 3, 32, 32), TEMPLATE)
    camera = Camera.from_cmr(torch.tensor([[0.7, 0, 0, 1, 0, 0, 0]]))  # looks along +z: sees the half with z < 0
    visible = visible_texels(sphere, camera, 256)[0, 0]
    middle = visible[16]
    turn = 2 * math.pi * (torch.arange(32) + 0.5) / 32
    z = turn.sin()
    assert middle[z < -0.3].all()
    assert not middle[z > 0.3].any()


def test_a_coarse_rendering_looks_at_a_coarser_texture():
    mesh = TexturedMesh(TEMPLATE.vertices[None], torch.zeros(1, 3, 64, 64), TEMPLATE)
    camera = Camera.from_cmr(torch.tensor([[0.7, 0, 0, 1, 0, 0, 0]]))
    assert visible_texels(mesh, camera, 128).shape == (1, 1, 16, 16)
    assert visible_texels(mesh, camera, 512).shape == (1, 1, 64, 64)


def test_corners_of_a_vertex_attribute():
    values = torch.arange(482.0).view(1, 482, 1)
    assert torch.equal(face_corners(values, TEMPLATE)[0, :, :, 0].long(), TEMPLATE.faces)

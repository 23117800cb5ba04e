"""Metrics against scikit-image, loops in plain Python, analytic solids, trimesh and published numbers."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invkit.features.lpips import LPIPS
from invkit.features.weights import RANDOM
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.iou import Iou, iou
from invkit.metrics.iou3d import Iou3d, iou3d
from invkit.metrics.lpips import Lpips
from invkit.metrics.psnr import Psnr, psnr
from invkit.metrics.registry import METRICS
from invkit.metrics.rotation_deg import ANGLES, RotationDeg, azimuth_deg, elevation_deg, rotation_deg
from invkit.metrics.ssim import Ssim, ssim
from invkit.metrics.voxels import Grid, enclosed, voxelize
from invkit.types import Estimate, Rendering, Views


def waves(batch, channels, height, width, phase=0.0):
    """The deterministic picture of the published numbers."""
    b, c, y, x = (
        torch.arange(n, dtype=torch.float64).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate((batch, channels, height, width))
    )
    return torch.sin(0.05 * x * (c + 1) + 0.07 * y + 0.9 * b + 0.4 * c + phase).float()


def cameras(quats):
    count = len(quats)
    return Camera(quats, torch.ones(count), torch.zeros(count, 2), torch.zeros(count))


def measured(count, rng, size=16):
    """Random estimates, pictures and targets for `count` images."""

    def draw(*shape):
        return torch.rand(count, *shape, generator=rng)

    def quats():
        return torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=1)

    rgb, mask = draw(3, size, size) * 2 - 1, draw(1, size, size).round()
    image = Rendering(rgb * mask, mask)
    estimate = Estimate(draw(8), cameras(quats()), draw(4, 4, 4) > 0.5, image)
    target = Views(draw(3, size, size) * 2 - 1, draw(1, size, size), cameras(quats()), None, torch.arange(count))
    return estimate, image, target


def part(parts, index):
    """The same images of an estimate, a picture and a target."""
    estimate, image, target = parts
    some = Estimate(estimate.latent[index], estimate.camera[index], estimate.scene[index], image[index])
    return some, image[index], target[index]


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_have_the_published_values():
    a, b = waves(2, 3, 32, 32), waves(2, 3, 32, 32, 0.15)
    torch.testing.assert_close(psnr(a, b), torch.tensor([25.6973915, 25.2059383]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ssim(a, b), torch.tensor([0.9421600, 0.9379232]).double(), rtol=5e-6, atol=0)
    wide = torch.tensor([0.9605884, 0.9516006]).double()
    torch.testing.assert_close(ssim(a, b, data_range=2.0), wide, rtol=5e-6, atol=0)


@pytest.mark.parametrize("height, width", [(7, 7), (20, 33)])
def test_psnr_and_ssim_are_those_of_scikit_image(rng, height, width):
    a = torch.rand(3, 3, height, width, generator=rng, dtype=torch.float64) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=rng, dtype=torch.float64)).clamp(-1, 1)
    pairs = [(x.numpy() / 2 + 0.5, y.numpy() / 2 + 0.5) for x, y in zip(a, b, strict=True)]
    expected = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in pairs]
    np.testing.assert_allclose(psnr(a, b).numpy(), expected, atol=1e-9)
    expected = [structural_similarity(x, y, channel_axis=0, data_range=1) for x, y in pairs]
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(ssim(a.float(), b.float()).numpy(), expected, atol=1e-6)


def test_psnr_is_capped_and_clamps():
    white = torch.ones(1, 3, 8, 8)
    assert psnr(white, white) == 60
    assert psnr(5 * white, white) == 60
    assert psnr(-3 * white, white) == 0
    assert ssim(5 * white, white) == 1


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 7"):
        ssim(torch.zeros(1, 3, 6, 20), torch.zeros(1, 3, 6, 20))


def test_a_background_is_put_behind_both_sides(rng):
    _, image, target = parts = measured(2, rng)
    metric = Psnr(background=-1.0)
    metric.update(*parts)
    pred = ((image.rgb / 2 + 0.5) * image.mask) * 2 - 1
    truth = ((target.rgb / 2 + 0.5) * target.mask) * 2 - 1
    assert metric.compute() == pytest.approx(float(psnr(pred, truth).mean()), abs=1e-5)
    plain = Psnr()
    plain.update(*parts)
    assert plain.compute() == pytest.approx(float(psnr(image.rgb, target.rgb).mean()), abs=1e-9)


# ---- masks and solids --------------------------------------------------------------------------------------------


def test_iou_has_the_published_values():
    a, b = (waves(2, 1, 32, 32, phase) / 2 + 0.5 for phase in (0.0, 0.15))
    torch.testing.assert_close(
        iou((a > 0.5).float(), (b > 0.5).float()), torch.tensor([0.9679089, 0.9010190]).double(), rtol=0, atol=2e-6
    )


def test_iou_is_that_of_a_loop_over_pixels(rng):
    a, b = (torch.rand(4, 1, 5, 6, generator=rng) for _ in range(2))
    a[1], b[1] = 0, 0
    a[2], b[2] = a[2].round(), b[2].round()
    a[3] = 0
    for i, value in enumerate(iou(a, b).tolist()):
        both = either = 0.0
        for x, y in zip(a[i].flatten().tolist(), b[i].flatten().tolist(), strict=True):
            both += x * y
            either += x + y - x * y
        assert value == pytest.approx(both / either if either else 1.0, abs=1e-12)
    assert iou(a, b)[1] == 1
    assert iou(a, b)[3] == 0


def test_a_threshold_makes_soft_masks_hard():
    low, high = torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.51)
    parts = measured(1, torch.Generator().manual_seed(0), size=4)
    image, target = Rendering(torch.zeros(1, 3, 4, 4), low), parts[2]
    for mask, expected in ((low, 1.0), (high, 0.0)):
        metric = Iou(threshold=0.5)
        metric.update(parts[0], image, Views(target.rgb, mask, target.camera, None, target.index))
        assert metric.compute() == expected


def test_iou3d_is_that_of_sets_of_voxels(rng):
    a, b = (torch.rand(3, 4, 5, 6, generator=rng) > 0.6 for _ in range(2))
    a[2], b[2] = False, False
    for i, value in enumerate(iou3d(a, b).tolist()):
        first, second = ({tuple(v) for v in grid[i].nonzero().tolist()} for grid in (a, b))
        union = first | second
        assert value == pytest.approx(len(first & second) / len(union) if union else 1.0, abs=1e-12)


def ico_sphere(radius, subdivisions=2):
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(np.asarray(mesh.vertices)), torch.tensor(np.asarray(mesh.faces))


def box(low, high):
    import trimesh

    mesh = trimesh.creation.box(bounds=[low, high])
    return torch.tensor(np.asarray(mesh.vertices)), torch.tensor(np.asarray(mesh.faces))


def centers(size, low=-0.5, high=0.5):
    axis = low + (torch.arange(size, dtype=torch.float64) + 0.5) * (high - low) / size
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def test_a_sphere_is_filled_where_its_polyhedron_contains_the_voxel_centers():
    vertices, faces = ico_sphere(0.41)
    radius = centers(24).norm(dim=-1)
    corners = vertices[faces]
    normals = torch.nn.functional.normalize(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1
    )
    # A convex solid is the intersection of its faces' half-spaces.
    inside = (centers(24)[..., None, :] * normals).sum(-1) < (normals * corners[:, 0]).sum(-1)
    filled = voxelize(vertices[None], faces, 24)[0]
    assert torch.equal(filled, inside.all(dim=-1))
    assert bool(filled[radius < 0.39].all())
    assert not bool(filled[radius > 0.41].any())


def test_a_bent_shape_is_filled_as_trimesh_says(rng):
    import trimesh

    vertices, faces = ico_sphere(0.35)
    bumpy = vertices * (1 + 0.25 * torch.sin(9 * vertices[:, :1]) * torch.cos(7 * vertices[:, 1:2]))
    bumpy = bumpy + torch.tensor([0.01, -0.02, 0.03])
    mesh = trimesh.Trimesh(bumpy.numpy(), faces.numpy(), process=False)
    points = centers(14)
    # Signed by the solid angle of all faces: the winding number, which no ray enters into.
    corners = bumpy[faces][None] - points.view(-1, 1, 1, 3)
    a, b, c = corners.unbind(dim=2)
    la, lb, lc = (side.norm(dim=-1) for side in (a, b, c))
    triple = (a * torch.linalg.cross(b, c)).sum(-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    winding = (2 * torch.atan2(triple, below)).sum(dim=1) / (4 * math.pi)
    filled = voxelize(bumpy[None].float(), faces, 14)[0]
    assert mesh.is_watertight
    assert torch.equal(filled.flatten(), winding > 0.5)
    assert int(filled.sum()) / 14**3 == pytest.approx(mesh.volume, rel=0.06)


def test_a_box_whose_edges_lie_on_voxel_centers_is_filled_without_holes():
    # Centers of an 8-grid in [-1, 1] are odd multiples of 1/8: the outline of the box, its diagonals included, runs
    # exactly through the rays.
    vertices, faces = box([-0.625, -0.625, -0.7], [0.625, 0.625, 0.7])
    filled = voxelize(vertices[None], faces, 8, low=-1.0, high=1.0)[0]
    footprint = filled.any(dim=2)
    assert int(footprint.sum()) == 25
    assert torch.equal(filled.sum(dim=2), 6 * footprint)


def test_grids_of_a_batch_are_those_of_its_meshes_and_are_cut_at_the_cube():
    vertices, faces = ico_sphere(0.3)
    both = voxelize(torch.stack([vertices, 4 * vertices]), faces, 10)
    assert torch.equal(both[0], voxelize(vertices[None], faces, 10)[0])
    assert bool(both[1].all())


def test_the_memory_bound_does_not_change_a_grid(monkeypatch):
    vertices, faces = ico_sphere(0.3)
    whole = voxelize(vertices[None], faces, 12)
    monkeypatch.setattr("invkit.metrics.voxels._MAX_PAIRS", 3 * len(faces))
    assert torch.equal(voxelize(vertices[None], faces, 12), whole)


def test_an_open_mesh_has_no_inside():
    vertices, faces = ico_sphere(0.3)
    with pytest.raises(ValueError, match="not closed"):
        voxelize(vertices[None], faces[1:], 8)


def test_overlap_of_two_boxes_is_that_of_their_lengths():
    long, faces = box([-0.5, -0.25, -0.25], [0.25, 0.25, 0.25])
    short, _ = box([-0.5, -0.25, -0.25], [0.0, 0.25, 0.25])
    grids = voxelize(torch.stack([long, short]), faces, 16)
    assert iou3d(grids[:1], grids[1:]) == pytest.approx(2 / 3)


# ---- rotations ---------------------------------------------------------------------------------------------------


def test_rotation_error_is_the_angle_of_the_relative_matrix():
    first, second = Rotation.random(20, rng=1), Rotation.random(20, rng=2)
    quats = [torch.from_numpy(np.roll(r.as_quat(), 1, axis=1)) for r in (first, second)]
    expected = []
    for a, b in zip(first.as_matrix(), second.as_matrix(), strict=True):
        expected.append(math.degrees(math.acos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))
    np.testing.assert_allclose(rotation_deg(cameras(quats[0]), cameras(-quats[1])).numpy(), expected, atol=1e-6)


def test_a_quarter_turn_is_ninety_degrees_and_none_is_zero():
    none = cameras(torch.tensor([[1.0, 0, 0, 0]]))
    quarter = cameras(torch.tensor([[1.0, 0, 1.0, 0]]) / math.sqrt(2))
    assert rotation_deg(none, quarter) == pytest.approx(90, abs=1e-5)
    assert rotation_deg(quarter, quarter) == pytest.approx(0, abs=1e-5)


# ---- running metrics ---------------------------------------------------------------------------------------------

MEANS = {
    "psnr": Psnr,
    "ssim": Ssim,
    "iou": Iou,
    "iou3d": lambda: Iou3d(
        lambda estimate, target: estimate.scene, lambda target: target.mask[:, :, :8, :8].reshape(-1, 4, 4, 4) > 0.5
    ),
    "rotation_deg": RotationDeg,
    "azimuth_deg": partial(RotationDeg, "azimuth_deg"),
    "elevation_deg": partial(RotationDeg, "elevation_deg"),
}


def test_every_column_has_a_metric():
    assert set(METRICS) == {"psnr", "ssim", "ssim-range2", "lpips", "iou", "iou3d", *ANGLES, "fid", "kid"}
    assert all(make().name == name for name, make in MEANS.items())


@pytest.mark.parametrize("name", MEANS)
def test_parts_merge_to_one_pass(name, rng):
    parts = measured(7, rng)
    whole = MEANS[name]()
    whole.update(*parts)
    ranks = [MEANS[name]() for _ in range(3)]
    for rank, metric in enumerate(ranks[:2]):
        for i in range(rank, 7, 2):
            metric.update(*part(parts, [i]))
    merged = MEANS[name]()
    merged.merge([metric.state() for metric in ranks])
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert all(isinstance(value, torch.Tensor) for value in merged.state().values())


def test_values_of_single_images_are_kept_by_index(rng):
    parts = measured(5, rng)
    metric = Psnr()
    for i in (3, 1, 4):
        metric.update(*part(parts, [i]))
    metric.update(parts[0][3], Rendering(parts[2].rgb[3:4], parts[1].mask[3:4]), parts[2][3])  # a second picture
    alone = psnr(parts[1].rgb, parts[2].rgb).tolist()
    assert list(metric.per_image()) == [1, 3, 4]
    assert metric.per_image()[1] == pytest.approx(alone[1])
    assert metric.per_image()[3] == pytest.approx((alone[3] + 60) / 2)
    assert metric.compute() == pytest.approx((alone[1] + alone[3] + alone[4] + 60) / 4)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="psnr: no image"):
        Psnr().compute()


def test_running_lpips_takes_the_name_and_the_values_of_its_network(rng):
    parts = measured(2, rng, size=32)
    network = LPIPS("alex", weights=RANDOM)
    metric = Lpips(network)
    metric.update(*parts)
    assert metric.name == "lpips-alex-0.1-random"
    expected = [float(network(parts[1].rgb[i : i + 1], parts[2].rgb[i : i + 1])) for i in range(2)]
    assert metric.compute() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_a_box_without_a_side_is_solid():
    """Of a closed one the voxels are those of `voxelize`, and those that faces pass through."""
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    corners = corners * torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (1, 5, 7, 3), (0, 2, 6, 4)]
    faces = torch.tensor([triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))])
    grid = Grid(30, -1.0, 1.0)
    closed = voxelize(corners[None], faces, 30, low=-1.0, high=1.0)[0]
    for some in (faces, faces[2:], faces[:-2]):
        found = enclosed([(corners, some)], grid)
        assert bool((found | ~closed).all())
        # Besides, one layer of voxels at most.
        x, y, z = (found.any(dim=dims).sum().item() for dims in ((1, 2), (0, 2), (0, 1)))
        a, b, c = (closed.any(dim=dims).sum().item() for dims in ((1, 2), (0, 2), (0, 1)))
        assert 0 <= x - a <= 2
        assert 0 <= y - b <= 2
        assert 0 <= z - c <= 2
        assert int(found.sum()) == x * y * z
    lone = enclosed([(corners, faces[:2])], grid)  # a single side encloses nothing
    assert int(lone.any(dim=2).any(dim=1).sum()) == 1
    with pytest.raises(ValueError, match="larger grid"):
        enclosed([(2 * corners, faces)], grid)


def test_azimuth_and_elevation_errors_are_those_of_where_the_cameras_stand():
    def looking_from(azimuth: float, elevation: float) -> Camera:
        """A level camera there that looks at the origin: its axes right, down, ahead as rows."""
        a, e = np.radians([azimuth, elevation])
        ahead = -np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right)
        x, y, z, w = Rotation.from_matrix(np.stack([right, np.cross(ahead, right), ahead])).as_quat()
        return Camera.from_cmr(torch.tensor([[0.5, 0, 0, w, x, y, z]]))

    first, second = looking_from(170, 20), looking_from(-175, -12)
    assert azimuth_deg(first, second).item() == pytest.approx(15, abs=1e-3)
    assert elevation_deg(first, second).item() == pytest.approx(32, abs=1e-3)
    assert azimuth_deg(first, first).item() == pytest.approx(0, abs=1e-3)
    rolled = replace(first, quat=rotation.multiply(torch.tensor([[0.8, 0, 0, 0.6]]), first.quat))
    assert azimuth_deg(rolled, first).item() == pytest.approx(0, abs=1e-3)
    assert elevation_deg(rolled, first).item() == pytest.approx(0, abs=1e-3)

"""Poses from canonical maps: numbers of the released code, exactness, and that nothing breaks it."""

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.types import Views
from nerfinv.pnp import Poses, PoseSolver, _Problem, focal_candidates, focals_of, solve

FOCALS = (0.6, 0.75, 0.9, 1.0, 1.1749294, 1.4, 2.0, 3.0)
QUAT = torch.tensor([[0.8, 0.2, -0.4, 0.4]], dtype=torch.float64)
AXES = torch.tensor([0.8, 0.45, 0.6], dtype=torch.float64)


def pose(weak: bool = False) -> Camera:
    z0 = None if weak else torch.tensor([0.3], dtype=torch.float64)
    shift = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    return Camera.from_augmented(z0, shift, torch.tensor([0.7], dtype=torch.float64), QUAT)


def ellipsoid(camera: Camera, size: int = 64, offset: float = 0.0, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """The canonical map of an ellipsoid at the origin: where each pixel's ray meets it first; and its mask."""
    rays = camera.rays(size, offset)
    start, along = rays.origins / AXES, rays.directions / AXES
    a, b, c = along.square().sum(-1), (along * start).sum(-1), start.square().sum(-1) - 1
    root = b.square() - a * c
    hit = root > 0
    far = (-b - root.clamp(min=0).sqrt()) / a
    points = torch.where(hit[..., None], rays.origins + far[..., None] * rays.directions, 0).float().double()
    points = points + noise * (12.9898 * torch.arange(points.numel()).double()).sin().view_as(points)
    return points.movedim(-1, 1), hit[:, None].double()


def translation(camera: Camera) -> Tensor:
    """x_camera = R x + this, perspective."""
    return torch.cat([camera.shift, 1 / camera.inv_focal[:, None]], dim=1) / camera.scale[:, None]


def close(found: Tensor | float, expected: list | float, tolerance: float) -> None:
    found = torch.as_tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


# ---- Numbers of the released code --------------------------------------------------------------------------------


def test_a_clean_map_gives_the_camera_back():
    coords, mask = ellipsoid(pose())
    assert int(mask.sum()) == 516
    found = PoseSolver(FOCALS, offset=0.0)(coords, mask)
    assert found.found.tolist() == [True]
    assert 1e-9 < float(found.error) < 1e-8
    close(1 / (2 * found.camera.inv_focal[0]), 1.1749294, 1e-9)
    close(rotation.to_matrix(found.camera.quat)[0], [[0.36, -0.8, -0.48], [0.48, 0.6, -0.64], [0.8, 0, 0.6]], 1e-7)
    close(translation(found.camera)[0], [0.14285714, -0.28571429, 3.35694115], 1e-7)


def test_noise_moves_the_pose_as_it_moves_the_released_one():
    found = PoseSolver(FOCALS, offset=0.0)(*ellipsoid(pose(), noise=0.01))
    close(1 / (2 * found.camera.inv_focal[0]), 1.1749294, 1e-9)
    close(found.error[0], 0.0026663, 1e-7)
    close(rotation.to_matrix(found.camera.quat)[0, 0], [0.3597614, -0.7999126, -0.4803244], 1e-6)
    close(translation(found.camera)[0], [0.1424946, -0.2865232, 3.3582852], 1e-5)


def test_weak_perspective_is_a_very_long_focal_length():
    coords, mask = ellipsoid(pose(weak=True))
    assert int(mask.sum()) == 478
    solver = PoseSolver(None, offset=0.0)
    found = solver(coords, mask)
    assert float(found.camera.inv_focal) == 0
    close(found.error[0], 6.20162e-5, 1e-8)
    close(found.camera.scale[0], 0.6990093, 1e-6)
    close(found.camera.shift[0], [0.1001323, -0.1998161], 1e-6)
    close(rotation.to_matrix(found.camera.quat)[0, 0], [0.3605981, -0.7999979, -0.4795543], 1e-6)
    noisy = solver(*ellipsoid(pose(weak=True), noise=0.01))
    close(noisy.error[0], 0.0020442, 1e-7)
    close(noisy.camera.scale[0], 0.6989185, 1e-6)
    close(noisy.camera.shift[0], [0.0994986, -0.1999510], 1e-6)


def test_candidates_are_percentiles_each_once():
    focals = 0.6 + 2.4 * (torch.arange(101) / 100).double() ** 2
    expected = [0.60024, 0.624, 0.696, 0.816, 0.984, 1.2, 1.464, 1.776, 2.136, 2.544, 2.95224]
    close(torch.tensor(focal_candidates(focals)), expected, 1e-6)
    assert focal_candidates(torch.full((50,), 1.025)) == (pytest.approx(1.025),)


def test_the_candidates_of_a_data_set():
    class Cars(ImageSet):
        names, num_classes, size = ["a", "b", "c"], 0, 4

        def __init__(self, inv_focal: list[float]) -> None:
            self.inv_focal = inv_focal

        def __getitem__(self, index: int) -> Views:
            raise AssertionError("the pictures are not needed")

        def camera(self, index: int) -> Camera:
            weak = Camera.from_cmr(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]]))
            return Camera(weak.quat, weak.scale, weak.shift, torch.tensor([self.inv_focal[index]]))

    assert focals_of(Cars([0.0, 0.0, 0.0])) is None
    assert focals_of(Cars([0.5, 0.5, 0.5])) == (1.0,)
    assert len(focals_of(Cars([0.5, 0.25, 0.1]))) == 11
    assert focals_of(Cars([0.5, 0.25, 0.1]), most=1) == (1.0,)


# ---- Any camera --------------------------------------------------------------------------------------------------


def some_cameras(count: int, weak: bool = False) -> Camera:
    rng = torch.Generator().manual_seed(3)
    uniform = lambda low, high: low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)  # noqa: E731
    focal = torch.tensor(FOCALS).double()[torch.randint(len(FOCALS), (count,), generator=rng)]
    return Camera(
        rotation.random(count, rng).double(),
        uniform(0.5, 0.9),
        torch.stack([uniform(-0.2, 0.2), uniform(-0.2, 0.2)], dim=1),
        torch.zeros_like(focal) if weak else 1 / (2 * focal),
    )


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_clean_maps_are_exact_for_any_camera_and_either_pixel_convention(offset):
    cameras = some_cameras(12)
    coords, mask = ellipsoid(cameras, 48, offset)
    found = PoseSolver(FOCALS, offset=offset)(coords, mask)
    assert bool(found.found.all())
    assert float(rotation.angle(found.camera.quat, cameras.quat).max()) < 1e-3
    torch.testing.assert_close(found.camera.scale, cameras.scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.camera.shift, cameras.shift, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.camera.inv_focal, cameras.inv_focal)


def test_the_wrong_pixel_convention_is_half_a_pixel_off():
    cameras = some_cameras(4)
    found = PoseSolver(FOCALS, offset=0.0)(*ellipsoid(cameras, 48, 0.5))
    torch.testing.assert_close(
        found.camera.shift - cameras.shift, torch.full((4, 2), -1 / 48).double(), rtol=0, atol=5e-3
    )


def test_noise_moves_the_pose_by_little():
    cameras = some_cameras(8)
    coords, mask = ellipsoid(cameras, 64, 0.5)
    coords = coords + 0.02 * torch.randn(coords.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = PoseSolver(FOCALS)(coords, mask)
    assert bool(found.found.all())
    assert float(rotation.angle(found.camera.quat, cameras.quat).max()) < 3
    assert float((found.camera.shift - cameras.shift).abs().max()) < 0.02
    assert 1e-3 < float(found.error.max()) < 2e-2


def test_weak_perspective_of_any_camera():
    cameras = some_cameras(6, weak=True)
    found = PoseSolver(None)(*ellipsoid(cameras, 64, 0.5))
    assert float(rotation.angle(found.camera.quat, cameras.quat).max()) < 0.5
    torch.testing.assert_close(found.camera.scale, cameras.scale, rtol=5e-3, atol=0)
    torch.testing.assert_close(found.camera.shift, cameras.shift, rtol=0, atol=2e-3)


def test_least_squares_for_the_best_focal_lengths_alone_finds_the_same_on_a_good_map():
    coords, mask = ellipsoid(some_cameras(6), 64, 0.5, noise=0.005)
    every, few = PoseSolver(FOCALS)(coords, mask), PoseSolver(FOCALS, refined=2)(coords, mask)
    torch.testing.assert_close(few.camera.to_cmr(), every.camera.to_cmr())
    torch.testing.assert_close(few.error, every.error)


def test_pixels_that_are_not_sure_do_not_count():
    coords, mask = ellipsoid(some_cameras(1), 64, 0.5)
    wrong = coords.clone()
    wrong[..., ::2] = 5.0
    found = PoseSolver(FOCALS)(wrong, torch.where((wrong == 5).any(1, keepdim=True), 0.9 * mask, mask))
    assert float(found.error) < 1e-6


# ---- Failures ----------------------------------------------------------------------------------------------------


def good() -> tuple[Tensor, Tensor]:
    return ellipsoid(pose(), 32, 0.5)


def hopeless() -> dict[str, tuple[Tensor, Tensor]]:
    coords, mask = good()
    three = torch.zeros_like(mask)
    three[0, 0, 15, 14:17] = 1
    line = torch.zeros_like(coords)
    line[:, 0] = coords[:, 0]
    return {
        "empty": (coords, 0 * mask),
        "three pixels": (coords, three),
        "not a number": (coords * torch.nan, mask),
        "mask is not a number": (coords, mask * torch.nan),
        "infinite": (coords * torch.inf, mask),
        "one point": (torch.full_like(coords, 0.3), mask),
        "zero": (0 * coords, mask),
        "on a line": (line, mask),
        "huge": (coords * 1e200, mask),
        "tiny": (coords * 1e-200, mask),
        "coplanar": (coords * torch.tensor([1.0, 1.0, 0.0]).double().view(1, 3, 1, 1), mask),
        "noise": (torch.randn(coords.shape, generator=torch.Generator().manual_seed(0)).double(), mask),
    }


@pytest.mark.parametrize("focals", [FOCALS, None])
@pytest.mark.parametrize("name", hopeless())
def test_whatever_a_map_holds_there_is_a_camera_in_front_of_the_object(name, focals):
    found = PoseSolver(focals)(*hopeless()[name])
    camera = found.camera
    assert all(bool(t.isfinite().all()) for t in (camera.quat, camera.scale, camera.shift, camera.inv_focal))
    assert float(camera.scale) > 0
    torch.testing.assert_close(camera.quat.norm(dim=1), torch.ones(1).double())
    if name in ("empty", "three pixels", "not a number", "mask is not a number", "infinite", "one point", "zero"):
        assert not bool(found.found)
        assert math.isinf(float(found.error))
        assert bool((camera.project(torch.zeros(1, 1, 3).double())[..., :2].abs() < 1).all()), "it is in the picture"


def test_points_in_a_plane_are_enough():
    """A disc seen at an angle: SQPnP and EPnP both have a special case for it."""
    camera = some_cameras(1)
    side = torch.linspace(-0.7, 0.7, 40).double()
    plane = torch.stack([*torch.meshgrid(side, side, indexing="xy"), torch.zeros(40, 40).double()], dim=-1)
    landed = camera.project(plane.view(1, -1, 3))[0, :, :2] / 2
    fit = solve(_Problem(plane.view(-1, 3).numpy(), landed.numpy(), FOCALS, len(FOCALS)))
    assert fit is not None
    assert fit.error < 1e-6
    quat = rotation.from_matrix(torch.from_numpy(fit.rotation)[None])
    assert float(rotation.angle(quat, camera.quat)) < 1e-3


def test_points_of_which_opencv_finds_no_solution_stop_nothing():
    """Eight points of a half trained encoder's map, for which SQPnP neither raises nor answers."""
    points = [
        [-0.03, -0.32, 0.06], [-0.0, -0.09, 0.1], [-0.08, 0.27, 0.03], [-0.01, -0.23, 0.05],
        [-0.02, 0.33, 0.03], [-0.07, 0.3, 0.05], [-0.04, 0.48, -0.04], [-0.13, 0.47, -0.05],
    ]  # fmt: skip
    pixels = [
        [0.09, -0.2], [-0.16, -0.07], [0.01, 0.18], [0.09, -0.13],
        [-0.32, 0.12], [-0.02, 0.2], [-0.35, 0.21], [-0.16, 0.38],
    ]  # fmt: skip
    fit = solve(_Problem(np.array(points), np.array(pixels), (1.025390625,), 1))
    assert fit is None or 0 < fit.error < 1


def test_a_map_without_a_pose_spoils_no_other():
    coords, mask = good()
    bad = hopeless()
    solver = PoseSolver(FOCALS)
    found = solver(
        torch.cat([bad["one point"][0], coords, bad["empty"][0]]),
        torch.cat([bad["one point"][1], mask, bad["empty"][1]]),
    )
    alone = solver(coords, mask)
    assert found.found.tolist() == [False, True, False]
    assert torch.equal(found.camera.quat[1:2], alone.camera.quat)
    given = some_cameras(1)
    again = PoseSolver(FOCALS, fallback=given)(*bad["empty"])
    assert torch.equal(again.camera.to_cmr(), given.to_cmr())


def test_the_place_to_begin_from_is_where_the_mask_is():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 20:24, 4:8] = 0.8
    camera = PoseSolver(FOCALS)(torch.zeros(1, 3, 32, 32), mask).camera
    close(camera.shift[0].double(), [2 * 6 / 32 - 1, 2 * 22 / 32 - 1], 1e-6)


def test_settings_that_make_no_sense_are_refused():
    for focals in ((), (0.0,), (math.inf,)):
        with pytest.raises(ValueError, match="focals"):
            PoseSolver(focals)
    with pytest.raises(ValueError, match="refined"):
        PoseSolver(None, refined=0)
    with pytest.raises(ValueError, match="one camera"):
        PoseSolver(None, fallback=some_cameras(2))


# ---- Processes ---------------------------------------------------------------------------------------------------


def same(first: Poses, second: Poses) -> bool:
    pairs = zip(
        (first.camera.quat, first.camera.scale, first.camera.shift, first.camera.inv_focal, first.error, first.found),
        (
            second.camera.quat,
            second.camera.scale,
            second.camera.shift,
            second.camera.inv_focal,
            second.error,
            second.found,
        ),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def test_processes_find_the_same_and_end():
    coords, mask = ellipsoid(some_cameras(5), 32, 0.5, noise=0.01)
    mask[2] = 0
    inline, pool = PoseSolver(FOCALS), PoseSolver(FOCALS, workers=2)
    assert pool._pool is None, "nothing is started before it is needed"
    found = pool(coords, mask)
    assert same(found, inline(coords, mask))
    workers = list(pool._pool._processes.values())
    workers[0].kill()
    workers[0].join()
    time.sleep(0.5)
    with pytest.warns(UserWarning, match="has died"):
        again = pool(coords, mask)
    assert same(again, found)
    pool.close()
    for worker in workers:
        worker.join(timeout=10)
    assert not any(worker.is_alive() for worker in workers)


def test_fifty_images_a_second_on_two_cores():
    """Processor time of one core, of pictures of 128 x 128 that the object fills and eleven focal lengths."""
    camera = Camera(rotation.identity(1), torch.tensor([1.1]), torch.zeros(1, 2), torch.tensor([0.4]))
    coords, mask = ellipsoid(camera.to("cpu", dtype=torch.float64), 128, 0.5, 0.01)
    assert int(mask.sum()) > 5000
    solver = PoseSolver(tuple(torch.linspace(0.6, 3, 11).tolist()))
    solver(coords, mask)
    spent = []
    for _ in range(5):
        began = time.process_time()
        solver(coords, mask)
        spent.append(time.process_time() - began)
    assert min(spent) < 2 / 50

"""The synthetic data sets against independent rasterization, ray casting, and the loaders of the real data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import binary_dilation
from skimage.draw import polygon

from invkit.data.cub import Cub, mean_shape, problems
from invkit.data.srn import Srn
from invkit.data.synthetic import bird_photos, birds, car_views, write_birds, write_cars
from invkit.data.synthetic.scan_conversion import picture
from invkit.data.synthetic.surfaces import Surface, ball, join
from invkit.geometry.camera import Camera

SMALL = {"train": 4, "val": 3, "test": 2, "num_species": 3, "novel_views": 2, "photo_size": (96, 128)}


@pytest.fixture(scope="module")
def bird_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("birds") / "set"
    write_birds(root, **SMALL)
    return root


@pytest.fixture(scope="module")
def car_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cars") / "set"
    write_cars(root, train_objects=2, val_objects=0, test_objects=1, train_views=3, test_views=4, size=96)
    return root


def structs(path: Path, variable: str) -> np.ndarray:
    return loadmat(path, struct_as_record=False, squeeze_me=True)[variable]


def silhouette(xy: np.ndarray, faces: np.ndarray, height: int, width: int, fine: int = 4) -> np.ndarray:
    """Coverage of each pixel by the filled triangles; x, y continuous from the top-left corner."""
    canvas = np.zeros((height * fine, width * fine))
    corners = xy[faces] * fine - 0.5
    for triangle in corners:
        canvas[polygon(triangle[:, 1], triangle[:, 0], canvas.shape)] = 1
    return canvas.reshape(height, fine, width, fine).mean(axis=(1, 3))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def pixels(camera: Camera, vertices: np.ndarray, size: int) -> np.ndarray:
    ndc = camera.to("cpu", dtype=torch.float64).project(torch.from_numpy(vertices)[None])[0, :, :2].numpy()
    return (ndc + 1) * (size / 2)


def assert_mirror_symmetric(surface: Surface) -> None:
    """Vertices with their colors, and triangles as point sets with their orientation reversed, map onto themselves."""
    records = np.concatenate([surface.vertices, surface.colors], axis=1) + 0.0
    flipped = records * [-1, 1, 1, 1, 1, 1] + 0.0
    assert {row.tobytes() for row in records} == {row.tobytes() for row in flipped}
    centers = surface.vertices[surface.faces].mean(axis=1)
    order, mirror_order = (np.lexsort(np.round(c, 9).T) for c in (centers, centers * [-1, 1, 1]))
    np.testing.assert_allclose(centers[order], (centers * [-1, 1, 1])[mirror_order], atol=1e-9)


def assert_closed_and_outward(surface: Surface) -> None:
    edges = np.concatenate([surface.faces[:, [k, (k + 1) % 3]] for k in range(3)])
    forward = set(map(tuple, edges.tolist()))
    assert len(forward) == len(edges)
    assert forward == {(b, a) for a, b in forward}
    for part in range(surface.part.max() + 1):
        corner = surface.vertices[surface.faces[surface.part == part]]
        assert np.einsum("fi,fi->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) > 0


# ---- Birds as solids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(6))
def test_a_bird_is_exactly_symmetric_closed_and_of_extent_two(number):
    kind, posture = birds.individual(birds.species(number), np.random.default_rng(number))
    bird = birds.build(kind, posture)
    assert_mirror_symmetric(bird.surface)
    assert_closed_and_outward(bird.surface)
    low, high = bird.surface.vertices.min(axis=0), bird.surface.vertices.max(axis=0)
    assert (high - low).max() == pytest.approx(2)
    assert bird.surface.colors.min() >= 0
    assert bird.surface.colors.max() <= 1


def test_key_points_are_placed_in_the_anatomical_frame():
    kind, posture = birds.individual(birds.species(4), np.random.default_rng(0))
    bird = birds.build(kind, posture)
    at = dict(zip(birds.KEY_POINTS, bird.surface.vertices[bird.key_points], strict=True))
    assert at["Beak"][1] < at["FHead"][1] < at["Nape"][1] < at["Back"][1] < at["Tail"][1]
    assert at["Crown"][2] > at["Back"][2] > at["Belly"][2] > at["LLeg"][2]
    assert all(at[name][0] == 0 for name in birds.KEY_POINTS if name[0] not in "LR")
    for name in ("Eye", "Leg", "Wing"):
        assert at[f"L{name}"][0] > 0
        np.testing.assert_array_equal(at[f"L{name}"] * [-1, 1, 1], at[f"R{name}"])
    points = bird.surface.vertices[bird.key_points]
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_array_equal(points[list(birds.MIRRORED_KEY_POINTS)] * [-1, 1, 1], points)


def test_species_differ_in_color_and_individuals_within_one_less_so():
    def plumage(number: int, seed: int) -> np.ndarray:
        kind, _ = birds.individual(birds.species(number), np.random.default_rng(seed))
        return np.concatenate([kind.dyes[part] for part in sorted(kind.dyes)])

    own = max(np.abs(plumage(k, 0) - plumage(k, 1)).mean() for k in range(12))
    across = min(np.abs(plumage(k, 0) - plumage(j, 0)).mean() for k in range(12) for j in range(k))
    assert own < across
    assert len({birds.species(k).name for k in range(36)}) == 36


# ---- Photographs -----------------------------------------------------------------------------------------------------


def test_a_photograph_depends_on_seed_split_and_index_alone(bird_root, tmp_path):
    write_birds(tmp_path / "more", **{**SMALL, "train": 7, "test": 3})
    for split, index in (("train", 3), ("test", 1)):
        path = structs(bird_root / "data" / f"{split}_cub_cleaned.mat", "images")[index].rel_path
        files = [root / "CUB_200_2011" / "images" / path for root in (bird_root, tmp_path / "more")]
        assert files[0].read_bytes() == files[1].read_bytes()
    first, again = (bird_photos.take_photo("val", 2, photo_size=(64, 80)) for _ in range(2))
    np.testing.assert_array_equal(first.rgb, again.rgb)
    for other in (("val", 3, 0), ("test", 2, 0), ("val", 2, 1)):
        photo = bird_photos.take_photo(other[0], other[1], seed=other[2], photo_size=(64, 80))
        assert not np.array_equal(photo.scale, first.scale)


def test_masks_and_boxes_are_those_of_the_projected_mesh(bird_root):
    records = structs(bird_root / "data" / "test_cub_cleaned.mat", "images")
    poses = structs(bird_root / "sfm" / "anno_test.mat", "sfm_anno")
    for record, pose in zip(records, poses, strict=True):
        truth = np.load(bird_root / "ground_truth" / f"{Path(record.rel_path).stem}.npz", allow_pickle=False)
        one_based = pose.scale * truth["vertices"] @ pose.rot[:2].T + pose.trans
        covered = silhouette(one_based - 0.5, truth["faces"], *record.mask.shape) >= 0.5
        assert overlap(covered, record.mask.astype(bool)) > 0.98
        rows, columns = np.nonzero(record.mask)
        assert (record.bbox.x1, record.bbox.x2) == (columns.min() + 1, columns.max() + 1)
        assert (record.bbox.y1, record.bbox.y2) == (rows.min() + 1, rows.max() + 1)
        assert record.mask.shape == (record.height, record.width)


def test_visible_key_points_lie_on_the_bird_and_eyes_tell_its_sides():
    one_eyed = 0
    for index in range(24):
        photo = bird_photos.take_photo("train", index, photo_size=(128, 160))
        points = photo.bird.surface.vertices[photo.bird.key_points]
        x, y, visible = photo.parts
        seen = visible == 1
        assert 5 <= seen.sum() < 15
        expected = photo.scale * points @ photo.rot[:2].T + photo.trans
        np.testing.assert_allclose(np.stack([x, y], axis=1)[seen], expected[seen], atol=1e-6)
        assert not photo.parts[:, ~seen].any()
        near = binary_dilation(photo.mask, iterations=2)
        assert near[np.round(y[seen] - 1).astype(int), np.round(x[seen] - 1).astype(int)].all()
        left, right = visible[birds.KEY_POINTS.index("LEye")], visible[birds.KEY_POINTS.index("REye")]
        if left != right:
            one_eyed += 1
            towards_left = -photo.rot[2, 0]  # where the camera stands, along the bird's left
            assert (towards_left > 0) == bool(left)
    assert one_eyed > 10


def test_viewpoints_are_proper_rotations_mostly_from_the_sides_and_upright():
    rots = np.stack([bird_photos.take_photo("train", k, photo_size=(48, 48)).rot for k in range(48)])
    np.testing.assert_allclose(rots @ rots.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rots.shape), atol=1e-12)
    assert (np.linalg.det(rots) > 0).all()
    assert (rots[:, 1, 2] < 0).all()  # the bird's up points up in the picture (y is down)
    from_left, from_right = rots[:, 2, 0] < -0.7, rots[:, 2, 0] > 0.7
    assert from_left.sum() >= 10
    assert from_right.sum() >= 10
    assert from_left.sum() + from_right.sum() < 48


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_the_cub_loader_reads_what_was_written(bird_root):
    for split, count in (("train", 4), ("val", 3), ("test", 2), ("testval", 5)):
        assert problems(bird_root, split) == []
        assert len(Cub(bird_root, split)) == count
    testval, test = Cub(bird_root, "testval"), Cub(bird_root, "test")
    assert testval.names[3:] == test.names
    dataset = Cub(bird_root, "val", size=128)
    for index, name in enumerate(dataset.names):
        views = dataset[index]
        truth = np.load(bird_root / "ground_truth" / f"{Path(name).name}.npz", allow_pickle=False)
        covered = silhouette(pixels(views.camera, truth["vertices"], 128), truth["faces"], 128, 128) >= 0.5
        # Half a source pixel of shift is CMR's convention; the threshold of 0.95 erodes a little.
        assert overlap(covered, views.mask[0, 0].numpy() > 0.5) > 0.88
        assert views.label.tolist() == [index % 3]
    shape = mean_shape(bird_root).numpy()
    assert shape[birds.KEY_POINTS.index("Beak"), 1] < -0.5 < 0.5 < shape[birds.KEY_POINTS.index("Tail"), 1]
    hull = loadmat(bird_root / "sfm" / "anno_train.mat")["conv_tri"]
    assert hull.min() >= 1
    assert hull.max() <= 15


def test_the_text_files_agree_with_the_annotations(bird_root):
    def table(name: str) -> dict[str, list[str]]:
        lines = (bird_root / "CUB_200_2011" / f"{name}.txt").read_text().split("\n")
        return {line.split()[0]: line.split()[1:] for line in lines if line}

    paths, labels, splits, boxes = map(table, ("images", "image_class_labels", "train_test_split", "bounding_boxes"))
    assert len(paths) == len(labels) == len(splits) == len(boxes) == 9
    for split in ("train", "testval"):
        for record in structs(bird_root / "data" / f"{split}_cub_cleaned.mat", "images"):
            key, box = str(int(record.id)), record.bbox
            assert paths[key] == [record.rel_path]
            assert labels[key] == [str(int(record.class_id))] == [str(int(record.rel_path[:3]))]
            assert splits[key] == [str(int(split == "train"))] == [str(int(record.train))]
            assert [float(v) for v in boxes[key]] == [box.x1, box.y1, box.x2 - box.x1 + 1, box.y2 - box.y1 + 1]


def test_novel_views_show_the_whole_bird_through_their_cameras(bird_root):
    for path in sorted((bird_root / "ground_truth").glob("*.npz")):
        truth = np.load(path, allow_pickle=False)
        assert truth["novel_rgb"].shape == (2, 128, 128, 3)
        for camera, mask, rgb in zip(truth["novel_cameras"], truth["novel_mask"], truth["novel_rgb"], strict=True):
            place = pixels(Camera.from_cmr(torch.from_numpy(camera)[None]), truth["vertices"], 128)
            assert place.min() > 0
            assert place.max() < 128
            assert overlap(silhouette(place, truth["faces"], 128, 128) >= 0.5, mask >= 128) > 0.98
            assert (rgb[mask == 0] == 255).all()


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    take = bird_photos.take_photo

    def interrupted(split: str, index: int, **options):
        if split == "val":
            raise KeyboardInterrupt
        return take(split, index, **options)

    monkeypatch.setattr(bird_photos, "take_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_birds(tmp_path / "set", **{**SMALL, "train": 2})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_is_kept_and_another_recipe_is_refused(bird_root, tmp_path):
    before = (bird_root / "synthetic.json").stat().st_mtime_ns
    write_birds(bird_root, **SMALL)
    assert (bird_root / "synthetic.json").stat().st_mtime_ns == before
    assert json.loads((bird_root / "synthetic.json").read_text())["train"] == 4
    with pytest.raises(ValueError, match=r"seed: 0 there, 5 asked for"):
        write_birds(bird_root, **SMALL, seed=5)
    with pytest.raises(ValueError, match=r"kind: 'birds' there, 'cars'"):
        write_cars(bird_root)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no synthetic\.json"):
        write_birds(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ---- The scan converter ----------------------------------------------------------------------------------------------


def slanted_camera(inv_focal: float) -> Camera:
    quat = torch.tensor([[0.9, 0.2, -0.3, 0.1]], dtype=torch.float64)
    value = torch.tensor([0.8], dtype=torch.float64)
    shift = torch.tensor([[0.05, -0.1]], dtype=torch.float64)
    return Camera(quat / quat.norm(), value, shift, torch.full_like(value, inv_focal))


@pytest.mark.parametrize("inv_focal", [0.0, 0.45])
def test_each_pixel_shows_the_first_point_that_its_ray_meets(inv_focal):
    """Colors are positions, so that interpolation is perspective-correct exactly where the color is the ray's hit."""
    red = np.array([1.0, 0, 0])
    pair = [
        ball(np.array([0.2, 0, 0]), np.array([0.5, 0.3, 0.4]), red, rings=3, around=6),
        ball(np.array([-0.2, 0, -0.1]), np.array([0.3, 0.6, 0.3]), red, rings=3, around=5),
    ]
    surface = join(pair)
    camera, size = slanted_camera(inv_focal), 40
    seen = picture(surface, surface.vertices, camera, height=size, width=size, supersample=1)

    rays = camera.rays(size)
    origins, directions = (t.view(-1, 1, 3).numpy() for t in (rays.origins, rays.directions))
    origins = origins - 4 * directions
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    distance = ((a - origins) * normal).sum(-1) / (directions * normal).sum(-1)
    hit = origins + distance[..., None] * directions
    sides = [(np.cross(q - p, hit - p) * normal).sum(-1) for p, q in ((a, b), (b, c), (c, a))]
    distance[(np.min(sides, axis=0) < 0) | (distance < 0)] = np.inf
    first = distance.argmin(axis=1)
    met = np.isfinite(distance.min(axis=1))
    expected = np.where(met[:, None], hit[np.arange(size * size), first], 0).reshape(size, size, 3)

    covered = seen.coverage == 1
    assert 150 < covered.sum() < size * size
    assert (covered != met.reshape(size, size)).sum() <= 1  # a ray may graze an edge
    both = covered & met.reshape(size, size)
    np.testing.assert_allclose(seen.rgb[both], expected[both], atol=1e-9)


def test_coverage_is_the_area_of_a_triangle_and_back_faces_are_not_drawn():
    corners = np.array([[-0.7, -0.5, 0], [0.6, -0.4, 0], [0.1, 0.7, 0]])
    facing = Surface(corners, np.array([[0, 2, 1]]), np.ones((3, 3)), np.zeros(1, np.int64))
    one = torch.ones(1, dtype=torch.float64)
    camera = Camera(torch.tensor([[1.0, 0, 0, 0]]).double(), one, torch.zeros(1, 2).double(), 0 * one)
    away = Surface(corners, np.array([[0, 1, 2]]), np.ones((3, 3)), np.zeros(1, np.int64))
    area = 0.5 * (1.3 * 1.2 - 0.1 * 0.8)
    shown = picture(facing, facing.colors, camera, height=50, width=50, supersample=4)
    assert shown.coverage.mean() * 4 == pytest.approx(area, rel=2e-3)
    assert picture(away, away.colors, camera, height=50, width=50).coverage.max() == 0


# ---- Cars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(5))
def test_a_car_is_exactly_symmetric_closed_and_inside_its_cube(index):
    surface, shading = car_views.make_car("train", index)
    assert_mirror_symmetric(surface)
    assert_closed_and_outward(surface)
    np.testing.assert_allclose(surface.vertices.max(axis=0), -surface.vertices.min(axis=0), atol=1e-12)
    assert np.abs(surface.vertices).max() == pytest.approx(0.5)
    assert (surface.colors * shading[:, None]).max() < 0.97  # never the white of the background
    low = surface.vertices[:, 1] < -0.3
    assert surface.vertices[low, 2].max() < surface.vertices[~low, 2].max()  # the hood is at -y


def test_a_mirrored_view_of_a_car_is_the_mirrored_picture():
    surface, _ = car_views.make_car("train", 1)
    flat = np.ones(len(surface.vertices))
    pose = car_views.look_at(np.array([0.7, -0.9, 0.6]))
    flip = np.diag([-1.0, 1, 1, 1])
    first, second = (car_views.render_car(surface, flat, p, 64) for p in (pose, flip @ pose @ flip))
    assert np.abs(first[:, ::-1].astype(int) - second.astype(int)).mean() < 0.02
    assert not np.array_equal(first, second)


def test_the_srn_loader_puts_the_meshes_back_on_their_pictures(car_root):
    for split, count in (("train", 6), ("test", 4)):
        dataset = Srn(car_root, split=split, size=96)
        assert len(dataset) == count
        for index in range(count):
            views = dataset[index]
            name = dataset.objects[dataset.object_of[index]]
            mesh = np.load(car_root / f"cars_{split}" / name / "mesh.npz", allow_pickle=False)
            touched = silhouette(pixels(views.camera, mesh["vertices"], 96), mesh["faces"], 96, 96, fine=3) > 0
            assert overlap(touched, views.mask[0, 0].numpy() > 0.5) > 0.97
            assert views.camera.inv_focal.item() == pytest.approx(128 / 262.5)


def test_car_poses_are_look_at_matrices_at_the_published_radius(car_root):
    heights = []
    for path in sorted(car_root.glob("cars_*/*/pose/*.txt")):
        pose = np.loadtxt(path).reshape(4, 4)
        np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) > 0
        assert np.linalg.norm(pose[:3, 3]) == pytest.approx(1.3)
        np.testing.assert_allclose(pose[:3, 2], -pose[:3, 3] / 1.3, atol=1e-12)
        assert pose[2, 1] <= 0  # the picture's downward axis never points up
        heights.append((path.parts[-4], pose[2, 3]))
    assert all(height > 0 for split, height in heights if split == "cars_test")
    pictures = sorted(car_root.glob("cars_*/*/rgb/*.png"))
    assert len(pictures) == len(heights) == 10
    corner = np.array(Image.open(pictures[0]))[0, 0]
    assert corner.tolist() == [255, 255, 255]


def test_a_car_and_its_random_views_do_not_depend_on_how_many_are_written(car_root, tmp_path):
    write_cars(tmp_path / "more", train_objects=3, val_objects=1, test_objects=0, train_views=4, test_views=1, size=96)
    for name in ("rgb/000002.png", "pose/000002.txt", "intrinsics.txt"):
        path = Path("cars_train") / "car_train_00001" / name
        assert (car_root / path).read_bytes() == (tmp_path / "more" / path).read_bytes()

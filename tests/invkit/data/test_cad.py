"""CAD models as ground truth: read as PASCAL3D+ publishes them, and put where the cameras look."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from scipy.spatial.transform import Rotation

from invkit.data.cad import KEY_POINTS, CadTruth, cad_file, similarity
from invkit.data.pascal3d import read_records
from tests.invkit.data import test_pascal3d

NAMES = KEY_POINTS["car"]
TURN, SCALE, SHIFT = (
    Rotation.from_euler("xyz", [20, -50, 130], degrees=True).as_matrix(),
    0.4,
    np.array([0.1, 0.2, -0.3]),
)


def box(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A box without its bottom, as vertices and faces that count from 1."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * size
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return corners, np.array(faces) + 1


def sizes(count: int = 10) -> list[np.ndarray]:
    return [np.array([1.0 + 0.1 * number, 0.6, 0.4]) for number in range(count)]


def write(root: Path, *, mirrored: bool = False, misplaced: bool = False) -> None:
    """CAD/car.mat of ten boxes, the third without one key point; and the mean key points of the cameras' frame."""
    rng = np.random.default_rng(4)
    spread = rng.uniform(-1, 1, (12, 3)) * [1.2, 0.6, 0.4]
    rows = []
    for number, size in enumerate(sizes()):
        vertices, faces = box(size)
        points = rng.permutation(spread) if misplaced else spread
        named = {name: points[place] for place, name in enumerate(NAMES)}
        if number == 2:
            named[NAMES[5]] = np.zeros((0, 0))
        rows.append({"vertices": vertices, "faces": faces.astype(float), **named, "pnames": np.array(NAMES, object)})
    path = cad_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"car": test_pascal3d.structs(rows)})
    turn = TURN @ np.diag([1, 1, -1]) if mirrored else TURN
    sfm = root / "sfm" / "car_train.mat"
    known = {key: value for key, value in scipy.io.loadmat(sfm).items() if not key.startswith("__")}
    scipy.io.savemat(sfm, known | {"S": (SCALE * spread @ turn.T + SHIFT).T})


@pytest.fixture
def cars(tmp_path) -> Path:
    for split in ("train", "val"):
        test_pascal3d.write(tmp_path, split)
    return tmp_path


@pytest.mark.parametrize("mirrored", [False, True])
def test_models_lie_where_the_cameras_look(cars, mirrored):
    write(cars, mirrored=mirrored)
    truth = CadTruth(cars, "train")
    turn = TURN @ np.diag([1, 1, -1]) if mirrored else TURN
    for record in read_records(cars, "train"):
        ((vertices, faces),) = truth.parts(record.name)
        own, _ = box(sizes()[record.cad_index - 1])
        np.testing.assert_allclose(vertices.numpy(), SCALE * own @ turn.T + SHIFT, atol=1e-9)
        assert faces.min() == 0
    assert record.name in truth
    assert "car_pascal/unknown" not in truth


def test_key_points_that_do_not_fit_are_refused(cars):
    write(cars, misplaced=True)
    with pytest.raises(ValueError, match="key points miss"):
        CadTruth(cars, "val")


def test_what_is_missing_or_damaged_is_named(cars):
    with pytest.raises(FileNotFoundError, match=r"CAD.car\.mat is missing"):
        CadTruth(cars, "val")
    write(cars)
    path = cad_file(cars)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cannot read .*car\.mat"):
        CadTruth(cars, "val")
    with pytest.raises(ValueError, match="aeroplane"):
        CadTruth(cars, "val", "aeroplane")


def test_a_similarity_is_found_again_and_says_what_it_misses():
    rng = torch.Generator().manual_seed(0)
    source = torch.randn(8, 3, generator=rng, dtype=torch.float64)
    turn, shift = torch.from_numpy(TURN), torch.from_numpy(SHIFT)
    scale, found, moved, error = similarity(source, SCALE * source @ turn.T + shift)
    assert scale == pytest.approx(SCALE)
    torch.testing.assert_close(found, turn)
    torch.testing.assert_close(moved, shift)
    assert error < 1e-9
    # One point of eight moved by a distance: the rest of the error is what a similarity cannot take up.
    other = SCALE * source @ turn.T + shift
    other[0] += 0.5
    assert 0.1 < similarity(source, other)[3] < 0.9

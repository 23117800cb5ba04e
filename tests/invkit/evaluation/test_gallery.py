"""Pictures of records for a page, in the world of discs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invkit.evaluation.gallery import TURNS, Gallery, coordinates, normals, orbit_of, write_gallery
from invkit.evaluation.page import IOU_AFTER, IOU_BEFORE, PHOTOGRAPH, SIDE, STEP, Method, Result, read
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.inversion.inverter import Inverter, Stage
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import RecordStore
from invkit.types import Guess, Rendering, Views
from meshinv.init import BestOfN
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, masks, photograph

NAMES = ["a/wren", "b <robin>", "50% gull"]
METHOD = Method("disc", "Discs", "settings")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[RecordStore, Views, DiscPrior]:
    """Two photographs that were searched, and one that could not be."""
    rng = torch.Generator().manual_seed(3)
    prior, store = DiscPrior(), RecordStore(tmp_path_factory.mktemp("records"))
    views = photograph(Guess(prior.sample(2, rng), cameras(2, rng)), prior)
    inverter = Inverter(
        prior,
        DiscRenderer(),
        BestOfN(count=2, seed=0),
        Objective({"mask": WeightedTerm(1.0, masks)}),
        stages=[Stage(30, 0.05, 0.01)],
    )
    store.write(NAMES[:2], [0, 1], *inverter(views))
    store.write_failure(NAMES[2], 2, "the mask is empty")
    return store, views, prior


def known() -> dict[str, dict]:
    found = {name: {"status": "ok", "iou_before": 0.5, "iou_after": 0.75, "seconds": 1.23456} for name in NAMES[:2]}
    found[NAMES[1]] |= {"status": "doubtful", "doubts": ["it is small"]}
    return {**found, NAMES[2]: {"status": "the mask is empty"}}


def results(world, folder: Path, size: int = 24, batch_size: int = 2) -> list[Result]:
    store, views, prior = world
    gallery = Gallery(store, prior, DiscRenderer(size), METHOD, batch_size)
    return list(gallery.results(known(), lambda name: views[NAMES.index(name)], folder))


def test_a_result_has_its_steps_sides_numbers_and_doubts(world, tmp_path):
    first, second, failed = results(world, tmp_path)
    store, *_ = world
    trace = store.read(NAMES[0]).trace
    assert sorted(trace.snapshots) == [1, 5, 11, 19]
    steps = [tile.caption for tile in first.tiles if tile.kind == STEP]
    said = [f"after {count} steps, IoU {float(trace.iou[0, count]):.2f}" for count in (1, 5, 11, 19, 30)]
    assert steps == ["first guess", *said]
    assert [tile.caption for tile in first.tiles if tile.kind == SIDE] == list(TURNS.values())
    assert first.numbers == {IOU_BEFORE: 0.5, IOU_AFTER: 0.75}
    assert first.settings["seconds"] == "1.235"
    assert first.settings["steps"] == "30"
    assert (second.status, second.doubts) == ("doubtful", ("it is small",))
    assert all(NAMES[1] in tile.alt for tile in second.tiles)
    assert (failed.status, failed.strip, failed.tiles) == ("the mask is empty", None, ())


def test_the_tiles_show_the_photograph_and_how_it_was_approached(world, tmp_path):
    size = 24
    for result, target in zip(results(world, tmp_path, size), world[1], strict=False):
        with Image.open(tmp_path / result.strip) as strip:
            assert strip.size == (size * len(result.tiles), size)
            tiles = [strip.crop((size * k, 0, size * (k + 1), size)).convert("RGB") for k in range(len(result.tiles))]
        assert [tile.kind for tile in result.tiles][:3] == [PHOTOGRAPH, PHOTOGRAPH, STEP]
        steps = [tile for tile, of in zip(tiles, result.tiles, strict=True) if of.kind == STEP]
        there = torch.nn.functional.interpolate(target.mask, size=(size, size))[0, 0] > 0.5
        colored = [torch.from_numpy(np.asarray(tile).min(axis=2) < 200) for tile in steps]
        missed = [float((mask ^ there).float().mean()) for mask in colored]
        assert missed[-1] < 0.1
        assert missed[-1] <= missed[0]


def test_beyond_those_in_detail_there_are_the_first_guess_and_the_result(world, tmp_path):
    store, views, prior = world
    gallery = Gallery(store, prior, DiscRenderer(), METHOD, detailed=1)
    first, second, _ = gallery.results(known(), lambda name: views[NAMES.index(name)], tmp_path)
    assert len(first.tiles) == 2 + 6 + len(TURNS)
    assert [tile.kind for tile in second.tiles] == [PHOTOGRAPH, PHOTOGRAPH, STEP, STEP]


def test_results_do_not_depend_on_the_batch(world, tmp_path):
    assert results(world, tmp_path / "one", batch_size=1) == results(world, tmp_path / "three", batch_size=3)


def test_a_page_of_a_folder_grows_photograph_by_photograph(world, tmp_path):
    store, views, prior = world
    gallery = Gallery(store, prior, DiscRenderer(16), METHOD)
    model = tmp_path / "a wren" / "a wren.glb"
    model.parent.mkdir()
    model.write_bytes(b"model")

    def write(name: str, **more) -> None:
        photographs = {NAMES[0]: views[0], NAMES[1]: views[1]}.__getitem__
        path = write_gallery(tmp_path, gallery, {name: known()[name]}, photographs, title="Mine", keep=True, **more)
        assert path == tmp_path / "index.html"

    write(NAMES[0], models={NAMES[0]: model})
    write(NAMES[2])
    write(NAMES[1])
    page = read(tmp_path)
    assert [result.name for result in page.results] == [NAMES[0], NAMES[2], NAMES[1]]
    assert page.results[0].model == "a wren/a wren.glb"
    assert page.title == "Mine"
    other = replace(gallery, method=Method("other", "Others"))
    write_gallery(tmp_path, other, {NAMES[0]: known()[NAMES[0]]}, lambda name: views[0], title="Mine", keep=True)
    assert [result.method for result in read(tmp_path).photographs()[NAMES[0]]] == ["disc", "other"]


@pytest.mark.parametrize("azimuth, polar", [(0.0, 90.0), (90.0, 90.0), (-135.0, 60.0), (20.0, 120.0)])
def test_the_orbit_is_where_the_camera_is(azimuth, polar):
    around, above = torch.tensor(azimuth).deg2rad(), torch.tensor(polar).deg2rad()
    # As a viewer has it: from the model's front (+z), y up. The object frame's z is up, and y is the viewer's -z.
    x, y, z = above.sin() * around.sin(), above.cos(), above.sin() * around.cos()
    forward = -torch.stack([x, -z, y])
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    matrix = torch.stack([right, torch.linalg.cross(forward, right), forward])
    camera = Camera(rotation.from_matrix(matrix[None]), torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
    assert orbit_of(camera) == pytest.approx((azimuth, polar), abs=0.1)


def test_normals_and_places_are_colors_over_white():
    mask = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    toward = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1) * mask
    place = torch.tensor([2.0, -1.0, 0.0]).view(1, 3, 1, 1) * mask
    image = Rendering(torch.zeros(1, 3, 1, 3), mask, normals=toward, coords=place)
    torch.testing.assert_close(normals(image)[0, :, 0].T, torch.tensor([[0.0, 0, 1], [0.5, 0.5, 1], [1, 1, 1]]))
    expected = torch.tensor([[1.0, -0.5, 0], [1, 0.25, 0.5], [1, 1, 1]])
    torch.testing.assert_close(coordinates(image)[0, :, 0].T, expected)

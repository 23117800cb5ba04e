"""Records survive whatever happens around them, and hold everything needed to make the pictures again."""

from dataclasses import replace

import pytest
import torch

from invkit.data.dataset import ImageSet
from invkit.inversion.inverter import Inverter, Stage, invert_all
from invkit.inversion.objective import Objective, WeightedTerm
from invkit.inversion.records import DIVERGED, INVISIBLE, OK, RecordStore, Trace
from invkit.runtime import checkpoint
from invkit.types import Estimate, Guess, Views
from meshinv.init import BestOfN
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, masks, photograph

NAMES = ["200.Wren/Wren_0001.jpg", "200.Wren_Wren_0001.jpg", "../a b=2F%2Fc", "\u00e9tourneau"]


@pytest.fixture(scope="module")
def searched() -> tuple[Estimate, Trace]:
    rng = torch.Generator().manual_seed(1)
    prior = DiscPrior(num_classes=2)
    truth = Guess(prior.sample(4, rng), cameras(4, rng), torch.tensor([0, 1, 1, 0]))
    goal = Objective({"mask": WeightedTerm(1.0, masks)})
    return Inverter(prior, DiscRenderer(), BestOfN(3), goal, [Stage(3, 0.1, 0.01)])(photograph(truth, prior))


def test_what_is_written_is_read(tmp_path, searched):
    estimate, trace = searched
    store = RecordStore(tmp_path / "records")
    store.write(NAMES, [5, 6, 7, 8], estimate, trace)
    assert len(store) == 4
    assert store.names() == sorted(NAMES)
    assert all(path.parent == tmp_path / "records" for path in (store.path(name) for name in NAMES))
    for position, name in enumerate(NAMES):
        record = store.read(name)
        assert (record.name, record.index, record.status) == (name, 5 + position, OK)
        assert torch.equal(record.found.latent, estimate.latent[position : position + 1])
        assert torch.equal(record.found.camera.to_cmr(), estimate.camera.to_cmr()[position : position + 1])
        assert torch.equal(record.found.label, estimate.label[position : position + 1])
        assert torch.equal(record.trace.start.latent, trace.start.latent[position : position + 1])
        assert torch.equal(record.trace.terms["mask"], trace.terms["mask"][position : position + 1])
        assert torch.equal(record.trace.iou, trace.iou[position : position + 1])
    # Pictures are made again from records alone.
    found = Guess.cat([store.read(name).found for name in NAMES])
    image = DiscRenderer()(DiscPrior(2).decode(found.latent, found.label), found.camera)
    torch.testing.assert_close(image.rgb, estimate.image.rgb)


def test_a_record_holds_no_picture(tmp_path, searched):
    store = RecordStore(tmp_path)
    store.write(NAMES[:1], [0], searched[0][0], searched[1][0])

    def sizes(node) -> list[int]:
        if isinstance(node, dict):
            return [size for child in node.values() for size in sizes(child)]
        return [node.numel()] if isinstance(node, torch.Tensor) else []

    assert max(sizes(checkpoint.load(store.path(NAMES[0])))) <= 8


def test_a_second_start_finds_what_is_left_to_do(tmp_path, searched):
    store = RecordStore(tmp_path)
    assert store.missing(NAMES) == [0, 1, 2, 3]
    store.write(NAMES[1:3], [1, 2], searched[0][1:3], searched[1][1:3])
    assert RecordStore(tmp_path).missing(NAMES) == [0, 3]
    store.write_failure(NAMES[3], 3, "the picture is damaged")
    assert store.missing(NAMES) == [0]
    failed = store.read(NAMES[3])
    assert (failed.status, failed.found, failed.trace) == ("the picture is damaged", None, None)


def test_processes_fill_one_folder(tmp_path, searched):
    for rank in range(2):
        RecordStore(tmp_path).write(NAMES[rank::2], list(range(4))[rank::2], searched[0][rank::2], searched[1][rank::2])
    assert RecordStore(tmp_path).missing(NAMES) == []


def test_a_damaged_record_counts_as_missing_and_is_told_of(tmp_path, searched):
    store = RecordStore(tmp_path)
    store.write(NAMES, range(4), *searched)
    path = store.path(NAMES[2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="not yet done"):
        assert store.missing(NAMES) == [2]
    with pytest.raises(ValueError, match="damaged"):
        store.read(NAMES[2])


def test_a_file_that_is_no_record_or_another_one_is_refused(tmp_path, searched):
    store = RecordStore(tmp_path)
    store.write(NAMES[:1], [0], searched[0][0], searched[1][0])
    store.path(NAMES[0]).rename(store.path("other"))
    with pytest.raises(ValueError, match="renamed"):
        store.read("other")
    checkpoint.save(store.path("weights"), {"modules": {}})
    with pytest.raises(ValueError, match="not a record"):
        store.read("weights")
    with pytest.raises(FileNotFoundError):
        store.read("nobody")


def test_the_words_for_how_it_ended(searched):
    trace = searched[1]
    ended = Trace(
        trace.start,
        trace.names,
        trace.values,
        trace.iou,
        torch.tensor([True, False, True, False]),
        torch.tensor([True, True, False, False]),
    )
    assert ended.status() == [OK, DIVERGED, INVISIBLE, DIVERGED]
    assert ended[2].status() == [INVISIBLE]
    assert ended[1:3].terms["mask"].shape == (2, 4)


class Album(ImageSet):
    """Discs, of which one file is damaged, one mask empty, and one class unknown to the prior."""

    num_classes = 9
    size = 16

    def __init__(self) -> None:
        self.names = ["a", "damaged", "b/c", "empty", "strange", "d"]
        rng = torch.Generator().manual_seed(3)
        prior = DiscPrior(num_classes=2)
        self.views = photograph(Guess(prior.sample(6, rng), cameras(6, rng), torch.tensor([0, 1, 1, 0, 1, 1])), prior)
        self.read = []

    def __getitem__(self, index: int) -> Views:
        self.read.append(index)
        views = self.views[index]
        if index == 1:
            raise ValueError("cannot decode the image")
        if index == 3:
            return replace(views, mask=0 * views.mask)
        return replace(views, label=views.label + 7) if index == 4 else views


def test_images_that_fail_leave_a_record_and_stop_no_other(tmp_path):
    album, store = Album(), RecordStore(tmp_path)
    goal = Objective({"mask": WeightedTerm(1.0, masks)})
    inverter = Inverter(DiscPrior(2), DiscRenderer(), BestOfN(3), goal, [Stage(3, 0.1, 0.01)])
    records = list(invert_all(inverter, album, store, range(6), batch_size=5))
    assert {record.name: record.status for record in records} == {name: store.read(name).status for name in album.names}
    statuses = {record.name: record.status for record in records}
    assert [statuses[name] for name in ("a", "b/c", "d")] == [OK] * 3
    assert "decode" in statuses["damaged"]
    assert "empty" in statuses["empty"]
    assert "class 8" in statuses["strange"]
    # Those that were in one batch with the failures are what they are alone.
    alone, _ = inverter(album[2])
    torch.testing.assert_close(store.read("b/c").found.latent, alone.latent, rtol=0, atol=1e-5)
    album.read.clear()
    assert list(invert_all(inverter, album, store, store.missing(album.names))) == []
    assert album.read == [], "nothing is read again"


def test_names_of_any_length_have_files_of_their_own(tmp_path, searched):
    estimate, trace = searched
    names = ["\u9e1f" * 60, "\u9e1f" * 60 + "2", "\u0441\u043d\u0435\u0433\u0438\u0440\u044c" * 20, "a" * 5000]
    store = RecordStore(tmp_path / "records")
    store.write(names, [0, 1, 2, 3], estimate, trace)
    store.write_details(names[0], "toy", {"color": torch.zeros(1, 2)})
    assert store.names() == sorted(names)
    assert store.missing(names) == []
    assert all(store.searched(name).name == name for name in names)
    assert max(len(path.name) for path in tmp_path.rglob("*")) < 200

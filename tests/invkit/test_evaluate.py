"""Evaluation of records against overlaps computed here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.evaluate import contact_sheet, evaluate, render
from invkit.invert import Inverter, Stage
from invkit.metrics.psnr import Psnr
from invkit.objective import Objective, WeightedTerm
from invkit.records import RecordStore
from invkit.types import Estimate, Guess, Rendering, Views
from meshinv.init import BestOfN
from tests.invkit.toy_scene import DiscPrior, DiscRenderer, cameras, masks, photograph


class Discs(ImageSet):
    num_classes = 0
    size = 16

    def __init__(self, count: int) -> None:
        self.names = [f"disc/{number}" for number in range(count)]
        rng = torch.Generator().manual_seed(2)
        prior = DiscPrior()
        views = photograph(Guess(prior.sample(count, rng), cameras(count, rng), None), prior)
        moved = views.camera.shift + 0.2 * torch.randn(count, 2, generator=rng)
        self.views = replace(views, camera=replace(views.camera, shift=moved))

    def __getitem__(self, index: int) -> Views:
        return self.views[index]


class Counted:
    """A metric that remembers which images it was shown."""

    name = "counted"

    def __init__(self) -> None:
        self.seen = torch.zeros(0, dtype=torch.long)

    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        assert torch.equal(image.rgb, estimate.image.rgb)
        self.seen = torch.cat([self.seen, target.index])

    def state(self) -> Mapping[str, Tensor]:
        return {"seen": self.seen}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.seen = torch.cat([state["seen"] for state in states])

    def compute(self) -> float:
        return float(len(self.seen))


@pytest.fixture
def done(tmp_path) -> tuple[RecordStore, Discs]:
    dataset = Discs(7)
    store = RecordStore(tmp_path)
    goal = Objective({"mask": WeightedTerm(1.0, masks)})
    chosen = [0, 1, 2, 4, 5]
    estimate, trace = Inverter(DiscPrior(), DiscRenderer(), BestOfN(2), goal, [Stage(30, 0.1, 0.02)])(
        dataset.batch(chosen)
    )
    store.write([dataset.names[index] for index in chosen], chosen, estimate, trace)
    store.write_failure(dataset.names[6], 6, "the mask is empty")
    return store, dataset


def overlap(guess: Guess, views: Views) -> float:
    rendered = DiscRenderer()(DiscPrior().decode(guess.latent, None), guess.camera).mask
    both = (rendered * views.mask).sum()
    return float(both / (rendered.sum() + views.mask.sum() - both))


def test_overlaps_before_and_after_are_those_of_the_rendered_records(done):
    store, dataset = done
    result = evaluate(store, DiscPrior(), DiscRenderer(), dataset, batch_size=2)
    assert result["count"] == 5
    assert result["missing"] == ["disc/3"]
    assert result["images"]["disc/6"] == {"status": "the mask is empty"}
    for index in (0, 1, 2, 4, 5):
        record = store.read(dataset.names[index])
        found = result["images"][record.name]
        assert found["iou_before"] == pytest.approx(overlap(record.trace.start, dataset[index]), abs=1e-6)
        assert found["iou_after"] == pytest.approx(overlap(record.found, dataset[index]), abs=1e-6)
        assert found["iou_after"] == pytest.approx(float(record.trace.iou[0, -1]), abs=1e-5)
    mean = sum(result["images"][f"disc/{index}"]["iou_after"] for index in (0, 1, 2, 4, 5)) / 5
    assert result["iou_after"] == pytest.approx(mean)
    assert result["iou_after"] > result["iou_before"]


def test_every_metric_sees_every_reconstruction_once(done):
    store, dataset = done
    counted, psnr = Counted(), Psnr()
    result = evaluate(store, DiscPrior(), DiscRenderer(), dataset, [counted, psnr], batch_size=3)
    assert counted.seen.tolist() == [0, 1, 2, 4, 5]
    assert result["metrics"]["counted"] == 5
    assert result["metrics"][psnr.name] > 0


def test_nothing_to_measure(tmp_path):
    dataset = Discs(2)
    result = evaluate(RecordStore(tmp_path), DiscPrior(), DiscRenderer(), dataset, [Psnr()])
    assert (result["count"], result["iou_after"], result["metrics"]) == (0, None, {})
    assert result["missing"] == dataset.names


def test_a_contact_sheet_shows_photograph_reconstruction_and_turns(done):
    store, dataset = done
    views = dataset.batch([0, 5])
    found = Guess.cat([store.read(dataset.names[index]).found for index in (0, 5)])
    estimate = render(found, DiscPrior(), DiscRenderer())
    sheet = contact_sheet(views, estimate, DiscRenderer(), turns=(90.0, 180.0))
    assert sheet.shape == (3, 2 * 16, 5 * 16)
    cells = sheet.view(3, 2, 16, 5, 16).permute(1, 3, 0, 2, 4)
    assert torch.equal(cells[:, 0], views.rgb)
    for row in (0, 1):
        image = estimate.image[row]
        torch.testing.assert_close(cells[row, 2], (image.rgb * image.mask + 1 - image.mask)[0])
        # A turned disc is in the middle of its picture.
        ink = (1 - cells[row, 4]).abs().sum(0)
        torch.testing.assert_close(ink, ink.flip(0, 1), rtol=0, atol=1e-4)

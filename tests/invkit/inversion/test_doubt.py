"""What is doubted and what is not, on painted masks; the thresholds themselves were measured on birds."""

import numpy as np
import pytest
import torch

from invkit.data.dataset import ImageSet
from invkit.geometry.camera import Camera
from invkit.inversion import doubt
from invkit.inversion.doubt import Thresholds, doubts_about_mask, doubts_about_search, judged, rates
from invkit.inversion.records import DIVERGED, DOUBTFUL, OK
from invkit.types import Views

SIZE = 96
SIDE = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]])


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return x, y


def disk(x: float = 48, y: float = 48, radius: float = 25) -> torch.Tensor:
    across, down = grid()
    return torch.from_numpy((across - x) ** 2 + (down - y) ** 2 < radius**2)[None].double()


def bird() -> torch.Tensor:
    return (disk(44, 52, 22) + disk(66, 34, 11)).clamp(max=1)


def soft(mask: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(mask[None], width, stride=1, padding=width // 2)[0]


def photograph() -> torch.Tensor:
    rng = np.random.default_rng(0)
    x, y = grid()
    waves = 0.5 + 0.25 * np.sin(x / 9) + 0.2 * np.cos(y / 7)
    return torch.from_numpy((waves + rng.normal(0, 0.05, (3, SIZE, SIZE))).clip(0, 1))


# ---- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [bird(), soft(bird(), 5), disk(x=5), (bird() + disk(12, 12, 4)).clamp(max=1), disk(radius=46)],
    ids=["bird", "soft", "cut off by the frame", "with a crumb", "filling the picture"],
)
def test_a_silhouette_is_believed(mask):
    assert doubts_about_mask(mask) == []


@pytest.mark.parametrize(
    "mask, said",
    [
        (doubt.inverted(bird()), "as if it were inverted"),
        (torch.nn.functional.pad(doubt.inverted(bird()), (5, 5, 5, 5)), "as if it were inverted"),
        (doubt.inverted(disk(x=5)), "as if it were inverted"),
        (torch.ones(1, SIZE, SIZE, dtype=torch.float64), "inverted"),
        (doubt.brightness(photograph()), "gray, as if it were a photograph"),
        (disk(20, 20, 14) + disk(75, 20, 14) + disk(48, 75, 14), "in pieces, the largest of which is 33%"),
        (disk(radius=6), "only 112 pixels large"),
    ],
    ids=["inverted", "inverted, cut out", "inverted, object at the frame", "full", "photograph", "pieces", "tiny"],
)
def test_what_was_taken_for_a_silhouette_is_doubted(mask, said):
    assert any(said in reason for reason in doubts_about_mask(mask)), doubts_about_mask(mask)


def test_a_box_shaped_thing_is_doubted_only_as_the_thresholds_say():
    box = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    box[:, 30:70, 20:80] = 1
    assert doubts_about_mask(box)
    assert doubts_about_mask(box, Thresholds(max_rim=1.0)) == []


def test_what_is_measured_of_a_mask():
    half = torch.zeros(1, 10, 20)
    half[:, 2:8, 5:15] = 1
    half[:, 2:8, 9:11] = 0
    half[:, 0, 0] = 0.4
    of = doubt.shape(half)
    assert (of.pixels, of.cover, of.largest) == (48, 0.24, 0.5)
    assert of.gray == pytest.approx(1 / 49)
    assert of.rim == pytest.approx((8 + 8 + 6 + 6) / 32)


def test_an_empty_mask_is_small_and_nothing_else_breaks():
    assert any("only 0 pixels" in reason for reason in doubts_about_mask(torch.zeros(1, 8, 8)))


def test_a_shifted_mask_lies_beside_its_object_and_does_not_come_back_on_the_other_side():
    assert torch.equal(doubt.shifted(disk(30, 30, 20)), disk(62, 62, 20))
    assert not doubt.shifted(bird())[:, :32].any()


# ---- Searches --------------------------------------------------------------------------------------------------------


def test_an_overlap_below_the_threshold_is_a_reason():
    than = Thresholds(min_iou=0.5)
    assert doubts_about_search(0.5, than) == []
    (reason,) = doubts_about_search(0.49, than)
    assert "overlaps the silhouette by only 0.49 (below 0.5)" in reason
    assert doubts_about_search(float("nan"), than)


class Pictures(ImageSet):
    """A data set of masks."""

    def __init__(self) -> None:
        self.names = ["good", "bad mask", "bad overlap", "diverged", "unreadable"]
        self.num_classes = 0

    def __getitem__(self, index: int) -> Views:
        mask = doubt.inverted(bird()) if self.names[index] == "bad mask" else bird()
        return Views(
            torch.zeros(1, 3, SIZE, SIZE), mask[None].float(), Camera.from_cmr(SIDE), None, torch.tensor([index])
        )


def test_a_doubt_takes_the_place_of_ok_alone():
    images = {
        "good": {"status": OK, "iou_of_search": 0.8},
        "bad mask": {"status": OK, "iou_of_search": 0.8},
        "bad overlap": {"status": OK, "iou_of_search": 0.3, "iou_after": 0.8},  # refined to agree with any mask
        "diverged": {"status": DIVERGED, "iou_of_search": 0.1},
        "unreadable": {"status": "no image at x.png"},
    }
    found = judged(images, Pictures(), Thresholds())
    statuses = {name: image["status"] for name, image in found.items()}
    assert statuses == {
        "good": OK,
        "bad mask": DOUBTFUL,
        "bad overlap": DOUBTFUL,
        "diverged": DIVERGED,
        "unreadable": "no image at x.png",
    }
    assert [len(image["doubts"]) for image in found.values()] == [0, 1, 1, 1, 0]
    assert images["bad mask"]["status"] == OK


def test_rates_count_what_is_wrong_on_either_side():
    low, high = rates([0.5, 0.7, 0.8, 0.9], [0.2, 0.6], [0.4, 0.75])
    assert (low.threshold, low.false_alarms, low.misses) == (0.4, 0.0, 0.5)
    assert (high.threshold, high.false_alarms, high.misses) == (0.75, 0.5, 0.0)
    with pytest.raises(ValueError, match="got 0 and 1"):
        rates([], [0.5], [0.5])

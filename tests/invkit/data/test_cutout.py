"""Silhouettes by GrabCut, against disks that were painted and are therefore known."""

import numpy as np
import pytest
import torch

from invkit.data.cutout import LONG_SIDE, box_inside, cut_out, filled, improved

HEIGHT, WIDTH, CENTER, RADIUS = 150, 200, (110.0, 70.0), 40.0
BOX = (66, 26, 154, 114)


def disk(dx: float = 0.0, radius: float = RADIUS, zoom: int = 1) -> np.ndarray:
    y, x = (np.mgrid[: zoom * HEIGHT, : zoom * WIDTH] + 0.5) / zoom
    return (x - CENTER[0] - dx) ** 2 + (y - CENTER[1]) ** 2 < radius**2


def painted(mask: np.ndarray, noise: float = 0.08) -> torch.Tensor:
    """Warm colors on striped cold ones, with noise."""
    rng = np.random.default_rng(0)
    stripes = 0.1 * np.sin(np.arange(mask.shape[1]) / 3)[None, :, None]
    picture = np.where(mask[..., None], [0.75, 0.45, 0.25], np.array([0.3, 0.45, 0.6]) + stripes)
    return torch.from_numpy((picture + rng.normal(0, noise, picture.shape)).clip(0, 1)).permute(2, 0, 1)


def overlap(found: torch.Tensor, mask: np.ndarray) -> float:
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    found = found[0].numpy() > 0
    return (found & mask).sum() / (found | mask).sum()


def as_mask(shape: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(shape)[None].double()


# ---- From a box ------------------------------------------------------------------------------------------------------


def test_a_disk_is_cut_out_of_its_box():
    assert overlap(cut_out(painted(disk()), BOX), disk()) > 0.97


def test_the_same_photograph_gives_the_same_silhouette():
    picture = painted(disk(), noise=0.15)
    first = cut_out(picture, BOX)
    torch.rand(3)
    assert torch.equal(cut_out(picture, BOX), first)


def test_a_large_photograph_is_cut_small_and_the_silhouette_is_as_large_as_it_is():
    zoom = 4
    assert zoom * WIDTH > 1.5 * LONG_SIDE
    found = cut_out(painted(disk(zoom=zoom), noise=0.05), [zoom * side for side in BOX])
    assert found.shape == (1, zoom * HEIGHT, zoom * WIDTH)
    assert overlap(found, disk(zoom=zoom)) > 0.97


def test_what_is_of_the_same_color_outside_of_the_box_is_not_the_object():
    shape = disk()
    with_twin = shape | disk(dx=-92, radius=12)
    found = cut_out(painted(with_twin), BOX)
    assert overlap(found, shape) > 0.97


def test_holes_are_filled_and_crumbs_are_left_out():
    ring, crumb = disk() & ~disk(radius=6), disk(dx=48, radius=3)
    found = cut_out(painted(ring | crumb, noise=0.03), (60, 20, 165, 120))
    assert overlap(found, disk()) > 0.97
    assert not found[0].numpy()[crumb].any()


def test_a_box_that_reaches_outside_is_clipped():
    assert box_inside((-30.0, 10.4, 90.6, 900), WIDTH, HEIGHT) == (0, 10, 91, HEIGHT)
    mask = filled((-30.0, 10.4, 90.6, 900), painted(disk()))
    assert mask.sum() == 91 * (HEIGHT - 10)
    assert mask[0, 10:, :91].all()


@pytest.mark.parametrize(
    "box, said",
    [
        ((1, 2, 3), "is no box"),
        ((50, 20, 40, 90), "is no box: give"),
        ((50, 20, float("nan"), 90), "is no box"),
        ((300, 20, 400, 90), "lies outside the photograph, which is 200 wide and 150 high"),
        ((-50, 20, -2, 90), "lies outside"),
        ((190, 20, 400, 90), r"only 10 x 70 pixels of box=\(190,20,400,90\) lie in the photograph"),
        ((0, 0, 200, 150), "all of the photograph"),
    ],
)
def test_an_impossible_box_is_refused_in_words(box, said):
    with pytest.raises(ValueError, match=said):
        cut_out(painted(disk()), box)


def test_a_box_of_background_is_refused_in_words():
    with pytest.raises(ValueError, match=r"was found in box=.*draw it closely around"):
        cut_out(torch.full((3, HEIGHT, WIDTH), 0.5, dtype=torch.float64), BOX)


# ---- From a mask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rough",
    [disk(dx=4), disk(radius=44), disk(radius=36), disk() & (np.mgrid[:HEIGHT, :WIDTH][1] < CENTER[0] + 33)],
    ids=["shifted", "too large", "too small", "cut off"],
)
def test_a_rough_mask_is_improved(rough):
    assert overlap(as_mask(rough), disk()) < 0.97
    assert overlap(improved(painted(disk()), as_mask(rough)), disk()) > 0.97


def test_the_outline_moves_no_farther_than_the_band():
    rough, band = disk(radius=30), 0.08
    found = improved(painted(disk()), as_mask(rough), band=band)
    reach = band * np.sqrt(rough.sum())
    assert not found[0].numpy()[~disk(radius=30 + reach + 1.5)].any()
    assert found[0].numpy()[disk(radius=30 - reach - 1.5)].all()


def test_a_thin_object_keeps_its_middle():
    line = np.zeros((HEIGHT, WIDTH), dtype=bool)
    line[70:73, 20:180] = True
    assert improved(painted(line), as_mask(line))[0].numpy()[71, 25:175].all()


@pytest.mark.parametrize("value, said", [(0.0, "empty"), (1.0, "full")])
def test_a_mask_without_an_outline_is_refused(value, said):
    with pytest.raises(ValueError, match=f"a mask that is {said}"):
        improved(painted(disk()), torch.full((1, HEIGHT, WIDTH), value, dtype=torch.float64))

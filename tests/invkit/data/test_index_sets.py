"""Index sets of evaluations against numbers that the released code's own generator was found to give."""

import pytest
import torch
from PIL import Image

from invkit.data.folder import Folder
from invkit.data.imagenet import ImageNet
from invkit.data.index_sets import IndexSet, corrected, released, released_of

NOTHING = (0, None)


def views(objects: int, each: int) -> tuple[int, list[int]]:
    return objects * each, [number for number in range(objects) for _ in range(each)]


def own(sets) -> float:
    """How many images are their own partner."""
    return sum(a == b for a, b in zip(sets.chosen, sets.partner, strict=True)) / len(sets.chosen)


def test_the_released_sample_and_its_partners():
    sets, _ = released(views(400, 50), NOTHING)
    assert sets.chosen[:8] == (0, 2, 3, 14, 15, 17, 19, 22)
    assert (len(sets.chosen), sets.chosen[-1]) == (8000, 19996)
    assert sets.partner[:8] == (35, 31, 34, 2, 39, 25, 19, 25)
    assert own(sets) == pytest.approx(0.05025)
    assert all(a // 50 == b // 50 for a, b in zip(sets.chosen, sets.partner, strict=True))
    assert released((20000, None), NOTHING)[0].chosen == sets.chosen


@pytest.mark.parametrize(
    "train, test, first, share",
    [
        ((2458, 50), (704, 251), (18, 19, 35, 49, 54), 0.088375),
        ((4612, 50), (1317, 251), (45, 132, 146, 172, 183), 0.168375),
    ],
    ids=["cars", "chairs"],
)
def test_the_released_test_sets_of_shapenet(train, test, first, share):
    sets = released(views(*train), views(*test))
    assert sets[1].chosen[:5] == first
    assert own(sets[1]) == pytest.approx(share)


def test_the_released_permutation_of_single_views():
    assert released((10, None), NOTHING)[0].partner == (5, 4, 8, 2, 6, 9, 1, 7, 0, 3)
    # What is drawn for the training split comes first.
    assert released(NOTHING, (10, None))[1].partner == (5, 4, 8, 2, 6, 9, 1, 7, 0, 3)
    assert released((3, None), (10, None))[1].partner != (5, 4, 8, 2, 6, 9, 1, 7, 0, 3)


def test_of_imagenet_the_order_of_all_is_drawn_before_the_partners():
    rng = torch.Generator().manual_seed(1234)
    assert sorted(torch.randperm(10, generator=rng).tolist()) == list(range(10))
    second = tuple(torch.randperm(10, generator=rng).tolist())
    assert released((10, None), NOTHING, imagenet=True)[0] == IndexSet(tuple(range(10)), second)
    assert second != released((10, None), NOTHING)[0].partner
    zebras = ImageNet.__new__(ImageNet)
    zebras.names = [str(number) for number in range(10)]
    assert released_of(zebras, zebras).partner == second
    # Of a larger set, whose sample is drawn anyway, nothing changes.
    assert released((100, None), NOTHING, most=10, imagenet=True) == released((100, None), NOTHING, most=10)


def test_a_training_split_comes_first_wherever_it_is_evaluated(tmp_path):
    def photos(*names: str) -> Folder:
        folder = tmp_path / names[0]
        folder.mkdir(exist_ok=True)
        for name in names:
            Image.new("RGBA", (4, 4), (0, 0, 0, 255)).save(folder / f"{name}.png")
        return Folder(folder)

    train, test = photos(*"abcdefghij"), photos(*"klm")
    first, second = released((10, None), (3, None))
    assert released_of(train, train) == first
    assert released_of(test, train) == second


def test_released_partners_of_single_views_are_numbers_up_to_the_count():
    sets, _ = released((100, None), NOTHING, most=10)
    assert sets.chosen[-1] > 10
    assert sorted(sets.partner) == list(range(10))


def test_corrected_partners_show_the_same_object_and_never_the_same_view():
    sets = corrected(views(40, 50))
    assert sets.chosen == tuple(range(2000))
    assert own(sets) == 0
    assert all(a // 50 == b // 50 for a, b in zip(sets.chosen, sets.partner, strict=True))
    steps = [(b - a) % 50 for a, b in zip(sets.chosen, sets.partner, strict=True)]
    assert set(steps) == set(range(1, 50))
    assert own(corrected(views(5, 1))) == 1


@pytest.mark.parametrize("count", [1, 2, 9, 50])
def test_corrected_partners_of_single_views_are_all_of_the_others(count):
    sets = corrected((count, None))
    assert sorted(sets.partner) == list(sets.chosen)
    assert own(sets) == (count == 1)

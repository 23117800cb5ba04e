"""Which images of a split are evaluated, and which other photograph of the split each is looked at from.

Random views of a reconstruction are taken from where other photographs were taken: of the same object where a data set
has several of it, of any object otherwise. The released code of Bootstrapped Radiance Field Inversion draws all of its
choices from one generator, first those of the training split and then those of the test split, and two of them are not
what they are meant to be; `released` repeats them, `corrected` does what was meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from invkit.data.dataset import ImageSet
from invkit.data.imagenet import ImageNet
from invkit.data.srn import Srn

MOST, SEED = 8000, 1234


@dataclass(frozen=True)
class IndexSet:
    """Positions in a split.

    Args:
        chosen: the images that are evaluated, in ascending order.
        partner: for each of them, the photograph from whose place it is looked at.
    """

    chosen: tuple[int, ...]
    partner: tuple[int, ...]


Split = tuple[int, Sequence[int] | None]
"""How many images a split has, and for each the number of its object; None where each image has its own."""


def split_of(dataset: ImageSet) -> Split:
    """What is drawn for depends on nothing else of a data set."""
    return len(dataset), dataset.object_of if isinstance(dataset, Srn) else None


def has_other_sides(dataset: ImageSet) -> bool:
    """Whether there are several photographs of an object."""
    _, object_of = split_of(dataset)
    return object_of is not None and len(set(object_of)) < len(object_of)


def released(
    train: Split, test: Split, *, most: int = MOST, seed: int = SEED, imagenet: bool = False
) -> tuple[IndexSet, IndexSet]:
    """The released code's choices for the training and the test split.

    Of a split with more than `most` images so many are chosen. Where objects have several photographs, the partner is
    to be another one of the chosen photographs of the same object; but what is compared, to avoid the same one, is the
    partner's number among these with the image's number in the split, so that the image itself is often its own
    partner: 8.8 percent of ShapeNet's cars, 16.8 percent of its chairs. Where each object has one photograph, partners
    are a permutation of the numbers up to the count of the chosen images, and not of these images.

    Args:
        imagenet: its training split is drawn from even where all of it is taken, which moves on what is drawn later.
    """
    rng = torch.Generator().manual_seed(seed)
    if imagenet and train[0] <= most:
        torch.randperm(train[0], generator=rng)
    sets = [_released(split, most, rng) for split in (train, test)]
    return sets[0], sets[1]


def released_of(dataset: ImageSet, train: ImageSet) -> IndexSet:
    """`released` for a data set that is the training split itself, or the test split beside it."""
    sets = released(split_of(train), split_of(dataset), imagenet=isinstance(train, ImageNet))
    return sets[0] if dataset.names == train.names else sets[1]


def corrected(split: Split, *, seed: int = SEED) -> IndexSet:
    """The same as it is meant, for all images of a split: none is its own partner, unless there is no other one."""
    count, object_of = split
    rng = torch.Generator().manual_seed(seed)
    everything = tuple(range(count))
    if object_of is None:
        order = torch.randperm(count, generator=rng)
        # Along one cycle through all of them nothing comes next to itself.
        return IndexSet(everything, tuple(torch.empty_like(order).scatter_(0, order, order.roll(-1)).tolist()))
    partner = [0] * count
    for own in _by_object(everything, object_of).values():
        for place, index in enumerate(own):
            further = _drawn(len(own) - 1, rng) + 1 if len(own) > 1 else 0
            partner[index] = own[(place + further) % len(own)]
    return IndexSet(everything, tuple(partner))


def _released(split: Split, most: int, rng: torch.Generator) -> IndexSet:
    count, object_of = split
    chosen = _chosen(count, most, rng)
    if object_of is None:
        return IndexSet(tuple(chosen), tuple(torch.randperm(len(chosen), generator=rng).tolist()))
    views = _by_object(chosen, object_of)
    partner = []
    for index in chosen:
        own = views[object_of[index]]
        place = 0
        while len(own) > 1 and (place := _drawn(len(own), rng)) == index:
            pass
        partner.append(own[place])
    return IndexSet(tuple(chosen), tuple(partner))


def _chosen(count: int, most: int, rng: torch.Generator) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted(torch.randperm(count, generator=rng)[:most].tolist())


def _by_object(chosen: Sequence[int], object_of: Sequence[int]) -> dict[int, list[int]]:
    views: dict[int, list[int]] = {}
    for index in chosen:
        views.setdefault(object_of[index], []).append(index)
    return views


def _drawn(below: int, rng: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=rng))

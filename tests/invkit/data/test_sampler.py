import threading
import time
from itertools import islice

import pytest
import torch

from invkit.data.dataset import Cached, ImageSet, subset
from invkit.data.sampler import StepSampler, batches
from invkit.geometry.camera import Camera
from invkit.types import Views


class Numbers(ImageSet):
    """Item i is a picture of the number i; reading takes longer for some than for others."""

    def __init__(self, count: int, slow: bool = False) -> None:
        self.names, self.num_classes, self.size = [f"n/{i}" for i in range(count)], 0, 2
        self.slow, self.reads = slow, []

    def __getitem__(self, index: int) -> Views:
        index = self._position(index)
        self.reads.append(index)
        if self.slow:
            time.sleep(0.003 * (index % 3))
        camera = Camera(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
        return Views(
            torch.full((1, 3, 2, 2), float(index)), torch.ones(1, 1, 2, 2), camera, None, torch.tensor([index])
        )


def test_an_epoch_shows_every_item_once_and_the_next_in_another_order():
    sampler = StepSampler(12, 4, seed=3)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in sampler.indices(step)] for e in range(4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_an_incomplete_last_batch_is_dropped_and_others_take_its_place_next_time():
    sampler = StepSampler(11, 4, seed=0)
    assert sampler.steps_per_epoch == 2
    epochs = [set(sampler.indices(2 * e) + sampler.indices(2 * e + 1)) for e in range(8)]
    assert all(len(epoch) == 8 for epoch in epochs)
    assert set.union(*epochs) == set(range(11))


def test_a_step_depends_on_the_seed_and_the_step_alone():
    forward = StepSampler(100, 8, seed=1)
    steps = [forward.indices(step) for step in range(40)]
    backward = StepSampler(100, 8, seed=1)
    assert [backward.indices(step) for step in reversed(range(40))] == steps[::-1]
    assert StepSampler(100, 8, seed=2).indices(0) != steps[0]
    # The epoch does not act like a shift of the seed.
    assert StepSampler(100, 8, seed=2).indices(0) != forward.indices(forward.steps_per_epoch)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_the_batch_of_a_single_process(world_size):
    sampler = StepSampler(50, 8, seed=0)
    for step in (0, 3, 6, 100):
        shares = [sampler.indices(step, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {8 // world_size}
        assert [index for share in shares for index in share] == sampler.indices(step)


@pytest.mark.parametrize("world_size", [3, 4, 8])
def test_shares_may_be_uneven_where_that_is_asked_for(world_size):
    sampler = StepSampler(120, 50, seed=0, uneven=True)
    for step in (0, 1, 2, 9):
        shares = [sampler.indices(step, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {50 // world_size, 50 // world_size + 1}
        assert [index for share in shares for index in share] == sampler.indices(step)
    with pytest.raises(ValueError, match="nothing for some of 51"):
        sampler.indices(0, 0, 51)


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="batch_size"):
        StepSampler(3, 4, seed=0)
    with pytest.raises(ValueError, match="3 processes; give batch_size=6"):
        StepSampler(10, 4, seed=0).indices(0, 0, 3)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing_but_the_time(workers):
    sampler = StepSampler(20, 4, seed=0)
    read = list(islice(batches(Numbers(20, slow=True), sampler, start=3, workers=workers), 9))
    assert [batch.index.tolist() for batch in read] == [sampler.indices(step) for step in range(3, 12)]
    assert all((batch.rgb[:, 0, 0, 0] == batch.index).all() for batch in read)


def test_a_rank_reads_its_share_only():
    dataset, sampler = Numbers(20), StepSampler(20, 4, seed=0)
    first = next(batches(dataset, sampler, 0, rank=1, world_size=2, workers=0))
    assert first.index.tolist() == sampler.indices(0)[2:] == dataset.reads


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    dataset, sampler = Numbers(1000), StepSampler(1000, 1, seed=0)
    iterator = batches(dataset, sampler, 0, workers=2)
    next(iterator)
    time.sleep(0.1)
    assert len(dataset.reads) <= 4
    iterator.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("reader") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_is_raised_at_its_own_step():
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Views:
            if index == 5:
                raise ValueError("photograph 5 is damaged")
            return super().__getitem__(index)

    sampler = StepSampler(10, 1, seed=0)
    place = [sampler.indices(step)[0] for step in range(10)].index(5)
    iterator = batches(Broken(10), sampler, 0, workers=3)
    assert len(list(islice(iterator, place))) == place
    with pytest.raises(ValueError, match="photograph 5"):
        next(iterator)


def test_a_subset_counts_from_its_own_beginning():
    chosen = subset(Numbers(10), [7, -1, 2])
    assert (chosen.names, len(chosen)) == (["n/7", "n/9", "n/2"], 3)
    batch = chosen.batch([2, 0])
    assert batch.index.tolist() == [2, 0]
    assert batch.rgb[:, 0, 0, 0].tolist() == [2.0, 7.0]
    assert chosen[-1].index.tolist() == [2]
    with pytest.raises(IndexError):
        chosen[3]
    with pytest.raises(IndexError):
        subset(Numbers(10), [10])
    with pytest.raises(ValueError, match="once"):
        subset(Numbers(10), [1, 1])


def test_a_cache_reads_each_item_once_and_gives_the_same():
    dataset = Numbers(6)
    cached = Cached(dataset)
    dataset.reads.clear()
    first, again = cached.batch([3, 4, 3]), cached.batch([4, 3, -2])
    assert sorted(dataset.reads) == [3, 4]
    assert first.index.tolist() == [3, 4, 3]
    assert again.index.tolist() == [4, 3, 4]
    assert torch.equal(again.rgb, dataset.batch([4, 3, 4]).rgb)


def test_a_cache_that_would_not_fit_says_so_before_it_is_filled():
    dataset = Numbers(1000)
    # 16 floats of picture and mask, 8 of camera (and principal point 2), one int64: the same for every item.
    with pytest.raises(ValueError, match="max_bytes"):
        Cached(dataset, max_bytes=1000 * 64)
    assert len(dataset.reads) == 1
    Cached(dataset, max_bytes=1000 * 200)

"""Which items each training step sees: a function of (seed, step) alone.

That is what makes a run resume exactly: no iterator state is saved, the sampler simply starts at the step. And the data
do not depend on how many ranks and reading threads there are.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

Item = TypeVar("Item", covariant=True)


@runtime_checkable
class Source(Protocol[Item]):
    """Anything that can be read in batches, such as an `ImageSet`."""

    def batch(self, indices: Sequence[int]) -> Item: ...


class StepSampler:
    """The items of every step: slices of one random permutation after another, incomplete last slices dropped."""

    def __init__(self, num_items: int, batch_size: int, seed: int, *, uneven: bool = False) -> None:
        """A sampler of `batch_size` items a step, all ranks together.

        Args:
            uneven: shares of ranks may differ by one item. `invkit.train.loop` weighs a rank's loss by its share, but a
                task must not count on equal ones.

        Raises:
            ValueError: there are fewer items than one step takes.
        """
        if not 1 <= batch_size <= num_items:
            raise ValueError(f"batch_size={batch_size}, but there are {num_items} items: it must be between 1 and that")
        self.num_items, self.batch_size, self.seed, self.uneven = num_items, batch_size, seed, uneven
        self._kept: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return self.num_items // self.batch_size

    def indices(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """This rank's items at `step`; the ranks' shares, one after another, are the batch of one single process.

        Raises:
            ValueError: the ranks' shares would differ in size, and `uneven` does not allow it; or there is nothing for
                some of them.
        """
        if self.batch_size % world_size and not self.uneven:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared equally by {world_size} processes; give "
                f"batch_size={-(-self.batch_size // world_size) * world_size}, or another number of processes"
            )
        if self.batch_size < world_size:
            raise ValueError(f"batch_size {self.batch_size} has nothing for some of {world_size} processes")
        epoch, position = divmod(step, self.steps_per_epoch)
        before = position * self.batch_size
        first, last = (before + number * self.batch_size // world_size for number in (rank, rank + 1))
        return self._permutation(epoch)[first:last]

    def _permutation(self, epoch: int) -> list[int]:
        kept, order = self._kept
        if kept != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_items).tolist()
            self._kept = epoch, order
        return order


def batches(
    dataset: Source[Item], sampler: StepSampler, start: int, rank: int = 0, world_size: int = 1, workers: int = 2
) -> Iterator[Item]:
    """The batches of steps start, start + 1, ... without end, read ahead by `workers` threads; 0 reads in line.

    An error while reading is raised at the step it belongs to.
    """
    steps = (sampler.indices(step, rank, world_size) for step in count(start))
    if workers == 0:
        yield from map(dataset.batch, steps)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    ahead: deque[Future[Item]] = deque()
    try:
        while True:
            while len(ahead) <= workers:
                ahead.append(pool.submit(dataset.batch, next(steps)))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

"""How long the rest takes, estimated from what was done lately.

Work seldom goes at one pace from the beginning: the first items wait for files, weights and caches, and the images of a
batch are all done at once, after a long time in which none was. So the time of the first burst is left out, bursts are
counted as wholes, and the later half of them decides.
"""

from collections import deque
from dataclasses import dataclass

QUICK = 0.02
"""An item that took less than this part of the slowest of the `RECENT` ones belongs to the burst before it."""
RECENT = 64
MOST_BURSTS = 512
"""How many are kept; beyond that every second of the older ones is forgotten."""


@dataclass(frozen=True)
class _Burst:
    """Items done at about the same time: the first of them, how many were done when it was told of, and when."""

    first: int
    done: int
    now: float


class Pace:
    """When how much was done.

    Args:
        done: items (or steps) that are done, of which nothing is known but that they were done by `now`.
        now: seconds on any clock that only goes on.
        steady: what comes is no burst, so that the time from here to the first of it counts too until more is known.
    """

    def __init__(self, done: int, now: float, *, steady: bool = False) -> None:
        self._last = (done, now)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._bursts = [_Burst(done + 1, done, now)] if steady else []

    def add(self, done: int, now: float) -> None:
        """Say that `done` items are done by now; the same number again says nothing."""
        items, seconds = done - self._last[0], now - self._last[1]
        if items <= 0:
            return
        self._recent.append(seconds / items)
        if not self._bursts or seconds / items >= QUICK * max(self._recent):
            self._bursts.append(_Burst(self._last[0] + 1, done, now))
        self._last = (done, now)
        if len(self._bursts) > MOST_BURSTS:
            half = MOST_BURSTS // 2
            self._bursts = self._bursts[:half:2] + self._bursts[half:]

    def seconds_per_item(self) -> float | None:
        """Of the later half of the bursts; None before the second burst has begun."""
        if len(self._bursts) < 2:
            return None
        begin, end = self._bursts[(len(self._bursts) - 1) // 2], self._bursts[-1]
        return (end.now - begin.now) / (end.done - begin.done)

    def seconds_left(self, total: int) -> float | None:
        """Until all are done; None where nothing can be said yet.

        Of a burst that has begun, as much is taken for done as the bursts before it had.
        """
        each = self.seconds_per_item()
        if each is None:
            return None
        latest = self._bursts[-1]
        usual = (latest.done - self._bursts[0].done) / (len(self._bursts) - 1)
        return max(total - max(self._last[0], latest.first - 1 + usual), 0.0) * each


def duration(seconds: int | float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

from itertools import accumulate

import pytest

from invkit.runtime.pace import Pace, duration


def told(waits: list[float], *, total: int, **how) -> tuple[Pace, float | None]:
    """The pace after items that took so long, and what it says is left."""
    pace = Pace(0, 100.0, **how)
    for done, now in enumerate(accumulate(waits, initial=100.0)):
        pace.add(done, now)
    return pace, pace.seconds_left(total)


def test_of_batches_the_first_item_says_nothing_and_whole_ones_decide():
    batch = [80.0, *[0.01] * 15]
    assert told(batch[:1], total=64)[1] is None  # 80 s for one image would make 5,000 s for the rest
    assert told(batch, total=64)[1] is None
    assert told([*batch, 80.0], total=64)[1] == pytest.approx(2 * 80, rel=0.01)
    assert told([*batch, *batch, 80.0], total=64)[1] == pytest.approx(80, rel=0.01)
    assert told([*batch, *batch], total=32)[1] == 0


def test_slow_first_items_are_forgotten():
    assert told([60.0, 20.0, *[2.0] * 8], total=110)[1] == pytest.approx(200, rel=0.01)


def test_items_that_take_longer_in_the_end_are_believed():
    pace, _ = told([1.0] * 20 + [4.0] * 30, total=100)
    assert pace.seconds_per_item() == pytest.approx(4.0)


def test_uneven_items_are_averaged():
    pace, _ = told([1.0, 3.0] * 50, total=200)
    assert pace.seconds_per_item() == pytest.approx(2.0, rel=0.05)


def test_what_is_no_burst_is_estimated_from_the_beginning():
    pace = Pace(100, 0.0, steady=True)
    pace.add(110, 5.0)
    assert pace.seconds_left(1000) == pytest.approx(445)
    pace.add(110, 6.0)  # said twice
    pace.add(120, 10.0)
    assert pace.seconds_left(1000) == pytest.approx(440)


def test_a_long_history_takes_little_memory_and_stays_right():
    pace, left = told([0.5] * 5000, total=6000)
    assert len(pace._bursts) <= 512
    assert left == pytest.approx(500, rel=0.02)


def test_durations_are_read_as_clocks_are():
    assert [duration(seconds) for seconds in (5, 75, 3723.4)] == ["0:00:05", "0:01:15", "1:02:03"]

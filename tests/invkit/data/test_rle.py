"""Run lengths against silhouettes drawn here, with texts that pycocotools 2.0 has written."""

import time

import numpy as np
import pytest

from invkit.data.rle import decode, runs_of
from tests.invkit.data.detected import encoded


def drawn() -> dict[str, tuple[np.ndarray, bytes]]:
    """Silhouettes, and their texts by pycocotools."""
    box, specks, slab = np.zeros((6, 7), bool), np.zeros((50, 60), bool), np.zeros((1000, 16), bool)
    box[1:4, 2:6] = True
    specks[:, 30] = specks[7, 5] = specks[49, 59] = True
    slab[3:997, 10:] = True
    y, x = np.mgrid[:100, :140]
    ellipse = ((x - 60) / 50) ** 2 + ((y - 40) / 30) ** 2 <= 1
    return {
        "nothing": (np.zeros((4, 5), bool), b"d0"),
        "everything": (np.ones((3, 2), bool), b"06"),
        "box": (box, b"=33000005"),
        "specks": (specks, b"Q81jV1a1_6_N"),
        "slab": (slab, b"ch9Ro06000000000M"),
        "ellipse": (
            ellipse,
            b"`P11n2:H6K4M2M4M2N2N2N2N2O0O2N2O0O2O0O2N2O0O2O000O2O000O2O000O2O00000O2O0000000O2O000000000000000000000O20N"
            b"10000000000000000000001N100000001N1000001N10001N10001N10001N101N2N101N101N2N101N2N2N2N2N3L3N3L5J8Fai2",
        ),
    }


@pytest.mark.parametrize("name", drawn())
def test_the_text_of_pycocotools_is_the_silhouette(name):
    mask, text = drawn()[name]
    for counts in (text, text.decode(), runs_of(text)):
        found = decode(counts, *mask.shape)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)


def test_the_encoder_of_the_tests_is_pycocotools():
    for mask, text in drawn().values():
        assert encoded(mask) == {"size": list(mask.shape), "counts": text}


def test_any_silhouette_comes_back():
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        np.testing.assert_array_equal(decode(encoded(mask)["counts"], height, width), mask)


@pytest.mark.parametrize(
    "counts, message",
    [
        (b"d0", "1 runs of 20 pixels for an image of 4 x 6"),
        (b"", "0 runs of 0 pixels"),
        ([25, -1], "runs"),
        ([10, 10], "20 pixels"),
        (b"d0\x1f", "character 31"),
        ("d0\u2603", "character|pixels"),
        (b"d", "cut off"),
    ],
)
def test_runs_that_are_none_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        decode(counts, 4, 6)


@pytest.mark.parametrize(
    "counts, size", [([10**12], (10**6, 10**6)), (b"o" * 1_000_000 + b"0", (3, 3)), ([6], (-2, -3)), ([0], (0, 4))]
)
def test_runs_that_would_take_all_memory_or_time_are_refused(counts, size):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"silhouette of|too many digits"):
        decode(counts, *size)
    assert time.monotonic() - start < 1

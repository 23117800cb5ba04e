"""Short pickles that would take all time or memory; what a pickle may hold is tested with the files that have some."""

import pickle
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from invkit.runtime.pickles import read_objects, read_pickle

START, END = b"\x80\x02", b"."


def reconstructed(content: bytes, count: bytes = b"J\x00\x00\x10\x00") -> bytes:
    """An array of 2^20 bytes whose numbers `content` puts on the stack."""
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return made + b"(K\x01" + count + b"\x85" + dtype + b"\x89" + content + b"tb"


HUNGRY = {
    "the same bytes as many arrays": b"B\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"q\x000]("
    + reconstructed(b"h\x00") * 300
    + b"e",
    "one text encoded again and again": b"X\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"q\x000]("
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 3000
    + b"e",
    "keys of tuples of tuples": b"}K\x01\x85" + b"q\x00h\x00\x86" * 40 + b"K\x01s",
    "a key of a million tuples": b"}K\x01" + b"\x85" * 1_000_000 + b"K\x01s",
    "a set": b"\x8f",
}


@pytest.mark.parametrize("name", list(HUNGRY))
def test_a_short_pickle_that_would_grow_is_refused_at_once(name):
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"x\.pickle is damaged.*(larger in memory|tuple of more than|a set)"):
        read_pickle(START + HUNGRY[name] + END, Path("x.pickle"))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_what_a_pickle_names_again_and_again_is_made_once():
    shared: object = ["x"] * 1000
    for _ in range(6):
        shared = [shared] * 1000
    start = time.monotonic()
    back = read_pickle(pickle.dumps(shared), Path("x.pickle"))
    assert time.monotonic() - start < 5
    assert back[0] is back[999]
    assert back[0][0][0][0][0][0] == ["x"] * 1000


def test_a_tensor_of_one_number_does_not_fill_the_memory(tmp_path):
    from tests.meshinv.test_published import Call, storage, torch

    wide = Call(torch._utils._rebuild_tensor_v2, storage(), 0, (10**5, 10**5), (0, 0), False, {})
    with pytest.raises(ValueError, match="larger in memory"):
        read_pickle(pickle.dumps(wide), tmp_path)


def test_keys_may_be_numbers_of_numpy(tmp_path):
    assert read_pickle(pickle.dumps({np.int64(3): {"a": np.float32(0.5)}}), tmp_path) == {3: {"a": 0.5}}


def test_an_array_of_objects_may_name_itself_and_is_refused(tmp_path):
    endless: list = []
    endless.append(endless)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (1,), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(np.dtype(object))}
        )
        pickle.dump(endless, file)
    with pytest.raises(ValueError, match="nested deeper"):
        read_objects(tmp_path / "x.npy")

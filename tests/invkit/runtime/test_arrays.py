import io
from pathlib import Path

import numpy as np
import pytest

from invkit.runtime import arrays
from invkit.runtime.arrays import read_npy, read_npz


def announced(path: Path, shape: tuple[int, ...], content: bytes = b"") -> Path:
    """A .npy file whose header announces this shape."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f8"})
        file.write(content)
    return path


def said(path: Path) -> str:
    """The name in the one line that a file is refused with; nothing where it is read."""
    try:
        assert read_npy(path).nbytes <= 32
    except ValueError as error:
        return path.name if path.name in str(error) and "\n" not in str(error) else str(error)
    return ""


def test_arrays_come_back_as_they_were(tmp_path):
    for number, array in enumerate(
        [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3)), np.float32(2), np.array(["a", "bc"]), np.zeros(0)]
    ):
        np.save(tmp_path / "x.npy", array)
        np.savez(tmp_path / "x.npz", a=array, b=number)
        np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), array)
        np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["a"], array)
        assert list(read_npz(tmp_path / "x.npz", ["b"])) == ["b"]
    np.save(tmp_path / "x.npy", np.arange(3, dtype=">i4"))
    assert read_npy(tmp_path / "x.npy").tolist() == [0, 1, 2]


def test_what_is_announced_and_not_there_takes_no_memory(tmp_path):
    for shape in ((10**9, 10**9), (2,), (-1,), (2**62, 4)):
        with pytest.raises(ValueError, match=r"x\.npy .*it is damaged: get it again"):
            read_npy(announced(tmp_path / "x.npy", shape, b"\0" * 8))


def test_damage_of_every_kind_is_one_line(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(4.0))
    whole = (tmp_path / "x.npy").read_bytes()
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            (tmp_path / "x.npy").write_bytes(content)
            assert said(tmp_path / "x.npy") in ("", "x.npy")


def test_an_archive_is_no_array_and_the_reverse(tmp_path):
    archive = io.BytesIO()
    np.savez(archive, np.zeros(2))
    (tmp_path / "x.npy").write_bytes(archive.getvalue())
    with pytest.raises(ValueError, match=r"x\.npy is an archive"):
        read_npy(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(ValueError, match="not a zip file"):
        read_npz(tmp_path / "x.npy")


def test_objects_absent_arrays_and_bombs_are_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", o=np.array([{}], dtype=object), z=np.zeros(100_000))
    with pytest.raises(ValueError, match="holds object"):
        read_npz(tmp_path / "x.npz", ["o"])
    with pytest.raises(ValueError, match="no array k"):
        read_npz(tmp_path / "x.npz", ["z", "k"])
    monkeypatch.setattr(arrays, "MAX_BYTES", 2**18)
    with pytest.raises(ValueError, match="unpacks to more"):
        read_npz(tmp_path / "x.npz", ["z"])
    whole = (tmp_path / "x.npz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npz"):
            read_npz(tmp_path / "x.npz")

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from invkit.runtime import matlab
from invkit.runtime.matlab import read_mat


def nested(path: Path, depth: int, packed: bool) -> Path:
    """A variable `x` of `depth` cells in one another."""
    scipy.io.savemat(path, {"empty": 1.0})
    head = path.read_bytes()[:128]
    body = b""
    for level in range(depth):
        name = b"x" if level == depth - 1 else b""
        flags = struct.pack("<IIII", 6, 8, 1 if level else 6, 0)
        dims = struct.pack("<IIii", 5, 8, 1, 1)
        text = struct.pack("<II", 1, len(name)) + name.ljust(8 * bool(name), b"\0")
        inner = body if level else struct.pack("<IId", 9, 8, 1.0)
        body = struct.pack("<II", 14, len(flags + dims + text + inner)) + flags + dims + text + inner
    content = zlib.compress(body) if packed else body
    path.write_bytes(head + (struct.pack("<II", 15, len(content)) + content if packed else content))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_cells_in_cells_do_not_end_the_process(tmp_path, packed):
    path = nested(tmp_path / "deep.mat", 20_000, packed)
    code = f"import pathlib, invkit.runtime.matlab as m; m.read_mat(pathlib.Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "nested deeper than 32" in done.stderr) == (1, True)


def test_shallow_ones_are_read_as_scipy_reads_them(tmp_path):
    value = read_mat(nested(tmp_path / "x.mat", 4, True))["x"]
    assert value == scipy.io.loadmat(tmp_path / "x.mat", squeeze_me=True)["x"] == 1
    scipy.io.savemat(tmp_path / "y.mat", {"a": {"b": np.arange(6.0), "c": "text"}, "other": 1}, do_compression=True)
    read = read_mat(tmp_path / "y.mat")
    assert (read["a"].b.tolist(), read["a"].c) == ([0, 1, 2, 3, 4, 5], "text")
    assert read["other"] == 1
    scipy.io.savemat(tmp_path / "old.mat", {"a": np.arange(3.0)}, format="4")
    assert read_mat(tmp_path / "old.mat")["a"].tolist() == [0, 1, 2]


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "x.mat", {"a": [np.zeros(10_000) for _ in range(20)]}, do_compression=True)
    monkeypatch.setattr(matlab._Variables, "left", 100_000)
    with pytest.raises(ValueError, match="unpacks to more"):
        read_mat(tmp_path / "x.mat")

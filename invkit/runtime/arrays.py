"""Numbers in numpy's files, read without trusting what the files say about themselves.

A header of some bytes may announce more numbers than there is memory, and a compressed member of some kilobytes may
unpack to that many. So sizes are compared before anything is read; objects, which would be pickles, are refused.
"""

import math
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase, BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

MAX_BYTES = 2**30
"""Of what one file may unpack to."""
NUMBERS = "biufcSU"
"""Kinds of arrays that are read: numbers and text."""

Array = Shaped[np.ndarray, "..."]


def read_npy(path: str | Path, again: str = "get it again") -> Array:
    """The array in a .npy file.

    Args:
        again: what to do about a damaged file, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds objects, or is no .npy file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {again}")
    if zipfile.is_zipfile(path):
        raise ValueError(f"{path} is an archive (.npz), where a single array (.npy) is wanted; {again}")
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a damaged header fails in any of the parser's ways
        raise ValueError(f"cannot read {path} ({_told(error)}); it is damaged: {again}") from error


def read_npz(path: str | Path, names: Sequence[str] | None = None, again: str = "get it again") -> dict[str, Array]:
    """Arrays of a .npz file by name.

    Args:
        names: those that are read; all by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds objects, lacks an array, or unpacks to more than `MAX_BYTES`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {again}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = list(members) if names is None else list(names)
            absent = [name for name in chosen if name not in members]
            if absent:
                raise ValueError(f"there is no array {', '.join(absent)} in it")
            if sum(members[name].file_size for name in chosen) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
            return {name: _member(archive, members[name]) for name in chosen}
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a damaged archive fails in many ways, and all of them mean this
        raise ValueError(f"cannot read {path} ({_told(error)}); it is damaged: {again}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as file:  # it checks length and checksum as it reads
        content = file.read(info.file_size + 1)
    return _array(BytesIO(content), len(content))


def _array(file: BufferedIOBase, size: int) -> Array:
    """Of a file of so many bytes."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"version {version} of the format is not known")
    shape, column_major, dtype = read_header[version](file)
    if dtype.kind not in NUMBERS or dtype.itemsize == 0:
        raise ValueError(f"it holds {dtype}, not numbers")
    announced, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or announced != there:
        raise ValueError(f"numbers of shape {list(shape)} take {announced} bytes; it has {there}")
    numbers = np.frombuffer(file.read(announced), dtype)
    return numbers.astype(dtype.newbyteorder("=")).reshape(shape, order="F" if column_major else "C")


def _told(error: Exception) -> str:
    """The first line of an error; some have no text."""
    return (str(error) or type(error).__name__).partition("\n")[0]

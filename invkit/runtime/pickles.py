"""Python pickles of data, read without running what is in them.

A pickle is a program, and reading it the usual way runs whatever it names. Here it may name only what an array, a
tensor or a number is made of, and gets stand-ins even for those: it never holds an object of numpy or torch, whose
state it could then set to anything.
"""

import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
"""Element type of torch's storages; a name, as a pickle could alter a dtype."""

ARRAY_KINDS = "biufcSUO"
MAX_DEPTH = 8


def read_pickle(pickled: bytes, path: Path) -> Any:
    """What a pickle holds: tensors and arrays as numpy arrays, arrays of objects as lists, single numbers as such.

    Args:
        path: where it comes from, for the message.

    Raises:
        ValueError: it is damaged, or names anything that data are not made of.
    """
    try:
        return _plain(_next_pickle(_Reader, BytesIO(pickled)))
    except _Forbidden as error:
        raise ValueError(
            f"{path} names {error}, which data are not made of; nothing was run. Get the file from its authors"
        ) from None
    except Exception as error:  # a damaged pickle may do anything that a stand-in does not expect
        raise ValueError(f"{path} is damaged, or no published file: {error}; get it again") from error


def pickled_array(file: BufferedIOBase) -> bytes | None:
    """The pickle that numpy has written an array of objects as; None if it is an array of something else.

    Raises:
        ValueError: the file is not numpy's.
    """
    if np.lib.format.read_magic(file) != (1, 0):  # the only version that objects are written in
        return None
    _, _, dtype = np.lib.format.read_array_header_1_0(file)
    return file.read() if dtype.hasobject else None


def read_objects(path: str | Path) -> list[Any]:
    """The entries of an array of objects that `numpy.save` has written, as `read_pickle` gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no such array, or names anything that data are not made of.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; docs/datasets.md says where to get it")
    try:
        with path.open("rb") as file:
            pickled = pickled_array(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or no array: {error}; get it again") from error
    entries = None if pickled is None else read_pickle(pickled, path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no list of objects, as which it is published; get it again")
    return entries


class _Forbidden(Exception):
    """A pickle names what data are not made of."""


class _Reader(pickle.Unpickler):
    """Reads a pickle whose globals are stand-ins, none of them a class or anything else that could be altered."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _GLOBALS.get((module, name))
        if stand_in is None:
            raise _Forbidden(f"{module}.{name}")
        return stand_in


class _StorageReader(_Reader):
    """Of the pickles in a storage's bytes, where a persistent id describes the storage that follows."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _next_pickle(reader: type[_Reader], file: BytesIO) -> Any:
    """What the next pickle in a file holds. Its lengths are checked first, as pickle makes room before it looks."""
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        if "PUT" in opcode.name and argument > len(file.getbuffer()):
            raise ValueError(f"more than {argument} objects in {len(file.getbuffer())} bytes")
    file.seek(start)
    return reader(file).load()


class _Function:
    """A call that a pickle may make; without attributes that a pickle could set, as functions have."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Forbidden("the state of a function")


class _Dtype:
    """What a dtype's pickle says."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or np.dtype(code).kind not in ARRAY_KINDS:
            raise _Forbidden(f"an array of {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise _Forbidden("an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """What an array's or a tensor's pickle says; `content` is an array, or what an array of objects held."""

    __slots__ = ("content",)

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        if dtype.dtype.kind != "O":
            self.content = _from_bytes(content, dtype.dtype).reshape(shape, order="F" if column_major else "C")
        elif isinstance(content, list) and len(shape) <= 1 and len(content) == math.prod(shape):
            self.content = content if shape else content[0]
        else:
            raise ValueError(f"an array of objects of shape {shape}")


def _from_bytes(content: bytes | bytearray, dtype: np.dtype) -> np.ndarray:
    """A writable vector in the machine's byte order."""
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"numbers given as {type(content).__name__}")
    return np.frombuffer(bytes(content), dtype).astype(dtype.newbyteorder("="))


def _reconstructed(*_: Any) -> _Array:
    """An array without content; its state follows."""
    return _Array()


def _from_buffer(content: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: Any) -> _Array:
    """An array as pickle protocol 5 has it."""
    return _Array(_from_bytes(content, dtype.dtype).reshape(shape, order=order))


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return _from_bytes(content, dtype.dtype).item()


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes as pickle protocols 0 to 2 have them."""
    if encoding != "latin1":
        raise _Forbidden(f"the encoding {encoding}")
    return text.encode("latin1")


def _storage(content: bytes) -> _Array:
    """A tensor's numbers, from what torch.save wrote before version 1.6: magic number, version, machine, description,
    keys, each a pickle, then the number of elements and the elements."""
    file = BytesIO(content)
    *_, described, _ = (_next_pickle(_StorageReader, file) for _ in range(5))
    kind, dtype, *_ = described
    (count,) = struct.unpack("<q", file.read(8))
    if kind != "storage" or dtype not in STORAGES.values() or count < 0:
        raise ValueError(f"no storage: {described}")
    return _Array(np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype, count))


def _tensor(storage: _Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Array:
    """A tensor of a storage, in an array of its own."""
    numbers = storage.content.reshape(-1)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) == 0:
        return _Array(np.empty(size, numbers.dtype))
    if min((offset, *size, *stride)) < 0 or last >= len(numbers):
        raise ValueError(f"a tensor of {size} reaches beyond its {len(numbers)} numbers")
    steps = [step * numbers.itemsize for step in stride]
    return _Array(np.lib.stride_tricks.as_strided(numbers[offset:], size, steps).copy())


def _parameter(tensor: _Array, *_: Any) -> _Array:
    return tensor


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(OrderedDict),
    ("builtins", "bytes"): _Function(lambda: b""),  # how protocol 2 has the empty ones
    ("__builtin__", "bytes"): _Function(lambda: b""),
    ("_codecs", "encode"): _Function(_encoded),
    ("numpy", "dtype"): _Function(_Dtype),
    ("numpy", "ndarray"): "ndarray",
    **{
        (f"numpy.{core}.{module}", name): _Function(call)
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _reconstructed),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


def _plain(value: Any, depth: int = 0) -> Any:
    """The value with its stand-ins replaced by what they stand for."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, _Array):
        return value.content if isinstance(value.content, np.ndarray) else _plain(value.content, depth + 1)
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise ValueError("keys other than text and numbers")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, depth + 1) for item in value)
    if value is None or isinstance(value, str | bytes | bool | int | float | complex):
        return value
    raise ValueError(f"a {type(value).__name__} among the data")

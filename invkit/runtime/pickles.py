"""Python pickles of data, read without running what is in them.

A pickle is a program, and reading it the usual way runs whatever it names. Here it may name only what an array, a
tensor or a number is made of, and gets stand-ins even for those: it never holds an object of numpy or torch, whose
state it could then set to anything.
"""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from invkit.runtime.pickle_limits import look_through

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
MAX_DEPTH = 12
"""Of containers in containers; a call that makes something counts as one."""
MAX_AXES = 32
MAX_CODE = 16
"""Letters of a type of elements."""
_GROWTH, _SLACK = 8, 2**20
"""Values may take so many times the bytes of their pickle, and so many bytes more."""


def read_pickle(pickled: bytes, path: Path) -> Any:
    """What a pickle holds: tensors and arrays as numpy arrays, arrays of objects as lists, single numbers as such.

    What it names more than once is one object in the result, too.

    Args:
        path: where it comes from, for the message.

    Raises:
        ValueError: it is damaged, would be much larger in memory than the file, or names anything that data are not
            made of.
    """
    try:
        return _Plain(_SLACK + _GROWTH * len(pickled)).value(_next_pickle(_Reader, BytesIO(pickled)))
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
    """What the next pickle in a file holds; it is looked through first, as pickle itself does not look."""
    start = file.tell()
    look_through(pickletools.genops(file), len(file.getbuffer()))
    file.seek(start)
    return reader(file).load()


class _Call:
    """A call that a pickle makes, with the state that it gives to the result. It is made when the result is wanted,
    once, and only if that is large enough for it; without attributes that a pickle could set."""

    __slots__ = ("args", "function", "state")

    def __init__(self, function: "_Function", args: tuple) -> None:
        self.function, self.args, self.state = function, args, None

    def __setstate__(self, state: Any) -> None:
        if self.function.stateless:
            raise _Forbidden("the state of what has none")
        self.state = state


class _Function:
    """What a pickle may call; without attributes that a pickle could set, as functions have.

    The call gets what makes values of its arguments, the arguments, and the state of the result.
    """

    __slots__ = ("call", "stateless")

    def __init__(self, call: Callable[..., Any], *, stateless: bool = True) -> None:
        self.call, self.stateless = call, stateless

    def __call__(self, *args: Any) -> _Call:
        return _Call(self, args)

    def __setstate__(self, state: Any) -> None:
        raise _Forbidden("the state of a function")


class _Dict(dict):
    """What an ordered dictionary becomes, which gets its entries afterwards; the attributes of one are no data."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Takes none."""


class _Dictionaries(_Function):
    """The one call that is made at once where it has no arguments, as entries follow."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return _Call(self, args) if args else _Dict()


class _Plain:
    """Makes plain values of what a pickle holds, each object once.

    Args:
        budget: bytes that all of them may take.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no other object gets the identity of one that was made a value

    def charge(self, size: int) -> None:
        """Do nothing where so many bytes are left.

        Raises:
            ValueError: they are not.
        """
        self._left -= size
        if self._left < 0:
            raise ValueError("it would be much larger in memory than it is as a file")

    def value(self, item: Any, depth: int = 0) -> Any:
        """The value with calls replaced by what they give."""
        if item is None or isinstance(item, str | bytes | bytearray | bool | int | float | complex):
            return bytes(item) if isinstance(item, bytearray) else item
        if id(item) not in self._made:
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            self._made[id(item)] = self._value(item, depth)
            self._kept.append(item)
        return self._made[id(item)]

    def _value(self, item: Any, depth: int) -> Any:
        if isinstance(item, _Call):
            return item.function.call(self, item.args, item.state, depth + 1)
        if isinstance(item, dict):
            return {self.key(key): self.value(entry, depth + 1) for key, entry in item.items()}
        if type(item) in (list, tuple):
            return type(item)(self.value(entry, depth + 1) for entry in item)
        raise ValueError(f"a {type(item).__name__} among the data")

    def key(self, item: Any) -> str | int:
        """A key of a dictionary."""
        key = self.value(item) if isinstance(item, _Call) else item
        if not isinstance(key, str | int):
            raise ValueError("keys other than text and numbers")
        return key

    def bytes(self, item: Any) -> bytes:
        """What an array's numbers are given as."""
        content = self.value(item)
        if not isinstance(content, bytes):
            raise ValueError(f"numbers given as {type(item).__name__}")
        return content

    def dtype(self, item: Any) -> np.dtype:
        """The type of an array's elements."""
        dtype = self.value(item) if isinstance(item, _Call) else None
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"elements given as {type(item).__name__}")
        return dtype

    def vector(self, content: Any, dtype: np.dtype) -> np.ndarray:
        """Numbers of this type, writable and in the machine's byte order."""
        numbers = np.frombuffer(self.bytes(content), dtype)
        self.charge(numbers.nbytes)
        return numbers.astype(dtype.newbyteorder("="))


def _dtype(plain: _Plain, args: tuple, state: Any, _: int) -> np.dtype:
    code = args[0] if args else None
    if not isinstance(code, str) or len(code) > MAX_CODE or np.dtype(code).kind not in ARRAY_KINDS:
        raise _Forbidden(f"an array of {code if isinstance(code, str) else type(code).__name__}"[:80])
    dtype = np.dtype(code)
    if state is None:
        return dtype
    _, order, subarray, names, fields, *_ = state
    if not (subarray is None and names is None and fields is None):
        raise _Forbidden("an array of records")
    return dtype.newbyteorder(order)


def _reconstructed(plain: _Plain, _: tuple, state: Any, depth: int) -> Any:
    """An array, or the list that an array of objects is; all of it is in its state."""
    if state is None:
        raise ValueError("an array without content")
    _, shape, dtype, column_major, content = state
    shape, kind = _shape(plain, shape), plain.dtype(dtype)
    if kind.kind != "O":
        return plain.vector(content, kind).reshape(shape, order="F" if column_major else "C")
    if type(content) is list and len(shape) <= 1 and len(content) == math.prod(shape):
        return plain.value(content if shape else content[0], depth)
    raise ValueError(f"an array of objects of shape {list(shape)}")


def _from_buffer(plain: _Plain, args: tuple, _: Any, depth: int) -> np.ndarray:
    """An array as pickle protocol 5 has it."""
    content, dtype, shape, order, *_ = args
    if order not in ("C", "F"):
        raise ValueError("an order of neither rows nor columns")
    return plain.vector(content, plain.dtype(dtype)).reshape(_shape(plain, shape), order=order)


def _scalar(plain: _Plain, args: tuple, *_: Any) -> Any:
    dtype, content = args
    return plain.vector(content, plain.dtype(dtype)).item()


def _encoded(plain: _Plain, args: tuple, *_: Any) -> bytes:
    """Bytes as pickle protocols 0 to 2 have them."""
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        raise _Forbidden(f"the encoding {encoding if type(encoding) is str else type(encoding).__name__}"[:80])
    plain.charge(len(text))
    return text.encode("latin1")


def _nothing(*_: Any) -> bytes:
    return b""


def _ordered(plain: _Plain, args: tuple, _: Any, depth: int) -> dict:
    """A dictionary that is given its pairs, as Python 2 has it."""
    (pairs,) = args
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("a dictionary of something other than pairs")
    plain.charge(100 * len(pairs))
    return {plain.key(key): plain.value(entry, depth) for key, entry in pairs}


def _storage(plain: _Plain, args: tuple, *_: Any) -> np.ndarray:
    """A tensor's numbers, from what torch.save wrote before version 1.6: magic number, version, machine, description,
    keys, each a pickle, then the number of elements and the elements."""
    content = plain.bytes(*args)
    plain.charge(len(content))
    file = BytesIO(content)
    *_, described, _ = (_next_pickle(_StorageReader, file) for _ in range(5))
    kind, dtype, *_ = plain.value(described)
    (count,) = struct.unpack("<q", file.read(8))
    if kind != "storage" or type(dtype) is not str or dtype not in STORAGES.values() or count < 0:
        raise ValueError("no storage where one is described")
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype, count)


def _tensor(plain: _Plain, args: tuple, *_: Any) -> np.ndarray:
    """A tensor of a storage, in an array of its own."""
    storage, offset, size, stride, *_ = args
    numbers = plain.value(storage)
    if not isinstance(numbers, np.ndarray):
        raise ValueError("a tensor without a storage")
    numbers, size, stride = numbers.reshape(-1), _shape(plain, size), _shape(plain, stride)
    if math.prod(size) == 0:
        return np.empty(size, numbers.dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or last >= len(numbers):
        raise ValueError(f"a tensor of {list(size)} reaches beyond its {len(numbers)} numbers")
    plain.charge(math.prod(size) * numbers.itemsize)
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps).copy()


def _parameter(plain: _Plain, args: tuple, _: Any, depth: int) -> Any:
    return plain.value(args[0], depth)


def _shape(plain: _Plain, shape: Any) -> tuple[int, ...]:
    shape = plain.value(shape)
    if type(shape) is not tuple or len(shape) > MAX_AXES or not all(type(length) is int for length in shape):
        raise ValueError(f"a shape that is no tuple of at most {MAX_AXES} numbers")
    return shape


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionaries(_ordered),
    ("builtins", "bytes"): _Function(_nothing),  # how protocol 2 has the empty ones
    ("__builtin__", "bytes"): _Function(_nothing),
    ("_codecs", "encode"): _Function(_encoded),
    ("numpy", "dtype"): _Function(_dtype, stateless=False),
    ("numpy", "ndarray"): "ndarray",
    **{
        (f"numpy.{core}.{module}", name): _Function(call, stateless=stateless)
        for core in ("core", "_core")
        for module, name, call, stateless in (
            ("multiarray", "_reconstruct", _reconstructed, False),
            ("multiarray", "scalar", _scalar, True),
            ("numeric", "_frombuffer", _from_buffer, True),
        )
    },
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}

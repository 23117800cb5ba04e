"""Files as ConvMesh and MeshInversion distribute them: dicts of tensors in Python's pickle format.

A pickle is a program, and reading it the usual way runs whatever it names. Here it may name only what an array, a
tensor or a number is made of, and gets stand-ins even for those: it never holds an object of numpy or torch, whose
state it could then set to anything.
"""

import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invkit.camera import Camera

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
LARGEST = 1e6  # no number of a camera comes near it; NaN is not below it either


def read_npz(path: str | Path) -> dict[str, Any]:
    """What a file holds by name: tensors and arrays as numpy arrays, lists of text as lists, single numbers as such.

    Either a published file, whose one member `data` is a pickled dict, or a file of plain arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is neither, or names anything that data are not made of.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            published = _pickled_member(archive) if archive.namelist() == ["data.npy"] else None
        if published is None:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a damaged archive fails in many ways, and all of them mean this
        raise ValueError(f"{path} is damaged, or neither published nor plain arrays: {error}; get it again") from error
    data = _read_pickle(published, path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: member data is a {type(data).__name__}, not a dict; this is no published file")
    return data


def read_cameras(path: str | Path) -> Camera:
    """The cameras of MeshInversion's `cam_pose_train.pickle`, in the order of the images.

    Its pickle is a list, or a dict by index, of dicts with scale (1, 1), translation (1, 3) and rotation (1, 4).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not of this form, or names anything that data are not made of.
    """
    path = Path(path)
    _check_is_file(path)
    entries = _read_pickle(path.read_bytes(), path)
    if isinstance(entries, dict):
        if set(entries) != set(range(len(entries))):
            raise ValueError(f"{path}: keys are not 0 to {len(entries) - 1}; there has to be a camera for every image")
        entries = [entries[index] for index in range(len(entries))]
    if not (isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)):
        raise ValueError(f"{path}: not a list or dict of cameras; MeshInversion's cam_pose_train.pickle is meant")
    rows = [
        np.concatenate(
            [
                _numbers(entry, name, count, f"{path}: camera {index}")
                for name, count in (("scale", 1), ("translation", 3), ("rotation", 4))
            ]
        )
        for index, entry in enumerate(entries)
    ]
    return weak_perspective(np.stack(rows), path)


def weak_perspective(rows: np.ndarray, path: Path) -> Camera:
    """Cameras from rows of scale, translation (its z is not used) and rotation.

    Args:
        path: where they come from, for the message.

    Raises:
        ValueError: a scale is not positive or a rotation is no unit quaternion.
    """
    scale, shift, quat = rows[:, 0], rows[:, 1:3], rows[:, 4:]
    sound = (abs(rows) < LARGEST).all(1)
    sound[sound] = (scale[sound] > 0) & (abs(np.linalg.norm(quat[sound], axis=1) - 1) < 1e-3)
    if not sound.all():
        first = int(np.flatnonzero(~sound)[0])
        raise ValueError(
            f"{path}: camera {first} is {rows[first].tolist()}; "
            "a scale has to be positive, a rotation a unit quaternion"
        )
    scale, shift, quat = (torch.from_numpy(part.astype(np.float32)) for part in (scale, shift, quat))
    return Camera(quat, scale, shift, torch.zeros_like(scale))


def class_of_folder(image: str) -> int:
    """Class from 0 of an image of CUB by its folder: 001.Black_footed_Albatross/x.jpg is 0; -1 if that says none."""
    parts = re.split(r"[/\\]", image)
    found = re.match(r"(\d+)\.", parts[-2]) if len(parts) > 1 else None
    return int(found[1]) - 1 if found else -1


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; docs/datasets.md says where to get it")


def _numbers(entry: dict[str, Any], name: str, count: int, where: str) -> np.ndarray:
    """`count` numbers of a field, whatever axes of length 1 it has."""
    if name not in entry:
        raise ValueError(f"{where} has no field {name}; it has {', '.join(map(str, entry))}")
    numbers = np.asarray(entry[name])
    if numbers.dtype.kind not in "iuf" or numbers.size != count:
        raise ValueError(f"{where}: field {name} is {numbers.dtype} {numbers.shape}, not {count} numbers")
    return numbers.reshape(count).astype(np.float64)


def _pickled_member(archive: zipfile.ZipFile) -> bytes | None:
    """The pickle in the array `data`; None if that is an array of numbers."""
    with archive.open("data.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):  # the only version that objects are written in
            return None
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
        return file.read() if dtype.hasobject else None


# ---- Pickles -------------------------------------------------------------------------------------------------------


class _Forbidden(Exception):
    """A pickle names what data are not made of."""


def _read_pickle(pickled: bytes, path: Path) -> Any:
    try:
        return _plain(_next_pickle(_Reader, BytesIO(pickled)))
    except _Forbidden as error:
        raise ValueError(
            f"{path} names {error}, which data are not made of; nothing was run. Get the file from its authors"
        ) from None
    except Exception as error:  # a damaged pickle may do anything that a stand-in does not expect
        raise ValueError(f"{path} is damaged, or no published file: {error}; get it again") from error


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

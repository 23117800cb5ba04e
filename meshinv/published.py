"""Files as ConvMesh and MeshInversion distribute them: dicts of tensors in Python's pickle format.

They are read by `invkit.runtime.pickles`, which runs nothing that is in them.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invkit.geometry.camera import Camera
from invkit.runtime.arrays import MAX_BYTES
from invkit.runtime.arrays import read_npz as read_npz_arrays
from invkit.runtime.pickles import pickled_array, read_pickle

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
    except Exception as error:  # a damaged archive fails in many ways, and all of them mean this
        raise ValueError(f"{path} is damaged, or neither published nor plain arrays: {error}; get it again") from error
    if published is None:
        return read_npz_arrays(path)
    data = read_pickle(published, path)
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
    entries = read_pickle(path.read_bytes(), path)
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
    if archive.getinfo("data.npy").file_size > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
    with archive.open("data.npy") as file:
        return pickled_array(file)

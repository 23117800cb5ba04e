"""Checkpoints: plain tensors and plain values in one file, written aside and renamed.

A file of ours loads with `weights_only=True`: nothing in it can run code, and it can be read without this project.
"""

import errno
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invkit.runtime.files import remove_abandoned, written_aside

PLAIN = (bool, int, float, str, bytes, type(None))


def save(path: Path | str, payload: Mapping[str, Any]) -> None:
    """Write `payload` so that `path` holds all of it or what it held before.

    Args:
        payload: dicts, lists and tuples of tensors and of plain Python values, nested as they come.

    Raises:
        ValueError: something else is in it; the message names its key path.
    """
    content = _plain(payload, "")
    with written_aside(Path(path)) as aside:
        torch.save(content, aside)


def load(path: Path | str) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds more than plain tensors and values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any of the readers' ways
        _raise_what_may_pass(error, path)
        raise ValueError(f"{path} is damaged or not a checkpoint ({error}); delete it or restore it") from error


def load_foreign(path: Path | str) -> dict[str, Any]:
    """What a file of another project holds, on the CPU; also one of before 2020, which is no archive.

    It cannot run code: more than tensors, plain values and numpy's numbers is refused. Arrays of numbers, such as
    random states, are passed over: `Unread` stands in their place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or it asks for something that could run code; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(_numpy_names()):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any of the readers' ways
        _raise_what_may_pass(error, path)
        message = str(error)
        if asked := re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>", message):
            raise ValueError(
                f"{path} asks for {asked[1] or asked[2]}. Networks and training arguments do not need it and it might "
                "run code, so the file is refused; save it again with tensors and plain values only, where you trust it"
            ) from None
        reason = message.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason}); get it again") from error
    if not isinstance(payload, dict):
        raise ValueError(f"{path} holds a {type(payload).__name__} and not the dictionary of a released checkpoint")
    return payload


def _check_archive(path: Path) -> None:
    """Do nothing where an archive is as torch.save wrote it: torch.load compares neither checksums nor sizes.

    Raises:
        ValueError: it is damaged, or unpacks to more than the file itself, as a bomb does.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it unpacks to more than its size; torch.save packs nothing")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")


def _raise_what_may_pass(error: Exception, path: Path) -> None:
    """Do nothing where a file cannot be read because it is damaged, and not for want of memory or for now.

    Raises:
        MemoryError, OSError: it may be whole.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        raise MemoryError(f"there is not enough memory to read {path}") from error
    # A damaged directory of an archive leads to a place before its beginning, which is no argument.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise OSError(error.errno, f"{os.strerror(error.errno)}; try again later", str(path)) from error


class Unread:
    """An array of numpy in a file of another project; nothing of it is kept."""

    def __init__(self, *description: Any) -> None:
        """Takes what numpy's own constructor would be given."""

    def __setstate__(self, state: Any) -> None:
        """Takes its content."""

    def __repr__(self) -> str:
        return "an array that was not read"


def _numpy_names() -> list[Any]:
    """What is called to read a pickled number of numpy, and what is called here instead for an array."""
    scalar = np.float64(0).__reduce__()[0]
    signed = [np.bool_, np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64]
    numbers = [*signed, np.uint8, np.uint16, np.uint32, np.uint64]
    # numpy has moved its inner modules; files hold either name.
    renamed = [
        (found, f"numpy.{folder}.multiarray.{name}")
        for folder in ("core", "_core")
        for name, found in (("scalar", scalar), ("_reconstruct", Unread))
    ]
    return [*renamed, Unread, np.ndarray, np.dtype, *(type(np.dtype(number)) for number in numbers)]


class Checkpoints:
    """The checkpoints of one run: `checkpoint-<step>.pt` in one folder, and `best.pt` where the run measures itself.

    Args:
        keep: how many of the newest stay. With two or more, a damaged newest file costs one interval and not the run.
        keep_every: those after a multiple of so many steps stay for good. None: the newest alone.
    """

    def __init__(self, dir: Path | str, keep: int = 3, keep_every: int | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, not {keep}")
        if keep_every is not None and keep_every < 1:
            raise ValueError(f"keep_every must be a number of steps, or null; got {keep_every}")
        self.dir = Path(dir)
        self.keep, self.keep_every = keep, keep_every

    def path(self, step: int) -> Path:
        return self.dir / f"checkpoint-{step:08d}.pt"

    @property
    def best(self) -> Path:
        """Where `save_best` writes; the file need not be there."""
        return self.dir / "best.pt"

    def paths(self) -> list[Path]:
        """The files to resume from, oldest step first; the best is not among them."""
        return [path for _, path in self._files()]

    def save(self, step: int, payload: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, then drop all but the newest `keep` and those kept for good.

        Files of later steps belong to a future that was left (or were damaged), so they go too.
        """
        save(self.path(step), payload)
        files = self._files()
        past = [(at, path) for at, path in files if at <= step]
        old = [path for at, path in past[: -self.keep] if not self._stays(at)]
        future = [path for at, path in files if at > step]
        for path in old + future:
            path.unlink(missing_ok=True)

    def _stays(self, step: int) -> bool:
        return self.keep_every is not None and step % self.keep_every == 0

    def save_best(self, step: int, score: float, payload: Mapping[str, Any]) -> bool:
        """Write the state after `step` steps to `best` if its score is below that of the file there; says if it did.

        The file, not this object, knows the score to beat, so that a resumed run goes on from it. It holds `payload`
        with "step" and "score"; one that is damaged or has no score is replaced with a warning.

        Args:
            score: lower is better; one that is NaN or infinite is never the best.
        """
        if not (math.isfinite(score) and score < self._score_to_beat()):
            return False
        save(self.best, {**payload, "step": step, "score": float(score)})
        return True

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest (step, payload) that can be read, or None when nothing has been saved.

        A damaged file is passed over with a warning.

        Raises:
            ValueError: there are files and all of them are damaged; to begin again without a word would hide the loss.
        """
        files = self._files()
        for step, path in reversed(files):
            try:
                return step, load(path)
            except ValueError as error:
                warnings.warn(f"{error}. Falling back to the checkpoint before it.", stacklevel=2)
        if files:
            raise ValueError(f"every checkpoint in {self.dir} is damaged; delete them to begin again")
        return None

    def clean(self) -> None:
        """Remove what a killed writer left behind. Only for the process that saves here."""
        remove_abandoned(self.dir, "checkpoint-*")
        remove_abandoned(self.dir, f"{self.best.name}*")

    def _score_to_beat(self) -> float:
        """Score of the best state so far; infinite where there is none that can be read."""
        if not self.best.is_file():
            return math.inf
        try:
            score = load(self.best).get("score")
        except ValueError as error:
            warnings.warn(f"{error}. It is replaced.", stacklevel=3)
            return math.inf
        if not isinstance(score, float):
            warnings.warn(f"{self.best} has no score; it is replaced.", stacklevel=3)
            return math.inf
        return score

    def _files(self) -> list[tuple[int, Path]]:
        found = [(re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in self.dir.glob("checkpoint-*.pt")]
        return sorted((int(match[1]), path) for match, path in found if match)


def _plain(value: Any, where: str) -> Any:
    """A copy of `value` in plain dicts, lists, tuples and CPU tensors that own just the memory they show."""
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise ValueError(f"{where or 'payload'} has the key {key!r}; a checkpoint's keys are text or integers")
        return {key: _plain(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, Tensor) and type(tensor := value.detach()) is Tensor:
        tensor = tensor.cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) in PLAIN:
        return value
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors and plain values"
    )

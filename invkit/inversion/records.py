"""What the search for one image leaves behind: a latent, a camera, how it came about; never a picture.

Whoever wants a picture renders again, so a record cannot disagree with what is measured or exported from it. One small
file for each image: several processes fill one folder, and a search that is started again finds what is done.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.runtime import checkpoint
from invkit.runtime.files import CUT, file_name
from invkit.types import Estimate, Guess

OK, DIVERGED, INVISIBLE, UNPOSED = "ok", "diverged", "nothing rendered", "no camera found"
DOUBTFUL = "doubtful"
"""Said in place of OK where there are reasons not to believe a result (`doubt`); what is written is always OK."""


@dataclass(frozen=True)
class Trace(Batch):
    """How the search went for each image: values before each of its steps, and after the last.

    An image that stopped before others keeps its last values from then on.

    Args:
        start: where it began.
        names: of the terms of the objective.
        values: the weighted terms.
        iou: overlap of the rendered mask with the target's.
        finite: False where a value or gradient was not finite; that image stayed at its last finite state.
        visible: False where nothing of the object is in the final picture.
        steps: made before the image was done; all of them, if not given.
        snapshots: the guesses after some numbers of steps.
    """

    start: Guess
    names: tuple[str, ...]
    values: Float[Tensor, "B S K"]
    iou: Float[Tensor, "B S"]
    finite: Bool[Tensor, "B"]
    visible: Bool[Tensor, "B"]
    steps: Int[Tensor, "B"] | None = None
    snapshots: Mapping[int, Guess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps is None:
            object.__setattr__(self, "steps", torch.full_like(self.finite, self.iou.shape[1] - 1, dtype=torch.long))

    @property
    def terms(self) -> dict[str, Float[Tensor, "B S"]]:
        """The weighted terms by name."""
        return dict(zip(self.names, self.values.unbind(dim=2), strict=True))

    @property
    def total(self) -> Float[Tensor, "B S"]:
        """The objective: the sum of the terms."""
        return self.values.sum(dim=2)

    def status(self) -> list[str]:
        """One word for each image: DIVERGED, INVISIBLE, UNPOSED (the first that holds) or OK.

        UNPOSED has been searched from a camera that was only a place to begin from.
        """
        posed = torch.ones_like(self.finite) if self.start.posed is None else self.start.posed
        flags = zip(self.finite.tolist(), self.visible.tolist(), posed.tolist(), strict=True)
        return [_word(*each) for each in flags]


def _word(finite: bool, visible: bool, posed: bool) -> str:
    if not finite:
        return DIVERGED
    if not visible:
        return INVISIBLE
    return OK if posed else UNPOSED


@dataclass(frozen=True)
class Record:
    """The reconstruction of one image.

    Args:
        name, index: of the image in its data set.
        status: of the trace; or what was wrong with an image that could not be searched at all.
        found: a batch of one; None where the image could not be searched.
        trace: likewise.
    """

    name: str
    index: int
    status: str
    found: Guess | None = None
    trace: Trace | None = None

    def after(self, steps: int) -> Guess:
        """What had been found after so many steps; of an image that stopped before, what it stopped with.

        Raises:
            ValueError: that was not kept, or the image could not be searched at all.
        """
        if self.found is None or self.trace is None:
            raise ValueError(f"{self.name} was not searched: {self.status}")
        if steps in self.trace.snapshots:
            return self.trace.snapshots[steps]
        if steps != self.trace.iou.shape[1] - 1:
            kept = ", ".join(str(count) for count in sorted(self.trace.snapshots)) or "the end alone"
            raise ValueError(f"{self.name}: nothing was kept after {steps} steps; there is {kept}")
        return self.found


class RecordStore:
    """A folder with one file for each image, named after it. A file is whole or not there.

    What a refinement has found lies beside the records, in a folder `details` of files with the same names.

    Args:
        refined: read records with these details, where there are any; False reads what the search itself has found.
    """

    def __init__(self, dir: Path | str, *, refined: bool = True) -> None:
        self.dir = Path(dir)
        self.details = self.dir / "details"
        self.refined = refined

    def path(self, name: str) -> Path:
        """Where the record of `name` is: any name gives a file name, and no two the same. "a/b" becomes a=2Fb.pt."""
        return self.dir / f"{file_name(name)}.pt"

    def write(self, names: Sequence[str], index: Sequence[int], estimate: Estimate, trace: Trace) -> list[Record]:
        """Write one record for each image of the batch, and return them."""
        found, trace = estimate.guess.detach().to("cpu"), trace.detach().to("cpu")
        each = enumerate(zip(names, index, trace.status(), strict=True))
        return [self._save(Record(name, int(i), status, found[at], trace[at])) for at, (name, i, status) in each]

    def write_failure(self, name: str, index: int, reason: str) -> Record:
        """Write that this image could not be searched, and why; return it."""
        return self._save(Record(name, int(index), reason))

    def read(self, name: str) -> Record:
        """The record of one image, on the CPU.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged or is no record of `name`; its details are, or are missing though other
                records have some.
        """
        record = self.searched(name)
        if record.found is None or not self.refined or not self.details.is_dir():
            return record
        return replace(record, found=replace(record.found, details=self._details(record)))

    def searched(self, name: str) -> Record:
        """The record of one image as the search left it, on the CPU; its details are not read.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged or is no record of `name`.
        """
        path = self.path(name)
        content = checkpoint.load(path)
        try:
            record = _record(content)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record ({error!r}); delete it and search again") from error
        if record.name != name:
            raise ValueError(f"{path} is the record of {record.name}; was the file renamed?")
        return record

    def write_details(self, name: str, kind: str, details: Mapping[str, Shaped[Tensor, "1 ..."]]) -> None:
        """Write what a refinement of this kind has found for an image that has a record, in half precision."""
        kept = {key: value.detach().cpu().half() for key, value in details.items()}
        searched = _digest(self.searched(name))
        path = self.details / self.path(name).name
        checkpoint.save(path, {"name": name, "kind": kind, "searched": searched, "details": kept})

    def unrefined(self, names: Sequence[str]) -> list[int]:
        """Positions in `names` whose record was found and has no details that can be read."""
        found = []
        for position, name in enumerate(names):
            try:
                record = self.searched(name)
                if record.found is not None:
                    self._details(record)
            except ValueError:
                found.append(position)
            except FileNotFoundError:
                continue
        return found

    def _details(self, record: Record) -> dict[str, Shaped[Tensor, "1 ..."]]:
        path = self.details / self.path(record.name).name
        again = "run the same scripts/invert.py command again, or read without details (refined=false)"
        if not path.is_file():
            raise ValueError(f"{path} is missing: {record.name} was not refined as the others were; {again}")
        content = checkpoint.load(path)
        try:
            searched, details = content["searched"], content["details"]
            details = {key: value.float() for key, value in details.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no details ({error!r}); delete it; {again}") from error
        if searched != _digest(record):
            raise ValueError(f"{path} belongs to another search of {record.name}; delete it; {again}")
        return details

    def missing(self, names: Sequence[str]) -> list[int]:
        """Positions in `names` that have no record; a damaged one counts as missing, with a warning."""
        return [position for position, name in enumerate(names) if not self._is_there(name)]

    def names(self) -> list[str]:
        """Names of the images that have a record, sorted."""
        return sorted(_name_of(path) for path in self.dir.glob("*.pt"))

    def __len__(self) -> int:
        return len(self.names())

    def _is_there(self, name: str) -> bool:
        try:
            self.searched(name)
        except FileNotFoundError:
            return False
        except ValueError as error:
            warnings.warn(f"{error}. The image counts as not yet done.", stacklevel=3)
            return False
        return True

    def _save(self, record: Record) -> Record:
        checkpoint.save(self.path(record.name), asdict(record))
        return record


def _name_of(path: Path) -> str:
    """What a record is of; only one whose name is cut has to be read for it."""
    return checkpoint.load(path)["name"] if CUT in path.stem else unquote(path.stem.replace("=", "%"))


def _digest(record: Record) -> str:
    """Of what was found: details of another search are not taken for those of this one."""
    camera = record.found.camera
    numbers = [record.found.latent, camera.quat, camera.scale, camera.shift]
    return hashlib.sha256(b"".join(number.float().contiguous().numpy().tobytes() for number in numbers)).hexdigest()


def _record(content: dict[str, Any]) -> Record:
    found, trace = content["found"], content["trace"]
    return Record(
        content["name"],
        content["index"],
        content["status"],
        None if found is None else _guess(found),
        None if trace is None else _trace(trace),
    )


def _trace(content: dict[str, Any]) -> Trace:
    snapshots = {count: _guess(guess) for count, guess in content.get("snapshots", {}).items()}
    return Trace(**{**content, "start": _guess(content["start"]), "snapshots": snapshots})


def _guess(content: dict[str, Any]) -> Guess:
    return Guess(**{**content, "camera": Camera(**content["camera"])})

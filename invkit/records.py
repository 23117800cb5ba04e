"""What the search for one image leaves behind: a latent, a camera, how it came about; never a picture.

Whoever wants a picture renders again, so a record cannot disagree with what is measured or exported from it. One small
file for each image: several processes fill one folder, and a search that is started again finds what is done.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jaxtyping import Bool, Float
from torch import Tensor

from invkit import checkpoint
from invkit.batch import Batch
from invkit.camera import Camera
from invkit.types import Estimate, Guess

OK, DIVERGED, INVISIBLE = "ok", "diverged", "nothing rendered"


@dataclass(frozen=True)
class Trace(Batch):
    """How the search went for each image: values before each of its steps, and after the last.

    Args:
        start: where it began.
        names: of the terms of the objective.
        values: the weighted terms.
        iou: overlap of the rendered mask with the target's.
        finite: False where a value or gradient was not finite; that image stayed at its last finite state.
        visible: False where nothing of the object is in the final picture.
    """

    start: Guess
    names: tuple[str, ...]
    values: Float[Tensor, "B S K"]
    iou: Float[Tensor, "B S"]
    finite: Bool[Tensor, "B"]
    visible: Bool[Tensor, "B"]

    @property
    def terms(self) -> dict[str, Float[Tensor, "B S"]]:
        """The weighted terms by name."""
        return dict(zip(self.names, self.values.unbind(dim=2), strict=True))

    @property
    def total(self) -> Float[Tensor, "B S"]:
        """The objective: the sum of the terms."""
        return self.values.sum(dim=2)

    def status(self) -> list[str]:
        """One word for each image: OK, DIVERGED or INVISIBLE."""
        flags = zip(self.finite.tolist(), self.visible.tolist(), strict=True)
        return [DIVERGED if not finite else OK if visible else INVISIBLE for finite, visible in flags]


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


class RecordStore:
    """A folder with one file for each image, named after it. A file is whole or not there."""

    def __init__(self, dir: Path | str) -> None:
        self.dir = Path(dir)

    def path(self, name: str) -> Path:
        """Where the record of `name` is: any name gives a file name, and no two the same. "a/b" becomes a=2Fb.pt."""
        return self.dir / f"{quote(name, safe=' ').replace('%', '=')}.pt"

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

    def missing(self, names: Sequence[str]) -> list[int]:
        """Positions in `names` that have no record; a damaged one counts as missing and is told of."""
        return [position for position, name in enumerate(names) if not self._is_there(name)]

    def names(self) -> list[str]:
        """Names of the images that have a record, sorted."""
        return sorted(unquote(path.stem.replace("=", "%")) for path in self.dir.glob("*.pt"))

    def __len__(self) -> int:
        return len(self.names())

    def _is_there(self, name: str) -> bool:
        try:
            self.read(name)
        except FileNotFoundError:
            return False
        except ValueError as error:
            warnings.warn(f"{error}. The image counts as not yet done.", stacklevel=3)
            return False
        return True

    def _save(self, record: Record) -> Record:
        checkpoint.save(self.path(record.name), asdict(record))
        return record


def _record(content: dict[str, Any]) -> Record:
    found, trace = content["found"], content["trace"]
    return Record(
        content["name"],
        content["index"],
        content["status"],
        None if found is None else _guess(found),
        None if trace is None else Trace(**{**trace, "start": _guess(trace["start"])}),
    )


def _guess(content: dict[str, Any]) -> Guess:
    return Guess(**{**content, "camera": Camera(**content["camera"])})

"""Files that appear whole or not at all.

A job may be killed at any moment, also while it writes. So everything that a later job reads is written beside its
place and renamed into it when it is complete and on the disk.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

ASIDE = ".partial"
"""Suffix of a file that is still being written; one that outlives its writer is rubbish."""


LONGEST = 160
"""Letters of a file name; file systems have 255, and suffixes follow."""
CUT = "=~"
"""In no name that is whole, where a letter and a digit follow each "="."""


def project_folder(name: str) -> Path:
    """The project's folder `configs` or `scripts`: beside the packages in a checkout, inside invkit where installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def file_name(name: str) -> str:
    """A file name without suffix for any name, no two the same: "a/b" becomes a=2Fb.

    A name that would be too long for file systems is cut, and ends in `CUT` and a digest of the whole.
    """
    quoted = quote(name, safe=" ").replace("%", "=")
    if len(quoted) <= LONGEST:
        return quoted
    return f"{quoted[: LONGEST // 2]}{CUT}{hashlib.sha256(name.encode()).hexdigest()[:32]}"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` when the block ends without an error.

    The content and the renaming are flushed to the disk. After an error nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str = "*") -> None:
    """Delete what a killed writer of files matching `pattern` left in `folder`. Only for the folder's one writer."""
    for path in folder.glob(f".{pattern}{ASIDE}"):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

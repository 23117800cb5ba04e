"""Files that appear whole or not at all.

A job may be killed at any moment, also while it writes. So everything that a later job reads is written beside its
place and renamed into it when it is complete and on the disk.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".partial"
"""Suffix of a file that is still being written; one that outlives its writer is rubbish."""


def project_folder(name: str) -> Path:
    """The project's folder `configs` or `scripts`: beside the packages in a checkout, inside invkit where installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


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

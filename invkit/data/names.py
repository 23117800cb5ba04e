"""Names of files that annotations give. Annotations are somebody else's file, so no name may lead out of its folder."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
"""Suffixes of photographs in published data sets."""
LONGEST = 255
"""Bytes of a part of a path, as file systems have it."""


def checked_name(name: str, listed_in: str | Path, suffixes: Collection[str] = PHOTOGRAPHS) -> str:
    """The name itself: a relative path with "/" between its parts, without "..", and with a known suffix.

    Args:
        listed_in: the file that gives the name, for the message.
        suffixes: in lower case.

    Raises:
        ValueError: it is something else.
    """
    path, reason, told = PurePosixPath(name), "", name
    if max((len(part.encode("utf-8", "surrogateescape")) for part in path.parts), default=0) > LONGEST:
        reason, told = f"is longer than {LONGEST} bytes", f"{name[:40]}..."
    elif not path.name or path.is_absolute() or PureWindowsPath(name).drive or "\\" in name or "\0" in name:
        reason = "is not a relative path"
    elif ".." in path.parts:
        reason = "leads out of its folder"
    elif path.suffix.lower() not in suffixes:
        reason = f"does not end in {', '.join(suffixes)}"
    if reason:
        raise ValueError(f"{listed_in}: the name {told!r} {reason}; correct it, or get the file again")
    return name


def file_below(root: str | Path, name: str) -> Path:
    """Where `name` is below `root`. The root itself may be a link; nothing below it may lead out of it.

    Raises:
        ValueError: a link leads out of it.
    """
    path = Path(root) / name
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{path} is a link that leads out of {root}; put the file itself there")
    return path

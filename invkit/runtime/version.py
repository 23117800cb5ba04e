"""Which code made something."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def code_version() -> dict[str, Any]:
    """What is running: package, Python and torch versions, and the git commit where this file is in a checkout."""
    version = {"package": None, "python": platform.python_version(), "torch": torch.__version__}
    version |= {"commit": None, "dirty": None}
    with suppress(importlib.metadata.PackageNotFoundError):  # used from its folder without being installed
        version["package"] = importlib.metadata.version("gan-inversion-3d")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):  # no git here, or no checkout
        # An installed copy may lie inside somebody else's checkout; it is not tracked there.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        version |= {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    return version

"""The networks that ship with the packages, found by name from anywhere: `meshinv/real_birds`.

A method keeps them in its folder `checkpoints`, each beside a card that says how it was made.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from invkit.runtime.commandline import suggestion

FOLDER, SUFFIX = "checkpoints", ".pt"
METHODS = ("meshinv", "nerfinv")
"""The packages that are looked through; they are not imported."""


def shipped() -> dict[str, Path]:
    """Name -> file of every network that ships."""
    found = {}
    for method in METHODS:
        spec = find_spec(method)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            files = sorted(Path(place).glob(f"{FOLDER}/*{SUFFIX}"))
            found |= {f"{method}/{file.stem}": file for file in files}
    return found


def located(path: str | Path) -> Path:
    """What a path or a name stands for: a file or folder that is there, or else a network that ships.

    Args:
        path: a name may have the method before it, or only one method has such a network. The file's place in the
            repository (meshinv/checkpoints/real_birds.pt) names it too, wherever the repository is.

    Raises:
        FileNotFoundError: there is neither; the message names the networks that there are.
        ValueError: both methods have a network of that name.
    """
    if Path(path).exists():
        return Path(path)
    known = shipped()
    name = str(path).removesuffix(SUFFIX).replace(f"/{FOLDER}/", "/")
    found = [full for full in known if name in (full, full.partition("/")[2])]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise ValueError(f"{path}: both methods ship a network of that name; say {' or '.join(found)}")
    raise FileNotFoundError(
        f"{path}: there is no such file or folder, and no such network ships{suggestion(name, close_to(known))} "
        f"(there are {', '.join(known)})"
    )


def close_to(names: Iterable[str]) -> list[str]:
    """The names with and without their methods, for suggestions."""
    return [*names, *dict.fromkeys(name.partition("/")[2] for name in names)]

"""A folder that appears complete or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECIPE = "synthetic.json"


def write_once(
    root: str | Path, recipe: Mapping[str, Any], write: Callable[[Path], None], *, receipt: str = RECIPE
) -> None:
    """`root` filled by `write` and described by `recipe` in the file `receipt`; kept as it is where that is already so.

    Everything is written into a temporary folder beside it and renamed at the end, so an interruption leaves no `root`.
    Several processes may ask at the same time; one of them wins and the others keep its folder.

    Raises:
        ValueError: `root` holds something else, or was written with another recipe.
    """
    root = Path(root)
    recipe = json.loads(json.dumps(recipe))
    if _is_written(root, recipe, receipt):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        aside.chmod(0o755)
        write(aside)
        (aside / receipt).write_text(json.dumps(recipe, indent=2) + "\n")
        try:
            aside.rename(root)
        except OSError:
            if not _is_written(root, recipe, receipt):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_written(root: Path, recipe: dict[str, Any], receipt: str) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / receipt).is_file():
        raise ValueError(f"{root} exists and is not such a data set (no {receipt}); name another folder")
    try:
        found = json.loads((root / receipt).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{root / receipt} is damaged; remove {root} or name another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{root / receipt} is damaged; remove {root} or name another folder")
    if found != recipe:
        differ = [
            f"{key}: {found.get(key)!r} there, {recipe.get(key)!r} asked for"
            for key in sorted({*found, *recipe})
            if found.get(key) != recipe.get(key)
        ]
        raise ValueError(f"{root} was written with other parameters ({'; '.join(differ)}); remove it or name another")
    return True

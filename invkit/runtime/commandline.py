"""What is typed, before Hydra reads it: names of files as they are, and words that were misspelt.

Hydra's overrides have a grammar of their own, in which spaces, parentheses, commas, quotes and letters with accents
mean something or are not allowed. Names of files have them all. So the value of a setting that is a path is quoted
here, and nobody needs a second layer of quotes.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from invkit.runtime.settings import ROOT, nodes
from invkit.runtime.usage import example

PATHS = frozenset({"image", "mask", "root", "path", "dir", "inversion", "training", "output", "folder", "runs"})
"""Settings that are paths, by the last word of their keys."""

_OVERRIDE = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_ELEMENT = re.compile(rf"\s*({_QUOTED.pattern}|[^,]*?)\s*(?:,|$)", re.DOTALL)


def overrides_of(arguments: Sequence[str], configs: Path) -> list[str]:
    """The arguments as Hydra has to be given them: the values of `PATHS` quoted, and group=null as ~group.

    A path is taken as it stands, but: null is null; [a.jpg,b.jpg] is a list, unless there is a file of that name, and
    its elements are paths, in which a comma needs quotes; what is quoted already, and what has ${...} in it, is left as
    it is.
    """
    return [_override(argument, configs) for argument in arguments]


def _override(argument: str, configs: Path) -> str:
    key, _, value = argument.partition("=")
    if value == "null" and key.isidentifier() and (configs / key).is_dir():
        return f"~{key}"
    said = _OVERRIDE.fullmatch(argument)
    if said is None or said[2].rpartition(".")[2] not in PATHS:
        return argument
    plus, key, value = said.groups()
    return f"{plus}{key}={_path_or_list(value)}"


def _path_or_list(value: str) -> str:
    if not (value.startswith("[") and value.endswith("]")) or _is_there(value):
        return _path(value)
    inside = value[1:-1]
    if not inside.strip():
        return "[]"
    elements, at = [], 0
    while at <= len(inside):
        found = _ELEMENT.match(inside, at)
        if found is None:  # something follows a quoted element
            return value
        elements.append(_path(found[1]))
        at = found.end() if inside[found.end() - 1 : found.end()] == "," else len(inside) + 1
    return f"[{','.join(elements)}]"


def _path(value: str) -> str:
    as_it_is = value in ("", "???") or value.lower() == "null" or "${" in value
    if as_it_is or (_QUOTED.fullmatch(value) and not _is_there(value)):
        return value
    return quoted(value)


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # longer than names can be, or of a user that there is not
        return False


def quoted(text: str) -> str:
    """The text as a quoted string of Hydra's grammar: backslashes are doubled only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", text)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{tail * chr(92)}'"


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The known word that is most like this one, if any is alike by so much."""
    found = get_close_matches(word, list(known), n=1, cutoff=alike)
    return found[0] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found else ""


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The dotted key that was probably meant: its last word is spelt alike, there or elsewhere, or the whole is."""
    known = [each for each in known if not each.rpartition(".")[2].startswith("_")]
    parent, _, word = key.rpartition(".")
    beside = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent}
    anywhere = {each.rpartition(".")[2]: each for each in reversed(known)}
    if found := nearest(word, beside):
        return beside[found]
    if found := nearest(key, known, 0.75):
        return found
    found = nearest(word, anywhere, 0.75)
    return anywhere[found] if found else None


# ---- What is wrong, in one line --------------------------------------------------------------------------------------


def complaint(
    error: Exception,
    overrides: Sequence[str],
    configs: Path,
    keys: Callable[[Sequence[str]], Sequence[str]],
    docstring: str = "",
) -> str:
    """What Hydra has to say against overrides, in one line, with what was probably meant.

    Args:
        keys: the settings that there are with these overrides alone.
        docstring: of the script, for its examples.
    """
    said = str(error)
    if absent := getattr(error, "missing_cfg_file", None):
        return _no_choice(absent, configs)
    if found := re.search(r"You must specify '([^']+)'", said):
        return missing(found[1], docstring)
    if found := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", said):
        rest = [override for override in overrides if override.lstrip("+~").partition("=")[0] != found[1]]
        if group := re.search(r"Did you mean to override (\S+)\?", said):
            return f"{found[1]}=...: there is no such group here; did you mean {group[1]}?"
        groups = [path.name for path in configs.iterdir() if path.is_dir()]
        meant = nearest_key(found[1], [*keys(rest), *groups])
        hint = f"did you mean {meant}?" if meant else "--help lists them"
        return f"{found[1]}=...: there is no such setting; {hint} (++{found[1]}=... sets what the files leave out)"
    if said.startswith("Ambiguous value"):
        (wrong,) = re.findall(r"'(.*)'", said.splitlines()[0]) or [""]
        key, _, value = wrong.partition("=")
        return f"{wrong}: {key}=[{value}] is a list, and -m runs one command for each value"
    wrong = next((override for override in overrides if "=" not in override and not override.startswith("~")), None)
    if wrong is not None:
        return f"{wrong}: a setting is given as name=value"
    if (wrong := getattr(error, "override", None)) is not None:
        key, _, value = wrong.partition("=")
        return f'{wrong}: the value cannot be read; quote it twice: "{key}={quoted(value)}"'
    return " ".join(said.split())


def _no_choice(absent: str, configs: Path) -> str:
    """No such file of a group: what is nearest, or what there is."""
    group, _, name = absent.partition("/")
    known = [path.relative_to(configs / group).with_suffix("").as_posix() for path in (configs / group).rglob("*.yaml")]
    found = nearest(name, known)
    hint = f"did you mean {found}?" if found else f"there are {', '.join(sorted(known))}"
    return f"{group}={name}: there is none; {hint}" if known else f"there is no {absent}.yaml"


def missing(key: str, docstring: str) -> str:
    """That a setting has to be given, with a command of the docstring that gives it."""
    command = example(docstring, key)
    return f"{key}=... is missing" + (f", for example: {command}" if command else "; --help tells of it")


def misnamed(node: Any, locate: Callable[[Any, str], Callable[..., Any]]) -> str | None:
    """In words, the first setting in a node that its `_target_` does not have, of which `locate` gives the target."""
    for where, child in nodes(node):
        parameters = inspect.signature(locate(child["_target_"], where)).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for key in child:
            if key not in parameters and not key.startswith("_"):
                place = f"{where}.{key}".removeprefix(f"{ROOT}.")
                return f"{place}: {child['_target_']} has no such setting{suggestion(key, parameters)}"
    return None

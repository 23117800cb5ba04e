"""What `--help` of a script prints: what it does, its settings, and what can be chosen.

All of it stands where it is needed anyway: in the docstring of the script and in the comments of the configuration
files. So this reads text, and nothing is composed: help is there also where a configuration is not complete.

In a list of `defaults`, a comment with stars says which files of the group fit the script. A line
`# - group: text` there tells of a group that comes with the chosen experiment.
"""

import ast
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

RUN = "run/default.yaml"
"""The settings that all scripts have."""
REST = """\
A setting is given as name=value. ++name=value also sets what the files leave at its default, +group=choice adds a
choice where there is none, and ~name takes a setting away. Names of files need no quotes but the shell's. -m runs one
command for each of several values (name=a,b); --cfg job prints the composed configuration and runs nothing."""

DEFAULTS = {"???": "has to be given", "null": "none unless given"}
"""In words, what it means that these are the choice of a group."""

NAME = "inv3d"
"""The command of the installed package (`invkit.__main__`)."""
_called_by_name = False

_LINE = re.compile(r"(\s*)([\w.@/-][\w .@/-]*?):(?:\s+(.*?))?\s*(?:(?<!\S)#\s*(.*))?$")
_DEFAULT = re.compile(r"\s+(#\s*)?- (?:override )?/?([\w/]+(?:@[\w.]+)?): *(.*?)\s*(?:(?<!\S)#\s*(.*))?$")
_PARENT = re.compile(r"\s+- /?([\w/]+)$")


@dataclass(frozen=True)
class Setting:
    """One key of a configuration file, its nested keys dotted.

    Args:
        value: as it is written; empty where other settings are below it.
    """

    key: str
    value: str
    comment: str


@dataclass(frozen=True)
class Group:
    """A group of files one of which is chosen.

    Args:
        default: what is taken where nothing is said; ??? where something has to be.
    """

    name: str
    default: str
    comment: str

    @property
    def folder(self) -> str:
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Primary:
    """What a script's own configuration file says."""

    settings: Sequence[Setting]
    groups: Sequence[Group]
    remarks: Sequence[str]


def usage(script: Path, configs: Path) -> str:
    """All that `--help` says about a script.

    Args:
        script: of the name of its configuration file.
    """
    primary = read(configs / f"{script.stem}.yaml", configs)
    common = read(configs / RUN, configs).settings
    own = {setting.key for setting in primary.settings}
    parts = [docstring(script)]
    if primary.settings:
        parts.append("Settings:\n" + table([(_given(each), each.comment) for each in primary.settings]))
    parts += [_filled(remark) for remark in primary.remarks]
    if any(group.name == "run" for group in primary.groups):
        rows = [(_given(each), each.comment) for each in common if each.key not in own and each.key.startswith("run.")]
        parts.append("Settings of every script:\n" + table(rows))
    for group in primary.groups:
        if group.name != "run":
            parts.append(_of_group(group, configs))
    return spoken("\n\n".join([*parts, REST]) + "\n")


def speak_of_commands() -> None:
    """From now on, tell of `inv3d train` instead of `python scripts/train.py`."""
    global _called_by_name
    _called_by_name = True


def spoken(text: str) -> str:
    """A text about scripts as whoever has called this would type it."""
    return re.sub(r"\bpython scripts/(\w+)\.py", rf"{NAME} \1", text) if _called_by_name else text


def docstring(script: Path) -> str:
    """The text at the top of a file of Python."""
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""


def read(path: Path, configs: Path) -> Primary:
    """What a configuration file says, and those it begins with (`defaults: [other, _self_]`)."""
    settings, groups, remarks = [], [], []
    parents: list[tuple[int, str]] = []
    in_defaults, in_head, talk = False, True, []
    for line in path.read_text(encoding="utf-8").splitlines():
        in_defaults = in_defaults and (line.startswith((" ", "#")) or not line.strip())
        if in_defaults:
            groups += [Group(said[2], said[3], said[4] or "") for said in [_DEFAULT.match(line)] if said]
            parent = _PARENT.match(line)
            if parent and parent[1] != "_self_":
                above = read(configs / f"{parent[1]}.yaml", configs)
                settings, groups, remarks = [*above.settings], [*above.groups], [*above.remarks]
        elif line.startswith("#"):
            talk += [] if in_head else [line.lstrip("# ")]
            continue
        elif line == "defaults:":
            in_defaults = True
        elif (said := _LINE.match(line)) and not said[2].startswith("_"):
            indent = len(said[1])
            parents = [parent for parent in parents if parent[0] < indent]
            key = ".".join([*(name for _, name in parents), said[2]])
            value, comment = said[3] or "", said[4] or ""
            if not value:
                parents.append((indent, said[2]))
            if value or comment:
                settings = [each for each in settings if each.key != key]
                settings.append(Setting(key, value, comment))
        in_head = False
        remarks, talk = [*remarks, *([" ".join(talk)] if talk else [])], []
    remarks += [" ".join(talk)] if talk else []
    groups = [group for group in groups if not group.name.startswith("hydra/")]
    return Primary(settings, groups, remarks)


def choices(group: Group, configs: Path) -> dict[str, str]:
    """Name -> first words of each file of a group that fits."""
    patterns = [word.strip(",;:()") for word in group.comment.split() if "*" in word]
    found = {}
    for file in sorted((configs / group.folder).rglob("*.yaml")):
        name = file.relative_to(configs / group.folder).with_suffix("").as_posix()
        if name.startswith("shared/"):
            continue
        if not patterns or any(fnmatch(name, pattern) for pattern in patterns):
            found[name] = about(file)
    return found


def about(file: Path) -> str:
    """The first sentence of the comment at the top of a file, or as much of it as stands on the first line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @package"):
            return re.split(r"(?<=[.;:]) ", line.lstrip("# "), maxsplit=1)[0].rstrip(".;:")
    return ""


def example(text: str, key: str) -> str | None:
    """The first command of a docstring that gives this setting, without its remark."""
    for line in text.splitlines():
        if f" {key}=" in line:
            return spoken(re.split(r"\s{3,}#|\s{4,}\S", line.strip())[0])
    return None


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the second wrapped."""
    width = min(max((len(left) for left, _ in rows), default=0), 36)
    return "\n".join(line for left, right in rows for line in _row(left, right, width))


def _row(left: str, right: str, width: int) -> Iterator[str]:
    lines = textwrap.wrap(right, max(_columns() - width - 4, 30)) or [""]
    if len(left) > width:
        yield f"  {left}"
        left = ""
    else:
        yield f"  {left:{width}}  {lines.pop(0)}".rstrip()
    for line in lines if any(lines) else []:
        yield f"  {'':{width}}  {line}"


def _given(setting: Setting) -> str:
    return f"{setting.key}={setting.value}" if setting.value else f"{setting.key}:"


def _of_group(group: Group, configs: Path) -> str:
    words = [word for word in group.comment.split() if "*" not in word]
    default = {"???": "has to be given", "null": "none unless given"}.get(
        group.default, f"unless given: {group.default}"
    )
    told = "; ".join(filter(None, [default, " ".join(words).rstrip(":")]))
    return f"{group.name}=... ({told})\n" + table(list(choices(group, configs).items()))


def _filled(text: str) -> str:
    return textwrap.fill(text, _columns())


def _columns() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 120)

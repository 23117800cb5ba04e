"""Every command line in the documentation can be typed: keys, options, targets and files exist; cheap ones are run."""

import argparse
import ast
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.test_configs import CONFIGS, ROOT, SCRIPTS, keywords_given_by, misfits

_spec = importlib.util.spec_from_file_location("check_docs", SCRIPTS / "check_docs.py")
check_docs = importlib.util.module_from_spec(_spec)
sys.modules["check_docs"] = check_docs
_spec.loader.exec_module(check_docs)
Command = check_docs.Command

PAGES = [
    *(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if path.is_file()),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("*/checkpoints/*.md")),
]
ARGPARSE = {path.stem for path in SCRIPTS.glob("*.py") if "argparse.ArgumentParser(" in path.read_text()}
DEFAULTS = {"train": "experiment=meshinv_pretrain_cub", "invert": "experiment=meshinv_invert_cub"}
"""What stands for "..." in a command that shows other settings."""


def written() -> list[tuple[str, Command]]:
    """(file, command) of every command line, each command once."""
    found: dict[tuple[str, str], tuple[str, Command]] = {}
    for path in PAGES:
        shown = re.findall(
            r"`configs/experiment/(\w+)\.yaml`:", path.read_text()
        )  # test_contributing.py composes these
        for command in check_docs.commands(path.read_text()):
            if any(f"experiment={name}" in command.arguments for name in shown):
                continue
            found.setdefault((command.program, command.arguments), (path.name, command))
    for path in sorted(SCRIPTS.glob("*.py")):
        doc = re.match(r'"""(.*?)"""', path.read_text(), re.DOTALL)[1]
        for command in check_docs.commands(doc, is_code=True):
            found.setdefault((command.program, command.arguments), (path.name, command))
    return list(found.values())


WRITTEN = written()


def overrides(command: Command) -> list[str]:
    """The arguments without placeholders."""
    words = shlex.split(re.sub(r"[\[\]]", "", command.arguments) if "[--" in command.arguments else command.arguments)
    kept = [word for word in words if "..." not in word and "<" not in word]
    if len(kept) < len(words) and not any(word.startswith(("experiment=", "table=")) for word in kept):
        kept.insert(0, DEFAULTS[command.program])
    return kept


def complaint(command: Command) -> str | None:
    """What is wrong with a command."""
    if command.program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return next(
            (f"no target {word}" for word in command.arguments.split() if word not in targets and "=" not in word), None
        )
    if command.program == "pip":
        extras = re.findall(r"\.\[(\w+)\]", command.arguments)
        known = re.search(r"optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
        return next(
            (f"no extra {extra}" for extra in extras if not re.search(rf"^{extra} =", known, re.MULTILINE)), None
        )
    if command.program == "pytest":
        paths = [word for word in command.arguments.split() if word.startswith("tests/")]
        return next((f"no {path}" for path in paths if not (ROOT / path.split("::")[0]).exists()), None)
    if not (SCRIPTS / f"{command.program}.py").is_file():
        return f"no scripts/{command.program}.py"
    if command.program in ARGPARSE:
        return parsed(command.program, overrides(command))
    return composed(command.program, overrides(command))


def composed(script: str, arguments: list[str]) -> str | None:
    """What is wrong with the overrides of a configured script."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            said = OmegaConf.to_container(compose(script, arguments), resolve=True)
    except Exception as error:  # whatever a wrong override means to Hydra
        return f"{type(error).__name__}: {error}"
    # What only looks at the result of an inversion is given its whole configuration.
    return "\n".join(misfits(said, {**keywords_given_by("invert"), **keywords_given_by(script)})) or None


class Parsed(Exception):
    """The command line was understood."""


def parsed(script: str, arguments: list[str]) -> str | None:
    """What is wrong with the arguments of a script with argparse; it ends as soon as they are read."""
    read = argparse.ArgumentParser.parse_args

    def only_read(self: argparse.ArgumentParser, *given, **more) -> None:
        read(self, *given, **more)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_read)
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.setattr(sys, "stderr", sys.stdout)
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        except Parsed:
            return None
        except SystemExit as end:
            return f"status {end.code}"
    return "it did not read its arguments"


@pytest.mark.parametrize("file, command", WRITTEN, ids=[f"{file}: {command.line[:100]}" for file, command in WRITTEN])
def test_a_command_of_the_documentation_can_be_typed(file, command):
    assert complaint(command) is None


def test_commands_are_found_everywhere():
    programs = {command.program for _, command in WRITTEN}
    assert programs >= {path.stem for path in SCRIPTS.glob("*.py")}, "a script without an example"
    assert {"make", "pytest"} <= programs
    files = {file for file, _ in WRITTEN}
    assert {"README.md", "training.md", "benchmark.py", "real_birds_encoder.md"} <= files
    assert len(WRITTEN) > 100


@pytest.mark.parametrize(
    "text, expected",
    [
        ("    python scripts/train.py experiment=a \\\n        b=1   # why\n", [("train", "experiment=a b=1")]),
        ("say `python scripts/invert.py names=[a,b]` now", [("invert", "names=[a,b]")]),
        ("it wants `python\nscripts/doctor.py` first", [("doctor", "")]),
        ("torchrun --nproc_per_node=4 scripts/train.py experiment=a", [("train", "experiment=a")]),
        ("A=1 python scripts/train.py experiment=a    # 4 GPUs", [("train", "experiment=a")]),
        ("inv3d export run.name=b", [("export", "run.name=b")]),
        ("python -m invkit export run.name=b", [("export", "run.name=b")]),
        ("make setup && . .venv/bin/activate", [("make", "setup")]),
        ('pip install -e ".[video]"', [("pip", '-e ".[video]"')]),
        ("make a mistake and see", []),
    ],
)
def test_commands_are_read_as_they_would_be_typed(text, expected):
    found = [(command.program, command.arguments) for command in check_docs.commands(text)]
    if expected == []:  # prose is a command without a target of such a name
        assert all(complaint(command) for command in check_docs.commands(text))
    else:
        assert found == expected


@pytest.mark.parametrize(
    "line",
    [
        "python scripts/invert.py experiment=meshinv_invert_cub inverter.init.cuont=4",
        "python scripts/invert.py experiment=meshinv_invert_cub ++inverter.cuont=4",
        "python scripts/train.py experiment=meshinv_gan_cub",
        "python scripts/tarin.py experiment=meshinv_pretrain_cub",
        "python scripts/prepare_data.py cub-subste SOURCE",
        "python scripts/prepare_data.py check cub datasets/cub --shete a.png",
        "python scripts/publish.py runs/a",
        "make dmeo",
        "pytest tests/test_absent.py",
        'pip install -e ".[vidoe]"',
    ],
)
def test_a_misspelt_command_is_noticed(line):
    (command,) = check_docs.commands(line)
    assert complaint(command)
    (continued,) = check_docs.commands(
        "    " + line.replace(" ", " \\\n        ", 1) if line.startswith("pip") else line
    )
    assert complaint(continued)


@cache
def anchors(path: Path) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_names_of_experiments_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"
    known = {path.stem for path in CONFIGS.glob("experiment/*.yaml")}
    known |= set(re.findall(r"`configs/experiment/(\w+)\.yaml`:", text))  # which the page itself shows
    assert set(re.findall(r"\bexperiment=(\w+)(?![\w*{.])", text)) <= known
    for kind, name in re.findall(r"\bpreset=(\w+)/(\w+)", text):
        assert (CONFIGS / "preset" / kind / f"{name}.yaml").is_file()


@cache
def messages() -> str:
    """Every text in the code, what is put into it shown as an ellipsis; one a line."""
    found = []
    for path in (
        path for folder in ("invkit", "meshinv", "nerfinv", "scripts") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(" ".join(text.split()) for text in found) + (ROOT / "Makefile").read_text()


OF_OTHERS = ("libGL",)
ROWS = re.findall(
    r"^\| (?!what you see)([^|]*`[^|]*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("symptom", ROWS)
def test_a_message_that_is_explained_is_one_of_the_codes(symptom):
    for quoted in re.findall(r"`([^`]+)`", symptom):
        if len(quoted) > 10 and not quoted.startswith(OF_OTHERS) and " " in quoted:
            pieces = [piece.strip() for piece in quoted.split("...")]
            assert all(piece in messages() for piece in pieces), quoted


def test_cheap_commands_run(tmp_path, monkeypatch, capsys):
    """Those that make and check data, as the documentation gives them but for the numbers."""
    main = runpy.run_path(str(SCRIPTS / "prepare_data.py"))["main"]
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split("synthetic-birds datasets/synthetic_birds --train 4 --val 2 --test 2")) == 0
    assert main(shlex.split("check cub datasets/synthetic_birds --sheet sheet.png")) == 0
    assert (tmp_path / "sheet.png").is_file()
    assert main(shlex.split("cub-subset datasets/cub --check")) == 1
    assert "docs/datasets.md" in capsys.readouterr().err


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_a_fresh_folder(tmp_path):
    """Takes some twenty minutes of a core."""
    command = [sys.executable, str(SCRIPTS / "check_docs.py"), str(tmp_path / "fresh")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout

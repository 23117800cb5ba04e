"""--help of every script, and the command of the installed package."""

import subprocess
import sys
from pathlib import Path

import pytest

from invkit import __main__ as command
from invkit.runtime import usage
from tests.test_dry_runs import run

ROOT = Path(__file__).resolve().parents[3]
CONFIGURED = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
PARSED = ["convert_checkpoint", "prepare_data", "doctor", "publish", "check_docs"]


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch):
    monkeypatch.setattr(usage, "_called_by_name", False)


def test_every_script_is_looked_at():
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {*CONFIGURED, *PARSED}


@pytest.mark.parametrize("script", CONFIGURED)
def test_help_has_the_docstring_and_every_setting_with_its_comment(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    run(script, ["--help"], monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith(usage.docstring(ROOT / "scripts" / f"{script}.py"))
    flat = " ".join(said.split())
    primary = usage.read(ROOT / "configs" / f"{script}.yaml", ROOT / "configs")
    for setting in primary.settings:
        assert f"{setting.key}={setting.value}" in said if setting.value else f"{setting.key}:" in said
        assert " ".join(setting.comment.split()) in flat
    for group in primary.groups:
        if group.name != "run":
            assert f"\n{group.name}=..." in said
            assert all(f"\n  {name}" in said for name in usage.choices(group, ROOT / "configs"))
    assert max(map(len, said.splitlines())) <= 180  # what is given in one word is not broken


@pytest.mark.parametrize("script", PARSED)
def test_help_of_the_others_does_not_fail(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(script, ["--help"], monkeypatch)
    assert not left.value.code
    assert f"python scripts/{script}.py" in capsys.readouterr().out


def test_only_experiments_that_fit_are_told_of(monkeypatch, capsys):
    run("train", ["-h"], monkeypatch)
    said = capsys.readouterr().out
    assert "  meshinv_pretrain_cub " in said
    assert "meshinv_invert_cub" not in said
    assert "  nerfinv_generator/small " in said


def test_what_is_read_of_a_file(tmp_path):
    (tmp_path / "above.yaml").write_text("# Head.\ndefaults:\n  - _self_\nx: 1  # first\ny: 2\n")
    (tmp_path / "own.yaml").write_text(
        "# Head.\ndefaults:\n  - above\n  - group: a   # of *_b\n  # - other: the first's\n  - _self_\n\n"
        "x: 3 # again\nnested:   # all\n  inner: [1, 2]\n  _target_: z\n# Told\n# of it.\n"
    )
    primary = usage.read(tmp_path / "own.yaml", tmp_path)
    assert [(each.key, each.value, each.comment) for each in primary.settings] == [
        ("y", "2", ""), ("x", "3", "again"), ("nested", "", "all"), ("nested.inner", "[1, 2]", ""),
    ]  # fmt: skip
    assert [(group.name, group.default) for group in primary.groups] == [("group", "a"), ("other", "the first's")]
    assert " ".join(primary.remarks) == "Told of it."


def test_the_command_lists_what_there_is_and_speaks_of_itself(capsys):
    command.main([])
    listed = capsys.readouterr().out
    assert all(f"\n  {script} " in listed for script in (*CONFIGURED, *PARSED))
    command.main(["reconstruct", "--help"])
    said = capsys.readouterr().out
    assert "inv3d reconstruct image=robin.jpg" in said
    assert "python scripts/reconstruct.py" not in said


def test_a_misspelt_command_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["recnstruct"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: inv3d recnstruct: there is no such command; did you mean reconstruct?\n"


def test_the_command_runs_a_script_from_anywhere(tmp_path):
    call = [sys.executable, "-m", "invkit", "reconstruct", "imge=a.png"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == 2
    assert "did you mean image?" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())

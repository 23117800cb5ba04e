"""docs/python.md and docs/tutorial.ipynb do what they say.

Their code runs as it stands, but that every search has a few steps: with the networks that ship, but without the time.
The slow test lets the notebook take its time.
"""

import functools
import json
import re
import runpy
from pathlib import Path

import pytest

from invkit.reconstruction import Reconstructor
from tests.brief import BRIEF, painted_bird

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: Path) -> list[str]:
    """The pieces of Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def cells(notebook: Path) -> list[str]:
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in content["cells"])  # pictures are made, not stored
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def run(pieces: list[str], script: Path) -> dict[str, object]:
    """The names that the pieces leave, run one after another as a script."""
    script.write_text("\n".join(pieces))
    return runpy.run_path(str(script))


@pytest.fixture
def briefly(monkeypatch) -> None:
    load = Reconstructor.load.__func__

    @functools.wraps(load)
    def brief(cls, name="real_birds", *, method="meshinv", overrides=(), **how):
        return load(cls, name, method=method, overrides=[*short(method, overrides), *overrides], **how)

    monkeypatch.setattr(Reconstructor, "load", classmethod(brief))


def short(method: str, overrides: list[str]) -> list[str]:
    """What makes a search brief, without settings of what the overrides leave out."""
    return [each for each in BRIEF[method] if "refine=null" not in overrides or not each.startswith("+refine.")]


def test_every_block_of_the_page_runs(briefly, tmp_path, monkeypatch, capsys):
    painted_bird(tmp_path)
    monkeypatch.chdir(tmp_path)
    pieces = blocks(DOCS / "python.md")
    assert len(pieces) > 5
    names = run(pieces, tmp_path / "page.py")
    said = capsys.readouterr().out
    assert "silhouette of photograph 0 is empty (mask 0)" in said
    assert "meshinv/real_birds" in said
    assert (tmp_path / "bird.glb").is_file()
    assert names["side"].shape == (256, 256, 3)


def test_every_cell_of_the_notebook_runs(briefly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(cells(DOCS / "tutorial.ipynb"), tmp_path / "notebook.py")
    assert (names["folder"] / "bird.glb").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["notebook.py"]


@pytest.mark.slow
def test_the_notebook_finds_birds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(cells(DOCS / "tutorial.ipynb"), tmp_path / "notebook.py")
    assert names["bird"].iou > 0.75
    assert names["other"].iou > 0.7

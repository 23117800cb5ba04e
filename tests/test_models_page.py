"""docs/models.md tells of every network that ships what its file and its card say."""

import re
from pathlib import Path

import pytest

from invkit.runtime import checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/models.md").read_text()
SHIPPED = sorted(ROOT.glob("*/checkpoints/*.pt"))
ROWS = {
    match[1]: [cell.strip() for cell in match[2].split("|")]
    for match in re.finditer(r"^\| \[`([^`]+\.pt)`\]\([^)]+\) \|(.*)\|$", PAGE, re.MULTILINE)
}


def test_every_network_that_ships_has_a_row_and_no_other():
    assert {path.relative_to(ROOT).as_posix() for path in SHIPPED} == ROWS.keys()
    assert len(re.findall(r"\bsix\b", PAGE, re.IGNORECASE)) == (len(SHIPPED) == 6)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_row_says_what_the_file_and_the_card_say(path):
    what, size, data, steps, time = ROWS[path.relative_to(ROOT).as_posix()]
    assert size == f"{path.stat().st_size / 1e6:.1f} MB"
    content, card = checkpoint.load(path), path.with_suffix(".md").read_text()
    assert int(steps.replace(",", "")) == content["step"]
    assert f"after {content['step']} steps" in card
    (state,) = content["modules"]
    assert ("encoder" in what) == (state == "encoder")
    kind = "textured meshes" if path.parts[-3] == "meshinv" else "radiance fields"
    assert state == "encoder" or kind in what
    if state == "generator_ema" and path.parts[-3] == "meshinv":
        classes = content["config"]["task"]["generator"].get("num_classes", 200)
        assert f"{classes} classes" in what or (classes == 0 and "no classes" in what)
    if "real" in path.stem and state != "encoder":
        (birds,) = re.findall(r"photographs of ([\d,]+) birds", card)
        assert birds in data
        assert "non-commercial research and education" in PAGE
    minutes = re.search(r"\| time \| (\d+) minutes", card)[1]
    # One network was trained in two parts, of which its card has the second alone and the text the first.
    assert time == f"{minutes} minutes" or (time == "about 80 minutes" and "took about an hour" in card)


@pytest.mark.parametrize("page", ["photographs.md", "hybrid.md"])
def test_numbers_are_those_of_the_pages_that_are_linked(page):
    """A number of the tables stands on the page that has the measurement too."""
    source = (ROOT / "docs" / page).read_text()
    heading = "**Procedural birds, fields**" if page == "hybrid.md" else "**Real birds**: 64"
    section = PAGE[PAGE.index(heading) :]
    table = re.search(r"\|---.*?\n((?:\|.*\n)+)", section)[1]
    numbers = re.findall(r"\b\d+\.\d+\b", table)
    assert len(numbers) >= 10
    assert all(number in source for number in numbers), [number for number in numbers if number not in source]

"""docs/reproduce.md: one line for each table and figure of both papers, and for each that is configured here."""

import re
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from hydra import initialize_config_dir

from tests.test_configs import CONFIGS, ROOT
from tests.test_table import composed, script

__all__ = ["script"]

PAPERS = {
    "M": {"Table": range(1, 5), "Figure": (1, 3, 4, 5, 6)},
    "N": {"Table": range(1, 3), "Figure": (3, 4, 5, 6, 7, 9, 11, 12, 14, 15, 16, 17, 18, 19, 20)},
}
"""What has results; the other figures explain a method."""
STATES = {"measured here", "tried", "ready, wants data", "quoted", "missing"}


def lines() -> list[list[str]]:
    """The cells of the table."""
    text = (ROOT / "docs" / "reproduce.md").read_text()
    table = text[text.index("| table or figure |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]


def test_every_table_and_figure_of_the_papers_has_a_line():
    said = [item for item, *_ in lines()]
    for paper, kinds in PAPERS.items():
        for kind, numbers in kinds.items():
            own = [item for item in said if re.match(rf"{paper} {kind}s? ", item)]
            found = {int(number) for item in own for number in re.findall(r"\b(\d+)\b", item)}
            assert found == set(numbers), (paper, kind)
    assert not [item for item, count in Counter(said).items() if count > 1]


def test_every_line_has_a_command_or_is_said_to_be_missing():
    for item, command, needs, state, _ in lines():
        assert state in STATES, item
        assert ("scripts/" in command) is (state != "missing"), item
        assert needs, item


def test_every_configured_table_and_figure_has_a_line():
    text = " ".join(" ".join(cells) for cells in lines())
    for kind in ("table", "figure"):
        named = set(re.findall(rf"\b{kind}=(\w+)", text))
        assert named == {path.stem for path in CONFIGS.glob(f"{kind}/*.yaml")} - {"runs"}


def dry_run(script: ModuleType, config: dict[str, Any]) -> list[str]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return list(script.dry_run(config))


@pytest.mark.parametrize("name", ["nerfinv_carla", "meshinv_table3_p3d", "meshinv_table2_cub"])
def test_a_dry_run_says_what_would_run_and_what_is_missing(script, name):
    config = composed("table", f"table={name}")
    said = dry_run(script, config)
    table = config["table"]
    ours = [row for row, its in table["rows"].items() if its["overrides"] is not None]
    assert f"{len(ours)} rows to run" in said[0]
    assert [line.partition(":")[0] for line in said[1:] if not line.startswith("    ")] == ours
    assert not [line for line in said if "does not compose" in line]
    absent = [line for line in said if line.startswith("    missing: ")]
    assert len(absent) == len(ours)
    assert all(table["prior"] in line for line in absent)


def test_a_dry_run_counts_images_and_steps(script):
    config = composed("table", "table=nerfinv_carla", "table.images=12")
    said = "\n".join(dry_run(script, config))
    assert "12 images, 10 steps each" in said
    assert "12 images, 30 steps each" in said
    assert "not measured without weights inception_fid" in said

"""The page of several methods."""

import re
from urllib.parse import unquote

import pytest

from invkit.evaluation.page import Figure, page
from invkit.evaluation.report import Column, Row, Table

TABLE = Table("A < B", ["method"], [Column("IoU", 2)], [Row(["A"], {"IoU": 0.5}), Row(["B"], {"IoU": 0.25})])


def test_the_page_has_the_table_and_every_figure_with_its_links():
    own = Figure("pictures/a b=2F.png", "wren & <robin>", {"GLB": "a/wren#1.glb"})
    text = page(TABLE, "What is shown.", ["A", "B"], {"wren": [own, Figure(None, "could not be reconstructed")]})
    assert "<h1>A &lt; B</h1>" in text
    assert TABLE.html() in text
    assert [unquote(path) for path in re.findall(r'(?:src|href)="([^"]+)"', text)] == [own.picture, "a/wren#1.glb"]
    assert "#" not in re.search(r'href="([^"]+)"', text).group(1)
    assert "wren &amp; &lt;robin&gt;" in text
    assert "could not be reconstructed" in text
    assert text.count("<tr>") == text.count("</tr>") == 3 + 2


def test_a_row_without_a_figure_for_every_method_is_refused():
    with pytest.raises(ValueError, match="wren: 1 figures for 2 columns"):
        page(TABLE, "", ["A", "B"], {"wren": [Figure("a.png")]})

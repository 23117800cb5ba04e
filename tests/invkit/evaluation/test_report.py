"""Tables, and the order of their rows against scipy's."""

import math
from xml.etree import ElementTree

import pytest
import scipy.stats

from invkit.evaluation.report import Column, Row, Table, rank_correlation

COLUMNS = (Column("IoU", 3), Column("FID_1", 1, higher_is_better=False), Column("seconds", 2, higher_is_better=False))
ROWS = (
    Row(["L1", "tuned"], {"IoU": 0.61, "FID_1": 70.04, "seconds": 1.0}, {"IoU": 0.589, "FID_1": 71.8}),
    Row(["Chamfer & co", "fixed"], {"IoU": 0.70}, {"IoU": 0.695, "FID_1": 40.9}),
    Row(["Chamfer", "tuned"], {"IoU": 0.75, "FID_1": 41.0}, {"IoU": 0.752, "FID_1": 37.3}),
)


def table(**changes) -> Table:
    return Table("Losses", ["mask", "camera"], COLUMNS, ROWS, **changes)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_markdown_has_ours_the_papers_and_the_difference():
    lines = table(notes=["measured here"]).markdown().splitlines()
    assert lines[0] == "# Losses"
    header, _, first, second, last = lines[2:7]
    assert cells(header) == ["mask", "camera", "IoU", "paper", "difference", "FID_1", "paper", "difference", "seconds"]
    assert cells(first) == ["L1", "tuned", "0.610", "0.589", "+0.021", "70.0", "71.8", "-1.8", "1.00"]
    assert cells(second) == ["Chamfer & co", "fixed", "0.700", "0.695", "+0.005", "-", "40.9", "-", "-"]
    assert cells(last) == ["Chamfer", "tuned", "**0.750**", "0.752", "-0.002", "**41.0**", "37.3", "+3.7", "-"]
    assert lines[-1] == "- measured here"


def test_numbers_of_other_data_are_not_subtracted():
    header, _, first = table(comparable=False).markdown().splitlines()[2:5]
    assert cells(header) == ["mask", "camera", "IoU", "paper", "FID_1", "paper", "seconds"]
    assert cells(first) == ["L1", "tuned", "0.610", "0.589", "70.0", "71.8", "1.00"]


def test_plain_text_stands_in_columns():
    heading, first, *_ = table().plain().splitlines()[2:]
    assert heading.index("IoU") + len("IoU") == first.index("0.610") + len("0.610")
    assert heading.split() == [
        "mask",
        "camera",
        "IoU",
        "paper",
        "difference",
        "FID_1",
        "paper",
        "difference",
        "seconds",
    ]


def test_latex_escapes_what_it_must_and_nothing_else():
    text = table(notes=["100 % ours"]).latex()
    assert r"Chamfer \& co & fixed & 0.700" in text
    assert r"FID\_1" in text
    assert r"\textbf{0.750} & 0.752 & -0.002" in text
    assert r"\begin{tabular}{llrrrrrrr}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {8}
    assert [line for line in text.splitlines() if "ours" in line] == ["% 100 % ours"]


def test_html_is_the_same_table():
    text = table(notes=["ours < theirs"]).html()
    body, note = text.split("</table>")
    heading, *rows = ElementTree.fromstring(body + "</table>")
    header, _, first, *lines = table().markdown().splitlines()[2:]
    assert [cell.text for cell in heading] == cells(header)
    shown = [["".join(cell.itertext()) for cell in row] for row in rows]
    assert shown == [[cell.strip("*") for cell in cells(line)] for line in (first, *lines)]
    assert [cell.text for cell in ElementTree.fromstring(body + "</table>").iter("b")] == ["0.750", "41.0"]
    assert note.strip() == "<p>ours &lt; theirs</p>"


@pytest.mark.parametrize(
    "first, second",
    [
        ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]),
        ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]),
        ([0.58, 0.732, 0.741, 0.718, 0.589, 0.604, 0.695, 0.752], [78.3, 78.3, 44.0, 57.7, 73.2, 71.8, 41.38, 38.7]),
        ([1.0, 1.0, 2.0, 2.0, 2.0], [5.0, 3.0, 3.0, 3.0, 1.0]),
    ],
)
def test_rank_correlation_is_spearmans(first, second):
    assert rank_correlation(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)


def test_there_is_no_correlation_where_nothing_can_be_ordered():
    assert rank_correlation([1.0], [2.0]) is None
    assert rank_correlation([], []) is None
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_the_order_looks_at_rows_that_both_sides_have():
    order = table().order()
    assert order["IoU"].rank_correlation == pytest.approx(1)
    assert (order["IoU"].rows, order["IoU"].best_of_ours, order["IoU"].last_wins) == (3, "Chamfer, tuned", True)
    assert (order["FID_1"].rows, order["FID_1"].best_of_paper) == (2, "Chamfer, tuned")
    assert order["seconds"].rows == 0
    assert order["seconds"].last_wins is None


def test_lower_can_be_better():
    rows = [Row(["a"], {"FID_1": 3.0}, {"FID_1": 2.0}), Row(["b"], {"FID_1": 4.0}, {"FID_1": 1.0})]
    order = Table("", ["row"], [COLUMNS[1]], rows).order()["FID_1"]
    assert (order.best_of_ours, order.best_of_paper, order.last_wins) == ("a", "b", False)


@pytest.mark.parametrize("shift, within", [(0.0, True), (0.004, True), (0.1, False)])
def test_a_difference_within_two_standard_errors_is_undecided(shift, within):
    last = {str(i): math.sin(i) for i in range(30)}
    other = {image: value + shift + 0.03 * math.cos(7 * int(image)) for image, value in last.items()}
    rows = [
        Row(["other"], {"IoU": 0.5}, per_image={"IoU": other}),
        Row(["last"], {"IoU": 0.6}, per_image={"IoU": last}),
    ]
    order = Table("", ["row"], [COLUMNS[0]], rows).order()["IoU"]
    assert order.undecided == (("other",) if within else ())
    t = scipy.stats.ttest_rel(list(other.values()), list(last.values())).statistic
    assert bool(abs(t) <= 2) is within
    assert table().order()["IoU"].undecided is None

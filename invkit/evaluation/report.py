"""Tables of results beside published ones: text, Markdown, LaTeX, HTML, and what the order of their rows says."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A number that is given for every row."""

    name: str
    digits: int = 3
    higher_is_better: bool = True


@dataclass(frozen=True)
class Row:
    """What is known of one system.

    Args:
        labels: what makes it differ from the other rows.
        ours: column -> what we measured.
        paper: column -> what was published.
        per_image: column -> image -> what we measured there, where the column is a mean over images.
    """

    labels: Sequence[str]
    ours: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """How the rows of a column follow each other, where both sides have a number.

    Args:
        rows: how many have both.
        rank_correlation: Spearman's, between ours and the published; None for fewer than two rows or equal numbers.
        best_of_ours, best_of_paper: labels of the best of these rows.
        last_wins: whether the last row of the table is the best of all that we measured; None where it is not measured.
        undecided: labels of the rows whose mean difference to the last, image by image, is within two standard errors.
            None where the column is no mean over images.
    """

    rows: int
    rank_correlation: float | None
    best_of_ours: str | None
    best_of_paper: str | None
    last_wins: bool | None
    undecided: tuple[str, ...] | None


@dataclass(frozen=True)
class Table:
    """Rows and columns.

    Args:
        labels: headings of the rows' labels.
        comparable: whether ours are measured on the data of the published numbers. Only then differences are shown.
        notes: lines below it.
    """

    title: str
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    comparable: bool = True
    notes: Sequence[str] = ()

    def plain(self) -> str:
        """As text in columns."""
        cells = [self._heading(), *(list(row) for row in self._cells())]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        first = len(self.labels)
        lines = [
            "  ".join(
                cell.ljust(width) if i < first else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([self.title, "", *lines, "", *self.notes]).rstrip() + "\n"

    def markdown(self) -> str:
        """In GitHub's dialect; the best of ours in each column is bold."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

        heading = self._heading()
        rule = ["---"] * len(self.labels) + ["---:"] * (len(heading) - len(self.labels))
        rows = [line(row) for row in self._cells("**{}**")]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"# {self.title}", "", line(heading), line(rule), *rows, "", *notes]).rstrip() + "\n"

    def latex(self) -> str:
        """A tabular for the package booktabs; the best of ours in each column is bold. The notes are comments."""
        heading = self._heading()
        form = "l" * len(self.labels) + "r" * (len(heading) - len(self.labels))
        lines = [[_tex(cell) for cell in heading], *self._escaped(_tex, r"\textbf{", "}")]
        first, *rest = [" & ".join(line) + r" \\" for line in lines]
        notes = [f"% {note}" for note in (self.title, *self.notes)]
        body = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", first, r"\midrule", *rest, r"\bottomrule"]
        return "\n".join([*notes, *body, r"\end{tabular}"]) + "\n"

    def html(self) -> str:
        """A table element; the best of ours in each column is bold. The notes are a paragraph below it."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

        rows = self._escaped(escape, "<b>", "</b>")
        notes = [f"<p>{'<br>'.join(map(escape, self.notes))}</p>"] if self.notes else []
        heading = line([escape(cell) for cell in self._heading()], "th")
        return "\n".join(["<table>", heading, *(line(row, "td") for row in rows), "</table>", *notes]) + "\n"

    def order(self) -> dict[str, Order]:
        """Column -> how its rows follow each other."""
        return {column.name: self._order(column) for column in self.columns}

    def _heading(self) -> list[str]:
        cells = list(self.labels)
        for column in self.columns:
            cells.append(column.name)
            if self._is_published(column):
                cells += ["paper", "difference"] if self.comparable else ["paper"]
        return cells

    def _cells(self, bold: str = "{}") -> Iterator[list[str]]:
        best = {column.name: self._best(column, "ours") for column in self.columns}
        for row in self.rows:
            cells = list(row.labels)
            for column in self.columns:
                ours, paper = row.ours.get(column.name), row.paper.get(column.name)
                shown = ABSENT if ours is None else f"{ours:.{column.digits}f}"
                cells.append(bold.format(shown) if row is best[column.name] else shown)
                if not self._is_published(column):
                    continue
                cells.append(ABSENT if paper is None else f"{paper:g}")
                if self.comparable:
                    known = ours is not None and paper is not None
                    cells.append(f"{ours - paper:+.{column.digits}f}" if known else ABSENT)
            yield cells

    def _escaped(self, escape: Callable[[str], str], begin: str, end: str) -> list[list[str]]:
        """`_cells` in another language, the best between what makes it bold there."""
        bold = "\0{}\1"  # stands for that until all else is escaped
        return [[escape(cell).replace("\0", begin).replace("\1", end) for cell in row] for row in self._cells(bold)]

    def _is_published(self, column: Column) -> bool:
        return any(column.name in row.paper for row in self.rows)

    def _best(self, column: Column, side: str, rows: Sequence[Row] | None = None) -> Row | None:
        """The best row; None where there is no other to be better than."""
        known = [row for row in (self.rows if rows is None else rows) if column.name in getattr(row, side)]
        choose = max if column.higher_is_better else min
        return choose(known, key=lambda row: getattr(row, side)[column.name]) if len(known) > 1 else None

    def _order(self, column: Column) -> Order:
        name, last = column.name, self.rows[-1] if self.rows else None
        both = [row for row in self.rows if name in row.ours and name in row.paper]
        best = [self._best(column, side, both) for side in ("ours", "paper")]
        first, undecided = self._best(column, "ours"), None
        if last is not None and name in last.per_image:
            others = [row for row in self.rows[:-1] if name in row.per_image]
            undecided = tuple(name_of(row) for row in others if not _differ(row.per_image[name], last.per_image[name]))
        return Order(
            len(both),
            rank_correlation([row.ours[name] for row in both], [row.paper[name] for row in both]),
            *(None if row is None else name_of(row) for row in best),
            None if first is None or name not in last.ours else first is last,
            undecided,
        )


def name_of(row: Row) -> str:
    """The labels in one."""
    return ", ".join(row.labels)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the ranks, equal numbers sharing the mean of theirs.

    None for fewer than two pairs, and where one side's numbers are all equal.
    """
    ranks = [_ranks(side) for side in (first, second)]
    centered = [[rank - sum(side) / len(side) for rank in side] for side in ranks]
    lengths = [math.sqrt(sum(rank * rank for rank in side)) for side in centered]
    if len(first) < 2 or min(lengths) == 0:
        return None
    return sum(a * b for a, b in zip(*centered, strict=True)) / (lengths[0] * lengths[1])


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; the mean of the places that a value and its equals take."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def _differ(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Whether the mean difference over the images of both is more than two of its standard errors."""
    differences = [first[image] - second[image] for image in first if image in second]
    count = len(differences)
    if count < 2:
        return False
    mean = sum(differences) / count
    variance = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    return abs(mean) > 2 * math.sqrt(variance / count)


def _tex(text: str) -> str:
    """Text as LaTeX takes it."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text

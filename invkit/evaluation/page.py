"""One page on which reconstructions of the same photographs stand side by side: HTML, with pictures beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from invkit.evaluation.report import Table

STYLE = (
    "body{font-family:sans-serif;margin:2em} table{border-collapse:collapse;margin-bottom:2em} "
    "th,td{padding:.3em .8em;text-align:left;border-bottom:1px solid #ddd} "
    "img{display:block} .caption{font-size:80%;color:#555}"
)


@dataclass(frozen=True)
class Figure:
    """A picture and what stands below it.

    Args:
        picture: path, relative to the page. None where there is nothing to show.
        caption: in words.
        links: what a link is called -> path, relative to the page.
    """

    picture: str | None
    caption: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def page(table: Table, text: str, columns: Sequence[str], figures: Mapping[str, Sequence[Figure]]) -> str:
    """The page: the table's title, a text, the table, and a row of figures for every photograph.

    Args:
        columns: headings of the figures.
        figures: photograph -> a figure for every column.

    Raises:
        ValueError: a row of figures is not as long as the columns are many.
    """
    for name, shown in figures.items():
        if len(shown) != len(columns):
            raise ValueError(f"{name}: {len(shown)} figures for {len(columns)} columns")
    title, heads = escape(table.title), "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = [
        "<tr>" + "".join(f"<td>{_figure(figure, name)}</td>" for figure in shown) + "</tr>"
        for name, shown in figures.items()
    ]
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{escape(text)}</p>",
            table.html(),
            f"<table><tr>{heads}</tr>",
            *rows,
            "</table></body></html>\n",
        ]
    )


def _figure(figure: Figure, name: str) -> str:
    picture = "" if figure.picture is None else f'<img src="{_path(figure.picture)}" alt="{escape(name)}">'
    links = "".join(f' <a href="{_path(path)}">{escape(word)}</a>' for word, path in figure.links.items())
    return f'{picture}<span class="caption">{escape(figure.caption)}{links}</span>'


def _path(path: str) -> str:
    return escape(quote(path))

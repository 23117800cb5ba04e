"""Curves in panels side by side, as PDF, SVG and PNG; matplotlib is needed when one is drawn and not before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invkit.runtime.files import written_aside

FORMATS = ("pdf", "svg", "png")
WIDTH, HEIGHT = 3.6, 2.8
"""Of a panel, in inches."""
DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Curve:
    """Points, joined by lines.

    Args:
        label: curves of the same label have the same color, in all panels.
        published: somebody else's numbers, which are drawn as circles and not joined.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with curves.

    Args:
        missing: lines written into the panel about what could not be drawn.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    missing: Sequence[str] = ()


def write(panels: Sequence[Panel], folder: Path, name: str, *, title: str = "", columns: int = 3) -> list[Path]:
    """Draw the panels, `columns` in a row, and return the files: one of each of FORMATS.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            'figures are drawn with matplotlib, which is not installed: pip install -e ".[figures]"'
        ) from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    for panel, axis in zip(panels, axes, strict=False):
        _draw(panel, axis, {label: f"C{number % 10}" for number, label in enumerate(labels)})
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in FORMATS]
    for path, form in zip(paths, FORMATS, strict=True):
        with written_aside(path) as aside:
            figure.savefig(aside, format=form, dpi=DOTS_PER_INCH)
    return paths


def _draw(panel: Panel, axis, colors: dict[str, str]) -> None:
    for curve in panel.curves:
        color = colors[curve.label]
        if curve.published:
            axis.plot(curve.x, curve.y, "o", color=color, fillstyle="none", label=f"{curve.label}, paper")
        else:
            dots = "." if len(curve.x) <= 30 else ""
            axis.plot(curve.x, curve.y, color=color, marker=dots, linewidth=1.2, label=curve.label)
    axis.set_title(panel.title, fontsize=9)
    axis.set_xlabel(panel.x_label, fontsize=8)
    axis.set_ylabel(panel.y_label, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    if panel.curves:
        axis.legend(fontsize=6, framealpha=0.5)
    else:
        axis.set_xticks([])
        axis.set_yticks([])
    if panel.missing:
        axis.text(0.02, 0.02, "\n".join(panel.missing), fontsize=6, color="0.4", transform=axis.transAxes)

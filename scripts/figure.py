"""Draw a figure of a paper from runs that have been measured; nothing is run.

    python scripts/figure.py figure=nerfinv_figure6_synthetic_birds
    python scripts/figure.py figure=meshinv_search_synthetic
    python scripts/figure.py figure=meshinv_search_synthetic folder=runs/my_table

A figure is a file in configs/figure. Its curves come from the runs that a table has left in its folder: from the
numbers of a protocol after several steps (result.json of the evaluation), or from the course of the search (the
records). Curves of runs that are not there are left out, and the log says why. Circles are the printed
numbers of the paper.

Writes <folder>/figure/<name>.pdf, .svg, .png, and .json with the points. Needs pip install -e ".[figures]".
"""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from invkit.evaluation.plot import Curve, Panel, write
from invkit.inversion.records import RecordStore
from invkit.runtime.files import written_aside
from invkit.runtime.run import Run, main

Points = tuple[list[float], list[float]]


@main(config_name="figure")
def figure(cfg: DictConfig) -> None:
    wanted, folder = OmegaConf.to_container(cfg.figure, resolve=True), Path(cfg.folder)
    panels = [panel(node, folder) for node in wanted["panels"]]
    if not any(not curve.published for each in panels for curve in each.curves):
        raise ValueError(f"folder={folder}: none of the runs of this figure is there; make them: {wanted['made_by']}")
    with Run(cfg, frozen=False) as run:
        if run.rank != 0:
            return
        for why in dict.fromkeys(line for each in panels for line in each.missing):
            run.log.message(f"not drawn: {why}")
        short = [Panel(p.title, p.x_label, p.y_label, p.curves, missing_rows(p)) for p in panels]
        paths = write(short, run.dir, wanted["name"], title=wanted["title"], columns=wanted["columns"])
        with written_aside(run.dir / f"{wanted['name']}.json") as aside:
            aside.write_text(json.dumps({"source": wanted["source"], "panels": [points(p) for p in panels]}, indent=2))
        run.log.message(f"see {', '.join(map(str, paths))}")


def panel(node: Mapping[str, Any], folder: Path) -> Panel:
    """A panel with the curves of those runs that are there."""
    curves, missing = [], []
    for row, label in node["rows"].items():
        try:
            x, y = of_search(folder / row) if "trace" in node else of_protocols(folder / row, node)
            curves.append(Curve(label, x, y))
        except (FileNotFoundError, ValueError) as error:
            missing.append(f"{row}: {error}")
        published = node.get("paper", {}).get(row, {})
        if published:
            curves.append(Curve(label, [float(step) for step in published], list(published.values()), published=True))
    return Panel(node["title"], "steps", node["y_label"], curves, missing)


def of_protocols(folder: Path, node: Mapping[str, Any]) -> Points:
    """Steps, and a metric of the protocols that are named after them: <protocol>_n<steps>.

    Raises:
        FileNotFoundError: the run has not been measured.
        ValueError: nothing of that metric has been.
    """
    path = folder / "evaluation" / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    protocols = json.loads(path.read_text())["protocols"]
    found, reasons = {}, []
    for name, values in protocols.items():
        steps = re.fullmatch(rf"{node['protocol']}_n(\d+)", name)
        if steps and node["metric"] in values["metrics"]:
            found[int(steps[1])] = values["metrics"][node["metric"]]["value"]
        elif steps:
            reasons.append(values["not_measured"].get(node["metric"], "it is not among what was measured"))
    if not found:
        raise ValueError(f"no {node['metric']} of {node['protocol']} in {path}: {(reasons or ['no such protocol'])[0]}")
    return [float(step) for step in sorted(found)], [found[step] for step in sorted(found)]


def of_search(folder: Path) -> Points:
    """Steps of the search, and the overlap with the mask that was given, averaged over the images.

    Raises:
        FileNotFoundError: there are no records.
        ValueError: none of them has a course.
    """
    if not (folder / "records").is_dir():
        raise FileNotFoundError(f"there is no {folder / 'records'}")
    store = RecordStore(folder / "records", refined=False)
    courses = [store.read(name).trace for name in store.names()]
    overlaps = [trace.iou[0] for trace in courses if trace is not None]
    if not overlaps:
        raise ValueError(f"no search of {store.dir} has left its course")
    # An image that stopped keeps its last value.
    most = max(map(len, overlaps))
    padded = [torch.cat([values, values[-1:].expand(most - len(values))]) for values in overlaps]
    return list(map(float, range(most))), torch.stack(padded).double().mean(dim=0).tolist()


def missing_rows(panel: Panel) -> list[str]:
    """What is written into the panel: the rows, of which the log says more."""
    rows = [line.partition(":")[0] for line in panel.missing]
    return textwrap.wrap(f"not made: {', '.join(rows)}", 50) if rows else []


def points(panel: Panel) -> dict[str, Any]:
    """What is drawn, as numbers."""
    curves = [{"label": c.label, "published": c.published, "x": list(c.x), "y": list(c.y)} for c in panel.curves]
    return {"title": panel.title, "y": panel.y_label, "curves": curves, "missing": list(panel.missing)}


if __name__ == "__main__":
    figure()

"""The main job on data made on the spot: photographs of birds in, 3D models out. No GPU, nothing to download.

    make demo
    python scripts/demo.py count=32

Held-out synthetic birds are painted, then reconstructed by both methods with the small networks in meshinv/checkpoints
and nerfinv/checkpoints. Textured meshes are searched from cameras a few degrees off, as predicted ones are; radiance
fields find theirs by themselves. What the photographs show of the result then follows them (refine). In runs/demo:
index.html and side_by_side.png, both methods on one page; result.json with the numbers of the table that is printed;
and a folder for each method with meshes/*.glb, images/reconstructions.png, records/, result.json and
evaluation/result.json.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from evaluate import evaluate
from export import export
from hydra import compose
from invert import invert
from jaxtyping import Float
from omegaconf import DictConfig
from table import columns_of, measured
from torch import Tensor

from invkit.data.synthetic import write_birds
from invkit.evaluation.page import SIDE, STEP, Result, merged
from invkit.evaluation.report import Column, Row, Table
from invkit.evaluation.viewer import write_page
from invkit.images import grid, read_image, write_png
from invkit.runtime.run import Run, main

TEXT = (
    "Held-out synthetic birds, and what each method made of each photograph: a model that turns, the steps of the "
    "search on a slider, normals, the place on the object as a color, and how it looks from other sides."
)


@dataclass(frozen=True)
class Outcome:
    """What a method made of the photographs.

    Args:
        folder: of its run, below that of the demo.
        row: its name and numbers.
    """

    folder: Path
    row: Row

    @property
    def title(self) -> str:
        return self.row.labels[0]


@main(config_name="demo")
def demo(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        birds = run.dir / "birds"
        # The seed differs from that of the training birds, so these are birds the priors have never seen.
        write_birds(birds, train=2, val=2, test=cfg.count, seed=cfg.birds_seed, novel_views=0)
        outcomes = [made(name, method, birds, run) for name, method in run.config["methods"].items()]
        columns = columns_of(run.config["columns"])
        table = Table(
            "Photographs of birds to 3D models",
            labels=["method", "given"],
            columns=[*columns, Column("seconds per image", 1, higher_is_better=False)],
            rows=[outcome.row for outcome in outcomes],
            comparable=False,
        )
        lay_out(outcomes, table, run)
        run.result({"count": cfg.count, "methods": {outcome.title: outcome.row.ours for outcome in outcomes}})
        run.log.message(table.plain())
        run.log.message(f"see {run.dir / 'index.html'} or {run.dir / 'side_by_side.png'}")


def made(name: str, method: Mapping[str, Any], birds: Path, run: Run) -> Outcome:
    """Invert, export and measure with a method."""
    began, folder = time.monotonic(), run.dir / name
    same = [*overrides(method, birds), f"run.device={run.config['run']['device']}"]
    shown = [f"tile={run.config['tile']}", "detailed=null", f"refine={method['refine']}"]
    invert(compose("invert", [*same, f"run.dir={folder}", *shown]))
    export(compose("export", [*same, f"inversion={folder}", f"resolution={run.config['resolution']}"]))
    seconds = (time.monotonic() - began) / run.config["count"]
    protocols = sorted({column["protocol"] for column in run.config["columns"].values()})
    evaluate(compose("evaluate", [*same, f"inversion={folder}", f"protocols=[{','.join(protocols)}]"]))
    row, _ = measured(Row([method["title"], method["given"]]), folder, run.config["columns"])
    row = replace(row, ours={**row.ours, "seconds per image": seconds})
    return Outcome(folder, row)


def overrides(method: Mapping[str, Any], birds: Path) -> list[str]:
    """What all commands are told of a method."""
    return [f"experiment={method['experiment']}", f"data.root={birds}", *method["overrides"]]


def lay_out(outcomes: Sequence[Outcome], table: Table, run: Run) -> None:
    """Write the page, and the sheet, on which a photograph has a row of its own for each method."""
    parts = {outcome.folder.name: outcome.title for outcome in outcomes}
    page = merged(table.title, TEXT, run.dir, parts)
    write_page(page, run.dir, table, single_file=run.config["single_file"])
    rows = [row_of(result, run.dir) for results in page.photographs().values() for result in results if result.tiles]
    if rows:
        write_png(run.dir / "side_by_side.png", grid(torch.cat(rows), columns=len(rows[0])))


def row_of(result: Result, folder: Path) -> Float[Tensor, "K 3 T T"]:
    """The object cut out of its photograph, and what was made of it, from the same side and from others."""
    last = max(place for place, tile in enumerate(result.tiles) if tile.kind == STEP)
    places = [1, last, *(place for place, tile in enumerate(result.tiles) if tile.kind == SIDE)]
    strip = 2 * read_image(folder / result.strip).float() - 1
    return torch.stack(strip.chunk(len(result.tiles), dim=2))[places]


if __name__ == "__main__":
    demo()

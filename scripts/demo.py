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
from export import beside, export, stem_of
from hydra import compose
from invert import invert
from jaxtyping import Float
from omegaconf import DictConfig
from table import columns_of, measured
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.data.synthetic import write_birds
from invkit.evaluation.evaluator import render
from invkit.evaluation.page import Figure, page
from invkit.evaluation.report import Column, Row, Table
from invkit.images import composite, grid, resize_bilinear, write_png
from invkit.inversion.records import RecordStore
from invkit.photographs.panel import sides
from invkit.runtime.files import written_aside
from invkit.runtime.run import Run, instantiate_trusted, main

TEXT = (
    "Held-out synthetic birds. In each row the photograph, and what each method made of it: seen from the camera that "
    "the photograph was taken with or that was found for it, and turned by 45, 90, 180 and 270 degrees."
)


@dataclass(frozen=True)
class Outcome:
    """What a method made of the photographs.

    Args:
        folder: of its run, below that of the demo.
        row: its name and numbers.
        pictures: photograph -> it, cut out; its reconstruction from the same side and from four others, on white.
    """

    folder: Path
    row: Row
    pictures: Mapping[str, Float[Tensor, "K 3 T T"]]

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
        lay_out(outcomes, table, run.dir)
        run.result({"count": cfg.count, "methods": {outcome.title: outcome.row.ours for outcome in outcomes}})
        run.log.message(table.plain())
        run.log.message(f"see {run.dir / 'index.html'} or {run.dir / 'side_by_side.png'}")


def made(name: str, method: Mapping[str, Any], birds: Path, run: Run) -> Outcome:
    """Invert, export and measure with a method."""
    began, folder = time.monotonic(), run.dir / name
    same = [f"experiment={method['experiment']}", f"data.root={birds}", f"run.device={run.config['run']['device']}"]
    same += method["overrides"]
    cfg = compose("invert", [*same, f"run.dir={folder}", f"refine={method['refine']}"])
    invert(cfg)
    export(compose("export", [*same, f"inversion={folder}", f"resolution={run.config['resolution']}"]))
    seconds = (time.monotonic() - began) / run.config["count"]
    protocols = sorted({column["protocol"] for column in run.config["columns"].values()})
    evaluate(compose("evaluate", [*same, f"inversion={folder}", f"protocols=[{','.join(protocols)}]"]))
    row, _ = measured(Row([method["title"], method["given"]]), folder, run.config["columns"])
    row = replace(row, ours={**row.ours, "seconds per image": seconds})
    return Outcome(folder, row, pictures(cfg, folder, run))


@torch.no_grad()
def pictures(cfg: DictConfig, folder: Path, run: Run) -> dict[str, Float[Tensor, "K 3 T T"]]:
    """What the records of a run look like; those that failed are left out."""
    tile = run.config["tile"]
    prior = instantiate_trusted(cfg.prior).to(run.device)
    renderer = instantiate_trusted(cfg.inverter.renderer, size=tile)
    data: ImageSet = instantiate_trusted(cfg.data)
    store, found = RecordStore(folder / "records"), {}
    for index, name in enumerate(data.names):
        if (guess := store.read(name).found) is None:
            continue
        views, estimate = data[index], render(guess.to(run.device), prior, renderer)
        photograph = resize_bilinear(composite(views.rgb, views.mask), tile)
        found[name] = torch.cat([photograph, estimate.image.over(1.0).cpu(), sides(estimate, renderer)])
    return found


def lay_out(outcomes: Sequence[Outcome], table: Table, folder: Path) -> None:
    """Write the page and its pictures: on the sheet a photograph has a row of its own for each method."""
    figures: dict[str, list[Figure]] = {}
    sheet: list[Tensor] = []
    for number, name in enumerate(sorted({name for outcome in outcomes for name in outcome.pictures})):
        figures[name] = []
        for outcome in outcomes:
            if name not in outcome.pictures:
                figures[name].append(Figure(None, "could not be reconstructed"))
                continue
            shown = outcome.pictures[name]
            sheet.append(shown)
            path = Path("pictures") / f"{number:03d}_{outcome.folder.name}.png"
            write_png(folder / path, grid(shown, columns=len(shown)))
            model = beside(stem_of(name, Path(outcome.folder.name) / "meshes"), ".glb")
            links = {"GLB": str(model)} if (folder / model).is_file() else {}
            figures[name].append(Figure(str(path), name, links))
    if sheet:
        write_png(folder / "side_by_side.png", grid(torch.cat(sheet), columns=len(sheet[0])))
    with written_aside(folder / "index.html") as aside:
        aside.write_text(page(table, TEXT, [outcome.title for outcome in outcomes], figures))


if __name__ == "__main__":
    demo()

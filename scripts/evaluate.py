"""Measure the records of an inversion by named protocols: render them again and compare.

    python scripts/evaluate.py experiment=meshinv_invert_synthetic
    python scripts/evaluate.py experiment=meshinv_invert_synthetic protocols=[iou_gt,fid10_true]
    python scripts/evaluate.py experiment=meshinv_invert_synthetic worst={count:16}    # a sheet of the worst
    torchrun --nproc_per_node=4 scripts/evaluate.py experiment=meshinv_invert_cub reals.split=testval

Prints a table and writes result.json to <inversion>/evaluation, after every protocol. The protocols are in
configs/protocol. What cannot be measured here, because weights or ground truth are missing, is named below the table
with the reason; the rest is measured all the same.
If the inversion has a page (<inversion>/index.html), the numbers are added to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.evaluation.boxes import BoxedRecords
from invkit.evaluation.evaluator import contact_sheet, measure, render, statuses
from invkit.evaluation.instruments import Instruments
from invkit.evaluation.page import read
from invkit.evaluation.protocol import EvaluationProtocol
from invkit.evaluation.viewer import write_page
from invkit.evaluation.viewpoints import Frame
from invkit.images import write_png
from invkit.inversion.records import RecordStore
from invkit.metrics.voxels import Grid
from invkit.protocols import Prior, Renderer
from invkit.runtime.files import written_aside
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Guess
from meshinv.solid import solid as mesh_solid
from nerfinv.field import RadianceField
from nerfinv.solid import solid as field_solid

WORST = {"count": 16, "protocol": "iou_input", "metric": "iou", "higher_is_better": True}
"""What `worst` says if it does not say otherwise."""


@main(config_name="evaluate")
def evaluate(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        protocols = chosen(cfg)
        if cfg.worst is not None and not (isinstance(cfg.worst, Mapping) and set(cfg.worst) <= set(WORST)):
            raise ValueError(f"worst={cfg.worst}: give some of {', '.join(WORST)}, such as worst={{count:16}}")
        store = RecordStore(Path(cfg.inversion) / "records", refined=cfg.refined)
        if not len(store):
            raise ValueError(
                f"there are no records in {store.dir}; run scripts/invert.py first, or give inversion=FOLDER"
            )
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = instantiate_trusted(cfg.inverter.renderer)
        dataset = instantiate_trusted(cfg.data, **boxed(cfg))
        if boxed(cfg):
            store = BoxedRecords(store, dataset)
        result = {**statuses(store, dataset), "protocols": {}}
        measured = measure(
            store, prior, renderer, dataset, protocols, instruments(cfg), batch_size=cfg.batch_size, device=run.device
        )
        for name, values in measured:
            result["protocols"][name] = values
            run.result(result)
        result["protocols"] = {name: result["protocols"][name] for name in protocols}
        run.result(result)
        if run.rank == 0 and cfg.worst is not None:
            draw_worst({**WORST, **cfg.worst}, result, prior, renderer, dataset, store, run)
        if run.rank == 0 and cfg.page:
            show(Path(cfg.inversion), result["protocols"], single_file=cfg.single_file)
        if run.rank == 0:
            # Of boxes, or refined, the overlap is another one than the search's.
            for line in [*table(result), *(() if refined(store) or boxed(cfg) else changed(result))]:
                run.log.message(line)


def chosen(cfg: DictConfig) -> dict[str, EvaluationProtocol]:
    """The protocols to measure, by name.

    Raises:
        ValueError: there is none of such a name.
    """
    names = list(cfg.protocol) if cfg.protocols is None else list(cfg.protocols)
    if unknown := [name for name in names if name not in cfg.protocol]:
        raise ValueError(f"protocols: there is no {', '.join(unknown)}; there are {', '.join(cfg.protocol)}")
    return {name: instantiate_trusted(cfg.protocol[name]) for name in names}


def boxed(cfg: DictConfig) -> dict[str, bool]:
    """Settings of the data where uncut photographs were searched and boxes are measured (an experiment's `boxes`)."""
    return {"whole_image": False} if cfg.get("boxes") else {}


def instruments(cfg: DictConfig) -> Instruments:
    """What is measured with, made when it is needed."""

    def recipe(node: Any, **overrides: Any) -> Callable[[], Any] | None:
        return None if node is None else partial(instantiate_trusted, node, **overrides)

    return Instruments(
        networks={name: recipe(node) for name, node in cfg.networks.items()},
        perceptual={name: recipe(node) for name, node in cfg.perceptual.items()},
        reals=recipe(cfg.data, **boxed(cfg), **cfg.reals),
        train=recipe(cfg.get("training_data", cfg.data), **boxed(cfg), **cfg.trained_on),
        truth=recipe(cfg.get("true_shapes", cfg.truth)),
        solid=solid,
        grid=instantiate_trusted(cfg.grid),
    )


def draw_worst(
    worst: Mapping[str, Any],
    result: Mapping[str, Any],
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    store: RecordStore,
    run: Run,
) -> None:
    """Draw the images with the worst numbers, the very worst first, and write their names and numbers beside.

    Raises:
        ValueError: that has not been measured, or has no number for each image.
    """
    values = result["protocols"].get(worst["protocol"], {"metrics": {}})["metrics"].get(worst["metric"], {})
    if not values.get("per_image"):
        raise ValueError(f"worst: {worst['metric']} of {worst['protocol']} was not measured image by image")
    names = sorted(values["per_image"], key=values["per_image"].get, reverse=not worst["higher_is_better"])
    names = names[: worst["count"]]
    position = {name: index for index, name in enumerate(dataset.names)}
    views = dataset.batch([position[name] for name in names]).to(run.device)
    with torch.no_grad():
        found = Guess.cat([store.read(name).found for name in names]).to(run.device)
        sheet = contact_sheet(views, render(found, prior, renderer), renderer)
    write_png(run.dir / "worst.png", sheet.cpu())
    with written_aside(run.dir / "worst.json") as aside:
        aside.write_text(json.dumps({name: values["per_image"][name] for name in names}, indent=2) + "\n")
    run.log.message(f"the {len(names)} worst: {run.dir / 'worst.png'}")


def solid(scene: Any, frame: Frame, grid: Grid) -> Tensor:
    """The voxels inside scenes of either method."""
    return (field_solid if isinstance(scene, RadianceField) else mesh_solid)(scene, frame, grid)


def show(folder: Path, protocols: Mapping[str, Any], *, single_file: bool) -> None:
    """Put what was measured on the page of a folder, if it has one."""
    page = read(folder)
    if page is None:
        return
    found = {f"{metric} ({name})": of for name, values in protocols.items() for metric, of in values["metrics"].items()}
    per_image = {name: of["per_image"] for name, of in found.items() if "per_image" in of}
    page = page.with_numbers(per_image, {name: of["value"] for name, of in found.items()})
    write_page(page, folder, single_file=single_file)


def table(result: Mapping[str, Any]) -> list[str]:
    """A line for each number that was measured, then one for each reason why others were not."""
    protocols = result["protocols"]
    width = max(map(len, ["metric", *(metric for of in protocols.values() for metric in of["metrics"])]))
    first = max(map(len, ["protocol", *protocols]))
    lines = [f"{'protocol':<{first}} {'metric':<{width}} {'value':>9} {'images':>7} {'pictures':>9} {'reals':>6}"]
    for name, values in protocols.items():
        counts = f"{values['images']:7} {values['pictures']:9} {values['reals'] or '-':>6}"
        for metric, found in values["metrics"].items():
            mark = " *" if "note" in found else ""
            lines.append(f"{name:<{first}} {metric:<{width}} {found['value']:9.4g} {counts}{mark}")
    notes = {found["note"] for of in protocols.values() for found in of["metrics"].values() if "note" in found}
    lines += [f"* {note}" for note in sorted(notes)]
    lines += not_measured(protocols)
    lines += [f"{name}: not reconstructed: {reason}" for name, reason in result["failed"].items()]
    if result["missing"]:
        lines.append(f"{len(result['missing'])} images have no record yet")
    return lines


def not_measured(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each reason why numbers are missing; result.json has every reason in full, number by number."""
    absent: dict[str, list[tuple[str, str]]] = {}
    for name, values in protocols.items():
        for metric, reason in values["not_measured"].items():
            absent.setdefault(reason, []).append((name, metric))
    lines = []
    for reason, numbers in absent.items():
        names, metrics = (list(dict.fromkeys(column)) for column in zip(*numbers, strict=True))
        lines.append(f"not measured: {several(metrics)} of {several(names)}: {reason.split('. ')[0].rstrip('.')}")
    unreadable = {
        f"{image} cannot be read: {why}" for of in protocols.values() for image, why in of["unreadable"].items()
    }
    lines += sorted(unreadable)
    if absent:
        count = sum(map(len, absent.values()))
        lines.append(f"{count} numbers were not measured; scripts/doctor.py says where missing weights can be found")
    return lines


def several(names: Sequence[str]) -> str:
    """The names; of many the first and how many more."""
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def refined(store: RecordStore) -> bool:
    """Whether records are read with details, by which they look otherwise than when their search ended."""
    return store.refined and store.details.is_dir()


def changed(result: Mapping[str, Any]) -> list[str]:
    """A warning where records no longer look as they did when the search ended: the prior is not the same any more."""
    now = result["protocols"].get("iou_input", {"metrics": {}})["metrics"].get("iou", {"per_image": {}})["per_image"]
    then = result["iou_of_search"]
    different = [name for name, value in now.items() if abs(value - then[name]) > 0.01]
    if not different:
        return []
    return [
        f"{len(different)} of {len(now)} records have another IoU than when their search ended, {different[0]} "
        f"{now[different[0]]:.3f} and not {then[different[0]]:.3f}: was the prior trained on, or another mask given?"
    ]


if __name__ == "__main__":
    evaluate()

"""Make a table of a paper: run and measure every row that is missing, and show our numbers beside the published ones.

    python scripts/table.py table=meshinv_table4_synthetic
    torchrun --nproc_per_node=4 scripts/table.py table=meshinv_table1_cub
    python scripts/table.py runs='runs/sweep/*'            # runs nothing: the numbers of existing runs
    python scripts/table.py table=meshinv_table4_synthetic magnitudes=16
    python scripts/table.py table=nerfinv_table1_cub dry_run=true      # says what would run, and what is missing for it

Writes table.md, table.tex and table.json to runs/<table>. The run of each row is below that folder: scripts/invert.py
and then scripts/evaluate.py with the overrides of the row. Run the same command again to resume; finished rows are
kept. If a row cannot be run here, the table says why, and the others are run.
"""

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from glob import glob
from pathlib import Path
from typing import Any

import torch
from doctor import missing
from evaluate import evaluate
from hydra import compose
from hydra.errors import HydraException
from invert import chosen, invert
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from invkit.evaluation.report import Column, Row, Table, name_of
from invkit.inversion.inverter import Inverter
from invkit.inversion.schedule import MESHINVERSION_STAGES
from invkit.runtime import dist
from invkit.runtime.files import written_aside
from invkit.runtime.run import LAST_CONFIG, Run, differences, instantiate_trusted, main
from invkit.types import Views

# Without the command line around them, which ends the process where a user has made a mistake.
run_inversion, run_evaluation = inspect.unwrap(invert), inspect.unwrap(evaluate)

Rows = Mapping[str, tuple[Row, Mapping[str, str]]]
"""The rows by name, each with the columns whose numbers are not there, and why."""

MISTAKES = (ValueError, FileNotFoundError, OmegaConfBaseException, HydraException)


@main(config_name="table")
def table(cfg: DictConfig) -> None:
    if cfg.dry_run:
        print("\n".join(dry_run(OmegaConf.to_container(cfg, resolve=True))))
        return
    with Run(cfg, frozen=False) as run:
        wanted = run.config["table"]
        if cfg.magnitudes is not None:
            for name, row in runnable(wanted).items():
                print_magnitudes(name, overrides(run.config, row), cfg.magnitudes, run)
            return
        reasons: dict[str, str] = {}
        for name, row in {} if cfg.runs else runnable(wanted).items():
            run.log.message(f"{name}: python scripts/invert.py {shlex.join(overrides(run.config, row))}")
            try:
                make(row, run.dir / name, run)
            except MISTAKES as error:
                reasons[name] = str(error)
                run.log.message(f"{name}: cannot be run: {error}")
        if run.rank == 0:
            rows = of_runs(cfg.runs, wanted) if cfg.runs else of_table(wanted, run.dir, reasons)
            write(table_of(wanted, rows), rows, run)


# ---- Running the rows ------------------------------------------------------------------------------------------------


def runnable(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that are ours; the others are only quoted."""
    return {name: row for name, row in wanted["rows"].items() if row["overrides"] is not None}


def overrides(config: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The command line of a row, for scripts/invert.py and scripts/evaluate.py alike.

    A row with an experiment of its own, as another method has, does not share the overrides of the other rows.
    """
    wanted = config["table"]
    if "experiment" in row:
        shared = [f"experiment={row['experiment']}"]
    else:
        shared = [f"experiment={wanted['experiment']}", *written(wanted["overrides"])]
    return [*shared, *written(row["overrides"]), *config["overrides"]]


def of_evaluation(config: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """What scripts/evaluate.py is given beside; a row with an experiment of its own says that itself."""
    return written(row.get("evaluation", {} if "experiment" in row else config["table"]["evaluation"]))


def written(settings: Mapping[str, Any]) -> list[str]:
    """Settings as Hydra's command line takes them; what a key that begins with ~ is set to does not matter."""

    def value(of: Any) -> str:
        if isinstance(of, Mapping):
            return f"{{{','.join(f'{key}:{value(inner)}' for key, inner in of.items())}}}"
        if isinstance(of, list):
            return f"[{','.join(map(value, of))}]"
        return of if isinstance(of, str) else json.dumps(of)

    return [key if key.startswith("~") else f"{key}={value(setting)}" for key, setting in settings.items()]


def make(row: Mapping[str, Any], folder: Path, run: Run) -> None:
    """Search what is not yet searched, and measure it unless it has been measured just so.

    Raises:
        MISTAKES: it cannot be done here.
    """
    wanted = run.config["table"]
    same = [*overrides(run.config, row), f"run.device={run.config['run']['device']}", f"run.seed={run.seed}"]
    run_inversion(compose("invert", [*same, f"run.dir={folder}", f"limit={json.dumps(wanted['images'])}"]))
    protocols = sorted({column["protocol"] for column in wanted["columns"].values()} | set(wanted.get("protocols", [])))
    config = compose(
        "evaluate",
        [*same, *of_evaluation(run.config, row), f"inversion={folder}", f"protocols=[{','.join(protocols)}]"],
    )
    if not dist.broadcast_value(run.rank == 0 and is_measured(folder, config)):
        run_evaluation(config)


def is_measured(folder: Path, config: DictConfig) -> bool:
    """Whether the evaluation of an inversion is whole, newer than all records, and made with the same settings."""
    result, before = folder / "evaluation" / "result.json", folder / "evaluation" / LAST_CONFIG
    if not (result.is_file() and before.is_file()):
        return False
    if differences(OmegaConf.to_container(OmegaConf.load(before)), OmegaConf.to_container(config, resolve=True)):
        return False
    newest = max((path.stat().st_mtime for path in (folder / "records").glob("*.pt")), default=0.0)
    is_whole = set(config.protocols) <= read(result)["protocols"].keys()
    return is_whole and newest <= result.stat().st_mtime


def dry_run(config: Mapping[str, Any]) -> Iterator[str]:
    """In words, what the rows would run, and what of it is not here; nothing is run or written."""
    wanted = config["table"]
    ours = runnable(wanted)
    quoted = [row for row in wanted["rows"] if row not in ours]
    yield f"{wanted['title']}: {len(ours)} rows to run" + (
        f", {len(quoted)} quoted ({', '.join(quoted)})" if quoted else ""
    )
    for name, row in ours.items():
        line = overrides(config, row)
        yield f"{name}: python scripts/invert.py {shlex.join(line)}"
        yield f"    then scripts/evaluate.py {shlex.join(of_evaluation(config, row))}".rstrip()
        try:
            search = OmegaConf.to_container(compose("invert", line), resolve=True)
            evaluation = OmegaConf.to_container(compose("evaluate", [*line, *of_evaluation(config, row)]), resolve=True)
            yield f"    {size_of(search, wanted['images'])}"
            needed = {key: search.get(key) for key in ("prior", "data", "training_data", "inverter")}
            absent = dict(missing(needed, {}))
            networks = {column["metric"].partition("@")[2] for column in wanted["columns"].values()} - {""}
            measuring = {name: node for name, node in evaluation["networks"].items() if name in networks}
            unmeasured = dict(missing(measuring, {}))
        except MISTAKES as error:
            yield f"    does not compose: {error}"
            continue
        yield f"    missing: {', '.join(absent)}" if absent else "    everything is here for the search"
        if unmeasured:
            yield f"    not measured without {', '.join(unmeasured)}"


def size_of(search: Mapping[str, Any], images: int | None) -> str:
    """How many images and steps a search has, as far as that can be told."""
    node = search["inverter"].get("stages")
    if isinstance(node, list):
        stages = [instantiate_trusted(stage) for stage in node]
    else:
        stages = MESHINVERSION_STAGES if node is None else instantiate_trusted(node)
    steps = sum(stage.steps for stage in stages)
    try:
        count = len(instantiate_trusted(search["data"]))
        count = count if images is None else min(count, images)
    except (FileNotFoundError, ValueError):
        count = "an unknown number of" if images is None else images
    return f"{count} images, {steps} steps each"


# ---- From results to a table -----------------------------------------------------------------------------------------


def of_table(wanted: Mapping[str, Any], folder: Path, reasons: Mapping[str, str]) -> Rows:
    """The rows of a table, as far as they have been run."""
    rows = {}
    for name, row in wanted["rows"].items():
        known = Row(row["labels"], paper=row.get("paper") or {})
        if row["overrides"] is None or name in reasons:
            rows[name] = (known, dict.fromkeys(wanted["columns"], reasons[name]) if name in reasons else {})
        else:
            rows[name] = measured(known, folder / name, wanted["columns"])
    return rows


def of_runs(pattern: str, wanted: Mapping[str, Any]) -> Rows:
    """Existing runs as rows: those whose folders the pattern names.

    Raises:
        ValueError: there are none with a result.
    """
    folders = sorted(path for path in map(Path, glob(pattern)) if (path / "result.json").is_file())
    if not folders:
        raise ValueError(f"runs={pattern}: no folder of such a name has a result.json")
    blanks = [""] * (len(wanted["labels"]) - 1)
    return {str(path): measured(Row([str(path), *blanks]), path, wanted["columns"]) for path in folders}


def measured(row: Row, folder: Path, columns: Mapping[str, Any] | None) -> tuple[Row, dict[str, str]]:
    """The row with the numbers that a run has left, and why others are not there.

    Args:
        columns: null takes every number in result.json, and of every protocol of the evaluation.
    """
    evaluation = folder / "evaluation" / "result.json"
    protocols = read(evaluation)["protocols"] if evaluation.is_file() else {}
    if columns is None:
        own = dict(numbers(read(folder / "result.json")))
        found = {
            f"{protocol} {metric}": value["value"]
            for protocol, values in protocols.items()
            for metric, value in values["metrics"].items()
        }
        return Row(row.labels, {**own, **found}, row.paper), {}
    ours: dict[str, float] = {}
    per_image: dict[str, Mapping[str, float]] = {}
    absent: dict[str, str] = {}
    for name, column in columns.items():
        values = protocols.get(column["protocol"], {"metrics": {}, "not_measured": {}})
        if column["metric"] in values["metrics"]:
            metric = values["metrics"][column["metric"]]
            ours[name] = metric["value"]
            if "per_image" in metric:
                per_image[name] = metric["per_image"]
        else:
            absent[name] = values["not_measured"].get(column["metric"], "not measured")
    return Row(row.labels, ours, row.paper, per_image), absent


def numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a result.json by their dotted keys, without those of single images."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            if key not in ("images", "per_image"):
                yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, float(value)


def columns_of(columns: Mapping[str, Any]) -> list[Column]:
    """Columns as configurations describe them, by name."""
    return [Column(name, column["digits"], column["higher_is_better"]) for name, column in columns.items()]


def table_of(wanted: Mapping[str, Any], rows: Rows) -> Table:
    """The table, with notes on what is missing and on the order of the rows."""
    shown = [row for row, _ in rows.values()]
    if wanted["columns"] is None:
        columns = [Column(name, 4) for name in dict.fromkeys(name for row in shown for name in row.ours)]
    else:
        columns = columns_of(wanted["columns"])
    made = Table(wanted["title"], wanted["labels"], columns, shown, wanted["comparable"])
    published = any(row.paper for row in shown)
    notes = [f"paper: {wanted['source']}"] if published else []
    if published and not made.comparable:
        notes.append("measured on other data than the published numbers: only the order of the rows can be compared")
    if wanted["columns"] is not None:
        for better in (True, False):
            names = [column.name for column in columns if column.higher_is_better is better]
            notes += [f"{'higher' if better else 'lower'} is better: {', '.join(names)}"] if names else []
        notes += said_of_order(made)
    notes += reasons_of(rows)
    return Table(made.title, made.labels, made.columns, made.rows, made.comparable, notes)


def reasons_of(rows: Rows) -> Iterator[str]:
    """Each reason why something is missing, once, and where."""
    why: dict[str, dict[str, list[str]]] = {}
    for name, (_, absent) in rows.items():
        for column, reason in absent.items():
            why.setdefault(" ".join(reason.split()), {}).setdefault(name, []).append(column)
    for reason, places in why.items():
        where = [f"{', '.join(columns)} of {name}" for name, columns in places.items()]
        yield f"missing: {'; '.join(where)}: {reason}"


def said_of_order(made: Table) -> Iterator[str]:
    """In words, how the rows of each column follow each other."""
    for column, order in made.order().items():
        parts = []
        if order.rank_correlation is not None:
            parts.append(f"rank correlation with the paper {order.rank_correlation:+.2f} over {order.rows} rows")
            parts.append(f"best of ours: {order.best_of_ours}; of the paper's: {order.best_of_paper}")
        if order.undecided:
            parts.append(f"within two standard errors of the last row: {'; '.join(order.undecided)}")
        if parts:
            yield f"{column}: {'. '.join(parts)}"


def write(made: Table, rows: Rows, run: Run) -> None:
    """Print the table, and write it in three forms."""
    for name, text in {"table.md": made.markdown(), "table.tex": made.latex()}.items():
        with written_aside(run.dir / name) as aside:
            aside.write_text(text)
    content = {
        "title": made.title,
        "comparable": made.comparable,
        "rows": {
            name: {
                "name": name_of(row),
                "labels": dict(zip(made.labels, row.labels, strict=True)),
                "ours": row.ours,
                "paper": row.paper,
                "difference": {
                    key: row.ours[key] - row.paper[key] for key in row.ours if made.comparable and key in row.paper
                },
                "missing": absent,
            }
            for name, (row, absent) in rows.items()
        },
        "order": {name: asdict(order) for name, order in made.order().items()},
        "notes": list(made.notes),
    }
    with written_aside(run.dir / "table.json") as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n")
    run.log.message(made.plain())


def read(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same command again") from error


# ---- What terms weigh ------------------------------------------------------------------------------------------------


def print_magnitudes(name: str, command: Sequence[str], count: int, run: Run) -> None:
    """Print the `magnitudes` of a row's terms, at the first guess.

    Terms pull as their gradients are long; a value may hold a constant.
    """
    try:
        config = compose("invert", [*command, f"run.dir={run.dir / name}", f"limit={count}"])
        inverter = instantiate_trusted(config.inverter, prior=instantiate_trusted(config.prior).to(run.device))
        dataset = chosen(instantiate_trusted(config.data), config.names, config.limit)
        lengths = magnitudes(inverter, dataset.batch(range(len(dataset))).to(run.device))
    except MISTAKES as error:
        run.log.message(f"{name}: {error}")
        return
    for term, (value, gradient) in lengths.items():
        weight = inverter.objective.terms[term].weight
        run.log.message(f"{name:<24} {term:<12} weight {weight:<8g} value {value:<10.4g} gradient {gradient:.4g}")


def magnitudes(inverter: Inverter, views: Views) -> dict[str, tuple[float, float]]:
    """Term -> mean over images of its weighted value, and of the length of its gradient with respect to the latent."""
    targets = inverter.objective.targets(views)
    _, start = inverter.begin(targets)
    latent = start.latent.clone().requires_grad_()
    with torch.enable_grad():
        values = inverter.objective(inverter.estimate(replace(start, latent=latent)), targets)
        slopes = {name: torch.autograd.grad(v.sum(), latent, retain_graph=True)[0] for name, v in values.items()}
    lengths = {name: slope.flatten(1).norm(dim=1) for name, slope in slopes.items()}
    return {name: (float(value.detach().mean()), float(lengths[name].mean())) for name, value in values.items()}


if __name__ == "__main__":
    table()

"""Reduce a training run to one small file with the network, and write a card that says how it was made.

    python scripts/publish.py runs/meshinv_pretrain_synthetic generator_ema meshinv/checkpoints/synthetic_birds.pt

    python scripts/publish.py runs/meshinv_pretrain_synthetic generator_ema my_birds.pt --best

What only the training needs (optimizers, discriminators) is left out. The file is an ordinary checkpoint, which
`invkit.runtime.run.load_module` reads like the run itself. The card is written beside it in Markdown.
"""

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path

import torch

from invkit.runtime import checkpoint
from invkit.runtime.files import written_aside

PAUSE = 600.0
"""A gap between two log lines longer than this, in seconds, is a break of the run and not training time."""


def publish(run: Path, state: str, target: Path, *, half: bool, best: bool = False) -> Path:
    """The card of the file written to `target`.

    Args:
        state: name of the weights among the run's modules.
        half: store floating-point numbers in 16 bits; they are loaded back into 32.
        best: take the state with the best score instead of the newest.

    Raises:
        FileNotFoundError: the run has no checkpoint, or none that was kept for its score.
        ValueError: it has no such weights; the checkpoint is damaged.
    """
    step, payload = best_of(run) if best else newest_of(run)
    if state not in payload["modules"]:
        raise ValueError(f"{run} has no weights named {state}, only {sorted(payload['modules'])}")
    weights = payload["modules"][state]
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    checkpoint.save(target, {"step": step, "config": payload["config"], "modules": {state: weights}})
    card = target.with_suffix(".md")
    with written_aside(card) as aside:
        aside.write_text(describe(run, state, target, step, payload.get("score"), payload["config"]))
    return card


def newest_of(run: Path) -> tuple[int, dict]:
    """Step and content of the newest checkpoint."""
    newest = checkpoint.Checkpoints(run / "checkpoints").latest()
    if newest is None:
        raise FileNotFoundError(f"{run / 'checkpoints'} holds no checkpoint; is the training still to be run?")
    return newest


def best_of(run: Path) -> tuple[int, dict]:
    """Step and content of the checkpoint kept for its score."""
    file = checkpoint.Checkpoints(run / "checkpoints").best
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: the run was not measured; without --best its newest is taken")
    payload = checkpoint.load(file)
    return payload["step"], payload


def describe(run: Path, state: str, target: Path, step: int, score: float | None, config: dict) -> str:
    """The card: command, seed, data, time, machine, digest; of the run up to `step`.

    Args:
        score: for which this step was chosen; None where it is the newest.
    """
    version = json.loads((run / "version.json").read_text())
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # What was logged after the step is not about these weights; messages have no step.
    entries = list(takewhile(lambda entry: entry.get("step", 0) <= step, entries))
    times = [entry["time"] for entry in entries]
    gaps = [after - before for before, after in pairwise(times)]
    minutes = sum(gap for gap in gaps if gap < PAUSE) / 60
    numbers = {key: value for entry in entries for key, value in entry.items() if "/" in key}
    node = config["task"]["data"]
    data = Path(node["root"] if "root" in node else node["dataset"]["root"])
    files = files_of(data)
    rows = {
        "weights": f"`{state}` after {step} steps, {target.stat().st_size / 2**20:.1f} MiB",
        **({} if score is None else {"chosen": f"the best of the run: score {score:.4g} after step {step}"}),
        "SHA-256": f"`{hashlib.sha256(target.read_bytes()).hexdigest()}`",
        "command": f"`python scripts/train.py experiment={config['run']['name']}`",
        "seed": config["run"]["seed"],
        "data": f"`{data}`, {len(files)} files, SHA-256 `{digest(files)}`",
        "time": f"{minutes:.0f} minutes",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
        "versions": f"package {version['package']} (commit {version['commit']}"
        + (" with local changes" if version["dirty"] else "")
        + f"), torch {version['torch']}, "
        f"Python {version['python']}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    last = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(numbers.items()))
    return f"# {target.stem}\n\n| | |\n| --- | --- |\n{table}\n\nLast values logged:\n\n| | |\n| --- | --- |\n{last}\n"


def files_of(folder: Path) -> list[Path]:
    """The arrays in a folder, sorted by name; where there are none, all that lies in it and below."""
    return sorted(folder.glob("*.npz")) or sorted(path for path in folder.rglob("*") if path.is_file())


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("state", help="name of the weights, such as generator_ema")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--half", action="store_true", help="store 16-bit floating-point numbers")
    parser.add_argument("--best", action="store_true", help="take the checkpoint with the best score, not the newest")
    options = parser.parse_args()
    try:
        print(publish(options.run, options.state, options.target, half=options.half, best=options.best))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()

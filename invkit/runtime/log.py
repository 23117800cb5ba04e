"""What a run tells: JSON lines always, progress on the console, Weights & Biases when asked.

`log.jsonl` is the record: one object per line, flushed at once; a resumed run repeats no line.
"""

import json
import math
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from invkit.runtime.files import remove_abandoned, written_aside
from invkit.runtime.pace import Pace, duration

CONSOLE_INTERVAL = 10.0
"""Seconds between two progress lines where lines cannot be overwritten (a file, a job's output)."""


class Log:
    """The voice of one run. Every method returns at once on a process that is not the main one.

    Args:
        dir: the run folder; holds `log.jsonl` and `images/`.
        total_steps: how many there will be, for the remaining time.
        wandb: keywords for `wandb.init` such as project, name and mode (online, offline); None for no W&B.
            A resumed run continues the run whose id is kept in `wandb_id.txt`; what it repeats appears twice there.
    """

    def __init__(
        self, dir: Path, *, total_steps: int | None = None, wandb: Mapping[str, Any] | None = None, main: bool = True
    ) -> None:
        self.dir = Path(dir)
        self.total_steps = total_steps
        self.main = main
        self._wandb = None
        if not main:
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        for folder in (self.dir, self.dir / "images"):
            remove_abandoned(folder)
        self._path = self.dir / "log.jsonl"
        self._keep_lines()
        self._pace: Pace | None = None
        self._spoke = -math.inf
        self._overwrites = sys.stdout.isatty()
        if wandb is not None:
            self._wandb = _open_wandb(self.dir, wandb)

    def resume(self, step: int, total_steps: int) -> None:
        """Continue after `step` steps: what was logged of later ones is dropped, and the clock starts."""
        if not self.main:
            return
        self.total_steps = total_steps
        self._keep_lines(up_to=step)
        self._pace = Pace(step, time.monotonic(), steady=True)

    def scalars(self, step: int, values: Mapping[str, float | int | Tensor], prefix: str = "") -> None:
        """Record numbers as they are after `step` steps, under `prefix` + name; a non-finite one becomes null."""
        if not self.main:
            return
        numbers = {prefix + name: float(value) for name, value in values.items()}
        self._write({"step": step, **{name: v if math.isfinite(v) else None for name, v in numbers.items()}})
        if self._wandb is not None:
            self._wandb.log(step, numbers)
        self._progress(step, numbers)

    def image(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Write `images/<name>-<step>.png` from values in [-1, 1]; `invkit.images.grid` makes one image of many."""
        if not self.main:
            return
        pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
        with written_aside(self.dir / "images" / f"{name}-{step:08d}.png") as aside:
            picture.save(aside, format="png")
        if self._wandb is not None:
            self._wandb.image(step, name, picture)

    def message(self, text: str) -> None:
        """Say one thing, on a line of its own."""
        if not self.main:
            return
        self._write({"message": text})
        self._print(text)

    def close(self) -> None:
        if self.main and self._wandb is not None:
            self._wandb.close()
            self._wandb = None

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "time": round(time.time(), 3)}) + "\n")

    def _keep_lines(self, up_to: int | None = None) -> None:
        """Drop lines of later steps, and the torn last line of a killed writer."""
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        entries = [(_parsed(line), line) for line in lines]
        kept = [line for entry, line in entries if entry and (up_to is None or entry.get("step", 0) <= up_to)]
        if kept != lines:
            with written_aside(self._path) as aside:
                aside.write_text("".join(kept), encoding="utf-8")

    def _progress(self, step: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._pace is None:
            self._pace = Pace(step, now, steady=True)
        self._pace.add(step, now)
        last = step == self.total_steps
        if not last and not self._overwrites and now - self._spoke < CONSOLE_INTERVAL:
            return
        self._spoke = now
        of_total = "" if self.total_steps is None else f"/{self.total_steps}"
        parts = [f"step {step}{of_total}"]
        if seconds := self._pace.seconds_per_item():
            parts.append(_rate(1 / seconds))
            if self.total_steps is not None and not last:
                parts.append(f"{duration(self._pace.seconds_left(self.total_steps))} left")
        parts += [f"{name} {value:.4g}" for name, value in numbers.items()]
        self._print("  ".join(parts), over=not last)

    def _print(self, text: str, over: bool = False) -> None:
        """A line; on a terminal, one that the next line replaces if `over`."""
        start = "\r\x1b[K" if self._overwrites else ""
        print(start + text, end="" if over and self._overwrites else "\n", flush=True)


class _Wandb:
    """An open W&B run. Values carry their step as a plain quantity, for W&B itself refuses steps that go back."""

    def __init__(self, run: Any, image: Any) -> None:
        self.run = run
        self._image = image
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        self.run.log({"step": step, name: self._image(picture)})

    def close(self) -> None:
        self.run.finish()


def _open_wandb(dir: Path, settings: Mapping[str, Any]) -> _Wandb:
    import wandb  # here alone: it is slow to import and most runs do without it

    id_path = dir / "wandb_id.txt"
    if not id_path.is_file():
        with written_aside(id_path) as aside:
            aside.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    run = wandb.init(dir=str(dir), id=id_path.read_text(encoding="utf-8").strip(), resume="allow", **settings)
    return _Wandb(run, wandb.Image)


def _parsed(line: str) -> dict[str, Any] | None:
    """The line's object; None where the line is torn."""
    try:
        entry = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _rate(steps_per_second: float) -> str:
    return f"{steps_per_second:.2f} step/s" if steps_per_second >= 1 else f"{1 / steps_per_second:.2f} s/step"

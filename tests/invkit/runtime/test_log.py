import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import invkit.runtime.log
from invkit.runtime.log import Log


def entries(dir) -> list[dict]:
    return [json.loads(line) for line in (dir / "log.jsonl").read_text().splitlines()]


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(invkit.runtime.log.time, "monotonic", lambda: self.now)


def test_every_call_is_a_line_on_the_disk_at_once(tmp_path):
    log = Log(tmp_path)
    log.scalars(3, {"loss": torch.tensor(0.5), "count": 2}, prefix="train/")
    assert entries(tmp_path)[0].items() >= {"step": 3, "train/loss": 0.5, "train/count": 2.0}.items()
    log.message("halfway")
    log.scalars(4, {"loss": float("nan")})
    assert entries(tmp_path)[1]["message"] == "halfway"
    assert entries(tmp_path)[2]["loss"] is None, "NaN is not JSON"


def test_a_resumed_log_has_no_line_twice_and_no_torn_line(tmp_path):
    log = Log(tmp_path)
    for step in (10, 20, 30):
        log.scalars(step, {"loss": 1.0})
    log.message("a word between")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    (tmp_path / ".log.jsonl.7.partial").write_text("left by a killed writer")

    log = Log(tmp_path)
    assert [entry.get("step") for entry in entries(tmp_path)] == [10, 20, 30, None]
    log.resume(20, 50)
    log.scalars(30, {"loss": 2.0})
    assert [(e.get("step"), e.get("loss")) for e in entries(tmp_path)] == [
        (10, 1.0),
        (20, 1.0),
        (None, None),
        (30, 2.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_only_the_main_process_writes(tmp_path, capsys):
    log = Log(tmp_path / "run", main=False, wandb={"mode": "offline"})
    log.resume(1, 2)
    log.scalars(1, {"loss": 1.0})
    log.image(1, "sample", torch.zeros(3, 2, 2))
    log.message("hello")
    log.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_progress_in_a_file_comes_at_intervals_with_rate_and_remaining_time(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    log = Log(tmp_path)
    log.resume(100, 1000)
    for step in range(110, 1001, 10):  # 2 steps a second, logged every 5 seconds
        clock.now += 5.0
        log.scalars(step, {"loss": 1 / 3})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 110/1000  2.00 step/s  0:07:25 left  loss 0.3333"
    assert lines[1] == "step 130/1000  2.00 step/s  0:07:15 left  loss 0.3333", "nothing at 120, 5 seconds later"
    assert lines[-1] == "step 1000/1000  2.00 step/s  loss 0.3333"
    assert len(lines) == 46


def test_slow_steps_are_told_in_seconds_each(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    log = Log(tmp_path, total_steps=3)
    log.scalars(1, {})
    clock.now += 4000
    log.scalars(2, {})
    assert capsys.readouterr().out.splitlines() == ["step 1/3", "step 2/3  4000.00 s/step  1:06:40 left"]


def test_progress_on_a_terminal_overwrites_itself(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    log = Log(tmp_path)
    log.resume(0, 2)
    log.scalars(1, {})
    log.message("note")
    log.scalars(2, {})
    shown = terminal.getvalue()
    assert shown.count("\n") == 2, "the note and the last step"
    assert shown.startswith("\r\x1b[Kstep 1/2")
    assert "\r\x1b[Knote\n" in shown


def test_an_image_is_a_png_of_the_same_pixels(tmp_path):
    values = torch.linspace(-1.2, 1.2, 3 * 5 * 7).reshape(3, 5, 7)
    Log(tmp_path).image(12, "sample", values)
    pixels = np.asarray(Image.open(tmp_path / "images" / "sample-00000012.png"))
    expected = np.rint((np.clip(values.numpy().astype(np.float64), -1, 1) + 1) / 2 * 255)
    assert pixels.shape == (5, 7, 3)
    assert np.abs(pixels.transpose(2, 0, 1) - expected).max() <= 1
    assert pixels.transpose(2, 0, 1)[0, 0, 0] == 0
    assert pixels.transpose(2, 0, 1)[2, -1, -1] == 255
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["sample-00000012.png"]


def test_wandb_is_imported_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    Log(tmp_path).scalars(1, {"loss": 1.0})
    with pytest.raises(ImportError):
        Log(tmp_path, wandb={"mode": "offline"})


@pytest.mark.timeout(60)
def test_wandb_offline_goes_on_under_the_same_id(tmp_path):
    for step in (1, 2):
        log = Log(tmp_path, wandb={"mode": "offline", "project": "test", "name": "toy"})
        log.scalars(step, {"loss": 0.5})
        log.image(step, "sample", torch.zeros(3, 4, 4))
        log.close()
    name = (tmp_path / "wandb_id.txt").read_text()
    folders = [folder.name for folder in (tmp_path / "wandb").glob("offline-run-*")]
    # offline-run-<time>-<id>, and a number behind it for a second run within the same second.
    assert [folder.split("-")[3] for folder in folders] == [name] * len(folders)
    assert folders
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2]

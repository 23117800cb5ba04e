"""What a published file and its card say of the run they come from."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from invkit.runtime import checkpoint

_spec = importlib.util.spec_from_file_location("publish", Path(__file__).parents[1] / "scripts" / "publish.py")
_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_script)
publish = _script.publish

CONFIG = {"run": {"name": "birds", "seed": 4}, "task": {"data": {"root": "nowhere"}}}


@pytest.fixture
def run(tmp_path):
    """A run of 300 steps in a minute and a half, whose best state is that after step 200."""
    folder = tmp_path / "run"
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    lines = [{"message": "begins", "time": 0.0}]
    for step, score in ((100, 0.3), (200, 0.125), (300, 0.2)):
        payload = {"step": step, "config": CONFIG, "modules": {"network": {"weight": torch.tensor([float(step)])}}}
        checkpoints.save(step, payload)
        checkpoints.save_best(step, score, payload)
        lines.append({"step": step, "quality/kid": score, "time": 0.3 * step})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    version = {"package": "1", "commit": "abc", "dirty": False, "torch": "2", "python": "3"}
    (folder / "version.json").write_text(json.dumps(version))
    return folder


@pytest.mark.parametrize(
    "best, step, minutes, kid", [(False, 300, "2 minutes", "0.2"), (True, 200, "1 minutes", "0.125")]
)
def test_the_newest_or_the_best_is_published_with_what_was_logged_until_then(run, tmp_path, best, step, minutes, kid):
    card = publish(run, "network", tmp_path / "small.pt", half=False, best=best).read_text()
    payload = checkpoint.load(tmp_path / "small.pt")
    assert (payload["step"], payload["modules"]["network"]["weight"].item()) == (step, step)
    assert f"after {step} steps" in card
    assert f"| quality/kid | {kid} |" in card
    assert f"| time | {minutes} |" in card
    assert ("score 0.125 after step 200" in card) == best == ("score" in card)


def test_a_run_that_was_never_measured_has_no_best(run, tmp_path):
    (run / "checkpoints" / "best.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"best\.pt: the run was not measured"):
        publish(run, "network", tmp_path / "small.pt", half=False, best=True)
    assert not (tmp_path / "small.pt").exists()


def test_a_damaged_best_is_named(run, tmp_path):
    (run / "checkpoints" / "best.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"best\.pt is damaged"):
        publish(run, "network", tmp_path / "small.pt", half=False, best=True)

"""The benchmark runs its cases and writes down what it measured; how fast that is, is no matter of a test."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["suite=render", "render.sizes=[8]", "render.rings=[4]", "repeats=1"]


@pytest.fixture
def benchmark(monkeypatch):
    """The script as a module, its cases run in this process."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "in_a_process_of_its_own", lambda measure, case: measure(case))
    return module


def settings(*overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose("benchmark", [*SMALL, *overrides]), resolve=True)


def test_the_renderer_is_measured_by_every_method(benchmark, capsys):
    methods = "render.methods=[reference,auto,dense,brute_force]"
    limit = "render.largest.dense=12288"  # one image of 8 x 8 pixels, 192 faces
    rows = list(benchmark.render(settings(methods, "render.batches=[1,2]", limit)))
    assert [(row["method"], row["batch"]) for row in rows] == [
        ("reference", 1),
        ("reference", 2),
        ("auto", 1),
        ("auto", 2),
        ("dense", 1),
        ("brute_force", 1),
        ("brute_force", 2),
    ]
    assert all(row["faces"] == 192 for row in rows)
    assert all(row[name] > 0 for row in rows for name in ("forward_ms", "backward_ms", "cpu_ms"))
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_method_that_is_not_there_is_named(benchmark):
    with pytest.raises(ValueError, match="magic is not one of reference, auto, dense, brute_force"):
        list(benchmark.render(settings("render.methods=[magic]")))


def test_the_script_writes_what_it_prints(tmp_path):
    output = tmp_path / "render.json"
    given = [*SMALL, "render.methods=[reference]", "render.batches=[1]", f"output={output}"]
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(output.read_text())
    assert f"{row['cpu_ms']:.2f}" in done.stdout
    assert row["peak_mb"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["render.json"]
    refused = subprocess.run([*command, "suite=weather"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert refused.returncode == 2
    assert "suite=weather is not one of render" in refused.stderr

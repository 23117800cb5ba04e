"""The benchmark runs its cases and writes down what it measured; how fast that is, is no matter of a test."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["suite=render", "render.sizes=[8]", "render.rings=[4]", "repeats=1"]


@pytest.fixture
def suite(monkeypatch):
    """Suites by name, their cases run in this process."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    measurement = importlib.import_module("benchmarks.measurement")
    monkeypatch.setattr(measurement, "in_a_process_of_its_own", lambda measure, case: measure(case))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def settings(*overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose("benchmark", [*SMALL, *overrides]), resolve=True)


def test_the_renderer_is_measured_by_every_method(suite, capsys):
    methods = "render.methods=[reference,auto,dense,brute_force]"
    limit = "render.largest.dense=12288"  # one image of 8 x 8 pixels, 192 faces
    rows = list(suite("render").rows(settings(methods, "render.batches=[1,2]", limit)))
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


def test_a_method_that_is_not_there_is_named(suite):
    with pytest.raises(ValueError, match="magic is not one of reference, auto, dense, brute_force"):
        list(suite("render").rows(settings("render.methods=[magic]")))


def test_steps_and_parts_of_the_gan_are_measured_with_both_presets(suite, capsys):
    chosen = ["gan.models=[small]", "gan.batches.small=[2]", "seconds=0"]
    rows = list(suite("gan").rows(settings(*chosen)))
    parts = ["generator_step", "discriminator_step"]
    inside = ["generator", "uv_discriminator", "renderer", "patch_discriminator"]
    expected = [(True, part, preset) for part in parts + inside for preset in ("paper", "fast")]
    expected += [(False, part, preset) for part in parts for preset in ("paper", "fast")]
    assert [(row["image_discriminator"], row["part"], row["preset"]) for row in rows] == expected
    assert {(row["preset"], row["precision"]) for row in rows} == {("paper", "float32"), ("fast", "bfloat16")}
    for row, slower in zip(rows[1::2], rows[::2], strict=True):
        assert row["cpu_ms_per_image"] == row["cpu_ms"] / 2
        assert row["ms_per_image"] == row["ms"] / 2
        assert slower["speed"] == 1
        assert row["speed"] == slower["cpu_ms"] / row["cpu_ms"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_measured_step_is_a_step(suite):
    gan = suite("gan")
    case = {"experiment": "meshinv_pretrain_cub", "model": "small", "preset": "paper", "batch": 2}
    task, real = gan.task_and_batch(case | {"image_discriminator": True})
    for name, moved, left in (
        ("generator", task.generator, task.discriminator),
        ("discriminator", task.image_discriminator, task.generator),
    ):
        before = [[parameter.clone() for parameter in network.parameters()] for network in (moved, left)]
        terms = gan.PARTS[f"{name}_step"](task, real)()
        assert set(terms) > {"gradient_norm"}
        changed = [
            any(not torch.equal(old, new) for old, new in zip(olds, network.parameters(), strict=True))
            for olds, network in zip(before, (moved, left), strict=True)
        ]
        assert changed == [True, False]


def test_a_part_that_is_not_there_is_named(suite):
    with pytest.raises(ValueError, match="wings is not one of generator_step"):
        list(suite("gan").rows(settings("gan.parts=[wings]")))


def test_each_part_of_the_inversion_agrees_with_its_naive_form(suite, capsys):
    rows = list(suite("mesh_inversion").rows(settings("+quick=mesh_inversion", "seconds=0")))
    parts = ["mask", "texture", "feature", "init", "step", "inversion", "export"]
    assert [(row["part"], row["form"] == "ours") for row in rows] == [
        (p, ours) for p in parts for ours in (False, True)
    ]
    for naive, ours in zip(rows[::2], rows[1::2], strict=True):
        assert naive["faster"] == 1
        assert ours["faster"] == naive["cpu_ms"] / ours["cpu_ms"]
        # A search of two steps may amplify rounding a little; what is random or forgotten differs by much more.
        assert ours["value_difference"] < (1e-3 if ours["part"] == "inversion" else 1e-5), ours["part"]
        assert ours["gradient_difference"] is None or ours["gradient_difference"] < 1e-3, ours["part"]
    assert {row["part"] for row in rows if row["gradient_difference"] is not None} == set(parts[:3]) | {"step"}
    assert {row["part"]: row["images"] for row in rows} == {part: 2 if part in parts[4:] else 1 for part in parts}
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_forms_are_compared_by_their_time_memory_and_results(suite):
    naive = {"device": "cpu", "cpu_ms": 60.0, "ms": 1.0, "peak_mb": 90.0}
    ours = {"device": "cpu", "cpu_ms": 20.0, "ms": 9.0, "peak_mb": 10.0}
    first, second = {"values": [1.0, 2.0], "gradients": [[3.0, 4.0]]}, {"values": [1.5, 1.0], "gradients": [[3.0, 4.5]]}
    expected = {"faster": 3.0, "smaller": 9.0, "value_difference": 1.0, "gradient_difference": 0.1}
    against_naive = suite("against_naive")
    assert against_naive.compared(ours, second, naive, first) == pytest.approx(expected)
    unmeasurable = ours | {"peak_mb": 0.0, "device": "cuda"}
    found = against_naive.compared(unmeasurable, second | {"gradients": None}, naive, first)
    assert found == {"faster": 1 / 9, "smaller": None, "value_difference": 1.0, "gradient_difference": None}


def test_a_part_of_the_inversion_that_is_not_there_is_named(suite):
    with pytest.raises(ValueError, match="wings is not one of mask, texture"):
        list(suite("mesh_inversion").rows(settings("mesh_inversion.parts=[wings]")))


def test_each_part_of_hybrid_inversion_agrees_with_its_plain_form(suite, capsys):
    rows = list(suite("nerf_inversion").rows(settings("+quick=nerf_inversion", "seconds=0")))
    assert [row["part"] for row in rows[::2]] == ["encoder", "pnp", "step", "inversion"]
    for ours in rows[1::2]:
        assert ours["value_difference"] < 1e-4, ours["part"]
        assert ours["gradient_difference"] is None or ours["gradient_difference"] < 1e-3
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_pictures_of_fields_agree_with_their_plain_form_and_steps_have_their_savings(suite):
    rows = list(suite("nerf").rows(settings("+quick=nerf", "seconds=0")))
    assert [(row["part"], row["form"]) for row in rows] == [
        ("render_backward", "plain"),
        ("render_backward", "ours"),
        ("generator_step", "paper"),
        ("generator_step", "r1_every=8"),
        ("discriminator_step", "paper"),
        ("discriminator_step", "r1_every=8"),
    ]
    differences = [float(word) for word in rows[1]["difference"].split() if word[0].isdigit()]
    assert len(differences) == 3
    assert max(differences) < 1e-3
    assert all(row["cpu_ms"] > 0 for row in rows)


def test_a_form_that_is_not_there_is_named(suite):
    with pytest.raises(ValueError, match="wings is not one of paper"):
        list(suite("nerf").rows(settings("nerf.forms=[wings]")))


def test_medians_leave_out_the_warm_up_and_passes_are_told_apart(suite, monkeypatch):
    measurement = suite("measurement")
    now = {"wall": 0.0, "working": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["working"])
    first, second = iter([9.0, 9.0, 1.0, 2.0, 6.0]), iter([7.0, 7.0, 0.5, 0.25, 0.125])

    def forward() -> float:
        took = next(first)
        now["wall"], now["working"] = now["wall"] + took, now["working"] + took / 2
        return took

    def backward(given: float) -> None:
        assert given in (9.0, 1.0, 2.0, 6.0)
        now["wall"] += next(second)

    cost = measurement.cost({"device": "cpu", "repeats": 3, "seconds": 1000}, forward, backward)
    assert cost.passes == (2000, 250)
    assert cost.working == 1000
    assert cost.repeats == 3


def test_the_peak_is_that_of_the_work():
    program = """
import torch
from benchmarks import measurement
case = {"device": "cpu", "repeats": 1, "seconds": 60}
print(measurement.cost(case, lambda: torch.ones(200 * 2**18).sum()).peak_mb)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "scripts", timeout=300, check=True
    )
    assert 195 < float(done.stdout) < 260


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
    assert "suite=weather is not one of render, gan, mesh_inversion" in refused.stderr


def test_the_script_measures_the_gan_in_processes_of_their_own(tmp_path):
    output = tmp_path / "gan.json"
    given = ["suite=gan", "gan.models=[small]", "gan.batches.small=[1]", "gan.image_discriminator=[false]", "seconds=0"]
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *given, "gan.parts=[generator_step]"]
    done = subprocess.run(
        [*command, "gan.presets=[fast]", f"output={output}"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(output.read_text())
    assert f"{row['cpu_ms']:.1f}" in done.stdout
    assert row["peak_mb"] > 10  # weights and optimizer alone take that


def test_the_texture_loss_needs_a_tenth_of_the_memory_of_the_dense_form(tmp_path):
    output = tmp_path / "texture.json"
    given = ["suite=mesh_inversion", "mesh_inversion.parts=[texture]", "mesh_inversion.sizes.texture=[2048]"]
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *given, "seconds=0", f"output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    dense, ours = json.loads(output.read_text())
    assert (dense["form"], ours["form"]) == ("dense float64", "ours")
    assert dense["peak_mb"] > 2048**2 * 8 / 2**20  # a table of all pairs at least
    assert ours["smaller"] > 10
    assert ours["value_difference"] < 1e-5
    assert f"{ours['faster']:.2f}" in done.stdout

"""scripts/figure.py: curves are the numbers of the runs, and every figure that ships is of rows that its table has."""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir

from invkit.geometry.camera import Camera
from invkit.inversion.records import RecordStore, Trace
from invkit.types import Estimate, Guess, Rendering
from tests.test_configs import CONFIGS, SCRIPTS
from tests.test_table import composed

FIGURES = sorted(path.stem for path in CONFIGS.glob("figure/*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figure", SCRIPTS / "figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script) -> Callable[..., None]:
    def job(*overrides: str) -> None:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            inspect.unwrap(script.figure)(compose("figure", list(overrides)))

    return job


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_rows_of_its_table_and_what_they_are_measured_by(name):
    figure = composed("figure", f"figure={name}")["figure"]
    table = composed("table", *figure["made_by"].removeprefix("python scripts/table.py ").split())["table"]
    assert figure["folder"] == table["name"]
    for panel in figure["panels"]:
        assert panel["rows"].keys() <= table["rows"].keys()
        assert panel.get("paper", {}).keys() <= panel["rows"].keys()
        if "trace" in panel:
            continue
        measured = {protocol for protocol in table["protocols"] if re.fullmatch(rf"{panel['protocol']}_n\d+", protocol)}
        evaluation = [f"protocol=[{','.join(table['evaluation']['protocol'])}]"]
        protocols = composed("evaluate", f"experiment={table['experiment']}", *evaluation)["protocol"]
        assert measured
        for protocol in measured:
            assert protocols[protocol]["steps"] == int(protocol.rpartition("_n")[2])
            assert panel["metric"].partition("@")[0] in protocols[protocol]["metrics"]
        # Whatever a row has kept is on the curve.
        for row in panel["rows"]:
            kept = table["rows"][row]["overrides"]["inverter.snapshots"]
            assert {f"{panel['protocol']}_n{steps}" for steps in kept} <= measured


def result(values: dict[int, float], absent: dict[int, str]) -> str:
    protocols = {
        f"course_input_n{n}": {"metrics": {"psnr": {"value": v}}, "not_measured": {}} for n, v in values.items()
    }
    protocols |= {f"course_input_n{n}": {"metrics": {}, "not_measured": {"psnr": why}} for n, why in absent.items()}
    return json.dumps({"protocols": protocols})


def test_curves_are_the_numbers_of_the_runs(run, tmp_path):
    pytest.importorskip("matplotlib")
    for row, values, absent in (
        ("full_5", {0: 10.0, 30: 12.5, 3: 11.0}, {150: "nothing was kept after 150 steps"}),
        ("full_20", {}, {0: "no weights"}),
    ):
        (tmp_path / row / "evaluation").mkdir(parents=True)
        (tmp_path / row / "evaluation" / "result.json").write_text(result(values, absent))
    run("figure=nerfinv_figure6_cub", f"folder={tmp_path}", "run.device=cpu")
    made = tmp_path / "figure"
    found = json.loads((made / "nerfinv_figure6_cub.json").read_text())["panels"]
    assert [panel["curves"] for panel in found[:3]] == [
        [{"label": "gain 5", "published": False, "x": [0.0, 3.0, 30.0], "y": [10.0, 11.0, 12.5]}],
        [],
        [],
    ]
    assert any("full_20: no psnr" in line and "no weights" in line for line in found[0]["missing"])
    assert [curve["x"] for curve in found[3]["curves"]] == [[0.0, 30.0], [10.0]]
    assert all(curve["published"] for curve in found[3]["curves"])
    heads = {form: (made / f"nerfinv_figure6_cub.{form}").read_bytes()[:60] for form in ("pdf", "svg", "png")}
    assert heads["pdf"].startswith(b"%PDF")
    assert b"<?xml" in heads["svg"]
    assert heads["png"].startswith(b"\x89PNG")


def test_the_course_of_searches_is_averaged_over_images(script, tmp_path):
    guess = Guess(torch.zeros(2, 4), Camera(torch.eye(4)[:2], torch.ones(2), torch.zeros(2, 2), torch.zeros(2)))
    iou = torch.tensor([[0.1, 0.5, 0.5], [0.3, 0.4, 0.9]])
    yes = torch.ones(2, dtype=torch.bool)
    trace = Trace(guess, ("mask",), torch.zeros(2, 3, 1), iou, yes, yes)
    store = RecordStore(tmp_path / "records")
    image = Rendering(torch.zeros(2, 3, 1, 1), torch.zeros(2, 1, 1, 1))
    store.write(["a", "b"], [0, 1], Estimate(guess.latent, guess.camera, None, image), trace)
    x, y = script.of_search(tmp_path)
    assert x == [0.0, 1.0, 2.0]
    assert y == pytest.approx([0.2, 0.45, 0.7])


def test_a_figure_of_nothing_says_how_its_runs_are_made(run, tmp_path):
    with pytest.raises(ValueError, match=r"python scripts/table\.py table=nerfinv_figure6_cub"):
        run("figure=nerfinv_figure6_cub", f"folder={tmp_path / 'none'}", "run.device=cpu")
    assert not (tmp_path / "none").exists()


def test_without_matplotlib_one_line_says_what_to_install(run, tmp_path, monkeypatch):
    (tmp_path / "full_5" / "evaluation").mkdir(parents=True)
    (tmp_path / "full_5" / "evaluation" / "result.json").write_text(result({0: 1.0}, {}))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[figures\]\""):
        run("figure=nerfinv_figure6_cub", f"folder={tmp_path}", "run.device=cpu")

"""The objectives that ship: what the presets say, and that they differ in nothing else."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from invkit.inversion.objective import Objective
from invkit.runtime.run import instantiate_trusted
from invkit.types import Estimate, Views
from meshinv.mesh import UVMaps
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template
from tests.meshinv.formulas import displacement_map
from tests.meshinv.test_chamfer import camera, disc, views

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def objective(name: str) -> Objective:
    network = [] if name == "meshinv_pixels" else ["feature"]
    overrides = [f"objective.terms.{term}.function.appearance.network.weights=random" for term in network]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return instantiate_trusted(compose(f"objective/{name}", overrides).objective)


@pytest.fixture
def problem(rng) -> tuple[Estimate, Views]:
    size, pose = 48, camera(1)
    mesh = UVMaps(torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1, displacement_map().float()).mesh(Template())
    estimate = Estimate(torch.randn(1, 8, generator=rng), pose, mesh, MeshRenderer(size)(mesh, pose))
    return estimate, views(disc(size, 20, 26, 15)[None], torch.rand(1, 3, size, size, generator=rng) * 2 - 1)


def test_the_default_is_the_released_code(problem):
    default, released = objective("meshinv")(*problem), objective("meshinv_official")(*problem)
    assert set(default) == {"mask", "texture", "feature", "prior"}
    assert default == released
    pixels = objective("meshinv_pixels")(*problem)
    assert pixels == {name: value for name, value in default.items() if name != "feature"}


def test_the_paper_adds_both_sides_and_smoothness(problem):
    estimate, target = problem
    default, paper = objective("meshinv"), objective("meshinv_paper")
    value, usual = paper(estimate, target), default(estimate, target)
    assert set(value) == {*usual, "smoothness"}
    assert value["mask"] == usual["mask"]
    # The paper adds what the code averages.
    torch.testing.assert_close(value["feature"], 2 * usual["feature"])
    assert value["texture"] > usual["texture"] + 1, "each side costs at least the floor"
    terms = {**default.terms, **paper.terms}
    assert {name: term.weight for name, term in terms.items()} == {
        "mask": 10, "texture": 1, "feature": 0.04, "prior": 0.05, "smoothness": 5e-5,
    }  # fmt: skip


def test_an_experiment_takes_another_objective_from_the_command_line():
    overrides = [
        "experiment=meshinv_invert_cub_subset",
        "objective@inverter.objective=meshinv_paper",
        "+objective@inverter.init_objective=meshinv_pixels",
        "inverter.objective.terms.feature.function.appearance.network.weights=vgg19_normalised",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        inverter = compose("invert", overrides).inverter
    assert set(inverter.objective.terms) == {"mask", "texture", "feature", "smoothness", "prior"}
    assert inverter.objective.terms.texture.function.back == 1
    assert set(inverter.init_objective.terms) == {"mask", "texture", "smoothness", "prior"}

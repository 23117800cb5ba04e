"""The examples in CONTRIBUTING.md work as they stand."""

import importlib
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from invkit.runtime.run import instantiate_trusted
from tests.invkit.inversion.test_objective import pair
from tests.test_configs import CONFIGS, ROOT, keywords_given_by, misfits

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def block(name: str) -> str:
    """The code that follows the first mention of a file."""
    return re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Make a module of an example, as if its file were there."""

    def write(name: str) -> types.ModuleType:
        dotted = name.removesuffix(".py").replace("/", ".")
        package, _, last = dotted.rpartition(".")
        file = tmp_path / f"{last}.py"
        file.write_text(block(name))
        spec = importlib.util.spec_from_file_location(dotted, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, dotted, module)
        monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)
        spec.loader.exec_module(module)
        return module

    return write


def test_the_loss_is_zero_for_equal_masks_and_each_image_has_its_own(written, rng):
    written("invkit/losses/dice.py")
    objective = instantiate_trusted(OmegaConf.create(block("configs/objective/dice.yaml")))
    estimate, target = pair(rng)
    values = objective(estimate, target)["dice"]
    assert values.shape == (2,)
    assert ((values > 0) & (values < 1)).all()
    alone = objective(*(batch[1:] for batch in (estimate, target)))["dice"]
    torch.testing.assert_close(values[1:], alone)


def test_the_data_set_cuts_out_its_object_and_refuses_names_that_lead_out(written, tmp_path):
    written("invkit/data/cutouts.py")
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[10:30, 20:50] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "camera": [15.0, 35.0, 20.0, 1.0, 0.0, 0.0, 0.0]}]
    (tmp_path / "cutouts.json").write_text(json.dumps(rows))
    config = OmegaConf.create(
        {"model": {"image_size": 32}, "data": OmegaConf.create(block("configs/data/cutouts.yaml"))}
    )
    config.data.root = str(tmp_path)
    dataset = instantiate_trusted(OmegaConf.create(OmegaConf.to_container(config, resolve=True)["data"]))
    views = dataset[0]
    assert dataset.names == ["a"]
    assert views.rgb.shape == (1, 3, 32, 32)
    assert views.mask[0, 0, 16, 16] == 1
    assert views.mask[0, 0, 0, 0] == 0
    assert views.camera.shift.abs().max() < 0.1  # the object's center is in the middle of the square
    rows[0]["image"] = "../a.png"
    (tmp_path / "cutouts.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="leads out of its folder"):
        instantiate_trusted({"_target_": "invkit.data.cutouts.Cutouts", "root": str(tmp_path)})


def test_the_experiment_of_a_new_prior_composes(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/meshinv_reconstruct_owls.yaml").write_text(
        block("configs/experiment/meshinv_reconstruct_owls.yaml")
    )
    overrides = ["experiment=meshinv_reconstruct_owls", "image=a.png", f"hydra.searchpath=[file://{tmp_path}]"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("reconstruct", overrides), resolve=True)
    assert config["prior"]["generator"]["path"] == "meshinv/checkpoints/owls.pt"
    assert not list(misfits(config, keywords_given_by("invert")))


def test_the_tests_that_are_named_exist():
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", TEXT))
    assert len(named) > 8
    assert all((ROOT / Path(name)).exists() for name in named), named

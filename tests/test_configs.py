"""Every experiment composes, and every `_target_` node of it fits the signature of its target.

So a misspelt key fails here and not on a cluster.
"""

import ast
import copy
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from invkit.runtime.run import locate_trusted

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, SCRIPTS = ROOT / "configs", ROOT / "scripts"
EXPERIMENTS = sorted(CONFIGS.glob("experiment/*.yaml"))
SPECIAL = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def command(experiment: Path) -> tuple[str, list[str]]:
    """(script, overrides) of the first command that the experiment's comments give for it."""
    text = re.sub(r"\\\n#\s*", " ", experiment.read_text())
    said = re.search(rf"^#.*scripts/(\w+)\.py\s+(.*\bexperiment={experiment.stem}\b.*)$", text, re.MULTILINE)
    assert said, f"{experiment} does not say how to run it: # python scripts/<script>.py experiment={experiment.stem}"
    return said[1], shlex.split(said[2])


@cache
def composed(experiment: Path, *more: str) -> Mapping[str, Any]:
    """The plain values of an experiment as its own command gives it, with further overrides."""
    script, overrides = command(experiment)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(script, [*overrides, *more]), resolve=True)


def trains(experiment: Path, task: Path) -> bool:
    return composed(experiment)["task"]["_target_"] == OmegaConf.load(task)["_target_"]


def leaves(node: Any, where: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything in `node` that is no mapping."""
    if not isinstance(node, Mapping):
        return {where: node}
    return {k: v for key, child in node.items() for k, v in leaves(child, f"{where}.{key}".removeprefix(".")).items()}


def keywords_given_by(script: str) -> dict[str, set[str]]:
    """Dotted key -> the arguments that the script itself adds: instantiate_trusted(cfg.key, argument=...).

    What scripts/reconstruct.py describes is built by invkit/reconstruction.py: instantiate_trusted(config["key"], ...).
    """
    given: dict[str, set[str]] = {}
    source = ROOT / "invkit" / "reconstruction.py" if script == "reconstruct" else SCRIPTS / f"{script}.py"
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "instantiate_trusted" and node.args:
            key = ast.unparse(node.args[0]).removeprefix("cfg.")
            key = re.sub(r"\['(\w+)'\]", r".\1", key.removeprefix("config")).removeprefix(".")
            given.setdefault(key, set()).update(keyword.arg for keyword in node.keywords if keyword.arg)
    return given


def misfits(node: Any, given: Mapping[str, set[str]], where: str = "") -> Iterator[str]:
    """What is wrong with the `_target_` nodes in `node`: no such target, no such argument, or one too few."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            try:
                fit(node, given.get(where, set()))
            except (ValueError, TypeError) as error:
                yield f"{where}: {node['_target_']}: {error}"
        for key, child in node.items():
            yield from misfits(child, given, f"{where}.{key}".removeprefix("."))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from misfits(child, given, f"{where}[{index}]")


def fit(node: Mapping[str, Any], given: set[str]) -> None:
    """Bind a node as Hydra would call it.

    Raises:
        ValueError: there is no such target.
        TypeError: the arguments do not fit.
    """
    signature = inspect.signature(locate_trusted(node["_target_"]))
    bind = signature.bind_partial if node.get("_partial_", False) else signature.bind
    keywords = {key: value for key, value in node.items() if key not in SPECIAL}
    bind(*node.get("_args_", ()), **{**keywords, **dict.fromkeys(given)})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_node_of_an_experiment_fits_its_target(experiment):
    found = list(misfits(composed(experiment), keywords_given_by(command(experiment)[0])))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_misspelt_key_of_an_experiment_is_noticed(experiment):
    doctored = copy.deepcopy(composed(experiment))
    node = next(nodes_with_target(doctored))
    node["misspelt"] = 1
    found = list(misfits(doctored, keywords_given_by(command(experiment)[0])))
    assert len(found) == 1
    assert "misspelt" in found[0]


TRAINED = [path for path in EXPERIMENTS if command(path)[0] == "train"]
PRESETS = [
    (preset, experiment)
    for preset in sorted(CONFIGS.glob("preset/*/*.yaml"))
    for experiment in TRAINED
    if trains(experiment, CONFIGS / "task" / f"{preset.parent.name}.yaml")
]


@pytest.mark.parametrize("preset, experiment", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_last_word_in_every_experiment_of_its_task(preset, experiment):
    """The folder of a preset is named as the task."""
    said = composed(experiment, f"preset={preset.parent.name}/{preset.stem}")
    assert not list(misfits(said, {}))
    values = leaves(OmegaConf.to_container(OmegaConf.load(preset)))
    values.pop("defaults", None)
    assert values
    assert {key: value for key, value in leaves(said).items() if key in values} == values


def test_every_preset_has_experiments():
    assert {preset for preset, _ in PRESETS} == set(CONFIGS.glob("preset/*/*.yaml"))


@pytest.mark.parametrize("experiment", sorted(CONFIGS.glob("experiment/meshinv_*")), ids=lambda path: path.stem)
def test_the_small_model_is_small_in_every_part_of_an_experiment(experiment):
    said = composed(experiment, "model=small")
    assert not list(misfits(said, keywords_given_by(command(experiment)[0])))
    sizes, small = leaves(said), said["model"]
    assert small["width"] < 1
    large = {key for key, value in sizes.items() if key.endswith(".width") and value != small["width"]}
    large |= {key for key, value in sizes.items() if key.endswith("texture_size") and value != small["texture_size"]}
    # FID is measured at the size that its networks see.
    sizes = {key: value for key, value in sizes.items() if not key.startswith("task.quality.")}
    pictures = {value for key, value in sizes.items() if key.endswith(("renderer.size", "data.size", "image_size"))}
    assert not large
    assert pictures == {small["image_size"]}


def nodes_with_target(node: Any) -> Iterator[dict]:
    """Nodes whose target takes no arbitrary keywords."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        kinds = {p.kind for p in inspect.signature(locate_trusted(node["_target_"])).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            yield node
    for child in children:
        yield from nodes_with_target(child)


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_target_is_there(file):
    for target in targets(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
        assert callable(locate_trusted(target, str(file)))


def test_every_primary_config_is_a_scripts():
    assert all((SCRIPTS / path.name).with_suffix(".py").is_file() for path in CONFIGS.glob("*.yaml"))


SGD = "torch.optim.SGD"


@pytest.mark.parametrize(
    "node, complaint",
    [
        ({"_target_": SGD, "params": [], "lr": 1.0}, None),
        ({"_target_": SGD, "params": [], "learning_rate": 1.0}, "learning_rate"),
        ({"_target_": SGD, "lr": 1.0}, "params"),
        ({"_target_": SGD, "lr": 1.0, "_partial_": True}, None),
        ({"_target_": SGD, "rate": 1.0, "_partial_": True}, "rate"),
        ({"_target_": SGD, "_args_": [[]], "lr": 1.0}, None),
        ({"_target_": SGD, "_args_": [[]], "params": []}, "params"),
        ({"_target_": "torch.optim.Sdg", "params": []}, "torch.optim.Sdg"),
        ({"_target_": "os.system", "command": "true"}, "os.system"),
    ],
)
def test_a_node_that_does_not_fit_is_named(node, complaint):
    found = list(misfits({"task": {"parts": [0, {"inner": node}]}}, {}))
    assert len(found) == (complaint is not None)
    if complaint:
        assert found[0].startswith("task.parts[1].inner: ")
        assert complaint in found[0]


def test_what_the_script_gives_counts_as_given():
    assert not list(misfits({"optimizer": {"_target_": SGD}}, {"optimizer": {"params"}}))
    assert list(misfits({"optimizer": {"_target_": SGD}}, {"optimizer": {"params", "absent"}}))

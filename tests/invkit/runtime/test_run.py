import json
import os
import random
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from torch import nn

from invkit.runtime import checkpoint, run
from invkit.runtime.networks import storable
from invkit.runtime.run import Run, instantiate_trusted, load_module, locate_trusted
from invkit.runtime.settings import differences
from invkit.runtime.version import code_version
from invkit.train.ema import Ema
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[3]


@storable
class Toy(nn.Module):
    """A network with a part, so that its stored configuration is nested."""

    def __init__(self, width: int, part: nn.Module | None = None, sizes: Any = None) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        self.line = nn.Linear(width, 1)
        self.part = part
        self.sizes = sizes


def make_toy(width: int) -> Toy:
    return Toy(width)


TOY = f"{__name__}.Toy"


def config(folder: Path, **changes) -> dict:
    settings = {
        "run": {"name": "toy", "dir": str(folder), "seed": 3, "device": "cpu", "wandb": {"mode": "disabled"}},
        "steps": 10,
        "task": {"rate": 1e-4, "sizes": [1, 2], "label": None},
    }
    return OmegaConf.to_container(OmegaConf.merge(settings, changes))


@pytest.fixture
def trusted_tests(monkeypatch):
    monkeypatch.setattr(run, "TRUSTED", (*run.TRUSTED, "tests."))


def test_a_new_folder_gets_the_expanded_config_and_the_code_version(tmp_path):
    written = config(tmp_path / "a", task={"label": "${run.name}-${steps}"})
    with Run(OmegaConf.create(written)) as opened:
        assert opened.config["task"]["label"] == "toy-10"
        assert (opened.dir, opened.seed, opened.rank, opened.world_size) == (tmp_path / "a", 3, 0, 1)
        assert opened.device == torch.device("cpu")
        opened.result({"iou": 0.5})
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "a/config.yaml"), resolve=False) == opened.config
    version = json.loads((tmp_path / "a/version.json").read_text())
    assert version["torch"] == torch.__version__
    assert os.uname().nodename not in json.dumps(version)
    assert json.loads((tmp_path / "a/result.json").read_text()) == {"iou": 0.5}
    assert not list((tmp_path / "a").glob("*.partial"))


def test_the_same_command_goes_on_and_leaves_the_frozen_files_as_they_are(tmp_path):
    with Run(config(tmp_path)):
        pass
    before = {path: path.read_bytes() for path in (tmp_path / "config.yaml", tmp_path / "version.json")}
    with Run(config(tmp_path, run={"device": "auto", "wandb": {"mode": "disabled", "name": "other"}})):
        pass
    assert before == {path: path.read_bytes() for path in before}


def test_a_new_run_that_fails_before_its_first_result_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FileNotFoundError), Run(config(folder)):
        raise FileNotFoundError("no such data")
    assert not folder.exists()
    with Run(config(folder, task={"rate": 0.5})) as corrected:
        corrected.log.scalars(1, {"loss": 1.0})
    with pytest.raises(FileNotFoundError), Run(config(folder, task={"rate": 0.5})):
        raise FileNotFoundError("the data has gone")
    assert (folder / "log.jsonl").is_file()  # what was computed stays
    assert (folder / "config.yaml").is_file()


def test_another_config_is_refused_with_every_key_and_both_values(tmp_path):
    with Run(config(tmp_path)):
        pass
    with (
        pytest.raises(ValueError) as refusal,
        Run(config(tmp_path, run={"seed": 4}, task={"sizes": [1, 5], "extra": True}, steps=11)),
    ):
        pass
    said = str(refusal.value)
    for part in ("run.seed: 3 there, 4 now", "task.sizes: [1, 2] there, [1, 5] now", "steps: 10 there, 11 now"):
        assert part in said
    assert "task.extra: nothing there, True now" in said
    assert "task.rate" not in said
    assert str(tmp_path) in said
    assert "run.dir" in said


@pytest.mark.parametrize(
    "value", [1e-5, 1e-4, 1.0, 3, True, None, "1e-5", "null", "yes", "a: b", "", [], {}, [[1], {}]]
)
def test_a_config_equals_itself_after_a_journey_through_yaml(tmp_path, value):
    for _ in range(2):
        with Run(config(tmp_path, task={"value": value})) as opened:
            assert opened.config["task"]["value"] == value


def test_differences_leave_out_the_machine():
    old = {"run": {"dir": "a", "device": "cpu", "wandb": {"mode": "offline"}, "seed": 0}, "a": {"b": 1}}
    new = {"run": {"dir": "b", "device": "cuda", "wandb": None, "seed": 0}, "a": {"b": 2}}
    assert differences(old, new) == {"a.b": (1, 2)}
    assert differences({"a": {}}, {"a": {"b": 1}}) == {"a": ({}, "nothing"), "a.b": ("nothing", 1)}


def test_a_missing_value_is_named(tmp_path):
    with pytest.raises(MissingMandatoryValue, match=r"task\.data"):
        Run(config(tmp_path, task={"data": "???"}))


def test_the_seed_fixes_what_is_built_in_the_run(tmp_path):
    drawn = []
    for _ in range(2):
        with Run(config(tmp_path)):
            drawn.append((nn.Linear(4, 4).weight.tolist(), np.random.rand(), random.random()))  # noqa: NPY002
        torch.rand(3)
    assert drawn[0] == drawn[1]


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(tmp_path):
    hold = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held',flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / ".lock")], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="in use"), Run(config(tmp_path)):
            pass
        holder.kill()
    with Run(config(tmp_path)):
        pass


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_an_error(tmp_path, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"run.device={device}"), Run(config(tmp_path, run={"device": device})):
        pass


def test_progress_gives_every_item_and_tells_the_end(tmp_path, capsys):
    with Run(config(tmp_path)) as opened:
        assert list(opened.progress(iter("abc"), total=3)) == ["a", "b", "c"]
    assert "3/3" in capsys.readouterr().out


def test_the_code_version_is_that_of_this_checkout():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert code_version()["commit"] == (head.stdout.strip() if head.returncode == 0 else None)


def test_instantiate_builds_nested_nodes_and_hands_over_plain_values(trusted_tests):
    node = OmegaConf.create(
        {"net": {"_target_": TOY, "width": "${size}", "part": {"_target_": TOY, "width": 2}}, "size": 3}
    )
    net = instantiate_trusted(node.net, sizes=[{"a": 1}])
    assert (net.line.in_features, net.part.line.in_features) == (3, 2)
    assert type(net.sizes) is list
    assert type(net.sizes[0]) is dict
    adam = instantiate_trusted({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5})(net.parameters())
    assert adam.defaults["lr"] == 0.5


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "invkit.runtime.run.subprocess.run",
        "invkit.runtime.run.os.system",
        "invkit.runtime.run.hydra.utils.call",
        "invkit.runtime.run.TRUSTED",
        "invkit.runtime.run.absent",
        "invkit.absent.thing",
        "torch.load",
        "torch.optim",
        7,
    ],
)
def test_a_target_that_leads_out_is_refused_wherever_it_stands(target):
    with pytest.raises(ValueError, match=r"_target_|there is no"):
        locate_trusted(target)
    with pytest.raises(ValueError, match=r"parts\[1\]\.inner"):
        instantiate_trusted({"parts": [1, {"inner": {"_target_": target, "command": "true"}}]})


def test_a_constructors_complaint_arrives_in_its_own_words(trusted_tests):
    with pytest.raises(ValueError, match=r"^width must be at least 1, not 0$"):
        instantiate_trusted({"net": {"_target_": TOY, "width": 0}})


def stored(path: Path, network: dict, **modules: nn.Module) -> Path:
    states = {name: module.state_dict() for name, module in modules.items()}
    checkpoint.save(path, {"step": 5, "config": {"task": {"generator": network}}, "modules": states})
    return path


def test_a_network_is_rebuilt_from_what_is_stored_with_it(tmp_path, trusted_tests):
    toy = Toy(3, part=Toy(2))
    average = Ema(Toy(3, part=Toy(2)), lambda step: 0.5)
    node = {"_target_": TOY, "width": 3, "part": {"_target_": TOY, "width": 2}}
    path = stored(tmp_path / "a.pt", node, generator=toy, generator_ema=average)
    loaded = load_module(path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, expected in (("generator", toy), ("generator_ema", average.module)):
        found = load_module(path, state=name).state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path, trusted_tests):
    node = {"_target_": TOY, "width": 3}
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_module(tmp_path)
    with Run(config(tmp_path)) as opened:
        for step in (1, 2):
            stored(opened.checkpoints.path(step), node, generator=(newest := Toy(3)))
    assert torch.equal(load_module(tmp_path).line.weight, newest.line.weight)


def test_what_does_not_fit_is_named(tmp_path, trusted_tests):
    path = stored(tmp_path / "a.pt", {"_target_": TOY, "width": 4}, generator=Toy(3))
    with pytest.raises(ValueError, match=r"(?s)do not fit task\.generator: line\.weight is \[1, 3\] and not \[1, 4\]"):
        load_module(path)
    with pytest.raises(ValueError, match=r"no network task\.encoder.*generator"):
        load_module(path, "encoder")
    with pytest.raises(ValueError, match=r"no weights named generator_ema.*generator"):
        load_module(path, state="generator_ema")
    with pytest.raises(FileNotFoundError):
        load_module(tmp_path / "b.pt")


def test_a_stored_config_cannot_call_functions(tmp_path, trusted_tests):
    path = stored(tmp_path / "a.pt", {"_target_": f"{__name__}.make_toy", "width": 3}, generator=Toy(3))
    with pytest.raises(ValueError, match="no network that a checkpoint may name"):
        load_module(path)


SCRIPT = r"""
import sys
import torch
from invkit.runtime.networks import storable
from invkit.runtime.run import Run, main

@main(config_name="toy")
def toy(cfg):
    with Run(cfg) as run:
        sys.stdout.write(f"opened {list(run.share(range(5)))}\n")  # in one piece, as two ranks share a pipe
        if cfg.fail == "status":
            sys.exit(75)
        if cfg.fail == "value":
            raise ValueError("field x of file y is wrong")
        if cfg.fail == "file":
            open("absent.txt")

if __name__ == "__main__":
    toy()
"""


@pytest.fixture
def script(tmp_path):
    """A script with its config beside the project's own run settings."""
    shared = tmp_path / "configs/run/default.yaml"
    shared.parent.mkdir(parents=True)
    shared.write_bytes((ROOT / "configs/run/default.yaml").read_bytes())
    (tmp_path / "configs/toy.yaml").write_text(
        "defaults: [_self_, {run: default}, {optional experiment: null}]\nfail: nothing\n"
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/toy.py").write_text(SCRIPT)
    return tmp_path / "scripts/toy.py"


def call(script: Path, monkeypatch, *arguments: str) -> None:
    work = script.parents[1] / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", [str(script), "run.name=toy", "run.device=cpu", *arguments])
    runpy.run_path(str(script), run_name="__main__")


def test_a_script_runs_where_it_is_called_and_hydra_leaves_nothing_of_its_own(script, monkeypatch, capsys):
    call(script, monkeypatch)
    assert "opened [0, 1, 2, 3, 4]" in capsys.readouterr().out
    work = Path.cwd()
    assert [path.name for path in work.iterdir()] == ["runs"]
    assert (work / "runs/toy/config.yaml").is_file()


@pytest.mark.parametrize("fail, said", [("value", "field x of file y is wrong"), ("file", "absent.txt")])
def test_a_users_mistake_is_one_line_and_status_2(script, monkeypatch, capsys, fail, said):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as left:
        call(script, monkeypatch, f"fail={fail}")
    lines = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_the_traceback_is_there_for_who_asks(script, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="field x"):
        call(script, monkeypatch, "fail=value")


def test_a_status_of_the_job_passes_through(script, monkeypatch):
    with pytest.raises(SystemExit) as left:
        call(script, monkeypatch, "fail=status")
    assert left.value.code == 75


def test_every_rank_is_told_when_the_folder_is_refused(script, tmp_path):
    """Two processes, as torchrun starts them: each gets its share; with another config both leave with status 2."""
    start = textwrap.dedent(
        f"""
        cd {tmp_path}
        for rank in 0 1; do
            RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 {sys.executable} {script} run.name=toy run.device=cpu "$@" &
            pids="$pids $!"
        done
        for pid in $pids; do wait $pid; echo "status $?"; done
        """
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    environment.pop("HYDRA_FULL_ERROR", None)

    def both(*arguments: str) -> subprocess.CompletedProcess:
        environment["MASTER_PORT"] = str(free_port())
        command = ["bash", "-c", start, "bash", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    first = both()
    assert first.stdout.count("status 0") == 2, first.stderr
    assert "opened [0, 2, 4]" in first.stdout
    assert "opened [1, 3]" in first.stdout
    second = both("run.seed=9")
    assert second.stdout.count("status 2") == 2, second.stdout + second.stderr
    assert second.stderr.count("run.seed: 0 there, 9 now") == 2


# ---- What is made anew -----------------------------------------------------------------------------------------------


def test_a_run_that_is_not_frozen_takes_other_settings_and_leaves_a_frozen_config_alone(tmp_path):
    with Run(config(tmp_path)):
        pass
    frozen = (tmp_path / "config.yaml").read_bytes()
    for steps in (11, 12):
        with Run(config(tmp_path, steps=steps), frozen=False) as opened:
            opened.result({"steps": steps})
        assert OmegaConf.load(tmp_path / "last_config.yaml").steps == steps
        assert json.loads((tmp_path / "result.json").read_text()) == {"steps": steps}
    assert (tmp_path / "config.yaml").read_bytes() == frozen


def test_one_that_is_not_frozen_and_fails_at_once_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError), Run(config(tmp_path / "a"), frozen=False):
        raise FileNotFoundError("no such data")
    assert not (tmp_path / "a").exists()

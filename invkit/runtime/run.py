"""A run: one command, one folder, one frozen configuration.

This is the only file of the kit that knows Hydra. Packages take plain typed keywords; scripts compose a configuration,
open a `Run` on it, instantiate what it names, and hand that over. Running the same command again finds the same folder
and goes on; a command that would mix two configurations in one folder is refused.
"""

import fcntl
import functools
import inspect
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch import nn

from invkit.runtime import checkpoint, dist
from invkit.runtime.arithmetic import allow_tf32
from invkit.runtime.commandline import complaint, misnamed, missing, overrides_of
from invkit.runtime.files import project_folder, written_aside
from invkit.runtime.log import Log
from invkit.runtime.networks import rebuilt
from invkit.runtime.pace import Pace, duration
from invkit.runtime.settings import differences, dotted_keys, targets
from invkit.runtime.shipped import located
from invkit.runtime.usage import docstring, usage
from invkit.runtime.version import code_version

Item = TypeVar("Item")

TRUSTED = ("invkit.", "meshinv.", "nerfinv.", "torch.optim.")
"""Where a `_target_` may lead: a checkpoint's stored configuration is somebody else's file."""

SECONDS_BETWEEN_PROGRESS = 10.0

CONFIG, LAST_CONFIG = "config.yaml", "last_config.yaml"


class Run:
    """The folder, device, rank and log of one command. Use as a context manager.

    config.yaml (expanded) and version.json (code and libraries) are written when the folder is new.

    Args:
        frozen: the folder belongs to its configuration, and a command with another is refused. False: what the command
            makes is made anew each time (a measurement, an export); last_config.yaml says with which settings.
        config: has `run` = {dir, seed, device: auto | cpu | cuda, wandb: {mode, project, name}} and whatever else the
            command needs; it is expanded here, once, into plain values.
    """

    dir: Path
    device: torch.device
    rank: int
    world_size: int
    seed: int
    log: Log
    checkpoints: checkpoint.Checkpoints
    config: dict[str, Any]

    def __init__(self, config: DictConfig | Mapping[str, Any], *, frozen: bool = True) -> None:
        self.config = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
        self.dir = Path(self.config["run"]["dir"])
        self.seed = int(self.config["run"]["seed"])
        self._lock: int | None = None
        self._frozen, self._is_new, self._is_part = frozen, False, False

    def __enter__(self) -> "Run":
        """The opened run.

        Raises:
            ValueError: on every rank: the folder holds another configuration or is in use, or there is no such device.
        """
        chosen = self.config["run"]["device"]
        if chosen not in ("auto", "cpu", "cuda"):
            raise ValueError(f"run.device={chosen} is not one of auto, cpu, cuda")
        if chosen == "cuda" and not torch.cuda.is_available():
            raise ValueError("run.device=cuda, but torch finds no CUDA device; scripts/doctor.py says more")
        self._is_part = dist.world_size() > 1  # of another run, whose processes stay together when this one ends
        ranks = dist.init()
        self.rank, self.world_size = ranks.rank, ranks.world_size
        on_gpu = chosen != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        allow_tf32(bool(self.config["run"].get("tf32")))
        try:
            self._claim_folder_on_rank_0()
            main = self.rank == 0
            wandb = self.config["run"].get("wandb") or {}
            self.log = Log(
                self.dir,
                total_steps=self.config.get("steps"),
                wandb=wandb if wandb.get("mode", "disabled") != "disabled" else None,
                main=main,
            )
            kept = self.config["run"].get("keep_every")
            self.checkpoints = checkpoint.Checkpoints(self.dir / "checkpoints", keep_every=kept)
        except BaseException:
            self._leave()
            raise
        # The same on every rank: networks built from here on start with the same weights everywhere.
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)  # noqa: NPY002 - third-party code draws from it
        torch.manual_seed(self.seed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.log.close()
        if error is not None and self._is_new:
            self._withdraw()
        if self.world_size > 1 and not self._is_part and (error is None or isinstance(error, SystemExit)):
            dist.end_with(0 if error is None else error.code)
        self._leave()

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """This rank's part of `indices`."""
        return dist.share(indices)

    def progress(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items one by one, while the log says how many are done and how long the rest takes."""
        pace, last = Pace(0, time.monotonic()), time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            pace.add(done, now)
            if self.rank == 0 and (now - last > SECONDS_BETWEEN_PROGRESS or done == total):
                last, left = now, pace.seconds_left(total)
                told = "" if left is None or done >= total else f", {duration(left)} left"
                self.log.message(f"{done}/{total}{told}")

    def result(self, values: Mapping[str, Any]) -> None:
        """Write result.json, the last thing a run leaves; tables read only this."""
        if self.rank == 0:
            _write(self.dir / "result.json", json.dumps(values, indent=2) + "\n")

    def _claim_folder_on_rank_0(self) -> None:
        problem = None
        if self.rank == 0:
            try:
                self._claim_folder()
            except (ValueError, OSError) as error:
                problem = str(error)
        problem = dist.broadcast_value(problem)  # so that no rank waits for one that has left
        if problem is not None:
            raise ValueError(problem)

    def _claim_folder(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A POSIX lock: it dies with this process, however that ends, and a forked worker does not inherit it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{self.dir} is in use by another process; wait or choose another run.dir") from None
        except OSError as error:
            warnings.warn(f"{self.dir}: {error}. Nothing keeps a second process out of this folder.", stacklevel=2)
        frozen = self.dir / (CONFIG if self._frozen else LAST_CONFIG)
        self._is_new = not frozen.exists()
        if self._is_new or not self._frozen:
            _write(self.dir / "version.json", json.dumps(code_version(), indent=2) + "\n")
            _write(frozen, OmegaConf.to_yaml(OmegaConf.create(self.config)))
            return
        before = OmegaConf.to_container(OmegaConf.load(frozen), resolve=False)
        if changes := differences(before, self.config):
            listed = "".join(f"\n  {key}: {old} there, {new} now" for key, (old, new) in changes.items())
            raise ValueError(
                f"{frozen} was written by another configuration:{listed}\n"
                f"Choose another run.dir, go back to the values there, or delete {self.dir}"
            )

    def _withdraw(self) -> None:
        """Leave no folder behind, if it holds nothing yet: a mistake in a setting must not bind the next attempt."""
        before_any_result = {".lock", CONFIG, LAST_CONFIG, "version.json"}
        if {path.name for path in self.dir.iterdir()} <= before_any_result:
            for path in self.dir.iterdir():
                path.unlink()
            self.dir.rmdir()

    def _leave(self) -> None:
        if not self._is_part:
            dist.finish()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def locate_trusted(target: Any, where: str = "_target_") -> Callable[..., Any]:
    """The class or function that a `_target_` names.

    Raises:
        ValueError: it does not exist, or it is none of this project's or torch.optim's.
    """
    if not (isinstance(target, str) and target.startswith(TRUSTED)):
        raise ValueError(f"{where}: _target_ {target!r} is not in {', '.join(TRUSTED)}")
    try:
        found = hydra.utils.get_object(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{where}: there is no {target} ({error})") from error
    # invkit.runtime.run.subprocess.run begins well and leads out again.
    if not (callable(found) and f"{found.__module__}.".startswith(TRUSTED)):
        raise ValueError(f"{where}: _target_ {target} is no class or function of {', '.join(TRUSTED)}")
    return found


def instantiate_trusted(node: Any, **overrides: Any) -> Any:
    """The object a configuration node describes; its arguments arrive as plain values and objects.

    Args:
        node: a `_target_` node, or a list or mapping of such.
        overrides: further arguments of the outermost target.

    Raises:
        ValueError: `locate_trusted` refuses a `_target_` in the node, or a constructor refuses its values.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    for where, target in targets(node):
        locate_trusted(target, where)
    try:
        return hydra.utils.instantiate(node, **overrides, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | FileNotFoundError):
            raise error.__cause__ from None  # the user's mistake in the words of the constructor that found it
        if isinstance(error.__cause__, TypeError) and (said := misnamed(node, locate_trusted)):
            raise ValueError(said) from error
        raise


def load_module(path: str | Path, module: str = "generator", state: str | None = None) -> nn.Module:
    """A trained network, rebuilt from the configuration stored with its weights: frozen, in eval mode, on the CPU.

    Args:
        path: a checkpoint file, a run's folder (its newest checkpoint), or the name of a network that ships.
        module: the network's key under `task` in the stored configuration.
        state: the weights' name among the stored modules; `module` where not given. A running average of `generator`
            is stored under a name of its own (such as generator_ema) and fits the same network.

    Raises:
        FileNotFoundError: there is no such checkpoint, and none of that name ships.
        ValueError: the checkpoint has no such network or weights, they do not fit each other, or its configuration
            names what a checkpoint may not name (see `invkit.runtime.networks`).
    """
    path, payload = _read(located(path))
    try:
        return rebuilt(payload, module, state or module, locate_trusted).eval().requires_grad_(False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def composed(
    config_name: str, overrides: Sequence[str] = (), configs: Path | None = None, examples: str = ""
) -> dict[str, Any]:
    """The plain values of configs/<config_name>.yaml with overrides as they are typed; from anywhere, at any time.

    Args:
        configs: the folder; the project's own by default.
        examples: commands, from which one is shown where something is missing.

    Raises:
        ValueError: an override cannot be read, or names what there is not; told in one line with what is nearest.
    """
    configs = configs or project_folder("configs")
    overrides = overrides_of(overrides, configs)

    def compose(overrides: Sequence[str]) -> DictConfig:
        with _apart(), hydra.initialize_config_dir(str(configs.resolve()), version_base="1.3"):
            return hydra.compose(config_name, list(overrides))

    def keys(overrides: Sequence[str]) -> list[str]:
        """Of all settings there are; none where it does not compose."""
        try:
            return dotted_keys(OmegaConf.to_container(compose(overrides)))
        except (HydraException, OmegaConfBaseException):
            return []

    try:
        return OmegaConf.to_container(compose(overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(complaint(error, overrides, configs, keys, examples)) from error


def main(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[..., None]]:
    """Decorator: a script's main function, called with configs/<config_name>.yaml composed with the command line.

    --help is told from the script's docstring and the comments of its configuration files. A user's mistake is printed
    in a few words and ends the process with status 2; HYDRA_FULL_ERROR=1 shows where it was found. A status the
    function leaves with itself (such as "requeue me") passes through. Hydra's own options (-m, --cfg) are left to it.
    """

    def decorate(job: Callable[[DictConfig], None]) -> Callable[..., None]:
        script = Path(inspect.getfile(inspect.unwrap(job)))

        @functools.wraps(job)  # Hydra finds the script, and from there the configs, through it
        def told_in_short(config: DictConfig) -> None:
            with _in_short(script):
                job(config)

        by_hydra = hydra.main(version_base="1.3", config_path="../configs", config_name=config_name)(told_in_short)

        @functools.wraps(told_in_short)
        def command(config: DictConfig | None = None) -> None:
            typed, configs = sys.argv[1:], script.parent / "../configs"
            if config is not None:
                told_in_short(config)
            elif {"-h", "--help"} & set(typed):
                print(usage(script, configs.resolve()), end="")
            else:
                if not any(argument.startswith("-") for argument in typed):
                    with _in_short(script):
                        composed(config_name, typed, configs, docstring(script))
                    sys.argv = [sys.argv[0], *overrides_of(typed, configs)]
                by_hydra()

        return command

    return decorate


@contextmanager
def _apart() -> Iterator[None]:
    """Whatever else Hydra is doing in this process goes on unchanged afterwards."""
    others, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = others


@contextmanager
def _in_short(script: Path) -> Iterator[None]:
    """A user's mistake becomes one line and status 2."""
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        absent = isinstance(error, MissingMandatoryValue)
        said = missing(error.full_key, docstring(script)) if absent else str(error)
        print(f"error: {said} (HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    if not path.is_dir():
        return path, checkpoint.load(path)
    newest = checkpoint.Checkpoints(path / "checkpoints").latest()
    if newest is None:
        raise FileNotFoundError(f"{path / 'checkpoints'} holds no checkpoint; is the training still to be run?")
    return path, newest[1]


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text)

"""The one loop that trains weights.

A task is a list of phases; a phase is an optimizer, a loss and the steps at which it is due. At each step the loop

1. seeds the generators of torch, numpy and random from (seed, rank, step), so that nothing random is carried over;
2. takes one batch and moves every phase that is due, with gradients averaged over ranks in one message per phase;
3. averages floating-point buffers (batch statistics) over ranks, so that the ranks never differ;
4. lets the task follow (`after_step`), and logs, reports and saves at its intervals.

So a run is a function of its saved state and the step. Killed at any moment and started again by the same command it
goes on from its newest checkpoint, and on CPUs it ends with bitwise the weights of a run that was never killed.
"""

import json
import math
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from invkit.protocols import Phase, Run, Task
from invkit.runtime import dist
from invkit.runtime.checkpoint import load
from invkit.runtime.files import written_aside
from invkit.train.state import TrainState

REQUEUE = 75
"""Exit status of a run that was asked to stop and has saved: EX_TEMPFAIL of sysexits.h, "start me again"."""

GRADIENT_NORM = "gradient_norm"


def fit(task: Task, run: Run, steps: int, *, save_every: int, report_every: int, log_every: int = 50) -> None:
    """Train the task's modules in place until `steps` steps are done, from the newest checkpoint on where there is one.

    Log lines, reports and checkpoints count steps done: number N shows the state after N steps. Phases and schedules
    get the 0-based step. A run that was finished before is loaded and otherwise left as it is. Rank 0 alone writes.

    Args:
        save_every, report_every, log_every: intervals in steps. What is logged are means over the interval and ranks.

    Raises:
        SystemExit: with status `REQUEUE`, after SIGTERM or SIGUSR1 (which Slurm sends before it takes a node away). The
            step is finished and saved first; every rank leaves after the same step.
        FloatingPointError: a loss term or a gradient is not finite. The state before that step is saved first.
        ValueError: more steps are done already, or the checkpoint is of another task.
    """
    for module in task.modules.values():
        module.to(run.device)
    players = [_Player.of(phase, task, run.device) for phase in task.phases]
    state = TrainState(
        task.modules,
        {phase.name: phase.optimizer for phase in task.phases},
        {player.phase.name: player.scaler for player in players if player.scaler is not None},
    )
    start = _restore(state, run)
    if start > steps:
        raise ValueError(f"{run.dir} has {start} steps done, more than the {steps} asked for; choose another folder")
    if start == steps and _is_finished(run, steps):
        run.log.message(f"{run.dir}: all {steps} steps were done before; nothing is left to do")
        return

    run.log.resume(start, steps)
    run.log.message(f"{run.dir}: {start} of {steps} steps done, {steps - start} to go")
    batches = task.batches(start, run.rank, run.world_size)
    weight = None
    with _stop_signals() as asked_to_stop:
        for step in range(start, steps):
            seed_step(run.seed, run.rank, step)
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the task has no batch for step {step} of {steps}")
            weight = _weight(batch, run.device) if weight is None else weight  # of every step: shares do not change
            _advance(players, state, batch.to(run.device), step, run, weight)
            stop = _agree(state.modules.values(), asked_to_stop(), run.device)
            task.after_step(step)
            done = step + 1
            if done % log_every == 0 or done == steps:
                run.log.scalars(done, state.means.take())
            if done % report_every == 0:
                if dist.is_main():
                    task.report(run, done)
                _follow_main(state.modules.values())
            if done % save_every == 0 or done == steps or stop:
                _save(state, run, done)
            if stop:
                run.log.message(f"asked to stop: saved after step {done}; run the same command again to go on")
                raise SystemExit(REQUEUE)
    task.finish(run)
    dist.barrier()
    _mark_finished(run, steps)


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed torch (on all devices), numpy and random for one step of one rank.

    numpy's SeedSequence hashes the three numbers, so that neighboring steps and ranks get unrelated streams; its output
    is guaranteed not to change between versions of numpy.
    """
    words = [int(word) for word in np.random.SeedSequence((seed, rank, step)).generate_state(5, np.uint32)]
    torch.manual_seed(words[0] << 32 | words[1])
    random.seed(words[2] << 32 | words[3])
    np.random.seed(words[4])  # noqa: NPY002 - what a library draws from when it is given no generator


def shared_rng(seed: int, step: int) -> torch.Generator:
    """A generator on the CPU whose numbers at a step are the same on every rank.

    What is drawn from it for a whole batch, of which each rank then takes its own images' part, does not depend on how
    many ranks there are: several processes train as one would.
    """
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(word)


@dataclass(frozen=True)
class _Player:
    """A phase with the parameters it moves (`own`) and those it must leave alone (`others`)."""

    phase: Phase
    own: Sequence[Tensor]
    others: Sequence[Tensor]
    scaler: GradScaler | None

    @staticmethod
    def of(phase: Phase, task: Task, device: torch.device) -> "_Player":
        for group in phase.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        own = _parameters(phase.optimizer)
        known = {id(parameter) for parameter in own}
        everything = [parameter for module in task.modules.values() for parameter in module.parameters()]
        everything += [parameter for other in task.phases for parameter in _parameters(other.optimizer)]
        others = list({id(parameter): parameter for parameter in everything if id(parameter) not in known}.values())
        return _Player(phase, own, others, GradScaler(device.type) if phase.autocast is torch.float16 else None)

    def move(self, batch: Any, step: int, device: torch.device, weight: float = 1.0) -> dict[str, float]:
        """Step the optimizer unless something is not finite. The terms and the gradient's norm, over all ranks.

        Args:
            weight: of this rank's share of the batch, 1 in the mean over ranks.
        """
        terms, values = self._gradients(batch, step, device)
        gradients = [parameter.grad for parameter in self.own]
        if weight != 1:
            torch._foreach_mul_([*gradients, values], weight)
        # The terms travel with the gradients. So every rank sees what one rank found broken, and all stop together.
        dist.all_reduce_mean([*gradients, values])
        if self.scaler is not None:
            self.scaler.unscale_(self.phase.optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        *values, gradient_norm = torch.cat([values, norm.to(values)[None]]).tolist()  # the only wait for the device
        measured = dict(zip(terms, values, strict=True))
        # An overflow in float16 is what the loss scale is for: it skips the step. It has failed when it gets below 1.
        if self.scaler is None or math.isfinite(gradient_norm) or self.scaler.get_scale() < 1.0:
            measured[GRADIENT_NORM] = gradient_norm
        if all(math.isfinite(value) for value in measured.values()):
            self._step(step, norm)
        return measured

    def _gradients(self, batch: Any, step: int, device: torch.device) -> tuple[list[str], Tensor]:
        """Names and values of this rank's loss terms, their gradients left in the own parameters."""
        self.phase.optimizer.zero_grad(set_to_none=True)
        with _frozen(self.others):
            with torch.autocast(device.type, self.phase.autocast, enabled=self.phase.autocast is not None):
                terms = self.phase.loss(batch, step)
            if any(term.ndim for term in terms.values()):
                shapes = {name: list(term.shape) for name, term in terms.items()}
                raise ValueError(f"phase {self.phase.name}: loss terms must be scalars, not {shapes}")
            loss = sum(terms.values())
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        # What this rank's loss did not reach, another's may have reached: all ranks step the same parameters.
        for parameter in self.own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return list(terms), torch.stack([term.detach().to(self.own[0].dtype) for term in terms.values()])

    def _step(self, step: int, norm: Tensor) -> None:
        optimizer = self.phase.optimizer
        if self.phase.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.own, self.phase.clip_norm, norm)
        for group in optimizer.param_groups:
            factor = self.phase.rate(step) if group.get("scheduled", True) else 1.0
            group["lr"] = group["initial_lr"] * factor
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def _weight(batch: Any, device: torch.device) -> float:
    """How much this rank's part of the batch counts: its size relative to the mean over ranks."""
    if dist.world_size() == 1 or not hasattr(batch, "__len__") or getattr(batch, "shape", None) == ():
        return 1.0
    mean = torch.tensor(float(len(batch)), device=device)
    dist.all_reduce_mean([mean])
    return len(batch) / mean.item() if mean else 1.0  # what a task draws itself comes as an empty batch


def _advance(players: Sequence[_Player], state: TrainState, batch: Any, step: int, run: Run, weight: float) -> None:
    """Move every phase that is due at `step`.

    Raises:
        FloatingPointError: as in `fit`.
    """
    state.keep()
    measured = {}
    for player in players:
        if not player.phase.due(step):
            continue
        values = player.move(batch, step, run.device, weight)
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is not None:
            if broken == GRADIENT_NORM:
                broken = f"the gradient of {_first_broken_gradient(player, state.modules)}"
            state.roll_back()
            _save(state, run, step)
            problem = f"phase {player.phase.name}, step {step}: {broken} is not finite"
            run.log.message(f"{problem}; saved the state before it, {run.checkpoints.path(step)}")
            raise FloatingPointError(problem)
        measured |= {f"{player.phase.name}/{name}": value for name, value in values.items()}
    state.means.add(measured)


@torch.no_grad()
def _agree(modules: Iterable[nn.Module], stop: bool, device: torch.device) -> bool:
    """Whether any rank is asked to stop; on the way, average the floating-point buffers over ranks.

    Each rank's batch statistics follow its own part of the batch. Averaged at every step, and not only when saving,
    they do not depend on how often one saves.
    """
    if dist.world_size() == 1:
        return stop
    asked = torch.tensor(float(stop), device=device)
    buffers = [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]
    dist.all_reduce_mean([*buffers, asked])
    return asked.item() > 0


def _follow_main(modules: Iterable[nn.Module]) -> None:
    """Give every rank the state of rank 0's modules; a report may have moved some, such as batch statistics."""
    for module in modules:
        dist.broadcast_module(module)


def _restore(state: TrainState, run: Run) -> int:
    """The number of steps done, their state in place and equal on every rank.

    Rank 0 chooses the checkpoint, so that no rank takes one that another finds damaged or does not see yet.
    """
    found = None
    if dist.is_main():
        run.checkpoints.clean()
        found = run.checkpoints.latest()
    done = dist.broadcast_value(None if found is None else found[0])
    if done is not None:
        state.load_state_dict(load(run.checkpoints.path(done)) if found is None else found[1])
    _follow_main(state.modules.values())
    return done or 0


def _save(state: TrainState, run: Run, done: int) -> None:
    if dist.is_main():
        run.checkpoints.save(done, {"step": done, "config": run.config, **state.state_dict()})


def _mark_finished(run: Run, steps: int) -> None:
    if dist.is_main():
        with written_aside(run.dir / "finished.json") as aside:
            aside.write_text(json.dumps({"steps": steps}), encoding="utf-8")
    run.log.message(f"{run.dir}: finished")


def _is_finished(run: Run, steps: int) -> bool:
    """Whether `task.finish` was completed after this many steps, in rank 0's eyes."""
    marker = run.dir / "finished.json"
    return dist.broadcast_value(marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["steps"] == steps)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGUSR1 only make the yielded function return True."""
    received = []
    before = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """While open, no gradient is computed for the parameters."""
    live = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in live:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in live:
            parameter.requires_grad_(True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _first_broken_gradient(player: _Player, modules: Mapping[str, nn.Module]) -> str:
    named = {
        id(parameter): f"{module_name}.{name}"
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    broken = (parameter for parameter in player.own if not parameter.grad.isfinite().all())
    return next((named.get(id(parameter), "a parameter") for parameter in broken), "all parameters together")

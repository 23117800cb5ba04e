"""All that a training run carries from step to step: networks, optimizers, loss scales, means not yet logged.

Everything else is a function of the step. So saving this and the number of steps is saving the run.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer


class Means:
    """Running means of named numbers; `take` gives them and starts again."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class TrainState:
    """The state of a run's parts, by name.

    Args:
        optimizers: by phase; two phases may share one, and its state is then kept once.
        scalers: loss scales of the phases that compute in float16.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], scalers: Mapping[str, GradScaler]
    ) -> None:
        self.modules = dict(modules)
        self.optimizers: dict[str, Optimizer] = {}
        for name, optimizer in optimizers.items():
            if not any(optimizer is known for known in self.optimizers.values()):
                self.optimizers[name] = optimizer
        self.scalers = dict(scalers)
        self.means = Means()
        self._kept: list[list[Tensor]] = []
        self._kept_scales: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """One entry for each kind of part; the tensors are the live ones."""
        states = {kind: {name: part.state_dict() for name, part in parts.items()} for kind, parts in self._parts()}
        return {**states, "means": self.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, each tensor on the device where its parameter is.

        Raises:
            ValueError: the names are not those of this run's parts.
        """
        for kind, parts in self._parts():
            if state[kind].keys() != parts.keys():
                raise ValueError(f"the checkpoint has the {kind} {sorted(state[kind])}, this task has {sorted(parts)}")
            for name, part in parts.items():
                part.load_state_dict(state[kind][name])
        self.means.load_state_dict(state["means"])

    def keep(self) -> None:
        """Remember the present state for `roll_back`, in copies on the same device.

        This costs each step one copy of the state: 0.3 GB for the mesh GAN, a fraction of a millisecond on a GPU.
        """
        live = [_tensors(part) for part in self._holders()]
        if [len(copies) for copies in self._kept] != [len(tensors) for tensors in live]:
            self._kept = [[torch.empty_like(tensor) for tensor in tensors] for tensors in live]
        for copies, tensors in zip(self._kept, live, strict=True):
            _copy(tensors, copies)
        self._kept_scales = {name: scaler.state_dict() for name, scaler in self.scalers.items()}

    def roll_back(self) -> None:
        """Go back to the state at the last `keep`. (Means are added when a step is complete, so they are there.)"""
        for part, copies in zip(self._holders(), self._kept, strict=True):
            if isinstance(part, Optimizer) and not copies:
                part.state.clear()  # it had not made its first step
            _copy(copies, _tensors(part))
        for name, scaler in self.scalers.items():
            scaler.load_state_dict(self._kept_scales[name])

    def _parts(self) -> list[tuple[str, dict[str, Any]]]:
        return [("modules", self.modules), ("optimizers", self.optimizers), ("scalers", self.scalers)]

    def _holders(self) -> list[nn.Module | Optimizer]:
        return [*self.modules.values(), *self.optimizers.values()]


def begin_with(network: nn.Module, trained: nn.Module, setting: str) -> None:
    """Give the network the weights of a trained one.

    Args:
        setting: where `trained` was named, for the message.

    Raises:
        ValueError: they are not of the same layout.
    """
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0]
        raise ValueError(
            f"{setting} is of another layout than the network to be trained ({reason}): give one of the same sizes, or "
            f"{setting}=null"
        ) from None


def _tensors(part: nn.Module | Optimizer) -> list[Tensor]:
    if isinstance(part, nn.Module):
        return [tensor.detach() for tensor in [*part.parameters(), *part.buffers()]]
    return [entry for of_one in part.state.values() for entry in of_one.values() if isinstance(entry, Tensor)]


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    """Copy each tensor onto its partner: one launch per device and dtype, for one per tensor takes milliseconds."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(source, target, strict=True):
        sources, targets = groups.setdefault((one.device, one.dtype), ([], []))
        sources.append(one)
        targets.append(other)
    for sources, targets in groups.values():
        torch._foreach_copy_(targets, sources)

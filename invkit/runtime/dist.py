"""Several processes, one per GPU, started by torchrun or by Slurm; or one process, and then nothing is started.

Every function here also works alone, where it does nothing or returns what it was given. So no caller branches.
"""

import atexit
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

Item = TypeVar("Item")

TIMEOUT = timedelta(hours=1)
"""How long the ranks wait for one that is busy alone: rank 0 reports and saves while the others wait."""


class Ranks(NamedTuple):
    """Which process this is: of all, and on its node."""

    rank: int
    world_size: int
    local_rank: int


def init() -> Ranks:
    """Join the other processes, if the environment tells of any.

    CPU tensors travel by gloo, CUDA tensors by NCCL. Calling it again changes nothing.

    Raises:
        ValueError: the environment names several processes but not where they meet.
    """
    atexit.unregister(_end)  # what begins anew has not ended
    ranks = ranks_from(os.environ)
    if ranks.world_size > 1 and not torch_dist.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            # A Slurm task may be shown its own GPU alone; then that is number 0 whatever the local rank.
            torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        torch_dist.init_process_group(
            backend,
            init_method=meeting_point(os.environ),
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=TIMEOUT,
        )
    return ranks


def finish() -> None:
    """Leave the other processes."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def end_with(status: int) -> None:
    """Have this process end with `status` when Python is done with it, without the shutdown of native libraries.

    With gloo's threads about, that shutdown aborts now and then ("terminate called without an active exception", about
    one process in ten), and a finished job would look like a failed one. The latest call counts.
    """
    atexit.register(_end, status)


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ranks_from(environment: Mapping[str, str]) -> Ranks:
    """What torchrun (RANK, ...) or, failing that, srun (SLURM_PROCID, ...) says; alone where neither does.

    A batch script of Slurm, and a shell in an allocation, see SLURM_NTASKS but are one process: only srun, which
    starts all the tasks, sets SLURM_STEP_NUM_TASKS.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank = int(environment["RANK"])
        return Ranks(rank, int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", rank)))
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        rank, world_size = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
        return Ranks(rank, world_size, int(environment["SLURM_LOCALID"]))
    return Ranks(rank=0, world_size=1, local_rank=0)


def meeting_point(environment: Mapping[str, str]) -> str:
    """The `init_method` at which the processes find each other.

    MASTER_ADDR and MASTER_PORT win. Under Slurm the first host of the step and a port made from the job's and the
    step's number stand in for them, so that two jobs on one node do not meet.

    Raises:
        ValueError: neither MASTER_ADDR and MASTER_PORT nor Slurm's variables are set.
    """
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return "env://"
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not hosts or "SLURM_JOB_ID" not in environment:
        raise ValueError("several processes but no meeting point: set MASTER_ADDR and MASTER_PORT, or use torchrun")
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
    # Below 32768, where the ports begin that the system hands out by itself.
    port = int(environment.get("MASTER_PORT", 10000 + (7 * job + step) % 20000))
    return f"tcp://{environment.get('MASTER_ADDR', first_host(hosts))}:{port}"


def first_host(hosts: str) -> str:
    """The first host of a Slurm list: `gpu[007-009,12],login1` gives `gpu007`."""
    host = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if host is None:
        raise ValueError(f"not a Slurm host list: {hosts!r}")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", host[0])


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes to the run folder."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        # Not torch_dist.barrier: it would choose a GPU even for a job on CPUs.
        torch_dist.all_reduce(torch.zeros(1))


def share(indices: Sequence[Item]) -> Sequence[Item]:
    """This rank's part: every world_size-th item, from its rank on."""
    return indices[rank() :: world_size()]


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over ranks: one message per dtype and device, however many tensors."""
    if world_size() == 1:
        return
    for group in _alike(tensors):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        torch_dist.all_reduce(flat)
        _scatter(flat / world_size(), group)


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0's `module`."""
    if world_size() == 1:
        return
    for group in _alike([*module.parameters(), *module.buffers()]):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        torch_dist.broadcast(flat, src=0)
        _scatter(flat, group)


def broadcast_value(value: Any) -> Any:
    """Rank 0's value, on every rank. It is pickled: plain values only."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def all_gather_states(state: Any) -> list[Any]:
    """Every rank's state, by rank, on every rank. It is pickled: tensors on the CPU and plain values only."""
    if world_size() == 1:
        return [state]
    states = [None] * world_size()
    torch_dist.all_gather_object(states, state)
    return states


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors grouped by dtype and device, in the order in which they come."""
    groups = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype, tensor.device].append(tensor)
    return list(groups.values())


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

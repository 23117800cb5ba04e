import pytest
import torch
from torch import nn

from invkit.runtime import dist
from invkit.runtime.dist import Ranks, first_host, meeting_point, ranks_from
from tests.invkit.toy_task import start, wait

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}


def test_who_am_i():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert ranks_from({}) == Ranks(0, 1, 0)
    assert ranks_from(torchrun) == Ranks(3, 4, 1)
    assert ranks_from(SRUN) == Ranks(5, 8, 1)
    assert ranks_from(SRUN | torchrun) == Ranks(3, 4, 1), "torchrun inside a Slurm job"
    batch_script = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert ranks_from(batch_script) == Ranks(0, 1, 0), "without srun there is one process, whatever the allocation"


def test_where_we_meet():
    assert meeting_point({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == "env://"
    here = meeting_point(SRUN)
    assert here.startswith("tcp://gpu007:")
    assert 10000 <= int(here.rsplit(":", 1)[1]) < 32768
    assert meeting_point(SRUN) == here
    assert len({meeting_point(SRUN | {"SLURM_JOB_ID": str(job)}) for job in range(4000, 5000)}) == 1000
    assert meeting_point(SRUN | {"SLURM_STEP_ID": "1"}) != here
    assert meeting_point(SRUN | {"MASTER_PORT": "123"}) == "tcp://gpu007:123"
    assert meeting_point(SRUN | {"MASTER_ADDR": "10.0.0.1"}).startswith("tcp://10.0.0.1:")
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        meeting_point({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "hosts, first",
    [
        ("login1", "login1"),
        ("node3,node4", "node3"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("a-b-[3,5-7]", "a-b-3"),
        ("rack[1-2]-node[04-05]", "rack1-node04"),
        ("node[1-2].cluster.org", "node1.cluster.org"),
    ],
)
def test_the_first_host_of_a_slurm_list(hosts, first):
    assert first_host(hosts) == first


def test_alone_nothing_is_started_and_nothing_changes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert dist.init() == Ranks(0, 1, 0)
    assert not torch.distributed.is_initialized()
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    tensor = torch.ones(2)
    dist.all_reduce_mean([tensor])
    dist.barrier()
    dist.finish()
    assert torch.equal(tensor, torch.ones(2))
    assert dist.all_gather_states({"a": 1}) == [{"a": 1}]
    assert dist.broadcast_value("x") == "x"
    assert dist.share([4, 5, 6]) == [4, 5, 6]


def try_everything(dir) -> None:
    """Called in every process of a group of 2; what it asserts, its exit status tells."""
    ranks = dist.init()
    assert dist.init() == ranks == Ranks(dist.rank(), 2, dist.rank())
    rank = ranks.rank
    assert dist.is_main() == (rank == 0)

    messages = []
    whole = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, *rest: (messages.append(tensor.numel()), whole(tensor, *rest))
    tensors = [torch.full((2, 3), float(rank)), torch.tensor(2.0 + rank), torch.full((4,), rank, dtype=torch.float64)]
    strided = torch.zeros(3, 2)
    tensors.append(strided.T)
    strided += rank
    dist.all_reduce_mean(tensors)
    assert messages == [2 * 3 + 1 + 2 * 3, 4], "one message per dtype"
    assert [tensor.unique().tolist() for tensor in tensors] == [[0.5], [2.5], [0.5], [0.5]]

    torch.manual_seed(rank)
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[1].num_batches_tracked += rank
    own = module[0].weight.detach().clone()
    dist.broadcast_module(module)
    states = dist.all_gather_states({"rank": rank, "own": own, **module.state_dict()})
    assert [state["rank"] for state in states] == [0, 1]
    assert not torch.equal(states[0]["own"], states[1]["own"])
    assert torch.equal(module[0].weight, states[0]["own"])
    assert int(module[1].num_batches_tracked) == 0

    assert dist.broadcast_value({"step": rank}) == {"step": 0}
    assert dist.share(range(5)) == [range(0, 5, 2), range(1, 5, 2)][rank]
    dist.barrier()
    dist.finish()
    (dir / str(rank)).touch()


def test_two_processes(tmp_path):
    assert wait(start(2, try_everything, tmp_path)) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2

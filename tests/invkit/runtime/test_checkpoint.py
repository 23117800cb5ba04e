import errno
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from invkit.runtime.checkpoint import Checkpoints, load, load_foreign, save


def some_state(seed: int = 0) -> dict:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    network(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": {"none": None, "list": [1, 2.5, "three", True], 7: (b"bytes", torch.tensor(1, dtype=torch.int8))},
    }


def test_a_state_comes_back_as_it_was_and_without_this_project(tmp_path):
    state = some_state()
    save(tmp_path / "new" / "state.pt", state)
    back = load(tmp_path / "new" / "state.pt")
    assert back["plain"] == {"none": None, "list": [1, 2.5, "three", True], 7: (b"bytes", torch.tensor(1))}
    assert back["network"].keys() == state["network"].keys()
    assert all(torch.equal(back["network"][name], state["network"][name]) for name in state["network"])
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])
    assert back["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=True); assert 'invkit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "new" / "state.pt"], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    "value, kind",
    [
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(3), "numpy.ndarray"),
        (torch.Size([1]), "torch.Size"),
        ({1, 2}, "builtins.set"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (torch.float32, "torch.dtype"),
        (lambda: None, "builtins.function"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_key_path_and_nothing_is_written(tmp_path, value, kind):
    with pytest.raises(ValueError, match=rf"^a\.b\[1\] is a {kind};"):
        save(tmp_path / "state.pt", {"a": {"b": [0, value]}})
    with pytest.raises(ValueError, match="keys are text or integers"):
        save(tmp_path / "state.pt", {"a": {(1, 2): 0}})
    assert list(tmp_path.iterdir()) == []


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path):
    save(tmp_path / "state.pt", {"view": torch.zeros(1_000_000)[:10]})
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path / "state.pt", {"step": 1})

    def full_disk(content, path):
        path.write_bytes(b"some bytes")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path / "state.pt", {"step": 2})
    assert load(tmp_path / "state.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_file_of_somebody_else_is_refused(tmp_path):
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is damaged or not a checkpoint"):
        load(tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load(tmp_path / "nothing.pt")


def test_the_newest_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (0, 9, 10, 1234):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-00000010.pt", "checkpoint-00001234.pt"]
    assert checkpoints.latest() == (1234, {"step": 1234})
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_some_are_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=20)
    for step in range(5, 75, 5):
        checkpoints.save(step, {"step": step})
    assert [checkpoints.path(step) for step in (20, 40, 60, 65, 70)] == checkpoints.paths()
    checkpoints.save(30, {"step": 30})  # again from before: the future goes, kept for good or not
    assert [checkpoints.path(step) for step in (20, 30)] == checkpoints.paths()
    with pytest.raises(ValueError, match="keep_every must be a number of steps"):
        Checkpoints(tmp_path, keep_every=0)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit_of_a_weight(content: bytes) -> bytes:
    at = content.index(torch.full((64,), 3.25).numpy().tobytes()) + 21
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit_of_a_weight, lambda content: b"", lambda content: b"PK\x03\x04 garbage" * 500]
)
def test_a_damaged_newest_file_falls_back_with_a_warning(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "weight": torch.full((64,), 3.25)})
    newest = checkpoints.paths()[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint-00000002\.pt is damaged.*Falling back"):
        step, payload = checkpoints.latest()
    assert step == payload["step"] == 1

    # The next save must not take the damaged file for one of the two worth keeping.
    newest.rename(tmp_path / "checkpoint-00000009.pt")
    checkpoints.save(3, {"step": 3})
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-00000001.pt", "checkpoint-00000003.pt"]


def test_a_run_does_not_begin_again_because_every_checkpoint_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.path(1).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"),
    ):
        checkpoints.latest()


def test_files_half_written_are_never_read_and_are_cleaned(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    names = [".checkpoint-00000002.pt.77.partial", "checkpoint-two.pt", "checkpoint-00000003.pt.bak"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    assert checkpoints.latest() == (1, {"step": 1})
    checkpoints.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000001.pt", *sorted(names[1:])]


# ---- the best of a run -------------------------------------------------------------------------------------------


def test_the_best_is_the_lowest_score_also_after_a_resume(tmp_path):
    scores = [0.5, 0.5, 0.7, 0.2, 0.3, -0.1, -0.1]
    kept = [Checkpoints(tmp_path).save_best(step, score, {"weight": step}) for step, score in enumerate(scores)]
    assert kept == [True, False, False, True, False, True, False]
    assert load(tmp_path / "best.pt") == {"weight": 5, "step": 5, "score": -0.1}


def test_a_score_that_is_no_better_leaves_the_file_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(1, 0.5, {"weight": torch.zeros(3)})
    before = checkpoints.best.stat().st_ino, checkpoints.best.read_bytes()
    for score in (0.5, 0.6, float("nan"), float("inf")):
        assert not checkpoints.save_best(2, score, {"weight": torch.ones(3)})
    assert (checkpoints.best.stat().st_ino, checkpoints.best.read_bytes()) == before


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_the_best(tmp_path, score):
    assert not Checkpoints(tmp_path).save_best(1, score, {})
    assert list(tmp_path.iterdir()) == []


def test_the_best_says_its_own_step(tmp_path):
    """A payload says its step too, and the two must not contradict each other."""
    payload = {"step": 3, "config": {"score": 1}}
    Checkpoints(tmp_path).save_best(7, torch.tensor(0.25).item(), payload)
    assert load(tmp_path / "best.pt") == {"step": 7, "score": 0.25, "config": {"score": 1}}
    assert payload == {"step": 3, "config": {"score": 1}}


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_a_weight, lambda content: b""])
def test_a_damaged_best_is_replaced_with_a_warning(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(1, 0.1, {"weight": torch.full((64,), 3.25)})
    checkpoints.best.write_bytes(damage(checkpoints.best.read_bytes()))
    with pytest.warns(UserWarning, match=r"best\.pt is damaged.*It is replaced"):
        assert checkpoints.save_best(2, 0.9, {})
    assert load(checkpoints.best) == {"step": 2, "score": 0.9}


def test_a_file_without_a_score_is_replaced_with_a_warning(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints.best, {"step": 1})
    with pytest.warns(UserWarning, match=r"best\.pt has no score"):
        assert checkpoints.save_best(2, 0.9, {})
    assert load(checkpoints.best)["score"] == 0.9


def test_resuming_and_pruning_do_not_see_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save_best(5, 0.5, {"weight": 5})
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    assert checkpoints.latest() == (3, {"step": 3})
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-00000003.pt"]
    (tmp_path / ".best.pt.77.partial").write_bytes(b"half")
    checkpoints.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "checkpoint-00000003.pt"]


@pytest.mark.parametrize("read", [load, load_foreign])
def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path, read, monkeypatch):
    save(tmp_path / "a.pt", {"a": torch.zeros(1000)})
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as b,
    ):
        for member in whole.infolist():
            b.writestr(member.filename, whole.read(member))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"b\.pt is damaged.*unpacks to more than its size"):
        read(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "fault, kind",
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.ESTALE, "Stale file handle"), OSError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), MemoryError),
        (MemoryError(), MemoryError),
    ],
)
def test_a_fault_that_may_pass_is_not_taken_for_damage(tmp_path, monkeypatch, fault, kind):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": 1})
    checkpoints.save(2, {"a": 2})
    checkpoints.save_best(2, 0.5, {"a": 2})
    before = checkpoints.best.read_bytes()

    def fail(*_, **__):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        for read in (checkpoints.latest, lambda: checkpoints.save_best(3, 0.7, {"a": 3})):
            with pytest.raises(kind, match=r"checkpoint-00000002|best") as caught:
                read()
            assert not isinstance(caught.value, ValueError)
    assert checkpoints.best.read_bytes() == before
    assert checkpoints.latest()[1] == {"a": 2}

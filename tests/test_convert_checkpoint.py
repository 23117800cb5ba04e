"""scripts/convert_checkpoint.py on files in the released layout, good and bad."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from invkit.runtime import checkpoint
from invkit.runtime.run import load_module
from meshinv.generator import Generator
from tests.meshinv import test_discriminators, test_generator, test_patch
from tests.meshinv.formulas import filled


def single(state: dict) -> dict:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def small_released() -> dict:
    net = Generator(num_classes=5, latent_dim=16, width=0.125, texture_size=128)
    return {"generator_running_avg": net.state_dict(), "epoch": 3, "iteration": 40}


def test_released_networks_answer_after_conversion_as_before(tmp_path, convert, capsys):
    """All of them in one file: the generator with vectors of unit length, its average with shorter ones."""
    layout = test_generator.published_layout()
    source, target, back = tmp_path / "checkpoint_latest.pth", tmp_path / "new" / "cub.pt", tmp_path / "back.pth"
    before = {
        "generator": single(filled(layout)),
        "generator_running_avg": single(filled(layout, rho=0.9)),
        "discriminator": single(filled(test_discriminators.published_layout())),
        "patchD": single(filled(test_patch.published_layout())),
        "self.optimizer_d": torch.optim.Adam([torch.zeros(1)]).state_dict(),
        "epoch": 599,
        "iteration": 111_600,
        "d_fake_curve": [np.float64(0.5), np.float32(0.25)],
        "self.args": {"loss": "hinge", "lr_g": np.float64(1e-4), "n_classes": [200]},
    }
    torch.save(before, source, _use_new_zipfile_serialization=False)  # as torch wrote files in 2020
    convert(source, target)
    printed = capsys.readouterr().out
    assert "loss = hinge" in printed
    assert "lr_g = 0.0001" in printed
    assert "generator_ema: 179 entries" in printed
    assert "num_classes = 200" in printed

    test_generator.assert_released_answers(load_module(target), rho=1.0)
    test_generator.assert_released_answers(load_module(target, "generator", "generator_ema"), rho=0.9)
    test_discriminators.assert_released_answers(load_module(target, "discriminator").double(), 1e-6)
    test_patch.assert_released_answers(load_module(target, "image_discriminator").double(), 1e-6)

    convert(target, back, "--to-released")
    after = torch.load(back, weights_only=True)
    for entry in ("generator", "generator_running_avg", "discriminator", "patchD"):
        assert list(after[entry]) == list(before[entry])
        assert all(torch.equal(after[entry][name], value) for name, value in before[entry].items())
    assert {name: after[name] for name in ("epoch", "iteration", "self.args")} == {
        name: before[name] for name in ("epoch", "iteration", "self.args")
    }


def test_numbers_of_an_older_numpy_are_read(tmp_path, convert, capsys):
    source = tmp_path / "old.pth"
    torch.save(small_released() | {"args": {"lr_g": np.float64(0.5)}}, source, _use_new_zipfile_serialization=False)
    here, there = b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"
    found = source.read_bytes()
    assert here in found or there in found
    source.write_bytes(found.replace(here, there))
    convert(source, tmp_path / "new.pt")
    assert "lr_g = 0.5" in capsys.readouterr().out


def test_a_run_goes_out_by_its_newest_checkpoint(tmp_path, convert, capsys):
    run = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    node = {"_target_": "meshinv.generator.Generator", "num_classes": 0, "texture_size": 128}
    for step in (1, 2):
        state = (newest := Generator(0, texture_size=128)).state_dict()
        run.save(step, {"step": step, "config": {"task": {"generator": node}}, "modules": {"generator": state}})
    convert(tmp_path / "run", tmp_path / "ours.pth", "--to-released")
    assert "texture_resolution = 128" in capsys.readouterr().out
    there = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert there["iteration"] == 2
    assert torch.equal(there["generator"]["fc.weight"], newest.fc.weight)


class Command:
    def __reduce__(self):
        return os.system, ("touch broken_in",)


def test_a_file_that_would_run_code_is_refused(tmp_path, convert, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(small_released() | {"self.args": Command()}, tmp_path / "bad.pth", **options)
        assert_refused(tmp_path / "bad.pth", convert, capsys, r"asks for (posix|nt)\.system")
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"generator": Command()}, protocol=2))
    assert_refused(tmp_path / "bad.pth", convert, capsys, r"asks for (posix|nt)\.system|damaged or not a checkpoint")
    torch.save(small_released() | {"self.args": np.array([1, "a"], dtype=object)}, tmp_path / "bad.pth")
    assert_refused(tmp_path / "bad.pth", convert, capsys, r"asks for numpy\.dtype")
    assert not (tmp_path / "broken_in").exists()


def assert_refused(source: Path, convert, capsys, message: str, *options: str) -> None:
    """One line that says why, status 2, and nothing written beside the input or in its place."""
    before = {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as refused:
        convert(source, source.parent / "target.pt", *options)
    assert refused.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert str(source) in told.err
    assert re.search(message, told.err), told.err
    assert {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()} == before


def test_damaged_files_are_refused(tmp_path, convert, capsys):
    source = tmp_path / "bad.pth"
    assert_refused(source, convert, capsys, "there is no checkpoint")
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(small_released(), source, **options)
        whole = source.read_bytes()
        source.write_bytes(whole[: len(whole) // 2])
        assert_refused(source, convert, capsys, "damaged or not a checkpoint")
    torch.save(small_released(), source)
    changed = bytearray(source.read_bytes())
    changed[len(changed) // 2] ^= 1
    source.write_bytes(changed)
    assert_refused(source, convert, capsys, "wrong checksum")
    source.write_bytes(b"")
    assert_refused(source, convert, capsys, "damaged or not a checkpoint")
    source.write_text("weights")
    assert_refused(source, convert, capsys, "damaged or not a checkpoint")
    torch.save([1, 2], source)
    assert_refused(source, convert, capsys, "holds a list")


def test_networks_that_do_not_fit_are_refused(tmp_path, convert, capsys):
    source = tmp_path / "odd.pth"
    payload = small_released()
    entry = payload["generator_running_avg"].pop("blk6.conv2.weight_v")
    torch.save(payload, source)
    assert_refused(source, convert, capsys, r"generator_running_avg: lacks blk6\.conv2\.weight_v")
    payload["generator_running_avg"]["blk6.conv2.weight_v"] = entry[:-1]
    torch.save(payload, source)
    assert_refused(source, convert, capsys, r"blk6\.conv2\.weight_v is \[71\] and not \[72\]")
    payload["generator_running_avg"]["blk6.conv2.weight_v"] = entry
    torch.save(payload, source)
    convert(source, tmp_path / "ours.pt")
    assert "does not say which adversarial loss" in capsys.readouterr().out
    assert_refused(tmp_path / "ours.pt", convert, capsys, "one of our checkpoints")
    assert_refused(tmp_path / "ours.pt", convert, capsys, r"task\.generator\.width=0\.125", "--to-released")
    assert_refused(tmp_path, convert, capsys, "holds no checkpoint", "--to-released")


def test_the_input_is_not_overwritten(tmp_path, convert, capsys):
    source = tmp_path / "target.pt"
    torch.save(small_released(), source)
    assert_refused(source, convert, capsys, "is the input")

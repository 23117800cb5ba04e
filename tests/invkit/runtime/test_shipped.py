import pytest

from invkit.runtime.run import load_module
from invkit.runtime.shipped import located, shipped


def test_every_network_that_ships_has_a_name_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = shipped()
    assert {"meshinv/real_birds", "meshinv/synthetic_birds", "nerfinv/real_birds_encoder"} <= set(known)
    for name, file in known.items():
        assert located(name) == file
        method, _, stem = name.partition("/")
        assert located(f"{method}/checkpoints/{stem}.pt") == file  # as stored configurations and cards have it
    assert located("real_birds_encoder") == known["nerfinv/real_birds_encoder"]
    assert load_module("nerfinv/synthetic_birds", "generator", "generator_ema").num_styles > 0


def test_a_file_or_folder_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshinv").mkdir()
    (tmp_path / "meshinv" / "real_birds").mkdir()
    assert located("meshinv/real_birds").samefile(tmp_path / "meshinv" / "real_birds")


@pytest.mark.parametrize(
    "name, error, said",
    [
        ("real_birds", ValueError, "say meshinv/real_birds or nerfinv/real_birds"),
        (
            "meshinv/real_brids",
            FileNotFoundError,
            "did you mean meshinv/real_birds.*there are ",
        ),
        ("runs/mine/checkpoints/best.pt", FileNotFoundError, "runs/mine/checkpoints/best.pt: there is no such file"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(name, error, said):
    with pytest.raises(error, match=said):
        located(name)

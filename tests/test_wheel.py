"""What is installed is complete: the wheel has configurations, scripts and networks, and its command works anywhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from what git tracks, so that no build folder is left in the repository."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True)
    if archive.returncode:
        pytest.skip("the wheel is built of a git checkout")
    subprocess.run(["tar", "x", "-C", str(source)], input=archive.stdout, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(made), "."]
    subprocess.run(build, cwd=source, check=True)
    (file,) = made.glob("*.whl")
    return file


@pytest.mark.slow
def test_everything_that_runs_is_in_it_and_works_in_an_empty_folder(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, folder in (("configs/**/*.yaml", "invkit/"), ("scripts/*.py", "invkit/")):
        for path in ROOT.glob(kind):
            if path.name != "benchmark.py":
                assert f"{folder}{path.relative_to(ROOT).as_posix()}" in names
    for path in [
        *ROOT.glob("*/checkpoints/*"),
        *(file for p in ("invkit", "meshinv", "nerfinv") for file in ROOT.glob(f"{p}/**/*.py")),
    ]:
        assert path.relative_to(ROOT).as_posix() in names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    here = tmp_path / "empty"
    here.mkdir()
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)

    assert str(tmp_path / "site") in call("-c", "import invkit; print(invkit.__file__)").stdout
    assert "reconstruct" in call("-m", "invkit").stdout
    assert "inv3d reconstruct" in call("-m", "invkit", "reconstruct", "--help").stdout
    code = "from invkit.reconstruction import Reconstructor; print(Reconstructor.load('real_birds').size)"
    assert call("-c", code).stdout.strip() == "128"
    assert not list(here.iterdir())

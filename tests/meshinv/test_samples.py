"""scripts/samples.py of meshes: what a trained generator makes is shown and measured."""

import json
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image

from invkit.data import cub
from invkit.data.synthetic import write_birds
from invkit.evaluation.viewpoints import azimuth_ring
from invkit.geometry.camera import Camera
from invkit.images import read_image
from invkit.runtime import checkpoint
from meshinv.generator import Generator
from meshinv.mesh import UVMaps
from meshinv.prior import MeshPrior, truncated_normal
from meshinv.pseudo_truth import CameraCorrections, write_metadata, write_pseudo_truth
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.quality import stem
from meshinv.template import Template
from tests.test_dry_runs import run

BIRDS, SIZE, TEXTURE = 3, 128, 64
OPTIONS = {"num_classes": 2, "width": 0.0625, "texture_size": TEXTURE}
pytestmark = pytest.mark.filterwarnings("ignore:fid@")


def generator() -> Generator:
    torch.manual_seed(0)
    net = Generator(**OPTIONS)
    torch.nn.init.normal_(net.conv_mesh.weight, std=0.01)
    return net


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Birds, their pseudo ground truth, and the run of a small generator."""
    root = tmp_path_factory.mktemp("world")
    write_birds(root / "birds", train=BIRDS, val=2, test=2, num_species=2, novel_views=1, photo_size=(64, 80))
    records = cub.read_records(root / "birds", "train")
    rng = torch.Generator().manual_seed(1)
    (root / "truth").mkdir()
    for place in range(BIRDS):
        maps = UVMaps(torch.rand(1, 3, TEXTURE, TEXTURE, generator=rng), torch.zeros(1, 3, 32, 32) + 0.01 * place)
        write_pseudo_truth(root / "truth", place, maps, torch.ones(1, 1, TEXTURE, TEXTURE), torch.zeros(1, 3, 64, 64))
    write_metadata(
        root / "truth",
        paths=[f"{record.name}.jpg" for record in reversed(records)],  # in another order than the photographs
        labels=torch.tensor([record.label for record in reversed(records)]),
        camera=Camera.from_cmr(torch.tensor([[0.5, 0, 0, 1, 0, 0, 0.0]]).expand(BIRDS, 7)),
        corrections=CameraCorrections(BIRDS),
        iou=torch.ones(BIRDS),
    )
    config = {"task": {"generator": {"_target_": "meshinv.generator.Generator", **OPTIONS}}}
    weights = {f"module.{key}": value for key, value in generator().state_dict().items()}
    file = root / "training" / "checkpoints" / "checkpoint-00000001.pt"
    checkpoint.save(file, {"step": 1, "config": config, "modules": {"generator_ema": weights}})
    return root


def overrides(world: Path, folder: Path, *more: str) -> list[str]:
    small = ["count=2", "sides=3", "frames=4", "meshes=1", f"task.renderer.size={SIZE}"]
    where = [f"training={world / 'training'}", f"run.dir={folder}", "run.device=cpu", "run.seed=5"]
    return ["experiment=meshinv_pretrain_synthetic", *where, *small, *more]


def test_samples_are_shown(world, tmp_path, monkeypatch):
    run("samples", overrides(world, tmp_path), monkeypatch)
    assert read_image(tmp_path / "samples.png").shape == (3, 2 * SIZE, 3 * SIZE)
    assert read_image(tmp_path / "transfers.png").shape == (3, 2 * SIZE, 2 * SIZE)
    with Image.open(tmp_path / "interpolation.gif") as film:
        assert film.n_frames == 4
    assert trimesh.load(tmp_path / "sample_0.glb", force="mesh").faces.shape == (960, 3)
    assert not (tmp_path / "sample_1.glb").exists()
    assert not (tmp_path / "result.json").exists()
    # The pictures are those of the weights: the first object from all sides, with the latents and class of the seed.
    prior, rng = MeshPrior(generator(), Template()), torch.Generator().manual_seed(5)
    latents = truncated_normal((2, 64), 0.25, rng)
    mesh = prior.decode(latents[:1], torch.randint(2, (2,), generator=rng)[:1]).centered()
    expected = MeshRenderer(SIZE)(mesh.repeat(3), azimuth_ring(3)).over(1.0).clamp(-1, 1) / 2 + 0.5
    row = read_image(tmp_path / "sides.png")[:, :SIZE].unflatten(2, (3, SIZE)).movedim(2, 0)
    assert (row - expected).abs().mean() < 0.005


MEASURED = ["measure=true", "frames=0", "meshes=0", "quality@task.quality=squeezenet", "task.data.num_classes=2"]


def test_samples_are_measured_whole_and_in_parts(world, tmp_path, monkeypatch):
    photographs = [f"task.quality.data.root={world / 'birds'}", f"task.data.root={world / 'truth'}"]
    more = [*MEASURED, "task.quality.features.weights=random", *photographs, "task.quality.data.split=train"]
    run("samples", overrides(world, tmp_path, *more), monkeypatch)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found.keys() == {"full", "texture", "mesh"}
    numbers = [found[part]["fid@squeezenet-random"] for part in found]
    assert len(set(numbers)) == 3
    assert all(number > 0 for number in numbers)


def test_photographs_without_pseudo_truth_are_measured_whole(world, tmp_path, monkeypatch):
    photographs = [f"task.quality.data.root={world / 'birds'}", f"task.data.root={world / 'truth'}"]
    more = [*MEASURED, "task.quality.features.weights=random", *photographs, "task.quality.data.split=test"]
    run("samples", overrides(world, tmp_path, *more), monkeypatch)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found.keys() == {"full", "not_measured"}
    assert "task.quality.data.split=train" in found["not_measured"]["texture"]


def test_nothing_to_measure_with_is_said(world, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        run("samples", overrides(world, tmp_path, "measure=true", "task.quality=null"), monkeypatch)


def test_a_network_of_the_other_method_is_refused(world, tmp_path, monkeypatch, capsys):
    other = "prior.generator.path=nerfinv/checkpoints/synthetic_birds.pt"
    with pytest.raises(SystemExit) as refused:
        run("samples", overrides(world, tmp_path, other), monkeypatch)
    assert refused.value.code == 2
    assert "give a network of its method" in capsys.readouterr().err


def test_names_are_compared_without_the_suffixes_of_files():
    assert [stem(name) for name in ("a/b.JPEG", "a/b", "a/b.c")] == ["a/b", "a/b", "a/b.c"]

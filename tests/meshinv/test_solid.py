"""Solids of meshes and of ground truth, and what novel views of ground truth show."""

import numpy as np
import pytest
import torch

from invkit.data.ground_truth import GroundTruth
from invkit.data.synthetic import write_birds
from invkit.evaluation.viewpoints import Frame
from invkit.geometry.camera import Camera
from invkit.images import composite
from invkit.metrics.voxels import Grid, union
from meshinv.mesh import TexturedMesh
from meshinv.solid import solid
from meshinv.template import Template


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    root = tmp_path_factory.mktemp("birds") / "it"
    write_birds(root, train=2, val=2, test=2, num_species=2, novel_views=2, photo_size=(64, 80))
    return root


def test_a_moved_sphere_is_filled_where_it_lies():
    template = Template(16)
    mesh = TexturedMesh(template.vertices[None].float(), torch.zeros(1, 3, 8, 8), template)
    offset = torch.tensor([[0.3, -0.2, 0.1]])
    frame = Frame(torch.tensor([[0.8, 0.2, -0.4, 0.4]]), torch.tensor([0.7]), offset)
    grid = Grid(40, -1.5, 1.5)
    filled = solid(mesh, frame, grid)[0]
    axis = -1.5 + (torch.arange(40) + 0.5) * 3 / 40
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    radius = (centers - offset[0]).norm(dim=-1)
    assert bool(filled[radius < 0.67].all())
    assert not bool(filled[radius > 0.71].any())


def test_ground_truth_is_one_solid_of_overlapping_parts(birds):
    truth = GroundTruth(birds)
    file = sorted((birds / "ground_truth").glob("*.npz"))[0]
    name = f"some/folder/{file.stem}"
    assert name in truth
    assert "some/folder/other" not in truth
    grid = Grid(32)
    filled = union(truth.parts(name), grid)
    step = 3 / 32
    with np.load(file) as stored:
        vertices = torch.from_numpy(stored["vertices"])
    centers = -1.5 + (filled.nonzero() + 0.5) * step
    assert bool((centers.amin(0) > vertices.amin(0) - step).all())
    assert bool((centers.amax(0) < vertices.amax(0) + step).all())
    # As large as the hull of the silhouettes allows, and not hollow.
    parts = [union([part], grid) for part in truth.parts(name)]
    assert max(int(part.sum()) for part in parts) < int(filled.sum()) <= sum(int(part.sum()) for part in parts)


def test_novel_views_show_the_true_shape_from_their_cameras(birds):
    truth = GroundTruth(birds)
    file = sorted((birds / "ground_truth").glob("*.npz"))[0]
    views = truth.views(f"x/{file.stem}")
    assert len(views) == 2
    with np.load(file) as stored:
        vertices, novel = torch.from_numpy(stored["vertices"]).float(), stored["novel_rgb"]
    on_white = ((composite(views.rgb, views.mask) / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1)
    assert (on_white.int() - torch.from_numpy(novel).int()).abs().max() <= 1
    placed = views.camera.project(vertices.expand(2, -1, 3))[..., :2]
    size = views.mask.shape[-1]
    pixel = ((placed + 1) * size / 2).long().clamp(0, size - 1)
    for k in range(2):
        assert float((views.mask[k, 0, pixel[k, :, 1], pixel[k, :, 0]] > 0).float().mean()) > 0.97
        columns = views.mask[k, 0].amax(dim=0).nonzero().flatten()
        assert abs(float(placed[k, :, 0].min() + 1) * size / 2 - float(columns.min())) < 1.5


def test_missing_and_damaged_ground_truth(birds, tmp_path):
    with pytest.raises(FileNotFoundError, match="no ground truth"):
        GroundTruth(tmp_path)
    (tmp_path / "ground_truth").mkdir()
    (tmp_path / "ground_truth" / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.npz"):
        GroundTruth(tmp_path).views("x/a")
    with pytest.raises(FileNotFoundError):
        GroundTruth(tmp_path).parts("x/b")


def test_cameras_of_novel_views_are_weak_perspective(birds):
    file = sorted((birds / "ground_truth").glob("*.npz"))[0]
    camera = GroundTruth(birds).views(file.stem).camera
    assert isinstance(camera, Camera)
    assert not camera.inv_focal.any()

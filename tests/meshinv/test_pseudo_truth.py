"""Photographs to UV maps and back: projection, files, mirroring, camera corrections."""

import numpy as np
import pytest
import torch

from invkit.camera import Camera
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.pseudo_truth import (
    CameraCorrections,
    PseudoTruthSet,
    project_photographs,
    write_metadata,
    write_pseudo_truth,
)
from meshinv.renderers.reference import MeshRenderer
from meshinv.template import Template, mirror_maps, unfold


def smooth_texture(size: int) -> torch.Tensor:
    x = (torch.arange(size) + 0.5) / size * 2 * torch.pi
    y = (torch.arange(size) + 0.5) / size * torch.pi
    return torch.stack([x.cos() * y.sin()[:, None], x.sin() * y.sin()[:, None], y.cos()[:, None].expand(size, size)])[
        None
    ]


def side_camera(count: int = 1) -> Camera:
    return Camera.from_cmr(torch.tensor([[0.7, 0.05, -0.1, 0.8, 0.2, -0.4, 0.4]]).expand(count, 7))


def make_set(folder, count: int = 3, *, labels: bool = True) -> Camera:
    """A folder of pseudo ground truth with known contents; texture i is filled with i / 10."""
    camera = side_camera(count)
    corrections = CameraCorrections(count)
    torch.nn.init.constant_(corrections.scale, 0.1)
    for i in range(count):
        maps = UVMaps(torch.full((1, 3, 8, 8), i / 10), torch.full((1, 3, 4, 4), -i / 10))
        write_pseudo_truth(folder, i, maps, torch.ones(1, 1, 8, 8), torch.zeros(1, 3, 16, 16))
    write_metadata(
        folder,
        paths=[f"bird_{i}" for i in range(count)],
        labels=torch.arange(count) if labels else None,
        camera=camera,
        corrections=corrections,
        iou=torch.linspace(0.2, 0.9, count),
    )
    return camera


def test_projecting_a_rendering_gives_the_texture_back_where_it_is_seen():
    template, texture = Template(), smooth_texture(64)
    mesh = TexturedMesh(0.7 * template.vertices[None], texture, template)
    camera = side_camera()
    photograph = MeshRenderer(256)(mesh, camera).rgb
    found, alpha = project_photographs(mesh, camera, photograph, size=64, visibility_size=512)
    # A sphere shows half of itself; texels at its outline mix with the background.
    assert 0.35 < alpha.mean() < 0.6
    inside = torch.nn.functional.avg_pool2d(alpha, 5, stride=1, padding=2) == 1
    inside[:, :, :8] = inside[:, :, -8:] = False  # the caps around the poles are stretched
    error = (found - texture).abs().amax(1, keepdim=True)[inside]
    assert inside.float().mean() > 0.15
    assert error.median() < 0.03
    assert error.quantile(0.95) < 0.15
    assert found[alpha.expand_as(found) == 0].abs().max() == 0


def test_what_is_written_is_read(tmp_path):
    camera = make_set(tmp_path)
    data = PseudoTruthSet(tmp_path, num_classes=3)
    assert (len(data), data.names) == (3, ["bird_0", "bird_1", "bird_2"])
    both = data.batch([2, 0])
    assert both.maps.texture[0].unique().item() == pytest.approx(0.2, abs=1e-3)  # stored as float16
    assert both.maps.displacement[0].unique().item() == pytest.approx(-0.2)
    assert both.label.tolist() == both.index.tolist() == [2, 0]
    torch.testing.assert_close(both.camera.scale, camera.scale[:2] + 0.1)  # with the learned correction
    torch.testing.assert_close(both.camera.quat, camera.quat[:2])


def test_files_are_plain_arrays_in_the_published_layout(tmp_path):
    make_set(tmp_path)
    with np.load(tmp_path / "1.npz", allow_pickle=False) as arrays:
        assert {name: (arrays[name].shape, str(arrays[name].dtype)) for name in arrays.files} == {
            "mesh": ((3, 4, 4), "float32"),
            "texture": ((3, 8, 8), "float16"),
            "texture_alpha": ((1, 8, 8), "float16"),
            "image": ((3, 16, 16), "float16"),
        }
    with np.load(tmp_path / "poses_metadata.npz", allow_pickle=False) as poses:
        assert poses["translation"].shape == (3, 3)
        assert (poses["translation"][:, 2] == 0).all()


def test_poor_reconstructions_can_be_left_out(tmp_path):
    make_set(tmp_path)
    data = PseudoTruthSet(tmp_path, min_iou=0.5)
    assert data.names == ["bird_1", "bird_2"]
    assert data[0].maps.displacement.unique().item() == pytest.approx(-0.1)
    assert data[0].label is None
    with pytest.raises(ValueError, match="no image reaches min_iou"):
        PseudoTruthSet(tmp_path, min_iou=0.99)


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="pseudo_truth"):
        PseudoTruthSet(tmp_path)
    make_set(tmp_path)
    (tmp_path / "1.npz").unlink()
    with pytest.raises(ValueError, match="2 pseudo-truth files for 3 poses"):
        PseudoTruthSet(tmp_path)


def test_labels_that_do_not_fit_are_named(tmp_path):
    make_set(tmp_path)
    with pytest.raises(ValueError, match="num_classes=2"):
        PseudoTruthSet(tmp_path, num_classes=2)
    make_set(tmp_path, labels=False)
    with pytest.raises(ValueError, match="label runs from -1"):
        PseudoTruthSet(tmp_path, num_classes=3)


def test_mirroring_is_the_mirrored_object(tmp_path, rng):
    make_set(tmp_path)
    sample = PseudoTruthSet(tmp_path)[0]
    texture = torch.rand(1, 3, 8, 8, generator=rng)
    symmetric = unfold(torch.rand(1, 3, 4, 2, generator=rng))
    sample = sample.__class__(
        UVMaps(texture, symmetric), texture[:, :1], sample.camera, sample.label, sample.index
    ).mirror()
    assert torch.equal(sample.maps.displacement, symmetric)  # a symmetric shape is its own mirror image
    assert torch.equal(sample.maps.texture, mirror_maps(texture))
    assert torch.equal(sample.alpha, mirror_maps(texture[:, :1]))


def test_a_mirrored_image_has_its_correction_mirrored():
    corrections = CameraCorrections(2)
    with torch.no_grad():
        corrections.scale.copy_(torch.tensor([0.1, 0.2]))
        corrections.shift.copy_(torch.tensor([[0.3, 0.4], [0.5, 0.6]]))
    camera = side_camera(2)
    both = corrections(camera, torch.tensor([1, 1]), torch.tensor([False, True]))
    torch.testing.assert_close(both.scale, camera.scale + 0.2)
    torch.testing.assert_close(both.shift - camera.shift, torch.tensor([[0.5, 0.6], [-0.5, 0.6]]))
    # Mirroring the corrected camera and correcting the mirrored camera is the same.
    mirrored = corrections(camera[0].mirror(), torch.tensor([1]), torch.tensor([True]))
    torch.testing.assert_close(mirrored.shift, corrections(camera[0], torch.tensor([1])).mirror().shift)

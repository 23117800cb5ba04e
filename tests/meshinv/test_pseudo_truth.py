"""Photographs to UV maps and back: projection, files, mirroring, camera corrections."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.pseudo_truth import CameraCorrections, PseudoTruth, project_photographs, write_metadata, write_pseudo_truth
from meshinv.pseudo_truth_set import PseudoTruthSet
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


@pytest.fixture
def lopsided(rng) -> PseudoTruth:
    """Four symmetric bodies with lopsided textures and what their cameras see, in float64."""
    count, template = 4, Template()
    texture = torch.rand(count, 3, 32, 32, generator=rng).repeat_interleave(2, 2).repeat_interleave(2, 3) * 2 - 1
    maps = UVMaps(texture.double(), unfold(0.1 * torch.randn(count, 3, 32, 16, generator=rng)).double())
    camera = Camera(
        rotation.random(count, rng),
        torch.tensor([0.5, 0.6, 0.55, 0.65]),
        torch.tensor([[0.1, -0.2], [-0.15, 0.1], [0.2, 0.0], [0.0, 0.1]]),
        torch.tensor([0.0, 0.1, 0.2, 0.3]),
    ).to("cpu", dtype=torch.float64)
    image = MeshRenderer(48)(maps.mesh(template), camera).rgb
    label, index = torch.tensor([7, 5, 3, 1]), torch.tensor([10, 20, 30, 40])
    return PseudoTruth(maps, texture[:, :1].double(), camera, label, index, image)


@pytest.mark.parametrize("chosen", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
def test_the_chosen_are_mirrored_and_all_keep_their_places(lopsided, chosen):
    some = lopsided.mirror_some(torch.tensor(chosen, dtype=torch.bool))
    assert torch.equal(some.label, lopsided.label)
    assert torch.equal(some.index, lopsided.index)
    # What the mirrored maps look like from the mirrored cameras is the flipped picture, but for ties at outlines.
    image = MeshRenderer(48)(some.maps.mesh(Template()), some.camera)
    for b, flip in enumerate(chosen):
        expected = lopsided.image[b].flip(-1) if flip else lopsided.image[b]
        other = lopsided.image[b] if flip else lopsided.image[b].flip(-1)
        assert torch.equal(some.image[b], expected)
        assert ((image.rgb[b] - expected).abs().amax(0) > 1e-6).double().mean() < 0.002
        assert ((image.rgb[b] - other).abs().amax(0) > 0.1).double().mean() > 0.1
        alpha = mirror_maps(lopsided.alpha[b : b + 1])[0] if flip else lopsided.alpha[b]
        assert torch.equal(some.alpha[b], alpha)


def test_samples_without_photograph_and_class_are_mirrored_too(lopsided):
    bare = replace(lopsided, label=None, image=None).mirror_some(torch.tensor([True, False, False, True]))
    whole = lopsided.mirror_some(torch.tensor([True, False, False, True]))
    assert bare.image is None
    assert bare.label is None
    assert torch.equal(bare.maps.texture, whole.maps.texture)
    assert torch.equal(bare.camera.quat, whole.camera.quat)


def test_photographs_come_at_the_size_that_is_asked_for(tmp_path, rng):
    make_set(tmp_path)
    stored = torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1
    maps = UVMaps(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4))
    write_pseudo_truth(tmp_path, 1, maps, torch.ones(1, 1, 8, 8), stored)
    assert PseudoTruthSet(tmp_path)[1].image is None
    same = PseudoTruthSet(tmp_path, image_size=16)[1].image
    torch.testing.assert_close(same, stored, rtol=0, atol=1e-3)  # stored as float16
    half = PseudoTruthSet(tmp_path, image_size=8).batch([0, 1]).image
    assert half.shape == (2, 3, 8, 8)
    # A triangle of twice the step: weights 1/8, 3/8, 3/8, 1/8 along both axes, away from the border.
    weight = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for i, j in [(1, 1), (3, 5), (6, 2)]:
        patch = same[0, :, 2 * i - 1 : 2 * i + 3, 2 * j - 1 : 2 * j + 3]
        expected = (patch * weight[:, None] * weight).sum((1, 2))
        torch.testing.assert_close(half[1, :, i, j], expected, rtol=0, atol=1e-5)


def perspective_set(folder: Path) -> tuple[Camera, CameraCorrections]:
    make_set(folder)
    corrections = CameraCorrections(3, perspective=True)
    with torch.no_grad():
        corrections.scale.copy_(torch.tensor([0.1, 0.2, 0.3]))
        corrections.shift.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.2], [-0.3, 0.1]]))
        corrections.z0.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    camera = side_camera(3)
    write_metadata(
        folder, paths=["a", "b", "c"], labels=None, camera=camera, corrections=corrections, iou=torch.ones(3)
    )
    return camera, corrections


def test_cameras_come_corrected_or_as_annotated(tmp_path):
    annotated, _ = perspective_set(tmp_path)
    learned = PseudoTruthSet(tmp_path).batch([0, 1, 2]).camera
    torch.testing.assert_close(learned.scale, annotated.scale + torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(learned.shift - annotated.shift, torch.tensor([[0.1, 0.0], [0.0, 0.2], [-0.3, 0.1]]))
    torch.testing.assert_close(learned.quat, annotated.quat)
    focal = 1 + np.exp([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(learned.inv_focal, 1 / focal, rtol=1e-6)
    plain = PseudoTruthSet(tmp_path, corrected=False).batch([0, 1, 2]).camera
    assert torch.equal(plain.to_cmr(), annotated.to_cmr())
    assert (plain.inv_focal == 0).all()


def test_the_perspective_is_written_as_it_was_learned(tmp_path):
    perspective_set(tmp_path)
    with np.load(tmp_path / "poses_metadata.npz", allow_pickle=False) as poses:
        np.testing.assert_array_equal(poses["z0"], [[-1.0], [0.0], [2.0]])
    make_set(tmp_path)
    with np.load(tmp_path / "poses_metadata.npz", allow_pickle=False) as poses:
        assert "z0" not in poses
    assert (PseudoTruthSet(tmp_path).batch([0, 1]).camera.inv_focal == 0).all()


def test_a_learned_perspective_finds_the_focal_length():
    """From where points of a known shape land; each image has a focal length, and one index may come twice."""
    focal = torch.tensor([1.6, 3.0, 6.0])
    points = 0.8 * Template().vertices[::7].expand(3, -1, -1)
    weak = side_camera(3)
    target = replace(weak, inv_focal=1 / focal).project(points)[..., :2]
    corrections = CameraCorrections(3, perspective=True)
    assert (corrections.z0 == 1).all()
    optimizer = torch.optim.Adam([corrections.z0], lr=0.05)
    index = torch.tensor([2, 0, 1, 0])
    for step in range(300):
        landed = corrections(weak[index], index).project(points[index])[..., :2]
        optimizer.zero_grad()
        (landed - target[index]).square().mean().backward()
        if step == 0:
            assert (corrections.z0.grad != 0).all()
        optimizer.step()
    torch.testing.assert_close(1 + corrections.z0.detach().exp(), focal, rtol=1e-3, atol=0)


def test_a_mirrored_image_has_its_perspective_unchanged():
    corrections = CameraCorrections(2, perspective=True)
    nn.init.constant_(corrections.z0, 0.5)
    both = corrections(side_camera(2), torch.tensor([1, 1]), torch.tensor([False, True]))
    np.testing.assert_allclose(both.inv_focal.detach(), [1 / (1 + np.exp(0.5))] * 2, rtol=1e-6)
    assert CameraCorrections(2).z0 is None


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

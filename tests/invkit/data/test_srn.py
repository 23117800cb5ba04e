"""The SRN loader on a fabricated tree, against the numbers and formulas of the published loaders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invkit.data.srn import Srn
from invkit.data.synthetic.car_views import look_at
from invkit.images import composite

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)  # object, view


def write_tree(base: Path, *, intrinsics: str = "8.203125 4. 4. 0.\n0. 0. 0.\n1.\n8 8\n") -> None:
    for k, name in enumerate(("b_second", "a_first")):
        folder = base / name
        (folder / "rgb").mkdir(parents=True)
        (folder / "pose").mkdir()
        (folder / "intrinsics.txt").write_text(intrinsics)
        for view in range(3):
            image = PIXELS[k, view].copy()
            image[:4, :4] = 255
            image[0, 0] = (255, 254, 255)
            Image.fromarray(image).save(folder / "rgb" / f"{view:06d}.png")
            pose = look_at(1.3 * np.array([np.cos(view + k), np.sin(view + k), 0.0]))
            separator = "\n" if view else " "
            (folder / "pose" / f"{view:06d}.txt").write_text(separator.join(str(v) for v in pose.ravel()))


@pytest.fixture
def root(tmp_path):
    write_tree(tmp_path / "cars_train")
    return tmp_path


def test_items_are_grouped_by_object_and_named_after_object_and_view(root):
    dataset = Srn(root, size=8)
    assert dataset.objects == ["a_first", "b_second"]
    assert dataset.object_of == [0, 0, 0, 1, 1, 1]
    assert dataset.names[3] == "b_second/000000"
    assert dataset.num_classes == 0
    views = dataset[4]
    assert views.label is None
    assert views.index.tolist() == [4]
    with pytest.raises(IndexError):
        dataset[6]


def test_pixels_and_masks_follow_the_published_formulas(root):
    views = Srn(root, size=8)[5]
    stored = np.array(Image.open(root / "cars_train" / "b_second" / "rgb" / "000002.png"))
    np.testing.assert_allclose(views.rgb[0].permute(1, 2, 0).numpy(), stored / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(views.mask[0, 0].numpy(), (stored != 255).any(-1).astype(np.float32))
    assert views.mask[0, 0, 0, 0] == 1  # one channel of 254 is enough
    assert views.mask[0, 0, 1, 1] == 0


def test_other_sizes_are_area_averages_with_the_same_camera(root):
    full, half = Srn(root, size=8)[0], Srn(root, size=4)[0]
    blocks = full.rgb.view(1, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(composite(half.rgb, half.mask, 1.0), blocks, atol=1e-6, rtol=0)
    assert half.mask.unique().numel() > 1
    torch.testing.assert_close(half.camera.scale, full.camera.scale)


def test_an_alpha_channel_is_dropped(root):
    path = root / "cars_train" / "a_first" / "rgb" / "000000.png"
    before = Srn(root, size=8)[0].rgb
    image = Image.open(path)
    image.putalpha(7)
    image.save(path)
    torch.testing.assert_close(Srn(root, size=8)[0].rgb, before)


def test_cameras_have_the_published_augmented_parameters(root):
    """A camera 1.3 from the center with f / side = 131.25 / 128 has z0 = 0.0495, t = 0, s = 1.5775 ."""
    z0, shift, scale, _ = Srn(root, size=8)[2].camera.to_augmented()
    assert z0.item() == pytest.approx(0.0495, abs=5e-4)
    assert scale.item() == pytest.approx(1.5775, abs=5e-4)
    assert shift.abs().max() < 1e-6


def test_points_land_where_the_pinhole_of_the_files_puts_them(root):
    write_tree(root / "vans_train", intrinsics="7. 4.5 3.25 0.\n0. 0. 0.\n1.\n8 8\n")
    camera = Srn(root, category="vans", size=8)[1].camera
    points = np.random.default_rng(1).uniform(-0.4, 0.4, (20, 3))
    pose = np.loadtxt(root / "vans_train" / "a_first" / "pose" / "000001.txt").reshape(4, 4)
    seen = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = 7 * seen[:, :2] / seen[:, 2:] + [4.5, 3.25]
    projected = camera.project(torch.from_numpy(points).float()[None])[0, :, :2]
    np.testing.assert_allclose(projected.numpy(), pixel / 4 - 1, atol=1e-5)


def test_intrinsics_for_another_size_than_the_images_are_divided_by_their_own(root):
    write_tree(root / "eg3d_train", intrinsics="525. 256. 256. 0.\n0. 0. 0.\n1.\n512 512\n")
    first, second = Srn(root, size=8)[0].camera, Srn(root, category="eg3d", size=8)[0].camera
    torch.testing.assert_close(first.to_augmented(), second.to_augmented())


def test_the_nested_folder_of_the_published_chairs_is_found(tmp_path):
    write_tree(tmp_path / "chairs_train" / "chairs_2.0_train")
    assert len(Srn(tmp_path, category="chairs")) == 6


def test_faults_name_the_folder_or_file(root):
    with pytest.raises(FileNotFoundError, match="cars_test"):
        Srn(root, split="test")
    other = root / "cars_train" / "b_second"
    lens = (other / "intrinsics.txt").read_text()
    (other / "intrinsics.txt").write_text(lens.replace("8.203125", "9."))
    with pytest.raises(ValueError, match=r"share their intrinsics.*b_second"):
        Srn(root)
    (other / "intrinsics.txt").write_text("8.2 4.\n8 8\n")
    with pytest.raises(ValueError, match=r"b_second.intrinsics\.txt must begin"):
        Srn(root)
    (other / "intrinsics.txt").write_text(lens)
    (other / "pose" / "000001.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"000001\.txt holds 3 numbers"):
        Srn(root, size=8)[4]
    (other / "pose" / "000001.txt").unlink()
    with pytest.raises(ValueError, match=r"b_second has 3 images in rgb/ and 2 poses"):
        Srn(root)

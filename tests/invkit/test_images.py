import os
import struct
import zlib
from math import isclose

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from invkit import images

# opencv-python needs libGL, which a machine without a window system may lack.
cv2 = pytest.importorskip("cv2", exc_type=ImportError)

FILTERS = {images.resize_bilinear: cv2.INTER_LINEAR, images.resize_area: cv2.INTER_AREA}


def by_opencv(image: np.ndarray, size: tuple[int, int], flag: int) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=flag)


@pytest.mark.parametrize("resize", FILTERS)
@pytest.mark.parametrize(
    "source, target",
    [
        ((333, 333), (256, 256)),
        ((256, 256), (128, 128)),  # integer ratio
        ((97, 97), (128, 128)),  # growing
        ((64, 64), (128, 128)),
        ((50, 90), (70, 60)),  # one axis grows, the other shrinks
        ((31, 40), (31, 17)),  # one axis stays
        ((8, 8), (8, 8)),
        ((7, 5), (1, 1)),
    ],
)
def test_resampling_is_opencvs(resize, source, target):
    image = np.random.default_rng(0).random((*source, 3))
    ours = resize(torch.from_numpy(image).permute(2, 0, 1)[None], target)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, by_opencv(image, target, FILTERS[resize]), atol=2e-7)


def test_bilinear_and_area_are_opencvs_at_random_sizes():
    rng = np.random.default_rng(1)
    for _ in range(60):
        (height, width), target = rng.integers(2, 200, 2), tuple(rng.integers(2, 200, 2).tolist())
        image = rng.random((height, width))
        for resize, flag in FILTERS.items():
            ours = resize(torch.from_numpy(image)[None, None], target)[0, 0].numpy()
            np.testing.assert_allclose(
                ours, by_opencv(image, target, flag), atol=5e-7, err_msg=f"{height, width, target}"
            )


def test_antialiasing_removes_what_the_smaller_image_cannot_show_and_stays_in_range():
    stripes = torch.tensor([-1.0, 1.0]).repeat(64).expand(1, 3, 128, 128).contiguous()
    small = images.resize_antialias(stripes, 24)
    assert small.shape == (1, 3, 24, 24)
    assert small.abs().max() < 0.1 < images.resize_bilinear(stripes, 24).abs().max()
    smooth = torch.linspace(-1, 1, 128).expand(1, 1, 128, 128)
    expected = torch.linspace(-1, 1, 128).unfold(0, 8, 8).mean(1)
    torch.testing.assert_close(images.resize_antialias(smooth, 16)[0, 0, 3, 1:-1], expected[1:-1], atol=1e-5, rtol=0)


def test_warping_by_a_translation_moves_pixels_and_shows_the_fill():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right_by_two = torch.tensor([[[1, 0, -0.5], [0, 1, 0]]], dtype=torch.float64).expand(
        2, 2, 3
    )  # source of each pixel
    warped = images.warp_affine(image, right_by_two, fill=1.0)
    torch.testing.assert_close(warped[..., 2:], image[..., :-2])
    torch.testing.assert_close(warped[..., :2], torch.ones(2, 3, 8, 2, dtype=torch.float64))


def test_warping_by_a_quarter_turn_is_rot90():
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # y points down, so the picture turns counter-clockwise where the source of (x, y) is (-y, x).
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(images.warp_affine(image, turn), image.rot90(1, (2, 3)))


@pytest.mark.parametrize(
    "box, pad, expected",
    [
        # 10 x 4 padded by half a pixel and 0.2: -0.5 rounds to 0, 9.5 to 10 (ties to even); the shorter side grows by
        # (11 - 4) / 2 = 3.5, which rounds to 4.
        ((0, 0, 9, 3), 0.05, (0, -4, 10, 6)),
        ((0, 0, 9, 3), 0.0, (0, -3, 9, 6)),
        # 2.5 rounds to 2, 3.5 to 4: the extent changes with the parity of the corner.
        ((2.5, 0, 11.5, 9), 0.0, (2, 0, 12, 10)),
        ((3.5, 0, 11.5, 8), 0.0, (4, 0, 12, 8)),
        ((5, 5, 5, 5), 0.05, (5, 5, 5, 5)),
    ],
)
def test_the_square_of_a_box(box, pad, expected):
    assert images.square_box(box, pad) == expected


def test_jitter_moves_each_side_by_its_own_draw():
    still = images.square_box((100, 100, 199, 199), 0.0, 0.05)
    assert still == (100, 100, 199, 199)
    # (1 - 2 u) j w: u = 0 pushes a side outward by 5 pixels, u = 1 inward.
    assert images.square_box((100, 100, 199, 199), 0.0, 0.05, (0.0, 0.0, 0.0, 0.0)) == (95, 95, 204, 204)
    assert images.square_box((100, 100, 199, 199), 0.0, 0.05, (1.0, 1.0, 1.0, 1.0)) == (105, 105, 194, 194)
    assert images.square_box((100, 100, 199, 199), 0.0, 0.05, (0.0, 0.5, 0.5, 0.5)) == (95, 98, 199, 202)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="inclusive"):
        images.square_box((10, 10, 8, 20))


def test_cropping_outside_the_image_shows_the_fill():
    image = torch.arange(12.0).view(1, 3, 4)
    cut = images.crop_pad(image, (-1, 1, 2, 4), 9.0)
    torch.testing.assert_close(cut[0], torch.tensor([[9.0, 4, 5, 6], [9, 8, 9, 10], [9, 9, 9, 9], [9, 9, 9, 9]]))
    assert (images.crop_pad(image, (10, 10, 12, 12), 9.0) == 9).all()


def test_bytes_make_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(images.to_uint8(images.from_uint8(every)), every)
    beyond = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert images.to_uint8(beyond)[0, 0, :, 0].tolist() == [0, 255]


def test_compositing_shows_the_background_where_there_is_no_object():
    rgb, mask = torch.full((1, 3, 1, 3), -0.5), torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert images.composite(rgb, mask)[0, 0, 0].tolist() == [1.0, 0.25, -0.5]


def test_a_grid_reads_like_a_page():
    tiles = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 3)
    sheet = images.grid(tiles, 3)
    assert sheet.shape == (3, 4, 9)
    assert sheet[0, ::2, ::3].tolist() == [[0, 1, 2], [3, 4, 1]]  # the last place is white
    with pytest.raises(ValueError, match="images"):
        images.grid(tiles[:0], 3)


def test_files_of_every_kind_are_read(tmp_path):
    rng = np.random.default_rng(0)
    gray, color = rng.integers(0, 256, (5, 7), dtype=np.uint8), rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(color).save(tmp_path / "rgba.png")
    Image.fromarray(gray > 127).save(tmp_path / "bits.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "gray.png"), np.stack([gray / 255.0] * 3))
    np.testing.assert_array_equal(images.read_image(tmp_path / "bits.png")[0], gray > 127)
    np.testing.assert_allclose(images.read_image(tmp_path / "deep.png")[1], gray / 255.0, atol=1e-12)
    np.testing.assert_array_equal(images.read_image(tmp_path / "rgba.png"), color[..., :3].transpose(2, 0, 1) / 255.0)
    np.testing.assert_array_equal(images.read_rgba(tmp_path / "rgba.png"), color.transpose(2, 0, 1) / 255.0)
    assert (images.read_rgba(tmp_path / "gray.png")[3] == 1).all()
    assert images.read_rgba(tmp_path / "deep.png").shape == (4, 5, 7)


def test_pictures_are_turned_upright_when_asked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert images.read_image(tmp_path / "turned.png").shape == (3, 4, 6)
    upright = images.read_image(tmp_path / "turned.png", upright=True)
    np.testing.assert_array_equal(upright, np.rot90(pixels, -1).transpose(2, 0, 1) / 255.0)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        images.read_image(tmp_path / "none.png")
    (tmp_path / "noise.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"noise\.png.*damaged"):
        images.read_image(tmp_path / "noise.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        images.read_image(tmp_path / "cut.jpg")


def test_a_picture_is_written_whole_and_makes_the_round_trip(tmp_path):
    image = images.from_uint8(torch.randint(0, 256, (1, 5, 4, 3), dtype=torch.uint8))[0]
    images.write_png(tmp_path / "deep" / "a.png", image)
    torch.testing.assert_close(images.read_image(tmp_path / "deep" / "a.png").float() * 2 - 1, image)
    assert os.listdir(tmp_path / "deep") == ["a.png"]
    for channels in (1, 4):
        pixels = torch.randint(0, 256, (5, 4, channels), dtype=torch.uint8)
        images.write_png(tmp_path / "bytes.png", pixels)
        read = (
            images.read_rgba(tmp_path / "bytes.png")[-channels:]
            if channels == 4
            else images.read_image(tmp_path / "bytes.png")[:1]
        )
        assert torch.equal((read * 255).round().byte(), pixels.permute(2, 0, 1))


def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    images.write_png(tmp_path / "a.png", torch.zeros(3, 4, 4))
    before = (tmp_path / "a.png").read_bytes()

    def fail(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        images.write_png(tmp_path / "a.png", torch.ones(3, 4, 4))
    assert (tmp_path / "a.png").read_bytes() == before
    assert isclose(images.read_image(tmp_path / "a.png").mean().item(), 128 / 255)


@pytest.mark.parametrize("kind, suffix", [("EPS", ".jpg"), ("GIF", ".png"), ("PPM", ".webp"), ("ICO", ".bmp")])
def test_only_kinds_of_a_list_are_decoded_whatever_they_are_named(tmp_path, kind, suffix):
    Image.new("RGB", (16, 16)).save(tmp_path / f"a{suffix}", format=kind)
    with pytest.raises(ValueError, match="none of BMP, JPEG, PNG, TIFF, WEBP"):
        images.read_image(tmp_path / f"a{suffix}")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, recwarn):
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            body = kind + content
            return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    for size in ((8192, 8193), (20_000, 20_000)):
        (tmp_path / "bomb.png").write_bytes(png(*size))
        with pytest.raises(ValueError, match=r"bomb\.png has .* pixels, more than 67,108,864 .*: make it smaller"):
            images.read_image(tmp_path / "bomb.png")
    assert not recwarn.list


def test_numbers_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "wide.tif")
    for name in ("float.tif", "wide.tif"):
        with pytest.raises(ValueError, match=rf"{name}: .*save it with 8 or 16 bits"):
            images.read_image(tmp_path / name)


def masks() -> dict[str, np.ndarray]:
    """Ways in which the same silhouette is drawn as RGBA."""
    inside = np.zeros((20, 20), bool)
    inside[5:15, 3:12] = True
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    alpha, white = 255 * inside.astype(np.uint8), np.full((20, 20, 3), 255, np.uint8)
    drawn = np.repeat(alpha[..., None], 3, axis=2)
    room = np.pad(np.full((18, 18), 255, np.uint8), 1)
    return {
        "white on black": np.dstack([drawn, white[..., 0]]),
        "the object cut out": np.dstack([photo, alpha]),
        "white, the rest transparent": np.dstack([white, alpha]),
        "black, the rest transparent": np.dstack([0 * white, alpha]),
        "black on transparent white": np.dstack([255 - drawn, alpha]),
        "white on transparent black": np.dstack([drawn, alpha]),
        "white on black in a transparent frame": np.dstack([drawn, room]),
    }


@pytest.mark.parametrize("name", list(masks()))
def test_a_silhouette_is_read_from_alpha_where_it_is_there(tmp_path, name):
    Image.fromarray(masks()[name]).save(tmp_path / "mask.png")
    expected = masks()["white on black"][None, ..., 0] > 0
    assert ((images.read_mask(tmp_path / "mask.png") > 0.5).numpy() == expected).all()


def test_a_mask_of_zeros_and_ones_is_named_with_the_way_out(tmp_path):
    Image.fromarray((masks()["white on black"][..., 0] > 0).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"largest value of the mask .*mask\.png is 1 of 255: multiply it"):
        images.read_mask(tmp_path / "mask.png")
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    assert not images.read_mask(tmp_path / "mask.png").any()

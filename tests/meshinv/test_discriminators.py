import math

import pytest
import torch

from invkit.losses.adversarial import hinge, least_squares
from meshinv.discriminators.uv import UVDiscriminator, positional_encoding
from meshinv.mesh import UVMaps
from tests.meshinv.formulas import displacement_map, fill


def published_layout() -> dict[str, tuple[int, ...]]:
    """Entries of the released birds' discriminators, in their order; (out, in, kernel) for each convolution."""
    convs = {
        "d1": [(64, 8, 4), (128, 64, 4), (256, 128, 4), (512, 256, 4), (1, 512, 5)],
        "d2": [(64, 11, 5), (128, 64, 4), (256, 128, 4), (1, 256, 5)],
        "d3": [(64, 8, 5), (128, 64, 4), (256, 128, 4), (512, 256, 4), (1, 512, 5)],
    }
    layout = {}
    for name, rows in convs.items():
        for i, (out_channels, in_channels, kernel) in enumerate(rows, start=1):
            prefix = f"{name}.conv{i}"
            layout[f"{prefix}.bias"] = layout[f"{prefix}.weight_u"] = (out_channels,)
            layout[f"{prefix}.weight_orig"] = (out_channels, in_channels, kernel, kernel)
            layout[f"{prefix}.weight_u"] = layout.pop(f"{prefix}.weight_u")
            layout[f"{prefix}.weight_v"] = (in_channels * kernel * kernel,)
        layout[f"{name}.projector.weight"] = (200, rows[-1][1])
    return layout


def small(**options) -> UVDiscriminator:
    return UVDiscriminator(**({"num_classes": 5, "width": 0.125, "texture_size": 128} | options))


def random_maps(rng, size: int = 128, count: int = 2) -> tuple[UVMaps, torch.Tensor]:
    texture = torch.rand(count, 3, size, size, generator=rng) * 2 - 1
    alpha = (torch.rand(count, 1, size, size, generator=rng) > 0.5).float()
    return UVMaps(texture, torch.randn(count, 3, 32, 32, generator=rng)), alpha


def test_the_state_dict_is_that_of_the_published_checkpoint():
    net = UVDiscriminator()
    layout = published_layout()
    assert len(layout) == 59
    assert [(name, tuple(value.shape)) for name, value in net.state_dict().items()] == list(layout.items())
    counts = [sum(p.numel() for p in part.parameters()) for part in (net.d1, net.d2, net.d3)]
    assert counts == [2_876_865, 731_009, 2_881_473]
    assert sum(counts) == 6_489_347


def test_answers_are_those_of_the_released_discriminators():
    net = UVDiscriminator().double().eval().requires_grad_(False)
    fill(net)
    assert_released_answers(net, 1e-7)


def assert_released_answers(net: UVDiscriminator, tolerance: float) -> None:
    """The network, filled and in float64, answers as the released code does."""
    x = torch.arange(512, dtype=torch.float64)
    y = x[:, None]
    alpha = ((x - 256) ** 2 + (y - 256) ** 2 < 180**2).double()[None, None]
    texture = torch.stack([torch.sin(0.01 * (c + 1) * x) * torch.cos(0.013 * y) for c in range(3)])[None]
    scales = net(UVMaps(texture, displacement_map()), alpha, torch.tensor([17]))
    expected = [  # side, mean, std, two logits, sum of the mask, mask[3, 4]
        (32, 0.2097529, 0.1127736, 0.0827678, 0.2745930, 397.472656, 0),
        (8, -0.2523476, 0.1403881, -0.3438687, -0.2200021, 24.842041, 1),
        (16, -0.0707374, 0.0975924, -0.0682483, -0.1288893, 99.368164, 0.361328),
    ]
    for (logits, mask), (side, mean, std, first, second, area, cell) in zip(scales, expected, strict=True):
        assert logits.shape == mask.shape == (1, 1, side, side)
        found = (logits.mean(), logits.std(), logits[0, 0, 3, 5], logits[0, 0, -2, 2])
        assert [float(value) for value in found] == pytest.approx([mean, std, first, second], abs=tolerance)
        assert float(mask.sum()) == pytest.approx(area, abs=1e-6)
        assert float(mask[0, 0, 3, 4]) == pytest.approx(cell, abs=1e-6)

    assert float(hinge().generator(scales)) == pytest.approx(0.0671014, abs=tolerance)
    assert float(hinge().real(scales)) == pytest.approx(1.0671014, abs=tolerance)
    assert float(hinge().fake(scales)) == pytest.approx(0.9328986, abs=tolerance)
    assert float(hinge(weights=(2, 1)).generator(scales[:2])) == pytest.approx(-0.0301692, abs=tolerance)
    assert float(least_squares(masked=False).generator(scales)) == pytest.approx(1.1269790, abs=tolerance)
    assert float(least_squares(masked=False).fake(scales)) == pytest.approx(0.0514243, abs=tolerance)


def test_positions_are_sines_and_cosines_of_latitude_and_longitude():
    positions = positional_encoding(8)[0]
    assert positions[:, 1, 3].tolist() == pytest.approx([0.923880, 0.382683, 0.707107, -0.707107], abs=1e-6)
    assert positions[:, 5, 0].tolist() == pytest.approx([-0.382683, 0.923880, -1, 0], abs=1e-6)
    assert math.isclose(float(positions.square().sum()), 2 * 64, rel_tol=1e-6)


@pytest.mark.parametrize(
    "texture_size, num_scales, sides, kernels, weights",
    [
        (64, None, [8, 8], [5, 5], (1, 1)),
        (128, None, [16, 8], [5, 5], (1, 1)),
        (128, 3, [16, 8, 4], [5, 5, 5], (1, 1, 1)),
        (256, None, [32, 8], [5, 5], (1, 1)),
        (512, None, [32, 8, 16], [4, 5, 5], (1, 1, 1)),
        (512, 2, [32, 8], [4, 5], (2, 1)),
        (1024, None, [64, 8, 16], [4, 5, 4], (1, 1, 1)),
    ],
)
def test_scales_follow_the_texture(texture_size, num_scales, sides, kernels, weights, rng):
    net = small(texture_size=texture_size, num_scales=num_scales, width=0.01)
    maps, alpha = random_maps(rng, texture_size, count=1)
    with torch.no_grad():
        scales = net(maps, alpha, torch.tensor([4]))
    assert [logits.shape[-1] for logits, _ in scales] == sides
    assert [part.conv1.weight_orig.shape[-1] for part in (net.d1, net.d2, net.d3) if part is not None] == kernels
    assert net.scale_weights == weights
    for _, mask in scales:
        torch.testing.assert_close(mask.mean(), alpha.mean())


def test_each_logit_has_the_visible_share_of_its_cell(rng):
    maps, alpha = random_maps(rng)
    for (_, mask), cell in zip(small()(maps, alpha, torch.tensor([0, 1])), (8, 16), strict=True):
        row, column = 3, 5
        block = alpha[1, 0, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        torch.testing.assert_close(mask[1, 0, row, column], block.mean())


def test_only_the_visible_texture_counts(rng):
    net = small().eval()
    maps, alpha = random_maps(rng)
    label = torch.tensor([2, 2])
    hidden = UVMaps(torch.where(alpha > 0, maps.texture, 0.7), maps.displacement)
    shown = UVMaps(torch.where(alpha > 0, 0.7, maps.texture), maps.displacement)
    for (logits, _), (same, _), (other, _) in zip(
        net(maps, alpha, label), net(hidden, alpha, label), net(shown, alpha, label), strict=True
    ):
        assert torch.equal(logits, same)
        assert not torch.allclose(logits, other)


def test_the_coarse_scale_sees_the_shape(rng):
    net = small().eval()
    maps, alpha = random_maps(rng)
    moved = UVMaps(maps.texture, maps.displacement + 0.1)
    fine, coarse = zip(net(maps, alpha, torch.tensor([0, 1])), net(moved, alpha, torch.tensor([0, 1])), strict=True)
    assert torch.equal(fine[0][0], fine[1][0])
    assert not torch.allclose(coarse[0][0], coarse[1][0])


def test_the_class_is_projected_on_the_features(rng):
    net = small().double().eval()
    maps, alpha = random_maps(rng)
    maps, alpha = maps.to("cpu", dtype=torch.float64), alpha.double()
    seen = []
    net.d2.conv4.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    logits = net(maps, alpha, torch.tensor([3, 1]))[1][0]
    features, plain = seen[0]
    for i, label in enumerate((3, 1)):
        expected = plain[i, 0] + torch.einsum("chw,c->hw", features[i], net.d2.projector.weight[label])
        torch.testing.assert_close(logits[i, 0], expected)


def test_without_classes_there_is_no_label(rng):
    maps, alpha = random_maps(rng)
    net = small(num_classes=0).eval()
    assert not any("projector" in name for name in net.state_dict())
    assert len(net(maps, alpha)) == 2
    with pytest.raises(ValueError, match="label"):
        small()(maps, alpha)


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_scales 4"):
        small(num_scales=4)
    with pytest.raises(ValueError, match="texture_size 100"):
        small(texture_size=100)

"""The generator against the released code's answers, and its layers against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nerfinv.generator.generator import Generator
from nerfinv.generator.synthesis import OutputLayer, Synthesis, SynthesisLayer
from nerfinv.generator.view import ViewHead
from nerfinv.layers import EqualizedConv2d, EqualizedLinear, conv_down, conv_up, down2, resample_filter, smooth, up2
from tests.nerfinv.filled import (
    assert_numbers,
    assert_stats,
    fill,
    filled_generator,
    images,
    latents,
    normal,
    parameter_count,
)

SMALL = {
    "latent_dim": 12,
    "style_dim": 8,
    "plane_size": 16,
    "plane_channels": 4,
    "channel_base": 64,
    "max_channels": 8,
    "decoder_width": 8,
}
POINTS = torch.tensor(
    [[0.1, -0.3, 0.7], [1.9, -1.9, 0.5], [2.1, 0, 0], [-1.2, 0.4, -0.05], [0, 0, 0], [1, 1, 1]]
).expand(2, 6, 3)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """New networks are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return filled_generator(scene_range=2.0).requires_grad_(False)


@pytest.fixture(scope="module")
def style(generator) -> Tensor:
    return generator.style(latents())


@pytest.fixture(scope="module")
def field(generator, style):
    return generator(style)


@pytest.fixture(scope="module")
def slots(style) -> Tensor:
    """A style of its own for each slot."""
    return style[:, None] * (1 + 0.02 * torch.arange(15))[:, None]


@pytest.fixture(scope="module")
def slot_field(generator, slots):
    return generator(slots)


# ---- The released code's answers ---------------------------------------------------------------------------------


def test_styles(style):
    assert_stats(style, (0.487664, 0.9367233, -0.7771989, 4.029708))
    assert_numbers(style[0, :5], (-0.03179206, 0.21839076, 0.21812709, 1.00069606, -0.10718540))
    assert_numbers(style[1, :5], (-0.16687709, -0.14195888, -0.20610061, -0.26533449, 0.12608205))


def test_palettes(field):
    assert field.palette.shape == (2, 10, 3)
    assert_stats(field.palette, (0.1332592, 0.3751267, -0.5879848, 0.8940753))
    assert_numbers(field.palette[0, 0], (-0.3698961, 0.0675104, 0.4005549))
    assert_numbers(field.palette[0, 1], (-0.4907638, 0.3019766, 0.3320765))
    assert_numbers(field.palette[0, 9], (0.5296032, 0.2182016, -0.1695454))


def test_planes_take_each_style_in_its_layer(slot_field):
    planes = slot_field.planes.flatten(1, 2)
    assert planes.shape == (2, 96, 256, 256)
    assert_stats(planes, (-0.137887, 2.536283, -10.67531, 11.10044))
    assert planes.double().abs().sum().item() == pytest.approx(24372828.9, rel=1e-5)
    assert_numbers(planes[0, 0, 0, :3], (-0.01358970, -0.04350172, -0.13219734))
    found = (planes[0, 50, 100, 200], planes[1, 33, 17, 240], planes[1, 95, 255, 255])
    assert_numbers(torch.stack(found), (6.6288792, 0.1501048, -0.1045101))


def test_planes_with_the_stored_noise(generator, slots):
    layers = [module for module in generator.modules() if isinstance(module, SynthesisLayer)]
    for layer in layers:
        layer.noise = True
        layer.noise_strength.fill_(0.05)
    try:
        planes = generator(slots).planes
    finally:
        for layer in layers:
            layer.noise = False
            layer.noise_strength.zero_()
    assert_stats(planes, (-0.1506435, 2.66587, -11.86579, 12.88409))
    assert_numbers(planes[0, 0, 0, 0, :3], (-0.1015825, -0.1288811, -0.110755))


def test_distances_and_densities_at_points(field, slot_field):
    values = field.value(POINTS)
    assert_numbers(values[0], (-0.3168911, 0.0931456, -0.1154433, -0.1070599, -0.1257042, 0.6608325))
    assert_numbers(values[1], (1.8954000, 0.4579484, 0.9416796, 2.0989728, 1.9504503, 0.9386025))
    assert_numbers(field.sigma(POINTS)[0], (0.9789753, 0.1969899, 0, 0.8285985, 0.8577529, 0.00067455), 1e-3)
    assert_numbers(slot_field.value(POINTS)[0], (-0.6965624, -0.0127826, -0.3145438, -0.4634143, -0.5162917, 0.3476932))


def test_distances_in_the_whole_box(field):
    axis = torch.linspace(-2, 2, 32)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 3).expand(2, -1, -1)
    values = field.value(grid)
    assert_stats(values, (0.5876095, 0.7128914, -0.974622, 2.929936))
    torch.testing.assert_close((values < 0).float().mean(dim=1), torch.tensor([0.443573, 0.0162048]), rtol=0, atol=1e-4)


def test_colors_at_points(field, slot_field):
    colors = field.color(POINTS)[0]
    assert_numbers(colors[0], (0.2499557, 0.1775964, 0.0311850), 1e-3)
    assert_numbers(colors[1], (0.1041295, 0.1578482, 0.1488023), 1e-3)
    assert_numbers(colors[4], (0.0889219, 0.1663362, 0.1366267), 1e-3)
    colors = slot_field.color(POINTS)[0]
    assert_numbers(colors[0], (0.2329559, 0.1572548, 0.0828383), 1e-3)
    assert_numbers(colors[3], (-0.1581199, 0.0539128, 0.2809293), 1e-3)
    assert_numbers(colors[5], (-0.0436005, 0.0678909, 0.2089147), 1e-3)


def test_shares_and_normals_at_points(field):
    expected = (0.1918003, 0.0878572, 0.0161044, 0.0022488, 0.0095098, 0.1302153, 0.1477534, 0.0198799, 0.0296090)
    assert_numbers(field.shares(POINTS)[0, 0], (*expected, 0.3650219), 1e-3)
    normals = field.normals(POINTS)[0]
    assert_numbers(normals[0], (0.7084806, 0.2031259, 0.6758662), 1e-3)
    assert_numbers(normals[2], (0, 0.9999880, -0.0049110), 1e-3)
    assert_numbers(normals[5], (0.8303162, -0.0576019, -0.5543076), 1e-3)


def test_the_view_head():
    head = fill(ViewHead(32, 10), (), prefix="viewdir_mapper.")
    directions = F.normalize(torch.tensor([[0.3, -0.5, 0.8], [-1, 0.2, 0.1]]), dim=-1)
    embedding = head.embed(directions).repeat_interleave(3, dim=0)
    found = head(embedding, torch.linspace(-1, 1, 192).view(6, 32))
    logits = (0.3279186, -0.2519144, -0.2227443, 0.1132361, 0.0370002, 0.0623974, -0.1154246, -0.0855363, 0.2127609)
    assert_numbers(found[0], (*logits, -0.0794317))
    logits = (-1.4043719, 2.3565061, 1.1151199, -0.7344524, -0.3008051, 0.2634279, 0.4308607, -1.2049075, -1.2365543)
    assert_numbers(found[5], (*logits, 1.1698543))


def test_resampling_convolutions():
    maps, taps = images(1, 2, 8, 8), resample_filter()
    layer = EqualizedConv2d(2, 3, 3, down=True)
    layer.load_state_dict({"weight": normal("w", (3, 2, 3, 3)), "bias": normal("b", (3,))}, strict=True)
    assert_stats(layer(maps), (0.2520271, 1.385558, -1.855536, 1.968708))
    assert layer(maps).shape == (1, 3, 4, 4)
    up = conv_up(maps, layer.weight * layer.weight_gain, taps) + layer.bias[:, None, None]
    assert_stats(up, (0.175224, 1.411287, -1.9147, 2.071096))
    assert_numbers(up[0, 0, 0, :3], (1.972672, 2.034357, 2.070117))
    layer = EqualizedConv2d(2, 3, 1, bias=False, down=True)
    layer.load_state_dict({"weight": normal("w1", (3, 2, 1, 1))}, strict=True)
    assert_stats(layer(maps), (0.2112349, 0.4530161, -0.5187815, 0.854951))


@pytest.mark.parametrize(
    "options, count",
    [
        ({}, 32_164_056),
        ({"view_dependent": True}, 32_189_208),
        ({"palette_size": 0}, 28_735_219),
        ({"signed_distance": False}, 32_164_054),
        ({"num_classes": 200}, 32_528_600),
    ],
)
def test_parameter_counts(options, count):
    with torch.device("meta"):
        assert parameter_count(Generator(**options)) == count


# ---- Layers against their definitions ----------------------------------------------------------------------------


def convolved(maps: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Sum over the taps, one at a time."""
    padded = F.pad(maps, (padding,) * 4)
    size = weight.shape[-1]
    height, width = padded.shape[2] - size + 1, padded.shape[3] - size + 1
    total = torch.zeros(len(maps), len(weight), height, width, dtype=maps.dtype)
    for y in range(size):
        for x in range(size):
            total += torch.einsum("oi,bihw->bohw", weight[:, :, y, x], padded[:, :, y : y + height, x : x + width])
    return total


def with_zeros_between(maps: Tensor) -> Tensor:
    spread = torch.zeros(*maps.shape[:2], 2 * maps.shape[2], 2 * maps.shape[3], dtype=maps.dtype)
    spread[..., ::2, ::2] = maps
    return spread


def each_channel(taps: Tensor, channels: int) -> Tensor:
    return torch.einsum("oi,hw->oihw", torch.eye(channels, dtype=taps.dtype), taps)


def test_resampling_is_filtering_between_zeros_and_leaving_pixels_out(rng):
    maps = torch.randn(2, 3, 6, 6, generator=rng).double()
    line = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
    taps = line[:, None] * line / 64
    filters = each_channel(taps, 3)
    expected = convolved(F.pad(with_zeros_between(maps), (2, 1, 2, 1)), filters * 4, padding=0)
    torch.testing.assert_close(up2(maps, taps), expected)
    torch.testing.assert_close(down2(maps, taps), convolved(maps, filters, padding=1)[..., ::2, ::2])
    torch.testing.assert_close(smooth(maps, taps, 2), convolved(maps, filters, padding=2))
    weight = torch.randn(4, 3, 3, 3, generator=rng).double()
    # A transposed convolution is the convolution, with the weight turned around, of the picture between zeros.
    wide = convolved(F.pad(with_zeros_between(maps), (2, 2, 2, 2)), weight.flip(2, 3), padding=0)[..., :13, :13]
    expected = convolved(wide, each_channel(taps * 4, 4), padding=1)
    torch.testing.assert_close(conv_up(maps, weight, taps), expected)


def test_resampling_can_be_differentiated_twice(rng):
    maps = torch.randn(1, 2, 4, 4, generator=rng).double().requires_grad_()
    weight = torch.randn(2, 2, 3, 3, generator=rng).double().requires_grad_()
    taps = resample_filter().double()
    for function in (
        lambda maps: up2(maps, taps),
        lambda maps: down2(maps, taps),
        lambda maps: smooth(maps, taps, 1),
        lambda maps: smooth(maps, taps, 2),
    ):
        assert torch.autograd.gradcheck(function, (maps,))
        # Of a linear function, second derivatives show only where something follows it.
        assert torch.autograd.gradgradcheck(lambda maps, function=function: function(maps).sin(), (maps,))
    for function in (
        lambda maps, weight: conv_up(maps, weight, taps),
        lambda maps, weight: conv_down(maps, weight, taps),
    ):
        assert torch.autograd.gradcheck(function, (maps, weight))
        assert torch.autograd.gradgradcheck(function, (maps, weight))


def layer_by_definition(layer: SynthesisLayer, maps: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
    """Every image by weights of its own (StyleGAN2, section 2.2)."""
    results = []
    for image, own in zip(maps, style, strict=True):
        scale = layer.affine.weight @ own / math.sqrt(len(own)) + layer.affine.bias
        weight = layer.weight * scale[None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        image = image[None]
        image = conv_up(image, weight, layer.taps) if layer.up else convolved(image, weight, padding=1)
        image = image + (0 if noise is None else noise * layer.noise_strength) + layer.bias[:, None, None]
        results.append(math.sqrt(2) * torch.where(image > 0, image, 0.2 * image))
    return torch.cat(results)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_modulation_of_activations_is_modulation_of_weights(rng, up, noise):
    layer = SynthesisLayer(3, 5, 6, 8, up=up, noise=noise).double().eval()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=rng))
    maps = torch.randn(2, 3, *([4, 4] if up else [8, 8]), generator=rng).double()
    style = torch.randn(2, 6, generator=rng).double()
    torch.testing.assert_close(
        layer(maps, style), layer_by_definition(layer, maps, style, layer.noise_const if noise else None)
    )


def test_output_layers_are_not_normalized(rng):
    layer = OutputLayer(3, 5, 6).double()
    layer.bias.data.normal_(generator=rng)
    maps, style = torch.randn(2, 3, 4, 4, generator=rng).double(), torch.randn(2, 6, generator=rng).double()
    scale = (style @ layer.affine.weight.T / math.sqrt(6) + layer.affine.bias) / math.sqrt(3)
    expected = torch.einsum("oi,bi,bihw->bohw", layer.weight[:, :, 0, 0], scale, maps) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(maps, style), expected)


def test_planes_can_be_differentiated_twice_by_styles_and_weights(rng):
    """As path lengths need it."""
    network = Synthesis(3, 2, size=8, channel_base=16, max_channels=2).double()
    styles = torch.randn(1, network.num_styles, 3, generator=rng).double().requires_grad_()
    weight = network.b8.conv0.weight

    def planes(styles: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"b8.conv0.weight": weight}, (styles,))[:, :, ::3, ::3]

    inputs = (styles, weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(planes, inputs)
    assert torch.autograd.gradgradcheck(planes, inputs)


def test_equalized_layers(rng):
    inputs = torch.randn(4, 6, generator=rng)
    layer = EqualizedLinear(6, 3, lr_mult=0.01, bias_init=2.0)
    torch.testing.assert_close(layer.bias * 0.01, torch.full((3,), 2.0))
    torch.testing.assert_close(layer(inputs), inputs @ (layer.weight * 0.01 / math.sqrt(6)).T + 2.0)
    active = EqualizedLinear(6, 3, lr_mult=0.01, activate=True, bias_init=2.0)
    active.load_state_dict(layer.state_dict())
    torch.testing.assert_close(active(inputs), F.leaky_relu(layer(inputs) * math.sqrt(2), 0.2))
    maps = torch.randn(2, 6, 5, 5, generator=rng)
    conv = EqualizedConv2d(6, 3, 3, activate=True)
    conv.bias.data.normal_(generator=rng)
    raw = F.conv2d(maps, conv.weight / math.sqrt(54), conv.bias, padding=1)
    torch.testing.assert_close(conv(maps, gain=0.5), F.leaky_relu(raw * math.sqrt(2) * 0.5, 0.2))


# ---- The network as a whole --------------------------------------------------------------------------------------


def test_new_networks_start_as_published():
    generator = Generator(**{**SMALL, "style_dim": 128, "latent_dim": 128, "max_channels": 64}, view_dependent=True)
    state = generator.state_dict()
    for name, value in state.items():
        if name.endswith(("affine.bias", "norm1.weight")):
            assert (value == 1).all(), name
        elif name.endswith(("bias", "noise_strength")) or name == "view_head.output.weight":
            assert (value == 0).all(), name
    assert state["mapping.fc0.weight"].std().item() == pytest.approx(100, rel=0.05)
    for name in ("synthesis.b4.conv1.weight", "palette.fc2.weight", "synthesis.b8.conv0.affine.weight"):
        assert state[name].std().item() == pytest.approx(1, rel=0.05)
    assert (generator.density.alpha.item(), generator.density.beta.item()) == (1.0, pytest.approx(0.1))
    styles = generator.style(torch.randn(256, 128))
    assert styles.square().mean().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("size, styles", [(8, 4), (16, 6), (32, 8), (64, 10)])
def test_smaller_planes_have_fewer_styles(size, styles):
    generator = Generator(**{**SMALL, "plane_size": size}, palette_size=3)
    assert generator.num_styles == styles + 1
    assert Generator(**{**SMALL, "plane_size": size}, palette_size=0).num_styles == styles
    field = generator(torch.randn(2, generator.num_styles, 8))
    assert field.planes.shape == (2, 3, 4, size, size)
    assert field.palette.shape == (2, 3, 3)


def test_each_slot_reaches_what_it_is_for():
    """The last the palette alone, all others the planes alone."""
    generator = Generator(**SMALL)
    styles = torch.randn(1, generator.num_styles, 8, requires_grad=True)
    field = generator(styles)
    (by_planes,) = torch.autograd.grad(field.planes.square().sum(), styles, retain_graph=True)
    (by_palette,) = torch.autograd.grad(field.palette.square().sum(), styles)
    assert (by_planes.abs().sum(dim=2)[0] > 0).tolist() == [True] * 6 + [False]
    assert (by_palette.abs().sum(dim=2)[0] > 0).tolist() == [False] * 6 + [True]


def test_one_style_is_for_all_slots_and_images_do_not_meet(rng):
    generator = Generator(**SMALL)
    styles = torch.randn(3, 8, generator=rng)
    everywhere = generator(styles)
    for same in (styles[:, None], styles[:, None].expand(-1, generator.num_styles, -1)):
        torch.testing.assert_close(generator(same).planes, everywhere.planes)
    alone = generator(styles[1:2])
    torch.testing.assert_close(alone.planes, everywhere.planes[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.palette, everywhere.palette[1:2], rtol=1e-4, atol=1e-5)


def test_latents_count_by_their_direction(rng):
    generator = Generator(**SMALL)
    latent = torch.randn(3, 12, generator=rng)
    torch.testing.assert_close(generator.style(latent), generator.style(3 * latent), rtol=1e-4, atol=1e-5)


def test_classes_have_styles_of_their_own(rng):
    generator = Generator(**SMALL, num_classes=2)
    latent = torch.randn(1, 12, generator=rng).expand(2, -1)
    styles = generator.style(latent, torch.tensor([0, 1]))
    assert (styles[0] - styles[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="give labels"):
        generator.style(latent)


def test_noise_is_new_in_training_and_repeats_itself_in_evaluation(rng):
    styles = torch.randn(2, 8, generator=rng)

    def planes(strength: float = 0.5, training: bool = False, **options) -> tuple[Tensor, Tensor]:
        generator = Generator(**SMALL, **options).train(training)
        generator.load_state_dict(reference.state_dict())
        for layer in generator.modules():
            if isinstance(layer, SynthesisLayer):
                layer.noise_strength.data.fill_(strength)
        with torch.no_grad():
            return generator(styles).planes, generator(styles).planes

    reference = Generator(**SMALL)
    without = planes()[0]
    assert torch.equal(*planes(training=True))
    assert torch.equal(*planes(noise=True))
    assert not torch.allclose(planes(noise=True)[0], without)
    torch.testing.assert_close(planes(0.0, noise=True, training=True)[0], without)
    assert not torch.allclose(*planes(noise=True, training=True))
    assert not torch.allclose(*planes(noise=True, random_noise_in_eval=True))


@pytest.mark.parametrize("options", [{}, {"palette_size": 0}, {"palette_size": 4, "signed_distance": False}])
@pytest.mark.parametrize("view_dependent", [False, True])
def test_every_kind_of_field_answers_and_learns(rng, options, view_dependent):
    generator = Generator(**SMALL, **options, view_dependent=view_dependent)
    if view_dependent:
        generator.view_head.output.weight.data.normal_(generator=rng)
    field = generator(generator.style(torch.randn(2, 12, generator=rng)))
    points = torch.rand(2, 5, 3, generator=rng) - 0.5
    directions = F.normalize(torch.randn(2, 5, 3, generator=rng), dim=-1)
    assert field.density.signed_distance is options.get("signed_distance", True)
    color = field.color(points, directions)
    assert color.shape == (2, 5, 3)
    assert color.abs().max() <= 1.002
    assert view_dependent is not torch.equal(color, field.color(points, -directions))
    (field.sigma(points)[..., None] * color).sum().backward()
    idle = [name for name, parameter in generator.named_parameters() if parameter.grad is None]
    assert all(name.endswith("noise_strength") for name in idle), idle


def test_half_precision_is_close(rng):
    generator = Generator(**SMALL)
    styles = torch.randn(2, 8, generator=rng)
    expected = generator(styles).planes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = generator(styles)
    assert field.planes.dtype == torch.bfloat16
    field.planes.float().square().sum().backward()
    assert (field.planes - expected).square().mean().sqrt() < 0.02 * expected.std()


def test_what_cannot_be_built_or_drawn_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        Generator(**{**SMALL, "plane_size": 48})
    with pytest.raises(ValueError, match=r"\[2, 3, 8\]: need 1 or 7"):
        Generator(**SMALL)(torch.zeros(2, 3, 8))

import pytest
import torch
from torch import Tensor

from meshinv.generator import Generator
from meshinv.template import mirror_maps
from tests.meshinv.formulas import fill, latent


def block_layout(name: str, in_channels: int, out_channels: int) -> dict[str, tuple[int, ...]]:
    middle = min(in_channels, out_channels)
    convs = {"conv1": (in_channels, middle, 3), "conv2": (middle, out_channels, 3)}
    layout = {}

    def add(conv: str, fan: int, out: int, kernel: int) -> None:
        layout[f"{name}.{conv}.weight_orig"] = (out, fan, kernel, kernel)
        layout[f"{name}.{conv}.weight_u"] = (out,)
        layout[f"{name}.{conv}.weight_v"] = (fan * kernel * kernel,)

    for conv, (fan, out, kernel) in convs.items():
        add(conv, fan, out, kernel)
    for norm, channels in (("norm1", middle), ("norm2", out_channels)):
        layout[f"{name}.{norm}.norm.running_mean"] = layout[f"{name}.{norm}.norm.running_var"] = (channels,)
        layout[f"{name}.{norm}.norm.num_batches_tracked"] = ()
        for linear in ("fc_gamma", "fc_beta"):
            layout[f"{name}.{norm}.{linear}.weight"] = (channels, 128)
            layout[f"{name}.{norm}.{linear}.bias"] = (channels,)
    if in_channels != out_channels:
        add("shortcut", in_channels, out_channels, 1)
    return layout


def published_layout() -> dict[str, tuple[int, ...]]:
    """Entries of the released birds' generator, in their order."""
    layout = {"emb_class.weight": (200, 64), "fc.weight": (16384, 128), "fc.bias": (16384,)}
    for name, channels in {
        "blk1": (512, 512),
        "blk2": (512, 256),
        "blk3a": (256, 256),
        "blk3b": (256, 256),
        "blk4": (256, 128),
        "blk5": (128, 128),
        "blk6": (128, 64),
    }.items():
        layout |= block_layout(name, *channels)
    layout |= {"conv_final.weight": (3, 64, 5, 5), "conv_final.bias": (3,)}
    layout |= block_layout("blk3_mesh", 256, 64)
    return layout | {"conv_mesh.weight": (3, 64, 5, 5), "conv_mesh.bias": (3,)}


def small(**options) -> Generator:
    return Generator(**({"num_classes": 5, "width": 0.125, "texture_size": 64} | options))


def awake(net: Generator) -> Generator:
    """The generator with a displacement head that is not zero."""
    torch.nn.init.normal_(net.conv_mesh.weight, std=0.05)
    return net


def test_the_state_dict_is_that_of_the_published_checkpoint():
    net = Generator()
    layout = published_layout()
    assert len(layout) == 179
    assert [(name, tuple(value.shape)) for name, value in net.state_dict().items()] == list(layout.items())
    assert sum(parameter.numel() for parameter in net.parameters()) == 13_062_534


REFERENCE = {
    0.9: {
        "sigma": 0.952283,
        "texture": {(1, 100, 200): 0.958500, (0, 0, 0): 0.282900, (2, 256, 256): 0.942840, (0, 511, 128): -0.365026,
                    (1, 300, 7): 0.972129},
        "texture moments": (0.299712, 0.834070),
        "displacement": {(0, 0, 0): 0.0202713, (0, 15, 16): 0.0212821, (1, 15, 16): 0.0435770,
                         (2, 15, 16): 0.0570452, (0, 31, 5): -0.0710282, (1, 7, 23): 0.0495024},
        "displacement moments": (0.0102015, 0.0462456),
    },
    1.0: {
        "sigma": 1.175657,
        "texture": {(1, 100, 200): 0.250887, (2, 300, 7): 0.386500},
        "texture moments": (0.152599, 0.374080),
        "displacement": {(0, 15, 16): 0.0111300, (1, 7, 23): -0.0122464},
        "displacement moments": (-0.0098916, 0.0205417),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "rho, dtype",
    [(0.9, torch.float64), (1.0, torch.float32), pytest.param(1.0, torch.float64, marks=pytest.mark.slow)],
)
def test_answers_are_those_of_the_released_generator(rho, dtype):
    net = Generator().double().eval().requires_grad_(False)
    fill(net, rho)
    assert_released_answers(net.to(dtype), rho)


def assert_released_answers(net: Generator, rho: float) -> None:
    """The network, filled with `rho`, answers as the released code does; to all digits where it computes in float64."""
    dtype = net.fc.weight.dtype
    seen = {}
    net.fc.register_forward_hook(lambda module, args, out: seen.update(fc=out))
    net.blk1.register_forward_hook(lambda module, args, out: seen.update(blk1=out))
    maps = net(latent().to(dtype), torch.tensor([17]))

    def agrees(value: Tensor, expected: float, tolerance: float) -> None:
        assert float(value) == pytest.approx(expected, abs=tolerance if dtype == torch.float64 else 2e-5)

    reference = REFERENCE[rho]
    agrees(net.blk1.conv1.sigma(), reference["sigma"], 6e-7)
    agrees(seen["fc"].mean(), 0.00348553, 2e-8)
    agrees(seen["fc"].view(512, 8, 4)[3, 2, 1], 0.52490775, 2e-8)
    if rho == 0.9:
        agrees(seen["blk1"].mean(), 0.42013678, 2e-8)
        agrees(seen["blk1"][0, 5, 3, 2], -0.28762019, 2e-8)
    for name, digits in (("texture", 1e-6), ("displacement", 1e-7)):
        values = getattr(maps, name)[0]
        for place, expected in reference[name].items():
            agrees(values[place], expected, digits)
        for value, expected in zip((values.mean(), values.std()), reference[f"{name} moments"], strict=True):
            agrees(value, expected, digits)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("texture_size", [64, 128, 256, 512, 1024])
def test_sizes_of_maps_and_which_blocks_there_are(texture_size, symmetric):
    net = small(texture_size=texture_size, symmetric=symmetric, width=0.01).eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 64), torch.tensor([4]))
    assert maps.texture.shape == (1, 3, texture_size, texture_size)
    assert maps.displacement.shape == (1, 3, 32, 32)
    present = [name for name in ("blk3a", "blk3b", "blk3c") if hasattr(net, name)]
    assert present == ["blk3a", "blk3b", "blk3c"][: {64: 0, 128: 0, 256: 1, 512: 2, 1024: 3}[texture_size]]
    assert net.fc.out_features == 8 * 8 * (4 if symmetric else 8)


def test_a_fresh_generator_gives_the_sphere(rng):
    maps = small()(torch.randn(3, 64, generator=rng), torch.tensor([0, 1, 2]))
    assert torch.equal(maps.displacement, torch.zeros(3, 3, 32, 32))
    assert maps.texture.abs().max() <= 1
    assert maps.texture.std() > 0.01


def test_symmetric_maps_are_their_own_mirror_images_and_others_are_not(rng):
    for symmetric in (True, False):
        maps = awake(small(symmetric=symmetric))(torch.randn(2, 64, generator=rng), torch.tensor([0, 3]))
        for image in (maps.texture, maps.displacement):
            assert torch.equal(image, mirror_maps(image)) == symmetric


def test_a_pole_has_one_displacement(rng):
    net = awake(small(symmetric=False))
    poles = net(torch.randn(2, 64, generator=rng), torch.tensor([0, 3])).displacement[:, :, [0, -1]]
    assert (poles - poles[..., :1]).abs().max() == 0
    assert poles.std() > 0


def test_classes_matter_and_an_unconditional_generator_has_none(rng):
    latent = torch.randn(1, 64, generator=rng)
    net = small().eval()
    textures = [net(latent, torch.tensor([label])).texture for label in (0, 1)]
    assert not torch.allclose(*textures, atol=1e-3)
    with pytest.raises(ValueError, match="label"):
        net(latent, None)
    plain = small(num_classes=0).eval()
    assert "emb_class.weight" not in plain.state_dict()
    assert plain.blk1.norm1.fc_gamma.in_features == 64
    assert torch.equal(plain(latent).texture, plain(latent, torch.tensor([1])).texture)


def test_in_evaluation_an_image_does_not_depend_on_its_batch(rng):
    net = awake(small()).double().eval()
    latent, label = torch.randn(3, 64, generator=rng, dtype=torch.float64), torch.tensor([4, 0, 2])
    together = net(latent, label)
    for i in range(3):
        alone = net(latent[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone.texture[0], together.texture[i])
        torch.testing.assert_close(alone.displacement[0], together.displacement[i])


def test_the_gradient_in_the_latent_is_the_slope(rng):
    torch.manual_seed(0)  # a kink of the leaky ReLU may lie within the finite difference of other weights
    net = awake(small()).double().eval()
    latent = torch.randn(1, 64, generator=rng, dtype=torch.float64).requires_grad_()
    direction = torch.randn(1, 64, generator=rng, dtype=torch.float64)

    def value(at: Tensor) -> Tensor:
        maps = net(at, torch.tensor([1]))
        return maps.texture.square().sum() + maps.displacement.square().sum()

    slope = (torch.autograd.grad(value(latent), latent)[0] * direction).sum()
    with torch.no_grad():
        numeric = (value(latent + 1e-6 * direction) - value(latent - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=0)


def test_channels_last_changes_the_speed_only(rng):
    net = awake(small()).double().eval()
    latent, label = torch.randn(2, 64, generator=rng, dtype=torch.float64), torch.tensor([4, 0])
    before = net(latent, label)
    after = net.to(memory_format=torch.channels_last)(latent, label)
    torch.testing.assert_close(after.texture, before.texture)
    torch.testing.assert_close(after.displacement, before.displacement)


def test_a_size_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="texture_size 96"):
        small(texture_size=96)
    with pytest.raises(ValueError, match="mesh_size 36"):
        small(mesh_size=36, texture_size=72)

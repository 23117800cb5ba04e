import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meshinv.reconstruction import ReconstructionNet
from meshinv.template import mirror_maps

CONVS = {  # of the published network, out x in x kernel x kernel
    "conv1e": (64, 4, 5), "conv2e": (128, 64, 3), "conv3e": (256, 128, 3), "conv4e": (512, 256, 3),
    "conv5e": (64, 512, 3),
    "blk1.conv1": (256, 256, 3), "blk1.conv2": (512, 256, 3), "blk1.shortcut": (512, 256, 1),
    "blk2.conv1": (512, 512, 3), "blk2.conv2": (256, 512, 3), "blk2.shortcut": (256, 512, 1),
    "blk3.conv1": (256, 256, 3), "blk3.conv2": (256, 256, 3),
    "blk3b_tex.conv1": (256, 256, 3), "blk3b_tex.conv2": (256, 256, 3),
    "blk4_tex.conv1": (256, 256, 3), "blk4_tex.conv2": (128, 256, 3), "blk4_tex.shortcut": (128, 256, 1),
    "blk5_tex.conv1": (128, 128, 3), "blk5_tex.conv2": (64, 128, 3), "blk5_tex.shortcut": (64, 128, 1),
    "blk4_mesh.conv1": (256, 256, 3), "blk4_mesh.conv2": (64, 256, 3), "blk4_mesh.shortcut": (64, 256, 1),
    "conv_tex": (3, 64, 5), "conv_mesh": (3, 64, 5),
}  # fmt: skip
LINEAR = {"fc1e": (256, 4096), "fc3e": (1024, 256), "fc1_tex": (2048, 1024)}
NORMS = {
    "bn1e": 64, "bn2e": 128, "bn3e": 256, "bn4e": 512, "bn5e": 64, "bnfc1e": 256, "bnfc3e": 1024,
    "blk1.bn1": 256, "blk1.bn2": 512, "blk2.bn1": 512, "blk2.bn2": 256, "blk3.bn1": 256, "blk3.bn2": 256,
    "blk3b_tex.bn1": 256, "blk3b_tex.bn2": 256, "blk4_tex.bn1": 256, "blk4_tex.bn2": 128, "blk5_tex.bn1": 128,
    "blk5_tex.bn2": 64, "blk4_mesh.bn1": 256, "blk4_mesh.bn2": 64,
}  # fmt: skip


def small(**options) -> ReconstructionNet:
    return ReconstructionNet(**({"width": 0.01, "texture_size": 64, "image_size": 64} | options))


def awake(net: ReconstructionNet, rng) -> ReconstructionNet:
    """The network in float64 with statistics, gains and a displacement head that a training might have left."""
    net = net.double()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var") or (".bn" in f".{name}" and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=rng)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(std=0.2, generator=rng)
    net.conv_mesh.weight.data.normal_(std=0.1, generator=rng)
    return net


def published_layout() -> dict[str, tuple[int, ...]]:
    """Entries of the released network; their order is not known."""
    layout = {f"{name}.weight": (out, into, k, k) for name, (out, into, k) in CONVS.items()}
    layout |= {f"{name}.weight": shape for name, shape in LINEAR.items()}
    layout |= {"fc1_tex.bias": (2048,), "conv_tex.bias": (3,), "conv_mesh.bias": (3,)}
    for name, channels in NORMS.items():
        layout |= {f"{name}.{entry}": (channels,) for entry in ("weight", "bias", "running_mean", "running_var")}
        layout[f"{name}.num_batches_tracked"] = ()
    return layout


def test_the_state_dict_is_that_of_the_published_network():
    net = ReconstructionNet()
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == published_layout()
    assert sum(parameter.numel() for parameter in net.parameters()) == 15_111_046


def by_hand(state: dict[str, Tensor], image: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """The network in evaluation mode from its state dict, for 256-pixel photographs and 128-pixel textures."""

    def norm(name: str, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var, weight, bias = (
            state[f"{name}.{entry}"].view(shape) for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        x = F.pad(F.pad(x, (pad, pad, 0, 0), mode=side), (0, 0, pad, pad))
        return F.conv2d(x, weight, state.get(f"{name}.bias"))

    def block(name: str, x: Tensor) -> Tensor:
        y = norm(f"{name}.bn1", conv(f"{name}.conv1", x)).relu()
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y)).relu()
        return y + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in state else x)

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = image
    for i in range(1, 6):
        x = norm(f"bn{i}e", F.conv2d(x, state[f"conv{i}e.weight"], stride=2, padding=2 if i == 1 else 1)).relu()
    x = norm("bnfc1e", x.flatten(1) @ state["fc1e.weight"].T).relu()
    x = norm("bnfc3e", x @ state["fc3e.weight"].T).relu()
    columns = 2 if side == "replicate" else 4
    trunk = (x @ state["fc1_tex.weight"].T + state["fc1_tex.bias"]).view(len(x), -1, 4, columns)
    for name in ("blk1", "blk2", "blk3"):
        trunk = twice(block(name, trunk))
    texture = block("blk5_tex", twice(block("blk4_tex", twice(block("blk3b_tex", trunk)))))
    texture = conv("conv_tex", texture.relu()).tanh()
    shape = conv("conv_mesh", block("blk4_mesh", trunk).relu())
    for row in (0, -1):
        shape[:, :, row] = shape[:, :, row].mean(-1, keepdim=True)
    return texture, shape


@pytest.mark.parametrize("symmetric", [True, False])
def test_maps_are_those_of_the_layers_written_out(symmetric, rng):
    net = awake(ReconstructionNet(width=0.01, symmetric=symmetric), rng).eval().requires_grad_(False)
    image = torch.randn(2, 4, 256, 256, generator=rng, dtype=torch.float64)
    maps = net(image)
    texture, shape = by_hand(net.state_dict(), image, "replicate" if symmetric else "circular")
    assert maps.texture.shape == (2, 3, 128, 128)
    assert maps.displacement.shape == (2, 3, 32, 32)
    if symmetric:  # the middle half is what the network draws
        torch.testing.assert_close(maps.texture[..., 32:96], texture)
        torch.testing.assert_close(maps.displacement[..., 8:24], shape)
        assert torch.equal(maps.texture, mirror_maps(maps.texture))
    else:
        torch.testing.assert_close(maps.texture, texture)
        torch.testing.assert_close(maps.displacement, shape)
    assert maps.displacement.std() > 0.01


@pytest.mark.parametrize("image_size, strides", [(64, [2, 2, 2, 1, 1]), (128, [2, 2, 2, 2, 1]), (256, [2, 2, 2, 2, 2])])
def test_smaller_photographs_are_halved_less_often(image_size, strides, rng):
    net = small(image_size=image_size)
    assert [net.get_submodule(f"conv{i}e").stride[0] for i in range(1, 6)] == strides
    maps = net(torch.randn(2, 4, image_size, image_size, generator=rng))
    assert maps.texture.shape == (2, 3, 64, 64)


def test_a_fresh_network_gives_the_sphere(rng):
    maps = small()(torch.randn(2, 4, 64, 64, generator=rng))
    assert torch.equal(maps.displacement, torch.zeros(2, 3, 32, 32))


def test_it_can_fit_a_texture(rng):
    torch.manual_seed(0)
    net, image = small(width=0.125), torch.randn(4, 4, 64, 64, generator=rng)
    wanted = torch.rand(4, 3, 1, 1, generator=rng) - 0.5
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = (net(image).texture - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_sizes_that_cannot_be_are_refused(rng):
    with pytest.raises(ValueError, match="image_size 100"):
        small(image_size=100)
    with pytest.raises(ValueError, match="texture_size 512"):
        small(texture_size=512)
    with pytest.raises(ValueError, match="side 128"):
        small()(torch.randn(2, 4, 128, 128, generator=rng))

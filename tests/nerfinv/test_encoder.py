"""The encoder against numbers of the released network, tables of its weights, and its formulas written out."""

import math
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.runtime.checkpoint import save
from invkit.runtime.run import load_module
from nerfinv.compat_encoder import architecture, from_released, to_released
from nerfinv.encoder.encoder import Canonical, Encoder, PoseRegressor
from nerfinv.encoder.pretrained import fill_backbone, load_backbone
from nerfinv.encoder.segformer import (
    STAGES,
    DropPath,
    MixTransformer,
    SegFormer,
    mit_b0,
    mit_b1,
    mit_b2,
    mit_b3,
    mit_b4,
    mit_b5,
    tiny,
)
from nerfinv.losses.bootstrap import pose_numbers

Layout = dict[str, tuple[int, ...]]
DIMS, DEPTHS, REDUCTIONS = (64, 128, 320, 512), (3, 6, 40, 3), (8, 4, 2, 1)


# ---- The released table of names and shapes ----------------------------------------------------------------------


def block_layout(dim: int, reduction: int) -> Layout:
    reduced = {
        "attn.sr.weight": (dim, dim, reduction, reduction),
        "attn.sr.bias": (dim,),
        "attn.norm.weight": (dim,),
        "attn.norm.bias": (dim,),
    }
    return {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "attn.q.weight": (dim, dim),
        "attn.q.bias": (dim,),
        "attn.kv.weight": (2 * dim, dim),
        "attn.kv.bias": (2 * dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        **(reduced if reduction > 1 else {}),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (4 * dim, dim),
        "mlp.fc1.bias": (4 * dim,),
        "mlp.dwconv.dwconv.weight": (4 * dim, 1, 3, 3),
        "mlp.dwconv.dwconv.bias": (4 * dim,),
        "mlp.fc2.weight": (dim, 4 * dim),
        "mlp.fc2.bias": (dim,),
    }


def mit_layout(dims=DIMS, depths=DEPTHS, reductions=REDUCTIONS) -> Layout:
    """The names and shapes of mit_b5.pth, its classifier left out."""
    layout = {}
    for stage, dim, before in zip(STAGES, dims, (3, *dims), strict=False):
        kernel = 7 if stage == 1 else 3
        layout[f"patch_embed{stage}.proj.weight"] = (dim, before, kernel, kernel)
        layout |= {f"patch_embed{stage}.{name}": (dim,) for name in ("proj.bias", "norm.weight", "norm.bias")}
        for index in range(depths[stage - 1]):
            block = block_layout(dim, reductions[stage - 1])
            layout |= {f"block{stage}.{index}.{name}": shape for name, shape in block.items()}
        layout |= {f"norm{stage}.weight": (dim,), f"norm{stage}.bias": (dim,)}
    return layout


def backbone_layout() -> Layout:
    layout = mit_layout()
    for stage, dim in zip(reversed(STAGES), reversed(DIMS), strict=True):
        layout |= {f"linear_c{stage}.proj.weight": (768, dim), f"linear_c{stage}.proj.bias": (768,)}
    layout |= {"linear_fuse.weight": (768, 3072, 1, 1), "linear_fuse.bias": (768,)}
    return layout | {"linear_pred.weight": (512, 768, 1, 1), "linear_pred.bias": (512,)}


def released_layout(separate: bool = False) -> Layout:
    layout = {f"backbone.{name}": shape for name, shape in backbone_layout().items()}
    if separate:
        layout |= {f"backbone_latent.{name}": shape for name, shape in backbone_layout().items()}
    for name, outputs in (("post.0", 512), ("post.2", 512), ("post.4", 4), ("w_regressor_pre.0", 512)):
        layout |= {f"{name}.weight": (outputs, 512, 3, 3), f"{name}.bias": (outputs,)}
    for name in ("w_regressor_post.0", "w_regressor_post.2"):
        layout |= {f"{name}.weight": (512, 512), f"{name}.bias": (512,)}
    return layout


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that depend on the name alone: biases near 0, gains near 1, outputs of the size of the inputs."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
        noise = 0.1 * noise
    elif len(shape) == 1:
        noise = 1 + 0.1 * noise
    else:
        noise = noise / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(noise.astype(np.float32))


def number_of_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """model_coord of a released checkpoint, without the prefix."""
    return {name: drawn(name, shape) for name, shape in released_layout().items()}


@pytest.fixture(scope="module")
def encoder(released) -> Encoder:
    with torch.device("meta"):
        network = Encoder(mit_b5())
    converted = from_released({"model_coord": {f"module.{name}": value for name, value in released.items()}})
    network.load_state_dict(converted["modules"]["encoder"], assign=True, strict=True)
    return network.eval()


# ---- Numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> Tensor:
    b, c, y, x = np.ogrid[:2, :3, :128, :128]
    return torch.from_numpy(np.sin(0.05 * x * (c + 1) + 0.07 * y + 0.9 * b + 0.4 * c)).float()


@pytest.fixture(scope="module")
def seen(encoder, image) -> dict[str, Tensor]:
    """What the network and its parts give for the picture."""
    kept = {}
    hooks = [
        encoder.backbone.patch_embed1.register_forward_hook(lambda *args: kept.update(patches=args[2][0])),
        encoder.backbone.block1[0].register_forward_hook(lambda *args: kept.update(block=args[2])),
        encoder.backbone.register_forward_hook(lambda *args: kept.update(features=args[2])),
    ]
    with torch.no_grad():
        canonical = encoder(image)
    for hook in hooks:
        hook.remove()
    return kept | {"coords": canonical.coords, "mask": canonical.mask, "latent": canonical.latent}


def assert_statistics(found: Tensor, mean: float, deviation: float, *range_: float) -> None:
    numbers = found.double()
    scale = numbers.abs().max().item()
    assert numbers.mean().item() == pytest.approx(mean, abs=1e-5 * scale)
    assert numbers.std(correction=0).item() == pytest.approx(deviation, rel=1e-4)
    if range_:
        assert (numbers.min().item(), numbers.max().item()) == pytest.approx(range_, rel=1e-3)


def test_the_network_gives_the_numbers_of_the_released_one(seen):
    assert_statistics(seen["patches"], -0.001168335, 0.9950914, -4.053082, 4.152709)
    assert seen["patches"].flatten()[:3].tolist() == pytest.approx([-1.148389, -1.243205, -0.7018772], rel=1e-4)
    assert_statistics(seen["block"], -0.05095614, 1.263589, -4.871644, 4.41223)
    features = seen["features"]
    assert features.shape == (2, 512, 32, 32)
    assert_statistics(features, -0.009360443, 0.9978515, -3.815075, 3.624152)
    first = features[0, 0, 0, :3].tolist()
    assert first == pytest.approx([0.0462285, 0.1827348, 0.3579198], abs=1e-4)
    assert features[-1, -1, -1, -1].item() == pytest.approx(1.245749, rel=1e-4)
    assert_statistics(seen["coords"], 0.154495, 0.2016138, -0.4996369, 0.6237212)
    assert seen["coords"][0, :, 60, 70].tolist() == pytest.approx([0.0834710, -0.3564409, 0.2076229], rel=1e-3)
    assert_statistics(seen["mask"], 0.3621737, 0.03461012, 0.2773027, 0.5543512)
    assert_statistics(seen["latent"], 0.1071211, 0.2113104, -0.1807141, 1.307678)
    assert seen["latent"][0, :3].tolist() == pytest.approx([-0.04260414, 0.3628843, -0.07379126], rel=1e-3)


def test_every_stage_gives_the_numbers_of_the_released_one(encoder, image):
    numbers = [
        (-0.02097622, 1.006904, -0.7789883),
        (-0.004162063, 1.025919, -1.224972),
        (-0.00030363, 1.01088, -0.142433),
        (0.001625267, 0.9955258, -0.04460805),
    ]
    with torch.no_grad():
        maps = MixTransformer.forward(encoder.backbone, image)
    assert [tuple(found.shape) for found in maps] == [
        (2, dim, side, side) for dim, side in zip(DIMS, (32, 16, 8, 4), strict=True)
    ]
    for found, (mean, deviation, first) in zip(maps, numbers, strict=True):
        assert_statistics(found, mean, deviation)
        assert found.flatten()[0].item() == pytest.approx(first, abs=1e-4)


def test_a_latent_backbone_of_its_own_serves_the_latent_alone(rng):
    net = Encoder(tiny(), tiny(), head_width=16, latent_dim=8).eval()
    image = torch.rand(2, 3, 32, 32, generator=rng)
    before = net(image)
    shared = Encoder(net.backbone, head_width=16, latent_dim=8).eval()
    shared.load_state_dict(net.state_dict(), strict=False)
    with_one = shared(image)
    torch.testing.assert_close(with_one.coords, before.coords)
    assert not torch.allclose(with_one.latent, before.latent)
    shared.backbone.load_state_dict(net.latent_backbone.state_dict())
    torch.testing.assert_close(shared(image).latent, before.latent)


# ---- The formulas, written out -----------------------------------------------------------------------------------


def attention_by_hand(tokens: Tensor, part: nn.Module, heads: int, size: tuple[int, int]) -> Tensor:
    source = tokens
    if part.sr is not None:
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *size)
        source = part.norm(part.sr(maps).flatten(2).transpose(1, 2))
    query, (key, value) = part.q(tokens), part.kv(source).split(tokens.shape[-1], dim=-1)
    dim = tokens.shape[-1] // heads
    outputs = []
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        weights = torch.softmax(query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(dim), dim=-1)
        outputs.append(weights @ value[..., own])
    return part.proj(torch.cat(outputs, dim=-1))


@pytest.mark.parametrize("stage", STAGES)
def test_attention_is_that_of_the_formula(stage, rng):
    net = tiny().double()
    size = (8, 16)
    dim, heads = net.dims[stage - 1], (1, 2, 4, 6)[stage - 1]
    tokens = torch.randn(2, 128, dim, generator=rng, dtype=torch.float64)
    part = getattr(net, f"block{stage}")[0].attn
    torch.testing.assert_close(part(tokens, size), attention_by_hand(tokens, part, heads, size))


def test_the_decode_head_joins_the_enlarged_maps_from_coarse_to_fine(rng):
    net = tiny().double().eval()
    image = torch.rand(2, 3, 64, 96, generator=rng, dtype=torch.float64)
    maps = MixTransformer.forward(net, image)
    parts = []
    for stage in reversed(STAGES):
        linear = getattr(net, f"linear_c{stage}").proj
        part = torch.einsum("dc,bchw->bdhw", linear.weight, maps[stage - 1]) + linear.bias.view(1, -1, 1, 1)
        parts.append(F.interpolate(part, maps[0].shape[-2:], mode="bilinear"))
    torch.testing.assert_close(net(image), net.linear_pred(net.linear_fuse(torch.cat(parts, dim=1))))


def test_drop_path_drops_images_and_keeps_the_mean():
    torch.manual_seed(0)
    branch, layer = torch.ones(20_000, 2, 3), DropPath(0.1)
    out = layer.train()(branch)
    of_image = out[:, 0, 0]
    assert torch.equal(out, of_image[:, None, None].expand_as(out))
    assert set(of_image.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert (of_image == 0).float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))
    assert torch.equal(layer.eval()(branch), branch)


def test_drop_rates_rise_over_all_blocks():
    with torch.device("meta"):
        net = mit_b5()
    rates = [block.drop_path.rate for stage in STAGES for block in getattr(net, f"block{stage}")]
    assert len(rates) == 52
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.00196078, abs=1e-8)
    assert rates[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(rates), 0.1 / 51, atol=1e-8)


# ---- Sizes and fresh weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate, entries, numbers", [(False, 1076, 92_609_476), (True, 2140, 177_595_780)])
def test_the_encoder_has_the_released_size(separate, entries, numbers):
    with torch.device("meta"):
        net = Encoder(mit_b5(), mit_b5() if separate else None)
    assert len(net.state_dict()) == entries
    assert number_of_parameters(net) == numbers == sum(map(math.prod, released_layout(separate).values()))
    assert number_of_parameters(net.backbone) == 84_986_304
    assert number_of_parameters(net.canonical_head) == 4_738_052
    assert number_of_parameters(net.latent_head) == 2_885_120
    assert not list(net.buffers())


@pytest.mark.parametrize(
    "variant, numbers",  # in millions: table 6 of the SegFormer paper, encoders
    [(mit_b0, 3.4), (mit_b1, 13.1), (mit_b2, 24.2), (mit_b3, 44.0), (mit_b4, 60.8), (mit_b5, 81.4)],
)
def test_the_variants_have_the_published_sizes(variant, numbers):
    with torch.device("meta"):
        net = variant()
    head = sum(p.numel() for name, p in net.named_parameters() if name.startswith("linear_"))
    assert (number_of_parameters(net) - head) / 1e6 == pytest.approx(numbers, abs=0.1)


def test_the_tiny_encoder_is_small():
    net = Encoder(tiny(), head_width=32, latent_dim=128)
    assert 2 * number_of_parameters(net) < 5e6
    seen = net(torch.zeros(1, 3, 64, 96))
    assert (seen.coords.shape, seen.mask.shape, seen.latent.shape) == ((1, 3, 64, 96), (1, 1, 64, 96), (1, 128))


def initial_parameters(net: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    return ((module, name) for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))


def test_fresh_weights_are_drawn_by_segformers_rule():
    torch.manual_seed(0)
    net = mit_b0()
    for module, name in initial_parameters(net):
        spread = 0.02
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            spread = math.sqrt(2 / (height * width * module.out_channels / module.groups))
        count = module.weight.numel()
        assert module.weight.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * count)), name
        assert abs(module.weight.mean().item()) < 5 * spread / math.sqrt(count), name
        assert not module.bias.any(), name
    for name, parameter in net.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_the_heads_start_as_torch_starts_layers():
    torch.manual_seed(0)
    net = Encoder(tiny(out_channels=64), head_width=96, latent_dim=32)
    for module, name in [*initial_parameters(net.canonical_head), *initial_parameters(net.latent_head)]:
        bound = 1 / math.sqrt(module.weight[0].numel())
        assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.02), name
        assert 0 < module.bias.abs().max() <= bound, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depths": (2, 2, 2)}, r"depths must be four numbers of at least 1, not \[2, 2, 2\]"),
        ({"dims": (32, 64, 160, 0)}, "dims must be four numbers"),
        ({"num_heads": (1, 2, 3, 8)}, r"320 channels \(dims\) cannot be shared equally by 3 heads"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixTransformer(**options)


@pytest.mark.parametrize("size", [(48, 64), (64, 0), (16, 16)])
def test_images_that_the_stages_cannot_halve_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny()(torch.zeros(1, 3, *size))


def test_bfloat16_comes_near_and_gives_float32(rng):
    torch.manual_seed(0)
    net = Encoder(tiny(), head_width=16, latent_dim=8).eval()
    image = torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1
    exact = net(image)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = net(image)
    for name in ("coords", "mask", "latent"):
        assert getattr(narrow, name).dtype == torch.float32
        torch.testing.assert_close(getattr(narrow, name), getattr(exact, name), rtol=0.1, atol=0.02)


def test_gradients_reach_every_weight(rng):
    net = Encoder(tiny(), tiny(), head_width=16, latent_dim=8)
    seen = net(torch.rand(2, 3, 32, 32, generator=rng))
    sum(part.square().sum() for part in (seen.coords, seen.mask, seen.latent)).backward()
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []
    assert isinstance(seen, Canonical)


# ---- Direct regression of the pose -------------------------------------------------------------------------------


@pytest.mark.parametrize("perspective", [True, False])
def test_the_regressor_names_proper_cameras(perspective, rng):
    net = PoseRegressor(tiny(), head_width=16, perspective=perspective)
    camera = net(torch.rand(3, 3, 32, 32, generator=rng))
    assert isinstance(camera, Camera)
    torch.testing.assert_close(camera.quat.norm(dim=1), torch.ones(3))
    assert (camera.scale > 0).all()
    assert bool((camera.inv_focal > 0).all()) == perspective
    pose_numbers(camera).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_pose_numbers_are_those_of_the_augmented_camera():
    quat = rotation.normalize(torch.tensor([[0.8, 0.2, -0.4, 0.4], [0.5, 0.5, 0.6, -0.4]]))
    shift, scale = torch.tensor([[0.1, -0.2], [0.0, 0.15]]), torch.tensor([0.7, 0.55])
    z0 = torch.tensor([0.3, -1.0])
    numbers = pose_numbers(Camera.from_augmented(z0, shift, scale, quat))
    expected = torch.cat([quat, torch.tensor([[math.log(0.7)], [math.log(0.55)]]), shift, z0[:, None]], dim=1)
    torch.testing.assert_close(numbers, expected)
    weak = pose_numbers(Camera.from_augmented(None, shift, scale, quat))
    torch.testing.assert_close(weak, torch.cat([expected[:, :-1], torch.full((2, 1), 4.0)], dim=1))


# ---- Released checkpoints ----------------------------------------------------------------------------------------


def payload(state: dict[str, Tensor]) -> dict:
    prefixed = {f"module.{name}": value for name, value in state.items()}
    return {"model_coord": prefixed, "lr": 6e-6, "iteration": 120_000, "optimizer_coord": {"state": {}}}


@pytest.mark.parametrize("separate", [False, True])
def test_a_released_checkpoint_comes_back_bit_by_bit(separate, released):
    state = dict(released)
    if separate:
        state = {
            name: state.get(name, torch.tensor(0.5).expand(shape)) for name, shape in released_layout(True).items()
        }
    before = payload(state)
    converted = from_released(before)
    assert converted["step"] == 120_000
    after = to_released(converted)
    assert (after["lr"], after["iteration"]) == (6e-6, 120_000)
    assert list(after["model_coord"]) == list(before["model_coord"])
    for name, value in before["model_coord"].items():
        assert torch.equal(after["model_coord"][name], value), name


def small_payload(separate: bool = True) -> dict:
    """A checkpoint in the released layout, of an encoder with the heads of all published backbones but else small."""
    backbone = {"dims": (8, 16, 40, 64), "depths": (1, 2, 1, 1), "width": 16, "out_channels": 24}
    net = Encoder(SegFormer(**backbone), SegFormer(**backbone) if separate else None, head_width=8, latent_dim=6)
    theirs = {
        "latent_backbone": "backbone_latent",
        "canonical_head": "post",
        "latent_head.conv": "w_regressor_pre.0",
        "latent_head.fc1": "w_regressor_post.0",
        "latent_head.fc2": "w_regressor_post.2",
    }
    state = {}
    for name, value in net.state_dict().items():
        own = next((own for own in theirs if name.startswith(own)), None)
        state[name if own is None else theirs[own] + name.removeprefix(own)] = value
    return payload(state)


@pytest.mark.parametrize("separate", [False, True])
def test_a_converted_checkpoint_describes_its_network(separate, tmp_path, rng):
    before = small_payload(separate)
    save(tmp_path / "encoder.pt", from_released(before))
    net = load_module(tmp_path / "encoder.pt", "encoder")
    assert (net.latent_backbone is not None) == separate
    assert torch.equal(net.latent_head.fc1.weight, before["model_coord"]["module.w_regressor_post.0.weight"])
    assert net(torch.rand(1, 3, 32, 32, generator=rng)).latent.shape == (1, 6)


def spoilt(name: str, value) -> dict:
    before = small_payload()
    before["model_coord"][f"module.{name}"] = value
    return before


def without(name: str) -> dict:
    before = small_payload()
    del before["model_coord"][f"module.{name}"]
    return before


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda: {"modules": {}}, "one of our checkpoints"),
        (lambda: {"model_ema": {}}, r"no networks named model_coord, only \['model_ema'\]"),
        (lambda: spoilt("post.6.weight", torch.zeros(1)), r"has canonical_head\.6\.weight, which the network does not"),
        (lambda: spoilt("pre.0.weight", torch.zeros(1)), r"has module\.pre\.0\.weight, which no released encoder has"),
        (lambda: spoilt("post.4.bias", torch.zeros(5)), r"canonical_head\.4\.bias is \[5\] and not \[4\]"),
        (lambda: spoilt("post.4.bias", 1.0), r"canonical_head\.4\.bias is a float"),
        (lambda: spoilt("post.4.bias", torch.zeros(4, dtype=torch.int64)), r"is torch\.int64"),
        (lambda: without("backbone.norm2.weight"), r"lacks backbone\.norm2\.weight"),
        (lambda: without("post.0.weight"), r"lacks canonical_head\.0\.weight"),
        (lambda: small_payload() | {"iteration": "many"}, "iteration is 'many'"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(broken, message):
    with pytest.raises(ValueError, match=message):
        from_released(broken())


def test_encoders_that_the_released_code_cannot_build_are_refused(released):
    with pytest.raises(ValueError, match=r"task\.encoder\.backbone\.dims=\[8, 16, 40, 64\]: .* \[64, 128, 320, 512\]"):
        to_released(from_released(small_payload()))
    converted = from_released(payload(released))
    converted["config"]["task"]["encoder"]["backbone"]["num_heads"] = [1, 2, 5, 4]
    with pytest.raises(ValueError, match=r"backbone\.num_heads=\[1, 2, 5, 4\]"):
        to_released(converted)
    with pytest.raises(ValueError, match=r"no modules\.encoder"):
        to_released({"modules": {"generator": {}}})


# ---- Published backbones -----------------------------------------------------------------------------------------

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 2, 1, 1)}


def published_backbone() -> dict[str, Tensor]:
    state = {name: drawn(name, shape) for name, shape in mit_layout(**SMALL).items()}
    return state | {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}


def test_a_published_backbone_is_read_and_the_decode_head_left_alone(tmp_path):
    stored = published_backbone()
    torch.save(stored, tmp_path / "mit.pth")
    net = SegFormer(**SMALL, width=16, out_channels=8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    load_backbone(net, tmp_path / "mit.pth")
    after = net.state_dict()
    assert {name for name in after if torch.equal(after[name], before[name])} == {
        name for name in after if name.startswith("linear_")
    }
    assert all(torch.equal(after[name], value) for name, value in stored.items() if not name.startswith("head."))


def test_the_largest_published_backbone_has_the_names_of_ours():
    layout = mit_layout()
    assert len(layout) == 1052
    with torch.device("meta"):
        stored = {name: torch.empty(shape) for name, shape in layout.items()}
        fill_backbone(mit_b5(), stored)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda stored: stored.pop("block2.1.attn.sr.bias"), r"mit\.pth: lacks block2\.1\.attn\.sr\.bias"),
        (lambda stored: stored.update({"block2.2.norm1.weight": torch.zeros(16)}), r"has block2\.2\.norm1\.weight"),
        (lambda stored: stored.update({"norm1.bias": torch.zeros(9)}), r"norm1\.bias is \[9\] and not \[8\]"),
    ],
)
def test_other_backbones_are_refused(change, message, tmp_path):
    stored = published_backbone()
    change(stored)
    torch.save(stored, tmp_path / "mit.pth")
    with pytest.raises(ValueError, match=message):
        load_backbone(SegFormer(**SMALL, width=16, out_channels=8), tmp_path / "mit.pth")


def test_the_published_backbone_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("INVKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    net = SegFormer(**SMALL, width=16, out_channels=8)
    with pytest.raises(FileNotFoundError, match=r"no file mit_b5\.pth .*NVlabs/SegFormer.*task.pretrained=null"):
        load_backbone(net, "mit_b5")
    stored = published_backbone()
    torch.save(stored, tmp_path / "mit_b5.pth")
    load_backbone(net, "mit_b5")
    assert all(torch.equal(value, stored[name]) for name, value in net.state_dict().items() if name in stored)
    assert len(stored.keys() & net.state_dict().keys()) > 20


def test_files_that_are_no_backbone_are_refused(tmp_path):
    net = MixTransformer(**SMALL)
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*mit_b5\.pth with a backbone.*task.pretrained=null"
    ):
        load_backbone(net, tmp_path / "mit_b5.pth")
    (tmp_path / "text.pth").write_text("not found")
    with pytest.raises(ValueError, match=r"text\.pth is damaged"):
        load_backbone(net, tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list and not"):
        load_backbone(net, tmp_path / "list.pth")


def test_the_architecture_is_read_off_the_shapes():
    with torch.device("meta"):
        state = Encoder(mit_b2(width=256, out_channels=96), head_width=48, latent_dim=24).state_dict()
    backbone = architecture(state).pop("backbone")
    assert (backbone["dims"], backbone["depths"]) == ([64, 128, 320, 512], [3, 4, 6, 3])
    assert (backbone["reductions"], backbone["width"], backbone["out_channels"]) == ([8, 4, 2, 1], 256, 96)
    keywords = architecture(state)
    assert (keywords["head_width"], keywords["latent_dim"]) == (48, 24)
    assert "latent_backbone" not in keywords

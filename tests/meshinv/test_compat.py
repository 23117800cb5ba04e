"""The released layout and ours, against the published tables of names and shapes."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invkit.geometry.camera import Camera
from meshinv.architecture import (
    architecture,
    discriminator_architecture,
    image_discriminator_architecture,
    reconstruction_architecture,
)
from meshinv.compat import from_released, to_released
from meshinv.discriminators.patch import PatchDiscriminator
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.layers import SpectralMapConv
from meshinv.pseudo_truth import CameraCorrections
from meshinv.reconstruction import ReconstructionNet
from tests.meshinv import test_discriminators, test_generator, test_patch, test_reconstruction

GENERATOR, UV, PATCH = (
    f"meshinv.{path}" for path in ("generator.Generator", "discriminators.uv.UVDiscriminator",
                                   "discriminators.patch.PatchDiscriminator")
)  # fmt: skip
Layout = dict[str, tuple[int, ...]]


def numbered(layout: Layout, start: int = 0) -> dict[str, Tensor]:
    """Tensors of these shapes, no two alike; vectors that are not of unit length, counts that are not zero."""
    state = {}
    for index, (name, shape) in enumerate(layout.items(), start=start):
        count = int(np.prod(shape))
        values = torch.arange(count) + index
        state[name] = values.view(shape) if name.endswith("num_batches_tracked") else values.float().view(shape) / 7
    return state


def generator_layout(texture_size: int = 512, symmetric: bool = True, classes: bool = True) -> Layout:
    """The released table of the birds' generator, changed as ConvMesh's other settings change it."""
    blocks = ("blk3a", "blk3b", "blk3c")[: {128: 0, 256: 1, 512: 2, 1024: 3}[texture_size]]
    table = {}
    for name, shape in test_generator.published_layout().items():
        if name == "blk4.conv1.weight_orig":
            for block in blocks:
                table |= test_generator.block_layout(block, 256, 256)
        if not name.startswith(("blk3a", "blk3b")):
            table[name] = shape
    layout = {}
    for name, shape in table.items():
        if name.startswith("fc.") and not symmetric:
            shape = (2 * shape[0], *shape[1:])
        if not classes and (name == "fc.weight" or name.endswith(("fc_gamma.weight", "fc_beta.weight"))):
            shape = (shape[0], 64)
        if classes or name != "emb_class.weight":
            layout[name] = shape
    return layout


def discriminator_layout(texture_size: int = 512, num_scales: int = 3, classes: bool = True) -> Layout:
    layout = {}
    for name, shape in test_discriminators.published_layout().items():
        if (name.startswith("d3") and num_scales == 2) or ("projector" in name and not classes):
            continue
        if name.startswith("d1.conv1.weight") and texture_size < 512:
            shape = {"orig": (64, 8, 5, 5), "u": (64,), "v": (200,)}[name.rpartition("_")[2]]
        if name.startswith("d3.conv1.weight") and texture_size >= 1024:
            shape = {"orig": (64, 8, 4, 4), "u": (64,), "v": (128,)}[name.rpartition("_")[2]]
        layout[name] = shape
    return layout


def released(texture_size: int = 512, symmetric: bool = True, classes: bool = True, num_scales: int = 3) -> dict:
    """A checkpoint of MeshInversion; its arguments in numpy's numbers, its optimizers and curves as they come."""
    layout = generator_layout(texture_size, symmetric, classes)
    return {
        "generator": numbered(layout),
        "generator_running_avg": numbered(layout, 1000),
        "discriminator": numbered(discriminator_layout(texture_size, num_scales, classes)),
        "patchD": numbered(test_patch.published_layout()),
        "self.optimizer_g": {"state": {}, "param_groups": []},
        "epoch": 599,
        "iteration": 111_600,
        "g_curve": [0.5, 0.25],
        "self.args": {"loss": "hinge", "texture_resolution": texture_size, "n_classes": [200], "lr_g": 1e-4},
    }


def small_gan(**options) -> dict:
    """A released checkpoint of a generator that is quick to make."""
    net = Generator(**{"num_classes": 5, "latent_dim": 16, "width": 0.125, "texture_size": 128, **options})
    state = net.state_dict()
    return {"generator_running_avg": state}


def ours(generator: Layout, discriminator: Layout, patches: Layout, settings: dict | None = None) -> dict:
    """A checkpoint as a run leaves it: what is at its default is not in the configuration."""
    settings = settings or {}
    nodes = {"generator": GENERATOR, "discriminator": UV, "image_discriminator": PATCH}
    return {
        "step": 7,
        "config": {"task": {key: {"_target_": node, **settings.get(key, {})} for key, node in nodes.items()}},
        "modules": {
            "generator": numbered(generator),
            "generator_ema": {f"module.{name}": value for name, value in numbered(generator, 1000).items()},
            "discriminator": numbered(discriminator),
            "image_discriminator": numbered(patches),
        },
        "optimizers": {},
    }


def published() -> tuple[Layout, Layout, Layout]:
    return (
        test_generator.published_layout(),
        test_discriminators.published_layout(),
        test_patch.published_layout(),
    )


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def assert_loads(checkpoint: dict, state: str, key: str, network: type[nn.Module]) -> nn.Module:
    """The network that the stored configuration describes; the stored weights are all of its weights."""
    node = dict(checkpoint["config"]["task"][key])
    assert node.pop("_target_") == f"{network.__module__}.{network.__name__}"
    net = network(**node)
    weights = {name.removeprefix("module."): value for name, value in checkpoint["modules"][state].items()}
    net.load_state_dict(weights, strict=True)
    return net


# ---- The tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texture_size, symmetric, classes, num_scales",
    [
        (size, symmetric, classes, 3 if size >= 512 else 2)
        for size, symmetric, classes in product([128, 256, 512, 1024], [True, False], [True, False])
    ]
    + [(512, True, True, 2), (128, True, True, 3)],
)
def test_a_released_checkpoint_comes_back_bit_by_bit(texture_size, symmetric, classes, num_scales):
    before = released(texture_size, symmetric, classes, num_scales)
    converted = from_released(before)
    generator = assert_loads(converted, "generator_ema", "generator", Generator)
    assert (generator.texture_size, generator.symmetric) == (texture_size, symmetric)
    assert (generator.num_classes, generator.latent_dim) == (200 if classes else 0, 64)
    judge = assert_loads(converted, "discriminator", "discriminator", UVDiscriminator)
    assert judge.texture_size == texture_size
    assert (judge.d3 is not None) == (num_scales == 3)
    assert_loads(converted, "image_discriminator", "image_discriminator", PatchDiscriminator)
    assert converted["step"] == 111_600
    after = to_released(converted)
    for entry in ("generator", "generator_running_avg", "discriminator", "patchD"):
        assert_same(after[entry], before[entry])
    for entry in ("epoch", "iteration", "self.args"):
        assert after[entry] == before[entry]
    assert "self.optimizer_g" not in after


def test_a_checkpoint_of_ours_gets_the_published_names_and_comes_back_bit_by_bit():
    layouts = published()
    before = ours(*layouts)
    there = to_released(before)
    found = {
        entry: {name: tuple(value.shape) for name, value in there[entry].items()}
        for entry in ("generator", "generator_running_avg", "discriminator", "patchD")
    }
    expected = dict(zip(found, (layouts[0], *layouts), strict=True))
    assert found == expected
    assert [list(layout) for layout in found.values()] == [list(layout) for layout in expected.values()]
    assert there["iteration"] == 7
    assert there["self.args"]["texture_resolution"] == 512
    assert there["self.args"]["n_classes"] == [200]
    assert there["self.args"]["num_discriminators"] == 3
    assert there["self.args"]["ndf"] == 64
    after = from_released(there)
    assert after["step"] == 7
    assert after["modules"].keys() == before["modules"].keys()
    for name, state in before["modules"].items():
        assert_same(after["modules"][name], state)


@pytest.mark.parametrize("perspective", [False, True])
def test_the_first_stage_and_its_cameras(perspective):
    table = {"ds_translation": torch.rand(6, 2), "ds_scale": torch.rand(6, 1)}
    if perspective:
        table["ds_z0"] = torch.rand(6, 1)
    before = {
        "generator": numbered(test_reconstruction.published_layout()),
        "dataset_params": table,
        "optimizer_dataset_params": {},
        "epoch": 999,
        "iteration": 119_000,
        "args": {"image_resolution": 256},
    }
    converted = from_released(before)
    net = assert_loads(converted, "network", "network", ReconstructionNet)
    assert (net.image_size, net.texture_size, net.symmetric) == (256, 128, True)
    corrections = assert_loads(converted, "corrections", "corrections", CameraCorrections)
    camera = Camera(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.5]), torch.zeros(1, 2), torch.zeros(1))
    corrected = corrections(camera, torch.tensor([4]))
    torch.testing.assert_close(corrected.scale, 0.5 + table["ds_scale"][4])
    torch.testing.assert_close(corrected.shift[0], table["ds_translation"][4])
    if perspective:
        torch.testing.assert_close(corrected.inv_focal, 1 / (1 + table["ds_z0"][4].exp()))

    after = to_released(converted)
    for name, value in before["generator"].items():
        assert torch.equal(after["generator"][name], value)
    assert after["dataset_params"].keys() == table.keys()
    assert all(torch.equal(after["dataset_params"][name], value) for name, value in table.items())
    assert (after["epoch"], after["iteration"], after["args"]) == (999, 119_000, {"image_resolution": 256})
    # A run of ours does not describe the corrections in its configuration.
    del converted["config"]["task"]["corrections"]
    assert to_released(converted)["dataset_params"].keys() == table.keys()


@pytest.mark.parametrize("texture_size, symmetric", [(128, True), (1024, False)])
def test_the_architecture_is_read_off_the_shapes(texture_size, symmetric):
    made = {
        "num_classes": 3, "latent_dim": 16, "width": 0.25, "texture_size": texture_size, "symmetric": symmetric,
    }  # fmt: skip
    judge = {"num_classes": 0, "texture_size": texture_size, "width": 0.5, "num_scales": 3}
    patches = {"in_channels": 4, "num_layers": 2, "width": 0.25}
    read = {"width": 0.25, "texture_size": 128, "symmetric": symmetric}
    assert architecture(Generator(**made).state_dict()) == made
    assert discriminator_architecture(UVDiscriminator(**judge).state_dict(), texture_size) == judge
    assert image_discriminator_architecture(PatchDiscriminator(**patches).state_dict()) == patches
    assert reconstruction_architecture(ReconstructionNet(**read).state_dict()) == read


# ---- What files come with ----------------------------------------------------------------------------------------


def test_convmesh_has_other_names_and_no_image_discriminator():
    before = released()
    before["args"] = before.pop("self.args")
    del before["patchD"]
    converted = from_released(before)
    assert set(converted["modules"]) == {"generator", "generator_ema", "discriminator"}
    assert converted["released"]["args"]["loss"] == "hinge"


def test_a_file_for_evaluation_has_the_average_alone():
    converted = from_released(small_gan())
    assert set(converted["modules"]) == {"generator_ema"}
    assert set(converted["config"]["task"]) == {"generator"}
    assert all(name.startswith("module.") for name in converted["modules"]["generator_ema"])


def test_prefixes_of_data_parallel_are_dropped():
    plain = small_gan()["generator_running_avg"]
    wrapped = {f"module.{name}": value for name, value in plain.items()}
    converted = from_released({"generator_running_avg": wrapped, "generator": wrapped})
    assert_same(converted["modules"]["generator"], dict(plain))


def test_counts_of_batches_are_kept_or_are_zero():
    state = small_gan()["generator_running_avg"]
    name = "blk1.norm1.norm.num_batches_tracked"
    state[name] = torch.tensor(37)
    converted = from_released({"generator": state})["modules"]["generator"]
    assert converted[name] == 37
    del state[name]
    converted = from_released({"generator": state})["modules"]["generator"]
    assert converted[name] == 0
    assert converted[name].dtype == torch.int64


def test_arguments_become_plain_values():
    odd = {
        "lr_g": np.float64(1e-4),
        "gpu_ids": (0, 1),
        "flag": np.bool_(True),
        "sizes": {"a": np.int64(3)},
        "x": 1 + 2j,
    }
    arguments = from_released(small_gan() | {"self.args": odd})["released"]["args"]
    assert arguments == {"lr_g": 1e-4, "gpu_ids": (0, 1), "flag": True, "sizes": {"a": 3}, "x": "(1+2j)"}
    assert type(arguments["lr_g"]) is float
    assert type(arguments["flag"]) is bool


def test_half_precision_goes_out_as_float32():
    before = ours(*published())
    state = before["modules"]["generator_ema"]
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    before["modules"] = {"generator_ema": halves}
    there = to_released(before)
    assert set(there) == {"generator_running_avg", "epoch", "iteration", "self.args"}
    assert {value.dtype for value in there["generator_running_avg"].values()} == {torch.float32, torch.int64}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchs_spectral_norm_reads_the_entries_and_answers_alike(rng):
    """The released code normalizes with torch.nn.utils.spectral_norm."""
    conv = SpectralMapConv(8, 16, 3, wrap=True)
    for vector in (conv.weight_u, conv.weight_v):
        vector.mul_(0.9)
    theirs = nn.utils.spectral_norm(nn.Conv2d(8, 16, 3, padding=(1, 0), bias=False))
    theirs.load_state_dict(dict(conv.state_dict()), strict=True)
    maps = torch.randn(2, 8, 5, 6, generator=rng)
    wrapped = nn.functional.pad(maps, (1, 1, 0, 0), mode="circular")
    torch.testing.assert_close(theirs.eval()(wrapped), conv.eval()(maps))


# ---- What is refused ---------------------------------------------------------------------------------------------


def spoilt(name: str, value) -> dict:
    payload = small_gan()
    payload["generator_running_avg"][name] = value
    return payload


def without(name: str) -> dict:
    payload = small_gan()
    del payload["generator_running_avg"][name]
    return payload


@pytest.mark.parametrize(
    "payload, message",
    [
        (lambda: {"epoch": 3}, "neither generator nor generator_running_avg"),
        (lambda: {"modules": {}, "config": {}, "step": 1}, "one of our checkpoints"),
        (lambda: {"generator": 3}, "generator is not a dictionary"),
        (lambda: spoilt("att.conv.weight", torch.zeros(1)), r"generator_running_avg: has att\.conv\.weight.*text"),
        (lambda: spoilt("emb_color.weight", torch.zeros(9, 16)), r"emb_color\.weight.*colors"),
        (lambda: spoilt("emb_class.weight", torch.zeros(5, 8)), "8 columns and fc.weight leaves 24"),
        (lambda: small_gan() | {"args": {"conditional_text": True}}, "conditional_text=True"),
        (lambda: small_gan() | {"self.args": {"texture_only": True}}, "texture_only=True"),
        (lambda: small_gan() | {"self.args": ["loss"]}, "arguments are a list"),
        (lambda: small_gan() | {"iteration": "many"}, "iteration is 'many'"),
        (lambda: without("fc.weight"), r"generator_running_avg: lacks fc\.weight"),
        (lambda: without("blk4.shortcut.weight_u"), r"lacks blk4\.shortcut\.weight_u; .*texture_size=128"),
        (lambda: spoilt("blk7.weight", torch.zeros(1)), r"has blk7\.weight, which Generator"),
        (lambda: spoilt("fc.weight", torch.zeros(100, 32)), r"fc\.weight has 100 rows, not 64 x 8 x 4"),
        (lambda: spoilt("conv_final.weight", torch.zeros(3, 8, 3, 3)),
         r"conv_final\.weight is \[3, 8, 3, 3\] and not \[3, 8, 5, 5\]"),
        (lambda: spoilt("conv_final.bias", torch.zeros(3, dtype=torch.int64)), r"conv_final\.bias is torch\.int64"),
        (lambda: spoilt("conv_final.bias", 1.0), r"conv_final\.bias is a float"),
        (lambda: small_gan() | {"generator": Generator(3, 16, 0.125, 128).state_dict()},
         r"generator_running_avg: emb_class\.weight is \[5, 16\] and not \[3, 16\]"),
        (lambda: small_gan() | {"discriminator": {"d2.conv5.weight_orig": torch.zeros(1)}},
         "discriminator: .*texture_only"),
        (lambda: small_gan() | {"discriminator": UVDiscriminator(5, 512, 0.125).state_dict()},
         r"discriminator: d1\.conv1\.weight_orig is \[8, 8, 4, 4\] and not \[8, 8, 5, 5\]"),
        (lambda: small_gan() | {"patchD": {"model.0.weight": torch.zeros(64, 3, 4, 4)}}, "patchD: num_layers"),
        (lambda: {"generator": ReconstructionNet(0.125).state_dict(),
                  "dataset_params": {"ds_scale": torch.zeros(4, 1)}}, "dataset_params: lacks shift"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(payload, message):
    with pytest.raises(ValueError, match=message):
        from_released(payload())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generator": {"width": 0.25}}, r"task\.generator\.width=0\.25.*1\.0 only"),
        ({"generator": {"mesh_size": 16}}, r"task\.generator\.mesh_size=16"),
        ({"generator": {"texture_size": 64}}, r"task\.generator\.texture_size=64.*128 or 256"),
        ({"generator": {"_target_": "meshinv.prior.MeshPrior"}}, r"task\.generator .* is meshinv\.prior\.MeshPrior"),
        ({"generator": {"texture_size": 256}}, r"generator: has blk3b"),
        ({"discriminator": {"width": 0.5}}, r"task\.discriminator\.width=0\.5"),
        ({"discriminator": {"num_classes": 0}}, r"discriminator: has d1\.projector\.weight"),
    ],
)  # fmt: skip
def test_networks_that_the_released_code_cannot_build_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        to_released(ours(*published(), settings))


def test_a_short_class_embedding_is_refused():
    state = Generator(200, 32).state_dict()
    node = {"_target_": GENERATOR, "latent_dim": 32}
    with pytest.raises(ValueError, match=r"task\.generator\.latent_dim=32"):
        to_released({"config": {"task": {"generator": node}}, "modules": {"generator": state}})


def test_networks_for_other_textures_or_classes_do_not_go_together():
    generator, _, patches = published()
    with pytest.raises(
        ValueError, match=r"task\.discriminator\.texture_size=1024 and task\.generator\.texture_size=512"
    ):
        to_released(ours(generator, discriminator_layout(1024), patches, {"discriminator": {"texture_size": 1024}}))
    with pytest.raises(ValueError, match=r"task\.discriminator\.num_classes=0 and task\.generator\.num_classes=200"):
        to_released(
            ours(generator, discriminator_layout(classes=False), patches, {"discriminator": {"num_classes": 0}})
        )


def test_an_image_discriminator_goes_out_where_its_widths_double():
    generator, discriminator, _ = published()
    for width, fits in ((0.5, True), (0.19, False)):
        state = PatchDiscriminator(width=width, num_layers=4).state_dict()
        before = ours(
            generator,
            discriminator,
            {name: tuple(value.shape) for name, value in state.items()},
            {"image_discriminator": {"width": width, "num_layers": 4}},
        )
        if fits:
            arguments = to_released(before)["self.args"]
            assert (arguments["ndf"], arguments["n_layers_D"], arguments["netD"]) == (32, 4, "n_layers")
        else:
            with pytest.raises(ValueError, match=r"task\.image_discriminator\.width=0\.19"):
                to_released(before)


@pytest.mark.parametrize(
    "settings", [{"width": 0.5}, {"image_size": 128}, {"texture_size": 64}, {"mesh_size": 16, "texture_size": 64}]
)
def test_reconstruction_networks_that_the_released_code_cannot_build_are_refused(settings):
    state = ReconstructionNet(**settings).state_dict()
    node = {"_target_": "meshinv.reconstruction.ReconstructionNet", **settings}
    with pytest.raises(ValueError, match=rf"task\.network\.({'|'.join(settings)})="):
        to_released({"config": {"task": {"network": node}}, "modules": {"network": state}})


def test_what_is_no_checkpoint_of_ours_is_refused():
    with pytest.raises(ValueError, match="not one of our checkpoints"):
        to_released({"generator": {}})
    with pytest.raises(ValueError, match=r"no generator or generator_ema, only \['encoder'\]"):
        to_released({"config": {"task": {}}, "modules": {"encoder": {}}})

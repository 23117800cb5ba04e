"""The released layout and ours, against the published tables of names and shapes, through files and the script."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from invkit.runtime import checkpoint
from invkit.runtime.run import load_module
from nerfinv import compat_encoder
from nerfinv.compat import architecture, discriminator_architecture, from_released, recognizes, to_released
from nerfinv.discriminator import Discriminator
from nerfinv.encoder.encoder import Encoder
from nerfinv.encoder.segformer import SegFormer
from nerfinv.generator.generator import Generator
from nerfinv.layers import resample_filter
from tests.nerfinv.filled import assert_numbers, assert_stats, latents, value

Layout = dict[str, tuple[int, ...]]
VARIANTS = {
    "default": {},
    "view": {"view_dependent": True},
    "no palette": {"palette_size": 0},
    "no palette, view": {"palette_size": 0, "view_dependent": True},
    "density": {"signed_distance": False},
    "classes": {"num_classes": 200},
    "short latents": {"latent_dim": 64},
}


def published_generator(
    *,
    palette_size: int = 10,
    signed_distance: bool = True,
    view_dependent: bool = False,
    num_classes: int = 0,
    latent_dim: int = 512,
    size: int = 256,
    base: int = 32768,
    most: int = 512,
) -> Layout:
    """The published table of the generator in its order."""
    table: Layout = {"beta": (1,), "alpha": (1,)} if signed_distance else {}
    if num_classes:
        table["class_embedding.weight"] = (num_classes, latent_dim)
    inputs = latent_dim * (2 if num_classes else 1)
    table |= linear("mapping_network.backbone.fc0", inputs, 512) | linear("mapping_network.backbone.fc1", 512, 512)
    before, side = most, 4
    while side <= size:
        block, width = f"synthesis_network.b{side}", min(base // side, most)
        if side == 4:
            table[f"{block}.const"] = (width, 4, 4)
        table[f"{block}.resample_filter"] = (4, 4)
        for index in (1,) if side == 4 else (0, 1):
            conv, inside = f"{block}.conv{index}", before if index == 0 else width
            table |= {f"{conv}.weight": (width, inside, 3, 3), f"{conv}.noise_strength": (), f"{conv}.bias": (width,)}
            table |= {f"{conv}.resample_filter": (4, 4), f"{conv}.noise_const": (side, side)}
            table |= linear(f"{conv}.affine", 512, inside)
        table |= {f"{block}.torgb.weight": (96, width, 1, 1), f"{block}.torgb.bias": (96,)}
        table |= linear(f"{block}.torgb.affine", 512, width)
        before, side = width, 2 * side
    logits = palette_size or 3
    table |= linear("decoder.net.0", 32, 64) | linear("decoder.net.2", 64, 1 + (32 if view_dependent else logits))
    if view_dependent:
        table |= linear("viewdir_mapper.fc0", 3, 64)
        for index in range(1, 5):
            table[f"viewdir_mapper.fc{index}.weight"] = (64, 64)
            table |= {f"viewdir_mapper.norm{index}.{kind}": (64,) for kind in ("weight", "bias")}
        table |= linear("viewdir_mapper.fc5", 64, 64) | linear("viewdir_mapper.fc6", 64, 32)
        table |= linear("viewdir_mapper.output", 32, logits)
    if palette_size:
        table["texture_mapper.const"] = (1, 512)
        for index in range(1, 5):
            table[f"texture_mapper.fc{index}.weight"] = (512, 512)
            for kind in ("gamma", "beta"):
                table |= linear(f"texture_mapper.norm{index}.fc_{kind}", 512, 512)
        table |= linear("texture_mapper.fc5", 512, 512) | linear("texture_mapper.fc_values", 512, 3 * palette_size)
    return table


def published_discriminator(channels: int = 4, *, conditional: bool = True, num_classes: int = 0) -> Layout:
    """The published table of the discriminator in its order."""
    table: Layout = {}
    for side in (128, 64, 32, 16, 8):
        block, inside, outside = f"backbone.b{side}", min(32768 // side, 512), min(65536 // side, 512)
        convs = {"conv0": (inside, inside, 3, 3), "conv1": (outside, inside, 3, 3), "skip": (outside, inside, 1, 1)}
        if side == 128:
            convs = {"fromrgb": (inside, channels, 1, 1), **convs}
        for conv, shape in convs.items():
            table |= convolution(f"{block}.{conv}", shape, bias=conv != "skip")
    if conditional:
        if num_classes:
            table["label_embedding.weight"] = (num_classes, 512)
        table |= linear("backbone.mapping.fc0", 13 + (512 if num_classes else 0), 512)
        table |= linear("backbone.mapping.fc1", 512, 512)
    table |= convolution("backbone.b4.conv", (512, 513, 3, 3)) | linear("backbone.b4.fc", 8192, 512)
    return table | linear("backbone.b4.out", 512, 512 if conditional else 1)


def linear(name: str, inputs: int, outputs: int) -> Layout:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def convolution(name: str, shape: tuple[int, ...], *, bias: bool = True) -> Layout:
    own = {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}
    return own | {f"{name}.resample_filter": (4, 4)}


def numbered(layout: Layout, start: float = 0.0) -> dict[str, Tensor]:
    """A number of its own for each entry, which takes no memory to repeat; filters as they are published."""
    state = {name: torch.tensor(start + i / 7).expand(shape) for i, (name, shape) in enumerate(layout.items(), start=1)}
    return state | {name: resample_filter() for name in layout if name.endswith("resample_filter")}


def small_released(**options) -> dict:
    """A released checkpoint of a generator that is quick to make; the released code has no such sizes."""
    layout = published_generator(size=8, base=64, most=8, **options)
    return {"model_ema": numbered(layout), "iteration": 7}


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, entry in expected.items():
        assert found[name].dtype == entry.dtype
        assert torch.equal(found[name], entry), name


# ---- The tables --------------------------------------------------------------------------------------------------


def test_the_tables_are_those_published():
    def count(layout: Layout) -> int:
        return sum(int(np.prod(shape)) for name, shape in layout.items() if "resample" not in name)

    tables = {name: published_generator(**options) for name, options in VARIANTS.items()}
    noise = sum(int(np.prod(shape)) for name, shape in tables["default"].items() if name.endswith("noise_const"))
    found = {name: (len(table), count(table) - noise) for name, table in tables.items()}
    assert found["default"] == (162, 32_164_056)
    assert found["view"] == (182, 32_189_208)
    assert found["no palette"] == (137, 28_735_219)
    assert found["density"] == (160, 32_164_054)
    assert found["classes"] == (163, 32_528_600)
    assert (len(published_discriminator()), count(published_discriminator())) == (54, 28_921_344)
    assert count(published_discriminator(3)) == 28_921_088


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_released_generator_comes_back_bit_by_bit(options):
    layout = published_generator(**options)
    before = {"model": numbered(layout), "model_ema": numbered(layout, 1000), "iteration": 300_000, "best_fid": 9.5}
    assert recognizes(before)
    converted = from_released(before, scene_range=0.55)
    node = converted["config"]["task"]["generator"]
    assert {name: node[name] for name in options} == options
    assert (node["scene_range"], converted["step"]) == (0.55, 300_000)
    for name in ("generator", "generator_ema"):
        with torch.device("meta"):
            network = Generator(**{key: value for key, value in node.items() if key != "_target_"})
        state = {key.removeprefix("module."): value for key, value in converted["modules"][name].items()}
        assert {key: value.shape for key, value in network.state_dict().items()} == {
            key: value.shape for key, value in state.items()
        }
    after = to_released(converted)
    assert set(after) == set(before)
    for name in ("model", "model_ema"):
        assert_same(after[name], before[name])
    assert (after["iteration"], after["best_fid"]) == (300_000, 9.5)


@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 3}, {"conditional": False}, {"num_classes": 200}],
    ids=["default", "no silhouette", "no pose", "classes"],
)
def test_a_released_discriminator_comes_back_bit_by_bit(options):
    before = {"discriminator": numbered(published_discriminator(**options))}
    assert recognizes(before)
    converted = from_released(before)
    node = converted["config"]["task"]["discriminator"]
    assert {name: node[name] for name in options} == options
    with torch.device("meta"):
        network = Discriminator(**{key: value for key, value in node.items() if key != "_target_"})
    expected = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in converted["modules"]["discriminator"].items()} == expected
    assert_same(to_released(converted)["discriminator"], before["discriminator"])


@pytest.mark.parametrize("options", [{"plane_size": 16, "view_dependent": True}, {"plane_size": 32, "num_classes": 3}])
def test_the_architecture_is_read_off_the_shapes(options):
    made = {
        "latent_dim": 6, "style_dim": 8, "palette_size": 4, "signed_distance": True, "view_dependent": False,
        "noise": False, "num_classes": 0, "plane_channels": 5, "channel_base": 128, "max_channels": 16,
        "decoder_width": 7, **options,
    }  # fmt: skip
    state = published_names(Generator(**made).state_dict())
    assert architecture(state) == made
    judge = {
        "size": 32, "channels": 3, "conditional": True, "num_classes": 0, "channel_base": 128, "max_channels": 16,
    }  # fmt: skip
    state = {f"backbone.{name}": value for name, value in Discriminator(**judge).state_dict().items()}
    assert discriminator_architecture(state) == judge


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = {
        "mapping.class": "class", "mapping.": "mapping_network.backbone.", "synthesis.": "synthesis_network.",
        "decoder.hidden": "decoder.net.0", "decoder.output": "decoder.net.2", "density.": "",
        "view_head.": "viewdir_mapper.", "palette.": "texture_mapper.",
    }  # fmt: skip
    renamed = {}
    for name, entry in state.items():
        ours = next(begin for begin in pairs if name.startswith(begin))
        renamed[pairs[ours] + name.removeprefix(ours)] = entry
    return renamed


# ---- Files and the script ----------------------------------------------------------------------------------------


def test_released_networks_answer_after_conversion_as_before(tmp_path, convert, capsys):
    source, target, back = tmp_path / "checkpoint_latest.pth", tmp_path / "new" / "cub.pt", tmp_path / "back.pth"
    state = {
        name: resample_filter() if name.endswith("resample_filter") else value(name, shape)
        for name, shape in published_generator().items()
    }
    judge = numbered(published_discriminator())
    random = np.random.RandomState(1234)
    before = {
        "model_ema": state,
        "discriminator": {name: entry.clone() for name, entry in judge.items()},
        "optimizer_g": torch.optim.Adam([torch.zeros(1)]).state_dict(),
        "iteration": 200_000,
        "best_fid": np.float64(12.5),
        "lr_g": 0.0025,
        "ppl_running_avg": torch.tensor([3.5]),
        "random_state": {"np_rng_state": random.get_state(), "data_sampler_state": (3, random.permutation(5))},
    }
    torch.save(before, source)
    convert(source, target, "--scene-range", "2.0")
    printed = capsys.readouterr().out
    assert "scene_range = 2.0" in printed
    assert "generator_ema: 142 entries" in printed  # of the 162 there, 20 are filters

    generator = load_module(target, "generator", "generator_ema")
    style = generator.style(latents())
    assert_numbers(style[0, :5], (-0.03179206, 0.21839076, 0.21812709, 1.00069606, -0.10718540))
    field = generator(style)
    assert_stats(field.palette, (0.1332592, 0.3751267, -0.5879848, 0.8940753))
    points = torch.tensor([[0.1, -0.3, 0.7], [1.9, -1.9, 0.5], [2.1, 0, 0]]).expand(2, 3, 3)
    assert_numbers(field.value(points)[0], (-0.3168911, 0.0931456, -0.1154433))
    discriminator = load_module(target, "discriminator")
    assert torch.equal(discriminator.b8.skip.weight, judge["backbone.b8.skip.weight"])

    convert(target, back, "--to-released")
    after = torch.load(back, weights_only=True)
    assert_same(after["model_ema"], before["model_ema"])
    assert_same(after["discriminator"], before["discriminator"])
    assert {name: after[name] for name in ("iteration", "best_fid", "lr_g", "ppl_running_avg")} == {
        "iteration": 200_000, "best_fid": 12.5, "lr_g": 0.0025, "ppl_running_avg": 3.5,
    }  # fmt: skip


def test_noise_is_on_where_it_has_a_strength():
    payload = small_released()
    strengths = [name for name in payload["model_ema"] if name.endswith("noise_strength")]
    for constant in (False, True):
        task = from_released(payload, scene_range=2.0, random_noise_in_eval=not constant)["config"]["task"]
        assert task["generator"]["noise"]
        assert task["generator"]["random_noise_in_eval"] is not constant
    for name in strengths:
        payload["model_ema"][name] = torch.tensor(0.0)
    task = from_released(payload, scene_range=2.0)["config"]["task"]
    assert not task["generator"]["noise"]
    assert not task["generator"]["random_noise_in_eval"]


def test_prefixes_of_data_parallel_are_dropped():
    plain = small_released()["model_ema"]
    wrapped = {f"module.{name}": entry for name, entry in plain.items()}
    converted = from_released({"model": wrapped, "model_ema": wrapped}, scene_range=1.0)
    assert set(converted["modules"]) == {"generator", "generator_ema"}
    assert all(name.startswith("module.") for name in converted["modules"]["generator_ema"])
    assert torch.equal(converted["modules"]["generator"]["density.beta"], plain["beta"])


def test_half_precision_goes_out_as_float32():
    converted = from_released({"model_ema": numbered(published_generator())}, scene_range=1.4)
    state = converted["modules"]["generator_ema"]
    converted["modules"]["generator_ema"] = {name: entry.half() for name, entry in state.items()}
    assert {entry.dtype for entry in to_released(converted)["model_ema"].values()} == {torch.float32}


# ---- What is refused ---------------------------------------------------------------------------------------------


def spoilt(name: str, entry) -> dict:
    payload = small_released()
    payload["model_ema"][name] = entry
    return payload


def without(name: str) -> dict:
    payload = small_released()
    del payload["model_ema"][name]
    return payload


@pytest.mark.parametrize(
    "payload, message",
    [
        (lambda: {"epoch": 3}, r"neither model, model_ema nor discriminator, only \['epoch'\]"),
        (lambda: {"modules": {}, "config": {}, "step": 1}, "one of our checkpoints"),
        (lambda: {"model": 3}, "model: is not a dictionary"),
        (lambda: small_released() | {"iteration": 1.5}, r"iteration is 1\.5"),
        (lambda: small_released() | {"lr_g": "fast"}, "lr_g is 'fast'"),
        (lambda: spoilt("emb.conv1.weight", torch.zeros(1)), r"model_ema: has emb\.\*: it starts from an image"),
        (lambda: without("mapping_network.backbone.fc0.weight"), r"lacks mapping_network\.backbone\.fc0\.weight"),
        (lambda: without("decoder.net.2.bias"), r"lacks decoder\.net\.2\.bias; .*plane_size=8"),
        (lambda: without("alpha"), r"lacks alpha"),
        (lambda: spoilt("extra.weight", torch.zeros(1)), r"has extra\.weight, which Generator\("),
        (lambda: spoilt("decoder.net.2.bias", torch.zeros(9)), r"decoder\.net\.2\.bias is \[9\] and not \[11\]"),
        (lambda: spoilt("decoder.net.2.bias", 1.0), r"decoder\.net\.2\.bias is a float"),
        (lambda: spoilt("decoder.net.2.bias", torch.zeros(11, dtype=torch.int64)), r"bias is torch\.int64"),
        (lambda: spoilt("synthesis_network.b8.resample_filter", torch.ones(4, 4)), r"b8\.resample_filter is not the"),
        (lambda: {"discriminator": numbered(published_discriminator()) | {
            "backbone.mapping.fc0.weight": torch.zeros(512, 525)}}, r"discriminator: .*525 columns and not 13"),
        (lambda: {"discriminator": {"backbone.x": torch.zeros(1)}}, r"discriminator: lacks backbone\.b\*"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(payload, message):
    with pytest.raises(ValueError, match=message):
        from_released(payload(), scene_range=1.4)


def test_the_size_of_the_box_has_to_be_said(tmp_path, convert, capsys):
    source = tmp_path / "small.pth"
    torch.save(small_released(), source)
    with pytest.raises(SystemExit) as refused:
        convert(source, tmp_path / "ours.pt")
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert re.search(r"^error: .*small\.pth: .*--scene-range.*0\.55 for ShapeNet", told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generator": {"plane_size": 64}}, r"task\.generator\.plane_size=64.*256 only"),
        ({"generator": {"decoder_width": 32}}, r"task\.generator\.decoder_width=32"),
        ({"generator": {"_target_": "nerfinv.prior.FieldPrior"}}, r"task\.generator .* is nerfinv\.prior\.FieldPrior"),
        ({"generator": {"palette_size": 0}}, r"generator_ema: has palette\.const and \d+ more"),
        ({"discriminator": {"size": 64}}, r"task\.discriminator\.size=64.*128 only"),
        ({"discriminator": {"conditional": False}}, r"discriminator: has mapping\.fc0\.weight"),
    ],
)
def test_networks_that_the_released_code_cannot_build_are_refused(settings, message):
    state, judge = numbered(published_generator()), numbered(published_discriminator())
    checkpoint = from_released({"model_ema": state, "discriminator": judge}, scene_range=1.4)
    for name, options in settings.items():
        checkpoint["config"]["task"][name] |= options
    with pytest.raises(ValueError, match=message):
        to_released(checkpoint)


def test_what_is_no_checkpoint_of_ours_is_refused():
    with pytest.raises(ValueError, match="not one of our checkpoints"):
        to_released({"model_ema": {}})
    with pytest.raises(ValueError, match=r"no generator, generator_ema or discriminator, only \['encoder'\]"):
        to_released({"config": {"task": {}}, "modules": {"encoder": {}}})


def test_a_run_of_this_method_is_told_from_one_of_the_other(tmp_path, convert, capsys):
    """By the classes that its configuration names; small networks are refused, but by their own rules."""
    node = {"_target_": "nerfinv.generator.generator.Generator", "plane_size": 8, "max_channels": 8, "style_dim": 16}
    state = Generator(plane_size=8, max_channels=8, style_dim=16).state_dict()
    payload = {"step": 2, "config": {"task": {"generator": node}}, "modules": {"generator": state}}
    checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").save(2, payload)
    with pytest.raises(SystemExit):
        convert(tmp_path / "run", tmp_path / "ours.pth", "--to-released")
    assert re.search(r"task\.generator\.style_dim=16: the released code builds 512 only", capsys.readouterr().err)


def test_the_script_knows_an_encoder_by_its_entry(tmp_path, convert, capsys):
    """A small one, which the released code could not build: on the way back its own rules refuse it."""
    backbone = SegFormer(dims=[4, 8, 10, 16], depths=[1] * 4, num_heads=[1, 2, 5, 8], width=8, out_channels=8)
    begins = {theirs: ours for theirs, ours in compat_encoder.NAMES.items() if ours != "latent_backbone."}
    state = {
        f"module.{theirs}{name.removeprefix(ours)}": entry
        for name, entry in Encoder(backbone, head_width=8, latent_dim=8).state_dict().items()
        for theirs, ours in begins.items()
        if name.startswith(ours)
    }
    torch.save({"model_coord": state, "iteration": 120_000, "lr": 6e-6}, tmp_path / "c_it300000_latest.pth")
    convert(tmp_path / "c_it300000_latest.pth", tmp_path / "ours.pt")
    assert "task.encoder: _target_ = nerfinv.encoder.encoder.Encoder" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        convert(tmp_path / "ours.pt", tmp_path / "back.pth", "--to-released")
    assert "task.encoder.backbone.dims=[4, 8, 10, 16]" in capsys.readouterr().err

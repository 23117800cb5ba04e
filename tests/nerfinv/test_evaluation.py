"""Measuring radiance fields: pictures over other backgrounds, and the protocols of the paper."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from invkit.evaluation.protocol import EvaluationProtocol
from invkit.metrics.mean import pictures
from invkit.types import Rendering, Views
from nerfinv.renderers.plain import PlainRenderer
from nerfinv.renderers.volume import VolumeRenderer
from tests.nerfinv.test_encoder_scripts import generator
from tests.nerfinv.test_inversion_scripts import BRIEF, encoder, overrides_of
from tests.nerfinv.tiny_fields import around, bumpy_balls
from tests.test_configs import CONFIGS
from tests.test_dry_runs import run

__all__ = ["encoder", "generator"]

# ---- Backgrounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renderer", [VolumeRenderer, PlainRenderer])
@pytest.mark.parametrize("first, second", [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0)])
def test_a_picture_over_another_background_is_as_if_rendered_over_it(renderer, first, second):
    field, camera = bumpy_balls().detach(), around(perspective=False).detach()
    options = {"size": 12, "coarse": 16, "fine": 12}
    image, wanted = (renderer(background=b, **options)(field, camera) for b in (first, second))
    assert image.background == first
    soft = (image.mask > 0.05) & (image.mask < 0.95)
    assert soft.any()
    torch.testing.assert_close(image.over(second), wanted.rgb, rtol=0, atol=1e-5)


def test_measured_pictures_have_soft_outlines_once():
    image = Rendering(torch.full((1, 3, 1, 2), 0.6), torch.tensor([[[[0.5, 0.0]]]]), background=1.0)
    on_black = EvaluationProtocol({"psnr": {}}, background=-1.0).shown(image)
    # Half of the object's color, 0.2, and half of what is behind.
    torch.testing.assert_close(on_black.rgb[0, 0, 0], torch.tensor([-0.4, -1.4]))
    assert on_black.background == -1.0
    torch.testing.assert_close(on_black.over(1.0), image.rgb)
    target = Views(image.rgb, image.mask, around(1, perspective=False).detach(), None, torch.zeros(1, dtype=torch.long))
    ours, theirs = pictures(image, target, -1.0)
    torch.testing.assert_close(ours, on_black.rgb)
    torch.testing.assert_close(theirs[0, 0, 0], torch.tensor([-0.2, -1.0]))
    kept = EvaluationProtocol({"psnr": {}}, background=None).shown(image)
    assert torch.equal(kept.rgb, image.rgb)
    assert kept.background == 1.0


# ---- Protocols -------------------------------------------------------------------------------------------------------


def test_latents_of_unconditional_samples_are_the_released_codes():
    seed = OmegaConf.load(CONFIGS / "quality" / "nerfinv_inception.yaml").seed
    latents = torch.randn(8000, 512, generator=torch.Generator().manual_seed(seed)).flatten()
    torch.testing.assert_close(latents[:4], torch.tensor([-0.1117186, -0.4965901, 0.1630737, -0.8816878]))
    torch.testing.assert_close(latents[-1], torch.tensor(0.0507880))


@pytest.mark.filterwarnings("ignore:fid@")
@pytest.mark.parametrize("name", ["synthetic_cars", "synthetic_birds"])
def test_the_papers_protocols_are_measured_after_any_number_of_steps(
    name, data, generator, encoder, tmp_path, monkeypatch
):
    experiment = CONFIGS / "experiment" / f"nerfinv_invert_{name}.yaml"
    overrides = [*overrides_of(experiment, data, generator, encoder), *BRIEF]
    overrides += ["data.split=train", "++inverter.optimize_camera=true"]  # more than one photograph of a car
    run("invert", [*overrides, f"run.dir={tmp_path}", "released=true"], monkeypatch)
    families = ("input", "rotation", "random", "random_released", "novel", "novel_released")
    few = {f"nerfinv_{family}{end}" for family in families for end in ("", "_n0", "_n10")}
    light = ["networks.squeezenet_caffe.weights=random", "~networks.inception_tv", "~networks.inception_fid"]
    light += ["perceptual.squeeze.weights=random", "~perceptual.vgg"]
    run("evaluate", [*overrides, f"inversion={tmp_path}", f"protocols=[{','.join(sorted(few))}]", *light], monkeypatch)
    found = json.loads((tmp_path / "evaluation" / "result.json").read_text())["protocols"]
    assert found.keys() == few
    columns = {
        "input": {"psnr", "ssim", "ssim-range2", "lpips-squeeze-0.1-random", "iou"},
        "rotation": {"rotation_deg"},
        "random": {"fid@squeezenet-random", "kid@squeezenet-random"},
        "novel": {"psnr", "ssim", "ssim-range2", "lpips-squeeze-0.1-random"},
    }
    for protocol, result in found.items():
        kind = protocol.split("_")[1]
        if protocol.endswith("_n10"):
            assert all(
                "nothing was kept after 10 steps" in reason or "single" in reason
                for reason in result["not_measured"].values()
            )
            assert result["metrics"] == {}
        elif kind == "novel" and name == "synthetic_birds":
            assert all("single photograph" in reason for reason in result["not_measured"].values())
        else:
            assert result["metrics"].keys() == columns[kind]
            assert result["images"] == 4
            assert not result["not_measured"]
    start, end = (found[f"nerfinv_input{after}"]["metrics"]["psnr"]["value"] for after in ("_n0", ""))
    assert start != end

"""Measuring radiance fields: pictures over other backgrounds than they were rendered over."""

import pytest
import torch

from invkit.measurement import EvaluationProtocol
from invkit.metrics.mean import pictures
from invkit.types import Rendering, Views
from nerfinv.renderers.plain import PlainRenderer
from nerfinv.renderers.volume import VolumeRenderer
from tests.nerfinv.tiny_fields import around, bumpy_balls

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

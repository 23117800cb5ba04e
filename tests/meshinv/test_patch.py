"""The image discriminator against numbers measured on the published network."""

import pytest
import torch

from invkit.losses.adversarial import least_squares
from meshinv.discriminators.patch import PatchDiscriminator
from tests.meshinv.formulas import fill


def test_it_answers_as_the_published_network_does():
    net = PatchDiscriminator().double()
    fill(net)
    c, y, x = (torch.arange(n, dtype=torch.float64) for n in (3, 256, 256))
    image = torch.sin(0.05 * (c[:, None, None] + 1) * x) * torch.cos(0.03 * y)[:, None]
    logits = net(image[None])
    assert logits.shape == (1, 1, 30, 30)
    assert logits.mean().item() == pytest.approx(-0.0553482, abs=1e-6)
    assert logits.std(correction=0).item() == pytest.approx(0.8627398, rel=1e-3)
    assert logits[0, 0, 4, 7].item() == pytest.approx(-0.0971141, abs=1e-6)
    assert logits[0, 0, 29, 0].item() == pytest.approx(-0.2202350, abs=1e-6)
    squares = least_squares()
    assert squares.real([(logits, None)]).item() == pytest.approx(1.8572528, abs=1e-6)
    assert squares.fake([(logits, None)]).item() == pytest.approx(0.7465564, abs=1e-6)
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_764_737


def test_a_logit_sees_seventy_pixels():
    net = PatchDiscriminator(width=0.125).double()
    # Instance statistics couple everything; without them only the patch is seen.
    for index, layer in enumerate(net.model):
        if isinstance(layer, torch.nn.InstanceNorm2d):
            net.model[index] = torch.nn.Identity()
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[0, 0, 15, 15], image)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == 70


def test_weights_start_small_and_biases_at_zero():
    torch.manual_seed(0)
    convs = [layer for layer in PatchDiscriminator().model if isinstance(layer, torch.nn.Conv2d)]
    assert all(bool((conv.bias == 0).all()) for conv in convs)
    assert convs[2].weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("size, fits", [(24, True), (23, False)])
def test_a_picture_too_small_for_a_patch_is_refused(size, fits):
    net = PatchDiscriminator(width=0.125)
    if fits:
        assert net(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)
    else:
        with pytest.raises(ValueError, match="needs 24 pixels"):
            net(torch.zeros(1, 3, size, size))

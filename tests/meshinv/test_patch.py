"""The image discriminator against numbers measured on the published network."""

import pytest
import torch

from invkit.losses.adversarial import least_squares
from meshinv.discriminators.patch import PatchDiscriminator
from tests.meshinv.formulas import fill


def published_layout() -> dict[str, tuple[int, ...]]:
    """Entries of the released image discriminator, in their order."""
    shapes = {0: (64, 3, 4, 4), 2: (128, 64, 4, 4), 5: (256, 128, 4, 4), 8: (512, 256, 4, 4), 11: (1, 512, 4, 4)}
    layout = {}
    for index, shape in shapes.items():
        layout |= {f"model.{index}.weight": shape, f"model.{index}.bias": shape[:1]}
    return layout


def test_the_state_dict_is_that_of_the_published_checkpoint():
    state = PatchDiscriminator().state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(published_layout().items())


def test_it_answers_as_the_published_network_does():
    net = PatchDiscriminator().double()
    fill(net)
    assert_released_answers(net, 1e-6)
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_764_737


def assert_released_answers(net: PatchDiscriminator, tolerance: float) -> None:
    """The network, filled and in float64, answers as the released code does."""
    c, y, x = (torch.arange(n, dtype=torch.float64) for n in (3, 256, 256))
    image = torch.sin(0.05 * (c[:, None, None] + 1) * x) * torch.cos(0.03 * y)[:, None]
    logits = net(image[None])
    assert logits.shape == (1, 1, 30, 30)
    assert logits.mean().item() == pytest.approx(-0.0553482, abs=tolerance)
    assert logits.std(correction=0).item() == pytest.approx(0.8627398, rel=1e-3)
    assert logits[0, 0, 4, 7].item() == pytest.approx(-0.0971141, abs=tolerance)
    assert logits[0, 0, 29, 0].item() == pytest.approx(-0.2202350, abs=tolerance)
    squares = least_squares()
    assert squares.real([(logits, None)]).item() == pytest.approx(1.8572528, abs=tolerance)
    assert squares.fake([(logits, None)]).item() == pytest.approx(0.7465564, abs=tolerance)


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

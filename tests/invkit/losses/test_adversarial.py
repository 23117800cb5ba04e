import pytest
import torch
import torch.nn.functional as F

from invkit.losses.adversarial import Adversarial, hinge, least_squares, logistic, masked_mean, wasserstein

COSTS = {  # of one logit, to the generator, to the discriminator on real, and on fake
    hinge: (lambda x: -x, lambda x: -min(0, x - 1), lambda x: -min(0, -1 - x)),
    least_squares: (lambda x: (x - 1) ** 2, lambda x: (x - 1) ** 2, lambda x: x**2),
    wasserstein: (lambda x: -x, lambda x: -x, lambda x: x),
}


def random_scales(rng) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (
            torch.randn(3, 1, side, side, generator=rng, dtype=torch.float64) * 2,
            torch.rand(3, 1, side, side, generator=rng, dtype=torch.float64),
        )
        for side in (4, 2)
    ]


def answers(loss: Adversarial, scales) -> list[torch.Tensor]:
    return [loss.generator(scales), loss.real(scales), loss.fake(scales)]


@pytest.mark.parametrize("make", COSTS)
@pytest.mark.parametrize("weights", [None, (2.0, 1.0)])
def test_each_loss_is_its_sum_written_out(make, weights, rng):
    scales = random_scales(rng)
    for found, cost in zip(answers(make(weights=weights), scales), COSTS[make], strict=True):
        for image in range(3):
            expected = 0.0
            for (logits, mask), weight in zip(scales, weights or (1, 1), strict=True):
                pairs = list(zip(logits[image].flatten().tolist(), mask[image].flatten().tolist(), strict=True))
                expected += weight * sum(cost(x) * m for x, m in pairs) / sum(m for _, m in pairs)
            assert float(found[image]) == pytest.approx(expected / sum(weights or (1, 1)), rel=1e-12)


def test_the_logistic_loss_is_binary_cross_entropy(rng):
    (logits, mask), _ = random_scales(rng)
    for found, target in zip(answers(logistic(), [(logits, mask)]), (1, 1, 0), strict=True):
        entropy = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
        torch.testing.assert_close(found, (entropy * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)))


def test_without_masks_all_cells_count_alike(rng):
    scales = random_scales(rng)
    bare = [(logits, None) for logits, _ in scales]
    full = [(logits, torch.ones_like(mask)) for logits, mask in scales]
    for found, expected in zip(answers(hinge(), bare), answers(hinge(), full), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_released_least_squares_ignores_masks_and_weights_but_divides_by_their_sum(rng):
    scales = random_scales(rng)
    found = least_squares(weights=(2, 1), masked=False).fake(scales)
    expected = sum((logits**2).mean((1, 2, 3)) for logits, _ in scales) / 3
    torch.testing.assert_close(found, expected)


def test_an_image_without_a_visible_cell_adds_nothing_and_leaves_the_others_alone(rng):
    scales = random_scales(rng)
    whole = hinge().generator(scales)
    for logits, mask in scales:
        mask[1] = 0
        logits.requires_grad_()
    found = hinge().generator(scales)
    assert found[1] == 0
    assert torch.equal(found[[0, 2]].detach(), whole[[0, 2]])
    found.sum().backward()
    for logits, _ in scales:
        assert torch.equal(logits.grad[1], torch.zeros_like(logits[1]))
        assert logits.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("make", [hinge, least_squares, logistic, wasserstein])
def test_gradients_are_slopes(make, rng):
    (logits, mask), _ = random_scales(rng)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: answers(make(), [(x, mask)]), logits)


@pytest.mark.parametrize("make", [hinge, least_squares, logistic, wasserstein])
def test_steps_against_the_losses_pull_logits_the_right_way(make):
    logits = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    generator, real, fake = (
        torch.autograd.grad(loss.sum(), logits)[0] for loss in answers(make(), [(logits + 0.1, None)])
    )
    assert (generator < 0).all()
    assert (real < 0).all()
    assert (fake > 0).all()


def test_half_precision_logits_are_averaged_in_single_precision():
    logits = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    logits[0, 0, 0, 0] = 1.5
    found = wasserstein().fake([(logits, None)])
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1 + 0.5 / 4096, abs=1e-6)


def test_a_weight_for_each_scale():
    scales = [(torch.zeros(1, 1, 2, 2), None)] * 3
    with pytest.raises(ValueError, match="2 weights for the logits of 3 scales"):
        hinge(weights=(2, 1)).real(scales)


def test_masked_mean_of_any_rank(rng):
    values, mask = torch.randn(2, 5, generator=rng), torch.rand(2, 5, generator=rng)
    torch.testing.assert_close(masked_mean(values, mask), (values * mask).sum(1) / mask.sum(1))

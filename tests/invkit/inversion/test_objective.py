"""The objective and the losses that know no scene."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.inversion.objective import Objective, Targets, WeightedTerm, total
from invkit.losses import latent, mask, pixel
from invkit.types import Estimate, Rendering, Views

POSE = Camera.from_cmr(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0]] * 2))


def pair(rng: torch.Generator) -> tuple[Estimate, Views]:
    rendered, photographed = (torch.rand(2, 4, 5, 6, generator=rng) for _ in range(2))
    image = Rendering(rendered[:, :3], rendered[:, 3:])
    views = Views(photographed[:, :3], photographed[:, 3:], POSE, None, torch.arange(2))
    return Estimate(torch.randn(2, 3, generator=rng), POSE, None, image), views


def test_terms_are_weighted_and_stay_apart_for_each_image(rng):
    estimate, target = pair(rng)
    objective = Objective({"l1": WeightedTerm(3.0, pixel.l1), "prior": WeightedTerm(0.5, latent.gaussian_prior)})
    terms = objective(estimate, target)
    assert list(terms) == ["l1", "prior"]
    torch.testing.assert_close(terms["l1"], 3 * pixel.l1(estimate, target))
    torch.testing.assert_close(terms["prior"], estimate.latent.square().mean(dim=1) / 4)
    torch.testing.assert_close(total(terms), terms["l1"] + terms["prior"])


def test_a_term_without_weight_is_not_evaluated(rng):
    def explode(estimate: Estimate, target: Views) -> torch.Tensor:
        raise AssertionError("evaluated")

    objective = Objective({"off": WeightedTerm(0.0, explode), "on": WeightedTerm(1.0, pixel.l1)})
    assert list(objective(*pair(rng))) == ["on"]


@dataclass(frozen=True)
class MeanColor(Batch):
    color: Tensor


class ColorTerm:
    """A term that needs a statistic of the photographs, and counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def target(self, views: Views) -> MeanColor:
        self.made += 1
        return MeanColor(views.rgb.mean(dim=(2, 3)))

    def __call__(self, estimate: Estimate, target: MeanColor) -> Tensor:
        return (estimate.image.rgb.mean(dim=(2, 3)) - target.color).square().sum(dim=1)


def test_what_a_term_needs_of_the_photographs_is_made_once(rng):
    estimate, views = pair(rng)
    term = ColorTerm()
    objective = Objective({"color": WeightedTerm(2.0, term), "l1": WeightedTerm(1.0, pixel.l1)})
    targets = objective.targets(views)
    assert list(targets.prepared) == ["color"]
    first, again = objective(estimate, targets), objective(estimate, targets)
    assert term.made == 1
    expected = 2 * (estimate.image.rgb.mean(dim=(2, 3)) - views.rgb.mean(dim=(2, 3))).square().sum(dim=1)
    torch.testing.assert_close(first["color"], expected)
    torch.testing.assert_close(first["l1"], pixel.l1(estimate, views))
    straight = objective(estimate, views)
    assert all(torch.equal(first[name], other[name]) for other in (again, straight) for name in first)
    one = objective(estimate[1], targets[1])
    assert all(torch.equal(one[name], first[name][1:]) for name in first)
    assert targets.to("cpu", dtype=torch.float64).prepared["color"].color.dtype == torch.float64
    joined = Targets.cat([targets[1], targets[0]])
    assert torch.equal(joined.prepared["color"].color, targets.prepared["color"].color.flip(0))


def test_several_guesses_of_each_image_are_compared_with_it(rng):
    estimate, views = pair(rng)
    guesses = Estimate.cat([estimate[[0, 1, 1]], estimate[[1, 1, 0]]])
    objective = Objective({"color": WeightedTerm(2.0, ColorTerm()), "l1": WeightedTerm(1.0, pixel.l1)})
    found = objective(guesses, objective.targets(views))
    expected = objective(guesses, views[[0, 0, 0, 1, 1, 1]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="5 guesses cannot be shared out evenly to 2 images"):
        objective(guesses[:5], views)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ValueError, match="texture"):
        Objective({"texture": WeightedTerm(weight, pixel.l1)})


def test_an_objective_without_terms_is_refused():
    with pytest.raises(ValueError, match="term"):
        Objective({"texture": WeightedTerm(0.0, pixel.l1)})


def test_pixel_l1_by_a_plain_loop(rng):
    estimate, target = pair(rng)
    expected = []
    for b in range(2):
        values = [
            abs(
                float(estimate.image.rgb[b, c, y, x] * estimate.image.mask[b, 0, y, x])
                - float(target.rgb[b, c, y, x] * target.mask[b, 0, y, x])
            )
            for c in range(3)
            for y in range(5)
            for x in range(6)
        ]
        expected.append(sum(values) / len(values))
    torch.testing.assert_close(pixel.l1(estimate, target), torch.tensor(expected))


def test_mask_losses_of_hand_made_masks():
    def image(values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 4)

    pose = POSE[0]
    target = Views(torch.zeros(1, 3, 1, 4), image([1, 1, 0, 0]), pose, None, torch.tensor([0]))
    hard, soft = image([1, 0, 1, 0]), image([1, 0.5, 0.25, 0])
    blank = torch.zeros(1, 3, 1, 4)

    def estimate(rendering: Rendering) -> Estimate:
        return Estimate(torch.zeros(1, 1), pose, None, rendering)

    assert mask.iou(estimate(Rendering(blank, hard)), target).item() == pytest.approx(1 - 1 / 3)
    assert mask.l1(estimate(Rendering(blank, hard)), target).item() == pytest.approx(0.5)
    # The soft mask is preferred: intersection 1.5, union 2 + 1.75 - 1.5.
    assert mask.iou(estimate(Rendering(blank, hard, soft)), target).item() == pytest.approx(1 - 1.5 / 2.25)
    assert mask.l1(estimate(Rendering(blank, hard, soft)), target).item() == pytest.approx(0.75 / 4)
    nothing = Views(blank, image([0, 0, 0, 0]), pose, None, torch.tensor([0]))
    assert mask.iou(estimate(Rendering(blank, image([0, 0, 0, 0]))), nothing).item() == 0


def test_mask_losses_pass_gradcheck(rng):
    target = Views(
        torch.zeros(2, 3, 4, 4, dtype=torch.float64),
        (torch.rand(2, 1, 4, 4, generator=rng, dtype=torch.float64) > 0.5).double(),
        POSE.to("cpu", dtype=torch.float64),
        None,
        torch.arange(2),
    )
    leaf = (torch.rand(2, 1, 4, 4, generator=rng, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    for loss in (mask.iou, mask.l1):
        assert torch.autograd.gradcheck(
            lambda soft, loss=loss: loss(
                Estimate(torch.zeros(2, 1), target.camera, None, Rendering(target.rgb, target.mask, soft)), target
            ),
            leaf,
        )

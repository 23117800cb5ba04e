"""Silhouettes by Mask R-CNN: the published network's arithmetic, and which object is taken."""

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN as Published
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from invkit.features.silhouette import MaskRCNN
from tests.invkit.features.test_features import put


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """The network as torchvision builds it for its weights: normalization frozen, with an epsilon of 0."""
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), 5)
    network = Published(backbone, 91).eval()
    for part in network.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.eps = 0.0
            part.running_var.uniform_(0.5, 1.5)
            part.running_mean.uniform_(-0.1, 0.1)
    return network


def test_it_is_the_published_network(published, tmp_path, monkeypatch, rng):
    put(tmp_path, "mask_rcnn", published.state_dict(), monkeypatch)
    ours = MaskRCNN("bird", folder=tmp_path)
    assert ours.name == "mask_rcnn"
    image = torch.rand(1, 3, 64, 96, generator=rng)
    with torch.no_grad():
        for mine, theirs in zip(ours.network.backbone(image).values(), published.backbone(image).values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    mine, theirs = ours.network.roi_heads.state_dict(), published.roi_heads.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


class Answer(torch.nn.Module):
    """A network that finds the same in every picture."""

    def __init__(self, found: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.found = found

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.found for _ in images]


@pytest.fixture
def network() -> MaskRCNN:
    """One that answers with four objects: a car, two birds, and a third bird it is not sure of."""
    network = MaskRCNN("bird", weights="random")
    masks = torch.zeros(4, 1, 8, 8)
    for i in range(4):
        masks[i, 0, i] = 0.9
    found = {"labels": torch.tensor([3, 16, 16, 16]), "scores": torch.tensor([0.99, 0.6, 0.8, 0.2]), "masks": masks}
    network.network = Answer(found)
    return network


def test_the_surest_object_of_the_category_is_taken(network):
    mask = network(torch.zeros(3, 8, 8))
    assert mask.shape == (1, 8, 8)
    assert mask[0, 2].min() == 1
    assert mask.sum() == 8


def test_a_picture_without_the_object_is_refused(network):
    network.min_score = 0.9
    with pytest.raises(ValueError, match=r"no bird was found in the picture with a certainty of 0\.9"):
        network(torch.zeros(3, 8, 8))


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="'robin' is not one of COCO's: person, bicycle"):
        MaskRCNN("robin", weights="random")


def test_it_runs_and_finds_nothing_with_random_weights():
    network = MaskRCNN("bird", weights="random", min_score=0.99)
    network.network.transform.min_size = (64,)
    with pytest.raises(ValueError, match="no bird was found"):
        network(torch.rand(3, 40, 50))

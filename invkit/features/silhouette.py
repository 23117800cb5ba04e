"""Silhouettes of photographs that come without one: torchvision's Mask R-CNN, trained on COCO's 80 kinds of things."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.features import weights as files
from invkit.features.frozen import Frozen

MIN_SCORE = 0.5


class MaskRCNN(Frozen):
    """The silhouette of the object of one category that the network is surest of.

    Args:
        category: one of COCO's, such as bird or car.
        min_score: objects it is less sure of are not taken.
        weights: "mask_rcnn" or "random".
        folder: where to look for the weights first.

    Raises:
        ValueError: COCO has no such category; the weights are damaged or do not fit.
        FileNotFoundError: the weights are not on this machine.
    """

    def __init__(
        self,
        category: str,
        *,
        min_score: float = MIN_SCORE,
        weights: str = "mask_rcnn",
        folder: str | Path | None = None,
    ) -> None:
        from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

        super().__init__()
        categories = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        known = [name for name in categories[1:] if name != "N/A"]
        if category not in known:
            raise ValueError(f"category {category!r} is not one of COCO's: {', '.join(known)}")
        self.category, self.min_score = category, min_score
        self._number = categories.index(category)
        network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 0.0  # the published network was trained without one
        if weights == files.RANDOM:
            self.name = f"mask_rcnn-{files.RANDOM}"
        else:
            files.fill(network, weights, files.load(weights, folder))
            self.name = weights
        self.network: nn.Module = network
        self.freeze()

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "1 H W"]:
        """1 on the object, 0 elsewhere.

        Args:
            image: in [0, 1].

        Raises:
            ValueError: it finds no such object.
        """
        (found,) = self.network([image.float()])
        certain = (found["labels"] == self._number) & (found["scores"] >= self.min_score)
        if not bool(certain.any()):
            raise ValueError(
                f"no {self.category} was found in the picture with a certainty of {self.min_score}: give a mask, or "
                "lower min_score"
            )
        best = int(torch.where(certain, found["scores"], -1.0).argmax())
        return (found["masks"][best] > 0.5).float()

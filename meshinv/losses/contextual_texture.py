"""Contextual texture loss: a baseline of MeshInversion's ablation (Table 4).

It looks at the same features at the same points as the feature-level Chamfer loss; the rule of matching alone differs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.losses.contextual import contextual
from invkit.types import Estimate, Views
from meshinv.losses.appearance import Appearance
from meshinv.losses.chamfer_texture import Photograph


class ContextualTexture:
    """Contextual loss of rendered and photographed foreground points, places left out.

    An image whose rendering has no foreground gets the largest value the term can take, as a constant.

    Args:
        appearance: what is compared, usually `Features`.
        bandwidth: how soft the choice of a partner is; the authors of the contextual loss take 0.5.
        max_points: points drawn from each side; None takes all of them.
    """

    def __init__(self, appearance: Appearance, *, bandwidth: float = 0.5, max_points: int | None = 8192) -> None:
        self.appearance, self.bandwidth, self.max_points = appearance, bandwidth, max_points

    def target(self, views: Views) -> Photograph:
        """The points of the photographs.

        Raises:
            ValueError: an image has none.
        """
        return Photograph(self.appearance.photographed(views, self.max_points), views.index)

    def __call__(self, estimate: Estimate, target: Photograph) -> Float[Tensor, "B"]:
        """The loss for each image."""
        rendered, photo = self.appearance.rendered(estimate.image, target.index, self.max_points), target.points
        values = []
        for image, (ours, theirs) in enumerate(zip(rendered.counts(), photo.counts(), strict=True)):
            wanted = photo.appearance[image, :theirs]
            if ours:
                values.append(contextual(rendered.appearance[image, :ours], wanted, bandwidth=self.bandwidth))
            else:
                values.append(wanted.new_tensor(float(theirs)).log())
        return torch.stack(values)

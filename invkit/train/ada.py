"""How strongly a discriminator's images are augmented, steered by how sure it is (StyleGAN2-ADA)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Ada(nn.Module):
    """The probability of augmentations: raised where the discriminator knows its training images too well.

    It is state: part of what is saved, so that a resumed run goes on with it.

    Args:
        target: what the mean sign of the discriminator's logits on training images is led to.
        highest: bound on the probability.
        images: training images in which the probability can go from 0 to 1.
    """

    def __init__(self, *, target: float = 0.6, highest: float = 0.8, images: int = 500_000) -> None:
        super().__init__()
        self.target, self.highest, self.images = target, highest, images
        self.register_buffer("probability", torch.zeros(()))

    @torch.no_grad()
    def update(self, mean_sign: Float[Tensor, ""], num_images: int) -> None:
        """Move the probability.

        Args:
            mean_sign: of the logits of one batch of training images; the same on every rank.
            num_images: trained on since the last update, on all ranks.
        """
        change = torch.sign(mean_sign - self.target) * (num_images / self.images)
        self.probability.add_(change.to(self.probability)).clamp_(0.0, self.highest)

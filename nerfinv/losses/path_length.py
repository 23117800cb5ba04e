"""Path length regularization (StyleGAN2) of planes and palette: a step in style space is to change as much anywhere.

The decoder is left out of it (Bootstrapped Radiance Field Inversion, appendix A.1).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.runtime import dist
from nerfinv.field import RadianceField


def path_lengths(styles: Float[Tensor, "B W S"], field: RadianceField) -> Float[Tensor, "B"]:
    """How far the field moves in a random direction for a step of its styles: the root mean square over slots of the
    gradient's norm; differentiable. The directions are from torch's generator.

    Args:
        styles: from which `field` was made, one for each slot.
    """
    side = field.planes.shape[-1]
    along = (field.planes * torch.randn_like(field.planes)).sum() / side
    if field.palette is not None:
        along = along + (field.palette * torch.randn_like(field.palette)).sum()
    (gradient,) = torch.autograd.grad(along, styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


class PathLength(nn.Module):
    """Squared difference of path lengths from their running mean, which is state and starts at the first lengths.

    Args:
        decay: of the running mean, for each use.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, lengths: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The penalty of each object; the running mean is moved first, by the mean over all ranks."""
        with torch.no_grad():
            now = lengths.detach().mean().to(self.mean)
            dist.all_reduce_mean([now])
            self.mean.copy_(torch.where(self.started, self.mean.lerp(now, 1 - self.decay), now))
            self.started.fill_(True)
        return (lengths - self.mean).square()

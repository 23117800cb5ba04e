"""What is read off the backbone's features: the canonical map, the latent, or a pose as plain numbers.

Bootstrapped Radiance Field Inversion, section 3.2 and appendix A.1; the layers are those of the released code.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.precision import widened
from nerfinv.encoder.segformer import STRIDE


class CanonicalHead(nn.Sequential):
    """Three convolutions at the image's full size: for each pixel the object-frame position seen, and the mask.

    They are by far the most expensive part of the encoder, and their cost grows with the square of `width`.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
        )

    def forward(self, features: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]:
        """Positions in object units, of a meaning in the foreground only, and the mask in [0, 1]."""
        pixels = F.interpolate(features, scale_factor=STRIDE, mode="bilinear", align_corners=False).relu_()
        coords, mask = widened(super().forward(pixels)).split((3, 1), dim=1)
        return coords.contiguous(), mask.sigmoid().contiguous()


class PooledHead(nn.Module):
    """A convolution, the mean over the map, two linear layers: `out_dim` numbers for an image."""

    def __init__(self, in_channels: int, width: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out_dim)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        pooled = widened(self.conv(features.relu()).relu()).mean(dim=(2, 3))
        return widened(self.fc2(self.fc1(pooled).relu()))


class LatentHead(PooledHead):
    """The style vector; it ends in the activation that the generator's mapping network ends in."""

    def __init__(self, in_channels: int, width: int, latent_dim: int) -> None:
        super().__init__(in_channels, width, latent_dim, latent_dim)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        return F.leaky_relu(super().forward(features), 0.2)


class PoseHead(PooledHead):
    """The camera as numbers (q, ln s, t, z0): the direct regression that PnP is compared with.

    The paper names the parametrization alone; the layers are those of the latent head.

    Args:
        perspective: False leaves z0 out: the cameras are weak perspective.
    """

    def __init__(self, in_channels: int, width: int, *, perspective: bool = True) -> None:
        super().__init__(in_channels, width, width, 8 if perspective else 7)
        self.perspective = perspective

    def forward(self, features: Float[Tensor, "B C h w"]) -> Camera:
        quat, log_scale, shift, z0 = super().forward(features).split((4, 1, 2, int(self.perspective)), dim=1)
        return Camera.from_augmented(
            z0.squeeze(1) if self.perspective else None, shift, log_scale.squeeze(1).exp(), rotation.normalize(quat)
        )

"""The bootstrapping encoder: one image in, a canonical map to estimate the pose from and a latent to start from out.

Bootstrapped Radiance Field Inversion, section 3.2. `PoseRegressor` is the alternative it is compared with there: the
same backbone with a head that names the camera directly.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.runtime.networks import storable
from nerfinv.encoder.heads import CanonicalHead, LatentHead, PoseHead
from nerfinv.encoder.segformer import SegFormer


@dataclass(frozen=True)
class Canonical(Batch):
    """What the encoder reads off an image.

    Args:
        coords: the object-frame position seen at each pixel, object units; of a meaning where `mask` is high.
        mask: the object's silhouette, in [0, 1].
        latent: the generator's style vector.
    """

    coords: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    latent: Float[Tensor, "B L"]


@storable
class Encoder(nn.Module):
    """Canonical map, mask and style vector of images.

    The defaults around a default `SegFormer` are the released network of 92.6 million numbers.

    Args:
        latent_backbone: a backbone of its own for the latent; None shares one.
        head_width: channels inside the heads.
        latent_dim: of the generator's style vectors.
    """

    def __init__(
        self,
        backbone: SegFormer,
        latent_backbone: SegFormer | None = None,
        *,
        head_width: int = 512,
        latent_dim: int = 512,
    ) -> None:
        super().__init__()
        self.backbone, self.latent_backbone, self.latent_dim = backbone, latent_backbone, latent_dim
        self.canonical_head = CanonicalHead(backbone.out_channels, head_width)
        self.latent_head = LatentHead((latent_backbone or backbone).out_channels, head_width, latent_dim)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Canonical:
        """What is seen.

        Args:
            image: in [-1, 1], on the background that the generator is rendered with; not normalized otherwise.

        Raises:
            ValueError: a side of the image is not a multiple of 32.
        """
        features = self.backbone(image)
        coords, mask = self.canonical_head(features)
        if self.latent_backbone is not None:
            features = self.latent_backbone(image)
        return Canonical(coords, mask, self.latent_head(features))


@storable
class PoseRegressor(nn.Module):
    """Cameras of images, named directly.

    Args:
        perspective: False where the cameras are weak perspective.
    """

    def __init__(self, backbone: SegFormer, *, head_width: int = 512, perspective: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.pose_head = PoseHead(backbone.out_channels, head_width, perspective=perspective)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Camera:
        """The cameras; for the image see `Encoder`."""
        return self.pose_head(self.backbone(image))

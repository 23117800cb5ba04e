"""The two Inception-v3 networks that FID and KID are measured with. Their numbers cannot be compared with each other.

Both see the picture at 299 x 299 (bilinear, pixel centers, no antialiasing) in [-1, 1] and give the 2048 averages of
the last block. `InceptionTV` is torchvision's (MeshInversion and ConvMesh), `InceptionFID` the port of the TensorFlow
network that the first FID was defined with (pytorch-fid; bootstrapped radiance-field inversion).
"""

from collections import OrderedDict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.features import weights as files
from invkit.features.frozen import Frozen

SIZE = 299

_TRUNK = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
)


class _Inception(Frozen):
    """The blocks of `network` (on the meta device) that lead to its features, with the weights `weights`."""

    dim = 2048

    def __init__(self, network: nn.Module, name: str, weights: str, folder: str | Path | None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(OrderedDict((part, getattr(network, part)) for part in _TRUNK))
        if weights == files.RANDOM:
            files.draw(self.trunk)
            self.name = f"{name}-{files.RANDOM}"
        else:
            files.fill(self.trunk, weights, files.load(weights, folder))
            self.name = weights
        self.freeze()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        """The features of pictures in [-1, 1] of any size."""
        if image.shape[-2:] != (SIZE, SIZE):
            # Resizing weighs pixels with weights that sum to one, so it may come after the change of range.
            image = nn.functional.interpolate(image, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return self.trunk(image).flatten(1)


class InceptionTV(_Inception):
    """torchvision's Inception-v3, whose blocks are called one by one: ImageNet's mean and deviation are not applied.

    Args:
        weights: "inception_tv" or "random".
        folder: where to look for the weights first.
    """

    def __init__(self, weights: str = "inception_tv", *, folder: str | Path | None = None) -> None:
        super().__init__(_torchvision_network(1000), "inception_tv", weights, folder)


class InceptionFID(_Inception):
    """pytorch-fid's Inception-v3, which pools some blocks differently.

    Args:
        weights: "inception_fid" or "random".
        folder: where to look for the weights first.
    """

    def __init__(self, weights: str = "inception_fid", *, folder: str | Path | None = None) -> None:
        from pytorch_fid import inception

        # pytorch-fid's own constructor downloads; these are the blocks it puts in before that.
        network = _torchvision_network(1008)
        with torch.device("meta"):
            network.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
            network.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
            network.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
            network.Mixed_6b = inception.FIDInceptionC(768, channels_7x7=128)
            network.Mixed_6c = inception.FIDInceptionC(768, channels_7x7=160)
            network.Mixed_6d = inception.FIDInceptionC(768, channels_7x7=160)
            network.Mixed_6e = inception.FIDInceptionC(768, channels_7x7=192)
            network.Mixed_7b = inception.FIDInceptionE_1(1280)
            network.Mixed_7c = inception.FIDInceptionE_2(2048)
        super().__init__(network, "inception_fid", weights, folder)


def _torchvision_network(num_classes: int) -> nn.Module:
    from torchvision.models import Inception3

    with torch.device("meta"):
        return Inception3(num_classes=num_classes, aux_logits=False, init_weights=False)

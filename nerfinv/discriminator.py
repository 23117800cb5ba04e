"""The judge of rendered images, told from which camera they are (section 3.1; StyleGAN2's residual discriminator)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.runtime.networks import storable
from nerfinv.layers import EqualizedConv2d, EqualizedLinear, channels_last

POSE_SIZE = 13


@storable
class Discriminator(nn.Module):
    """One logit for each image; the higher, the more it looks like a photograph.

    Args:
        size: of the images, a power of two from 8 on.
        channels: of the images; the fourth is the silhouette.
        conditional: the logit is a product with an embedding of the pose (and class).
        channel_base: a layer at resolution r has channel_base / r channels, at most `max_channels`.
        group_size: images whose variety is measured together.

    Raises:
        ValueError: `size` is not a power of two from 8 on, or there are classes without conditioning.
    """

    def __init__(
        self,
        *,
        size: int = 128,
        channels: int = 4,
        conditional: bool = True,
        num_classes: int = 0,
        channel_base: int = 32768,
        max_channels: int = 512,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"images of {size} pixels: their side must be a power of two from 8 on")
        if num_classes and not conditional:
            raise ValueError(f"num_classes={num_classes} with conditional=False: classes are part of the condition")
        self.channels = channels
        self.resolutions = [2**power for power in range(size.bit_length() - 1, 2, -1)]
        width = {r: max(1, min(channel_base // r, max_channels)) for r in [*self.resolutions, 4]}
        for resolution in self.resolutions:
            block = ResidualBlock(
                width[resolution], width[resolution // 2], image_channels=channels if resolution == size else None
            )
            self.add_module(f"b{resolution}", block)
        self.mapping = ConditionMapping(width[4], num_classes) if conditional else None
        self.b4 = Epilogue(width[4], out_features=width[4] if conditional else 1, group_size=group_size)

    def forward(
        self,
        image: Float[Tensor, "B C H H"],
        pose: Float[Tensor, "B 13"] | None = None,
        label: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B"]:
        """Logits.

        Args:
            image: [-1, 1], and the silhouette in [0, 1].
            pose: of `pose_vector`.

        Raises:
            ValueError: the discriminator is conditional and no poses, or no labels where it has classes, are given.
        """
        maps = channels_last(image)
        for resolution in self.resolutions:
            maps = getattr(self, f"b{resolution}")(maps)
        features = self.b4(maps)
        if self.mapping is None:
            return features.squeeze(1)
        if pose is None:
            raise ValueError("this discriminator judges images together with their poses: give poses")
        condition = self.mapping(pose, label)
        return (features * condition).sum(dim=1) / math.sqrt(condition.shape[1])


class ResidualBlock(nn.Module):
    """Maps of half the size; the first block reads the image."""

    def __init__(self, in_channels: int, out_channels: int, *, image_channels: int | None = None) -> None:
        super().__init__()
        self.fromrgb = (
            None if image_channels is None else EqualizedConv2d(image_channels, in_channels, 1, activate=True)
        )
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, activate=True)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, down=True, activate=True)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=True)

    def forward(self, maps: Float[Tensor, "B I H H"]) -> Float[Tensor, "B O R R"]:
        if self.fromrgb is not None:
            maps = self.fromrgb(maps)
        gain = math.sqrt(0.5)
        return self.skip(maps, gain) + self.conv1(self.conv0(maps), gain)


class ConditionMapping(nn.Module):
    """What the logit is a product with: two slow layers, after an embedding of the class beside the pose."""

    def __init__(self, width: int, num_classes: int = 0) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(num_classes, width) if num_classes else None
        in_features = POSE_SIZE + (width if num_classes else 0)
        self.fc0 = EqualizedLinear(in_features, width, lr_mult=0.01, activate=True)
        self.fc1 = EqualizedLinear(width, width, lr_mult=0.01, activate=True)

    def forward(self, pose: Float[Tensor, "B 13"], label: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B C"]:
        """The factors.

        Raises:
            ValueError: there are classes and no labels are given.
        """
        if self.class_embedding is not None:
            if label is None:
                raise ValueError("this discriminator judges images together with their classes: give labels")
            pose = torch.cat([self.class_embedding(label), pose], dim=1)
        return self.fc1(self.fc0(pose))


class Epilogue(nn.Module):
    """From maps of 4 x 4, and from how much they vary, to features."""

    def __init__(self, width: int, out_features: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = EqualizedConv2d(width + 1, width, 3, activate=True)
        self.fc = EqualizedLinear(width * 16, width, activate=True)
        self.out = EqualizedLinear(width, out_features)

    def forward(self, maps: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B F"]:
        variety = batch_variety(maps, self.group_size)[:, None, None, None].expand(-1, 1, 4, 4)
        maps = self.conv(torch.cat([maps, variety.to(maps.dtype)], dim=1))
        return self.out(self.fc(maps.flatten(1)))


def batch_variety(maps: Float[Tensor, "B C H W"], group_size: int) -> Float[Tensor, "B"]:
    """Mean standard deviation within each image's group ("minibatch standard deviation").

    Image i is grouped with those B / group_size further. Where the batch is no multiple of `group_size`, groups are of
    the largest size that divides both.
    """
    group_size = math.gcd(len(maps), group_size)
    grouped = maps.to(torch.promote_types(maps.dtype, torch.float32)).unflatten(0, (group_size, -1))
    deviation = (grouped.var(dim=0, correction=0) + 1e-8).sqrt()
    return deviation.mean(dim=(1, 2, 3)).repeat(group_size)


def pose_vector(camera: Camera, *, opengl_axes: bool = False) -> Float[Tensor, "B 13"]:
    """What discriminators are told of a camera: ln F, t_x, t_y, s and the rotation, row by row.

    F is the focal length over the image width; weak perspective has 0 in the place of ln F. t is where the object's
    center lands, but for the principal point, which the vector leaves out.

    Args:
        opengl_axes: rotation and t are of OpenGL's axes (y up, z towards the viewer), of which the released code's
            discriminators are on data that comes in them (ShapeNet, CARLA).
    """
    inv_focal = camera.inv_focal
    weak = inv_focal == 0
    log_focal = -torch.log(2 * inv_focal.masked_fill(weak, 0.5))
    matrix = rotation.to_matrix(camera.quat)
    shift = camera.shift - camera.center.masked_fill(weak[:, None], 0)
    if opengl_axes:
        matrix = matrix * matrix.new_tensor([1.0, -1.0, -1.0])[:, None]
        shift = shift * shift.new_tensor([-1.0, 1.0])
    return torch.cat([log_focal[:, None], shift, camera.scale[:, None], matrix.flatten(1)], dim=1)

"""Where to look from: rings of azimuths in a canonical pose, turns of a found camera, random cameras, known cameras.

The canonical pose is MeshInversion's (its evaluation renders every object so): the object frame has +y from head to
tail and +z up, and the camera looks from the side with the body inclined. All cameras are weak perspective and put the
object's origin at the center of the image; meshes are centered by their owner (`TexturedMesh.centered`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from invkit.batch import Batch
from invkit.data import index_sets
from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
UPRIGHT = 90.0


def _about(axis: tuple[float, float, float], degrees: Float[Tensor, "B"]) -> Float[Tensor, "B 4"]:
    return rotation.from_axis_angle(degrees.new_tensor(axis).expand(len(degrees), 3), degrees)


def canonical(count: int, default_orientation: float = 30.0) -> Float[Tensor, "B 4"]:
    """`count` times the side view with the body inclined by `default_orientation` degrees: R_z(90 - it) R_y(-90)."""
    tilt = torch.full((count,), UPRIGHT - default_orientation)
    return rotation.multiply(_about(Z, tilt), _about(Y, torch.full((count,), -90.0)))


def _looking(quat: Float[Tensor, "B 4"], scale: float) -> Camera:
    zero = torch.zeros(len(quat))
    return Camera(quat, zero + scale, torch.zeros(len(quat), 2), zero)


def azimuth_ring(count: int = 12, *, scale: float = 0.7, default_orientation: float = 30.0) -> Camera:
    """Cameras at azimuths 0, 360 / count, ...: 0 and 180 are side views, 90 shows the head, 270 the tail.

    The object turns about the image's vertical axis, from the canonical pose.
    """
    degrees = torch.arange(count) * (360 / count)
    return _looking(rotation.multiply(_about(Y, degrees), canonical(count, default_orientation)), scale)


def random(
    count: int,
    rng: Generator,
    *,
    scale: float = 0.7,
    default_orientation: float = 30.0,
    max_elevation: float = 30.0,
) -> Camera:
    """Cameras at azimuths drawn from the whole circle and elevations drawn from +-`max_elevation` degrees."""
    azimuth, elevation = torch.rand(2, count, generator=rng) * 2 - 1
    turned = rotation.multiply(_about(Y, azimuth * 180), canonical(count, default_orientation))
    return _looking(rotation.multiply(_about(X, elevation * max_elevation), turned), scale)


def turned(camera: Camera, degrees: Float[Tensor, "B"], axis: tuple[float, float, float] = Z) -> Camera:
    """Each camera with the object turned by its angle about the object's own `axis`: by default its up axis."""
    return replace(camera, quat=rotation.multiply(camera.quat, _about(axis, degrees.to(camera.quat))))


def orbit(camera: Camera, degrees: Float[Tensor, "K"], axis: tuple[float, float, float] = Z) -> Camera:
    """Each camera with the object turned by each angle about its own `axis`, image-major: [B K] cameras.

    The object's origin comes to the center of the image; 0 degrees is the found view but for that. The default axis is
    up in CMR's object frame, so 180 degrees shows the side that was never seen.
    """
    cameras = turned(camera.repeat(len(degrees)), degrees.repeat(len(camera)), axis)
    nowhere = torch.zeros_like(cameras.shift)
    return replace(cameras, shift=nowhere, center=nowhere)


def raised(camera: Camera, degrees: int | float) -> Camera:
    """The cameras raised by an angle about the image's horizontal axis: a positive one looks from above."""
    up = _about(X, torch.full((len(camera),), float(degrees))).to(camera.quat)
    return replace(camera, quat=rotation.multiply(up, camera.quat))


# ---- One object in two frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame(Batch):
    """Where the points of one object frame lie in another: scale R(quat) p + offset."""

    quat: Float[Tensor, "B 4"]
    scale: Float[Tensor, "B"]
    offset: Float[Tensor, "B 3"]

    def apply(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        return self.scale[:, None, None] * rotation.rotate(self.quat, points) + self.offset[:, None]


def same(found: Camera, true: Camera) -> Frame:
    """The estimate's frame taken for the true one, as it is."""
    count, like = len(found), found.scale
    quat = rotation.identity(count, device=like.device, dtype=like.dtype)
    return Frame(quat, torch.ones_like(like), like.new_zeros(count, 3))


def seen_alike(found: Camera, true: Camera) -> Frame:
    """The estimate moved so that the true camera sees it just as the found camera does, perspective apart.

    A single view leaves size and pose of the object open: a camera that is nearer to a smaller object, or both turned,
    gives the same picture. Here what the two cameras differ in is taken from the shape, so that the shape is left.
    Depth is not told apart: the centers of the two objects are at the same.
    """
    true_quat = rotation.normalize(true.quat)
    aside = torch.cat([found.shift - true.shift, torch.zeros_like(found.shift[:, :1])], dim=1)
    back = rotation.conjugate(true_quat)
    offset = rotation.rotate(back, aside[:, None])[:, 0] / true.scale[:, None]
    return Frame(rotation.multiply(back, rotation.normalize(found.quat)), found.scale / true.scale, offset)


def through(camera: Camera, frame: Frame) -> Camera:
    """The camera that shows points p as `camera` shows `frame.apply(p)`; exact with perspective too."""
    x, y, depth = camera.in_camera(frame.offset[:, None])[:, 0].unbind(dim=1)
    slope = camera.inv_focal * depth
    shift = camera.shift + torch.stack([x, y], dim=1) + camera.center * slope[:, None]
    return replace(
        camera,
        quat=rotation.multiply(camera.quat, frame.quat),
        scale=camera.scale * frame.scale / (1 + slope),
        shift=shift / (1 + slope)[:, None],
    )


# ---- What protocols look from ----------------------------------------------------------------------------------------


@runtime_checkable
class Viewpoints(Protocol):
    """From where each reconstruction is looked at.

    centered: whether the object's middle is put at the origin first (`scene.centered()`).
    paired: whether each picture has one that shows the same from the same place: the photograph, or ground truth.
    of_truth: whether the cameras are those of further views that ground truth has.
    of_others: whether they are those of other photographs; these are `Others`.
    """

    centered: ClassVar[bool]
    paired: ClassVar[bool]
    of_truth: ClassVar[bool]
    of_others: ClassVar[bool]

    def __call__(self, found: Camera, true: Camera | None, novel: Camera | None) -> Camera:
        """K cameras for each reconstruction, image-major.

        Args:
            found: of the photographs, as estimated; B of them.
            true: of the photographs; None where the viewpoints are not `of_truth`.
            novel: of further views of the true objects, or of other photographs, K for each, image-major; None where
                the viewpoints are of neither.
        """
        ...


@dataclass(frozen=True)
class InputView:
    """The photograph's own view: the found camera."""

    centered: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    of_truth: ClassVar[bool] = False
    of_others: ClassVar[bool] = False

    def __call__(self, found: Camera, true: Camera | None, novel: Camera | None) -> Camera:
        return found


@dataclass(frozen=True)
class Ring:
    """`azimuth_ring`, the same around every object (MeshInversion's FID_12, from which its FID_10 leaves views out)."""

    count: int = 12
    scale: float = 0.7
    default_orientation: float = 30.0

    centered: ClassVar[bool] = True
    paired: ClassVar[bool] = False
    of_truth: ClassVar[bool] = False
    of_others: ClassVar[bool] = False

    @property
    def degrees(self) -> list[float]:
        """The azimuths."""
        return [index * 360 / self.count for index in range(self.count)]

    def __call__(self, found: Camera, true: Camera | None, novel: Camera | None) -> Camera:
        ring = azimuth_ring(self.count, scale=self.scale, default_orientation=self.default_orientation)
        return Camera.cat([ring] * len(found)).to(found.shift.device)


@dataclass(frozen=True)
class NovelViews:
    """The further views that ground truth has of the objects.

    Args:
        aligned: look at the estimate moved by `seen_alike`; False looks at it where it is.
    """

    aligned: bool = False

    centered: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    of_truth: ClassVar[bool] = True
    of_others: ClassVar[bool] = False

    def __call__(self, found: Camera, true: Camera | None, novel: Camera | None) -> Camera:
        frame = (seen_alike if self.aligned else same)(found, true)
        return through(novel, frame.repeat(len(novel) // max(len(found), 1)))


@dataclass(frozen=True)
class Others:
    """The places from which other photographs of the data set were taken, one for each image.

    Args:
        released: which ones is drawn as in the released code of Bootstrapped Radiance Field Inversion, its slips
            included, and only what that evaluates is measured; see `invkit.data.index_sets`.
    """

    released: bool = False

    centered: ClassVar[bool] = False
    of_truth: ClassVar[bool] = False
    of_others: ClassVar[bool] = True

    @property
    def needs_training(self) -> bool:
        """Whether the training split has a part in it: the released code draws for that first."""
        return self.released

    def partners(self, dataset: ImageSet, train: ImageSet | None) -> Mapping[int, int]:
        """Position of each image that is evaluated -> position of the other photograph.

        Args:
            train: the training split; None where it has no part in it.
        """
        if self.released:
            found = index_sets.released_of(dataset, train)
        else:
            found = index_sets.corrected(index_sets.split_of(dataset))
        return dict(zip(found.chosen, found.partner, strict=True))

    def __call__(self, found: Camera, true: Camera | None, novel: Camera | None) -> Camera:
        return novel


@dataclass(frozen=True)
class SameObject(Others):
    """The place of another photograph of the same object, with which the picture is compared."""

    paired: ClassVar[bool] = True

    def partners(self, dataset: ImageSet, train: ImageSet | None) -> Mapping[int, int]:
        """As for `Others`.

        Raises:
            ValueError: the data set has a single photograph of each object.
        """
        if not index_sets.has_other_sides(dataset):
            raise ValueError("the data set has a single photograph of each object, so none of its other sides")
        return super().partners(dataset, train)


@dataclass(frozen=True)
class RandomPlace(Others):
    """The place of another photograph, of whatever object.

    Args:
        of_training: of the training split's photographs of those positions: where the split itself has no cameras.
    """

    of_training: bool = False

    paired: ClassVar[bool] = False

    @property
    def needs_training(self) -> bool:
        """Whether the training split has a part in it."""
        return self.released or self.of_training

    def partners(self, dataset: ImageSet, train: ImageSet | None) -> Mapping[int, int]:
        """As for `Others`.

        Raises:
            ValueError: the training split has fewer photographs than positions.
        """
        found = super().partners(dataset, train)
        if self.of_training and max(found.values(), default=-1) >= len(train):
            raise ValueError(f"the training split has {len(train)} photographs, too few for places of {len(dataset)}")
        return found

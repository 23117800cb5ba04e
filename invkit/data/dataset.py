"""What a data set of single images is, and the one way in which an image is cut out around its object.

Every data set gives `Views` of one image at a time, on the CPU, as a pure function of the index: there is no hidden
random state, so any process may read any item in any order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.images import Box, composite, crop_pad, read_image, resize_bilinear, square_box
from invkit.types import Views

Resample = Callable[[Float[Tensor, "B C H W"], int], Float[Tensor, "B C h w"]]


class ImageSet(ABC):
    """A finite list of single views.

    names: one for each item, unique; "/" apart they can be file names.
    num_classes: labels are in [0, num_classes); 0 where there are none.
    size: height and width of every image.
    guessed_cameras: names of the items of which no camera is known, so that theirs is a guess.
    """

    names: list[str]
    num_classes: int
    size: int
    guessed_cameras: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Views:
        """Item `index` as a batch of one, float32, on the CPU."""

    def camera(self, index: int) -> Camera:
        """The camera of item `index`, as in the item; without its picture where that is cheaper."""
        return self[index].camera

    def label(self, index: int) -> int | None:
        """The class of item `index`, as in the item; without its picture where that is cheaper."""
        label = self[index].label
        return None if label is None else int(label)

    def frame(self, index: int) -> Float[Tensor, "1 4"]:
        """The part of its photograph that item `index` shows: left, top, right, bottom in the photograph's NDC, which
        lies in the middle of a square there.

        Raises:
            ValueError: the data set does not cut objects out of photographs whose cameras are known uncut.
        """
        raise ValueError(f"{type(self).__name__} does not know where its items lie in uncut photographs")

    def cameras(self, indices: Sequence[int] | None = None) -> Camera:
        """The cameras of these items, in this order; of all items by default.

        Raises:
            ValueError: there are no items.
        """
        return Camera.cat([self.camera(index) for index in (range(len(self)) if indices is None else indices)])

    def batch(self, indices: Sequence[int]) -> Views:
        """These items as one batch, in this order."""
        return Views.cat([self[index] for index in indices])

    def annotated(self) -> "ImageSet":
        """The items whose mask and camera were annotated, and with these: items of the same names, maybe fewer.

        The set itself, unless it has masks or cameras that were predicted or guessed.
        """
        return self

    def _position(self, index: int) -> int:
        """`index` counted from the front, as a sequence counts."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)}")
        return index % len(self)


class Subset(ImageSet):
    """Chosen items of another data set; `Views.index` and `names` count within the choice."""

    def __init__(self, dataset: ImageSet, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = [dataset._position(index) for index in indices]
        self.names = [dataset.names[index] for index in self.indices]
        self.num_classes, self.size = dataset.num_classes, dataset.size
        guessed = set(dataset.guessed_cameras)
        self.guessed_cameras = [name for name in self.names if name in guessed]
        if len(set(self.names)) != len(self.names):
            raise ValueError("a subset takes each item once: names must stay unique")

    def __getitem__(self, index: int) -> Views:
        position = self._position(index)
        return replace(self.dataset[self.indices[position]], index=torch.tensor([position]))

    def camera(self, index: int) -> Camera:
        return self.dataset.camera(self.indices[self._position(index)])

    def label(self, index: int) -> int | None:
        return self.dataset.label(self.indices[self._position(index)])

    def frame(self, index: int) -> Float[Tensor, "1 4"]:
        return self.dataset.frame(self.indices[self._position(index)])

    def annotated(self) -> ImageSet:
        chosen = set(self.names)
        known = self.dataset.annotated()
        return subset(known, [index for index, name in enumerate(known.names) if name in chosen])


def subset(dataset: ImageSet, indices: Sequence[int]) -> Subset:
    """The chosen items, in the order given.

    Raises:
        ValueError: an item is chosen twice.
        IndexError: there is no such item.
    """
    return Subset(dataset, indices)


class Cached(ImageSet):
    """A data set whose items stay in memory once read, just as they are."""

    def __init__(self, dataset: ImageSet, max_bytes: int = 4 * 2**30) -> None:
        """Read the first item to learn how much memory all of them will take.

        Raises:
            ValueError: they take more than `max_bytes`.
        """
        self.dataset = dataset
        self.names, self.num_classes, self.size = dataset.names, dataset.num_classes, dataset.size
        self.guessed_cameras = dataset.guessed_cameras
        self._items: dict[int, Views] = {}
        if len(dataset):
            total = _num_bytes(self[0]) * len(dataset)
            if total > max_bytes:
                raise ValueError(
                    f"{len(dataset)} images of {dataset.size} px take {total / 2**30:.1f} GiB in memory, above the "
                    f"limit of {max_bytes / 2**30:.1f} GiB: raise max_bytes, lower the size, or read without Cached"
                )

    def __getitem__(self, index: int) -> Views:
        position = self._position(index)
        # Two threads may both read a missing item; they read the same.
        if position not in self._items:
            self._items[position] = self.dataset[position]
        return self._items[position]

    def camera(self, index: int) -> Camera:
        return self.dataset.camera(index)

    def label(self, index: int) -> int | None:
        return self.dataset.label(index)

    def annotated(self) -> ImageSet:
        return self.dataset.annotated()


def _num_bytes(record: Batch) -> int:
    values = [getattr(record, field.name) for field in fields(record)]
    return sum(_num_bytes(v) if isinstance(v, Batch) else v.nbytes for v in values if v is not None)


@dataclass(frozen=True)
class Preparation:
    """How a photograph becomes an item: a square around the object, resampled. The defaults are MeshInversion's.

    Args:
        resample: takes image and mask from the square to the size of the data set.
        mask_threshold: the resampled mask becomes 1 where it is above this, else 0; None keeps it soft.
        crop_padding: growth of the box on each side, relative to its extent; None takes the whole image instead of the
            box, centered on a square.
        masked: multiply the colors by the mask, which turns the background into mid grey.
    """

    resample: Resample = resize_bilinear
    mask_threshold: float | None = 0.95
    crop_padding: float | None = 0.05
    masked: bool = False

    def square(
        self, box: Sequence[float | int], height: int, width: int, jitter: float = 0.0, u: Sequence[float] = (0.5,) * 4
    ) -> Box:
        """The square that is cut out of a height x width photograph; see `square_box`."""
        if self.crop_padding is None:
            return square_box((0, 0, width - 1, height - 1), 0.0)
        return square_box(box, self.crop_padding, jitter, u)

    def cut(
        self, image: Float[Tensor, "3 H W"], mask: Float[Tensor, "1 H W"], square: Box, size: int
    ) -> tuple[Float[Tensor, "1 3 size size"], Float[Tensor, "1 1 size size"]]:
        """Colors in [-1, 1], white beside the photograph, and mask; `image` is in [0, 1]."""
        pixels = torch.cat([crop_pad(image, square, 1.0), crop_pad(mask, square, 0.0)])[None]
        pixels = self.resample(pixels, size)
        rgb, soft = 2 * pixels[:, :3] - 1, pixels[:, 3:]
        mask = soft if self.mask_threshold is None else (soft > self.mask_threshold).to(soft)
        return (composite(rgb, mask, 0.0) if self.masked else rgb), mask


def read_on_white(path: Path, size: int) -> tuple[Float[Tensor, "1 3 size size"], Float[Tensor, "1 1 size size"]]:
    """Colors in [-1, 1] of a square picture of an object on white, and its mask: what is not white. Area averages.

    Where an outline runs through a pixel its color is the object's alone, so that the object can be put on any
    background; on white that is the averaged picture again.

    Raises:
        FileNotFoundError: there is no such picture.
        ValueError: it is damaged, or not square.
    """
    image = read_image(path)[None]
    if image.shape[2] != image.shape[3]:
        raise ValueError(f"{path} is {image.shape[3]} x {image.shape[2]} pixels; it has to be square")
    mask = (image != 1).any(dim=1, keepdim=True).to(image)
    if image.shape[-1] != size:
        image, mask = (interpolate(tensor, size=size, mode="area") for tensor in (image, mask))
        image = torch.where(mask > 0, (image - 1 + mask) / torch.where(mask > 0, mask, 1), image).clamp(0, 1)
    return 2 * image - 1, mask


def to_square(camera: Camera, square: Box) -> Camera:
    """A weak-perspective camera given in pixels of the photograph, in NDC of a square cut out of it.

    A pixel coordinate c becomes 2 (c - corner) / side - 1, without half a pixel, as in CMR.
    """
    left, top, right, _ = square
    half = (right - left + 1) / 2
    corner = camera.shift.new_tensor([left, top])
    return replace(camera, scale=camera.scale / half, shift=(camera.shift - corner) / half - 1)


def from_square(camera: Camera, square: Box) -> Camera:
    """`to_square` undone: a weak-perspective camera in NDC of a square, in pixels of the photograph."""
    left, top, right, _ = square
    half = (right - left + 1) / 2
    corner = camera.shift.new_tensor([left, top])
    return replace(camera, scale=camera.scale * half, shift=(camera.shift + 1) * half + corner)

"""Categories of ImageNet as radiance-field inversion trains on them: detected objects under estimated cameras.

    root/images/<synset>/*.JPEG
    root/imagenet_<category>/detections.npy, poses_estimated_multitpl_perspective.bin

The paper has car, airplane, motorcycle, zebra and elephant. docs/datasets.md says where the files come from.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from invkit.data import cmr
from invkit.data.detections import DetectedPhotos, Detection, photographs_in, read_detections

POSES = "poses_estimated_multitpl_perspective.bin"


class ImageNet(DetectedPhotos):
    """The objects of some categories, one category after another.

    classes: the categories, where there are several: an object's category is its label. Empty where there is one.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        size: int = 128,
        *,
        categories: Sequence[str],
        whole_image: bool = False,
        mirrored: bool = False,
        without: str | Path | None = None,
    ) -> None:
        """Read what is known about the photographs; these are read when asked for.

        Args:
            split: train; there is no other.
            whole_image: no cropping, as the paper trains its generators (at 256, halved later).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.
            without: another data set's detections.npy; its photographs, told by their file names, are left out. Without
                those of PASCAL3D+, car is the paper's other test set for PASCAL3D+ cars.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: there is no such split, a file is damaged, the files do not fit together, or nothing is left.
        """
        if split != "train":
            raise ValueError(f"ImageNet has no split {split!r} here, only train: set split: train")
        if isinstance(categories, str) or len(set(categories)) != len(categories) or not categories:
            raise ValueError(f"categories must be a list with each category once, such as [car]; got {categories!r}")
        detections = []
        for label, category in enumerate(categories):
            of_one = read_category(root, category)
            detections += [replace(one, label=label) for one in of_one] if len(categories) > 1 else of_one
        if without is not None:
            taken = photographs_in(without)
            detections = [one for one in detections if one.path.name not in taken]
            if not detections:
                raise ValueError(f"{without} has all photographs of {', '.join(categories)}, so `without` leaves none")
        self.classes = list(categories) if len(categories) > 1 else []
        super().__init__(detections, size, len(self.classes), whole_image=whole_image, mirrored=mirrored)


def files(root: str | Path, category: str) -> tuple[Path, Path]:
    """What a category is described by: detections, cameras."""
    folder = Path(root) / f"imagenet_{category}"
    return folder / "detections.npy", folder / POSES


def read_category(root: str | Path, category: str) -> list[Detection]:
    """The objects of a category whose camera is known, in the order of the file of cameras.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the other.
    """
    return read_detections(*files(root, category), Path(root), "images")


def problems(root: str | Path, category: str) -> list[str]:
    """In words, every file of a category that is missing or damaged, with what to do about it; reads all of them."""
    return cmr.problems(files(root, category), partial(read_category, root, category), category)

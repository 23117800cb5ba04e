"""PASCAL3D+ cars as CMR annotated them, as ConvMesh and as radiance-field inversion train on them.

    root/data/{category}_{split}.mat                     `images`: path, box, mask, CAD model of every object
    root/sfm/{category}_{split}.mat                      `sfm_anno`: rotation, scale, translation, in the same order
    root/PASCAL3D+_release1.1/Images/                    car_imagenet/*.JPEG, car_pascal/*.jpg
    root/p3d_labels.csv                                  optional: ConvMesh's colors and body shapes
    root/p3d_car/detections.npy, poses_estimated_singletpl_perspective.bin
                                                         detected cars and cameras of radiance-field inversion

Splits are train (every photograph from ImageNet, and PASCAL's training photographs) and val (PASCAL's alone). A
photograph may show several annotated cars; each is an item. docs/datasets.md says where the files come from.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from invkit.data import cmr
from invkit.data.cmr import OBTAIN, AnnotatedPhotos, Record, read_mean_shape
from invkit.data.dataset import Preparation
from invkit.data.detections import DetectedPhotos, Detection, read_detections
from invkit.images import resize_area

SPLITS = ("train", "val")
IMAGENET_CARS = "car_imagenet"
"""The folder of the photographs that ConvMesh trains its GAN on, as `path_prefix`."""
NUM_KEY_POINTS = 12
PHOTOS = "PASCAL3D+_release1.1/Images"
POSES = "poses_estimated_singletpl_perspective.bin"


class Pascal3D(AnnotatedPhotos):
    """One split of a category of PASCAL3D+ in CMR's layout.

    `records[i]` says what is annotated about item i: `position` in the files, and the number of its CAD model.

    classes: names of the labels, in their order; none without `labels`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        size: int = 256,
        *,
        category: str = "car",
        preparation: Preparation = Preparation(),
        jitter: float = 0.0,
        seed: int = 0,
        mirrored: bool = False,
        exact_mirror: bool = False,
        path_prefix: str | None = None,
        labels: str | Path | None = None,
    ) -> None:
        """Read the annotations of a split; photographs are read when asked for.

        Args:
            jitter: largest random shift of each side of the box, relative to its extent (CMR trains with 0.05); drawn
                once for each item from (seed, index).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.
            exact_mirror: flipped copies take -t_x, not CMR's -t_x - 2 / size.
            path_prefix: keep the objects in photographs whose path starts so; None keeps all.
            labels: `p3d_labels.csv`; the label is the body shape, numbered in the alphabetical order of all shapes in
                the file. None: there are no classes.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, the files do not fit together, or nothing is kept.
        """
        records = read_records(root, split, category)
        if path_prefix is not None:
            kept = [record for record in records if record.name.startswith(path_prefix)]
            if not kept:
                folders = ", ".join(sorted({record.name.rpartition("/")[0] for record in records}))
                raise ValueError(
                    f"no path of {category}_{split} starts with path_prefix {path_prefix!r}: see {folders}"
                )
            records = kept
        self.classes: list[str] = []
        if labels is not None:
            shapes = read_shapes(labels)
            self.classes = sorted(set(shapes.values()))
            records = _labeled(records, shapes, self.classes, Path(labels))
        super().__init__(
            records,
            size,
            len(self.classes),
            preparation=preparation,
            jitter=jitter,
            seed=seed,
            mirrored=mirrored,
            exact_mirror=exact_mirror,
        )

    @classmethod
    def for_nerfinv(
        cls,
        root: str | Path,
        split: str,
        size: int = 128,
        *,
        whole_image: bool = False,
        mirrored: bool = False,
        weak_perspective: bool = False,
    ) -> AnnotatedPhotos:
        """Items as `Cub.for_nerfinv` prepares them, under the paper's perspective cameras.

        Those are known of photographs from ImageNet in the split train: see `read_detected`.

        Args:
            whole_image: no cropping, as the paper trains its generator (at 256, halved later).
            mirrored: append a flipped copy of every item: item N + i is item i mirrored.
            weak_perspective: CMR's objects and cameras instead, which every split has. The paper's test photographs are
                those of val; both kinds of cameras have CMR's rotations.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: there are no such cameras of the split, or a file is damaged.
        """
        if weak_perspective:
            padding = None if whole_image else Preparation.crop_padding
            preparation = Preparation(resize_area, mask_threshold=None, crop_padding=padding)
            return cls(root, split, size, preparation=preparation, mirrored=mirrored, exact_mirror=True)
        if split != "train":
            raise ValueError(
                f"perspective cameras are known of split train only, not of {split}: CMR's weak perspective has to be "
                "asked for (weak_perspective: true)"
            )
        try:
            detections = read_detected(root)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}. CMR's weak perspective does without it (weak_perspective: true)"
            ) from error
        return DetectedPhotos(detections, size, whole_image=whole_image, mirrored=mirrored)


def detected_files(root: str | Path) -> tuple[Path, Path]:
    """What radiance-field inversion's training cars are described by: detections, cameras."""
    folder = Path(root) / "p3d_car"
    return folder / "detections.npy", folder / POSES


def read_detected(root: str | Path) -> list[Detection]:
    """The detected cars whose perspective camera is known, in the order of the file of cameras.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the other.
    """
    return read_detections(*detected_files(root), Path(root), PHOTOS)


def detected_problems(root: str | Path) -> list[str]:
    """In words, everything of these that is missing or damaged, with what to do about it; reads all of it."""
    return cmr.problems(detected_files(root), partial(read_detected, root), "p3d_car")


def annotation_files(root: str | Path, split: str, category: str = "car") -> tuple[Path, Path]:
    """The files a split is described by: objects, cameras."""
    return Path(root) / "data" / f"{category}_{split}.mat", Path(root) / "sfm" / f"{category}_{split}.mat"


def read_records(root: str | Path, split: str, category: str = "car") -> list[Record]:
    """The annotations of every object of a split, in the order of the files.

    The second object of a photograph is named after it with "-2" appended, and so on.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: one is damaged, lacks a field, or does not fit the other.
    """
    images_mat, cameras_mat = annotation_files(root, split, category)
    records, seen = [], Counter()
    for record in cmr.read_records(images_mat, cameras_mat, Path(root) / PHOTOS):
        seen[record.name] += 1
        count = seen[record.name]
        records.append(record if count == 1 else replace(record, name=f"{record.name}-{count}"))
    return records


def problems(root: str | Path, split: str, category: str = "car") -> list[str]:
    """In words, every file of a split that is missing or damaged, with what to do about it; reads all of them."""
    read = partial(read_records, root, split, category)
    return cmr.problems(annotation_files(root, split, category), read, f"{category}_{split}")


def mean_shape(root: str | Path) -> Float[Tensor, "12 3"]:
    """The mean key points of the cars in CMR's structure from motion: object frame, float64.

    Raises:
        FileNotFoundError: there is no `sfm/car_train.mat`.
        ValueError: it has no shape `S`.
    """
    return read_mean_shape(annotation_files(root, "train")[1], NUM_KEY_POINTS)


def read_shapes(path: str | Path) -> dict[str, str]:
    """File name without suffix -> body shape, from ConvMesh's list: a header, then rows of file, two colors, shape.

    Where a file is listed twice, the last row counts, as in ConvMesh.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a row is too short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {OBTAIN}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"cannot read {path} ({error}); it is damaged: {OBTAIN}") from error
    short = [number for number, row in enumerate(rows, 2) if 0 < len(row) < 4]
    if short:
        raise ValueError(f"{path}: line {short[0]} has no file, two colors and body shape; {OBTAIN}")
    return {Path(row[0]).stem: row[3] for row in rows if row}


def _labeled(records: Sequence[Record], shapes: dict[str, str], classes: Sequence[str], source: Path) -> list[Record]:
    """The records with their classes."""
    absent = [record.name for record in records if record.path.stem not in shapes]
    if absent:
        raise ValueError(
            f"{source} has no row for {len(absent)} of {len(records)} objects, first {absent[0]}: "
            f"leave those out (path_prefix={IMAGENET_CARS!r}), or use no labels"
        )
    number = {shape: label for label, shape in enumerate(classes)}
    return [replace(record, label=number[shapes[record.path.stem]]) for record in records]

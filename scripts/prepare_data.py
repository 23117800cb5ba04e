"""Make data sets in the layouts that the loaders read, and check existing ones.

    python scripts/prepare_data.py cub-subset datasets/cub datasets/cub_subset
    python scripts/prepare_data.py cub-subset datasets/cub datasets/cub_subset_1500 --even-train
    python scripts/prepare_data.py cub-subset datasets/cub --check        look, write nothing
    python scripts/prepare_data.py synthetic-birds datasets/synthetic_birds --train 256
    python scripts/prepare_data.py synthetic-cars datasets/synthetic_cars
    python scripts/prepare_data.py check cub datasets/cub --sheet sheet.png
    python scripts/prepare_data.py check p3d datasets/p3d
    python scripts/prepare_data.py check imagenet datasets/imagenet
    python scripts/prepare_data.py check carla datasets/carla
    python scripts/prepare_data.py check folder my_photographs

A command can be run twice: a complete data set is left as it is, and nothing is ever half written. The exit status is 1
if something is missing or damaged; every such file is named. docs/datasets.md has the details.
"""

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from invkit.data import cub, cub_subset, folder, imagenet, pascal3d, synthetic
from invkit.data.carla import Carla
from invkit.data.dataset import ImageSet
from invkit.data.srn import Srn
from invkit.images import grid, write_png

# ---- Making ------------------------------------------------------------------------------------------------------


def make_cub_subset(options: argparse.Namespace) -> list[str]:
    if options.check:
        subset, found = cub_subset.check(options.source, even_train=options.even_train)
        for split in cub_subset.SPLITS.values():
            birds = [bird for bird in subset.birds if bird.split == split]
            species, drawn = len({bird.label for bird in birds}), sum(bird.annotated for bird in birds)
            print(f"{split}: {len(birds)} birds of {species} species; {drawn} of the masks drawn by a person")
        errors = [bird.reprojection_error(subset.mean_shape) for bird in subset.birds]
        if errors:
            print(f"cameras against parts: median error {np.median(errors):.1%} of the longer side of the box")
        return found
    cub_subset.write_subset(options.source, options.target, even_train=options.even_train)
    print(f"{options.target} is complete")
    return []


def make_synthetic(options: argparse.Namespace) -> list[str]:
    options.write(options.target, **{name: getattr(options, name) for name in numbers(options.write)})
    print(f"{options.target} is complete")
    return []


# ---- Checking ----------------------------------------------------------------------------------------------------


def check_cub(options: argparse.Namespace) -> list[str]:
    files = {split: cub.annotation_files(options.root, split) for split in cub.SPLITS}
    present = [split for split in cub.SPLITS if any(path.is_file() for path in files[split][:2])]
    if not present:
        return [f"{options.root} has no split: expected {files['train'][0]} and {files['train'][1]}"]
    found = []
    for split in present:
        wrong = cub.problems(options.root, split)
        found += wrong
        if not wrong:
            describe(split, cub.Cub(options.root, split))
    if options.sheet and not found:
        chosen = cub.Cub(options.root, "test" if "test" in present else present[0])
        shape = cub.mean_shape(options.root) if "train" in present else None
        save_sheet(options.sheet, chosen, shape)
    return found


def check_p3d(options: argparse.Namespace) -> list[str]:
    files = {split: pascal3d.annotation_files(options.root, split) for split in pascal3d.SPLITS}
    present = [split for split in pascal3d.SPLITS if any(path.is_file() for path in files[split])]
    detected = pascal3d.detected_files(options.root)
    has_detected = any(path.is_file() for path in detected)
    if not present and not has_detected:
        return [
            f"{options.root} has no split: expected {files['train'][0]} and {files['train'][1]}, "
            f"or {detected[0]} and {detected[1].name}"
        ]
    found = []
    if has_detected:
        found += pascal3d.detected_problems(options.root)
        if not found:
            describe("detected cars under perspective cameras", pascal3d.Pascal3D.for_nerfinv(options.root, "train"))
    for split in present:
        wrong = pascal3d.problems(options.root, split)
        found += wrong
        if not wrong:
            found += describe_cars(options.root, split)
    if options.sheet and not found:
        shape = pascal3d.mean_shape(options.root) if "train" in present else None
        shown = (
            pascal3d.Pascal3D.for_nerfinv(options.root, "train", size=256)
            if has_detected
            else pascal3d.Pascal3D(options.root, present[-1])
        )
        save_sheet(options.sheet, shown, shape)
    return found


def describe_cars(root: Path, split: str) -> list[str]:
    """Print what a whole split has; return what is wrong with the labels of the cars that ConvMesh trains on."""
    dataset = pascal3d.Pascal3D(root, split)
    describe(split, dataset)
    folders = Counter(record.name.rpartition("/")[0] for record in dataset.records)
    models = len({record.cad_index for record in dataset.records} - {None})
    print(f"{split}: {', '.join(f'{count} in {name}' for name, count in sorted(folders.items()))}; {models} CAD models")
    labels, prefix = root / "p3d_labels.csv", pascal3d.IMAGENET_CARS
    if not labels.is_file() or not any(name.startswith(prefix) for name in folders):
        return []
    try:
        labeled = pascal3d.Pascal3D(root, split, path_prefix=prefix, labels=labels)
    except ValueError as error:
        return [str(error)]
    print(f"{split}: {labels.name} has all of {prefix}; {labeled.num_classes} classes by shape")
    return []


def check_imagenet(options: argparse.Namespace) -> list[str]:
    categories = [path.name.removeprefix("imagenet_") for path in sorted(options.root.glob("imagenet_*"))]
    if not categories:
        return [f"{options.root} has no category: expected {imagenet.files(options.root, '<category>')[0]}"]
    found, whole = [], []
    for category in categories:
        wrong = imagenet.problems(options.root, category)
        found += wrong
        if not wrong:
            describe(category, imagenet.ImageNet(options.root, "train", categories=[category]))
            whole.append(category)
    if options.sheet and not found:
        save_sheet(options.sheet, imagenet.ImageNet(options.root, "train", categories=whole))
    return found


def check_carla(options: argparse.Namespace) -> list[str]:
    dataset = Carla(options.root)
    found = unreadable(dataset)
    if not found:
        describe("train", dataset)
        if options.sheet:
            save_sheet(options.sheet, dataset)
    return found


def check_folder(options: argparse.Namespace) -> list[str]:
    found = folder.problems(options.root)
    if not found:
        dataset = folder.Folder(options.root)
        describe("all splits", dataset)
        given = sum(photo.camera is not None for photo in dataset.photos)
        print(f"cameras are given for {given}")
        if options.sheet:
            save_sheet(options.sheet, dataset)
    return found


def check_srn(options: argparse.Namespace) -> list[str]:
    splits = [path.name.rpartition("_") for path in sorted(options.root.glob("*_*")) if path.is_dir()]
    if not splits:
        return [f"{options.root} has no <category>_<split> folder"]
    found = []
    for category, _, split in splits:
        try:
            dataset = Srn(options.root, category, split)
        except (FileNotFoundError, ValueError) as error:
            found.append(str(error))
            continue
        wrong = unreadable(dataset)
        found += wrong
        if not wrong:
            describe(f"{category} {split} ({len(dataset.objects)} objects)", dataset)
    if options.sheet and not found:
        save_sheet(options.sheet, Srn(options.root, splits[0][0], splits[0][2]))
    return found


def unreadable(dataset: ImageSet) -> list[str]:
    """In words, what keeps items from being read; reads all of them."""
    found = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except (FileNotFoundError, ValueError) as error:
            found.append(str(error))
    return found


def describe(title: str, dataset: ImageSet) -> None:
    classes = f"{dataset.num_classes} classes" if dataset.num_classes else "no classes"
    print(f"{title}: all {len(dataset)} pictures are whole; {classes}")


def save_sheet(
    path: Path, dataset: ImageSet, points: Float[Tensor, "N 3"] | None = None, *, columns: int = 8, count: int = 48
) -> None:
    """Write evenly chosen items, their outlines in red, and the points projected by their cameras in green."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist()
    views = dataset.batch(chosen)
    outline = functional.max_pool2d(views.mask, 3, stride=1, padding=1) - views.mask
    images = torch.where(outline > 0.5, views.rgb.new_tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1), views.rgb)
    if points is not None:
        size = dataset.size
        projected = views.camera.project(points.float().expand(len(views), -1, -1))[..., :2]
        pixels = ((projected + 1) * size / 2).floor().long().clamp(1, size - 2)
        for image, places in zip(images, pixels.tolist(), strict=True):
            for x, y in places:
                image[:, y - 1 : y + 2, x - 1 : x + 2] = image.new_tensor([-1.0, 1.0, -1.0]).view(3, 1, 1)
    write_png(path, grid(images, columns))
    print(f"{path} shows {len(chosen)}")


# ---- The command line --------------------------------------------------------------------------------------------


def numbers(write: Callable[..., None]) -> dict[str, int]:
    """The whole numbers that a data set is made from, with their defaults."""
    parameters = inspect.signature(write).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, int)}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    made = commands.add_parser("cub-subset", help="real birds at small scale, in CMR's layout")
    made.add_argument(
        "source",
        type=Path,
        help="folder with CUB_200_2011 and CMR's data and sfm (see docs/datasets.md), or a prepared cub_subset folder",
    )
    made.add_argument("target", type=Path, nargs="?", default=Path("datasets/cub_subset"))
    made.add_argument("--check", action="store_true", help="look at the source and report; write nothing")
    made.add_argument(
        "--even-train", action="store_true", help="held-out birds with an even image id join the training split"
    )
    made.set_defaults(run=make_cub_subset)

    for kind, write, help_text in (
        ("birds", synthetic.write_birds, "procedural birds, in CMR's layout"),
        ("cars", synthetic.write_cars, "procedural cars, in the layout of ShapeNet-SRN"),
    ):
        made = commands.add_parser(f"synthetic-{kind}", help=help_text)
        made.add_argument("target", type=Path, nargs="?", default=Path(f"datasets/synthetic_{kind}"))
        for name, default in numbers(write).items():
            made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
        made.set_defaults(run=make_synthetic, write=write)

    kinds = commands.add_parser("check", help="read everything; name what is missing or damaged").add_subparsers(
        required=True, metavar="KIND"
    )
    checks = {
        "cub": check_cub,
        "p3d": check_p3d,
        "imagenet": check_imagenet,
        "srn": check_srn,
        "carla": check_carla,
        "folder": check_folder,
    }
    for kind, run in checks.items():
        checked = kinds.add_parser(kind)
        checked.add_argument("root", type=Path)
        checked.add_argument("--sheet", type=Path, metavar="PNG", help="also draw some items with their masks")
        checked.set_defaults(run=run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 where it found something wrong."""
    options = parser().parse_args(arguments)
    try:
        found = options.run(options)
    except (FileNotFoundError, ValueError) as error:
        found = [str(error)]
    for problem in found:
        print(f"- {problem}", file=sys.stderr)
    if found:
        print(f"{len(found)} problem{'s' if len(found) > 1 else ''}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Make data sets in the layouts the loaders read, and check those that are there.

    python scripts/prepare_data.py cub-subset SOURCE datasets/cub_subset
    python scripts/prepare_data.py cub-subset SOURCE --check              look, write nothing
    python scripts/prepare_data.py synthetic-birds datasets/synthetic_birds
    python scripts/prepare_data.py check cub datasets/cub --sheet sheet.png
    python scripts/prepare_data.py check folder my_photographs

Running a command twice does no harm: what is complete is left alone, and nothing is ever half written. The exit status
is 1 where something is missing or damaged; every such file is named. docs/datasets.md has the rest.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from invkit.data import cub, cub_subset, folder, synthetic
from invkit.data.dataset import ImageSet
from invkit.images import grid, write_png

# ---- Making ------------------------------------------------------------------------------------------------------


def make_cub_subset(options: argparse.Namespace) -> list[str]:
    if options.check:
        subset = cub_subset.read_subset(options.source)
        for split in cub_subset.SPLITS.values():
            birds = [bird for bird in subset.birds if bird.split == split]
            species, drawn = len({bird.label for bird in birds}), sum(bird.annotated for bird in birds)
            print(f"{split}: {len(birds)} birds of {species} species; {drawn} of the masks drawn by a person")
        errors = [bird.reprojection_error(subset.mean_shape) for bird in subset.birds]
        if errors:
            print(f"cameras against parts: median error {np.median(errors):.1%} of the longer side of the box")
        return cub_subset.problems(subset)
    written = cub_subset.write_subset(options.source, options.target)
    print(f"{options.target} {'is written' if written else 'was there already'}")
    return []


def make_synthetic_birds(options: argparse.Namespace) -> list[str]:
    counts = {"train": options.train, "val": options.val, "test": options.test}
    synthetic.write_birds(options.target, **counts, num_species=options.species, seed=options.seed)
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


def check_folder(options: argparse.Namespace) -> list[str]:
    found = folder.problems(options.root)
    if not found:
        dataset = folder.Folder(options.root)
        describe("all splits", dataset)
        given = sum(photo.camera is not None for photo in dataset.photos)
        print(f"cameras are given for {given} of them")
        if options.sheet:
            save_sheet(options.sheet, dataset)
    return found


def describe(title: str, dataset: ImageSet) -> None:
    classes = f"{dataset.num_classes} classes" if dataset.num_classes else "no classes"
    print(f"{title}: {len(dataset)} photographs, {classes}")


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
    print(f"{path} shows {len(chosen)} of them")


# ---- The command line --------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    made = commands.add_parser("cub-subset", help="real birds from a cub_subset folder, in CMR's layout")
    made.add_argument("source", type=Path, help="folder with images_320, masks_*, annotations, cameras_cmr")
    made.add_argument("target", type=Path, nargs="?", default=Path("datasets/cub_subset"))
    made.add_argument("--check", action="store_true", help="look at the source and report; write nothing")
    made.set_defaults(run=make_cub_subset)

    made = commands.add_parser("synthetic-birds", help="procedural birds, in CMR's layout")
    made.add_argument("target", type=Path, nargs="?", default=Path("datasets/synthetic_birds"))
    made.add_argument("--train", type=int, default=256)
    made.add_argument("--val", type=int, default=32)
    made.add_argument("--test", type=int, default=32)
    made.add_argument("--species", type=int, default=12)
    made.add_argument("--seed", type=int, default=0)
    made.set_defaults(run=make_synthetic_birds)

    kinds = commands.add_parser("check", help="read everything; name what is missing or damaged").add_subparsers(
        required=True, metavar="KIND"
    )
    for kind, run in {"cub": check_cub, "folder": check_folder}.items():
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
    print(f"{len(found)} problems" if found else "no problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

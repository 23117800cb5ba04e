"""Invert every image of a split: one (latent, camera) record per image.

    python scripts/invert.py experiment=meshinv_invert_synthetic
    torchrun --nproc_per_node=4 scripts/invert.py experiment=meshinv_invert_cub

Run the same command again to resume: an image that already has a record is skipped. An image that cannot be used leaves
a record that says why. result.json, images/reconstructions.png and the page index.html (page=false: none) are made from
the records at the end; there an image is `doubtful` where its mask or its overlap are reasons not to believe the result
(`doubts`).
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from omegaconf import DictConfig

from invkit.data import index_sets
from invkit.data.dataset import ImageSet, subset
from invkit.evaluation.evaluator import contact_sheet, evaluate, render
from invkit.evaluation.gallery import Gallery, write_gallery
from invkit.evaluation.page import TITLES, Method
from invkit.images import write_png
from invkit.inversion import doubt
from invkit.inversion.inverter import Inverter, invert_all
from invkit.inversion.records import DOUBTFUL, OK, RecordStore
from invkit.inversion.refinement import refine_all
from invkit.protocols import Prior
from invkit.runtime import dist
from invkit.runtime.run import CONFIG, Run, instantiate_trusted, main
from invkit.types import Guess

GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, are spread evenly however many there are."""


@main(config_name="invert")
def invert(cfg: DictConfig) -> None:
    with Run(cfg) as run:
        inverter = instantiate_trusted(cfg.inverter, prior=instantiate_trusted(cfg.prior).to(run.device))
        dataset = photographs(cfg)
        check_classes(dataset, inverter.prior)
        store = RecordStore(run.dir / "records")
        # Rank 0 looks for all: a rank that looked later would already find what others have written.
        here = run.share(dist.broadcast_value(store.missing(dataset.names) if run.rank == 0 else None))
        began = time.monotonic()
        records = invert_all(inverter, dataset, store, here, batch_size=cfg.batch_size, device=run.device)
        for record in run.progress(records, total=len(here)):
            if record.status != OK:
                run.log.message(f"{record.name}: {record.status}")
        seconds = (time.monotonic() - began) / len(here) if here else None
        dist.barrier()
        if cfg.get("refine") is not None:
            refine(cfg, inverter, store, run)
        result = evaluate(
            store, inverter.prior, inverter.renderer, dataset, batch_size=cfg.batch_size, device=run.device
        )
        result["images"] = doubt.judged(result["images"], dataset, doubt.Thresholds(**cfg.doubt))
        statuses = Counter(image["status"] for image in result["images"].values())
        run.result({"protocol": cfg.protocol, "statuses": statuses, "seconds_per_image": seconds, **result})
        if run.rank == 0:
            picture(inverter, dataset, store, cfg.pictures, run)
            if cfg.page:
                show(cfg, inverter, dataset, store, result["images"], run)
            for name, image in result["images"].items():
                if image["status"] == DOUBTFUL:
                    run.log.message(f"{name}: {DOUBTFUL}, {'; '.join(image['doubts'])}")
            run.log.message(summary(result))


def photographs(cfg: DictConfig, **settings: Any) -> ImageSet:
    """What is to be inverted.

    Args:
        settings: of the data, instead of those of the configuration.
    """
    dataset = instantiate_trusted(cfg.data, **settings)
    if cfg.released:
        dataset = released_sample(dataset, instantiate_trusted(cfg.data, **{**cfg.trained_on, **settings}))
    return chosen(dataset, cfg.names, cfg.limit)


def check_classes(dataset: ImageSet, prior: Prior) -> None:
    """
    Raises:
        ValueError: a photograph has a class that the prior does not have, so the classes of the two are not the same.
    """
    if not (dataset.num_classes and prior.num_classes):
        return
    for index, name in enumerate(dataset.names):
        label = dataset.label(index)
        if label is not None and label >= prior.num_classes:
            raise ValueError(
                f"data: {name} has class {label}, but the prior has {prior.num_classes} classes (0 to "
                f"{prior.num_classes - 1}): it was trained on other data. Give the data it was trained on, or a prior "
                "without classes, such as prior.generator.path=meshinv/checkpoints/real_birds.pt"
            )


def refine(cfg: DictConfig, inverter: Inverter, store: RecordStore, run: Run) -> None:
    """Let the photographs decide what they show, of all records that have not been refined yet."""
    dataset = photographs(cfg, **({} if cfg.refine_size is None else {"size": cfg.refine_size}))
    refinement = instantiate_trusted(cfg.refine)
    left = run.share(dist.broadcast_value(store.unrefined(dataset.names) if run.rank == 0 else None))
    names = refine_all(
        refinement,
        inverter.prior,
        inverter.renderer,
        dataset,
        store,
        left,
        batch_size=cfg.batch_size,
        device=run.device,
    )
    for _ in run.progress(names, total=len(left)):
        pass
    dist.barrier()


def released_sample(dataset: ImageSet, train: ImageSet) -> ImageSet:
    """The images that are evaluated in Bootstrapped Radiance Field Inversion; all, if there are no more than 8,000."""
    return subset(dataset, index_sets.released_of(dataset, train).chosen)


def chosen(dataset: ImageSet, names: Sequence[str] | None, limit: int | None) -> ImageSet:
    """The named images, or `limit` of them spread evenly over the split, or all.

    Of a set with several photographs of each object, the spread ones show different sides: they do not all lie at the
    same place among those of their object.

    Raises:
        ValueError: the data set has no image of such a name.
    """
    if names is not None:
        position = {name: index for index, name in enumerate(dataset.names)}
        if unknown := [name for name in names if name not in position]:
            raise ValueError(f"names: the data set has no {', '.join(unknown)}; its first is {dataset.names[0]}")
        return subset(dataset, [position[name] for name in names])
    if limit is None or limit >= len(dataset):
        return dataset
    starts = [index * len(dataset) // limit for index in range(limit + 1)]
    if not index_sets.has_other_sides(dataset):
        return subset(dataset, starts[:-1])
    places = [index * GOLDEN_RATIO % 1 for index in range(limit)]
    return subset(
        dataset, [at + int(place * (end - at)) for (at, end), place in zip(pairwise(starts), places, strict=True)]
    )


def show(
    cfg: DictConfig,
    inverter: Inverter,
    dataset: ImageSet,
    store: RecordStore,
    images: Mapping[str, Mapping[str, Any]],
    run: Run,
) -> None:
    """Write the page of all records."""
    place = {name: index for index, name in enumerate(dataset.names)}
    key = cfg.prior["_target_"].split(".")[0]
    method = Method(key, TITLES[key], (run.dir / CONFIG).read_text())
    node = cfg.inverter.renderer
    renderer = inverter.renderer if cfg.tile is None else instantiate_trusted({**node, "size": cfg.tile})
    page = write_gallery(
        run.dir,
        Gallery(store, inverter.prior, renderer, method, cfg.batch_size, run.device, cfg.detailed),
        images,
        lambda name: dataset[place[name]],
        title=run.config["run"]["name"],
        single_file=cfg.single_file,
    )
    run.log.message(f"see {page}")


def summary(result: dict) -> str:
    if result["count"] == 0:
        return "no image could be inverted; result.json says why"
    return f"{result['count']} images, IoU {result['iou_before']:.3f} before, {result['iou_after']:.3f} after"


def picture(inverter: Inverter, dataset: ImageSet, store: RecordStore, count: int, run: Run) -> None:
    """Draw the first `count` reconstructions beside their photographs."""
    records = [store.read(name) for name in dataset.names[:count]]
    shown = [(index, record.found) for index, record in enumerate(records) if record.found is not None]
    if not shown:
        return
    views = dataset.batch([index for index, _ in shown]).to(run.device)
    with torch.no_grad():
        found = Guess.cat([found for _, found in shown]).to(run.device)
        sheet = contact_sheet(views, render(found, inverter.prior, inverter.renderer), inverter.renderer)
    write_png(run.dir / "images" / "reconstructions.png", sheet.cpu())


if __name__ == "__main__":
    invert()

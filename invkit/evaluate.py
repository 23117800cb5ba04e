"""Measuring records: decode, render again, compare. Nothing that is measured was stored as a picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invkit import dist, viewpoints
from invkit.data.dataset import ImageSet
from invkit.images import composite, grid
from invkit.metrics.iou import iou
from invkit.protocols import Metric, Prior, Renderer
from invkit.records import Record, RecordStore
from invkit.types import Estimate, Guess, Views

TURNED_SCALE = 0.7
"""Turned objects are drawn smaller, so that one photographed from its short side stays in the picture."""


def render(guess: Guess, prior: Prior, renderer: Renderer) -> Estimate:
    """What a guess looks like from its own camera."""
    scene = prior.decode(guess.latent, guess.label)
    return Estimate(guess.latent, guess.camera, scene, renderer(scene, guess.camera), guess.label)


@torch.no_grad()
def evaluate(
    store: RecordStore,
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    metrics: Sequence[Metric] = (),
    *,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """The reconstructions against the data set's images and masks, at the input view.

    With several processes each measures its share, and all return the whole.

    Returns:
        count: images measured.
        iou_before, iou_after: mean overlap of first guess and result with the data set's masks; None where count is 0.
        metrics: value of each metric by its name.
        images: by name: status, iou_before and iou_after of every image that has a record.
        missing: names of the images without a record.
    """
    gone = set(store.missing(dataset.names))
    images = {}
    here = dist.share([index for index in range(len(dataset)) if index not in gone])
    for start in range(0, len(here), batch_size):
        part = here[start : start + batch_size]
        records = [store.read(dataset.names[index]) for index in part]
        images |= {record.name: {"status": record.status} for record in records}
        found = [(index, record) for index, record in zip(part, records, strict=True) if record.found is not None]
        if found:
            images |= _measured(found, prior, renderer, dataset, metrics, device)
    for part in dist.all_gather_states(images):
        images |= part
    for metric in metrics:
        metric.merge(dist.all_gather_states({name: value.cpu() for name, value in metric.state().items()}))
    measured = [image for image in images.values() if "iou_after" in image]
    return {
        "count": len(measured),
        "iou_before": _mean([image["iou_before"] for image in measured]),
        "iou_after": _mean([image["iou_after"] for image in measured]),
        "metrics": {metric.name: metric.compute() for metric in metrics} if measured else {},
        "images": {name: images[name] for name in sorted(images)},
        "missing": [dataset.names[index] for index in sorted(gone)],
    }


@torch.no_grad()
def contact_sheet(
    views: Views, estimate: Estimate, renderer: Renderer, turns: Sequence[float] = (45.0, 90.0, 180.0, 270.0)
) -> Float[Tensor, "3 h w"]:
    """One row for each image: photograph, photograph cut out, reconstruction, and the reconstruction turned.

    Args:
        turns: degrees about the object's own up axis (+z); 180 shows what the photograph does not.
    """
    turned = viewpoints.orbit(estimate.camera, torch.tensor(turns))
    turned = replace(turned, scale=TURNED_SCALE * turned.scale)
    novel = renderer(estimate.scene.centered().repeat(len(turns)), turned)
    shown = composite(novel.rgb, novel.mask).unflatten(0, (len(views), len(turns)))
    seen = [views.rgb, composite(views.rgb, views.mask), composite(estimate.image.rgb, estimate.image.mask)]
    rows = torch.cat([torch.stack(seen, dim=1), shown], dim=1)
    return grid(rows.flatten(0, 1), columns=rows.shape[1])


def _measured(
    found: Sequence[tuple[int, Record]],
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    metrics: Sequence[Metric],
    device: torch.device | str | None,
) -> dict[str, dict[str, Any]]:
    """Status and overlaps of these images; the metrics are updated on the way."""
    views = dataset.batch([index for index, _ in found])
    views = views if device is None else views.to(device)
    first = Guess.cat([record.trace.start for _, record in found]).to(views.rgb.device)
    last = Guess.cat([record.found for _, record in found]).to(views.rgb.device)
    before = iou(render(first, prior, renderer).image.mask, views.mask)
    estimate = render(last, prior, renderer)
    after = iou(estimate.image.mask, views.mask)
    for metric in metrics:
        metric.update(estimate, estimate.image, views)
    return {
        record.name: {"status": record.status, "iou_before": old, "iou_after": new}
        for (_, record), old, new in zip(found, before.tolist(), after.tolist(), strict=True)
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""Measuring records: decode, render again, compare. Nothing that is measured was stored as a picture."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.evaluation import viewpoints
from invkit.evaluation.instruments import Instruments, Resources
from invkit.evaluation.measurement import Measurement
from invkit.evaluation.protocol import EvaluationProtocol
from invkit.evaluation.viewpoints import Others, RandomPlace, Viewpoints
from invkit.geometry.camera import Camera
from invkit.images import composite, grid, resize_antialias
from invkit.inversion.records import Record, RecordStore
from invkit.protocols import Prior, Renderer, scene_of
from invkit.runtime import dist
from invkit.types import Estimate, Guess, Rendering, Views

TURNED_SCALE = 0.7
"""Turned objects are drawn smaller, so that one photographed from its short side stays in the picture."""

Result = dict[str, Any]


def render(guess: Guess, prior: Prior, renderer: Renderer) -> Estimate:
    """What a guess looks like from its own camera."""
    scene = scene_of(prior, guess)
    return Estimate(guess.latent, guess.camera, scene, renderer(scene, guess.camera), guess.label)


def measure(
    store: RecordStore,
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    protocols: Mapping[str, EvaluationProtocol],
    instruments: Instruments = Instruments(),
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, Result]]:
    """The name and result of each protocol, as soon as it is done; those that look alike are done in one go.

    With several processes each measures its share, and all get the whole. Images that could not be searched are not
    measured; `statuses` names them.

    Returns:
        (name, result). A result has `protocol` (its settings), `images` measured, `pictures` of them, `reals` (real
        photographs they were compared with as a set, or None), `metrics` (name -> `value`, `note` where there was a
        warning, and `per_image` by image where there are such values), `not_measured` (metric -> why), `unreadable`
        (image -> why).
    """
    resources = Resources(instruments, list(protocols.values()), batch_size=batch_size, device=device)
    annotated = dataset.annotated()
    gone = set(store.missing(dataset.names))
    here = dist.share([index for index in range(len(dataset)) if index not in gone])
    alike: dict[tuple[Viewpoints, bool, int | None], dict[str, Measurement]] = {}
    for name, protocol in protocols.items():
        group = alike.setdefault((protocol.viewpoints, protocol.first_guess, protocol.steps), {})
        group[name] = Measurement(protocol, resources, dataset)
    for group in alike.values():
        for measurement in group.values():
            measurement.prepare()
        for start in range(0, len(here), batch_size):
            wanted = [measurement for measurement in group.values() if measurement]
            if not wanted:
                break
            part = here[start : start + batch_size]
            records = [(index, store.read(dataset.names[index])) for index in part]
            found = [(index, record) for index, record in records if record.found is not None]
            if found:
                batch = _Batch(found, dataset, annotated, resources, device)
                _look(batch, prior, renderer, wanted)
        for name, measurement in group.items():
            yield name, measurement.result()


def statuses(store: RecordStore, dataset: ImageSet) -> Result:
    """How the searches ended.

    Returns:
        statuses: status -> number of records; failed: name -> why, of the images that could not be searched;
        missing: names of the images without a record; iou_of_search: name -> overlap that the search itself ended with;
        mean_steps: that the searches took, None where there were none.
    """
    gone = set(store.missing(dataset.names))
    records = [store.searched(name) for index, name in enumerate(dataset.names) if index not in gone]
    taken = [int(record.trace.steps) for record in records if record.trace is not None]
    return {
        "statuses": dict(Counter(record.status if record.found is not None else "failed" for record in records)),
        "failed": {record.name: record.status for record in records if record.found is None},
        "missing": [dataset.names[index] for index in sorted(gone)],
        "iou_of_search": {r.name: float(r.trace.iou[0, -1]) for r in records if r.trace is not None},
        "mean_steps": sum(taken) / len(taken) if taken else None,
    }


def evaluate(
    store: RecordStore,
    prior: Prior,
    renderer: Renderer,
    dataset: ImageSet,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Result:
    """The overlap of the reconstructions with the masks they were made from, before and after the search.

    With several processes each measures its share, and all return the whole.

    Returns:
        count: images measured.
        iou_before, iou_after: mean overlap of first guess and result; None where count is 0.
        images: by name: status, iou_before, iou_after and iou_of_search (what the search itself ended with, before any
            refinement) of every image that has a record.
        missing: names of the images without a record.
        mean_steps: that the searches took, None where there were none.
    """
    protocols = {
        "iou_before": EvaluationProtocol({"iou": {}}, first_guess=True),
        "iou_after": EvaluationProtocol({"iou": {}}),
    }
    results = dict(measure(store, prior, renderer, dataset, protocols, batch_size=batch_size, device=device))
    ended = statuses(store, dataset)
    missing = ended["missing"]
    known = sorted(set(dataset.names) - set(missing))
    images: dict[str, dict[str, Any]] = {name: {"status": store.searched(name).status} for name in known}
    for name, value in ended["iou_of_search"].items():
        images[name]["iou_of_search"] = value
    means = {}
    for key, result in results.items():
        values = result["metrics"].get("iou", {"value": None, "per_image": {}})
        means[key] = values["value"]
        for name, value in values["per_image"].items():
            images[name][key] = value
    count = results["iou_after"]["images"]
    return {"count": count, **means, "images": images, "missing": missing, "mean_steps": ended["mean_steps"]}


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
    shown = novel.over(1.0).unflatten(0, (len(views), len(turns)))
    seen = [views.rgb, composite(views.rgb, views.mask), estimate.image.over(1.0)]
    rows = torch.cat([torch.stack(seen, dim=1), shown], dim=1)
    return grid(rows.flatten(0, 1), columns=rows.shape[1])


@dataclass(frozen=True)
class _Partners:
    """What pictures are compared with: of each place in the batch that has it, K views; and what cannot be read."""

    views: Mapping[int, Views]
    unreadable: Mapping[str, str]

    def of(self, places: Sequence[int], view: int) -> Views:
        return Views.cat([self.views[place][view] for place in places])


class _Batch:
    """Some records, and what they are measured against, each read once."""

    def __init__(
        self,
        records: Sequence[tuple[int, Record]],
        dataset: ImageSet,
        annotated: ImageSet,
        resources: Resources,
        device: torch.device | str,
    ) -> None:
        self.indices = [index for index, _ in records]
        self.records = [record for _, record in records]
        self.given, self.annotated = dataset, annotated
        self.resources, self.device = resources, device
        self._known: dict[int, _Partners] = {}

    def guess(self, places: Sequence[int], protocol: EvaluationProtocol) -> Guess:
        """What the protocol measures of the records."""
        return Guess.cat([protocol.chosen(self.records[place]) for place in places]).to(self.device)

    def photographs(self, annotated: bool) -> _Partners:
        """The photographs, with the masks and cameras that were given to the search or with the annotated ones."""
        source = self.annotated if annotated else self.given
        if id(source) not in self._known:
            position = {name: place for place, name in enumerate(source.names)}
            self._known[id(source)] = self._read(position.__contains__, lambda name: source[position[name]])
        return self._known[id(source)]

    def given_masks(self, places: Sequence[int]) -> Rendering:
        """The photographs with the masks that were given to the search, as if they had been rendered."""
        views = self.photographs(annotated=False).of(places, 0)
        return Rendering(views.rgb, views.mask)

    def novel(self) -> _Partners:
        """The further views of the images that have ground truth."""
        truth = self.resources.get("truth")
        return self._read(truth.__contains__, truth.views)

    def places_of_others(self, looking: Others) -> dict[int, Camera]:
        """Of the images that are evaluated, the camera of the other photograph."""
        others = self._others(looking)
        source = self.resources.get("train") if isinstance(looking, RandomPlace) and looking.of_training else self.given
        return {place: source.camera(other).to(self.device) for place, other in others.items()}

    def others(self, looking: Others) -> _Partners:
        """The other photographs themselves."""
        others = {self.records[place].name: other for place, other in self._others(looking).items()}
        return self._read(others.__contains__, lambda name: self.given[others[name]])

    def _others(self, looking: Others) -> dict[int, int]:
        partners = self.resources.partners(looking, self.given)
        return {place: partners[index] for place, index in enumerate(self.indices) if index in partners}

    def _read(self, has: Callable[[str], bool], read: Callable[[str], Views]) -> _Partners:
        views, unreadable = {}, {}
        for place, (index, record) in enumerate(zip(self.indices, self.records, strict=True)):
            if has(record.name):
                try:
                    found = read(record.name)
                    views[place] = replace(found, index=torch.full_like(found.index, index)).to(self.device)
                except (ValueError, OSError) as error:
                    unreadable[record.name] = str(error)
        return _Partners(views, unreadable)


@torch.no_grad()
def _look(batch: _Batch, prior: Prior, renderer: Renderer, measurements: Sequence[Measurement]) -> None:
    """Show the records of a batch to the measurements, which are of the same guesses and views, view by view."""
    looking = measurements[0].protocol.viewpoints
    places, true, novel, partners = list(range(len(batch.records))), None, None, None
    try:
        guess = batch.guess(places, measurements[0].protocol)
    except ValueError as error:
        for measurement in measurements:
            measurement.give_up(str(error))
        return
    if looking.of_truth:
        partners, own = batch.novel(), batch.photographs(annotated=True)
        places = [place for place in places if place in partners.views and place in own.views]
        if places:
            true, novel = own.of(places, 0).camera, Views.cat([partners.views[place] for place in places]).camera
    elif isinstance(looking, Others):
        found = batch.places_of_others(looking)
        places = list(found)
        if looking.paired:
            partners = batch.others(looking)
        if places:
            novel = Camera.cat([found[place] for place in places])
    if not places:
        return
    guess = guess[places]
    scene = scene_of(prior, guess)
    shown = scene.centered() if looking.centered else scene
    cameras = looking(guess.camera, true, novel)
    num_views = len(cameras) // len(places)
    for view in range(num_views):
        image = renderer(shown, cameras[list(range(view, len(cameras), num_views))])
        estimate = Estimate(guess.latent, guess.camera, scene, image, guess.label)
        pictures: dict[Any, Rendering] = {}
        for measurement in measurements:
            protocol = measurement.protocol
            if not protocol.takes(view):
                continue
            rows = list(range(len(places)))
            if not protocol.unpaired:
                against = partners or batch.photographs(protocol.annotated)
                measurement.unreadable |= against.unreadable
                rows = [row for row in rows if places[row] in against.views]
            rows = [row for row in rows if measurement.covers(batch.records[places[row]].name)]
            if not rows:
                continue
            # Protocols with the same background are shown the same tensors, which networks then see once.
            key = (protocol.given, protocol.background, protocol.eight_bit, *rows)
            if key not in pictures:
                pictures[key] = protocol.shown(
                    batch.given_masks([places[row] for row in rows]) if protocol.given else image[rows]
                )
            picture = pictures[key]
            if protocol.unpaired:
                index = torch.tensor([batch.indices[places[row]] for row in rows])
                target = Views(picture.rgb, picture.mask, guess.camera[rows], None, index)
            else:
                target = protocol.partner(against.of([places[row] for row in rows], view))
            if looking.of_truth:
                picture = _resized(picture, target.rgb.shape[-1])
            measurement.update(estimate[rows], picture, target)


def _resized(picture: Rendering, size: int) -> Rendering:
    """A rendering at the size of the ground truth's pictures, so that results do not depend on the renderer's."""
    if picture.rgb.shape[-1] == size:
        return picture
    rgb, mask = (resize_antialias(part, size) for part in (picture.rgb, picture.mask))
    return Rendering(rgb, mask, background=picture.background)

"""Pictures of records for a page: the photograph, the steps of the search, normals, canonical map, other sides.

Nothing of it was stored: guesses that the search has kept are rendered again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invkit.evaluation import page as pages
from invkit.evaluation import viewpoints
from invkit.evaluation.evaluator import render
from invkit.evaluation.page import IOU_AFTER, IOU_BEFORE, MAP, PHOTOGRAPH, SIDE, STEP, Method, Page, Result, Tile
from invkit.evaluation.viewer import write_page
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.images import composite, grid, resize_bilinear, write_webp
from invkit.inversion.records import Record, RecordStore
from invkit.protocols import Prior, Renderer, scene_of
from invkit.runtime.files import file_name
from invkit.types import Guess, Rendering, Views

TURNS = {
    45.0: "turned by 45 degrees",
    90.0: "turned by 90 degrees",
    180.0: "turned by 180 degrees",
    270.0: "turned by 270 degrees",
}
MAPS = frozenset({"normals", "coords"})
FILL, NEARLY = 0.8, 0.97
"""Of half a picture, how far nearly all of an object that is turned reaches; what floats beside it does not count."""
SMALL, SOLID = 0.3, 0.5


@dataclass(frozen=True)
class Gallery:
    """Makes results for a page of the records of one method.

    Args:
        renderer: of the size that pictures shall have, which need not be the search's.
        method: key and title of what reconstructed, and its settings.
        batch_size: records side by side.
        detailed: so many photographs have the steps on the way and other sides too, which of radiance fields takes a
            quarter of the search's time. None: all.
    """

    store: RecordStore
    prior: Prior
    renderer: Renderer
    method: Method
    batch_size: int = 16
    device: torch.device | str = "cpu"
    detailed: int | None = None

    @torch.no_grad()
    def results(
        self, known: Mapping[str, Mapping[str, Any]], photographs: Callable[[str], Views], folder: Path
    ) -> Iterator[Result]:
        """A result for each photograph; its pictures are written below the folder of the page.

        Args:
            known: name -> what is known of it, as in result.json: status, iou_before, iou_after, doubts and others.
            photographs: gives the photograph of a name; asked only for those that were searched.
        """
        in_detail = set(list(known)[: self.detailed])
        for names in _parts(list(known), self.batch_size):
            records = {name: self.store.read(name) for name in names}
            found = [record for record in records.values() if record.found is not None]
            views = {record.name: photographs(record.name).to(self.device) for record in found}
            pictures = self._pictures(found, views, in_detail) if found else {}
            for name in names:
                yield self._result(records[name], known[name], pictures.get(name), folder)

    def _result(
        self, record: Record, known: Mapping[str, Any], pictures: Mapping[Tile, Tensor] | None, folder: Path
    ) -> Result:
        numbers = {IOU_BEFORE: known.get("iou_before"), IOU_AFTER: known.get("iou_after")}
        result = Result(
            record.name,
            self.method.key,
            str(known["status"]),
            numbers={name: value for name, value in numbers.items() if value is not None},
            doubts=tuple(known.get("doubts", ())),
            settings=_settings(record, known),
        )
        if pictures is None:
            return result
        strip = Path(pages.FOLDER) / "pictures" / f"{file_name(record.name)}.{self.method.key}.webp"
        write_webp(folder / strip, grid(torch.stack(list(pictures.values())), columns=len(pictures)))
        label = record.found.label
        return replace(
            result,
            tiles=tuple(pictures),
            strip=strip.as_posix(),
            orbit=orbit_of(record.found.camera),
            label=None if label is None else str(int(label)),
        )

    def _pictures(
        self, records: Sequence[Record], views: Mapping[str, Views], in_detail: Set[str]
    ) -> dict[str, dict[Tile, Tensor]]:
        """Name -> tiles with their pictures, in the order in which they are shown."""
        final = Guess.cat([_bare(record.found, details=True) for record in records]).to(self.device)
        scene = scene_of(self.prior, final)
        image = self.renderer(scene, final.camera, extras=MAPS)
        sides = self._sides(records, scene, final.camera, in_detail)
        steps = self._steps(records, image.over(1.0), in_detail)
        found = {}
        for place, record in enumerate(records):
            own, size = views[record.name], image.rgb.shape[-1]
            of = f"{record.name} by {self.method.title}"
            tiles = {
                Tile(PHOTOGRAPH, "photograph", f"Photograph of {record.name}"): own.rgb,
                Tile(PHOTOGRAPH, "cut out", f"{record.name}, cut out of its photograph"): composite(own.rgb, own.mask),
            }
            tiles = {tile: resize_bilinear(picture, size)[0] for tile, picture in tiles.items()}
            for caption, overlap, picture in steps[record.name]:
                tiles[_step(caption, overlap, of)] = picture
            if image.normals is not None:
                tiles[Tile(MAP, "normals", f"Normals of the reconstruction of {of}")] = normals(image[place])[0]
            if image.coords is not None:
                alt = f"Canonical map of {of}: the place on the object as a color"
                tiles[Tile(MAP, "canonical map", alt)] = coordinates(image[place])[0]
            for caption, picture in zip(TURNS.values(), sides.get(record.name, ()), strict=False):
                tiles[Tile(SIDE, caption, f"Reconstruction of {of}, {caption}")] = picture
            found[record.name] = {tile: picture.cpu() for tile, picture in tiles.items()}
        return found

    def _sides(
        self, records: Sequence[Record], scene: Any, camera: Camera, in_detail: Set[str]
    ) -> dict[str, Float[Tensor, "K 3 T T"]]:
        """Name -> pictures from other sides."""
        places = [place for place, record in enumerate(records) if record.name in in_detail]
        if not places:
            return {}
        pictures = turned(scene[places], camera[places], list(TURNS), self.renderer).split(len(TURNS))
        return {records[place].name: own for place, own in zip(places, pictures, strict=True)}

    def _steps(
        self, records: Sequence[Record], final: Float[Tensor, "B 3 T T"], in_detail: Set[str]
    ) -> dict[str, list[tuple[str, float | None, Tensor]]]:
        """Name -> caption, overlap and picture of what the search kept, from the first guess to what there is now.

        Args:
            final: the last of these pictures of each record.
        """
        kept = []
        for record in records:
            first, *way, last = _kept(record)
            own = [first, *(way if record.name in in_detail else ()), last]
            # Without details the result of the search is what there is now.
            kept += [(record.name, *step) for step in (own if record.found.details is not None else own[:-1])]
        found: dict[str, list[tuple[str, float | None, Tensor]]] = {record.name: [] for record in records}
        for part in _parts(kept, self.batch_size):
            guesses = Guess.cat([guess for *_, guess in part]).to(self.device)
            shown = render(guesses, self.prior, self.renderer).image.over(1.0)
            for (name, caption, overlap, _), picture in zip(part, shown, strict=True):
                found[name].append((caption, overlap, picture))
        for record, picture in zip(records, final, strict=True):
            *_, (caption, overlap, _) = _kept(record)
            refined = record.found.details is not None
            found[record.name].append(
                ("refined by the photograph", None, picture) if refined else (caption, overlap, picture)
            )
        return found


def write_gallery(
    folder: Path,
    gallery: Gallery,
    known: Mapping[str, Mapping[str, Any]],
    photographs: Callable[[str], Views],
    *,
    title: str,
    text: str = "",
    models: Mapping[str, Path] | None = None,
    keep: bool = False,
    single_file: bool = False,
) -> Path:
    """Write, or bring up to date, the page of a folder of records, and return the path of its index.html.

    A run of scripts/reconstruct.py gets its page with one call:

        write_gallery(run.dir, Gallery(store, prior, renderer, Method("meshinv", "MeshInversion")), results,
                      views.__getitem__, title="Reconstructions", models=models, keep=True)

    Args:
        known: name -> what is known of it, as result.json has it (`status`; where it was found also `iou_before`,
            `iou_after`, `doubts` and whatever else; texts and numbers among these are shown as settings).
        photographs: gives the photograph of a name as it was searched; not asked for those that failed.
        models: name -> GLB file below the folder.
        keep: results of other photographs that the page has stay on it.
        single_file: see `write_page`.

    Raises:
        FileNotFoundError: a photograph has no record.
        ValueError: a record or the page that is there is damaged.
    """
    page = pages.read(folder) or Page(title, text)
    results = list(gallery.results(known, photographs, folder))
    page = replace(page, title=title, text=text).with_results(gallery.method, results, keep=keep)
    page = page.with_models(folder, models or {}, gallery.method.key)
    return write_page(page, folder, single_file=single_file)


def normals(image: Rendering) -> Float[Tensor, "B 3 H W"]:
    """Normals as colors, on white: red to the right, green up, blue towards the viewer."""
    unit = torch.nn.functional.normalize(image.normals, dim=1)
    return composite(unit * unit.new_tensor([1.0, -1.0, -1.0])[:, None, None], image.mask)


def coordinates(image: Rendering) -> Float[Tensor, "B 3 H W"]:
    """The place on the object as a color, on white; the farthest place that is seen has the strongest."""
    places = image.coords / image.mask.clamp(min=SOLID)
    reach = (places * (image.mask > SOLID)).abs().amax(dim=(1, 2, 3), keepdim=True)
    return composite((places / reach.clamp(min=1e-6)).clamp(-1, 1), image.mask)


def orbit_of(camera: Camera) -> tuple[float, float]:
    """From where a camera sees a model, as viewers say it: azimuth from the model's front, and angle from above.

    Degrees; the model is turned as `invkit.export` turns it.
    """
    backwards = camera.quat.new_tensor([[[0.0, 0.0, -1.0]]]).cpu()
    quat = rotation.normalize(camera.quat[:1].detach().cpu())
    x, y, z = rotation.rotate(rotation.conjugate(quat), backwards)[0, 0]
    azimuth, polar = torch.atan2(x, -y), torch.acos(z.clamp(-1, 1))
    return round(float(azimuth.rad2deg()), 2), round(float(polar.rad2deg()), 2)


def turned(scene: Any, camera: Camera, degrees: Sequence[float], renderer: Renderer) -> Float[Tensor, "K 3 T T"]:
    """Each object turned about its own up axis by each angle, on white, as large as it fits; image-major.

    Args:
        scene: what is seen.
        camera: from where, at 0 degrees.
    """
    count = len(degrees)
    scene = scene.centered().repeat(count)
    camera = viewpoints.orbit(camera, torch.tensor(degrees))
    # Small, so that all of it is in the picture and a field takes little time.
    small = renderer(scene, replace(camera, scale=SMALL * camera.scale))
    reach = _reach(small.mask).unflatten(0, (-1, count)).amax(dim=1).repeat_interleave(count)
    return renderer(scene, replace(camera, scale=camera.scale * SMALL * FILL / reach)).over(1.0)


def _reach(mask: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B"]:
    """How far nearly all of an object is from the middle, as a part of half the picture; 1 where there is nothing."""
    size = mask.shape[-1]
    place = ((torch.arange(size, device=mask.device) + 0.5) / size * 2 - 1).abs()
    far = torch.maximum(place[None, :], place[:, None])
    there = (far[own > SOLID] for own in mask[:, 0])
    return torch.stack([own.quantile(NEARLY) if len(own) else far.new_tensor(1.0) for own in there])


def _kept(record: Record) -> Iterator[tuple[str, float | None, Guess]]:
    """Caption, overlap and guess of each step that is worth a picture; those after an image had stopped are not."""
    trace = record.trace
    made = int(trace.steps)
    yield "first guess", None, _bare(trace.start)
    for count in sorted(trace.snapshots):
        if 0 < count < made:
            yield f"after {count} steps", float(trace.iou[0, count]), _bare(trace.snapshots[count])
    yield f"after {made} steps", float(trace.iou[0, -1]), _bare(record.found)


def _bare(guess: Guess, *, details: bool = False) -> Guess:
    """The guess without what not all of them have."""
    return replace(guess, posed=None, details=guess.details if details else None)


def _step(caption: str, overlap: float | None, of: str) -> Tile:
    reached = "" if overlap is None else f", IoU {overlap:.2f}"
    caption = f"{caption}{reached}"
    return Tile(STEP, caption, f"Reconstruction of {of} from the side of the photograph, {caption}")


def _settings(record: Record, known: Mapping[str, Any]) -> dict[str, str]:
    """What is told of a result beside its overlap: in result.json, and in its record."""
    told = {"status", "iou_before", "iou_after", "doubts", "label"}
    plain = {key: value for key, value in known.items() if key not in told and isinstance(value, str | int | float)}
    found = {key.replace("_", " "): _written(value) for key, value in plain.items()}
    if record.found is not None:
        camera = ", ".join(f"{value:.4g}" for value in record.found.camera.to("cpu").to_cmr()[0].tolist())
        found |= {"camera of the crop (s, tx, ty, qw, qx, qy, qz)": camera, "steps": str(int(record.trace.steps))}
        found |= {f"objective: {name}": f"{float(value[0, -1]):.4g}" for name, value in record.trace.terms.items()}
    return found


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))


def _written(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

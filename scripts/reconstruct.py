"""Photographs of your own to meshes: silhouette, crop, camera, class, inversion, GLB.

    python scripts/reconstruct.py image=robin.jpg mask=robin_mask.png
    python scripts/reconstruct.py image=robin.png                                # its alpha is the silhouette
    python scripts/reconstruct.py image=robin.jpg box=[120,80,560,430]           # or it is cut out of a box
    python scripts/reconstruct.py image=robin.jpg mask=robin_mask.png mask_refine=grabcut     # a mask drawn roughly
    python scripts/reconstruct.py image=robin.png method=nerfinv
    python scripts/reconstruct.py image=[a.jpg,b.jpg] mask=[a.png,b.png] experiment=meshinv_invert_cub label=3

For each photograph, in runs/reconstruct/<its name>: <its name>.glb, panel.png, which shows step by step what the
network saw, result.json, and input/, a data set of this one photograph. The records lie in runs/reconstruct/records, so
scripts/export.py makes turntables of them (inversion=runs/reconstruct). A photograph that cannot be used is told of in
result.json and stops no other; the exit status is 2 if none could be used. `mask_from` says there where the silhouette
came from: given, alpha, box or mask_rcnn, with +grabcut if it was improved. The status is `doubtful` where `doubts` has
reasons not to believe the result: a mask that does not look like one, or a silhouette that could not be matched.

In result.json, `camera` is [s, tx, ty, qw, qx, qy, qz] in pixels of the photograph, as camera=... takes it: a point p
of the object, (x, -z, y) of a vertex of the GLB, is seen at s (R(q) p)_xy + t, x right, y down, from the corner of the
upright photograph. `camera_of_crop` is the same for the square that was searched, which runs from -1 to 1. With
perspective, where `inv_focal_of_crop` w > 0, that is divided by 1 + w s (R(q) p)_z there, and `camera` is null.

Radiance fields (method=nerfinv) need no camera: an encoder names the point of the object that each pixel shows, from
which follows where the camera was. Where that fails the status says so, and the search began at a side view.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export import model_of
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invkit.data import cutout
from invkit.data.dataset import Preparation, from_square
from invkit.data.folder import Folder, Photo, read_photo
from invkit.evaluation import viewpoints
from invkit.evaluation.evaluator import render
from invkit.export import write_glb
from invkit.features.silhouette import MaskRCNN
from invkit.features.weights import WEIGHTS
from invkit.geometry.camera import Camera
from invkit.images import composite, read_image, read_rgba, resize_antialias, resize_bilinear, to_uint8, write_png
from invkit.inversion import doubt
from invkit.inversion.inverter import Inverter, refuse_unusable
from invkit.inversion.records import DOUBTFUL, OK, RecordStore
from invkit.metrics.iou import iou
from invkit.protocols import Refinement, Renderer
from invkit.runtime.files import written_aside
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Estimate, Guess, Views
from nerfinv import export as field_export
from nerfinv.field import RadianceField
from nerfinv.init import EncoderInit

TILE, CAPTION, COLUMNS = 256, 22, 6
TURNS = (45.0, 90.0, 180.0, 270.0)
RED = (1.0, -1.0, -1.0)
NODES = 64
"""Along a side of the grid on which it is looked how far a radiance field reaches."""
HINT = "hint.png"
"""What the silhouette was made from: the box, or the mask before it was improved."""
FILL = 0.95
"""Of half a picture, how far an object that is turned reaches from its middle."""

Silhouette = Callable[[Float[Tensor, "3 H W"]], Float[Tensor, "1 H W"]]


@dataclass(frozen=True)
class Given:
    """What the command line says about one photograph; None is to be found out."""

    name: str
    image: Path
    mask: Path | None
    label: int | None
    camera: Sequence[float] | None
    box: Sequence[int | float] | None = None


@dataclass(frozen=True)
class Silhouetted:
    """A photograph, in [0, 1], and the silhouette that was found in it.

    Args:
        source: given, alpha, box or mask_rcnn, with +grabcut if it was improved.
        hint: the box as a mask, or the mask before it was improved; None where the silhouette is the mask.
    """

    rgb: Float[Tensor, "3 H W"]
    mask: Float[Tensor, "1 H W"]
    source: str
    hint: Float[Tensor, "1 H W"] | None


@dataclass(frozen=True)
class Refining:
    """How a result is refined after the search.

    Args:
        size: side of the photograph for it, pixels; None: as it was searched.
        preparation: as for the search.
    """

    refinement: Refinement
    size: int | None
    preparation: Preparation

    def __call__(self, inverter: Inverter, guess: Guess, views: Views, folder: Path) -> Guess:
        """The guess with details.

        Args:
            folder: the data set of the photograph.
        """
        if self.size is not None:
            views = Folder(folder, size=self.size, preparation=self.preparation)[0].to(views.rgb.device)
        return replace(guess, details=self.refinement(inverter.prior, inverter.renderer, guess, views))


@main(config_name="reconstruct")
def reconstruct(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        photographs = given(run.config)
        inverter = instantiate_trusted(cfg.inverter, prior=instantiate_trusted(cfg.prior).to(run.device))
        around, preparation = instantiate_trusted(cfg.around), instantiate_trusted(cfg.preparation)
        refining = (
            Refining(instantiate_trusted(cfg.refine), cfg.refine_size, preparation) if cfg.get("refine") else None
        )
        store = RecordStore(run.dir / "records")
        results = {}
        for photograph in photographs:
            folder = run.dir / photograph.name
            try:
                found = silhouetted(photograph, silhouettes(cfg.category), improve=cfg.mask_refine is not None)
                size = run.config["data"]["size"]
                views = prepared(photograph, found, folder / "input", size, preparation).to(run.device)
                search = beginning_with(inverter, first_guesses(inverter.init, around, photograph))
                result = reconstructed(search, views, photograph, folder, store, cfg.resolution, cfg.largest, refining)
                result = {**judged(result, photograph, found, doubt.Thresholds(**cfg.doubt)), "mask_from": found.source}
            except (ValueError, OSError) as error:
                result = {"image": str(photograph.image), "status": str(error)}
                store.write_failure(photograph.name, 0, str(error))
            write_json(folder / "result.json", result)
            results[photograph.name] = result
            run.log.message(f"{photograph.name}: {summary(result, folder)}")
        run.result({"images": results})
        if not any(result["status"] in (OK, DOUBTFUL) for result in results.values()):
            raise SystemExit(2)


def given(config: dict[str, Any]) -> list[Given]:
    """The photographs of a command, each with a name of its own.

    Raises:
        ValueError: there are more masks, boxes, labels or cameras than images, or fewer; a label is no number or a box
            none; or both mask and box are given.
    """
    images = config["image"] if isinstance(config["image"], list) else [config["image"]]
    if not images:
        raise ValueError("image=[] names no photograph")
    count, masks, labels, cameras = len(images), config["mask"], config["label"], config["camera"]
    if not isinstance(labels, list):
        labels = [labels] * count
    if not isinstance(masks, list):
        masks = [masks] if masks is not None else [None] * count
    if cameras is None or not any(isinstance(camera, list) or camera is None for camera in cameras):
        cameras = [cameras] if cameras is not None else [None] * count
    boxes = config["box"]
    if not isinstance(boxes, list) or not any(isinstance(box, list) or box is None for box in boxes):
        boxes = [boxes] if boxes is not None else [None] * count
    for name, values in (("mask", masks), ("label", labels), ("camera", cameras), ("box", boxes)):
        if len(values) != count:
            raise ValueError(f"{name}: there are {count} images and {len(values)} of these; null stands for none")
    for label in labels:
        if not (label is None or (isinstance(label, int) and label >= 0)):
            raise ValueError(f"label={label} is no class: give its number, from 0")
    for image, mask, box in zip(images, masks, boxes, strict=True):
        if box is not None:
            cutout.refuse_malformed(box)
        if box is not None and mask is not None:
            raise ValueError(f"both box and mask are given for {image}: leave one away (mask_refine improves a mask)")
    if config["mask_refine"] not in (None, "grabcut"):
        raise ValueError(f"mask_refine={config['mask_refine']}: there is grabcut, and null")
    paths = [Path(image).expanduser() for image in images]
    masks = [None if mask is None else Path(mask).expanduser() for mask in masks]
    return [Given(*each) for each in zip(names(paths), paths, masks, labels, cameras, boxes, strict=True)]


def names(paths: Sequence[Path]) -> list[str]:
    """The files' names without their suffixes; numbered where these are the same, or that of a folder of the run."""
    found: list[str] = []
    for path in paths:
        taken, number, name = {*found, "records", "checkpoints"}, 1, path.stem
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}"
        found.append(name)
    return found


# ---- Photograph to views ---------------------------------------------------------------------------------------------


@cache
def silhouettes(category: str) -> Silhouette:
    """Mask R-CNN, read when the first photograph needs it."""
    network = cache(lambda: MaskRCNN(category))
    return lambda image: network()(image)


def silhouetted(photograph: Given, silhouette: Silhouette, *, improve: bool = False) -> Silhouetted:
    """A photograph with its silhouette: what was given, or alpha, or what is in the box, or what Mask R-CNN finds.

    Args:
        improve: lay the outline where the colors change.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or there is no silhouette.
    """
    image, hint = photograph.image, None
    rgba = read_rgba(image, upright=True)
    if photograph.box is not None:
        source, rgb = "box", composite(rgba[None, :3], rgba[None, 3:])[0]
        try:
            hint = cutout.filled(photograph.box, rgb)
            mask = cutout.cut_out(rgb, photograph.box)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    elif photograph.mask is None and bool((rgba[3] == 1).all()):
        source, rgb = "mask_rcnn", rgba[:3]
        try:
            mask = silhouette(rgb)
        except FileNotFoundError as error:
            raise ValueError(
                f"{image} has no transparency: give mask=FILE, white on the object, or box=[left,top,right,bottom] "
                f"around it; or get the weights of the network that would find it, {WEIGHTS['mask_rcnn'].url} (python "
                "scripts/doctor.py says where they belong)"
            ) from error
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    else:
        source = "alpha" if photograph.mask is None else "given"
        rgb, mask = read_photo(Photo(photograph.name, image, photograph.mask, None, None))
    if improve:
        hint = mask if hint is None else hint
        try:
            source, mask = f"{source}+grabcut", cutout.improved(rgb, mask)
        except ValueError as error:
            raise ValueError(f"{image}: {error}; leave mask_refine away") from error
    return Silhouetted(rgb, mask, source, hint)


def prepared(
    photograph: Given, found: Silhouetted, folder: Path, size: int, preparation: Preparation = Preparation()
) -> Views:
    """The crop that is searched, from `folder`, where the photograph and its silhouette are laid down for it.

    Raises:
        ValueError: camera or label are impossible.
    """
    write_png(folder / "photograph.png", 2 * found.rgb - 1)
    write_png(folder / "silhouette.png", 2 * found.mask.expand(3, -1, -1) - 1)
    if found.hint is None:
        (folder / HINT).unlink(missing_ok=True)
    else:
        write_png(folder / HINT, 2 * found.hint.expand(3, -1, -1) - 1)
    row = {"image": "photograph.png", "mask": "silhouette.png", "label": photograph.label, "camera": photograph.camera}
    write_json(folder / "manifest.json", {"images": [row]})
    return Folder(folder, size=size, preparation=preparation)[0]


# ---- Views to mesh ---------------------------------------------------------------------------------------------------


def first_guesses(own: Any, around: Any, photograph: Given) -> Any:
    """Where the search for a photograph begins.

    Args:
        own: what the inverter has: it takes the camera as given, or is an encoder that finds one.
        around: what takes its place where no camera is given; None where `own` finds it.
    """
    if photograph.camera is None:
        return own if around is None else around
    if isinstance(own, EncoderInit):
        own = copy.copy(own)
        own.poses = None
    return own


def beginning_with(inverter: Inverter, init: Any) -> Inverter:
    """The same search from other first guesses."""
    other = copy.copy(inverter)
    other.init = init
    return other


def reconstructed(
    inverter: Inverter,
    views: Views,
    photograph: Given,
    folder: Path,
    store: RecordStore,
    resolution: int,
    largest: bool,
    refining: Refining | None = None,
) -> dict[str, Any]:
    """What result.json says of a photograph; mesh, panel, record and its details are written.

    Args:
        resolution: of the grid on which the surface of a radiance field is found. One that has none has no mesh.
        largest: leave out of its mesh what floats beside the largest piece.

    Raises:
        ValueError: it cannot be searched.
    """
    began = time.monotonic()
    refuse_unusable(views)
    targets = inverter.objective.targets(views)
    first, tried = inverter.begin(targets)
    estimate, trace = inverter.refine(tried, targets)
    trace = replace(trace, start=first)
    (record,) = store.write([photograph.name], [0], estimate, trace)
    final = estimate
    if refining is not None:
        found = refining(inverter, estimate.guess.detach(), views, folder / "input")
        store.write_details(photograph.name, refining.refinement.name, found.details)
        final = render(found, inverter.prior, inverter.renderer)
    seconds = time.monotonic() - began
    mesh, why_none = folder / f"{photograph.name}.glb", None
    try:
        write_glb(mesh, model_of(final.scene, photograph.name, resolution, largest))
    except field_export.NoSurface as error:
        mesh.unlink(missing_ok=True)
        why_none = str(error)
    before = render(first, inverter.prior, inverter.renderer)
    steps = {"first guess": before}
    if tried is not first:
        steps["after trial"] = render(tried, inverter.prior, inverter.renderer)
    steps["result"] = estimate
    if final is not estimate:
        steps["refined"] = final
    write_png(folder / "panel.png", panel(folder / "input", views, steps, inverter))
    perspective = estimate.camera.inv_focal.item()
    return {
        "image": str(photograph.image),
        "status": record.status,
        "iou_before": iou(before.image.mask, views.mask).item(),
        "iou_after": trace.iou[0, -1].item(),
        "label": None if estimate.label is None else estimate.label.item(),
        "label_given": photograph.label is not None,
        "camera": None if perspective else in_photograph(estimate.camera, folder / "input"),
        "camera_of_crop": estimate.camera.to_cmr()[0].tolist(),
        "inv_focal_of_crop": perspective,
        "camera_given": photograph.camera is not None,
        "refined": None if refining is None else refining.refinement.name,
        "objective": {name: finite_or_none(values[0, -1].item()) for name, values in trace.terms.items()},
        "seconds": seconds,
        "mesh": None if why_none else str(mesh),
        "why_no_mesh": why_none,
    }


def judged(
    result: dict[str, Any], photograph: Given, found: Silhouetted, thresholds: doubt.Thresholds
) -> dict[str, Any]:
    """The result with its doubts, in words, and DOUBTFUL for OK where there are any."""
    hinted = found.hint is not None and photograph.box is None
    reasons = doubt.doubts_about_mask(found.hint if hinted else found.mask, thresholds)
    reasons += doubt.doubts_about_search(result["iou_after"], thresholds)
    status = DOUBTFUL if reasons and result["status"] == OK else result["status"]
    return {**result, "status": status, "doubts": reasons}


def in_photograph(camera: Camera, folder: Path) -> list[float]:
    """A camera of the crop as [s, tx, ty, qw, qx, qy, qz] in pixels of the photograph.

    Args:
        folder: the data set of the photograph.
    """
    return from_square(camera.to("cpu", dtype=torch.float64), Folder(folder).square(0)).to_cmr()[0].tolist()


def finite_or_none(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def summary(result: dict[str, Any], folder: Path) -> str:
    if "mesh" not in result:
        return result["status"]
    told = f"IoU {result['iou_before']:.2f} before, {result['iou_after']:.2f} after, {result['seconds']:.0f} s"
    if result["why_no_mesh"]:
        told += f", no mesh ({result['why_no_mesh']})"
    return "\n  ".join([f"{result['status']}, {told}, see {folder / 'panel.png'}", *result["doubts"]])


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n")


# ---- Panel -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def panel(folder: Path, views: Views, steps: dict[str, Estimate], inverter: Inverter) -> UInt8[Tensor, "H W 3"]:
    """What the network saw at each step, with words on it: photograph, outline, crop, guesses, result, other sides.

    Where the silhouette was cut out or improved, also the box or mask it was made from; of radiance fields also what
    the encoder took the pixels for, and the normals of the result.

    Args:
        folder: the data set of the photograph.
        steps: what was found at each step by its name, the last of which is shown from other sides too.
    """
    rgb, mask = read_photo(Photo("", folder / "photograph.png", folder / "silhouette.png", None, None))
    whole = Preparation(resample=resize_antialias, crop_padding=None, mask_threshold=None)
    photo, outline = whole.cut(rgb, mask, whole.square((), *rgb.shape[1:]), TILE)
    tiles = {"photograph": photo}
    if (folder / HINT).is_file():
        hint = read_image(folder / HINT)[:1]
        tiles["box or mask given"] = outlined(photo, whole.cut(rgb, hint, whole.square((), *rgb.shape[1:]), TILE)[1])
    tiles["silhouette"] = outlined(photo, outline)
    tiles["crop"] = composite(views.rgb, views.mask).cpu()
    found = list(steps.values())[-1]
    if isinstance(inverter.init, EncoderInit):
        tiles["canonical map"] = canonical_map(inverter.init, views, found.scene.half_side).cpu()
    views = views.to("cpu")
    for name, estimate in steps.items():
        image = estimate.image.to("cpu")
        overlap = iou(image.mask, views.mask).item()
        tiles[f"{name}, IoU {overlap:.2f}"] = outlined(image.over(1.0), views.mask)
    if isinstance(found.scene, RadianceField):
        image = inverter.renderer(found.scene, found.camera, extras=frozenset({"normals"}))
        tiles["normals"] = replace(image, rgb=image.normals, background=0.0).over(1.0).cpu()
    for degrees, side in zip(TURNS, sides(found, inverter.renderer), strict=True):
        tiles[f"turned by {degrees:.0f} degrees"] = side[None]
    return captioned(tiles)


def sides(found: Estimate, renderer: Renderer) -> Float[Tensor, "K 3 H W"]:
    """The object turned about its own up axis, on white, as large as it fits; what floats beside it may be cut off."""
    scene = found.scene.centered().repeat(len(TURNS))
    camera = viewpoints.orbit(found.camera, torch.tensor(TURNS))
    reach = camera.project(outermost(scene))[..., :2].abs().max()
    image = renderer(scene, replace(camera, scale=FILL * camera.scale / reach))
    return image.over(1.0).cpu()


def outermost(scene: Any) -> Float[Tensor, "B P 3"]:
    """Points of each scene beyond which there is nothing: vertices, or points on the surface of a field.

    Args:
        scene: the same one several times. A field without a surface reaches to the corners of its box.
    """
    if not isinstance(scene, RadianceField):
        return scene.vertices
    try:
        surface = field_export.surface(field_export.grid_distances(scene[0], NODES), scene.half_side, "")
        points, _ = field_export.largest_piece(*surface)
    except field_export.NoSurface:
        points = scene.half_side * np.array(list(product((-1, 1), repeat=3)))
    return torch.from_numpy(points).to(scene.planes).expand(len(scene), -1, -1)


def canonical_map(init: EncoderInit, views: Views, half_side: float) -> Float[Tensor, "1 3 H W"]:
    """What the encoder sees: the place on the object as a color, over white by how sure it is of the object."""
    seen = init.encoder(composite(views.rgb, views.mask, init.background))
    return composite((seen.coords / half_side).clamp(-1, 1), seen.mask)


def outlined(image: Float[Tensor, "1 3 H W"], mask: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "1 3 T T"]:
    """The picture at the size of a tile, with a red line around the mask."""
    image, mask = resize_bilinear(image, TILE), (resize_bilinear(mask, TILE) > 0.5).to(mask)
    edge = torch.nn.functional.max_pool2d(mask, 3, stride=1, padding=1) - mask
    return torch.where(edge > 0, image.new_tensor(RED)[None, :, None, None], image)


def captioned(tiles: dict[str, Float[Tensor, "1 3 _ _"]]) -> UInt8[Tensor, "H W 3"]:
    """The pictures in rows, each below its name."""
    rows = math.ceil(len(tiles) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (name, tile) in enumerate(tiles.items()):
        left, top = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        draw.text((left + 4, top + 5), f"{number + 1}  {name}", fill="black", font=font)
        pixels = to_uint8(resize_bilinear(tile.float(), TILE))[0].numpy()
        sheet.paste(Image.fromarray(pixels), (left, top + CAPTION))
    return torch.from_numpy(np.array(sheet))


if __name__ == "__main__":
    reconstruct()

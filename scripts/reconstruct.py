"""Photographs of your own to meshes: silhouette, crop, camera, class, inversion, GLB.

    python scripts/reconstruct.py image=robin.jpg mask=robin_mask.png
    python scripts/reconstruct.py image=robin.png                                # its alpha is the silhouette
    python scripts/reconstruct.py image=robin.jpg box=[120,80,560,430]           # or it is cut out of a box
    python scripts/reconstruct.py image=robin.jpg mask=robin_mask.png mask_refine=grabcut     # a mask drawn roughly
    python scripts/reconstruct.py image=robin.png method=nerfinv
    python scripts/reconstruct.py image=[a.jpg,b.jpg] mask=[a.png,b.png] experiment=meshinv_invert_cub label=3

For each photograph, in runs/reconstruct/<method>/<its name>: <its name>.glb, panel.png with the input and the result of
each step, result.json, and input/, a data set of this one photograph. Beside these folders, index.html is a page of all
photographs of the method, with models that turn; result.json has all of them too; and the records lie in records/, so
scripts/export.py makes turntables (inversion=runs/reconstruct/meshinv). A photograph that cannot be used does not stop
the others: its result.json says why. The exit status is 2 if none could be used.

In result.json, `mask_from` says where the silhouette came from: given, alpha, box or mask_rcnn, with +grabcut if it was
improved. The status is `doubtful` if there are reasons not to believe the result (`doubts`): a mask that does not look
like one, or a silhouette that could not be matched.

In result.json, `camera` is [s, tx, ty, qw, qx, qy, qz] in pixels of the photograph, as camera=... takes it: a point p
of the object, (x, -z, y) of a vertex of the GLB, is seen at s (R(q) p)_xy + t, x right, y down, from the corner of the
upright photograph. `camera_of_crop` is the same for the square that was searched, which runs from -1 to 1. With
perspective, where `inv_focal_of_crop` w > 0, that is divided by 1 + w s (R(q) p)_z there, and `camera` is null.

Radiance fields (method=nerfinv) need no camera: an encoder names the point of the object that each pixel shows, from
which follows where the camera was. Where that fails the status says so, and the search began at a side view.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from invkit.data import cutout
from invkit.evaluation.gallery import Gallery, write_gallery
from invkit.evaluation.page import TITLES, Method
from invkit.images import write_png
from invkit.inversion.records import DOUBTFUL, OK, RecordStore
from invkit.photographs.reconstruction import Reconstruction
from invkit.photographs.silhouette import Photograph
from invkit.protocols import NoSurface
from invkit.reconstruction import Reconstructor
from invkit.runtime.files import written_aside
from invkit.runtime.run import LAST_CONFIG, Run, main
from invkit.types import Views


@dataclass(frozen=True)
class Given:
    """What the command line says about one photograph; None is to be found out."""

    name: str
    image: Path
    mask: Path | None
    label: int | None
    camera: Sequence[float] | None
    box: Sequence[int | float] | None = None


@main(config_name="reconstruct")
def reconstruct(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        photographs = given(run.config)
        reconstructor = Reconstructor.of(run.config, run.device)
        store = RecordStore(run.dir / "records", refined=cfg.get("refine") is not None)
        results, searched = {}, {}
        for each in photographs:
            folder = run.dir / each.name
            try:
                improve = cfg.mask_refine is not None
                photograph = reconstructor.photograph(each.image, each.mask, each.box, improve=improve)
                lay_down(photograph, each, folder / "input")
                found = reconstructor.reconstruct(photograph, label=each.label, camera=each.camera)
                result = {"image": str(each.image), **written(found, each.name, folder, store)}
                searched[each.name] = found.views
            except (ValueError, OSError) as error:
                result = {"image": str(each.image), "status": str(error)}
                store.write_failure(each.name, 0, str(error))
            write_json(folder / "result.json", result)
            results[each.name] = result
            run.log.message(f"{each.name}: {summary(result, folder)}")
        run.result({"images": {**earlier(run.dir / "result.json"), **results}})
        if cfg.page:
            run.log.message(f"see {show(cfg, reconstructor, store, results, searched, run)}")
        if not any(result["status"] in (OK, DOUBTFUL) for result in results.values()):
            raise SystemExit(2)


def show(
    cfg: DictConfig,
    reconstructor: Reconstructor,
    store: RecordStore,
    results: Mapping[str, Mapping[str, Any]],
    searched: Mapping[str, Views],
    run: Run,
) -> Path:
    """Write the page of a method's folder, or add these photographs to it."""
    key = run.config["prior"]["_target_"].partition(".")[0]
    method = Method(key, TITLES[key], (run.dir / LAST_CONFIG).read_text())
    tools = reconstructor.tools
    gallery = Gallery(store, tools.inverter.prior, tools.renderer(cfg.tile), method, device=run.device)
    models = {name: Path(result["mesh"]) for name, result in results.items() if result.get("mesh")}
    return write_gallery(
        run.dir,
        gallery,
        results,
        searched.__getitem__,
        title="Photographs to 3D models",
        models=models,
        keep=True,
        single_file=cfg.single_file,
    )


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


def lay_down(photograph: Photograph, said: Given, folder: Path) -> None:
    """Write a photograph as a data set of its own."""
    write_png(folder / "photograph.png", 2 * photograph.rgb - 1)
    write_png(folder / "silhouette.png", 2 * photograph.mask.expand(3, -1, -1) - 1)
    if photograph.hint is None:
        (folder / "hint.png").unlink(missing_ok=True)
    else:
        write_png(folder / "hint.png", 2 * photograph.hint.expand(3, -1, -1) - 1)
    row = {"image": "photograph.png", "mask": "silhouette.png", "label": said.label, "camera": said.camera}
    write_json(folder / "manifest.json", {"images": [row]})


def written(found: Reconstruction, name: str, folder: Path, store: RecordStore) -> dict[str, Any]:
    """What result.json says of a photograph; mesh, panel, record and its details are written."""
    store.write([name], [0], found.searched, found.trace)
    if found.refined is not None:
        store.write_details(name, found.tools.refinement.name, found.refined.details)
    mesh, why_none = folder / f"{name}.glb", None
    try:
        found.write_glb(mesh)
    except NoSurface as error:
        mesh.unlink(missing_ok=True)
        why_none = str(error)
    write_png(folder / "panel.png", found.panel())
    return {**found.numbers(), "mesh": None if why_none else str(mesh), "why_no_mesh": why_none}


def earlier(path: Path) -> dict[str, Any]:
    """The results of other commands in the same folder; none where the file cannot be read."""
    try:
        return dict(json.loads(path.read_text())["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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


if __name__ == "__main__":
    reconstruct()

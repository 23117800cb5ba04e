"""Turn records of an inversion into files: models (GLB, OBJ, PLY) and turntables (GIF, MP4).

    python scripts/export.py experiment=meshinv_invert_synthetic
    python scripts/export.py experiment=meshinv_invert_synthetic inversion=/scratch/my_run limit=8 obj=true turntable=36

Textured meshes become GLB and, with obj=true, OBJ; radiance fields GLB and, with ply=true, PLY, both with vertex colors
(marching cubes on a grid of `resolution` nodes along a side). Files go to <inversion>/meshes, named after the images;
another export with other settings adds its own. Images that could not be searched, and fields without a surface, are
passed over and named. Where the inversion has a page (<inversion>/index.html), the GLB files are on it then, and turn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from trimesh import Trimesh

from invkit.evaluation.page import read
from invkit.evaluation.viewer import write_page
from invkit.export import turntable, write_gif, write_glb, write_mp4, write_ply
from invkit.inversion.records import RecordStore
from invkit.protocols import scene_of
from invkit.runtime import dist
from invkit.runtime.run import Run, instantiate_trusted, main
from meshinv.export import models, write_obj
from nerfinv import export as field_export
from nerfinv.field import RadianceField


@main(config_name="export")
def export(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = instantiate_trusted(cfg.inverter.renderer, size=cfg.turntable_size)
        store = RecordStore(Path(cfg.inversion) / "records", refined=cfg.refined)
        names = store.names()[: cfg.limit] if cfg.names is None else list(cfg.names)
        if not names:
            raise ValueError(
                f"there are no records in {store.dir}; run scripts/invert.py first, or give inversion=FOLDER"
            )
        here = run.share(range(len(names)))
        for index in run.progress(here, total=len(here)):
            name = names[index]
            record = store.read(name)
            if record.found is None:
                run.log.message(f"{name}: nothing to export: {record.status}")
                continue
            path = stem_of(name, run.dir)
            found = record.found.to(run.device)
            with torch.no_grad():
                scene = scene_of(prior, found)
            is_field = isinstance(scene, RadianceField)
            if is_field and cfg.obj:
                raise ValueError("obj=true: radiance fields have no texture; ply=true writes their vertex colors")
            if not is_field and cfg.ply:
                raise ValueError("ply=true: textured meshes have no vertex colors; obj=true writes their texture")
            if cfg.glb or cfg.obj or cfg.ply:
                try:
                    model = model_of(scene, name, cfg.resolution, cfg.largest)
                except field_export.NoSurface as error:
                    run.log.message(f"nothing to export: {error}")
                    continue
                if cfg.glb:
                    write_glb(beside(path, ".glb"), model)
                if cfg.obj:
                    write_obj(beside(path, ".obj"), model)
                if cfg.ply:
                    write_ply(beside(path, ".ply"), model)
            if cfg.turntable:
                frames = turntable(scene, found.camera, renderer, cfg.turntable)
                write_gif(beside(path, ".gif"), frames)
                if cfg.mp4:
                    write_mp4(beside(path, ".mp4"), frames)
        dist.barrier()
        if cfg.page and run.rank == 0:
            show(Path(cfg.inversion), run.dir, names, single_file=cfg.single_file)


def show(folder: Path, meshes: Path, names: Sequence[str], *, single_file: bool) -> None:
    """Put the GLB files of these images on the page of a folder, if it has one and they lie below it."""
    page = read(folder)
    if page is None or not meshes.resolve().is_relative_to(folder.resolve()):
        return
    below = folder / meshes.resolve().relative_to(folder.resolve())
    models = {name: beside(stem_of(name, below), ".glb") for name in names}
    models = {name: model for name, model in models.items() if model.is_file()}
    write_page(page.with_models(folder, models), folder, single_file=single_file)


def model_of(scene: Any, name: str, resolution: int, largest: bool) -> Trimesh:
    """The only scene of a batch, of either method, as a file has it.

    Args:
        resolution, largest: of radiance fields, see `nerfinv.export.models`.

    Raises:
        NoSurface: it is nowhere solid.
    """
    is_field = isinstance(scene, RadianceField)
    (model,) = field_export.models(scene, [name], resolution, largest=largest) if is_field else models(scene)
    return model


def stem_of(name: str, folder: Path) -> Path:
    """Where the files of an image are, but for their suffixes: named after its record."""
    return folder / RecordStore(folder).path(name).stem


def beside(path: Path, suffix: str) -> Path:
    """The path with a suffix added; names of images may have dots of their own."""
    return path.with_name(path.name + suffix)


if __name__ == "__main__":
    export()

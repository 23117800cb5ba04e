"""Turn records of an inversion into files: textured meshes (GLB, OBJ) and turntables (GIF, MP4).

    python scripts/export.py experiment=meshinv_invert_synthetic
    python scripts/export.py experiment=meshinv_invert_synthetic inversion=/scratch/my_run limit=8 obj=true turntable=36

Files go to <inversion>/meshes, named after the images; another export with other settings adds its own. Images that
could not be searched are passed over and named.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from invkit.records import RecordStore
from invkit.run import Run, instantiate_trusted, main
from meshinv.export import models, turntable, write_gif, write_glb, write_mp4, write_obj


@main(config_name="export")
def export(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = instantiate_trusted(cfg.inverter.renderer)
        store = RecordStore(Path(cfg.inversion) / "records")
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
            path = run.dir / store.path(name).stem
            found = record.found.to(run.device)
            with torch.no_grad():
                mesh = prior.decode(found.latent, found.label)
            (model,) = models(mesh)
            if cfg.glb:
                write_glb(beside(path, ".glb"), model)
            if cfg.obj:
                write_obj(beside(path, ".obj"), model)
            if cfg.turntable:
                frames = turntable(mesh, found.camera, renderer, cfg.turntable)
                write_gif(beside(path, ".gif"), frames)
                if cfg.mp4:
                    write_mp4(beside(path, ".mp4"), frames)


def beside(path: Path, suffix: str) -> Path:
    """The path with a suffix added; names of images may have dots of their own."""
    return path.with_name(path.name + suffix)


if __name__ == "__main__":
    export()

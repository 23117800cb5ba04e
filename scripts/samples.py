"""Draw samples of a trained generator of radiance fields: pictures, exchanged palettes, a film, meshes.

    python scripts/samples.py experiment=nerfinv_generator_synthetic_cars
    python scripts/samples.py experiment=nerfinv_generator_cub count=8 frames=240 mp4=true meshes=8

In <training>/samples:

    samples.png         a row for each object: colors, normals, depth, regions of the palette
    sides.png           a row for each object: from all sides
    transfers.png       a row for each shape, a column for each palette
    interpolation.gif   from object to object and back to the first, turning once (.mp4 with mp4=true)
    sample_0.glb ...    meshes with vertex colors

The weights are the running average of the newest checkpoint; prior.generator.path=FILE takes another.
"""

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from invkit.evaluation.viewpoints import orbit
from invkit.export import write_gif, write_glb, write_mp4
from invkit.geometry.camera import Camera
from invkit.images import grid, to_uint8, write_png
from invkit.runtime.run import Run, instantiate_trusted, main
from nerfinv.export import NoSurface, model
from nerfinv.manipulation import all_pairs, path
from nerfinv.prior import FieldPrior
from nerfinv.renderers.volume import VolumeRenderer
from nerfinv.tasks.pictures import common, on_white, seen_from, sheet


@main(config_name="samples")
@torch.no_grad()
def samples(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        if run.rank != 0:
            return
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = on_white(instantiate_trusted(cfg.task.renderer), cfg.size)
        camera = view(cfg).to(run.device)
        styles = prior.sample(cfg.count, torch.Generator().manual_seed(run.seed))
        field = prior.decode(styles, None)
        write_png(run.dir / "samples.png", sheet(field, camera.repeat(cfg.count), renderer).cpu())

        sides = orbit(camera, torch.arange(cfg.sides) * (360 / cfg.sides))
        pictures = renderer(field.repeat(cfg.sides), Camera.cat([sides] * cfg.count)).rgb
        write_png(run.dir / "sides.png", grid(pictures, columns=cfg.sides).cpu())

        if field.palette is not None:
            exchanged = all_pairs(field)
            pictures = renderer(exchanged, camera.repeat(len(exchanged))).rgb
            write_png(run.dir / "transfers.png", grid(pictures, columns=cfg.count).cpu())

        if cfg.frames:
            frames = interpolation(prior, styles, camera, renderer, cfg.frames)
            write_gif(run.dir / "interpolation.gif", frames, frames_per_second=24.0)
            if cfg.mp4:
                write_mp4(run.dir / "interpolation.mp4", frames, frames_per_second=24.0)

        for index in range(min(cfg.meshes, cfg.count)):
            try:
                write_glb(run.dir / f"sample_{index}.glb", model(field[index], f"sample {index}", cfg.resolution))
            except NoSurface as error:
                run.log.message(f"no mesh of {error}")
        run.log.message(f"{cfg.count} objects in {run.dir}")


def view(cfg: DictConfig) -> Camera:
    """The camera of all pictures: as far away as the data's, or as `camera` says."""
    place = float(cfg.elevation), float(cfg.azimuth)
    if cfg.camera is not None:
        scale, inv_focal = map(float, cfg.camera)
        return seen_from(*place, scale=scale, inv_focal=inv_focal)
    data = instantiate_trusted(cfg.task.data)
    return common(data.cameras(), *place)


def interpolation(
    prior: FieldPrior, stops: Float[Tensor, "K W S"], camera: Camera, renderer: VolumeRenderer, count: int
) -> UInt8[Tensor, "N H W 3"]:
    """From each object to the next and back to the first, while they turn once."""
    styles = path(stops, count)
    cameras = orbit(camera, torch.arange(count) * (360 / count))
    return torch.cat(
        [to_uint8(renderer(prior.decode(styles[i : i + 1], None), cameras[i]).rgb).cpu() for i in range(count)]
    )


if __name__ == "__main__":
    samples()

"""Draw samples of a trained generator of either method: pictures, exchanged colors, a film, meshes; and measure them.

    python scripts/samples.py experiment=nerfinv_generator_synthetic_cars
    python scripts/samples.py experiment=nerfinv_generator_cub count=8 frames=240 mp4=true meshes=8
    python scripts/samples.py experiment=meshinv_pretrain_cub measure=true task.quality.data.split=train

In <training>/samples:

    samples.png         a row for each object: colors, normals, depth, regions of the palette; of meshes colors,
                        normals and the texture
    sides.png           a row for each object: from all sides
    transfers.png       a row for each shape, a column for each palette or texture
    interpolation.gif   from object to object and back to the first, turning once (.mp4 with mp4=true)
    sample_0.glb ...    meshes with vertex colors or textures
    result.json         with measure=true: KID and FID of samples as while it is trained (task.quality). Of meshes whose
                        pseudo ground truth is there also with generated textures or generated shapes alone

The weights are the running average of the newest checkpoint; prior.generator.path=FILE takes another.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from invkit.evaluation.gallery import normals
from invkit.evaluation.viewpoints import azimuth_ring, orbit
from invkit.export import write_gif, write_glb, write_mp4
from invkit.geometry.camera import Camera
from invkit.images import grid, resize_bilinear, to_uint8, write_png
from invkit.runtime.run import Run, instantiate_trusted, main
from meshinv.export import models, with_texture_of
from meshinv.generator import Generator as MeshGenerator
from meshinv.prior import truncated_normal
from meshinv.tasks.gan import GanTask
from meshinv.tasks.pictures import from_all_sides
from nerfinv.export import NoSurface, model
from nerfinv.generator.generator import Generator as FieldGenerator
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
        of_meshes = cfg.task["_target_"].startswith("meshinv.")
        check_generator(cfg, MeshGenerator if of_meshes else FieldGenerator)
        if cfg.measure:
            run.result((distances_of_meshes if of_meshes else distances_of_fields)(cfg, run))
        (draw_meshes if of_meshes else draw_fields)(cfg, run)
        run.log.message(f"{cfg.count} objects in {run.dir}")


# ---- Radiance fields -------------------------------------------------------------------------------------------------


def draw_fields(cfg: DictConfig, run: Run) -> None:
    """Everything but the numbers."""
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
        film(frames, cfg, run)

    for index in range(min(cfg.meshes, cfg.count)):
        try:
            write_glb(run.dir / f"sample_{index}.glb", model(field[index], f"sample {index}", cfg.resolution))
        except NoSurface as error:
            run.log.message(f"no mesh of {error}")


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


def distances_of_fields(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """KID and FID of samples, as they are measured in training.

    Raises:
        ValueError: the experiment measures nothing.
    """
    prior = instantiate_trusted(cfg.prior).to(run.device)
    return {"full": quality_of(cfg).measure(prior.generator, run.device)}


# ---- Meshes ----------------------------------------------------------------------------------------------------------


def draw_meshes(cfg: DictConfig, run: Run) -> None:
    """Everything but the numbers. Pictures are from the side; the film turns about the upright axis."""
    prior = instantiate_trusted(cfg.mesh.prior).to(run.device)
    settings = {} if cfg.size is None else {"size": cfg.size}
    renderer = instantiate_trusted(cfg.task.renderer, **settings)
    rng = torch.Generator().manual_seed(run.seed)
    latents = truncated_normal((cfg.count, *prior.latent_shape), truncation(cfg), rng).to(run.device)
    label = torch.randint(prior.num_classes, (cfg.count,), generator=rng).to(run.device) if prior.num_classes else None
    mesh = prior.decode(latents, label)
    side = azimuth_ring(1).to(run.device)
    image = renderer(mesh.centered(), Camera.cat([side] * cfg.count), extras=frozenset({"normals"}))
    textures = resize_bilinear(mesh.texture, image.rgb.shape[-1])
    columns = torch.stack([image.over(1.0), normals(image), textures], dim=1).flatten(0, 1)
    write_png(run.dir / "samples.png", grid(columns, columns=3).cpu())
    write_png(
        run.dir / "sides.png", grid(from_all_sides(mesh, renderer, cfg.sides).flatten(0, 1), columns=cfg.sides).cpu()
    )
    places = torch.arange(cfg.count)
    pairs = with_texture_of(mesh[places.repeat_interleave(cfg.count)], mesh[places.repeat(cfg.count)])
    write_png(
        run.dir / "transfers.png", grid(from_all_sides(pairs, renderer, 1).flatten(0, 1), columns=cfg.count).cpu()
    )
    if cfg.frames:
        ring = azimuth_ring(cfg.frames).to(run.device)
        stops = path(latents, cfg.frames)
        # A class is no place between two others: that of the first object is kept.
        own = None if label is None else label[:1]
        frames = [
            to_uint8(renderer(prior.decode(stops[i : i + 1], own).centered(), ring[[i]]).over(1.0)).cpu()
            for i in range(cfg.frames)
        ]
        film(torch.cat(frames), cfg, run)
    for index, model_of_one in enumerate(models(mesh[: min(cfg.meshes, cfg.count)])):
        write_glb(run.dir / f"sample_{index}.glb", model_of_one)


def distances_of_meshes(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """ "full": KID and FID of samples, as they are measured in training; "texture" and "mesh" as `measure_parts`, or
    why these are not measured.

    Raises:
        ValueError: the experiment measures nothing.
    """
    prior = instantiate_trusted(cfg.mesh.prior).to(run.device)
    quality = quality_of(cfg)
    sampled = prior.generator, prior.template, truncation(cfg)
    found: dict[str, Any] = {"full": quality.measure(*sampled, run.device)}
    try:
        found |= quality.measure_parts(*sampled, instantiate_trusted(cfg.task.data), run.device)
    except (FileNotFoundError, ValueError) as error:
        run.log.message(f"textures and shapes alone are not measured: {error}")
        found["not_measured"] = {"texture": str(error), "mesh": str(error)}
    return found


def truncation(cfg: DictConfig) -> float:
    """The bound on latents: that of the training, if nothing else is wanted."""
    default = inspect.signature(GanTask).parameters["truncation"].default
    return cfg.task.get("truncation", default) if cfg.truncation is None else cfg.truncation


# ---- Both ------------------------------------------------------------------------------------------------------------


def check_generator(cfg: DictConfig, kind: type) -> None:
    """
    Raises:
        ValueError: the network is not of the experiment's method.
    """
    if not isinstance(instantiate_trusted(cfg.prior.generator), kind):
        raise ValueError(
            f"prior.generator.path={cfg.prior.generator.path} has no {kind.__module__}.{kind.__name__}, which the "
            "experiment trains: give a network of its method"
        )


def quality_of(cfg: DictConfig) -> Any:
    """What measures samples in training.

    Raises:
        ValueError: nothing does.
    """
    if cfg.task.get("quality") is None:
        raise ValueError("measure=true: the experiment has no task.quality; give one, such as quality@task.quality=...")
    return instantiate_trusted(cfg.task.quality)


def film(frames: UInt8[Tensor, "N H W 3"], cfg: DictConfig, run: Run) -> None:
    write_gif(run.dir / "interpolation.gif", frames, frames_per_second=24.0)
    if cfg.mp4:
        write_mp4(run.dir / "interpolation.mp4", frames, frames_per_second=24.0)


if __name__ == "__main__":
    samples()

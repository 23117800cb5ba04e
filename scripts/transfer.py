"""Exchange the colors of reconstructions: every shape in the texture, or in the palette, of every other.

    python scripts/transfer.py experiment=meshinv_invert_synthetic names=[bird_1,bird_2]
    python scripts/transfer.py experiment=nerfinv_invert_synthetic_birds names=[bird_1,bird_2]
    python scripts/transfer.py experiment=nerfinv_invert_synthetic_birds names=[bird_1,bird_2] slots=6

`names` are names of images in the inversion. In <inversion>/transfers: a picture (.png) with a row for each shape, seen
from its own camera, and a column for each texture or palette; and the meshes as <shape>_in_<texture>.glb. `slots` mixes
styles instead: so many of the last ones come from the other image (1 is the palette's, if there is one), which is all
that a generator without palettes offers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from trimesh import Trimesh

from invkit.evaluation.evaluator import render
from invkit.export import write_glb
from invkit.images import grid, write_png
from invkit.inversion.records import RecordStore
from invkit.protocols import Renderer, scene_of
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Estimate, Guess
from meshinv.export import models, transfers
from nerfinv.export import model
from nerfinv.field import RadianceField
from nerfinv.manipulation import all_pairs, styles_with_palettes_of
from nerfinv.prior import FieldPrior


@main(config_name="transfer")
def transfer(cfg: DictConfig) -> None:
    names = list(cfg.names)
    store = RecordStore(Path(cfg.inversion) / "records", refined=cfg.refined)
    check_names(names, store)
    with Run(cfg, frozen=False) as run:
        if run.rank != 0:
            return
        prior = instantiate_trusted(cfg.prior).to(run.device)
        renderer = instantiate_trusted(cfg.inverter.renderer)
        records = [store.read(name) for name in names]
        if failed := [f"{record.name}: {record.status}" for record in records if record.found is None]:
            raise ValueError(f"nothing to exchange: {'; '.join(failed)}")
        with torch.no_grad():
            found = Guess.cat([record.found for record in records]).to(run.device)
            of_fields = isinstance(prior, FieldPrior)
            if cfg.slots is not None and not of_fields:
                raise ValueError("slots: the latents of meshes are no styles; textures are exchanged whole")
            pairs = (
                colored(found, prior, renderer, cfg.slots)
                if of_fields
                else transfers(render(found, prior, renderer), renderer)
            )
        stems = [store.path(name).stem for name in names]
        cells = pairs.image.over(1.0)
        others = stems[1] if len(stems) == 2 else f"{len(stems) - 1}_others"  # a file name has an end
        write_png(run.dir / f"{stems[0]}+{others}.png", grid(cells, columns=len(names)).cpu())
        if cfg.glb:
            each = [(shape, texture) for shape in stems for texture in stems]
            made = field_models(pairs.scene, cfg.resolution) if of_fields else models(pairs.scene)
            for (shape, texture), model in zip(each, made, strict=True):
                write_glb(run.dir / f"{shape}_in_{texture}.glb", model)
        run.log.message(f"{len(pairs)} pairs of shape and color in {run.dir}")


def colored(found: Guess, prior: FieldPrior, renderer: Renderer, slots: int | None) -> Estimate:
    """All pairs of shape and palette of a batch, as `transfers`.

    Args:
        slots: last styles that come from the other image; None: its palette.

    Raises:
        ValueError: there are no palettes; one style serves all slots, or there are not more slots than that.
    """
    count = len(found)
    shape, color = torch.arange(count).repeat_interleave(count), torch.arange(count).repeat(count)
    own = found[shape]
    if slots is None:
        scene = all_pairs(scene_of(prior, found))
    else:
        if found.latent.ndim != 3 or not 0 < slots < found.latent.shape[1]:
            raise ValueError(
                f"slots={slots}: the latents are {list(found.latent.shape[1:])}, styles for each slot are needed"
            )
        own = replace(own, latent=styles_with_palettes_of(own.latent, found.latent[color], palette_slots=slots))
        scene = scene_of(prior, own)
    return Estimate(own.latent, own.camera, scene, renderer(scene, own.camera), own.label)


def field_models(field: RadianceField, resolution: int) -> list[Trimesh]:
    """The mesh of each field."""
    return [model(field[index], f"pair {index}", resolution) for index in range(len(field))]


def check_names(names: Sequence[str], store: RecordStore) -> None:
    """
    Raises:
        ValueError: there are fewer than two names, one is there twice, or the inversion has no such image.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"names={list(names)}: give two different images or more")
    known = store.names()
    if not known:
        raise ValueError(f"there are no records in {store.dir}; run scripts/invert.py first, or give inversion=FOLDER")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names: {store.dir} has no image {', '.join(unknown)}; it has {', '.join(known[:4])}, ...")


if __name__ == "__main__":
    transfer()

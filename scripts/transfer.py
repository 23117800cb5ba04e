"""Exchange the textures of reconstructions: every shape in the texture of every other.

    python scripts/transfer.py experiment=meshinv_invert_synthetic names=[bird_1,bird_2]

`names` are names of images in the inversion. In <inversion>/transfers: a picture (.png) with a row for each shape, seen
from its own camera, and a column for each texture; and the meshes as <shape>_in_<texture>.glb.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from invkit.evaluation.evaluator import render
from invkit.export import write_glb
from invkit.images import grid, write_png
from invkit.inversion.records import RecordStore
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Guess
from meshinv.export import models, transfers


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
            pairs = transfers(render(found, prior, renderer), renderer)
        stems = [store.path(name).stem for name in names]
        cells = pairs.image.over(1.0)
        others = stems[1] if len(stems) == 2 else f"{len(stems) - 1}_others"  # a file name has an end
        write_png(run.dir / f"{stems[0]}+{others}.png", grid(cells, columns=len(names)).cpu())
        if cfg.glb:
            each = [(shape, texture) for shape in stems for texture in stems]
            for (shape, texture), model in zip(each, models(pairs.scene), strict=True):
                write_glb(run.dir / f"{shape}_in_{texture}.glb", model)
        run.log.message(f"{len(pairs)} pairs of shape and texture in {run.dir}")


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

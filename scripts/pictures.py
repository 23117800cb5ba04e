"""Make the pictures of README.md from what scripts/demo.py has left and the generators that ship.

    make pictures
    python scripts/pictures.py demo=runs/demo teaser=3

In docs/pictures: teaser.webp, a photograph of a painted bird and both reconstructions of it, which turn; samples.webp,
birds that the generators made up; refinement.webp, reconstructions before and after the photograph itself decides what
it shows; page.webp, the page of the demo, which needs a Chromium (without one that picture stays as it is).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from browser import chromium
from demo import overrides
from hydra import compose
from jaxtyping import Float
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invkit.evaluation import viewpoints
from invkit.evaluation.evaluator import render
from invkit.evaluation.gallery import turned
from invkit.images import composite, resize_bilinear, to_uint8
from invkit.inversion.records import RecordStore
from invkit.protocols import Prior, Renderer, scene_of
from invkit.runtime.files import written_aside
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Guess, Views

LABEL, GAP = 34, 10
"""Pixels: height of a label, and between pictures."""
INK = (28, 33, 40)
WINDOW = (1280, 800)
SECONDS_A_TURN = 4.0
QUALITY = 82


@main(config_name="pictures")
@torch.no_grad()
def pictures(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        demo, out = Path(cfg.demo), Path(cfg.out)
        if not (demo / "index.html").is_file():
            raise ValueError(f"demo: {demo} has no index.html; run scripts/demo.py first, or give demo=FOLDER")
        save(out / "samples.webp", [samples(cfg, run)])
        save(out / "refinement.webp", [refinement(cfg, demo, run)])
        save(out / "teaser.webp", teaser(cfg, demo, run))
        if chromium.found() is None:
            run.log.message(f"page.webp is left as it is: {chromium.INSTALL}")
        else:
            save(out / "page.webp", [page(demo / "index.html")])
        total = sum(path.stat().st_size for path in out.glob("*.webp"))
        run.log.message(f"see {out}, {total / 1e6:.2f} MB together")


class Reconstructions:
    """What a method of the demo has left."""

    def __init__(self, name: str, method: Mapping[str, Any], demo: Path, size: int) -> None:
        cfg = compose("invert", [*overrides(method, demo / "birds"), f"refine={method['refine']}"])
        self.title = method["title"]
        self.prior: Prior = instantiate_trusted(cfg.prior)
        self.renderer: Renderer = instantiate_trusted({**cfg.inverter.renderer, "size": size})
        # The photograph as it is refined with, which shows more of it.
        self.data = instantiate_trusted({**cfg.data, "size": size})
        self.store = RecordStore(demo / name / "records")

    def photograph(self, index: int) -> Views:
        """One of the demo's birds."""
        return self.data[index]

    def found(self, index: int) -> Guess:
        """What was found for it, with its details.

        Raises:
            ValueError: it could not be searched.
        """
        record = self.store.read(self.data.names[index])
        if record.found is None:
            raise ValueError(f"{record.name} cannot be shown: {record.status}; choose another bird")
        return record.found


def methods_of(cfg: DictConfig, demo: Path, size: int, run: Run) -> list[Reconstructions]:
    return [Reconstructions(name, method, demo, size) for name, method in run.config["methods"].items()]


def teaser(cfg: DictConfig, demo: Path, run: Run) -> list[Image.Image]:
    """Frames: the photograph, and both reconstructions turning once."""
    methods = methods_of(cfg, demo, cfg.panel, run)
    degrees = [index * 360 / cfg.frames for index in range(cfg.frames)]
    photograph = resize_bilinear(methods[0].photograph(cfg.teaser).rgb, cfg.panel)[0]
    turning = []
    for method in methods:
        found = method.found(cfg.teaser)
        turning.append(turned(scene_of(method.prior, found), found.camera, degrees, method.renderer))
    labels = ["one photograph", "textured mesh", "radiance field"]
    return [labelled([photograph, *(frames[index] for frames in turning)], labels) for index in range(cfg.frames)]


def refinement(cfg: DictConfig, demo: Path, run: Run) -> Image.Image:
    """Rows: the bird, and for both methods what the search found and what the photograph made of it."""
    methods, rows = methods_of(cfg, demo, cfg.panel, run), []
    for index in cfg.refined:
        own = methods[0].photograph(index)
        row = [resize_bilinear(composite(own.rgb, own.mask), cfg.panel)[0]]
        for method in methods:
            found = method.found(index)
            for guess in (replace(found, details=None), found):
                row.append(render(guess, method.prior, method.renderer).image.over(1.0)[0])
        rows.append(row)
    labels = ["photograph, cut out", "mesh, searched", "and refined", "field, searched", "and refined"]
    first, *others = [labelled(row, labels if number == 0 else None) for number, row in enumerate(rows)]
    return stacked([first, *others])


def samples(cfg: DictConfig, run: Run) -> Image.Image:
    """A row of birds that each generator made up."""
    rows = []
    for title, how in run.config["generators"].items():
        node = compose("invert", [f"experiment={how['experiment']}"])
        prior: Prior = instantiate_trusted(node.prior)
        renderer: Renderer = instantiate_trusted({**node.inverter.renderer, "size": cfg.sample})
        rng = torch.Generator().manual_seed(how["seed"])
        latents = prior.sample(cfg.samples, rng)
        label = torch.randint(prior.num_classes, (cfg.samples,), generator=rng) if prior.num_classes else None
        scene = prior.decode(latents, label)
        camera = viewpoints.azimuth_ring()[1].repeat(cfg.samples)  # a side, a little from the front
        rows.append(labelled(list(turned(scene, camera, [0.0], renderer)), [title]))
    return stacked(rows)


def page(index: Path) -> Image.Image:
    """What a browser shows of a page."""
    with chromium.Browser() as browser:
        browser.show(*WINDOW, scale=1.0)
        browser.open(index)
        browser.wait("document.querySelectorAll('.stage.live').length >= 2")
        browser.wait("[...document.querySelectorAll('.stage.live model-viewer')].every(viewer => viewer.loaded)")
        return browser.screenshot()


def labelled(row: Sequence[Float[Tensor, "3 T T"]], labels: Sequence[str] | None) -> Image.Image:
    """Pictures side by side on white, with a label above each of them, or one above all."""
    side, above = row[0].shape[-1], LABEL if labels else 0
    sheet = Image.new("RGB", (len(row) * (side + GAP) - GAP, side + above), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for number, picture in enumerate(row):
        sheet.paste(Image.fromarray(pixels_of(picture)), (number * (side + GAP), above))
    for number, label in enumerate(labels or ()):
        draw.text((number * (side + GAP) + 4, 7), label, fill=INK, font=font)
    return sheet


def pixels_of(picture: Float[Tensor, "3 T T"]) -> np.ndarray:
    return to_uint8(picture[None].float().cpu())[0].numpy()


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def save(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write a picture, or an animation that repeats for ever."""
    more = {}
    if len(frames) > 1:
        duration = round(1000 * SECONDS_A_TURN / len(frames))
        more = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
    with written_aside(path) as aside:
        frames[0].save(aside, format="WEBP", quality=QUALITY, method=6, **more)


if __name__ == "__main__":
    pictures()

"""Measure below which overlap a result should be marked doubtful, by searches with correct and with wrong masks.

    python scripts/doubt.py                                              # the meshes of painted birds that ship
    python scripts/doubt.py method=nerfinv limit=64                      # the fields
    python scripts/doubt.py experiment=meshinv_invert_cub_subset         # a prior of your own
    python scripts/doubt.py +data@outside=synthetic_cars                 # and cars, which that prior does not know

Pictures of the experiment's data are searched as in scripts/reconstruct.py, without their cameras: with their own
masks, with inverted masks, with their brightness as a mask, with the mask shifted by a third of the picture, with a
random ellipse, and with a letter. result.json has the IoUs of each kind and, for several thresholds of doubt.min_iou,
the false alarms (correct masks marked doubtful) and the misses (wrong masks accepted). Masks that are recognized as
wrong without a search do not count as misses.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.inversion import doubt
from invkit.inversion.inverter import Inverter
from invkit.runtime.run import Run, instantiate_trusted, main
from invkit.types import Views

RIGHT, OUTSIDE = "right", "outside"
THRESHOLDS = np.arange(0.3, 0.91, 0.05).round(2)


@main(config_name="doubt")
def measured(cfg: DictConfig) -> None:
    with Run(cfg, frozen=False) as run:
        inverter = instantiate_trusted(cfg.inverter, prior=instantiate_trusted(cfg.prior).to(run.device))
        around = instantiate_trusted(cfg.around)
        if around is not None:
            inverter.init = around  # as scripts/reconstruct.py begins where no camera is given
        than = doubt.Thresholds(**cfg.doubt)
        kinds = {kind: spread(instantiate_trusted(cfg.data), cfg.limit) for kind in (RIGHT, *cfg.wrong)}
        if cfg.outside is not None:
            kinds[OUTSIDE] = spread(instantiate_trusted(cfg.outside, size=run.config["data"]["size"]), cfg.limit)
        found, unseen = {}, []
        for kind, views in kinds.items():
            known = [doubt.doubts_about_mask(each.mask[0], than) for each in masked(views, kind)]
            overlap = overlaps(inverter, list(masked(views, kind)), cfg.batch_size, run.device)
            found[kind] = {"mask_doubted": [bool(reasons) for reasons in known], "iou": overlap}
            if kind != RIGHT:
                unseen += [value for value, reasons in zip(overlap, known, strict=True) if not reasons]
            told = f"IoU {np.mean(overlap):.2f}, percentiles 5, 50, 95: {np.percentile(overlap, [5, 50, 95]).round(2)}"
            run.log.message(f"{kind}: {np.mean([bool(reasons) for reasons in known]):.0%} of masks doubted, {told}")
        rates = doubt.rates(found[RIGHT]["iou"], unseen, THRESHOLDS) if unseen else []
        for rate in rates:
            run.log.message(
                f"min_iou {rate.threshold:.2f}: false alarms {rate.false_alarms:.0%}, misses {rate.misses:.0%}"
            )
        run.result({"kinds": found, "rates": [vars(rate) for rate in rates]})


def spread(dataset: ImageSet, limit: int) -> list[Views]:
    """So many items, spread evenly."""
    count = min(limit, len(dataset))
    return [dataset[index * len(dataset) // count] for index in range(count)]


def masked(pictures: list[Views], kind: str) -> Iterator[Views]:
    """The pictures with masks of a kind, none of which is empty.

    Raises:
        ValueError: there is no such kind.
    """
    rng = np.random.default_rng(0)
    for views in pictures:
        rgb, mask = (views.rgb[0] + 1) / 2, views.mask[0]
        if kind == "inverted":
            mask = doubt.inverted(mask)
        elif kind == "brightness":
            mask = doubt.brightness(rgb)
        elif kind == "shifted":
            mask = doubt.shifted(mask)
        elif kind == "ellipse":
            mask = ellipse(mask, rng)
        elif kind == "letter":
            mask = letter(mask, rng)
        elif kind not in (RIGHT, OUTSIDE):
            raise ValueError(f"wrong={kind} is not one of inverted, brightness, shifted, ellipse, letter")
        yield Views(views.rgb, mask[None].to(views.mask), views.camera, views.label, views.index)


def ellipse(like: Float[Tensor, "1 H W"], rng: np.random.Generator) -> Float[Tensor, "1 H W"]:
    size = like.shape[-1]
    y, x = np.mgrid[:size, :size] / size - 0.5
    turn, (a, b) = rng.uniform(0, np.pi), rng.uniform(0.12, 0.42, 2)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return torch.from_numpy((u / a) ** 2 + (v / b) ** 2 < 1)[None]


def letter(like: Float[Tensor, "1 H W"], rng: np.random.Generator) -> Float[Tensor, "1 H W"]:
    size = like.shape[-1]
    sheet = Image.new("L", (size, size))
    sign, font = chr(rng.integers(ord("A"), ord("Z") + 1)), ImageFont.load_default(0.9 * size)
    ImageDraw.Draw(sheet).text((size / 2, size / 2), sign, fill=255, font=font, anchor="mm", stroke_width=size // 40)
    return torch.from_numpy(np.array(sheet) > 127)[None]


def overlaps(inverter: Inverter, pictures: list[Views], batch_size: int, device: torch.device) -> list[float]:
    """IoU after the search of each picture; 0 where it broke down."""
    found = []
    for start in range(0, len(pictures), batch_size):
        _, trace = inverter(Views.cat(pictures[start : start + batch_size]).to(device))
        found += torch.where(trace.finite & trace.visible, trace.iou[:, -1], 0.0).tolist()
    return found


if __name__ == "__main__":
    measured()

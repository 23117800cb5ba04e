"""Measurements of reconstructions. METRICS is the only registry: its names are the columns of every table."""

from collections.abc import Callable, Mapping
from functools import partial

from invkit.metrics.fid import Fid
from invkit.metrics.iou import Iou
from invkit.metrics.iou3d import Iou3d
from invkit.metrics.kid import Kid
from invkit.metrics.lpips import Lpips
from invkit.metrics.psnr import Psnr
from invkit.metrics.rotation_deg import RotationDeg
from invkit.metrics.ssim import Ssim
from invkit.protocols import Metric

METRICS: Mapping[str, Callable[..., Metric]] = {
    "psnr": Psnr,
    "ssim": Ssim,
    "ssim-range2": partial(Ssim, data_range=2.0),
    "lpips": Lpips,
    "iou": Iou,
    "iou3d": Iou3d,
    "rotation_deg": RotationDeg,
    "azimuth_deg": partial(RotationDeg, "azimuth_deg"),
    "elevation_deg": partial(RotationDeg, "elevation_deg"),
    "fid": Fid,
    "kid": Kid,
}
"""Name -> metric. An instance's own `name` adds the network it measures with: "fid@inception_tv"."""

"""Searches of a few steps, and a painted bird for them."""

from pathlib import Path

import numpy as np
from PIL import Image

from invkit.data import cub
from invkit.data.synthetic import write_birds

_STAGE = "{_target_: invkit.inversion.schedule.Stage, steps: 2, latent_rate: 0.05, camera_rate: 0.01}"
BRIEF = {
    "meshinv": [
        "inverter.init.count=2",
        f"inverter.stages=[{_STAGE}]",
        f"+inverter.trial={_STAGE}",
        "+around.count=1",
        "+around.azimuths=4",
        "+around.inclinations=[30.0]",
        "+around.keep=2",
        "refine_size=64",
        "doubt.min_iou=0",
    ],
    "nerfinv": [
        "inverter.stages.steps=2",
        "inverter.snapshots=[]",
        "inverter.renderer.coarse=8",
        "inverter.renderer.fine=8",
        "+refine.steps=1",
        "refine_size=64",
        "resolution=32",
        "doubt.min_iou=0",
    ],
}
"""Method -> overrides; what they find is no good."""


def painted_bird(folder: Path) -> Path:
    """The folder, with bird.png and bird_mask.png: a bird that the shipped networks have never seen."""
    write_birds(folder / "birds", train=2, val=2, test=2, seed=5, num_species=2, novel_views=0)
    record, _ = cub.read_records(folder / "birds", "test")
    Image.open(record.path).save(folder / "bird.png")
    Image.fromarray(255 * record.mask.astype(np.uint8)).save(folder / "bird_mask.png")
    return folder

"""What a number says: from where a reconstruction was looked at, on which background, against which photographs.

Every result carries its protocol's settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from invkit.evaluation.viewpoints import InputView, Ring, Viewpoints
from invkit.images import composite
from invkit.inversion.records import Record
from invkit.metrics.registry import METRICS
from invkit.types import Guess, Rendering, Views

SET_DISTANCES = ("fid", "kid")


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a number is made.

    Args:
        metrics: name in METRICS -> its options; what it needs beside (networks, ground truth) comes from `Instruments`.
        viewpoints: from where the reconstructions are looked at.
        without: azimuths of a ring that are left out, degrees.
        background: what stands behind the object in all pictures, cut out with their masks: -1 black, 0 grey, 1 white;
            None leaves the pictures as they are.
        eight_bit: clamp and truncate the renderings to 256 values, as the released code does when it writes PNGs.
        annotated: compare with annotated masks and cameras only, where the data set has others too; an image that has
            none is not measured. False: with those that were given to the inversion.
        given: measure the masks that were given to the inversion, and no reconstruction: IoU with annotated ones.
        first_guess: measure where the search began.
        steps: measure what had been found after so many steps; the inverter must have kept it (`snapshots`).
        unpaired: compare with the set of real photographs (`Instruments.reals`) and not with the partner of each
            picture. FID and KID only.
        real_background: likewise, of the photographs of that set.
        statistics: a file (ConvMesh's format) that stands for that set. FID only.
        statistics_network: the network that it was made with.

    Raises:
        ValueError: the settings do not fit together; a metric is unknown.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    viewpoints: Viewpoints = field(default_factory=InputView)
    without: Sequence[float | int] = ()
    background: float | None = 1.0
    eight_bit: bool = False
    annotated: bool = False
    given: bool = False
    first_guess: bool = False
    steps: int | None = None
    unpaired: bool = False
    real_background: float | None = 1.0
    statistics: str | None = None
    statistics_network: str = "inception_tv"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"metrics: no {', '.join(unknown)}; there are {', '.join(METRICS)}")
        paired = [name for name in self.metrics if name not in SET_DISTANCES]
        if self.unpaired and paired:
            raise ValueError(f"{', '.join(paired)} compare a picture with its partner: unpaired=true leaves none")
        if not (self.unpaired or self.viewpoints.paired):
            raise ValueError(f"{self.viewpoints} has no partners to its pictures: give unpaired=true, and FID or KID")
        if self.statistics is not None and (not self.unpaired or set(self.metrics) != {"fid"}):
            raise ValueError("a file of statistics serves FID with unpaired=true, and nothing else")
        if self.first_guess and self.steps is not None:
            raise ValueError("first_guess=true and steps: say one of them")
        if self.given and (set(self.metrics) != {"iou"} or not self.viewpoints.paired or not self.annotated):
            raise ValueError("given=true measures IoU with annotated masks (annotated=true), and nothing else")
        azimuths = self.viewpoints.degrees if isinstance(self.viewpoints, Ring) else []
        if absent := [degrees for degrees in self.without if degrees not in azimuths]:
            raise ValueError(f"without={absent}: {self.viewpoints} has no such azimuths")

    def takes(self, view: int) -> bool:
        """Whether the view of this number is among those compared."""
        return not self.without or self.viewpoints.degrees[view] not in self.without

    def chosen(self, record: Record) -> Guess:
        """What is measured of an image that was searched.

        Raises:
            ValueError: it was not kept.
        """
        if self.first_guess:
            return record.trace.start
        return record.found if self.steps is None else record.after(self.steps)

    def shown(self, image: Rendering) -> Rendering:
        """The renderings as they are compared."""
        background = image.background if self.background is None else self.background
        rgb = image.over(background)
        return replace(image, rgb=truncated(rgb) if self.eight_bit else rgb, background=background)

    def partner(self, views: Views) -> Views:
        """Photographs as they are compared."""
        return (
            views if self.background is None else replace(views, rgb=composite(views.rgb, views.mask, self.background))
        )


def truncated(rgb: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Colors of [-1, 1] as 8 bits keep them that are cut off and not rounded: x = floor(255 (rgb / 2 + 1/2)) / 255."""
    return ((rgb / 2 + 0.5).clamp(0, 1) * 255).floor() / 255 * 2 - 1

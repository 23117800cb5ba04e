"""What a number says: how it was made, with what, and of which pictures.

From where the reconstruction was looked at, on which background, against which photographs and masks:
`EvaluationProtocol` says it, and every result carries the protocol's name. `Measurement` is one under way;
`invkit.evaluation.evaluator` shows it the pictures.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.data.ground_truth import GroundTruth
from invkit.evaluation import viewpoints
from invkit.evaluation.viewpoints import Frame, InputView, Others, Ring, Viewpoints
from invkit.features.frozen import Features
from invkit.features.lpips import LPIPS
from invkit.features.recent import Recent
from invkit.images import composite
from invkit.inversion.records import Record
from invkit.metrics.gaussian import Gaussian
from invkit.metrics.iou3d import Iou3d
from invkit.metrics.lpips import Lpips
from invkit.metrics.mean import Mean
from invkit.metrics.reals import Reals
from invkit.metrics.registry import METRICS
from invkit.metrics.voxels import Grid, union
from invkit.protocols import Metric
from invkit.runtime import dist
from invkit.types import Estimate, Guess, Rendering, Views

SET_DISTANCES = ("fid", "kid")

Result = dict[str, Any]


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


@dataclass(frozen=True)
class Instruments:
    """What metrics measure with. Everything is made when it is first needed; what is missing then raises.

    A FileNotFoundError or ValueError in the making is the reason that is told for what could not be measured.

    Args:
        networks: for FID and KID; each is measured with every one of them.
        perceptual: for LPIPS, likewise.
        reals: the photographs that unpaired protocols compare with.
        train: the training split; places of other photographs may be drawn after its own (`viewpoints.Others`).
        truth: ground truth of the objects.
        solid: the solids of scenes moved into another frame.
        grid: of solids.
    """

    networks: Mapping[str, Callable[[], Features]] = field(default_factory=dict)
    perceptual: Mapping[str, Callable[[], LPIPS]] = field(default_factory=dict)
    reals: Callable[[], ImageSet] | None = None
    train: Callable[[], ImageSet] | None = None
    truth: Callable[[], GroundTruth] | None = None
    solid: Callable[[Any, Frame, Grid], Bool[Tensor, "B X Y Z"]] | None = None
    grid: Grid = field(default_factory=Grid)


class Resources:
    """What these protocols need of the instruments, each made once; what one rank lacks, all do without.

    Args:
        batch_size, device: for the real photographs.
    """

    def __init__(
        self,
        instruments: Instruments,
        protocols: Sequence[EvaluationProtocol],
        *,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.networks, self.perceptual = tuple(instruments.networks), tuple(instruments.perceptual)
        self.solid, self.grid = instruments.solid, instruments.grid
        wanted = {name for protocol in protocols for name in protocol.metrics}
        recipes: dict[str, Callable[[], Any] | None] = {}
        if wanted & set(SET_DISTANCES):
            recipes |= instruments.networks
        if "lpips" in wanted:
            recipes |= {f"lpips-{name}": make for name, make in instruments.perceptual.items()}
        if any(protocol.unpaired and protocol.statistics is None for protocol in protocols):
            recipes["reals"] = instruments.reals
        if any("iou3d" in protocol.metrics or protocol.viewpoints.of_truth for protocol in protocols):
            recipes["truth"] = instruments.truth
        if any(isinstance(p.viewpoints, Others) and p.viewpoints.needs_training for p in protocols):
            recipes["train"] = instruments.train
        self._found: dict[str, Any] = {}
        absent: dict[str, str] = {}
        for key, make in recipes.items():
            try:
                self._found[key] = None if make is None else make()
            except (FileNotFoundError, ValueError) as error:
                absent[key] = str(error)
        self._absent = _of_all_ranks(absent)
        for key in self.networks:
            if self._found.get(key) is not None:
                self._found[key] = Recent(self._found[key])
        if self._found.get("reals") is not None:
            self._found["reals"] = Reals(self._found["reals"], batch_size=batch_size, device=device)
        self._solids: dict[str, Tensor] = {}
        self._partners: dict[Viewpoints, Mapping[int, int]] = {}

    def get(self, key: str) -> Any:
        """A network by its name (that of LPIPS after "lpips-"), or "reals", "train", "truth".

        Raises:
            ValueError: it is not there; says why.
        """
        if key in self._absent:
            raise ValueError(self._absent[key])
        if self._found.get(key) is None:
            raise ValueError(f"no {key} to measure with")
        return self._found[key]

    def partners(self, looking: Others, dataset: ImageSet) -> Mapping[int, int]:
        """`Others.partners` in this data set.

        Raises:
            ValueError: there are none, or the training split is not there; says why.
        """
        if looking not in self._partners:
            train = self.get("train") if looking.needs_training else None
            self._partners[looking] = looking.partners(dataset, train)
        return self._partners[looking]

    def true_solid(self, name: str) -> Bool[Tensor, "X Y Z"]:
        """The solid that ground truth gives to the object of an image."""
        if name not in self._solids:
            self._solids[name] = union(self.get("truth").parts(name), self.grid)
        return self._solids[name]


class Measurement:
    """A protocol under way: what it needs, what it has seen, and what comes out.

    With several processes all prepare at the same time and ask for the result at the same time.

    Args:
        dataset: of the images that were inverted; `Views.index` counts in it.
    """

    def __init__(self, protocol: EvaluationProtocol, resources: Resources, dataset: ImageSet) -> None:
        self.protocol, self.resources, self.dataset = protocol, resources, dataset
        self.unreadable: dict[str, str] = {}
        self._metrics: dict[str, Metric] = {}
        self._absent: dict[str, str] = {}
        self._reals: int | None = None
        self._unreadable_reals: dict[str, str] = {}
        self._seen: dict[int, int] = {}

    def prepare(self) -> None:
        """Make the metrics; what one of them lacks becomes the reason why it is not measured."""
        for label, make in self._recipes():
            try:
                if self.protocol.viewpoints.of_truth:
                    self.resources.get("truth")
                if isinstance(self.protocol.viewpoints, Others):
                    self.resources.partners(self.protocol.viewpoints, self.dataset)
                self._metrics[label] = make()
            except (FileNotFoundError, ValueError) as error:
                self._absent[label] = str(error)
        self._absent = _of_all_ranks(self._absent)
        self._metrics = {label: metric for label, metric in self._metrics.items() if label not in self._absent}

    def __bool__(self) -> bool:
        """Whether there is anything left to measure."""
        return bool(self._metrics)

    def covers(self, name: str) -> bool:
        """Whether the image has the ground truth that the protocol needs."""
        needed = self.protocol.viewpoints.of_truth or "iou3d" in self.protocol.metrics
        return not needed or name in self.resources.get("truth")

    def give_up(self, reason: str) -> None:
        """Measure nothing, for that reason."""
        self._absent |= dict.fromkeys(self._metrics, reason)
        self._metrics = {}

    @torch.no_grad()
    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        """Measure pictures.

        Args:
            image, target: as they are compared: `EvaluationProtocol.shown` and `partner` of what there was.
        """
        for label in list(self._metrics):
            try:
                self._metrics[label].update(estimate, image, target)
            except (ValueError, OSError) as error:
                self._absent[label] = str(error)
                del self._metrics[label]
        for index in target.index.tolist():
            self._seen[index] = self._seen.get(index, 0) + 1

    def result(self) -> dict[str, Any]:
        """What has come out; see `invkit.evaluation.evaluator.measure`."""
        absent = _of_all_ranks(self._absent)
        unreadable = _of_all_ranks(self.unreadable) | self._unreadable_reals
        seen = {index: count for part in dist.all_gather_states(self._seen) for index, count in part.items()}
        metrics = {}
        for label in [label for label in self._metrics if label not in absent]:
            metric = self._metrics[label]
            metric.merge(dist.all_gather_states({key: value.cpu() for key, value in metric.state().items()}))
            try:
                metrics[metric.name] = self._value(metric)
            except ValueError as error:
                absent[label] = str(error)
        if not seen and self._metrics:
            absent |= dict.fromkeys(self._metrics, self._why_none())
        return {
            "protocol": {**asdict(self.protocol), "viewpoints": str(self.protocol.viewpoints)},
            "images": len(seen),
            "pictures": sum(seen.values()),
            "reals": self._reals,
            "metrics": metrics,
            "not_measured": absent,
            "unreadable": unreadable,
        }

    def _value(self, metric: Metric) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            result: dict[str, Any] = {"value": metric.compute()}
        if told:
            result["note"] = "; ".join(str(warning.message) for warning in told)
        if isinstance(metric, Mean):
            result["per_image"] = {self.dataset.names[index]: value for index, value in metric.per_image().items()}
        return result

    def _why_none(self) -> str:
        if self.protocol.viewpoints.of_truth or "iou3d" in self.protocol.metrics:
            return "none of the images has ground truth"
        if self.protocol.viewpoints.of_others:
            return "none of the images is among those that are evaluated"
        if self.protocol.annotated:
            return "none of the images has an annotated mask and camera"
        return "no image was reconstructed"

    def _recipes(self) -> Iterator[tuple[str, Callable[[], Metric]]]:
        for name, options in self.protocol.metrics.items():
            if name in SET_DISTANCES:
                of_file = self.protocol.statistics is not None
                networks = (self.protocol.statistics_network,) if of_file else self.resources.networks
                for network in networks or ("network",):
                    yield f"{name}@{network}", partial(self._set_distance, name, network, **options)
            elif name == "lpips":
                for network in self.resources.perceptual or ("network",):
                    yield f"lpips-{network}", partial(self._lpips, f"lpips-{network}", **options)
            elif name == "iou3d":
                yield name, partial(self._iou3d, **options)
            else:
                yield name, partial(METRICS[name], **options)

    def _set_distance(self, name: str, network: str, **options: Any) -> Metric:
        features, protocol = self.resources.get(network), self.protocol
        reference = None
        if protocol.statistics is not None:
            reference = Gaussian.read(protocol.statistics)
            reference = replace(reference, features=reference.features or protocol.statistics_network)
            self._reals = reference.count
        elif protocol.unpaired:
            reals = self.resources.get("reals")
            reference = getattr(reals, "gaussian" if name == "fid" else "features")(features, protocol.real_background)
            self._reals = len(reals.features(features, protocol.real_background))
            self._unreadable_reals = {f"{name} (real side)": reason for name, reason in reals.unreadable.items()}
        return METRICS[name](features, reference=reference, **options)

    def _lpips(self, network: str, **options: Any) -> Metric:
        return Lpips(self.resources.get(network), **options)

    def _iou3d(self, *, aligned: bool = False) -> Metric:
        """aligned: the estimate is moved by `viewpoints.seen_alike` first."""
        resources, frame = self.resources, viewpoints.seen_alike if aligned else viewpoints.same
        resources.get("truth")
        if resources.solid is None:
            raise ValueError("no solid to measure with: nothing says how scenes become voxels")

        def estimated(estimate: Estimate, target: Views) -> Bool[Tensor, "B X Y Z"]:
            return resources.solid(estimate.scene, frame(estimate.camera, target.camera), resources.grid)

        def true(target: Views) -> Bool[Tensor, "B X Y Z"]:
            return torch.stack([resources.true_solid(self.dataset.names[index]) for index in target.index.tolist()])

        return Iou3d(estimated, true)


def _of_all_ranks(own: Mapping[str, str]) -> dict[str, str]:
    return {key: reason for part in dist.all_gather_states(dict(own)) for key, reason in part.items()}

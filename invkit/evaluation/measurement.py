"""A measurement under way: `invkit.evaluation.evaluator` shows it the pictures, and numbers come out."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.evaluation import viewpoints
from invkit.evaluation.instruments import Resources, of_all_ranks
from invkit.evaluation.protocol import SET_DISTANCES, EvaluationProtocol
from invkit.evaluation.viewpoints import Others
from invkit.metrics.gaussian import Gaussian
from invkit.metrics.iou3d import Iou3d
from invkit.metrics.lpips import Lpips
from invkit.metrics.mean import Mean
from invkit.metrics.registry import METRICS
from invkit.protocols import Metric
from invkit.runtime import dist
from invkit.types import Estimate, Rendering, Views


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
                if self.protocol.viewpoints.of_truth and not self.resources.get("truth").has_views:
                    raise ValueError("the ground truth has shapes, but no further views")
                if isinstance(self.protocol.viewpoints, Others):
                    self.resources.partners(self.protocol.viewpoints, self.dataset)
                self._metrics[label] = make()
            except (FileNotFoundError, ValueError) as error:
                self._absent[label] = str(error)
        self._absent = of_all_ranks(self._absent)
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
        absent = of_all_ranks(self._absent)
        unreadable = of_all_ranks(self.unreadable) | self._unreadable_reals
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

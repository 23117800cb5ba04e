"""What is measured with: networks, real photographs, ground truth; each made once, and told of where it is missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.data.ground_truth import Truth
from invkit.evaluation.protocol import SET_DISTANCES, EvaluationProtocol
from invkit.evaluation.viewpoints import Frame, Others, Viewpoints
from invkit.features.frozen import Features
from invkit.features.lpips import LPIPS
from invkit.features.recent import Recent
from invkit.metrics.reals import Reals
from invkit.metrics.voxels import Grid, enclosed, union
from invkit.runtime import dist


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
    truth: Callable[[], Truth] | None = None
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
        self._absent = of_all_ranks(absent)
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
            truth = self.get("truth")
            self._solids[name] = (union if truth.closed else enclosed)(truth.parts(name), self.grid)
        return self._solids[name]


def of_all_ranks(own: Mapping[str, str]) -> dict[str, str]:
    """What any rank has found, on every rank."""
    return {key: reason for part in dist.all_gather_states(dict(own)) for key, reason in part.items()}

"""The seams of the framework. A method is an implementation of these five; the kit knows nothing else about it.

`Scene` is opaque here: a textured mesh for meshinv, a radiance field for nerfinv. It is a `Batch` and has `centered()`:
the same scenes moved so that their middle is the origin, where novel views look; `with_details(details)`: the same
scenes as a `Refinement` has changed them; and `outermost()`: points [B, P, 3] of each beyond which there is nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn
from trimesh import Trimesh

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.runtime.checkpoint import Checkpoints
from invkit.runtime.log import Log
from invkit.types import Estimate, Guess, Rendering, Views

Scene = TypeVar("Scene")

Term = Callable[[Estimate, Any], Float[Tensor, "B"]]
"""A loss with its hyperparameters bound: one value for each image, never reduced over the batch.

It compares with the photographs' `Views`, or, where it is `Prepared`, with what it has made of them.
"""

Score = Callable[[Guess], Float[Tensor, "B"]]
"""Objective of each guess, without gradient; K guesses for each image, those of one image after another."""


@runtime_checkable
class Prepared(Protocol):
    """A term that needs more of the photographs than their pixels: points, features, statistics.

    They are the same at every step of a search, so they are computed once.
    """

    def target(self, views: Views) -> Batch:
        """What is compared with: for each image what it would be alone, apart from padding.

        Raises:
            ValueError: an image has nothing to compare with; the message names its `index`.
        """
        ...

    def __call__(self, estimate: Estimate, target: Any) -> Float[Tensor, "B"]:
        """The loss of each hypothesis, given what `target` made of the photographs."""
        ...


@runtime_checkable
class Prior(Protocol[Scene]):
    """A frozen generator seen as a map from latents to scenes.

    `num_classes` is 0 for a generator without classes; then labels are ignored and may be None.
    """

    latent_shape: tuple[int, ...]
    num_classes: int

    def sample(self, count: int, rng: Generator) -> Float[Tensor, "count *L"]:
        """Latents from the prior distribution."""
        ...

    def decode(self, latent: Float[Tensor, "B *L"], label: Int[Tensor, "B"] | None) -> Scene:
        """The scenes of these latents, differentiable in them."""
        ...


@runtime_checkable
class Renderer(Protocol[Scene]):
    """A picture of each scene from its camera. `extras` names optional fields of `Rendering` to fill."""

    def __call__(self, scene: Scene, camera: Camera, *, extras: frozenset[str] = frozenset()) -> Rendering: ...


@runtime_checkable
class Init(Protocol[Scene]):
    """Where the search for each image begins. It must not depend on the other images of the batch."""

    def __call__(self, prior: Prior[Scene], views: Views, score: Score) -> Guess: ...


@runtime_checkable
class Encoding(Protocol[Scene]):
    """An `Init` that finds the cameras itself, from the place on the object that it sees at each pixel."""

    def keeping_cameras(self) -> Init[Scene]:
        """The same that begins at the cameras which the photographs come with."""
        ...

    def canonical_map(self, views: Views, scene: Scene) -> Float[Tensor, "B 3 H W"]:
        """What is seen: the place on the object as a color, over white by how sure it is of the object."""
        ...


@runtime_checkable
class Refinement(Protocol[Scene]):
    """What follows the search: the photograph itself decides what it shows, beyond what the generator can make.

    `Scene.with_details` lays what it finds over the scene that the prior decodes.

    name: says what kind of details these are.
    """

    name: str

    def __call__(
        self, prior: Prior[Scene], renderer: Renderer[Scene], guess: Guess, views: Views
    ) -> Mapping[str, Shaped[Tensor, "B ..."]]:
        """The details of each image, by name; of one they do not depend on the others.

        Args:
            guess: what the search has found.
            views: the photographs; they may be larger than those that were searched with.
        """
        ...


Modeling = Callable[[Scene, str], Trimesh]
"""(the only scene of a batch, its name for errors) -> the model that a file holds: y up, with texture or vertex colors.

Raises `NoSurface` where there is nothing to be modeled.
"""


class NoSurface(ValueError):
    """A scene that is nowhere solid, so that there is no mesh of it."""


def scene_of(prior: Prior[Scene], guess: Guess) -> Scene:
    """What a guess says the objects are: decoded, with the details where there are any."""
    scene = prior.decode(guess.latent, guess.label)
    return scene if guess.details is None else scene.with_details(guess.details)


@runtime_checkable
class Metric(Protocol):
    """A running measurement: `update` many times, `merge` the ranks' states, `compute`."""

    name: str

    def update(self, estimate: Estimate, image: Rendering, target: Views) -> None:
        """Measure a batch.

        Args:
            estimate: what was found for each image; its camera is that of the input view.
            image: the picture measured: the estimate rendered at the input view or at another one.
            target: what the picture is measured against; `target.camera` is the true camera of the input view.
        """
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What has been gathered so far, as plain tensors."""
        ...

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Replace the own state by the union of these."""
        ...

    def compute(self) -> float: ...


def always(step: int) -> bool:
    """True at every step."""
    return True


def unchanged(step: int) -> float:
    """A rate's factor that is 1 at every step."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One player's move.

    While it computes, its optimizer's parameters are the only ones that get a gradient.

    Args:
        loss: (batch, step) -> weighted terms, scalars, which the loop sums; every rank returns the same names.
        due: the steps at which this phase moves.
        rate: factor on the learning rates that the optimizer was built with; a parameter group with `scheduled` False
            keeps its own.
        clip_norm: bound on the norm of the whole gradient, averaged over ranks.
        autocast: dtype in which the loss may compute. float16 brings a loss scale, which is part of the saved state;
            an overflow then skips the step and lowers the scale.
    """

    name: str
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, int], Mapping[str, Tensor]]
    due: Callable[[int], bool] = always
    rate: Callable[[int], float] = unchanged
    clip_norm: float | None = None
    autocast: torch.dtype | None = None


@runtime_checkable
class Run(Protocol):
    """What training needs of a run; `invkit.runtime.run.Run` is one."""

    dir: Path
    device: torch.device
    rank: int
    world_size: int
    seed: int
    log: Log
    checkpoints: Checkpoints
    config: dict[str, Any]


@runtime_checkable
class Task(Protocol):
    """Something that trains weights: what `invkit.train.loop.fit` needs to know about it.

    modules: everything with state to be saved, by name; running averages too.
    phases: what is stepped, in order; each says at which steps it is due.
    """

    modules: Mapping[str, nn.Module]
    phases: Sequence[Phase]

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[Any]:
        """Batches of steps start, start + 1, ...; each a function of (step, rank, world_size) alone.

        A batch has `.to(device)`.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called when the phases of `step` are done (running averages live here)."""
        ...

    def report(self, run: Run, step: int) -> None:
        """Called at intervals on rank 0: sample pictures, metrics."""
        ...

    def finish(self, run: Run) -> None:
        """Called on every rank after the last step: what the training leaves behind beside weights."""
        ...

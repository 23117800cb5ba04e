"""Inversion: prior -> first guess -> render -> compare -> step. Both papers are this loop.

The images of a batch are searched side by side and know nothing of each other: losses stay apart, Adam works on each
number alone, and its state is new for every batch. So a batch gives what one image at a time gives; an image whose
search breaks down stays where it last was sound while the others go on; and one that gets nowhere any more can stop.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.inversion.objective import Objective, Targets, total
from invkit.inversion.records import Record, RecordStore, Trace
from invkit.inversion.schedule import MESHINVERSION_STAGES, TRIAL, Stage, Stall, on_the_way
from invkit.inversion.search_state import SearchState, finite_rows
from invkit.metrics.iou import iou
from invkit.protocols import Init, Prior, Renderer, Score
from invkit.types import Estimate, Guess, Views

FAINTEST = 1 / 255
"""Opacity that can be told from none in a picture; that of a radiance field is nowhere quite 0."""


class Inverter:
    """Searches the latents and cameras under which a prior's renderings look like given pictures (Eq. 5).

    Args:
        init: gives the first guess, or several for each image, those for one image after another.
        objective: what is minimized. What it needs of the photographs is computed once for each search.
        betas: of Adam, for the latents and for the cameras alike.
        warm_up: step k, counted from 1, has its rates multiplied by k / warm_up as long as k < warm_up.
        optimize_camera: search the cameras too: rotation, scale and shift.
        optimize_focal: and the perspective, of the images that have one.
        normalize_quaternion: keep rotations rotations and scales positive. The released MeshInversion code lets the
            quaternion leave the unit sphere, which shears the object; False does as it does.
        extras: fields of `Rendering` that the objective reads beside rgb and mask, such as soft_mask.
        init_objective: by which `init` compares guesses; None takes `objective`. One without a costly term tries many
            times as many guesses in the same time, and the best of them by either is mostly as good a start.
        trial: where `init` gives several guesses for an image, all of them are first searched from for these steps, by
            `init_objective`, and the one that is then best by `objective` goes on.
        max_batch: guesses on trial at once; bounds the memory and changes nothing else.
        snapshots: numbers of steps after which the guess is kept in the trace; 0 is where the search began. One number
            instead: so many on the way, see `schedule.on_the_way`.
        stall: when an image stops before the stages are through; None lets all of them go on to the end.

    Raises:
        ValueError: max_batch is below 1, or a snapshot is wanted after more steps than there are.
    """

    def __init__(
        self,
        prior: Prior,
        renderer: Renderer,
        init: Init,
        objective: Objective,
        stages: Sequence[Stage] = MESHINVERSION_STAGES,
        *,
        betas: Sequence[float] = (0.0, 0.99),
        warm_up: int = 0,
        optimize_camera: bool = True,
        optimize_focal: bool = False,
        normalize_quaternion: bool = True,
        extras: Sequence[str] = (),
        init_objective: Objective | None = None,
        trial: Stage = TRIAL,
        max_batch: int = 64,
        snapshots: Sequence[int] | int = 4,
        stall: Stall | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1; got {max_batch}")
        steps = sum(stage.steps for stage in stages)
        if isinstance(snapshots, int):
            snapshots = on_the_way(steps, snapshots)
        if wrong := [count for count in snapshots if not 0 <= count <= steps]:
            raise ValueError(f"snapshots {wrong}: the search has {steps} steps")
        self.prior, self.renderer, self.init, self.objective = prior, renderer, init, objective
        self.stages, self.betas, self.warm_up = tuple(stages), tuple(betas), warm_up
        self.optimize_camera, self.optimize_focal = optimize_camera, optimize_focal
        self.normalize_quaternion = normalize_quaternion
        self.extras = frozenset(extras)
        self.init_objective = objective if init_objective is None else init_objective
        self.trial, self.max_batch = trial, max_batch
        self.snapshots, self.stall = frozenset(snapshots), stall

    def __call__(self, views: Views) -> tuple[Estimate, Trace]:
        """The estimates after the last step, rendered, and how the search went.

        Raises:
            ValueError: images cannot be searched (not finite, empty mask, impossible camera); all of them are named.
        """
        refuse_unusable(views)
        targets = self.objective.targets(views)
        first, tried = self.begin(targets)
        estimate, trace = self.refine(tried, targets)
        return estimate, replace(trace, start=first)

    def begin(self, target: Targets | Views) -> tuple[Guess, Guess]:
        """Where the search for each image begins: the first guess, and that after its trial (the same without one).

        Args:
            target: the photographs, or `objective.targets` of them.

        Raises:
            ValueError: `init` does not give as many guesses for one image as for another.
        """
        targets = self.objective.targets(target) if isinstance(target, Views) else target
        views = targets.views
        first_targets = targets if self.init_objective is self.objective else self.init_objective.targets(views)
        with torch.no_grad():
            guesses = self.init(self.prior, views, self.score(first_targets)).detach()
        if len(guesses) == len(views):
            return guesses, guesses
        if len(guesses) % len(views):
            raise ValueError(f"init gave {len(guesses)} guesses for {len(views)} images")
        per_image = len(guesses) // len(views)
        parts = [
            self._on_trial(guesses[rows], first_targets[images], targets[images])
            for images, rows in _chunks(len(views), per_image, self.max_batch)
        ]
        best = torch.cat([value for _, value in parts]).view(len(views), per_image).argmin(dim=1)
        winner = torch.arange(len(views), device=best.device) * per_image + best
        return guesses[winner], Guess.cat([guess for guess, _ in parts])[winner]

    def _on_trial(self, start: Guess, first_targets: Targets, targets: Targets) -> tuple[Guess, Float[Tensor, "N"]]:
        """The guesses after the steps of the trial, and how good each is then: infinite where its search broke down."""
        state = self._state(start)
        for steps in range(self.trial.steps):
            with torch.enable_grad():
                value = total(self.init_objective(self.estimate(state.guess(), steps), first_targets))
                state.step(value, self.trial)
        with torch.no_grad():
            value = total(self.objective(self.estimate(state.guess(), self.trial.steps), targets))
        state.fall_back(value.isfinite())
        return state.guess().detach(), torch.where(state.finite, value, torch.inf)

    def _state(self, start: Guess) -> SearchState:
        return SearchState(
            start.detach(),
            self.betas,
            optimize_camera=self.optimize_camera,
            optimize_focal=self.optimize_focal,
            normalize_quaternion=self.normalize_quaternion,
        )

    def estimate(self, guess: Guess, steps: int = 0) -> Estimate:
        """What a guess looks like.

        Args:
            steps: of the search that have led there; see `Estimate`.
        """
        scene = self.prior.decode(guess.latent, guess.label)
        image = self.renderer(scene, guess.camera, extras=self.extras)
        return Estimate(guess.latent, guess.camera, scene, image, guess.label, steps)

    def score(self, target: Targets | Views) -> Score:
        """The `init_objective` as a function of guesses about the photographs.

        Args:
            target: the photographs, or `init_objective.targets` of them.
        """
        targets = self.init_objective.targets(target) if isinstance(target, Views) else target

        @torch.no_grad()
        def of_guesses(guess: Guess) -> Float[Tensor, "B"]:
            return total(self.init_objective(self.estimate(guess), targets))

        return of_guesses

    def refine(self, start: Guess, target: Targets | Views) -> tuple[Estimate, Trace]:
        """The search from a given start; see `__call__`.

        Args:
            start: a guess for each image, or several for each, those for one image after another; all are searched.
            target: the photographs, or `objective.targets` of them.
        """
        targets = self.objective.targets(target) if isinstance(target, Views) else target
        if self.stall is not None:
            targets = targets.repeat(len(start) // len(targets))  # guesses stop one by one
        state, course, snapshots = self._state(start), _Course(), {}

        def look(steps: int) -> tuple[Estimate, Float[Tensor, "A"]]:
            estimate = self.estimate(state.guess(), steps)
            terms = self.objective(estimate, targets)
            masks = targets.views.mask.repeat_interleave(len(estimate) // len(targets), dim=0)
            course.add(state.rows, terms, iou(estimate.image.mask.detach(), masks))
            return estimate, total(terms)

        made = torch.zeros_like(state.rows)
        for steps, stage in enumerate(self._each_step()):
            made[state.rows] = steps
            with torch.enable_grad():
                _, value = look(steps)
                state.step(value, stage)
            if steps in self.snapshots:
                snapshots[steps] = state.kept()
            if self.stall is not None:
                done = self.stall(course.total(state.rows)) | ~state.finite[state.rows]
                if bool(done.any()):
                    state.leave(done)
                    targets = targets[~done]
                if not len(state.rows):
                    break
        else:
            made[state.rows] = steps = sum(stage.steps for stage in self.stages)
            with torch.no_grad():
                estimate, value = look(steps)
                state.fall_back(value.isfinite())
                if not bool(value.isfinite().all()):
                    course.forget_last()
                    estimate, _ = look(steps)
        if len(state.rows) < len(start):
            with torch.no_grad():
                estimate = self.estimate(state.kept(), steps)
        snapshots |= {count: state.kept() for count in self.snapshots - snapshots.keys()}
        visible = (estimate.image.mask > FAINTEST).flatten(1).any(dim=1)
        names, values, overlap = tuple(self.objective.terms), course.values(), course.overlap()
        trace = Trace(start.detach(), names, values, overlap, state.finite, visible, made, snapshots)
        return estimate.detach(), trace.detach()

    def _each_step(self) -> Iterator[Stage]:
        """The stage of each step, slower while it warms up."""
        number = 0
        for stage in self.stages:
            for _ in range(stage.steps):
                number += 1
                yield stage.slower(number / self.warm_up) if number < self.warm_up else stage


class _Course:
    """The terms and overlaps of all images at each look; those that are no longer looked at keep their last."""

    def __init__(self) -> None:
        self._columns: list[Float[Tensor, "B K"]] = []

    def add(self, rows: Int[Tensor, "A"], terms: Mapping[str, Float[Tensor, "A"]], overlap: Float[Tensor, "A"]) -> None:
        values = torch.stack(list(terms.values()), dim=1).detach()
        column = torch.cat([values, overlap.to(values)[:, None]], dim=1)
        if self._columns:
            column = self._columns[-1].index_copy(0, rows, column)
        self._columns.append(column)

    def forget_last(self) -> None:
        self._columns.pop()

    def values(self) -> Float[Tensor, "B S K"]:
        return torch.stack(self._columns, dim=1)[..., :-1]

    def overlap(self) -> Float[Tensor, "B S"]:
        return torch.stack(self._columns, dim=1)[..., -1].float()

    def total(self, rows: Int[Tensor, "A"]) -> Float[Tensor, "A S"]:
        return self.values()[rows].sum(dim=2)


def _chunks(images: int, per_image: int, most: int) -> Iterator[tuple[list[int], list[int]]]:
    """Positions of images and of their guesses that go together: whole images, or a part of the guesses for one."""
    if per_image > most:
        for image in range(images):
            rows = range(image * per_image, (image + 1) * per_image)
            yield from (([image], list(rows[start : start + most])) for start in range(0, per_image, most))
    else:
        at_once = most // per_image
        for first in range(0, images, at_once):
            last = min(first + at_once, images)
            yield list(range(first, last)), list(range(first * per_image, last * per_image))


def refuse_unusable(views: Views) -> None:
    """Do nothing where every image can be searched.

    Raises:
        ValueError: a picture, mask or camera is not finite, a mask is empty, or a scale is not positive.
    """
    camera = views.camera
    numbers = [views.rgb, views.mask, camera.quat, camera.scale, camera.shift, camera.inv_focal, camera.center]
    faults = {
        "the picture or mask has values that are not finite": ~finite_rows(numbers[:2]),
        "the camera has values that are not finite": ~finite_rows(numbers[2:]),
        "the mask is empty": ~(views.mask.flatten(1) > 0).any(dim=1),
        "the camera's scale is not positive": camera.scale <= 0,
        "the camera's rotation is zero": camera.quat.norm(dim=1) == 0,
    }
    found = [f"image {index}: {fault}" for fault, where in faults.items() for index in views.index[where].tolist()]
    if found:
        raise ValueError("; ".join(found))


def invert_all(
    inverter: Inverter,
    dataset: ImageSet,
    store: RecordStore,
    indices: Sequence[int],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Iterator[Record]:
    """Search these images of a data set, batch by batch, and write a record of each; gives the records as they come.

    An image that cannot be read or searched leaves a record with the reason as its status, and stops no other.
    """
    for start in range(0, len(indices), batch_size):
        good: list[tuple[int, Views]] = []
        for index in indices[start : start + batch_size]:
            try:
                views = dataset[index]
                refuse_unusable(views)
                good.append((index, views))
            except (ValueError, OSError) as error:
                yield store.write_failure(dataset.names[index], index, str(error))
        if good:
            yield from _invert_batch(inverter, dataset.names, store, good, device)


def _invert_batch(
    inverter: Inverter,
    names: Sequence[str],
    store: RecordStore,
    batch: Sequence[tuple[int, Views]],
    device: torch.device | str,
) -> Iterator[Record]:
    """The records of a batch; one that is refused as a whole is searched image by image."""
    indices = [index for index, _ in batch]
    try:
        estimate, trace = inverter(Views.cat([views for _, views in batch]).to(device))
    except ValueError as error:
        if len(batch) == 1:
            yield store.write_failure(names[indices[0]], indices[0], str(error))
            return
        for item in batch:
            yield from _invert_batch(inverter, names, store, [item], device)
        return
    yield from store.write([names[index] for index in indices], indices, estimate, trace)

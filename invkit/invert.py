"""Inversion: prior -> first guess -> render -> compare -> step. Both papers are this loop.

The images of a batch are searched side by side and know nothing of each other: losses stay apart, Adam works on each
number alone, and its state is new for every batch. So a batch gives what one image at a time gives, and an image whose
search breaks down stays where it last was sound while the others go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.data.dataset import ImageSet
from invkit.metrics.iou import iou
from invkit.objective import Objective, Targets, total
from invkit.protocols import Init, Prior, Renderer, Score
from invkit.records import Record, RecordStore, Trace
from invkit.types import Estimate, Guess, Views


@dataclass(frozen=True)
class Stage:
    """`steps` steps of Adam at these learning rates."""

    steps: int
    latent_rate: float
    camera_rate: float


MESHINVERSION_STAGES = (
    Stage(50, 0.1, 0.01),
    Stage(50, 0.05, 0.005),
    Stage(50, 0.01, 0.001),
    Stage(50, 0.005, 0.0005),
)

TRIAL = Stage(20, 0.05, 0.01)
"""Most guesses are then near what they can become; with more steps the same ones win."""


class Inverter:
    """Searches the latents and cameras under which a prior's renderings look like given pictures (Eq. 5).

    Args:
        init: gives the first guess, or several for each image, those for one image after another.
        objective: what is minimized. What it needs of the photographs is computed once for each search.
        betas: of Adam, for the latents and for the cameras alike.
        warm_up: step k, counted from 1, has its rates multiplied by k / warm_up as long as k < warm_up.
        optimize_camera: search the cameras too: rotation, scale and shift; the perspective stays as it is.
        normalize_quaternion: keep rotations rotations and scales positive. The released MeshInversion code lets the
            quaternion leave the unit sphere, which shears the object; False does as it does.
        extras: fields of `Rendering` that the objective reads beside rgb and mask, such as soft_mask.
        init_objective: by which `init` compares guesses; None takes `objective`. One without a costly term tries many
            times as many guesses in the same time, and the best of them by either is mostly as good a start.
        trial: where `init` gives several guesses for an image, all of them are first searched from for these steps, by
            `init_objective`, and the one that is then best by `objective` goes on.
        max_batch: guesses on trial at once; bounds the memory and changes nothing else.
    """

    def __init__(
        self,
        prior: Prior,
        renderer: Renderer,
        init: Init,
        objective: Objective,
        stages: Sequence[Stage] = MESHINVERSION_STAGES,
        *,
        betas: tuple[float, float] = (0.0, 0.99),
        warm_up: int = 0,
        optimize_camera: bool = True,
        normalize_quaternion: bool = True,
        extras: Sequence[str] = (),
        init_objective: Objective | None = None,
        trial: Stage = TRIAL,
        max_batch: int = 64,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1; got {max_batch}")
        self.prior, self.renderer, self.init, self.objective = prior, renderer, init, objective
        self.stages, self.betas, self.warm_up = tuple(stages), tuple(betas), warm_up
        self.optimize_camera, self.normalize_quaternion = optimize_camera, normalize_quaternion
        self.extras = frozenset(extras)
        self.init_objective = objective if init_objective is None else init_objective
        self.trial, self.max_batch = trial, max_batch

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
        for _ in range(self.trial.steps):
            with torch.enable_grad():
                value = total(self.init_objective(self.estimate(state.guess()), first_targets))
                state.step(value, self.trial.latent_rate, self.trial.camera_rate)
        with torch.no_grad():
            value = total(self.objective(self.estimate(state.guess()), targets))
        state.fall_back(value.isfinite())
        return state.guess().detach(), torch.where(state.finite, value, torch.inf)

    def _state(self, start: Guess) -> "_State":
        return _State(start.detach(), self.betas, self.optimize_camera, self.normalize_quaternion)

    def estimate(self, guess: Guess) -> Estimate:
        """What a guess looks like."""
        scene = self.prior.decode(guess.latent, guess.label)
        image = self.renderer(scene, guess.camera, extras=self.extras)
        return Estimate(guess.latent, guess.camera, scene, image, guess.label)

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
        state = self._state(start)
        masks = targets.views.mask.repeat_interleave(len(start) // len(targets), dim=0)
        columns, overlaps = [], []

        def look() -> tuple[Estimate, Float[Tensor, "B"]]:
            estimate = self.estimate(state.guess())
            terms = self.objective(estimate, targets)
            columns.append(torch.stack(list(terms.values()), dim=1).detach())
            overlaps.append(iou(estimate.image.mask.detach(), masks))
            return estimate, total(terms)

        for latent_rate, camera_rate in self._rates():
            with torch.enable_grad():
                _, value = look()
                state.step(value, latent_rate, camera_rate)
        with torch.no_grad():
            estimate, value = look()
            if not bool(value.isfinite().all()):
                state.fall_back(value.isfinite())
                columns.pop(), overlaps.pop()
                estimate, value = look()
        visible = estimate.image.mask.flatten(1).any(dim=1)
        overlap = torch.stack(overlaps, dim=1).float()
        names, values = tuple(self.objective.terms), torch.stack(columns, dim=1)
        return estimate.detach(), Trace(start.detach(), names, values, overlap, state.finite, visible)

    def _rates(self) -> Iterator[tuple[float, float]]:
        number = 0
        for stage in self.stages:
            for _ in range(stage.steps):
                number += 1
                factor = number / self.warm_up if number < self.warm_up else 1.0
                yield factor * stage.latent_rate, factor * stage.camera_rate


class _State:
    """The variables of the search, their optimizers, and the last values at which each image's objective was finite."""

    def __init__(
        self, start: Guess, betas: tuple[float, float], optimize_camera: bool, normalize_quaternion: bool
    ) -> None:
        self.start, self.normalize_quaternion = start, normalize_quaternion and optimize_camera
        camera = start.camera
        self.latent = start.latent.clone().requires_grad_()
        self.pose = [
            field.clone().requires_grad_(optimize_camera) for field in (camera.quat, camera.scale, camera.shift)
        ]
        self.adams = [torch.optim.Adam([self.latent], betas=betas)]
        if optimize_camera:
            self.adams.append(torch.optim.Adam(self.pose, betas=betas))
        self.variables = [self.latent, *self.pose] if optimize_camera else [self.latent]
        self.sound = [variable.detach().clone() for variable in self.variables]
        self.finite = torch.ones(len(start), dtype=torch.bool, device=self.latent.device)

    def guess(self) -> Guess:
        quat, scale, shift = self.pose
        camera = replace(self.start.camera, quat=quat, scale=scale, shift=shift)
        return replace(
            self.start, latent=self.latent, camera=camera.normalized() if self.normalize_quaternion else camera
        )

    def step(self, value: Float[Tensor, "B"], latent_rate: float, camera_rate: float) -> None:
        """One step of every image that is still sound, down the gradient of its own value."""
        gradients = torch.autograd.grad(value.sum(), self.variables, allow_unused=True, materialize_grads=True)
        self.fall_back(value.isfinite())
        for gradient in gradients:
            self.finite = self.finite & _finite([gradient])
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = _where(self.finite, gradient, torch.zeros_like(gradient))
        for adam, rate in zip(self.adams, (latent_rate, camera_rate), strict=False):
            adam.param_groups[0]["lr"] = rate
            adam.step()
        with torch.no_grad():
            if self.normalize_quaternion:
                quat, scale, _ = self.pose
                quat.copy_(torch.nn.functional.normalize(quat, dim=1))
                scale.abs_()
            for variable, sound in zip(self.variables, self.sound, strict=True):
                variable.copy_(_where(self.finite, variable, sound))

    @torch.no_grad()
    def fall_back(self, sound: Bool[Tensor, "B"]) -> None:
        """Remember the variables of the images that are sound; return the others for good to what was remembered."""
        self.finite = self.finite & sound
        for index, variable in enumerate(self.variables):
            self.sound[index] = _where(self.finite, variable, self.sound[index])
            variable.copy_(self.sound[index])


def _where(rows: Bool[Tensor, "B"], first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (first.dim() - 1)), first, second)


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
        "the picture or mask has values that are not finite": ~_finite(numbers[:2]),
        "the camera has values that are not finite": ~_finite(numbers[2:]),
        "the mask is empty": ~(views.mask.flatten(1) > 0).any(dim=1),
        "the camera's scale is not positive": camera.scale <= 0,
        "the camera's rotation is zero": camera.quat.norm(dim=1) == 0,
    }
    found = [f"image {index}: {fault}" for fault, where in faults.items() for index in views.index[where].tolist()]
    if found:
        raise ValueError("; ".join(found))


def _finite(tensors: Sequence[Tensor]) -> Bool[Tensor, "B"]:
    return torch.stack([tensor.isfinite().reshape(len(tensor), -1).all(dim=1) for tensor in tensors]).all(dim=0)


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

"""The variables of a search: what is stepped, how it is kept within bounds, and what is kept of it.

Images are rows that do not touch each other. One whose objective or gradient is not finite goes back to where it last
was sound and stays there; one that is done leaves, and takes its share of the work with it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.geometry.camera import MAX_LOG_FOCAL
from invkit.inversion.schedule import EPSILON, Stage
from invkit.types import Guess


class SearchState:
    """Adam on the latents and cameras of a batch of guesses.

    `guess()` is of the images that are still searched, whose positions in the batch are `rows`; `kept()` and `finite`
    are of all of them.

    Args:
        optimize_camera: rotation, scale and shift.
        optimize_focal: the perspective z0 = ln(f - 1) too, within [-4, 4], of the images that have one; only with
            `optimize_camera`.
        normalize_quaternion: bring rotations back to unit length and scales to positive after every step.
    """

    def __init__(
        self,
        start: Guess,
        betas: tuple[float, float],
        *,
        optimize_camera: bool = True,
        optimize_focal: bool = False,
        normalize_quaternion: bool = True,
    ) -> None:
        self.normalize_quaternion = normalize_quaternion and optimize_camera
        self.optimize_focal = optimize_focal and optimize_camera
        camera = start.camera
        pose = [camera.quat, camera.scale, camera.shift] if optimize_camera else []
        focal = [camera.to_augmented()[0]] if self.optimize_focal else []
        self.variables = [part.clone().requires_grad_() for part in (start.latent, *pose, *focal)]
        groups = [self.variables[:1], self.variables[1:]] if optimize_camera else [self.variables]
        self.adams = [torch.optim.Adam(group, betas=betas) for group in groups]
        self.rows = torch.arange(len(start), device=start.latent.device)
        self.finite = torch.ones_like(self.rows, dtype=torch.bool)
        self._start, self._start_here = start, start
        self._kept = [variable.detach().clone() for variable in self.variables]

    def guess(self) -> Guess:
        """Where the images that are still searched are; differentiable."""
        return self._assembled(self._start_here, self.variables)

    def kept(self) -> Guess:
        """Where each image last was when its objective was found to be finite."""
        return self._assembled(self._start, [kept.clone() for kept in self._kept])

    def step(self, value: Float[Tensor, "A"], stage: Stage) -> None:
        """One step of every image that is still sound, down the gradient of its own value, at the rates of a stage."""
        gradients = torch.autograd.grad(value.sum(), self.variables, allow_unused=True, materialize_grads=True)
        self.fall_back(value.isfinite())
        sound = self.finite[self.rows] & finite_rows(gradients)
        self.finite[self.rows] = sound
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = _where(sound, gradient, torch.zeros_like(gradient))
        settings = ((stage.latent_rate, stage.latent_epsilon), (stage.camera_rate, EPSILON))
        for adam, (rate, epsilon) in zip(self.adams, settings, strict=False):
            adam.param_groups[0].update(lr=rate, eps=epsilon)
            adam.step()
        with torch.no_grad():
            self._project()
            for variable, kept in zip(self.variables, self._kept, strict=True):
                variable.copy_(_where(sound, variable, kept[self.rows]))

    @torch.no_grad()
    def fall_back(self, sound: Bool[Tensor, "A"]) -> None:
        """Remember the variables of the images that are sound; return the others for good to what was remembered."""
        sound = self.finite[self.rows] & sound
        self.finite[self.rows] = sound
        for variable, kept in zip(self.variables, self._kept, strict=True):
            variable.copy_(_where(sound, variable, kept[self.rows]))
            kept[self.rows] = variable

    @torch.no_grad()
    def leave(self, done: Bool[Tensor, "A"]) -> None:
        """Go on without the images that are done; the others do not notice."""
        staying = (~done).nonzero().squeeze(1)
        self.rows, self._start_here = self.rows[staying], self._start_here[staying]
        fresh = {variable: variable.detach()[staying].clone().requires_grad_() for variable in self.variables}
        for adam in self.adams:
            group = adam.param_groups[0]
            for variable in group["params"]:
                moments = adam.state.pop(variable, {})
                adam.state[fresh[variable]] = {
                    name: value[staying] if value.dim() else value for name, value in moments.items()
                }
            group["params"] = [fresh[variable] for variable in group["params"]]
        self.variables = [fresh[variable] for variable in self.variables]

    def _assembled(self, start: Guess, variables: Sequence[Tensor]) -> Guess:
        latent, *pose = variables
        if not pose:
            return replace(start, latent=latent)
        camera = replace(start.camera, quat=pose[0], scale=pose[1], shift=pose[2])
        if self.optimize_focal:
            weak = start.camera.inv_focal == 0
            camera = replace(camera, inv_focal=torch.where(weak, 0.0, 1 / (1 + pose[3].exp())))
        return replace(start, latent=latent, camera=camera.normalized() if self.normalize_quaternion else camera)

    def _project(self) -> None:
        if self.normalize_quaternion:
            _, quat, scale, *_ = self.variables
            quat.copy_(torch.nn.functional.normalize(quat, dim=1))
            scale.abs_()
        if self.optimize_focal:
            self.variables[4].clamp_(-MAX_LOG_FOCAL, MAX_LOG_FOCAL)


def finite_rows(tensors: Sequence[Tensor]) -> Bool[Tensor, "B"]:
    """Where all numbers of an image are finite."""
    return torch.stack([tensor.isfinite().reshape(len(tensor), -1).all(dim=1) for tensor in tensors]).all(dim=0)


def _where(rows: Bool[Tensor, "B"], first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (first.dim() - 1)), first, second)

"""Where a photograph was taken from, given the object point seen at each pixel (section 3.2 of the paper).

A canonical map says for every foreground pixel which point of the object frame is there; the pose under which these
points land on their pixels is a perspective-n-point problem. OpenCV solves it for each of a few focal lengths, as a
single picture says little of its own: SQPnP, where that fails EPnP, then least squares; the focal length that leaves
the least error is taken. Weak perspective is a focal length so long that nothing is left of the perspective.

Images are apart, so they can be shared out to processes. These are spawned, not forked: a fork beside the threads of
torch or a CUDA context can hang.
"""

import math
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invkit.batch import Batch
from invkit.data.dataset import ImageSet
from invkit.evaluation import viewpoints
from invkit.geometry import rotation
from invkit.geometry.camera import Camera

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
FOREGROUND = 0.9
WEAK_FOCAL = 100.0
FEWEST_POINTS = 4


@dataclass(frozen=True)
class Poses(Batch):
    """The cameras of canonical maps.

    Args:
        error: root mean square, over both coordinates of all foreground pixels, of the distance between a pixel and
            where its point lands, in image widths; infinite where no pose was found.
        found: False where the map has no pose; its camera is then only a place to begin from.
    """

    camera: Camera
    error: Float[Tensor, "B"]
    found: Bool[Tensor, "B"]


@dataclass(frozen=True)
class _Fit:
    """x_camera = rotation x + translation, z away from the viewer, with the focal length over image width."""

    rotation: np.ndarray
    translation: np.ndarray
    focal: float
    error: float


@dataclass(frozen=True)
class _Problem:
    """What a worker is sent: points [N, 3] and where they are seen [N, 2], in image widths from the middle."""

    points: np.ndarray
    pixels: np.ndarray
    focals: tuple[float, ...]
    refined: int


def focal_candidates(focals: Float[Tensor, "N"]) -> tuple[float, ...]:
    """Percentiles 1, 10, 20, ..., 90, 99 of a data set's focal lengths, each once.

    The paper has one at every tenth percentile; these eleven are the released code's.
    """
    return tuple(np.unique(np.percentile(focals.double().cpu().numpy(), PERCENTILES)).tolist())


def focals_of(data: ImageSet, most: int | None = None) -> tuple[float, ...] | None:
    """`focal_candidates` of a data set's cameras, or None where they are weak perspective: what `PoseSolver` takes.

    Args:
        most: so many cameras are looked at, spread over the set; None is all. One is enough where all are alike.
    """
    count = len(data) if most is None else min(most, len(data))
    return candidates_of(data.cameras([index * len(data) // count for index in range(count)]))


def candidates_of(camera: Camera) -> tuple[float, ...] | None:
    """`focal_candidates` of the cameras with perspective, or None where none has any."""
    inv_focal = camera.inv_focal[camera.inv_focal > 0]
    return focal_candidates(1 / (2 * inv_focal)) if len(inv_focal) else None


class PoseSolver:
    """The camera under which the points of a canonical map are seen at their pixels.

    Args:
        focals: candidate focal lengths over image width (half of `Camera`'s f), best `focals_of` the data;
            None is weak perspective.
        offset: where in its cell a pixel lies, as for the renderer that made the maps: 0.5 its center, 0 its top-left
            corner, as in the released code.
        threshold: pixels whose mask is above it are used, all of them.
        refined: the least squares are solved only for so many of the focal lengths, those that are best without; saves
            most of the time. None solves them for all, as the released code does.
        fallback: one camera, for maps that have no pose; None is a level side view moved to the middle of the mask.
            The released code puts the object behind the camera, where nothing is seen and nothing can be improved.
        workers: processes, started when first needed; 0 solves in this one, with equal results.
    """

    def __init__(
        self,
        focals: Sequence[float] | None,
        *,
        offset: float = 0.5,
        threshold: float = FOREGROUND,
        refined: int | None = None,
        fallback: Camera | None = None,
        workers: int = 0,
    ) -> None:
        if focals is not None and not (len(focals) and all(math.isfinite(focal) and focal > 0 for focal in focals)):
            raise ValueError(f"focals must be finite and above 0, and at least one; got {list(focals)}")
        if workers < 0 or (refined is not None and refined < 1):
            raise ValueError(f"workers must be >= 0 and refined >= 1 or None; got {workers}, {refined}")
        if fallback is not None and len(fallback) != 1:
            raise ValueError(f"fallback must be one camera; got {len(fallback)}")
        self.weak = focals is None
        self.focals = (WEAK_FOCAL,) if focals is None else tuple(float(focal) for focal in focals)
        self.offset, self.threshold, self.fallback, self.workers = offset, threshold, fallback, workers
        self.refined = len(self.focals) if refined is None else refined
        self._pool: ProcessPoolExecutor | None = None

    @torch.no_grad()
    def __call__(self, coords: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]) -> Poses:
        """The poses; whatever the maps hold, nothing is raised.

        Args:
            coords: the point of the object frame seen at each pixel.
            mask: how sure it is that there is one.
        """
        used = (mask[:, 0] > self.threshold) & coords.isfinite().all(dim=1)
        pixels = _pixel_places(coords.shape[2], coords.shape[3], self.offset)
        each = zip(coords.movedim(1, -1).double().cpu().numpy(), used.cpu().numpy(), strict=True)
        fits = self._solve([_Problem(points[f], pixels[f], self.focals, self.refined) for points, f in each])
        cameras = [self._camera(fit) if fit else self._instead(one) for fit, one in zip(fits, mask, strict=True)]
        return Poses(
            Camera.cat(cameras).to(coords.device, dtype=coords.dtype),
            torch.tensor([fit.error if fit else math.inf for fit in fits]).to(coords),
            torch.tensor([fit is not None for fit in fits], device=coords.device),
        )

    def close(self) -> None:
        """End the processes; they start again when they are needed again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _solve(self, problems: Sequence[_Problem]) -> list[_Fit | None]:
        if self.workers == 0:
            return [solve(problem) for problem in problems]
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_on_one_core)
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        try:
            return list(self._pool.map(solve, problems))
        except BrokenProcessPool:
            warnings.warn("a process that solved for poses has died; solving in this one", stacklevel=3)
            self.close()
            return [solve(problem) for problem in problems]

    def _camera(self, fit: _Fit) -> Camera:
        quat = rotation.from_matrix(torch.from_numpy(fit.rotation)[None])
        scale = torch.tensor([2 * fit.focal / fit.translation[2]], dtype=torch.float64)
        shift = torch.from_numpy(fit.translation[:2])[None] * scale[:, None]
        inv_focal = torch.zeros_like(scale) if self.weak else torch.full_like(scale, 1 / (2 * fit.focal))
        return Camera(quat, scale, shift, inv_focal)

    def _instead(self, mask: Float[Tensor, "1 H W"]) -> Camera:
        if self.fallback is not None:
            return self.fallback.to("cpu", dtype=torch.float64)
        camera = viewpoints.azimuth_ring(1, default_orientation=0.0)
        weight = mask[0].double().cpu().nan_to_num().clamp(0, 1)
        places = torch.from_numpy(2 * _pixel_places(*weight.shape, self.offset))
        middle = (places * weight[..., None]).sum(dim=(0, 1)) / weight.sum().clamp(min=1)
        focal = sorted(self.focals)[len(self.focals) // 2]
        inv_focal = torch.zeros(1) if self.weak else torch.full((1,), 1 / (2 * focal))
        return Camera(camera.quat.double(), camera.scale.double(), middle[None], inv_focal.double())


def _pixel_places(height: int, width: int, offset: float) -> np.ndarray:
    """x, y of each pixel in image widths from the middle, y down: [H, W, 2]."""
    x, y = (np.arange(width) + offset) / width - 0.5, (np.arange(height) + offset) / height - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1)


# ---- One image -------------------------------------------------------------------------------------------------------


def solve(problem: _Problem) -> _Fit | None:
    """The best pose over all focal lengths; None where there is none in front of the camera that says anything."""
    if len(problem.points) < FEWEST_POINTS:
        return None
    begun = [
        fit for focal in problem.focals if (fit := _closed_form(problem.points, problem.pixels, focal)) is not None
    ]
    begun = sorted(begun, key=lambda fit: fit.error)[: problem.refined]
    best = min(
        (_least_squares(problem.points, problem.pixels, fit) for fit in begun), key=lambda f: f.error, default=None
    )
    # An object so far away that it is a single spot leaves this much; what leaves more explains nothing.
    spread = float(problem.pixels.std(axis=0).dot(problem.pixels.std(axis=0)) / 2) ** 0.5
    return best if best is not None and best.error < spread else None


def _closed_form(points: np.ndarray, pixels: np.ndarray, focal: float) -> _Fit | None:
    import cv2

    for method in (cv2.SOLVEPNP_SQPNP, cv2.SOLVEPNP_EPNP):
        if (fit := _opencv(points, pixels, focal, flags=method)) is not None:
            return fit
    return None


def _least_squares(points: np.ndarray, pixels: np.ndarray, begun: _Fit) -> _Fit:
    """The pose after Levenberg and Marquardt's method, or the one before where that leads nowhere."""
    import cv2

    start = {
        "rvec": cv2.Rodrigues(begun.rotation)[0],
        "tvec": begun.translation.reshape(3, 1).copy(),
        "useExtrinsicGuess": True,
    }
    refined = _opencv(points, pixels, begun.focal, flags=cv2.SOLVEPNP_ITERATIVE, **start)
    return begun if refined is None else refined


def _opencv(points: np.ndarray, pixels: np.ndarray, focal: float, **options: Any) -> _Fit | None:
    """The best of OpenCV's solutions that lie in front of the camera."""
    import cv2

    intrinsics = np.diag([focal, focal, 1.0])
    try:
        _, rotations, translations, errors = cv2.solvePnPGeneric(points, pixels, intrinsics, None, **options)
    except cv2.error:
        return None
    if not rotations:
        return None
    fits = [
        _Fit(cv2.Rodrigues(turn)[0], place.ravel(), focal, float(error.item()))
        for turn, place, error in zip(rotations, translations, np.reshape(errors, (-1, 1)), strict=True)
        if np.isfinite(turn).all() and np.isfinite(place).all() and place[2] > 0 and np.isfinite(error).all()
    ]
    return min(fits, key=lambda fit: fit.error, default=None)


def _on_one_core() -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)

"""First guesses for the search (MeshInversion, section 3.1)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit import rotation, viewpoints
from invkit.camera import Camera
from invkit.protocols import Prior, Score
from invkit.types import Guess, Views
from meshinv.losses.points import FOREGROUND


class BestOfN:
    """The best of `count` random latents under the given camera.

    All images are offered the same latents, so the guess for an image does not depend on its batch. Where the prior has
    classes and the image's is not known, every latent comes with a random class, and the winner's class is kept.

    Args:
        count: latents tried for each image.
        batch_size: guesses decoded and rendered at once, all images together.
        turns: for photographs whose camera is unknown: the latents take turns in this many evenly spaced azimuths,
            from the given camera on.
        classes: those tried where an image's is unknown, such as those the prior was trained on; None is all it has.
    """

    def __init__(
        self,
        count: int = 500,
        *,
        batch_size: int = 50,
        seed: int = 1234,
        turns: int = 1,
        classes: Sequence[int] | None = None,
    ) -> None:
        if min(count, batch_size, turns) < 1:
            raise ValueError(f"count, batch_size and turns must be at least 1; got {count}, {batch_size}, {turns}")
        if classes is not None and not len(classes):
            raise ValueError("classes must name at least one class, or be left out")
        self.count, self.batch_size, self.seed, self.turns = count, batch_size, seed, turns
        self.classes = classes

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """The best guesses.

        Raises:
            ValueError: an image's class, or one to be tried, is none of the prior's.
        """
        offered = offered_classes(prior, views, self.classes)
        rng = torch.Generator().manual_seed(self.seed)
        images, device = len(views), views.rgb.device
        latents = prior.sample(self.count, rng).to(device)
        classes = offered[torch.randint(len(offered), (self.count,), generator=rng)].to(device)
        best = views.rgb.new_full((images,), torch.inf)
        winner = torch.zeros(images, dtype=torch.long, device=device)
        at_once = max(1, self.batch_size // images)
        for tried in torch.arange(self.count, device=device).split(at_once):
            candidate = tried.repeat(images)
            guess = Guess(
                latents[candidate],
                self._turned(views.camera.repeat(len(tried)), candidate),
                _labels(prior, views.repeat(len(tried)), classes[candidate]),
            )
            values = score(guess).view(images, len(tried)).to(best)
            least, position = torch.where(values.isnan(), torch.inf, values).min(dim=1)
            winner = torch.where(least < best, tried[position], winner)
            best = torch.minimum(best, least)
        return Guess(latents[winner], self._turned(views.camera, winner), _labels(prior, views, classes[winner]))

    def _turned(self, camera: Camera, candidate: Tensor) -> Camera:
        return camera if self.turns == 1 else viewpoints.turned(camera, candidate % self.turns * (360 / self.turns))


def offered_classes(prior: Prior, views: Views, classes: Sequence[int] | None) -> Int[Tensor, "N"]:
    """The classes to be tried where an image's is unknown.

    Args:
        classes: the choice; None is all that the prior has.

    Raises:
        ValueError: an image's class, or one to be tried, is none of the prior's.
    """
    if prior.num_classes and views.label is not None and int(views.label.max()) >= prior.num_classes:
        raise ValueError(
            f"class {int(views.label.max())} of the data: the prior has classes 0 to {prior.num_classes - 1}"
        )
    offered = torch.arange(max(prior.num_classes, 1)) if classes is None else torch.tensor(list(classes))
    if prior.num_classes and not 0 <= int(offered.min()) <= int(offered.max()) < prior.num_classes:
        raise ValueError(f"classes {classes}: the prior has classes 0 to {prior.num_classes - 1}")
    return offered


def _labels(prior: Prior, views: Views, guessed: Tensor) -> Tensor | None:
    """The classes of the images: none, known or guessed."""
    if prior.num_classes == 0:
        return None
    return guessed if views.label is None else views.label


class BestOfViews:
    """The best guesses from all around the object, for photographs whose camera is unknown.

    Random latents (with random classes, where the class is unknown too) are looked at from `azimuths` evenly spaced
    sides, their bodies inclined by each of `inclinations`; scale and shift are those that bring the box around the
    projected mesh onto the box around the silhouette. For each view the best latent is found, and the best `keep` views
    are returned: a search that begins from each of them for a while can tell front from back where a first look cannot.

    Args:
        count: guesses tried for each image, all views together.
        keep: guesses returned for each image.
        inclinations: degrees; 0 is an upright body, 90 one that lies (`viewpoints.canonical`).
        batch_size: guesses decoded and rendered at once, all images together.
        classes: those tried where an image's is unknown; None is all the prior has.
    """

    def __init__(
        self,
        count: int = 720,
        *,
        keep: int = 8,
        azimuths: int = 12,
        inclinations: Sequence[float] = (0.0, 30.0, 60.0),
        batch_size: int = 50,
        seed: int = 1234,
        classes: Sequence[int] | None = None,
    ) -> None:
        views = azimuths * len(inclinations)
        if not 1 <= keep <= views <= count or batch_size < 1:
            raise ValueError(
                f"need 1 <= keep <= azimuths * inclinations <= count and batch_size >= 1; got keep {keep}, "
                f"{azimuths} * {len(inclinations)} views, count {count}, batch_size {batch_size}"
            )
        self.keep, self.batch_size, self.seed, self.classes = keep, batch_size, seed, classes
        self.per_view = count // views
        self.rotations = torch.cat(
            [viewpoints.azimuth_ring(azimuths, default_orientation=degrees).quat for degrees in inclinations]
        )

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """`keep` guesses for each image, best first, those of one image after another.

        Raises:
            ValueError: an image's class, or one to be tried, is none of the prior's.
        """
        offered = offered_classes(prior, views, self.classes)
        rng = torch.Generator().manual_seed(self.seed)
        images, device = len(views), views.rgb.device
        rotations = self.rotations.to(views.camera.quat)
        count = len(rotations) * self.per_view
        latents = prior.sample(count, rng).to(device)
        classes = offered[torch.randint(len(offered), (count,), generator=rng)].to(device)
        # Candidate i of view v is number v * per_view + i.
        values, cameras = [], []
        for tried in torch.arange(count, device=device).split(max(1, self.batch_size // images)):
            candidate = tried.repeat(images)
            shown = views.repeat(len(tried))
            label = _labels(prior, shown, classes[candidate])
            guess = Guess(latents[candidate], shown.camera, label)
            guess = replace(
                guess, camera=self._onto_silhouette(prior, guess, rotations[candidate // self.per_view], shown)
            )
            found = score(guess).view(images, len(tried))
            values.append(torch.where(found.isnan(), torch.inf, found))
            cameras.append(guess.camera)
        value = torch.cat(values, dim=1).unflatten(1, (len(rotations), self.per_view))
        least, place = value.min(dim=2)
        order = least.argsort(dim=1, stable=True)[:, : self.keep]
        chosen = order * self.per_view + place.gather(1, order)
        image = torch.arange(images, device=device)[:, None].expand_as(chosen)
        camera = _by_candidate(cameras, images)[(chosen * images + image).flatten()]
        shown = views.repeat(self.keep)
        return Guess(latents[chosen.flatten()], camera, _labels(prior, shown, classes[chosen.flatten()]))

    def _onto_silhouette(self, prior: Prior, guess: Guess, quat: Tensor, views: Views) -> Camera:
        """Weak-perspective cameras under which the meshes fill the boxes around the silhouettes."""
        vertices = rotation.rotate(quat, prior.decode(guess.latent, guess.label).vertices)[..., :2]
        low, high = vertices.amin(dim=1), vertices.amax(dim=1)
        left_top, right_bottom = silhouette_box(views.mask)
        wanted = (right_bottom - left_top).prod(dim=1)
        scale = (wanted / (high - low).prod(dim=1).clamp_min(1e-12)).sqrt()
        shift = (left_top + right_bottom) / 2 - scale[:, None] * (low + high) / 2
        return Camera(quat, scale, shift, torch.zeros_like(scale))


def silhouette_box(mask: Float[Tensor, "B 1 H W"]) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    """Left-top and right-bottom corner of the foreground's box in NDC; the whole picture where there is none."""
    corners = []
    for axis in (3, 2):
        inside = (mask > FOREGROUND).any(dim=5 - axis).flatten(1)
        inside = inside | ~inside.any(dim=1, keepdim=True)
        size = inside.shape[1]
        first, last = inside.float().argmax(dim=1), size - inside.flip(1).float().argmax(dim=1)
        corners.append(torch.stack([first, last], dim=1).to(mask) * (2 / size) - 1)
    low, high = torch.stack(corners, dim=2).unbind(1)
    return low, high


def _by_candidate(parts: Sequence[Camera], images: int) -> Camera:
    """Cameras listed image by image in each part, as one list: candidate by candidate, and in it image by image."""
    return Camera.cat([part[torch.arange(len(part)).view(images, -1).T.flatten()] for part in parts])

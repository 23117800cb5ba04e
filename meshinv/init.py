"""First guesses for the search (MeshInversion, section 3.1)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.evaluation import viewpoints
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
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
        classes: those tried where an image's is unknown, such as those the prior was trained on; None is all it has.
    """

    def __init__(
        self,
        count: int = 500,
        *,
        batch_size: int = 50,
        seed: int = 1234,
        classes: Sequence[int] | None = None,
    ) -> None:
        if min(count, batch_size) < 1:
            raise ValueError(f"count and batch_size must be at least 1; got {count} and {batch_size}")
        if classes is not None and not len(classes):
            raise ValueError("classes must name at least one class, or be left out")
        self.count, self.batch_size, self.seed, self.classes = count, batch_size, seed, classes

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
                views.camera.repeat(len(tried)),
                _labels(prior, views.repeat(len(tried)), classes[candidate]),
            )
            values = score(guess).view(images, len(tried)).to(best)
            least, position = torch.where(values.isnan(), torch.inf, values).min(dim=1)
            winner = torch.where(least < best, tried[position], winner)
            best = torch.minimum(best, least)
        return Guess(latents[winner], views.camera, _labels(prior, views, classes[winner]))


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
    sides at each of `inclinations`; scale and shift are those that bring the box around the projected mesh onto the box
    around the silhouette. All views are offered the same latents, each takes the one that suits it best, and the best
    `keep` views are returned: a search that begins from each of them for a while can tell front from back where a first
    look cannot.

    Args:
        count: latents tried in each view.
        keep: guesses returned for each image, all of different views.
        inclinations: degrees by which the body's axis rises towards the head; 0 is level, 90 head up
            (`viewpoints.canonical`).
        batch_size: guesses decoded and rendered at once, all images together.
        classes: those tried where an image's is unknown; None is all the prior has.
    """

    def __init__(
        self,
        count: int = 20,
        *,
        keep: int = 8,
        azimuths: int = 12,
        inclinations: Sequence[float] = (0.0, 30.0, 60.0),
        batch_size: int = 50,
        seed: int = 1234,
        classes: Sequence[int] | None = None,
    ) -> None:
        if min(count, batch_size, azimuths, len(inclinations)) < 1:
            raise ValueError(
                f"count, batch_size, azimuths and the number of inclinations must be at least 1; got {count}, "
                f"{batch_size}, {azimuths}, {len(inclinations)}"
            )
        if not 1 <= keep <= azimuths * len(inclinations):
            raise ValueError(f"keep must be from 1 to the {azimuths * len(inclinations)} views; got {keep}")
        if classes is not None and not len(classes):
            raise ValueError("classes must name at least one class, or be left out")
        self.count, self.keep, self.batch_size, self.seed, self.classes = count, keep, batch_size, seed, classes
        rings = [viewpoints.azimuth_ring(azimuths, default_orientation=degrees) for degrees in inclinations]
        self.rotations = Camera.cat(rings).quat

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """`keep` guesses for each image, best first, those of one image after another.

        Raises:
            ValueError: an image's class, or one to be tried, is none of the prior's.
        """
        offered = offered_classes(prior, views, self.classes)
        rng = torch.Generator().manual_seed(self.seed)
        images, device = len(views), views.rgb.device
        latents = prior.sample(self.count, rng).to(device)
        classes = offered[torch.randint(len(offered), (self.count,), generator=rng)].to(device)
        rotations = self.rotations.to(views.camera.quat)
        corners = silhouette_box(views.mask)
        values: list[list[Tensor]] = [[] for _ in rotations]
        for tried in torch.arange(self.count, device=device).split(max(1, self.batch_size // images)):
            candidate, image = tried.repeat(images), torch.arange(images, device=device).repeat_interleave(len(tried))
            latent, label = latents[candidate], _labels(prior, views.repeat(len(tried)), classes[candidate])
            vertices = prior.decode(latent, label).vertices
            for view, quat in enumerate(rotations):
                camera = filling(vertices, quat.expand(len(latent), 4), *(corner[image] for corner in corners))
                values[view].append(score(Guess(latent, camera, label)).view(images, -1))
        value = torch.stack([torch.cat(parts, dim=1) for parts in values], dim=1)
        least, candidate = torch.where(value.isnan(), torch.inf, value).min(dim=2)
        view = least.argsort(dim=1, stable=True)[:, : self.keep].flatten()
        image = torch.arange(images, device=device).repeat_interleave(self.keep)
        candidate = candidate[image, view]
        latent, label = latents[candidate], _labels(prior, views.repeat(self.keep), classes[candidate])
        vertices = self._vertices(prior, latent, label)
        return Guess(latent, filling(vertices, rotations[view], *(corner[image] for corner in corners)), label)

    def _vertices(self, prior: Prior, latent: Float[Tensor, "N *L"], label: Int[Tensor, "N"] | None) -> Tensor:
        parts = torch.arange(len(latent), device=latent.device).split(self.batch_size)
        return torch.cat([prior.decode(latent[p], None if label is None else label[p]).vertices for p in parts])


def filling(
    vertices: Float[Tensor, "B N 3"],
    quat: Float[Tensor, "B 4"],
    left_top: Float[Tensor, "B 2"],
    right_bottom: Float[Tensor, "B 2"],
) -> Camera:
    """The weak-perspective cameras in which the box around a turned object has the middle and area of a given one."""
    turned = rotation.rotate(quat, vertices)[..., :2]
    low, high = turned.amin(dim=1), turned.amax(dim=1)
    wanted = (right_bottom - left_top).prod(dim=1)
    scale = (wanted / (high - low).prod(dim=1).clamp_min(1e-12)).sqrt()
    shift = (left_top + right_bottom) / 2 - scale[:, None] * (low + high) / 2
    return Camera(quat, scale, shift, torch.zeros_like(scale))


def silhouette_box(mask: Float[Tensor, "B 1 H W"]) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    """Left-top and right-bottom corner of the foreground's box in NDC; the whole picture where there is none."""
    corners = []
    for seen in ((mask > FOREGROUND).any(dim=2).flatten(1), (mask > FOREGROUND).any(dim=3).flatten(1)):
        inside = (seen | ~seen.any(dim=1, keepdim=True)).to(mask)
        first, last = inside.argmax(dim=1), inside.shape[1] - inside.flip(1).argmax(dim=1)
        corners.append(torch.stack([first, last], dim=1).to(mask) * (2 / inside.shape[1]) - 1)
    low, high = torch.stack(corners, dim=2).unbind(1)
    return low, high

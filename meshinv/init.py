"""First guesses for the search (MeshInversion, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from invkit import viewpoints
from invkit.camera import Camera
from invkit.protocols import Prior, Score
from invkit.types import Guess, Views


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
        if prior.num_classes and views.label is not None and int(views.label.max()) >= prior.num_classes:
            raise ValueError(
                f"class {int(views.label.max())} of the data: the prior has classes 0 to {prior.num_classes - 1}"
            )
        offered = torch.arange(max(prior.num_classes, 1)) if self.classes is None else torch.tensor(list(self.classes))
        if prior.num_classes and not 0 <= int(offered.min()) <= int(offered.max()) < prior.num_classes:
            raise ValueError(f"classes {self.classes}: the prior has classes 0 to {prior.num_classes - 1}")
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


def _labels(prior: Prior, views: Views, guessed: Tensor) -> Tensor | None:
    """The classes of the images: none, known or guessed."""
    if prior.num_classes == 0:
        return None
    return guessed if views.label is None else views.label

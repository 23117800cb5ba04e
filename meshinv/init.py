"""First guesses for the search (MeshInversion, section 3.1)."""

import torch
from torch import Tensor

from invkit.protocols import Prior, Score
from invkit.types import Guess, Views


class BestOfN:
    """The best of `count` random latents under the given camera.

    All images are offered the same latents, so the guess for an image does not depend on its batch. Where the prior has
    classes and the image's is not known, every latent comes with a random class, and the winner's class is kept.

    Args:
        count: latents tried for each image.
        batch_size: guesses decoded and rendered at once, all images together.
    """

    def __init__(self, count: int = 500, *, batch_size: int = 50, seed: int = 1234) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(f"count and batch_size must be at least 1; got {count} and {batch_size}")
        self.count, self.batch_size, self.seed = count, batch_size, seed

    @torch.no_grad()
    def __call__(self, prior: Prior, views: Views, score: Score) -> Guess:
        """The best guesses.

        Raises:
            ValueError: an image's class is none of the prior's.
        """
        if prior.num_classes and views.label is not None and int(views.label.max()) >= prior.num_classes:
            raise ValueError(
                f"class {int(views.label.max())} of the data: the prior has classes 0 to {prior.num_classes - 1}"
            )
        rng = torch.Generator().manual_seed(self.seed)
        images, device = len(views), views.rgb.device
        latents = prior.sample(self.count, rng).to(device)
        classes = torch.randint(max(prior.num_classes, 1), (self.count,), generator=rng).to(device)
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


def _labels(prior: Prior, views: Views, guessed: Tensor) -> Tensor | None:
    """The classes of the images: none, known or guessed."""
    if prior.num_classes == 0:
        return None
    return guessed if views.label is None else views.label

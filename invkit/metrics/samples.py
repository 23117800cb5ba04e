"""How far a generator's samples are from photographs, measured while it is trained.

One sample for each photograph: the photograph's class, its camera, a latent. What differs between two measurements of a
run is then the generator alone. Object and sample are cut out and shown on the same background, so that only what is
generated is compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.batch import Batch
from invkit.data.dataset import ImageSet
from invkit.features.frozen import Features
from invkit.geometry.camera import Camera
from invkit.images import composite
from invkit.metrics.fid import frechet_distance, warn_of_few
from invkit.metrics.gaussian import Gaussian, Moments
from invkit.metrics.kid import squared_mmd
from invkit.protocols import Renderer
from invkit.types import Views

Samples = Callable[[slice, Camera, Int[Tensor, "B"] | None], Tensor]
"""Colors of the samples of these numbers, of these classes and under these cameras, over the background."""


@dataclass(frozen=True)
class _Seen(Batch):
    """What is kept of the photographs: enough to show a sample as each of them was taken, and to compare."""

    camera: Camera
    label: Int[Tensor, "B"] | None
    features: Float[Tensor, "B D"]


class SampleDistance:
    """KID and FID between samples of a generator and photographs.

    The photographs are read, and their features computed, at the first measurement only.

    count: how many photographs, and samples, are compared.

    Args:
        data: the photographs, at the renderer's size: another size would be another sharpness.
        renderer: draws the samples.
        features: the network that compares.
        count: at most this many of the photographs, evenly spread over the set; None for all.
        background: of samples and photographs, in [-1, 1]; published statistics have mid grey.
        batch_size: samples generated, rendered and seen by the network at a time.
        seed: of the latents.
        reference: the real side of FID, where it is a published file of statistics; KID compares with `data` in any
            case. None: FID too.
        all_reals: the real side of FID is all photographs, not the `count` that samples are made for.
        fid_first: FID stands before KID, and so chooses the best checkpoint, as in the released code of both papers.

    Raises:
        ValueError: fewer than 2 photographs or less than 1 sample at a time; the camera of a photograph is not known;
            the reference was measured with another network.
    """

    def __init__(
        self,
        *,
        data: ImageSet,
        renderer: Renderer,
        features: Features,
        count: int | None = None,
        background: float = 0.0,
        batch_size: int = 32,
        seed: int = 0,
        reference: Gaussian | None = None,
        all_reals: bool = False,
        fid_first: bool = False,
    ) -> None:
        count = len(data) if count is None else min(count, len(data))
        if count < 2 or batch_size < 1:
            raise ValueError(
                f"a distance between sets needs at least 2 photographs and batches of at least 1, not {count} of the "
                f"{len(data)} held out and batch_size={batch_size}"
            )
        if data.guessed_cameras:
            raise ValueError(
                f"task.quality.data: no camera is known of {len(data.guessed_cameras)} of {len(data)} photographs, "
                f"first {data.guessed_cameras[0]}; samples are shown as each was taken. Give cameras in the manifest "
                "(docs/datasets.md), or train without the measurement: task.quality=null"
            )
        own = (features.name, features.dim)
        if reference is not None and (reference.features or features.name, len(reference.mean)) != own:
            raise ValueError(
                f"the reference has {len(reference.mean)} features of {reference.features or 'an unnamed network'}, "
                f"{features.name} has {features.dim}: two networks' numbers cannot be compared"
            )
        self.data, self.renderer, self.features, self.count = data, renderer, features, count
        self.background, self.batch_size, self.seed, self.reference = background, batch_size, seed, reference
        self.all_reals, self.fid_first = all_reals, fid_first
        self.indices = [i * len(data) // count for i in range(count)]
        self._seen: _Seen | None = None
        self._reals: Gaussian | None = None

    @torch.no_grad()
    def distances(self, samples: Samples, device: torch.device) -> dict[str, float]:
        """ "kid@<features>", one unbiased estimate from all images, and "fid@<features>"; lower is better.

        The first call warns where FID is made of few images, later ones do not repeat it.

        Args:
            samples: asked for numbers 0 to `count`, with cameras and classes on `device`.

        Raises:
            ValueError: the photographs are not of the size of the renderings; a feature is not finite.
        """
        first = self._seen is None
        if first:
            self._seen = self._photographs(device)
            self._reals = self._real_side(device) if self.reference is None else self.reference
        seen, real = self._seen, self._reals
        parts = []
        for start in range(0, len(seen), self.batch_size):
            part = slice(start, start + self.batch_size)
            shown = seen[part].to(device)
            rgb = samples(part, shown.camera, shown.label)
            if rgb.shape[-2:] != (self.data.size, self.data.size):
                raise ValueError(
                    f"the held-out photographs are of size {self.data.size}, the renderings {tuple(rgb.shape[-2:])}: "
                    "give both the same"
                )
            parts.append(self._features(rgb))
        features = torch.cat(parts)
        if first:
            warn_of_few(f"fid@{self.features.name}", len(features), real.count)
        kid = {f"kid@{self.features.name}": float(squared_mmd(features, seen.features))}
        fid = {f"fid@{self.features.name}": frechet_distance(self._gaussian(features), real)}
        return fid | kid if self.fid_first else kid | fid

    def _real_side(self, device: torch.device) -> Gaussian:
        """Of FID: of the photographs that samples are compared with one by one, or of all of them."""
        if not self.all_reals or self.count == len(self.data):
            return self._gaussian(self._seen.features)
        moments = Moments(self.features.dim)
        moments.add(self._seen.features)
        seen = set(self.indices)
        others = [index for index in range(len(self.data)) if index not in seen]
        for start in range(0, len(others), self.batch_size):
            views = self.data.batch(others[start : start + self.batch_size]).to(device)
            moments.add(self._features(composite(views.rgb, views.mask, self.background)))
        return moments.gaussian(self.features.name)

    def _photographs(self, device: torch.device) -> _Seen:
        parts = []
        for start in range(0, len(self.indices), self.batch_size):
            views: Views = self.data.batch(self.indices[start : start + self.batch_size])
            there = views.to(device)
            rgb = composite(there.rgb, there.mask, self.background)
            parts.append(_Seen(views.camera, views.label, self._features(rgb)))
        return _Seen.cat(parts)

    def _features(self, rgb: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """On the CPU."""
        return self.features.to(rgb.device)(rgb).cpu()

    def _gaussian(self, features: Float[Tensor, "N D"]) -> Gaussian:
        moments = Moments(self.features.dim)
        moments.add(features)
        return moments.gaussian(self.features.name)

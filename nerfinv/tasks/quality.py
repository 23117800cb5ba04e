"""How far a generator's samples are from photographs, measured while it is trained; see `invkit.metrics.samples`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invkit.geometry.camera import Camera
from invkit.metrics.samples import SampleDistance
from nerfinv.generator.generator import Generator


class SampleQuality(SampleDistance):
    """KID and FID between samples of a generator of radiance fields and photographs."""

    @torch.no_grad()
    def measure(self, generator: Generator, device: torch.device) -> dict[str, float]:
        """ "kid@<features>", then "fid@<features>"; lower is better.

        Latents are not truncated.

        Raises:
            ValueError: the generator has classes and the photographs have none; the photographs are not of the size
                of the renderings; a feature is not finite.
        """
        rng = torch.Generator().manual_seed(self.seed)
        latents = torch.randn(self.count, generator.latent_dim, generator=rng)
        like = next(generator.parameters())

        def samples(part: slice, camera: Camera, label: Int[Tensor, "B"] | None) -> Float[Tensor, "B 3 H W"]:
            field = generator(generator.style(latents[part].to(like), label))
            image = self.renderer(field, camera.to(like.device, dtype=like.dtype))
            return image.over(self.background).clamp(-1, 1).float()

        return self.distances(samples, device)

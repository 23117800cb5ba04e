"""How far a generator's samples are from photographs it was not trained on, measured while it is trained.

Latents are truncated (ConvMesh, section 4); the rest is `invkit.metrics.samples`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.geometry.camera import Camera
from invkit.metrics.samples import SampleDistance
from meshinv.prior import truncated_normal
from meshinv.template import Template


class SampleQuality(SampleDistance):
    """KID and FID between samples of a mesh generator and held-out photographs."""

    def measure(
        self, generator: nn.Module, template: Template, truncation: float, device: torch.device
    ) -> dict[str, float]:
        """ "kid@<features>", then "fid@<features>"; lower is better.

        Args:
            generator: has `latent_dim`, and makes `UVMaps` of latents and classes; on `device`, and in evaluation or
                training mode, as the caller left it.
            truncation: bound on the entries of the latents.

        Raises:
            ValueError: the generator has classes and the photographs have none; the photographs are not of the size
                of the renderings; a feature is not finite.
        """
        rng = torch.Generator().manual_seed(self.seed)
        latents = truncated_normal((self.count, generator.latent_dim), truncation, rng)

        def samples(part: slice, camera: Camera, label: Int[Tensor, "B"] | None) -> Float[Tensor, "B 3 H W"]:
            mesh = generator(latents[part].to(device), label).map(Tensor.float).mesh(template)
            image = self.renderer(mesh, camera)
            return image.over(self.background)

        return self.distances(samples, device)

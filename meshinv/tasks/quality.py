"""How far a generator's samples are from photographs it was not trained on, measured while it is trained.

Latents are truncated (ConvMesh, section 4); the rest is `invkit.metrics.samples`.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.geometry.camera import Camera
from invkit.metrics.samples import SampleDistance, Samples
from meshinv.mesh import UVMaps
from meshinv.prior import truncated_normal
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.template import Template

KEPT = {"texture": "displacement", "mesh": "texture"}
"""What is generated -> which of the maps is not."""
SUFFIXES = ("jpg", "jpeg", "png")


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

    def measure_parts(
        self, generator: nn.Module, template: Template, truncation: float, truth: PseudoTruthSet, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """ "texture" and "mesh", each as `measure`: only that is generated, the other is the photograph's pseudo truth.

        Raises:
            ValueError: as for `measure`; there is no pseudo truth of a photograph.
        """
        place = {stem(name): number for number, name in enumerate(truth.names)}
        names = [stem(self.data.names[index]) for index in self.indices]
        if absent := [name for name in names if name not in place]:
            raise ValueError(
                f"task.quality.data: {truth.root} has no pseudo truth of {len(absent)} of {len(names)} photographs, "
                f"first {absent[0]}: give the photographs it was made from, such as task.quality.data.split=train"
            )
        rng = torch.Generator().manual_seed(self.seed)
        latents = truncated_normal((self.count, generator.latent_dim), truncation, rng)

        def maps(part: slice, label: Int[Tensor, "B"] | None, kept: str) -> UVMaps:
            made = generator(latents[part].to(device), label).map(Tensor.float)
            true = truth.batch([place[name] for name in names[part]]).maps.to(device)
            return replace(made, **{kept: getattr(true, kept)})

        def drawn(kept: str) -> Samples:
            return lambda part, camera, label: self.renderer(maps(part, label, kept).mesh(template), camera).over(
                self.background
            )

        return {part: self.distances(drawn(kept), device) for part, kept in KEPT.items()}


def stem(name: str) -> str:
    """The name of an image, with or without the suffix of its file."""
    base, dot, suffix = name.rpartition(".")
    return base if dot and suffix.lower() in SUFFIXES else name

"""Pseudo ground truth: photographs turned into training data of the mesh GAN (ConvMesh, stage 1).

A reconstruction network is fitted to the photographs; then each photograph is projected onto its reconstructed mesh and
stored as a texture map with the texels it shows. What a file holds (arrays only, nothing pickled):

    <i>.npz                 mesh (3, 32, 32) float32 · texture (3, R, R), texture_alpha (1, R, R) and
                            image (3, S, S) float16, in [-1, 1], 0 where masked
    poses_metadata.npz      for all images: path, label (-1: none), scale (N, 1), translation (N, 3), rotation (N, 4) as
                            annotated, delta_scale (N, 1), delta_translation (N, 2) and, where the perspective was
                            learned too, z0 (N, 1) as learned, iou (N,)

The files that ConvMesh and MeshInversion distribute are read too; they lack label, corrections and iou.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from invkit.batch import Batch
from invkit.geometry.camera import Camera
from invkit.images import resize_bilinear
from invkit.runtime.files import written_aside
from invkit.types import Views
from meshinv.mesh import TexturedMesh, UVMaps
from meshinv.renderers.uv import project_to_uv, visible_texels
from meshinv.template import mirror_maps

METADATA = "poses_metadata.npz"


class CameraCorrections(nn.Module):
    """What each training image's annotated scale and translation are off by, learned with the network.

    Args:
        perspective: learn a focal length for each image too, f = 1 + exp(z0) with z0 = 1 to begin with. ConvMesh does
            so for cars, and scales x, y by (f - d/2) / (f + d/2) at scaled depth d; here it is the pinhole
            1 / (1 + d/f), which is the same to first order in d/f and the one camera of this project.
    """

    def __init__(self, num_images: int, *, perspective: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(num_images))
        self.shift = nn.Parameter(torch.zeros(num_images, 2))
        self.z0 = nn.Parameter(torch.ones(num_images)) if perspective else None

    def forward(self, camera: Camera, index: Int[Tensor, "B"], mirrored: Bool[Tensor, "B"] | None = None) -> Camera:
        """The corrected cameras; the correction of a mirrored image is mirrored with it."""
        shift = self.shift[index]
        if mirrored is not None:
            sign = torch.where(mirrored, -1.0, 1.0).to(shift)
            shift = torch.stack([shift[:, 0] * sign, shift[:, 1]], dim=1)
        corrected = replace(camera, scale=camera.scale + self.scale[index], shift=camera.shift + shift)
        return corrected if self.z0 is None else replace(corrected, inv_focal=inverse_focal(self.z0[index]))


def inverse_focal(z0: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """1 / f for f = 1 + exp(z0)."""
    return 1 / (1 + z0.exp())


def network_input(views: Views) -> Float[Tensor, "B 4 H W"]:
    """Masked colors and the mask: what the reconstruction network sees."""
    return torch.cat([views.rgb * views.mask, views.mask], dim=1)


@dataclass(frozen=True)
class PseudoTruth(Batch):
    """UV maps of real photographs: the real samples of the mesh GAN.

    Args:
        maps: texture (0 where the photograph does not show it) and deformation.
        alpha: which texels the photograph shows.
        camera: corrected camera of the photograph.
        image: the photograph cut out, [-1, 1], 0 outside; None where it is not asked for.
    """

    maps: UVMaps
    alpha: Float[Tensor, "B 1 T T"]
    camera: Camera
    label: Int[Tensor, "B"] | None
    index: Int[Tensor, "B"]
    image: Float[Tensor, "B 3 S S"] | None = None

    def mirror(self) -> "PseudoTruth":
        """The same for the mirrored objects: u -> 1/2 - u, flipped photographs, and the cameras that see them so."""
        return replace(
            self,
            maps=self.maps.mirror(),
            alpha=mirror_maps(self.alpha),
            camera=self.camera.mirror(),
            image=None if self.image is None else self.image.flip(-1),
        )

    def mirror_some(self, chosen: Bool[Tensor, "B"]) -> "PseudoTruth":
        """The chosen images mirrored, the others as they are, in the same order.

        Args:
            chosen: on the CPU, so that nothing waits for the device.
        """
        kept, changed = (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]
        if not len(changed):
            return self
        device = self.alpha.device
        both = PseudoTruth.cat([self[kept.to(device)], self[changed.to(device)].mirror()])
        return both[torch.cat([kept, changed]).argsort().to(device)]


@torch.no_grad()
def project_photographs(
    mesh: TexturedMesh, camera: Camera, photographs: Float[Tensor, "B 3 S S"], *, size: int, visibility_size: int
) -> tuple[Float[Tensor, "B 3 R R"], Float[Tensor, "B 1 R R"]]:
    """Texture and alpha of each photograph on its mesh (ConvMesh, stage 1).

    Args:
        photographs: masked colors in [-1, 1].
        size: side R of the texture.
        visibility_size: side of the render that decides which texels are seen; at least 8 times the mesh's texture.
    """
    texture, covered = project_to_uv(mesh, camera, photographs, size)
    visible = visible_texels(mesh, camera, visibility_size).to(texture)
    if visible.shape[-1] != size:
        visible = (resize_bilinear(visible, size) > 0).to(texture)
    return texture * visible, covered * visible


def write_pseudo_truth(
    folder: Path,
    position: int,
    maps: UVMaps,
    alpha: Float[Tensor, "1 1 R R"],
    image: Float[Tensor, "1 3 S S"],
) -> None:
    """One image's file, written aside and renamed."""
    arrays = {
        "mesh": maps.displacement[0].float().cpu().numpy(),
        "texture": maps.texture[0].half().cpu().numpy(),
        "texture_alpha": alpha[0].half().cpu().numpy(),
        "image": image[0].half().cpu().numpy(),
    }
    _write_npz(folder / f"{position}.npz", arrays)


def write_metadata(
    folder: Path,
    *,
    paths: Sequence[str],
    labels: Int[Tensor, "N"] | None,
    camera: Camera,
    corrections: CameraCorrections,
    iou: Float[Tensor, "N"],
) -> None:
    """What is known about all images together; written last, so its presence says the folder is whole."""
    count = len(paths)
    translation = torch.cat([camera.shift, camera.shift.new_zeros(count, 1)], dim=1)
    z0 = {} if corrections.z0 is None else {"z0": corrections.z0.detach().cpu()[:, None].numpy()}
    _write_npz(
        folder / METADATA,
        {
            "path": np.asarray(paths),
            "label": np.full(count, -1) if labels is None else labels.numpy(),
            "scale": camera.scale[:, None].numpy(),
            "translation": translation.numpy(),
            "rotation": camera.quat.numpy(),
            "delta_scale": corrections.scale.detach().cpu()[:, None].numpy(),
            "delta_translation": corrections.shift.detach().cpu().numpy(),
            "iou": iou.numpy(),
            **z0,
        },
    )


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)

"""Stage 1: fit the reconstruction network and the cameras to the photographs, then project the photographs into UV.

Overfitting is the aim: the network is never asked about an image it has not seen, it only has to agree with itself on
what the parts of a category are, so that the texture maps of different images are aligned (ConvMesh, section 3.2).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invkit.data.dataset import ImageSet
from invkit.data.sampler import StepSampler, batches
from invkit.images import composite, grid, write_png
from invkit.metrics.iou import iou
from invkit.protocols import Phase
from invkit.runtime import dist
from invkit.runtime.run import Run
from invkit.train.schedule import constant
from invkit.types import Rendering, Views
from meshinv.mesh import TexturedMesh, UVMaps, flatness
from meshinv.pseudo_truth import (
    CameraCorrections,
    network_input,
    project_photographs,
    write_metadata,
    write_pseudo_truth,
)
from meshinv.pseudo_truth_set import PseudoTruthSet
from meshinv.reconstruction import ReconstructionNet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.pictures import from_all_sides
from meshinv.template import Template

SHEET_IMAGES = 8


class PseudoTruthTask:
    """Reconstruction from single photographs, and the pseudo ground truth it leaves behind.

    Args:
        data: the training photographs at the network's resolution.
        photographs: the same images, larger: what is projected into UV.
        schedule: factor on the network's rate.
        camera_follows_schedule: and on that of the cameras, which stays as it is in the released code.
        flatness_weight: weight of the smoothness loss; it starts `flatness_boost` times higher and falls by
            `flatness_boost_decay` each step until it is itself.
        pseudo_size: side R of the projected textures.
        visibility_size: see `project_photographs`.
        min_iou: images whose mesh misses its photograph by more are named in the log (they are written all the same).
        learn_perspective: see `CameraCorrections`; ConvMesh does for cars.
        mixed_precision: the network in bfloat16; rendering stays in float32.
        channels_last: memory layout that convolutions on CPUs and tensor cores prefer; same results up to rounding.

    Raises:
        ValueError: `data` and `photographs` are not the same images, or the camera of one is not known.
    """

    def __init__(
        self,
        *,
        data: ImageSet,
        photographs: ImageSet,
        network: ReconstructionNet,
        template: Template,
        renderer: MeshRenderer,
        batch_size: int = 50,
        rate: float = 1e-4,
        camera_rate: float = 1e-4,
        schedule: Callable[[int], float] = constant(),
        camera_follows_schedule: bool = False,
        flatness_weight: float = 5e-5,
        flatness_boost: float = 10.0,
        flatness_boost_decay: float = 0.1,
        pseudo_size: int = 512,
        visibility_size: int = 1024,
        min_iou: float = 0.5,
        learn_perspective: bool = False,
        mixed_precision: bool = False,
        channels_last: bool = False,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        if data.names != photographs.names:
            raise ValueError("task.data and task.photographs must be the same images in the same order")
        if data.guessed_cameras:
            raise ValueError(
                f"task.data: no camera is known of {len(data.guessed_cameras)} of {len(data)} photographs, first "
                f"{data.guessed_cameras[0]}; shapes are learned from what cameras see, and a guess would teach wrong "
                'ones. Give each a "camera" in the manifest (docs/datasets.md), or leave it out of the split'
            )
        self.data, self.photographs = data, photographs
        self.network, self.template, self.renderer = network, template, renderer
        self.corrections = CameraCorrections(len(data), perspective=learn_perspective)
        self.sampler = StepSampler(len(data), batch_size, seed, uneven=True)
        self.workers = workers
        self.flatness_weight = flatness_weight
        self.flatness_boost, self.flatness_boost_decay = flatness_boost, flatness_boost_decay
        self.pseudo_size, self.visibility_size, self.min_iou = pseudo_size, visibility_size, min_iou
        self.modules: dict[str, nn.Module] = {"network": network, "corrections": self.corrections}
        # One optimizer with two rates is Adam twice: it is elementwise.
        groups = [
            {"params": list(network.parameters()), "lr": rate},
            {"params": list(self.corrections.parameters()), "lr": camera_rate, "scheduled": camera_follows_schedule},
        ]
        if channels_last:
            network.to(memory_format=torch.channels_last)
        autocast = torch.bfloat16 if mixed_precision else None
        self.phases = [
            Phase(name="fit", optimizer=torch.optim.Adam(groups), loss=self.loss, rate=schedule, autocast=autocast)
        ]

    def batches(self, start: int, rank: int, world_size: int) -> Iterator[Views]:
        return batches(self.data, self.sampler, start, rank, world_size, self.workers)

    def loss(self, views: Views, step: int) -> dict[str, Tensor]:
        """Mean squared error of masked colors and soft mask, and smoothness."""
        mirrored = torch.rand(len(views)).to(views.rgb.device) < 0.5
        views = Views.cat([views[~mirrored], views[mirrored].mirror()])
        mirrored = torch.cat([mirrored[~mirrored], mirrored[mirrored]])
        mesh, image = self.reconstruct(views, mirrored)
        target = network_input(views)
        boost = max(self.flatness_boost - self.flatness_boost_decay * step, 1.0)
        return {
            "image": (torch.cat([image.rgb, image.soft_mask], dim=1) - target).square().mean(),
            "flatness": boost * self.flatness_weight * flatness(mesh).mean(),
        }

    def reconstruct(self, views: Views, mirrored: Tensor | None = None) -> tuple[TexturedMesh, Rendering]:
        """The network's mesh of each image and how it looks from the corrected camera."""
        mesh = self.network(network_input(views)).map(Tensor.float).mesh(self.template)
        camera = self.corrections(views.camera, views.index, mirrored)
        return mesh, self.renderer(mesh, camera, extras=frozenset({"soft_mask"}))

    def after_step(self, step: int) -> None:
        """Nothing is averaged here."""

    @torch.no_grad()
    def report(self, run: Run, step: int) -> None:
        """Photographs, their reconstructions and novel views; the mean IoU of these few."""
        self.network.eval()
        views = self.data.batch(spread(len(self.data))).to(run.device)
        mesh, image = self.reconstruct(views)
        run.log.image(step, "reconstruction", sheet(views, image, mesh, self.renderer))
        run.log.scalars(step, {"iou": iou(image.mask, views.mask).mean().item()}, prefix="report/")
        self.network.train()

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        """Write every image's pseudo ground truth to `pseudo_truth/` in the run's folder; resumes after a break."""
        folder = run.dir / "pseudo_truth"
        folder.mkdir(exist_ok=True)
        self.network.eval()
        todo = [i for i in run.share(range(len(self.data))) if not (folder / f"{i}.npz").is_file()]
        for index in run.progress(todo, len(todo)):
            views = self.data.batch([index]).to(run.device)
            maps = self.network(network_input(views))
            camera = self.corrections(views.camera, views.index)
            large = self.photographs.batch([index]).to(run.device)
            texture, alpha = project_photographs(
                maps.mesh(self.template),
                camera,
                large.rgb * large.mask,
                size=self.pseudo_size,
                visibility_size=self.visibility_size,
            )
            write_pseudo_truth(folder, index, UVMaps(texture, maps.displacement), alpha, views.rgb * views.mask)
        dist.barrier()
        if not dist.is_main():
            return
        overlap, cameras, labels = [], [], []
        for start in range(0, len(self.data), 16):
            views = self.data.batch(range(start, min(start + 16, len(self.data))))
            _, image = self.reconstruct(views.to(run.device))
            overlap.append(iou(image.mask.cpu(), views.mask))
            cameras.append(views.camera)
            labels.append(views.label)
        overlap = torch.cat(overlap)
        write_metadata(
            folder,
            paths=self.data.names,
            labels=torch.cat(labels) if self.data.num_classes else None,
            camera=type(cameras[0]).cat(cameras),
            corrections=self.corrections,
            iou=overlap,
        )
        poor = int((overlap < self.min_iou).sum())
        run.log.message(
            f"pseudo ground truth of {len(overlap)} images in {folder}: mean IoU {overlap.mean():.3f}, "
            f"{poor} below {self.min_iou}"
        )
        run.result({"images": len(overlap), "iou": overlap.mean().item(), "below_min_iou": poor})
        write_png(run.dir / "images" / "pseudo_truth.png", self.written(folder, run.device).cpu())

    def written(self, folder: Path, device: torch.device) -> Float[Tensor, "3 H W"]:
        """Some of the pseudo ground truth as it lies in the files, a row for each image: photograph, the mesh under its
        camera with the texture that was projected on it, and four azimuths; grey is what the photograph does not show.
        """
        written = PseudoTruthSet(folder, image_size=self.data.size)
        real = written.batch(spread(len(written))).to(device)
        mesh = real.maps.mesh(self.template)
        own = self.renderer(mesh, real.camera)
        columns = [real.image, own.over(1.0), *from_all_sides(mesh, self.renderer, 4).unbind(1)]
        return grid(torch.stack(columns, dim=1).flatten(0, 1), columns=len(columns))


def spread(count: int) -> list[int]:
    """Positions of the images that the sheets show."""
    return torch.linspace(0, count - 1, min(SHEET_IMAGES, count)).long().tolist()


@torch.no_grad()
def sheet(views: Views, image: Rendering, mesh: TexturedMesh, renderer: MeshRenderer) -> Float[Tensor, "3 H W"]:
    """A row for each image: photograph, masked photograph, rendering, and four azimuths."""
    columns = [views.rgb, composite(views.rgb, views.mask), image.over(1.0)]
    columns += from_all_sides(mesh, renderer, 4).unbind(1)
    return grid(torch.stack(columns, dim=1).flatten(0, 1), columns=len(columns))

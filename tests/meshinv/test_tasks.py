"""Stage 1: what its loss is, and that it learns a shape."""

import numpy as np
import pytest
import torch

from invkit.data.dataset import ImageSet
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.iou import iou
from invkit.train.loop import fit
from invkit.train.schedule import step_decay
from invkit.types import Views
from meshinv.mesh import TexturedMesh, flatness
from meshinv.reconstruction import ReconstructionNet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.pseudo_truth import PseudoTruthTask
from meshinv.template import Template
from tests.invkit.toy_task import ToyRun
from tests.meshinv.test_pseudo_truth import smooth_texture


class Eggs(ImageSet):
    """Pictures of one stretched, smoothly colored sphere from random sides."""

    def __init__(self, count: int, size: int) -> None:
        self.names, self.num_classes, self.size = [f"egg_{i}" for i in range(count)], 0, size
        rng = torch.Generator().manual_seed(1)
        template = Template()
        vertices = template.vertices * torch.tensor([0.5, 0.9, 0.6])
        mesh = TexturedMesh(vertices.expand(count, -1, -1), smooth_texture(64).expand(count, -1, -1, -1), template)
        camera = Camera(
            rotation.random(count, rng), torch.full((count,), 0.7), torch.zeros(count, 2), torch.zeros(count)
        )
        image = MeshRenderer(size)(mesh, camera)
        self.views = Views(image.rgb, image.mask, camera, None, torch.arange(count))

    def __getitem__(self, index: int) -> Views:
        return self.views[index]


@pytest.fixture
def reconstruction() -> PseudoTruthTask:
    torch.manual_seed(0)
    eggs = Eggs(4, 64)
    return PseudoTruthTask(
        data=eggs,
        photographs=eggs,
        network=ReconstructionNet(width=0.125, texture_size=64, image_size=64),
        template=Template(),
        renderer=MeshRenderer(64),
        batch_size=4,
        rate=2e-3,
        camera_rate=1e-4,
        flatness_boost=1.0,
    )


def test_the_fit_starts_as_a_sphere_and_learns_the_shape(reconstruction):
    views = reconstruction.data.batch(range(4))
    optimizer = reconstruction.phases[0].optimizer

    def overlap() -> float:
        return iou(reconstruction.reconstruct(views)[1].mask, views.mask).mean().item()

    before = overlap()
    for step in range(40):
        optimizer.zero_grad()
        terms = reconstruction.loss(views, step)
        sum(terms.values()).backward()
        optimizer.step()
    assert before < 0.65
    assert overlap() > 0.8


@pytest.mark.parametrize("follows, camera_rate", [(False, 1e-4), (True, 2.5e-5)])
def test_the_cameras_keep_their_rate_while_the_networks_is_halved(reconstruction, follows, camera_rate, tmp_path):
    task = PseudoTruthTask(
        data=reconstruction.data,
        photographs=reconstruction.photographs,
        network=reconstruction.network,
        template=reconstruction.template,
        renderer=reconstruction.renderer,
        batch_size=4,
        rate=2e-3,
        schedule=step_decay(1, 0.5),
        camera_follows_schedule=follows,
        workers=0,
    )
    task.report = task.finish = lambda *_: None
    fit(task, ToyRun(tmp_path), 3, save_every=9, report_every=9)
    rates = [group["lr"] for group in task.phases[0].optimizer.param_groups]
    assert rates == pytest.approx([5e-4, camera_rate])


def test_the_image_term_is_the_mean_squared_error_of_four_channels(reconstruction):
    reconstruction.network.eval()  # so that the order of the images does not matter
    views = reconstruction.data.batch(range(4))
    torch.manual_seed(3)
    terms = reconstruction.loss(views, step=50)
    torch.manual_seed(3)
    flipped = torch.rand(4) < 0.5
    views = Views.cat([one.mirror() if flip else one for one, flip in zip(views, flipped, strict=True)])
    mesh, image = reconstruction.reconstruct(views, flipped)
    color = ((image.rgb - views.rgb * views.mask) ** 2).sum()
    alpha = ((image.soft_mask - views.mask) ** 2).sum()
    assert terms["image"].item() == pytest.approx((color + alpha).item() / (4 * 4 * 64 * 64), rel=1e-5)
    assert terms["flatness"].item() == pytest.approx(5e-5 * flatness(mesh).mean().item(), rel=1e-4)


def test_smoothness_starts_boosted_and_settles():
    eggs = Eggs(2, 64)
    task = PseudoTruthTask(
        data=eggs,
        photographs=eggs,
        network=ReconstructionNet(width=0.125, texture_size=64, image_size=64).eval(),
        template=Template(),
        renderer=MeshRenderer(64),
        batch_size=2,
    )
    values = [task.loss(eggs.batch([0, 1]), step)["flatness"].item() for step in (0, 10, 90, 500)]
    # The undeformed sphere has flatness 0.248119; weights 10, 9, 1, 1 times 5e-5.
    np.testing.assert_allclose(values, [0.248119 * 5e-5 * w for w in (10, 9, 1, 1)], rtol=1e-4)


def test_different_images_on_the_two_sizes_are_refused():
    with pytest.raises(ValueError, match="same images"):
        PseudoTruthTask(
            data=Eggs(4, 64),
            photographs=Eggs(3, 64),
            network=ReconstructionNet(width=0.125, texture_size=64, image_size=64),
            template=Template(),
            renderer=MeshRenderer(64),
        )

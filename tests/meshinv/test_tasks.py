"""The two training stages: what each loss is, whose gradients it gives, and that stage 1 learns a shape."""

import numpy as np
import pytest
import torch
from scipy import stats

from invkit import rotation
from invkit.camera import Camera
from invkit.data.dataset import ImageSet
from invkit.losses.adversarial import hinge
from invkit.metrics.iou import iou
from invkit.types import Views
from meshinv.discriminators.uv import UVDiscriminator
from meshinv.generator import Generator
from meshinv.mesh import TexturedMesh, UVMaps, flatness
from meshinv.prior import truncated_normal
from meshinv.pseudo_truth import PseudoTruth
from meshinv.reconstruction import ReconstructionNet
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.gan import GanTask
from meshinv.tasks.pseudo_truth import PseudoTruthTask
from meshinv.template import Template
from tests.meshinv.test_pseudo_truth import make_set, smooth_texture


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


@pytest.fixture
def gan(tmp_path) -> GanTask:
    make_set(tmp_path, labels=False)
    from meshinv.pseudo_truth import PseudoTruthSet

    torch.manual_seed(0)
    return GanTask(
        data=PseudoTruthSet(tmp_path),
        generator=Generator(num_classes=0, width=0.125, texture_size=64),
        discriminator=UVDiscriminator(num_classes=0, width=0.125, texture_size=64),
        adversarial=hinge(),
        template=Template(),
        renderer=MeshRenderer(32),
        batch_size=3,
    )


def real_samples(rng, count: int = 3) -> PseudoTruth:
    camera = Camera(rotation.random(count, rng), torch.ones(count), torch.zeros(count, 2), torch.zeros(count))
    alpha = (torch.rand(count, 1, 64, 64, generator=rng) < 0.5).float()
    texture = (2 * torch.rand(count, 3, 64, 64, generator=rng) - 1) * alpha
    maps = UVMaps(texture, 0.1 * torch.randn(count, 3, 32, 32, generator=rng))
    return PseudoTruth(maps, alpha, camera, None, torch.arange(count))


def test_the_discriminator_loss_is_the_hinge_and_leaves_the_generator_alone(gan, rng):
    gan.mirror = False
    real = real_samples(rng)
    torch.manual_seed(5)
    terms = gan.discriminator_loss(real, 1)
    torch.manual_seed(5)
    gan.generator.load_state_dict(gan.generator.state_dict())
    sum(terms.values()).backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    assert all(p.grad is not None for p in gan.discriminator.parameters())
    # By hand, in evaluation mode, so that the spectral estimates stand still.
    gan.discriminator.eval()
    torch.manual_seed(5)
    terms = gan.discriminator_loss(real, 1)
    expected = 0.0
    for logits, mask in gan.discriminator(real.maps, real.alpha):
        cost = (1 - logits).clamp(min=0)
        expected += ((cost * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean().item() / 2
    assert terms["real"].item() == pytest.approx(expected, rel=1e-5)


def test_the_generator_loss_moves_texture_and_shape(gan, rng):
    terms = gan.generator_loss(real_samples(rng), 0)
    sum(terms.values()).backward()
    assert gan.generator.conv_final.weight.grad.abs().max() > 0
    assert gan.generator.conv_mesh.weight.grad.abs().max() > 0
    # A fresh generator makes the undeformed sphere.
    assert terms["flatness"].item() == pytest.approx(1e-4 * 0.248119, rel=1e-4)


def test_phases_alternate_two_to_one_and_the_average_follows_the_generator(gan):
    due = [[phase.name for phase in gan.phases if phase.due(step)] for step in range(6)]
    assert due == [["generator"], ["discriminator"], ["discriminator"]] * 2
    with torch.no_grad():
        gan.generator.fc.bias.add_(1.0)
    before = gan.ema.module.fc.bias.clone()
    gan.after_step(1)
    assert torch.equal(gan.ema.module.fc.bias, before)
    gan.after_step(0)
    # alpha = 0.999^100 in the first epochs.
    torch.testing.assert_close(gan.ema.module.fc.bias, before + (1 - 0.904792), atol=1e-5, rtol=0)


def test_truncated_latents_follow_the_truncated_normal(rng):
    latent = truncated_normal((20000,), 0.75, rng)
    assert latent.abs().max() <= 0.75
    assert stats.kstest(latent.numpy(), stats.truncnorm(-0.75, 0.75).cdf).pvalue > 0.01

"""Quality of samples: against the metrics fed image by image, and against sets whose distance is known."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from invkit.data.dataset import ImageSet
from invkit.features.frozen import Features
from invkit.geometry import rotation
from invkit.geometry.camera import Camera
from invkit.metrics.fid import Fid, gaussian_of
from invkit.metrics.gaussian import Gaussian
from invkit.metrics.kid import Kid
from invkit.types import Estimate, Views
from meshinv.generator import Generator
from meshinv.mesh import UVMaps
from meshinv.prior import truncated_normal
from meshinv.renderers.reference import MeshRenderer
from meshinv.tasks.quality import SampleQuality
from meshinv.template import Template
from tests.meshinv.test_pseudo_truth import smooth_texture

SIZE, COUNT, CPU = 32, 9, torch.device("cpu")
RENDERER = MeshRenderer(SIZE)
pytestmark = pytest.mark.filterwarnings("ignore:fid@")


class Pooled:
    """A picture as the mean colors of 16 cells; remembers the pictures."""

    name, dim = "pooled", 48

    def __init__(self) -> None:
        self.pictures = []

    def __call__(self, image):
        self.pictures.append(image)
        return nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)

    def to(self, device):
        return self


class Bodies(ImageSet):
    """Bodies of different widths and brightness from random sides, before a cluttered background; item i is class i."""

    def __init__(self, *, labels: bool = True, clutter: int = 0) -> None:
        self.names, self.num_classes, self.size = [f"body_{i}" for i in range(COUNT)], COUNT if labels else 0, SIZE
        self.reads = 0
        rng = torch.Generator().manual_seed(1)
        self.maps = UVMaps(
            torch.linspace(-0.6, 0.3, COUNT)[:, None, None, None] + 0.4 * smooth_texture(32),
            torch.linspace(-0.5, 0.1, COUNT)[:, None, None, None].expand(COUNT, 3, 8, 8).contiguous(),
        )
        quat = rotation.random(COUNT, rng)
        camera = Camera(quat, torch.full((COUNT,), 0.7), 0.1 * torch.randn(COUNT, 2, generator=rng), torch.zeros(COUNT))
        image = RENDERER(self.maps.mesh(Template()), camera)
        noise = torch.rand(image.rgb.shape, generator=torch.Generator().manual_seed(clutter)) * 2 - 1
        rgb = image.rgb * image.mask + noise * (1 - image.mask)
        label = torch.arange(COUNT) if labels else None
        self.views = Views(rgb, image.mask, camera, label, torch.arange(COUNT))

    def __getitem__(self, index: int) -> Views:
        self.reads += 1
        return self.views[index]


class Scripted(nn.Module):
    """Makes the maps of the class asked for; remembers what it was asked."""

    latent_dim = 6

    def __init__(self, maps: UVMaps) -> None:
        super().__init__()
        self.maps, self.latents, self.labels = maps, [], []

    def forward(self, latent, label):
        self.latents.append(latent)
        self.labels.append(label)
        return self.maps[label]


def generator(num_classes: int = COUNT, seed: int = 0) -> Generator:
    """A small one that makes more than spheres."""
    torch.manual_seed(seed)
    network = Generator(num_classes, latent_dim=6, width=0.125, texture_size=64)
    nn.init.normal_(network.conv_mesh.weight, std=0.05)
    return network.eval()


def quality(**changed) -> SampleQuality:
    return SampleQuality(**{"data": Bodies(), "renderer": RENDERER, "features": Pooled(), "batch_size": 4, **changed})


def measure(measured: SampleQuality, network: nn.Module, truncation: float = 0.5) -> dict[str, float]:
    return measured.measure(network, Template(), truncation, CPU)


@pytest.mark.parametrize("count", [None, 6])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_the_numbers_are_those_of_the_metrics_fed_image_by_image(count, background):
    network, data, features = generator(), Bodies(), Pooled()
    assert isinstance(features, Features)
    kid = Kid(features, background=background, subsets=None)
    usual, fid = Kid(features, background=background), Fid(features, background=background)
    chosen = range(COUNT) if count is None else [0, 1, 3, 4, 6, 7]
    latents = truncated_normal((len(chosen), 6), 0.5, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for latent, index in zip(latents, chosen, strict=True):
            target = data[index]
            mesh = network(latent[None], target.label).mesh(Template())
            image = RENDERER(mesh, target.camera)
            estimate = Estimate(latent[None], target.camera, mesh, image, target.label)
            for metric in (kid, usual, fid):
                metric.update(estimate, image, target)
    found = measure(quality(count=count, background=background, seed=3), network)
    assert list(found) == ["kid@pooled", "fid@pooled"]
    assert found["kid@pooled"] == pytest.approx(kid.compute(), rel=1e-4)
    assert found["kid@pooled"] == pytest.approx(usual.compute(), rel=1e-4)
    assert found["fid@pooled"] == pytest.approx(fid.compute(), rel=1e-4)


def test_fid_against_all_photographs_which_comes_first_where_it_chooses():
    network, data, features = generator(), Bodies(), Pooled()
    reals = gaussian_of(features, [data[index] for index in range(COUNT)], background=0.0)
    fid = Fid(features, reference=reals, background=0.0)
    some = [0, 1, 3, 4, 6, 7]
    latents = truncated_normal((len(some), 6), 0.5, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for latent, index in zip(latents, some, strict=True):
            target = data[index]
            mesh = network(latent[None], target.label).mesh(Template())
            image = RENDERER(mesh, target.camera)
            fid.update(Estimate(latent[None], target.camera, mesh, image, target.label), image, target)
    few = measure(quality(count=6, seed=3), network)
    all_of_them = measure(quality(count=6, seed=3, all_reals=True, fid_first=True, batch_size=2), network)
    assert list(all_of_them) == ["fid@pooled", "kid@pooled"]
    assert all_of_them["kid@pooled"] == pytest.approx(few["kid@pooled"], rel=1e-6)
    assert all_of_them["fid@pooled"] == pytest.approx(fid.compute(), rel=1e-4)
    assert all_of_them["fid@pooled"] != pytest.approx(few["fid@pooled"], rel=1e-2)


def test_a_second_call_gives_the_same_reads_no_photograph_and_touches_no_generator_of_numbers():
    data, features, network = Bodies(), Pooled(), generator()
    measured = quality(data=data, features=features)
    before = torch.get_rng_state()
    first = measure(measured, network)
    assert (data.reads, len(features.pictures)) == (COUNT, 6)
    assert measure(measured, network) == first
    assert (data.reads, len(features.pictures)) == (COUNT, 9)
    assert torch.equal(torch.get_rng_state(), before)
    assert measure(quality(seed=1), network) != first


def test_the_batch_size_does_not_matter():
    network = generator()
    one, all_at_once = (measure(quality(batch_size=size), network) for size in (1, 100))
    assert one == pytest.approx(all_at_once, rel=1e-4)


def test_the_own_meshes_are_at_no_distance_and_a_sphere_is_at_some():
    data = Bodies()
    perfect = measure(quality(data=data), Scripted(data.maps))
    sphere = measure(quality(data=data), Scripted(replace(data.maps, displacement=0 * data.maps.displacement)))
    gray = measure(quality(data=data), Scripted(replace(data.maps, texture=0 * data.maps.texture)))
    assert perfect["kid@pooled"] <= 0
    assert perfect["fid@pooled"] == pytest.approx(0, abs=1e-6)
    for worse in (sphere, gray):
        assert worse["kid@pooled"] > perfect["kid@pooled"] + 1e-3
        assert worse["fid@pooled"] > 0.01


def test_each_sample_has_class_and_camera_of_its_photograph_and_a_truncated_latent():
    data, features = Bodies(), Pooled()
    network = Scripted(data.maps)
    measure(quality(data=data, features=features, count=5), network, truncation=0.25)
    assert torch.cat(network.labels).tolist() == [0, 1, 3, 5, 7]
    latents = torch.cat(network.latents)
    assert latents.shape == (5, 6)
    assert 0.1 < latents.abs().max() <= 0.25
    # The network saw the photographs first; cut out, they are pixel by pixel the scripted samples.
    photographs, samples = torch.cat(features.pictures[:2]), torch.cat(features.pictures[2:])
    torch.testing.assert_close(photographs, samples, atol=1e-5, rtol=0)


@pytest.mark.parametrize("background", [0.0, 1.0, -0.5])
def test_both_sides_are_cut_out_and_shown_on_the_same_background(background):
    features, network = Pooled(), generator()
    found = measure(quality(features=features, background=background), network)
    corners = torch.cat(features.pictures)[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.eq(background).all()
    assert len(corners) == 2 * COUNT
    assert measure(quality(data=Bodies(clutter=7), background=background), network) == found


def test_a_generator_without_classes_needs_none_and_one_with_classes_does():
    network = generator(num_classes=0)
    assert measure(quality(), network) == measure(quality(data=Bodies(labels=False)), network)
    with pytest.raises(ValueError, match="needs a label"):
        measure(quality(data=Bodies(labels=False)), generator())


def test_a_published_reference_is_the_real_side_of_fid_alone():
    data, network, features = Bodies(), generator(), Pooled()
    alone = measure(quality(), network)
    same = gaussian_of(features, [data.batch(range(COUNT))], background=0.0)
    assert measure(quality(reference=replace(same, features=None)), network) == pytest.approx(alone, rel=1e-4)
    moved = replace(same, mean=same.mean + 1)
    found = measure(quality(reference=moved), network)
    assert found["kid@pooled"] == alone["kid@pooled"]
    assert found["fid@pooled"] > alone["fid@pooled"] + 10
    with pytest.raises(ValueError, match="48 features of other, pooled has 48"):
        quality(reference=replace(same, features="other"))
    with pytest.raises(ValueError, match="3 features of an unnamed network, pooled has 48"):
        quality(reference=Gaussian(torch.zeros(3), torch.eye(3), 5000))


def test_few_images_are_warned_of_once():
    measured, network = quality(), generator()
    with pytest.warns(UserWarning, match="fid@pooled from 9 and 9 images"):
        measure(measured, network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(measured, network)


def test_the_caller_decides_on_the_mode_and_nothing_is_left_to_differentiate():
    network = generator()
    evaluated = measure(quality(), network)
    assert not network.training
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    live = measure(quality(), network.train())
    assert network.training
    assert live != evaluated
    assert any(not torch.equal(value, statistics[name]) for name, value in network.named_buffers())
    # And it can be trained on.
    network(torch.zeros(2, 6), torch.tensor([0, 1])).texture.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least 2 photographs"):
        quality(count=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        quality(batch_size=0)
    with pytest.raises(ValueError, match=r"size 32, the renderings \(24, 24\)"):
        measure(quality(renderer=MeshRenderer(24)), generator())
    unseen = Bodies()
    unseen.guessed_cameras = unseen.names[3:]
    with pytest.raises(ValueError, match="no camera is known of 6 of 9 photographs, first body_3"):
        quality(data=unseen)
    assert quality(count=100).indices == list(range(COUNT))

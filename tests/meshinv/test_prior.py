import pytest
import torch

from invkit.protocols import Prior
from meshinv.generator import Generator
from meshinv.prior import MeshPrior
from meshinv.template import Template


@pytest.fixture
def prior() -> MeshPrior:
    torch.manual_seed(0)
    generator = Generator(num_classes=5, width=0.125, texture_size=64)
    torch.nn.init.normal_(generator.conv_mesh.weight, std=0.02)
    return MeshPrior(generator, Template())


def test_it_is_a_prior(prior):
    assert isinstance(prior, Prior)
    assert prior.latent_shape == (64,)
    assert prior.num_classes == 5


def test_latents_are_normal_and_a_function_of_the_generator_of_numbers(prior):
    latent = prior.sample(2000, torch.Generator().manual_seed(3))
    assert torch.equal(latent, prior.sample(2000, torch.Generator().manual_seed(3)))
    assert latent.shape == (2000, 64)
    assert float(latent.mean()) == pytest.approx(0, abs=0.01)
    assert float(latent.std()) == pytest.approx(1, abs=0.01)


def test_a_mesh_is_the_template_pushed_by_the_displacement(prior, rng):
    latent, label = prior.sample(3, rng), torch.tensor([0, 4, 4])
    mesh = prior.decode(latent, label)
    maps = prior.generator(latent, label)
    torch.testing.assert_close(mesh.vertices, Template().deform(maps.displacement))
    assert torch.equal(mesh.texture, maps.texture)
    assert mesh.template.rings == 16
    assert (mesh.vertices - Template().vertices).abs().max() > 0.01


def test_decoding_does_not_depend_on_the_batch_and_leaves_the_prior_alone(prior, rng):
    state = {name: value.clone() for name, value in prior.generator.state_dict().items()}
    latent, label = prior.sample(3, rng), torch.tensor([0, 1, 2])
    together = prior.decode(latent, label)
    for i in range(3):
        alone = prior.decode(latent[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone.vertices[0], together.vertices[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.texture[0], together.texture[i], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in prior.generator.state_dict().items())


def test_gradients_reach_the_latent_and_no_weight(prior, rng):
    latent = prior.sample(1, rng).requires_grad_()
    mesh = prior.decode(latent, torch.tensor([2]))
    (mesh.vertices.square().sum() + mesh.texture.square().sum()).backward()
    assert latent.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in prior.generator.parameters())


def test_it_moves_in_one_piece(prior, rng):
    assert prior.to("meta") is prior
    assert next(prior.generator.parameters()).device.type == "meta"
    assert prior.sample(2, rng).device.type == "meta"


def test_symmetries_must_agree():
    with pytest.raises(ValueError, match="symmetric"):
        MeshPrior(Generator(width=0.01, texture_size=64, symmetric=False), Template())

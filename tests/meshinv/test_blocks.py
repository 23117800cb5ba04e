import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invkit.runtime import dist
from meshinv.generator import Generator
from meshinv.layers import (
    BatchNorm,
    ConditionalBatchNorm,
    MapConv,
    SpectralMapConv,
    alone,
    pad_columns,
    scaled_channels,
)
from tests.invkit.toy_task import start, wait


def test_columns_wrap_around_or_repeat_their_border(rng):
    maps = torch.randn(2, 3, 4, 6, generator=rng)
    assert torch.equal(pad_columns(maps, 2, wrap=True), F.pad(maps, (2, 2, 0, 0), mode="circular"))
    assert torch.equal(pad_columns(maps, 2, wrap=False), F.pad(maps, (2, 2, 0, 0), mode="replicate"))
    assert pad_columns(maps, 0, wrap=True) is maps


@pytest.mark.parametrize("wrap, mode", [(True, "circular"), (False, "replicate")])
def test_the_gradient_of_padding_is_that_of_torch_and_has_one_itself(wrap, mode, rng):
    maps = torch.randn(2, 3, 4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 4, 10, generator=rng, dtype=torch.float64)
    ours, torchs = pad_columns(maps, 2, wrap=wrap), F.pad(maps, (2, 2, 0, 0), mode=mode)
    gradients = [torch.autograd.grad((padded * weight).sum(), maps)[0] for padded in (ours, torchs)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradgradcheck(lambda maps: pad_columns(maps, 2, wrap=wrap).square(), maps)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_wrapping_convolution_commutes_with_turning_the_sphere(kernel, rng):
    conv = MapConv(3, 4, kernel, wrap=True).double()
    maps = torch.randn(2, 3, 5, 8, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(conv(maps.roll(3, dims=-1)), conv(maps).roll(3, dims=-1))


def test_rows_are_padded_with_zeros_and_strides_halve(rng):
    maps = torch.randn(1, 2, 8, 8, generator=rng)
    conv = SpectralMapConv(2, 5, 4, stride=2, wrap=True, bias=True).eval()
    wrapped = F.pad(F.pad(maps, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))
    torch.testing.assert_close(conv(maps), F.conv2d(wrapped, conv.weight_orig / conv.sigma(), conv.bias, stride=2))


def test_channel_counts_are_multiples_of_eight():
    assert [scaled_channels(c, 1.0) for c in (64, 128, 256, 512)] == [64, 128, 256, 512]
    assert [scaled_channels(c, 0.125) for c in (64, 128, 256, 512)] == [8, 16, 32, 64]
    assert [scaled_channels(c, 0.01) for c in (64, 512)] == [8, 8]


class TestSpectralNorm:
    def legacy(self, conv: SpectralMapConv) -> nn.Module:
        """PyTorch's first implementation, with the same state."""
        if not hasattr(nn.utils, "spectral_norm"):
            pytest.skip("this PyTorch has no torch.nn.utils.spectral_norm any more")
        out_channels, in_channels, kernel, _ = conv.weight_orig.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = nn.utils.spectral_norm(nn.Conv2d(in_channels, out_channels, kernel, padding=1)).double()
        assert list(other.state_dict()) == list(conv.state_dict())
        other.load_state_dict(conv.state_dict())
        return other

    @pytest.mark.parametrize("training", [True, False])
    def test_values_gradients_and_vectors_are_those_of_the_published_implementation(self, training, rng):
        conv = SpectralMapConv(3, 6, 3, wrap=False, bias=True).double()
        for name in ("weight_u", "weight_v"):  # as in a running average: no longer of unit length
            getattr(conv, name).mul_(0.9)
        other = self.legacy(conv)
        conv.train(training)
        other.train(training)
        maps = torch.randn(2, 3, 5, 7, generator=rng, dtype=torch.float64)
        maps[..., [0, -1]] = 0  # zeros at the border make its repetition the padding of the other
        upstream = torch.randn(2, 6, 5, 7, generator=rng, dtype=torch.float64)
        for _ in range(3):
            ours, theirs = conv(maps), other(maps)
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(
                torch.autograd.grad(ours, [conv.bias, conv.weight_orig], upstream),
                torch.autograd.grad(theirs, [other.bias, other.weight_orig], upstream),
            )
        torch.testing.assert_close(dict(conv.state_dict()), dict(other.state_dict()))

    def test_training_finds_the_largest_singular_value_and_evaluation_keeps_it(self):
        conv = SpectralMapConv(4, 8, 3, wrap=True).double()
        largest = torch.linalg.svdvals(conv.weight_orig.detach().flatten(1))[0]
        assert 0.8 < conv.eval().sigma() / largest <= 1  # fresh
        conv.train()
        for _ in range(500):
            conv.sigma()
        torch.testing.assert_close(conv.sigma().detach(), largest)
        before = {name: tensor.clone() for name, tensor in conv.eval().state_dict().items()}
        conv.sigma()
        assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())

    def test_a_second_pass_leaves_the_gradient_of_the_first_alone(self, rng):
        conv = SpectralMapConv(2, 3, 3, wrap=True).double()
        maps = torch.randn(1, 2, 4, 4, generator=rng, dtype=torch.float64)
        once = torch.autograd.grad(conv(maps).square().sum(), conv.weight_orig, retain_graph=True)[0]
        conv2 = SpectralMapConv(2, 3, 3, wrap=True).double()
        conv2.load_state_dict(conv.state_dict())
        loss = conv(maps).square().sum()
        conv(maps)
        kept = torch.autograd.grad(loss, conv.weight_orig)[0]
        torch.testing.assert_close(kept, torch.autograd.grad(conv2(maps).square().sum(), conv2.weight_orig)[0])
        assert not torch.equal(kept, once)

    def test_sigma_stays_exact_under_autocast(self):
        conv = SpectralMapConv(8, 8, 3, wrap=True).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv.sigma().dtype == torch.float32
            assert conv(torch.randn(1, 8, 4, 4)).dtype == torch.bfloat16


class TestBatchNorm:
    @pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
    @pytest.mark.parametrize("affine", [True, False])
    def test_alone_it_is_ordinary(self, shape, affine, rng):
        ours = BatchNorm(4, affine=affine).double()
        theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, affine=affine).double()
        if affine:
            ours.weight.data.uniform_(0.5, 2, generator=rng)
            ours.bias.data.normal_(generator=rng)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        for training in (True, True, False):
            values = torch.randn(shape, generator=rng, dtype=torch.float64) * 3 + 1
            torch.testing.assert_close(ours.train(training)(values), theirs.train(training)(values))
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)

    def test_the_condition_gives_gain_and_offset(self, rng):
        norm = ConditionalBatchNorm(4, 5).double()
        maps = torch.randn(3, 4, 2, 6, generator=rng, dtype=torch.float64)
        condition = torch.randn(3, 5, generator=rng, dtype=torch.float64)
        flat = maps.transpose(0, 1).flatten(1)
        white = (maps - flat.mean(1).view(1, 4, 1, 1)) / (flat.var(1, correction=0).view(1, 4, 1, 1) + 1e-5).sqrt()
        gamma = condition @ norm.fc_gamma.weight.T + norm.fc_gamma.bias
        beta = condition @ norm.fc_beta.weight.T + norm.fc_beta.bias
        torch.testing.assert_close(norm(maps, condition), white * (1 + gamma[..., None, None]) + beta[..., None, None])


def small_generator() -> Generator:
    torch.manual_seed(0)
    net = Generator(num_classes=3, width=0.01, texture_size=64, latent_dim=4).double()
    nn.init.normal_(net.conv_mesh.weight, std=0.1)
    return net


def joint_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.tensor(
        [0, 1, 2, 1, 0]
    )


def answers(net: Generator, latent: Tensor, label: Tensor) -> dict[str, Tensor]:
    maps = net(latent, label)
    weight = torch.linspace(-1, 1, 3 * 64 * 64, dtype=torch.float64).view(3, 64, 64)
    loss = (maps.texture.square() * weight).sum() + maps.displacement.square().sum()
    loss.backward()
    found = {f"grad {name}": parameter.grad for name, parameter in net.named_parameters()}
    found |= {f"buffer {name}": buffer for name, buffer in net.named_buffers()}
    return found | {"texture": maps.texture.detach(), "displacement": maps.displacement.detach()}


def far_from_zero() -> Tensor:
    """Float32 values whose spread is a thousandth of their mean."""
    return 1000 + torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))


def nearly_constant() -> tuple[Tensor, Tensor]:
    """Values whose variances are far below, near and far above the epsilon of 1e-5; and weights for a loss."""
    rng = torch.Generator().manual_seed(3)
    spread = torch.tensor([1e-4, 3.3e-3, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    values = 0.5 + spread * torch.randn(6, 3, 2, 2, generator=rng, dtype=torch.float64)
    return values, torch.randn(values.shape, generator=rng, dtype=torch.float64)


def clamped(part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """What the clamped normalization makes of a part of the joint batch, its gradient, and its running variance."""
    values, weight = nearly_constant()
    mine = values[part].requires_grad_()
    norm = BatchNorm(3, affine=False, clamp_variance=True).double()
    white = norm(mine)
    (white.square() * weight[part]).sum().backward()
    return white.detach(), mine.grad, norm.running_var


def one_of_two(folder: Path) -> None:
    rank = dist.init().rank
    latent, label = joint_batch()
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    found = answers(small_generator(), latent[mine], label[mine])
    norm = BatchNorm(2, affine=True)
    found["far"] = norm(far_from_zero()[2 * rank : 2 + 4 * rank]).detach()
    found["far var"] = norm.running_var
    found["clamped"], found["clamped grad"], found["clamped var"] = clamped(slice(2) if rank == 0 else slice(2, 6))
    own = BatchNorm(3, affine=False).double()
    with alone(own):
        found["alone"] = own(nearly_constant()[0][: 2 + rank])  # batches that differ in size, and not at the same time
    torch.save(found, folder / f"{rank}.pt")
    dist.finish()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[str, Tensor]]:
    """What the two processes of `one_of_two` found."""
    folder = tmp_path_factory.mktemp("two")
    assert wait(start(2, one_of_two, folder)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_normalize_by_their_joint_batch(two_ranks):
    first, second = two_ranks
    expected = answers(small_generator(), *joint_batch())
    for name, value in expected.items():
        if name.startswith("grad"):
            found = first[name] + second[name]
        elif name.startswith("buffer"):
            found = first[name]
            torch.testing.assert_close(second[name], found, rtol=0, atol=0, msg=name)
        else:
            found = torch.cat([first[name], second[name]])
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    norm = nn.BatchNorm2d(2).double()
    exact = norm(far_from_zero().double()).float()
    torch.testing.assert_close(torch.cat([first["far"], second["far"]]), exact.detach(), rtol=0, atol=2e-4)
    torch.testing.assert_close(first["far var"], norm.running_var.float(), rtol=1e-5, atol=0)


def test_several_processes_can_clamp_the_variance_and_one_never_does(two_ranks):
    values, weight = nearly_constant()
    values.requires_grad_()
    mean, var = values.mean((0, 2, 3), keepdim=True), values.var((0, 2, 3), correction=0, keepdim=True)
    assert var[0, 0] < 1e-6 < var[0, 1] < 2e-5 < 1 < var[0, 2]
    white = (values - mean) / torch.sqrt(torch.maximum(var, torch.tensor(1e-5, dtype=torch.float64)))
    (white.square() * weight).sum().backward()
    joined = {name: torch.cat([rank[name] for rank in two_ranks]) for name in ("clamped", "clamped grad")}
    torch.testing.assert_close(joined["clamped"], white.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(joined["clamped grad"], values.grad, rtol=1e-7, atol=1e-8)
    unbiased = 0.9 + 0.1 * values.detach().var((0, 2, 3))
    for rank in two_ranks:
        torch.testing.assert_close(rank["clamped var"], unbiased)
    plain = F.batch_norm(values.detach(), None, None, training=True, eps=1e-5)
    torch.testing.assert_close(clamped(slice(None))[0], plain)
    assert (plain - white)[:, 1].abs().max() > 0.1


def test_a_process_can_normalize_alone(two_ranks):
    values, _ = nearly_constant()
    for rank, found in enumerate(two_ranks):
        torch.testing.assert_close(found["alone"], F.batch_norm(values[: 2 + rank], None, None, training=True))
    norm = ConditionalBatchNorm(3, 2).norm
    with alone(nn.Sequential(norm)):
        assert norm.alone
    assert not norm.alone

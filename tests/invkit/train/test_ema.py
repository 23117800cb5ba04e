import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from invkit.train.ema import Ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4), nn.Linear(4, 2))


def numbers(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}


def test_the_whole_state_is_averaged_and_integers_are_copied():
    live = network()
    ema = Ema(live, alpha=lambda step: 0.9 if step < 2 else 0.99)
    expected = numbers(live)
    optimizer = torch.optim.SGD(live.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        live(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ema.update(live, step)
        alpha = 0.9 if step < 2 else 0.99
        for name, value in numbers(live).items():
            is_count = name.endswith("num_batches_tracked")
            expected[name] = value if is_count else alpha * expected[name] + (1 - alpha) * value
    assert int(ema.module[1].num_batches_tracked) == 4
    assert any("_u" in name for name in expected), "the vectors of spectral normalization are among them"
    for name, value in numbers(ema.module).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=1e-7, err_msg=name)


def test_the_average_is_never_trained_and_shares_nothing_with_the_network():
    live = network()
    ema = Ema(live, alpha=lambda step: 0.5).train()
    assert not any(module.training for module in ema.modules())
    assert live.training
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    storages = {tensor.data_ptr() for tensor in live.state_dict().values()}
    assert not storages & {tensor.data_ptr() for tensor in ema.state_dict().values()}


def test_it_is_saved_under_its_own_name_and_comes_back():
    live = network()
    ema, other = Ema(live, alpha=lambda step: 0.5), Ema(network(), alpha=lambda step: 0.5)
    with torch.no_grad():
        live[2].weight.add_(1.0)
    ema.update(live, 0)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module[2].weight, ema.module[2].weight)
    assert set(ema.state_dict()) == {f"module.{name}" for name in live.state_dict()}

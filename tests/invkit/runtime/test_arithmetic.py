"""Float32 is float32 on a GPU, unless a run says otherwise."""

import pytest
import torch

from invkit.runtime.arithmetic import allow_tf32
from invkit.runtime.run import Run


def allowed() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def as_before():
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize("tf32", [True, False])
def test_both_kinds_of_products_are_switched(tf32):
    allow_tf32(not tf32)
    allow_tf32(tf32)
    assert allowed() == (tf32, tf32)


@pytest.mark.parametrize("setting, expected", [({}, False), ({"tf32": False}, False), ({"tf32": True}, True)])
def test_a_run_switches_it_off_unless_it_is_asked_for(setting, expected, tmp_path):
    allow_tf32(not expected)
    with Run({"run": {"dir": str(tmp_path / "run"), "seed": 0, "device": "cpu", **setting}}):
        assert allowed() == (expected, expected)


@pytest.mark.gpu
def test_a_product_on_a_gpu_is_as_exact_as_the_switch_says():
    first, second = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = first.double() @ second.double()
    errors = {}
    for tf32 in (True, False):
        allow_tf32(tf32)
        found = (first.cuda() @ second.cuda()).cpu().double()
        errors[tf32] = (found - exact).abs().max().item()
    assert errors[False] < 1e-3 < errors[True]

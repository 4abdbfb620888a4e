"""The Triton kernels against the plain loop: on a GPU where there is one, else by Triton's interpreter."""

import importlib
import os

import pytest
import torch

from benchmarks.selective_scan import make_inputs, naive_scan
from model.ops.scan_inputs import ScanInputs
from model.ops.self_test import LENGTH, self_test
from model.ops.torch_scan import scan_torch
from tests.support.scan_cases import assert_equals_plain_loop

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported first
pytest.importorskip("triton", reason="triton is not installed")
kernels = importlib.import_module("model.ops.triton_scan")


TOLERANCE = 2e-5  # float32


def triton_scan(**arguments):
    return kernels.scan_triton(ScanInputs(**arguments))


def assert_same_scan(arguments):
    assert_equals_plain_loop(kernels.scan_triton, arguments, TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 30, 64])
def test_equals_the_plain_loop(length):
    assert_same_scan(make_inputs(3, 5, length, 3, DEVICE))


def test_equals_the_torch_backend():
    inputs = ScanInputs(**make_inputs(4, 6, 9, 2, DEVICE))
    for actual, expected in zip(kernels.scan_triton(inputs), scan_torch(inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("length", [8, 9, 16, 17])
def test_at_the_edges_of_kept_states(length):
    assert_same_scan(make_inputs(2, 3, length, 2, DEVICE))


def test_several_tiles_blocks_and_programs(monkeypatch):
    """Nine sequences and seven channels in tiles of 2 x 4; two programs share the tiles."""
    monkeypatch.setattr(kernels, "TILE", 16)
    monkeypatch.setattr(kernels, "MAX_CHANNELS", 4)
    monkeypatch.setattr(kernels, "MAX_PROGRAMS", 2)
    assert tuple(kernels._Tiles.of(7, 2)) == (2, 4, 2)
    assert_same_scan(make_inputs(9, 7, 3, 2, DEVICE))


def test_tiles_fit_the_registers():
    assert tuple(kernels._Tiles.of(128, 16)) == (1, 128, 16)
    assert tuple(kernels._Tiles.of(32, 16)) == (4, 32, 16)
    assert tuple(kernels._Tiles.of(256, 64)) == (1, 32, 64)


@pytest.mark.parametrize("left_out", ["D", "z", "delta_bias", "delta_softplus"])
def test_parts_can_be_left_out(left_out):
    arguments = make_inputs(3, 4, 3, 2, DEVICE)
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    arguments["delta_bias"] = arguments["delta_bias"].detach().abs().requires_grad_()
    assert_same_scan({**arguments, left_out: False if left_out == "delta_softplus" else None})


def test_any_layout_of_memory():
    arguments = make_inputs(3, 4, 5, 2, DEVICE)
    both = torch.randn(3, 5, 8, device=DEVICE, requires_grad=True)
    u, z = both.transpose(1, 2).chunk(2, dim=1)
    B = arguments["B"].detach().contiguous().requires_grad_()
    assert_same_scan({**arguments, "u": u, "z": z, "B": B})


def test_small_steps_keep_their_digits():
    """Steps near exp(-12): softplus by log(1 + w) alone would be off by a percent in float32."""
    arguments = {name: torch.ones(1, 1, 1, device=DEVICE) for name in ("u", "delta", "B", "C")}
    arguments["delta"] *= -12
    y, _ = triton_scan(**arguments, A=-torch.ones(1, 1, device=DEVICE), delta_softplus=True)
    torch.testing.assert_close(y, torch.full_like(y, 6.144193477e-06), rtol=1e-5, atol=0)  # log1p(exp(-12))


def test_gradient_of_the_last_state_alone():
    arguments = make_inputs(2, 3, 4, 2, DEVICE)
    tensors = [arguments[name] for name in ("u", "delta", "A", "B")]
    ours = torch.autograd.grad(triton_scan(**arguments)[1].square().sum(), tensors)
    expected = torch.autograd.grad(naive_scan(ScanInputs(**arguments))[1].square().sum(), tensors)
    for actual, gradient in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-5)


def test_self_test():
    assert LENGTH == kernels.KEEP_EVERY + 1
    assert self_test(kernels.scan_triton, DEVICE) is None


def test_the_self_test_detects_a_wrong_result():
    def wrong(inputs):
        return tuple(1.001 * x + 0.01 for x in kernels.scan_triton(inputs))

    assert "disagrees" in self_test(wrong, DEVICE)


def test_the_self_test_names_a_failure():
    def fail(inputs):
        raise RuntimeError("no C compiler")

    assert "no C compiler" in self_test(fail, DEVICE)


def test_float64_is_refused():
    with pytest.raises(ValueError, match="backend='torch' for float64"):
        triton_scan(**make_inputs(2, 3, 4, 2, dtype=torch.float64))

"""The selective scan: reference values, gradients, choice of a backend, memory kept for the backward pass."""

import argparse
import importlib.util
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from benchmarks import selective_scan as benchmark
from benchmarks.selective_scan import make_inputs, naive_scan
from common.errors import UsageError
from model.ops import choose_backend, selective_scan
from model.ops import torch_scan as blocks
from model.ops.scan_inputs import ScanInputs
from model.ops.self_test import self_test
from model.registry import SCAN_BACKENDS
from tests.support.scan_cases import assert_equals_plain_loop

LENGTHS = [1, 2, 3, 7, 30, 64]
SHAPES = [(5, 7, 3), (1, 1, 1), (3, 13, 5)]  # sequences, channels, states


def torch_scan(inputs):
    return selective_scan(*inputs, return_last_state=True, backend="torch")


def test_reference_values(golden):
    stored = np.load(golden / "selective_scan.npz")
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments = {name: torch.from_numpy(stored[name]) for name in names}
    y, last = selective_scan(**arguments, delta_softplus=True, return_last_state=True)
    np.testing.assert_allclose(y, stored["y"], rtol=1e-5, atol=1e-5)  # float32 on both sides; required: 1e-4
    np.testing.assert_allclose(last, stored["last_state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("sequences", "channels", "states"), SHAPES)
def test_torch_equals_the_plain_loop(length, sequences, channels, states):
    arguments = make_inputs(sequences, channels, length, states, dtype=torch.float64)
    assert_equals_plain_loop(torch_scan, arguments, 1e-10)  # float64: differs by the order of sums alone


def test_blocks_change_nothing(monkeypatch):
    """Sequences in blocks of 2, the last one smaller, in float32."""
    arguments = make_inputs(7, 9, 5, 4)
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 2 * 3 * 5 * 9 * 4 * 4 // torch.get_num_threads() + 1)
    assert_equals_plain_loop(torch_scan, arguments, 1e-5)  # float32 sums of some tens of terms


def test_parts_can_be_left_out():
    arguments = make_inputs(3, 4, 6, 2, dtype=torch.float64)
    plain = {name: arguments[name] for name in ("u", "delta", "A", "B", "C")}
    plain["delta"] = plain["delta"].detach().abs().requires_grad_()
    assert_equals_plain_loop(torch_scan, plain, 1e-10)
    for name in ("D", "z", "delta_bias"):
        assert_equals_plain_loop(torch_scan, {**arguments, name: None}, 1e-10)
    y = selective_scan(**plain)
    assert isinstance(y, torch.Tensor)
    assert y.shape == plain["u"].shape


@pytest.mark.parametrize("softplus", [False, True])
def test_gradcheck_in_float64(softplus):
    arguments = make_inputs(2, 3, 4, 2, dtype=torch.float64)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    assert torch.autograd.gradcheck(
        lambda *values: selective_scan(*values, softplus, True), [arguments[name] for name in names]
    )


def test_only_what_needs_a_gradient_gets_one():
    arguments = make_inputs(2, 3, 4, 2)
    arguments = {name: value.detach() if name != "A" else value for name, value in arguments.items() if name[-1] != "s"}
    selective_scan(**arguments).sum().backward()
    assert arguments["A"].grad.abs().sum() > 0
    with torch.no_grad():
        assert not selective_scan(**arguments).requires_grad


def test_no_state_is_kept_for_backward():
    """The graph holds the inputs alone: no (batch, channel, length, state) array."""
    arguments = make_inputs(4, 8, 3, 16)
    y = selective_scan(**arguments)
    saved = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]
    inputs = {value.data_ptr() for value in arguments.values() if isinstance(value, torch.Tensor)}
    assert {tensor.data_ptr() for tensor in saved} <= inputs


def test_half_precision_is_calculated_in_float32():
    """bfloat16 in and out, float32 inside, under autocast too."""
    arguments = make_inputs(3, 8, 30, 4)
    rounded = {
        name: value.detach().bfloat16() if name in ("u", "delta", "B", "C", "z") else value
        for name, value in arguments.items()
    }
    exact, _ = naive_scan(
        ScanInputs(**{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in rounded.items()})
    )
    with torch.autocast("cpu", torch.bfloat16):
        y, last = selective_scan(**rounded, return_last_state=True)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(y, exact.bfloat16(), rtol=2**-7, atol=1e-6)  # one rounding to 8 bits
    y.float().sum().backward()
    assert torch.isfinite(arguments["A"].grad).all()


def test_output_may_be_changed_in_place():
    arguments = make_inputs(2, 3, 4, 2)
    y = selective_scan(**arguments)
    y += 1
    y.sum().backward()
    assert arguments["u"].grad.shape == (2, 3, 4)


def test_a_batch_of_none_is_a_batch():
    y, last = selective_scan(**make_inputs(0, 3, 4, 2), return_last_state=True)
    assert y.shape == (0, 3, 4)
    assert last.shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("name", "shape"), [("delta", (2, 3, 5)), ("B", (2, 3, 4)), ("D", (4,)), ("z", (1, 3, 4)), ("A", (4, 2))]
)
def test_shapes_that_do_not_fit(name, shape):
    arguments = {**make_inputs(2, 3, 4, 2), name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"expected {name}"):
        selective_scan(**arguments)


def test_every_backend_of_the_registry_has_a_function():
    assert tuple(sys.modules["model.ops.selective_scan"]._BACKENDS) == SCAN_BACKENDS


def test_choice_on_a_cpu():
    assert choose_backend("torch", "cpu") == ("torch", "as requested")
    name, reason = choose_backend("auto", torch.device("cpu"))
    assert name == "torch"
    assert "CUDA" in reason
    for name in ("triton", "mamba_ssm"):
        with pytest.raises(UsageError, match=f"--ssm_backend {name} needs a CUDA device, and this is cpu"):
            choose_backend(name, "cpu")
    with pytest.raises(UsageError, match="unknown --ssm_backend 'cuda'; choose from auto, torch, triton, mamba_ssm"):
        choose_backend("cuda", "cpu")


def test_choice_on_a_gpu(monkeypatch):
    """Without a GPU: what auto takes, and its reason, for each set of packages and failing self-tests."""
    dispatch = sys.modules["model.ops.selective_scan"]
    names = {scan: name for name, scan in dispatch._BACKENDS.items()}
    packages: set[str] = set()
    failures: dict[str, str] = {}
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(dispatch, "self_test", lambda scan, device, **_: failures.get(names[scan]))

    def choose(name, *installed):
        packages.clear()
        packages.update(installed)
        dispatch._choose.cache_clear()
        return choose_backend(name, "cuda:0")

    name, reason = choose("auto")
    assert name == "torch"
    assert "package triton, which is not installed" in reason
    assert "package mamba-ssm, which is not installed" in reason
    name, reason = choose("auto", "mamba_ssm")
    assert name == "torch"
    assert "without its CUDA kernels" in reason
    assert choose("auto", "mamba_ssm", "selective_scan_cuda")[0] == "mamba_ssm"
    assert choose("auto", "triton", "mamba_ssm", "selective_scan_cuda")[0] == "triton"
    assert choose("triton", "triton") == ("triton", "as requested")
    with pytest.raises(UsageError, match="package mamba-ssm, which is not installed; take --ssm_backend auto"):
        choose("mamba_ssm", "triton")
    failures["triton"] = "disagrees with torch on cuda:0"
    name, reason = choose("auto", "triton")
    assert name == "torch"
    assert "triton disagrees" in reason
    assert choose("auto", "triton", "mamba_ssm", "selective_scan_cuda")[0] == "mamba_ssm"
    failures["mamba_ssm"] = "failed on cuda:0 (ImportError: undefined symbol)"
    name, reason = choose("auto", "triton", "mamba_ssm", "selective_scan_cuda")
    assert name == "torch"
    assert "mamba_ssm failed on cuda:0 (ImportError: undefined symbol)" in reason
    for name in ("triton", "mamba_ssm"):
        with pytest.raises(UsageError, match=f"--ssm_backend {name} {re.escape(failures[name])}; take --ssm_backend"):
            choose(name, "triton", "mamba_ssm", "selective_scan_cuda")
    dispatch._choose.cache_clear()


def without_device(scan_fn):
    """A stand-in for mamba_ssm.ops.selective_scan_interface with this function."""
    package = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = scan_fn
    return package


def reference_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
    y, last = naive_scan(ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus))
    return y, last.detach()  # as the package: no gradient


def wrong_scan_fn(*arguments):
    y, last = reference_scan_fn(*arguments)
    return 1.01 * y + 0.1, last


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (without_device(reference_scan_fn), None),
        (without_device(wrong_scan_fn), "disagrees with torch on cpu"),
        (without_device(None), "failed on cpu (TypeError: 'NoneType' object is not callable)"),
        (types.ModuleType("mamba_ssm.ops.selective_scan_interface"), "failed on cpu (ImportError: cannot import name"),
        (None, "failed on cpu (ModuleNotFoundError: import of mamba_ssm.ops.selective_scan_interface halted"),
    ],
    ids=["works", "wrong result", "not callable", "without the function", "not importable"],
)
def test_mamba_ssm_gets_a_trial_call(monkeypatch, package, expected):
    """Also with everything installed that the package needs."""
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", package)
    dispatch = sys.modules["model.ops.selective_scan"]
    result = self_test(dispatch._scan_mamba_ssm, "cpu", last_state_gradient=False)
    assert result == expected or result.startswith(expected)


def test_mamba_ssm_gets_its_own_argument_layout(monkeypatch):
    """The stand-in for the package checks what its kernels need: one dtype, parameters in float32."""

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        assert {x.dtype for x in (u, delta, B, C, z)} == {torch.bfloat16}
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        assert return_last_state
        wide = [tensor.float() for tensor in (u, delta, A, B, C, D, z, delta_bias)]
        y, last = naive_scan(ScanInputs(*wide, delta_softplus))
        return y.to(u.dtype), last

    package = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", package)
    arguments = make_inputs(2, 3, 4, 2)
    arguments["u"] = arguments["u"].bfloat16()
    dispatch = sys.modules["model.ops.selective_scan"]
    y, last = dispatch._scan_mamba_ssm(ScanInputs(**arguments))
    expected = selective_scan(**arguments, return_last_state=True)
    torch.testing.assert_close(y, expected[0], rtol=0.05, atol=0.05)  # delta, B and C rounded to bfloat16
    torch.testing.assert_close(last, expected[1], rtol=0.05, atol=0.05)


def test_importing_the_models_imports_no_kernel_package():
    # known issue 16: no model imported without CUDA mamba-ssm
    code = (
        "import sys\n"
        "sys.modules['mamba_ssm'] = sys.modules['triton'] = None  # importing either fails\n"
        "import torch, model, model.layers.mamba\n"
        "print(tuple(model.layers.mamba.Mamba(16)(torch.zeros(2, 3, 16)).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 3, 16)", done.stderr


def test_triton_on_a_cpu_is_a_clear_error():
    with pytest.raises(UsageError, match="needs a CUDA device"):
        selective_scan(**make_inputs(2, 3, 4, 2), backend="triton")


@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="mamba-ssm is not installed")
@pytest.mark.gpu
@pytest.mark.parametrize("length", LENGTHS)
def test_mamba_ssm_equals_the_plain_loop(length):
    arguments = make_inputs(5, 7, length, 4, device="cuda")
    try:
        choose_backend("mamba_ssm", "cuda")
    except UsageError as error:
        pytest.skip(str(error))
    y = selective_scan(**arguments, backend="mamba_ssm")
    torch.testing.assert_close(y, naive_scan(ScanInputs(**arguments))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["inputs", "loop", "torch"])
def test_benchmark_measures_each(name):
    sizes = {"sequences": 4, "dates": 3, "channels": 5, "states": 2}
    figures = benchmark.measure(argparse.Namespace(only=name, device="cpu", repeats=2, **sizes))
    assert len(figures["step_s"]) == (0 if name == "inputs" else 2)
    assert figures["peak_mb"] > 1
    # 11 arrays of 4 x 3 x 5 and 6 of 4 x 3 x 2 floats
    assert benchmark.least_bytes(argparse.Namespace(**sizes)) == 4 * (11 * 60 + 6 * 24)

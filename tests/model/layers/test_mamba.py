"""The Mamba layer: reference values and gradients, initialisation, steps that depend on the gaps between dates."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.build import initialise_as_published
from model.layers.dates import order_dates
from model.layers.mamba import SKIPPED, DatedMamba, Mamba, causal_conv


@pytest.mark.parametrize("case", ["L1", "L3", "L7", "L30"])
def test_reference_values_and_gradients(golden, case):
    stored = {
        key[len(case) + 1 :]: value
        for key, value in np.load(golden / "mamba.npz").items()
        if key.startswith(f"{case}/")
    }
    layer = Mamba(**{name: int(stored[f"cfg/{name}"]) for name in ("d_model", "d_state", "d_conv", "expand")})
    weights = {key[6:]: torch.from_numpy(value) for key, value in stored.items() if key.startswith("param/")}
    layer.load_state_dict(weights, strict=True)
    x = torch.from_numpy(stored["x"]).requires_grad_()
    y = layer(x)
    (y * torch.from_numpy(stored["w"])).sum().backward()
    # required: 1e-4; float32 on both sides, sums of at most some hundreds of terms
    np.testing.assert_allclose(y.detach(), stored["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x.grad, stored["grad_x"], rtol=1e-4, atol=1e-5)
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.grad, stored[f"grad/{name}"], rtol=1e-4, atol=2e-5, err_msg=name)


def test_the_initialisation_is_that_of_mamba_ssm():
    torch.manual_seed(0)
    layer = Mamba(64, d_state=16)
    assert layer.dt_rank == 4
    torch.testing.assert_close(layer.A_log, torch.arange(1.0, 17).log().repeat(128, 1))
    assert (layer.D == 1).all()
    assert layer.dt_proj.weight.abs().max() <= 4**-0.5
    steps = F.softplus(layer.dt_proj.bias)
    assert steps.min() >= 0.001 * (1 - 1e-4)  # float32
    assert steps.max() <= 0.1 * (1 + 1e-4)
    thirds = torch.histc(steps.log10(), bins=2, min=-3, max=-1) / 128  # uniform in the logarithm
    assert ((thirds > 0.35) & (thirds < 0.65)).all()  # 128 draws: 0.5 with a deviation of 0.044
    floored = Mamba(16, dt_min=1e-6, dt_max=1e-5)
    torch.testing.assert_close(F.softplus(floored.dt_proj.bias), torch.full((32,), 1e-4), rtol=1e-3, atol=0)
    constant = Mamba(32, dt_init="constant", dt_scale=3.0)
    assert (constant.dt_proj.weight == 3 * 2**-0.5).all()
    with pytest.raises(ValueError, match="random or constant, got 'zero'"):
        Mamba(16, dt_init="zero")


def test_nothing_reinitialises_it():
    # known issue 16: the first version's initialiser overwrote the dt bias and drew Conv1d from N(0, 1)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ModuleDict({"time": Mamba(16)}))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.apply(initialise_as_published)
    network.apply(lambda module: [nn.init.zeros_(p) for p in module.parameters(recurse=False)] and None)
    after = network.state_dict()
    assert (after["0.weight"] == 0).all()
    for name, value in before.items():
        if name.startswith("1."):
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (7, 4), (30, 3), (5, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_causal_conv_is_conv1d_cut_to_length(length, taps, bias):
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 6, taps, groups=6, padding=taps - 1, bias=bias).double()
    x = torch.randn(5, length, 6, dtype=torch.float64)
    expected = conv(x.transpose(1, 2))[..., :length].transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, conv.weight, conv.bias), expected)


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_a_step_sees_no_later_step(length):
    torch.manual_seed(0)
    layer = Mamba(16)
    x = torch.randn(3, length, 16)
    changed = x.clone()
    changed[:, -1] += 1
    y, y_changed = layer(x), layer(changed)
    torch.testing.assert_close(y[:, :-1], y_changed[:, :-1], rtol=0, atol=1e-6)  # float32; same sums
    assert (y[:, -1] - y_changed[:, -1]).abs().max() > 1e-3


def test_trains_under_autocast():
    torch.manual_seed(0)
    layer = Mamba(16)
    x = torch.randn(4, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.02)  # bfloat16 has 8 bits
    y.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_inner_bias_options():
    layer = Mamba(16, bias=True, conv_bias=False, dt_rank=3)
    assert layer.conv1d.bias is None
    assert layer.in_proj.bias.shape == (64,)
    assert layer.dt_proj.weight.shape == (32, 3)
    assert layer(torch.zeros(1, 2, 16)).shape == (1, 2, 16)


def test_compiled_it_is_the_same():
    """The scan interrupts the compiled graph; this backend needs no compiler."""
    torch.manual_seed(0)
    layer = Mamba(16)
    x = torch.randn(3, 5, 16)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    grads = [torch.autograd.grad(net(x).square().sum(), list(layer.parameters())) for net in (compiled, layer)]
    torch.testing.assert_close(*grads)


def test_gradcheck_in_float64():
    torch.manual_seed(0)
    layer = Mamba(4, d_state=2).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_step_that_is_skipped_leaves_no_trace():
    torch.manual_seed(0)
    layer, x = Mamba(8), torch.randn(6, 4, 8)
    x[:, 2:] = 0
    shift = torch.zeros(2, 4, 1)  # two groups of three sequences
    shift[:, 2:] = SKIPPED
    backwards = layer(x.flip(1), shift.flip(1)).flip(1)
    torch.testing.assert_close(backwards[:, :2], layer(x[:, :2].flip(1)).flip(1))
    shifted = layer(x, torch.tensor([0.0, 1.0])[:, None, None].expand(2, 4, 1))
    torch.testing.assert_close(shifted[:3], layer(x[:3]))
    assert not torch.allclose(shifted[3:], layer(x[3:]))


def test_step_sizes_depend_on_the_gap_in_each_direction(monkeypatch):
    torch.manual_seed(0)
    layer, shifts = DatedMamba(8), []
    monkeypatch.setattr(Mamba, "forward", lambda self, x, shift: shifts.append(shift) or x)
    padded = torch.tensor([[False, False, True]])
    dates = torch.tensor([[1000.0, 1009.0, 0.0]])
    layer(torch.randn(3, 8, 4, 4), order_dates(torch.rand(1, 3, 1, 4, 4), dates, padded, use_dates=True))
    step = DatedMamba.START_POWER * torch.tensor(10.0).log()  # ln(1 + 9 days)
    forwards, backwards = (shift[0, :, 0] for shift in shifts)
    torch.testing.assert_close(forwards, torch.stack([torch.zeros(()), step, torch.tensor(SKIPPED)]))
    torch.testing.assert_close(backwards, torch.stack([torch.tensor(SKIPPED), torch.zeros(()), step]))

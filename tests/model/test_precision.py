"""What bf16 may change: a block, a step and a short training stay by those of float32, within stated bounds.

bf16 keeps 8 bits: a rounded value is off by 2^-9 at most, 0.1 % on average. Errors here are norms of differences
relative to norms in float32, so that they do not depend on the scale of a gradient.
"""

import pytest
import torch

from benchmarks import precision
from benchmarks.backbones import FIGURES
from benchmarks.precision import compare
from common.errors import UsageError
from config.schema import ModelConfig
from model.build import build_loss, build_model
from model.layers import temporal
from model.layers.conv import build_block
from model.registry import PADDING_MODES

LAYOUTS = pytest.mark.parametrize(
    "order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"]
)


def relative(rounded: torch.Tensor, exact: torch.Tensor) -> float:
    return ((rounded - exact).norm() / exact.norm()).item()


@LAYOUTS
@pytest.mark.parametrize(
    ("norm", "padding_mode"),
    [("batch", "reflect"), ("instance", "reflect"), ("none", "reflect"), *(("group", mode) for mode in PADDING_MODES)],
)
def test_a_block_in_bf16(norm, padding_mode, order):
    torch.manual_seed(0)
    block = build_block("mbconv", 16, 16, norm, padding_mode)
    x = (torch.rand(2, 16, 20, 24) + 0.5).contiguous(memory_format=order).requires_grad_()
    ahead = torch.randn(2, 16, 20, 24)
    runs = []
    for on in (False, True):
        block.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            out = block(x)
        out.backward(ahead.to(out.dtype))
        named = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
        runs.append({"out": out.detach().float(), "x": x.grad.clone(), **named})
    exact, rounded = runs
    assert relative(rounded["out"], exact["out"]) < 0.012  # 0.008 measured: a dozen roundings, and norms that enlarge
    assert relative(rounded["x"], exact["x"]) < 0.016  # 0.011 measured
    largest = max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        # 0.046 measured; a gradient whose sum cancels (a bias before a norm) has no scale to compare with
        assert relative(rounded[name], gradient) < 0.06 or (rounded[name] - gradient).norm() < 1e-3 * largest, name


@LAYOUTS
def test_a_training_step_in_bf16(order, monkeypatch):
    monkeypatch.setattr(temporal, "LARGE_IMAGE", 0 if order is torch.channels_last else 10**9)
    torch.manual_seed(0)
    model = _small()
    criterion = build_loss(model.config)
    x, dates, target = _sample(0)
    losses, gradients = [], []
    for on in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            prediction = model(x, dates)
        losses.append(criterion(prediction, target))
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-3)
    assert relative(gradients[1], gradients[0]) < 0.05  # 0.021 measured
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_a_short_training_in_bf16_ends_where_float32_ends():
    ends = []
    for on in (False, True):
        torch.manual_seed(0)
        model = _small()
        criterion, optimizer = build_loss(model.config), torch.optim.Adam(model.parameters(), lr=0.01)
        values = []
        for step in range(40):
            x, dates, target = _sample(step % 4)
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                prediction = model(x, dates)
            loss = criterion(prediction, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        ends.append((values[0], sum(values[-4:]) / 4))
    (start, exact), (_, rounded) = ends
    assert exact < start - 50  # it has learned: from 124 to 28 nats per pixel
    assert abs(rounded - exact) < 0.02 * (start - exact)  # 0.0002 measured


def _small():
    flags = {"encoder_widths": (16,), "decoder_widths": (16, 16), "n_head": 4, "d_model": 16, "low_res_size": 8}
    model = build_model(ModelConfig(head="gaussian", loss="MGNLL", scale_by=10.0, **flags)).train()
    model.netG.temporal_aggregator.attn_dropout.p = 0.0  # one random mask for both would need the same layout
    return model


def _sample(seed: int):
    """A smooth clear image under white clouds that move: x (2, 3, 13, 24, 24), dates, scaled target."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 13, 4, 4, generator=generator)
    clear = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=(24, 24), mode="bicubic").clamp(0, 1)
    clouds = (torch.rand(2, 3, 1, 3, 3, generator=generator) > 0.6).float().repeat_interleave(8, 3)
    clouds = clouds.repeat_interleave(8, 4)
    x = torch.lerp(clear[:, None], torch.ones(()), clouds)
    dates = 1200 + torch.rand(2, 3, generator=generator) * 90
    return x, dates, 10 * clear[:, None]


def test_the_benchmark_distinguishes_a_difference_from_noise():
    # three seeds, differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3), Student's t at two degrees 4.30
    figures = {("fp32", seed): dict.fromkeys(FIGURES, 1.0 * seed) for seed in (1, 2, 3)}
    figures |= {("bf16", seed): dict.fromkeys(FIGURES, 1.1 * seed) for seed in (1, 2, 3)}
    row = compare(figures, (1, 2, 3))["RMSE"]
    assert row["bf16 - fp32"]["mean"] == pytest.approx(0.2)
    assert row["noise"] == pytest.approx(4.30 * 0.1 / 3**0.5)
    assert row["within noise"]
    figures |= {("bf16", seed): dict.fromkeys(FIGURES, seed + 0.2 + 0.01 * seed) for seed in (1, 2, 3)}
    assert not compare(figures, (1, 2, 3))["RMSE"]["within noise"]


def test_the_benchmark_needs_several_seeds():
    with pytest.raises(UsageError, match="--seeds: expected 2 to 10 different seeds to see noise, got 1"):
        precision.main(["--root", "R", "--out", "O", "--seeds", "3", "3"])

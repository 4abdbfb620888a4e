"""conv3d_mamba: dates matter, their input order does not, padding has no influence, clear dates dominate."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UsageError
from config.resolve import resolve_config
from config.schema import ModelConfig
from data.constants import N_S2
from model.backbones.base import ImageSizeError
from model.build import build_model, describe_scan
from parse_args import parse
from tests.support.network_cases import random_series, small_network

DATES = torch.tensor([[1300.0, 1306.5, 1402.0], [1500.0, 1511.0, 1512.0]])


def network(**changes):
    return small_network("conv3d_mamba", **{"scale_by": 10.0, "loss": "NIG", **changes}).eval()


def images(t: int = 3, b: int = 2, height: int = 16, width: int = 20, channels: int = N_S2):
    return random_series(b, t, height, width, channels)[0]


@torch.no_grad()
def fields(model, x, dates):
    return model(x, dates).fields()


def assert_same(actual, expected, atol=1e-5):
    for name, field in expected.items():
        torch.testing.assert_close(actual[name], field, rtol=1e-5, atol=atol, msg=lambda text, name=name: name + text)


def test_the_input_order_of_images_does_not_matter():
    model, x = network(), images()
    shuffle = torch.tensor([2, 0, 1])
    assert_same(fields(model, x, DATES), fields(model, x[:, shuffle], DATES[:, shuffle]))


def test_two_images_of_one_day_may_be_swapped():
    model, x = network(), images()
    dates = torch.tensor([[1300.0, 1300.0, 1400.0], [1300.0, 1350.0, 1350.0]])
    shuffle = torch.tensor([1, 0, 2])
    assert_same(fields(model, x, dates), fields(model, x[:, shuffle], dates[:, shuffle]))


def test_dates_change_the_output_only_with_positional_encoding():
    x, later = images(), DATES + torch.tensor([0.0, 0.0, 60.0])
    for use_dates in (True, False):
        model = network(positional_encoding=use_dates)
        difference = (fields(model, x, DATES)["delta"] - fields(model, x, later)["delta"]).abs().max()
        assert difference > 1e-3 if use_dates else difference == 0


def test_the_gaps_alone_change_the_output():
    # known issue 16: the first version ignored dates and padding
    # a year's shift keeps season and gaps, the only inputs that depend on dates
    model, x = network(), images()
    before = fields(model, x, DATES)
    assert_same(before, fields(model, x, DATES + 4 * 365.25), atol=1e-3)  # float32: days of 1e3 to 3e3, as angles
    with torch.no_grad():
        for layer in model.netG.temporal:
            layer.code.weight.zero_()  # only the steps of the scan depend on days now
    steps_alone = fields(model, x, DATES)["delta"]
    wider = fields(model, x, DATES * 3)["delta"]
    assert (steps_alone - wider).abs().max() > 1e-4


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("pad_value", [0.0, -1.0])
def test_a_padded_date_changes_nothing(place, pad_value):
    model, x = network(pad_value=pad_value), images()
    empty = torch.full_like(x[:, :1], pad_value)
    padded = torch.cat([x[:, :place], empty, x[:, place:]], dim=1)
    dates = torch.cat([DATES[:, :place], torch.full((2, 1), 1350.0), DATES[:, place:]], dim=1)
    assert_same(fields(model, x, DATES), fields(model, padded, dates))


def test_padding_gets_no_gradient_and_gives_none():
    model, x = network(), images()
    x = torch.cat([x, torch.zeros_like(x[:, :2])], dim=1).requires_grad_()
    dates = torch.cat([DATES, DATES[:, :2] + 200], dim=1)
    model(x, dates).mean.square().sum().backward()
    assert (x.grad[:, 3:] == 0).all()
    assert (x.grad[:, :3] != 0).any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_series_of_padding_alone_is_finite():
    model, x = network(), images()
    x[1] = 0
    assert all(field.isfinite().all() for field in fields(model, x, DATES).values())


@pytest.mark.parametrize("t", [1, 5, 30, 64])
def test_any_number_of_dates_with_one_set_of_weights(t):
    model, x = network(), images(t, 1, 16, 16)
    days = torch.arange(t)[None] * 12.0 + 1300
    assert all(field.isfinite().all() for field in fields(model, x, days).values())
    assert fields(model, x, days)["delta"].shape == (1, 1, N_S2, 16, 16)


def test_an_untrained_network_starts_near_the_composite():
    model, x = network(mean_nonLinearity=False, scale_by=1.0), images() * 0.1
    with torch.no_grad():
        model.netG.out_conv.last.weight.zero_()
        model.netG.out_conv.last.bias.zero_()
        for layer in model.netG.clearness:
            layer[1].weight.zero_()
            layer[1].bias.zero_()
        optical = x.sort(dim=1).values  # a composite does not depend on the order of dates
        scores = model.netG.composite.rule_scores(optical, torch.ones(2, 3))
        composite, _ = model.netG.composite(optical, scores, torch.ones(2, 3))
        torch.testing.assert_close(model(optical, DATES).mean[:, 0], composite)


def test_inputs_and_widths_that_do_not_fit():
    model, x = network(), images()
    with pytest.raises(ValueError, match=r"16 x 16 pixels or more for .*, got 12 x 20"):
        model(x[..., :12, :], DATES)
    with pytest.raises(ValueError, match=r"expected the dates of 3 images, \(B, T\) in days, got none"):
        model(x, None)
    with pytest.raises(ValueError, match=r"expected dates \(2, 3\), one per image, got \(2, 2\)"):
        model(x, DATES[:, :2])
    with pytest.raises(UsageError, match="encoder_widths of conv3d_mamba must be multiples of 4, got 6"):
        network(encoder_widths=(6, 16))
    with pytest.raises(UsageError, match=r"expected as many of both and the same last one, as \[64, 64, 96\]"):
        network(decoder_widths=(8, 8))


def test_the_log_names_the_backend_of_the_scan():
    cpu = torch.device("cpu")
    assert describe_scan(ModelConfig(), cpu) == ""
    description = describe_scan(ModelConfig(model="conv3d_mamba"), cpu)
    assert description == ", selective scan torch (triton and mamba_ssm need a CUDA device, and this is cpu)"
    with pytest.raises(UsageError, match="--ssm_backend triton needs a CUDA device, and this is cpu; take .*auto"):
        describe_scan(ModelConfig(model="conv3d_mamba", ssm_backend="triton"), cpu)


def clouded_land(seed: int):
    """Three dates of smooth land (1, 3, 13, 32, 32), the clear one of them, and where the other two are clouded."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, N_S2, 4, 4, generator=generator) * 0.25 + 0.05
    land = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    land[:, 10] = 0.002  # B10 sees no land
    x = land[:, None].repeat(1, 3, 1, 1, 1)
    clouded = torch.rand(1, 1, 8, 8, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2) > 0.4
    clear = int(torch.randint(3, (), generator=generator))
    for date in range(3):
        if date != clear:
            white = torch.rand(1, generator=generator) * 0.4 + 0.4
            x[:, date] = torch.where(clouded, white + torch.rand(x[:, date].shape, generator=generator) * 0.05, land)
    return x, land, clear, clouded[0, 0]


def test_a_clear_date_dominates_where_the_others_are_clouded():
    model = network(head="mean", loss="l1").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    days = torch.tensor([[1300.0, 1306.0, 1315.0]])
    for step in range(20):
        x, land, _, _ = clouded_land(step)
        optimizer.zero_grad()
        (model(x, days).mean[:, 0] - 10 * land).abs().mean().backward()
        optimizer.step()
    model.eval()
    for seed in range(100, 105):
        x, land, clear, clouded = clouded_land(seed)
        weights = model.netG.date_weights(x * 10, days)[0, :, 0]
        assert weights[clear][clouded].mean() > 0.4  # the rest comes from the surroundings
        assert weights[[date for date in range(3) if date != clear]][:, clouded].mean() < 0.02
        with torch.no_grad():
            error = (model(x, days).unscaled(10.0).mean[0, 0] - land[0]).abs()[:, clouded].mean()
        assert error < 0.03  # clouds are 0.3 to 0.8 above the land


def test_weights_of_dates_are_in_input_order():
    model, x = network(), images() * 3
    shuffle = torch.tensor([2, 0, 1])
    weights = model.netG.date_weights(x, DATES)
    assert weights.shape == (2, 3, 1, 16, 20)
    torch.testing.assert_close(model.netG.date_weights(x[:, shuffle], DATES[:, shuffle]), weights[:, shuffle])
    assert (weights.sum(dim=1) < 1).all()


def flops(model, t: int, size: int = 32) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(t, 1, size, size, channels=15), torch.arange(t)[None] * 10.0 + 1000)
    return counter.get_total_flops()


def test_cost_of_the_default_network():
    # at most 2.0 M parameters, 1.5 times the FLOPs of uncrtaints (256 px, T = 3), linear in T
    line = ["--use_sar", "--loss", "NIG", "--model"]
    ours, theirs = (
        build_model(resolve_config(*parse("train", [*line, name]))[0]).eval() for name in ("conv3d_mamba", "uncrtaints")
    )
    assert sum(p.numel() for p in ours.parameters()) < 2.0e6
    # 0.84 at 64 px, 0.89 at 256 px: the attention of uncrtaints is at 32 px for any image
    assert flops(ours, 3, 64) < 1.5 * flops(theirs, 3, 64)
    of_3, of_6, of_12 = (flops(ours, t) for t in (3, 6, 12))
    assert of_12 - of_6 == 2 * (of_6 - of_3)


@pytest.mark.parametrize(
    ("flags", "smallest"),
    [
        ({}, 65),
        ({"padding_mode": "zeros"}, 33),
        ({"padding_mode": "zeros", "decoder_norm": "instance"}, 65),
        ({"padding_mode": "zeros", "encoder_norm": "instance"}, 65),
    ],
)
def test_many_levels_need_large_images(flags, smallest):
    model = network(encoder_widths=(8,) * 7, decoder_widths=(8,) * 7, **flags)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, N_S2, smallest, smallest, generator=generator)
    assert model(x, DATES[:1, :2]).mean.shape[-2:] == (smallest, smallest)
    assert model.train()(x.expand(2, -1, -1, -1, -1), DATES[:, :2]).mean.shape[-2:] == (smallest, smallest)
    text = f"expected images of {smallest} x {smallest} pixels or more for --model conv3d_mamba with 7 --encoder_widths"
    with pytest.raises(ImageSizeError, match=rf"{text}, got {smallest} x {smallest - 1}"):
        model(x[..., 1:], DATES[:1, :2])
    if smallest < 65:
        with pytest.raises(ImageSizeError, match="to one pixel, of which --decoder_norm batch has no statistics"):
            model(x, DATES[:1, :2])

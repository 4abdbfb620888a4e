"""What conv3d_mamba promises: dates matter, their order as given does not, padding does not exist."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UsageError
from config.schema import ModelConfig
from data.constants import N_S2
from model.build import build_model, choose_scan
from model.layers.composite import START_LAND, Mosaic
from model.layers.dates import read_calendar
from model.layers.mamba import SKIPPED, DatedMamba, Mamba
from model.layers.space_time import SpaceTimeBlock
from parse_args import parse, resolve

DATES = torch.tensor([[1300.0, 1306.5, 1402.0], [1500.0, 1511.0, 1512.0]])


def network(**changes):
    torch.manual_seed(0)
    flags = {"encoder_widths": (8, 16), "decoder_widths": (8, 16), "scale_by": 10.0, "loss": "NIG", **changes}
    return build_model(ModelConfig(model="conv3d_mamba", **flags)).eval()


def series(t: int = 3, b: int = 2, size: tuple[int, int] = (16, 20), channels: int = N_S2):
    return torch.rand(b, t, channels, *size, generator=torch.Generator().manual_seed(t))


@torch.no_grad()
def fields(model, x, dates):
    return model(x, dates).fields()


def assert_same(one, other, atol=1e-5):
    for name, field in one.items():
        torch.testing.assert_close(other[name], field, rtol=1e-5, atol=atol, msg=lambda text, name=name: name + text)


def test_the_order_in_which_images_come_does_not_matter():
    model, x = network(), series()
    shuffle = torch.tensor([2, 0, 1])
    assert_same(fields(model, x, DATES), fields(model, x[:, shuffle], DATES[:, shuffle]))


def test_two_images_of_one_day_may_change_places():
    model, x = network(), series()
    dates = torch.tensor([[1300.0, 1300.0, 1400.0], [1300.0, 1350.0, 1350.0]])
    shuffle = torch.tensor([1, 0, 2])
    assert_same(fields(model, x, dates), fields(model, x[:, shuffle], dates[:, shuffle]))


def test_dates_change_the_output_unless_they_are_not_told():
    x, later = series(), DATES + torch.tensor([0.0, 0.0, 60.0])
    for told in (True, False):
        model = network(positional_encoding=told)
        difference = (fields(model, x, DATES)["delta"] - fields(model, x, later)["delta"]).abs().max()
        assert difference > 1e-3 if told else difference == 0


def test_the_gaps_alone_change_the_output():
    # a year's shift keeps season and gaps, and nothing else is told of a date
    model, x = network(), series()
    before = fields(model, x, DATES)
    assert_same(before, fields(model, x, DATES + 4 * 365.25), atol=1e-3)  # float32: days of 1e3 to 3e3, as angles
    with torch.no_grad():
        for layer in model.netG.remember:
            layer.code.weight.zero_()  # only the steps of the scan know days now
    steps_alone = fields(model, x, DATES)["delta"]
    wider = fields(model, x, DATES * 3)["delta"]
    assert (steps_alone - wider).abs().max() > 1e-4


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("pad_value", [0.0, -1.0])
def test_a_padded_date_changes_nothing(place, pad_value):
    model, x = network(pad_value=pad_value), series()
    empty = torch.full_like(x[:, :1], pad_value)
    padded = torch.cat([x[:, :place], empty, x[:, place:]], dim=1)
    dates = torch.cat([DATES[:, :place], torch.full((2, 1), 1350.0), DATES[:, place:]], dim=1)
    assert_same(fields(model, x, DATES), fields(model, padded, dates))


def test_padding_gets_no_gradient_and_gives_none():
    model, x = network(), series()
    x = torch.cat([x, torch.zeros_like(x[:, :2])], dim=1).requires_grad_()
    dates = torch.cat([DATES, DATES[:, :2] + 200], dim=1)
    model(x, dates).mean.square().sum().backward()
    assert (x.grad[:, 3:] == 0).all()
    assert (x.grad[:, :3] != 0).any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_series_of_padding_alone_is_finite():
    model, x = network(), series()
    x[1] = 0
    assert all(field.isfinite().all() for field in fields(model, x, DATES).values())


@pytest.mark.parametrize("t", [1, 5, 30, 64])
def test_any_number_of_dates_with_one_set_of_weights(t):
    model, x = network(), series(t, b=1, size=(16, 16))
    days = torch.arange(t)[None] * 12.0 + 1300
    assert all(field.isfinite().all() for field in fields(model, x, days).values())
    assert fields(model, x, days)["delta"].shape == (1, 1, N_S2, 16, 16)


def test_an_untrained_network_starts_near_the_mosaic():
    model, x = network(mean_nonLinearity=False, scale_by=1.0), series() * 0.1
    with torch.no_grad():
        model.netG.out_conv.last.weight.zero_()
        model.netG.out_conv.last.bias.zero_()
        for layer in model.netG.clearness:
            layer[1].weight.zero_()
            layer[1].bias.zero_()
        optical = x.sort(dim=1).values  # the order of dates does not matter to a mosaic
        scores = model.netG.mosaic.judge(optical, torch.ones(2, 3))
        mosaic, _ = model.netG.mosaic(optical, scores, torch.ones(2, 3))
        torch.testing.assert_close(model(optical, DATES).mean[:, 0], mosaic)


def test_a_mosaic_takes_what_was_seen_clearly_and_fills_the_rest_from_around():
    mosaic = Mosaic()
    optical = torch.full((1, 3, N_S2, 64, 64), 0.8)  # clouds
    optical[:, :, 10] = 0.001  # no cirrus
    land = torch.full((N_S2, 64, 64), 0.1)
    land[10] = 0.001
    optical[0, 1, :, :, :32] = land[:, :, :32]  # one date shows the left half
    with torch.no_grad():
        scores = mosaic.judge(optical, torch.ones(1, 3))
        assert (scores[0, 1, 0, :, :32] == 0).all()  # nothing against a dark pixel
        assert (scores[0, 0] < -50).all()  # 80 for each reflectance above 0.17, 160 for each above the darkest
        filled, support = mosaic(optical, scores, torch.ones(1, 3))
        # where it was seen: one clear date against a pull of a tenth towards the same land
        torch.testing.assert_close(filled[0, :, :, :24], land[:, :, :24], atol=0.01, rtol=0)
        # where it was not: from the left half, not from the clouds, and beyond its reach towards the start of land
        assert filled[:, :, :, 32:].max() < max(START_LAND) + 1e-3
        assert support[0, 0, 0, 0] == pytest.approx(0.98, abs=0.01)
        assert support[0, 0, 0, 63] < 1e-6
        nothing, none = mosaic(optical, scores, torch.zeros(1, 3))
        torch.testing.assert_close(nothing, mosaic.land.sigmoid()[None, :, None, None].expand(nothing.shape))
        assert (none == 0).all()


def test_what_it_refuses():
    model, x = network(), series()
    with pytest.raises(ValueError, match=r"16 x 16 pixels or more, got 12 x 20"):
        model(x[..., :12, :], DATES)
    with pytest.raises(ValueError, match=r"expected the dates of 3 images, \(B, T\) in days, got none"):
        model(x, None)
    with pytest.raises(ValueError, match=r"expected dates \(2, 3\), as there are images, got \(2, 2\)"):
        model(x, DATES[:, :2])
    with pytest.raises(UsageError, match="encoder_widths of conv3d_mamba must be multiples of 4, got 6"):
        network(encoder_widths=(6, 16))
    with pytest.raises(UsageError, match=r"expected as many of both and the same last one, as \[64, 64, 96\]"):
        network(decoder_widths=(8, 8))


def test_a_calendar_tells_gaps_and_seasons_in_order():
    x = series(4, b=1)
    dates = torch.tensor([[1350.0, 1300.0, 9999.0, 1310.5]])
    padded = torch.tensor([[False, False, True, False]])
    calendar = read_calendar(x, dates, padded, told=True)
    assert calendar.order.tolist() == [[1, 3, 0, 2]]
    assert calendar.present.tolist() == [[1, 1, 1, 0]]
    gaps = torch.tensor([10.5, 39.5]).log1p()
    torch.testing.assert_close(calendar.since[0], torch.tensor([0, gaps[0], gaps[1], 0]))
    torch.testing.assert_close(calendar.until[0], torch.tensor([gaps[0], gaps[1], 0, 0]))
    assert (calendar.season[0, 3] == 0).all()
    torch.testing.assert_close(calendar.season[0, :3].norm(dim=-1), torch.ones(3))
    assert torch.equal(calendar.arrange(x)[0, 0], x[0, 1])


def test_a_step_that_is_skipped_leaves_no_trace():
    torch.manual_seed(0)
    layer, x = Mamba(8), torch.randn(6, 4, 8)
    x[:, 2:] = 0
    shift = torch.zeros(2, 4, 1)  # two groups of three sequences
    shift[:, 2:] = SKIPPED
    backwards = layer(x.flip(1), shift.flip(1)).flip(1)
    torch.testing.assert_close(backwards[:, :2], layer(x[:, :2].flip(1)).flip(1))
    ours = layer(x, torch.tensor([0.0, 1.0])[:, None, None].expand(2, 4, 1))
    torch.testing.assert_close(ours[:3], layer(x[:3]))
    assert not torch.allclose(ours[3:], layer(x[3:]))


def test_the_convolution_over_dates_is_a_3d_convolution():
    torch.manual_seed(0)
    block, x = SpaceTimeBlock(4, "group", "zeros"), torch.randn(2 * 5, 4, 6, 7)
    present = torch.ones(2, 5)
    active = torch.nn.functional.gelu(block.norm1(x)).unflatten(0, (2, 5)).transpose(1, 2)  # (B, C, T, H, W)
    weight = block.conv1.weight.unflatten(1, (3, 4)).transpose(1, 2)  # (K, C, 3, 3, 3)
    expected = torch.nn.functional.conv3d(active, weight, padding=1).transpose(1, 2).flatten(0, 1)
    expected = x + torch.nn.functional.conv2d(
        torch.nn.functional.gelu(block.norm2(expected)), block.conv2.weight, padding=1
    )
    torch.testing.assert_close(block(x, present), expected, rtol=1e-5, atol=1e-5)


def test_a_block_over_dates_has_the_gradients_of_its_parts():
    # float64 against autograd through the plain layers: the block keeps its input alone and walks its norms again
    torch.manual_seed(0)
    block, x = SpaceTimeBlock(4, "group", "reflect").double(), torch.randn(6, 4, 5, 6, dtype=torch.float64)
    present = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)

    def plain(x):
        active = torch.nn.functional.gelu(block.norm1(x)).unflatten(0, (2, 3)) * present[:, :, None, None, None]
        none = torch.zeros_like(active[:, :1])
        near = torch.cat([torch.cat([none, active[:, :-1]], 1), active, torch.cat([active[:, 1:], none], 1)], 2)
        pad = torch.nn.functional.pad(near.flatten(0, 1), (1, 1, 1, 1), mode="reflect")
        out = torch.nn.functional.gelu(block.norm2(torch.nn.functional.conv2d(pad, block.conv1.weight)))
        pad = torch.nn.functional.pad(out, (1, 1, 1, 1), mode="reflect")
        return x + torch.nn.functional.conv2d(pad, block.conv2.weight)

    x.requires_grad_()
    weight = torch.randn_like(x)
    found = torch.autograd.grad((block(x, present) * weight).sum(), [x, *block.parameters()])
    expected = torch.autograd.grad((plain(x) * weight).sum(), [x, *block.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_scan_hears_of_the_gap_in_each_direction(monkeypatch):
    torch.manual_seed(0)
    layer, heard = DatedMamba(8), []
    monkeypatch.setattr(Mamba, "forward", lambda self, x, shift: heard.append(shift) or x)
    padded = torch.tensor([[False, False, True]])
    calendar = read_calendar(torch.rand(1, 3, 1, 4, 4), torch.tensor([[1000.0, 1009.0, 0.0]]), padded, told=True)
    layer(torch.randn(3, 8, 4, 4), calendar)
    step = DatedMamba.START_POWER * torch.tensor(10.0).log()  # ln(1 + 9 days)
    ahead, back = (shift[0, :, 0] for shift in heard)
    torch.testing.assert_close(ahead, torch.stack([torch.zeros(()), step, torch.tensor(SKIPPED)]))
    torch.testing.assert_close(back, torch.stack([torch.tensor(SKIPPED), torch.zeros(()), step]))


def test_the_backend_is_chosen_once_and_told():
    cpu = torch.device("cpu")
    assert choose_scan(ModelConfig(), cpu) == ""
    told = choose_scan(ModelConfig(model="conv3d_mamba"), cpu)
    assert told == ", selective scan torch (triton and mamba_ssm need a CUDA device, and this is cpu)"
    with pytest.raises(UsageError, match="--ssm_backend triton needs a CUDA device, and this is cpu; take .*auto"):
        choose_scan(ModelConfig(model="conv3d_mamba", ssm_backend="triton"), cpu)


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


def test_weights_of_dates_come_in_the_order_of_the_images():
    model, x = network(), series() * 3
    shuffle = torch.tensor([2, 0, 1])
    straight = model.netG.date_weights(x, DATES)
    assert straight.shape == (2, 3, 1, 16, 20)
    torch.testing.assert_close(model.netG.date_weights(x[:, shuffle], DATES[:, shuffle]), straight[:, shuffle])
    assert (straight.sum(dim=1) < 1).all()


def flops(model, t: int, size: int = 32) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(series(t, b=1, size=(size, size), channels=15), torch.arange(t)[None] * 10.0 + 1000)
    return counter.get_total_flops()


def test_cost_of_the_default_network():
    # at most 2.0 M parameters, 1.5 times the FLOPs of uncrtaints (256 px, T = 3), linear in T
    values, typed = parse("train", ["--model", "conv3d_mamba", "--use_sar", "--loss", "NIG"])
    config, _ = resolve(values, typed)
    ours = build_model(config).eval()
    theirs = build_model(resolve(*parse("train", ["--use_sar", "--loss", "NIG"]))[0]).eval()
    assert sum(p.numel() for p in ours.parameters()) < 2.0e6
    # 0.84 at 64 px, 0.89 at 256 px: the attention of uncrtaints is at 32 px whatever the image
    assert flops(ours, 3, 64) < 1.5 * flops(theirs, 3, 64)
    one, two, four = (flops(ours, t) for t in (3, 6, 12))
    assert four - two == 2 * (two - one)

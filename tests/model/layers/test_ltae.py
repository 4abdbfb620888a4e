"""Attention over dates: padded dates, the order of dates, the resolution at which dates are compared."""

import pytest
import torch
import torch.nn.functional as F

from config.schema import ModelConfig
from data.constants import N_S2
from model.backbones.uncrtaints import TemporalAggregator, resize
from model.build import build_model
from model.layers.ltae import TemporalEncoder

SMALL = {"encoder_widths": (8,), "decoder_widths": (8, 8), "n_head": 4, "d_model": 16, "low_res_size": 8}


def small(seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(seed)
    flags = {"head": "gaussian", "scale_by": 10.0, **SMALL, **changes}
    return build_model(ModelConfig(**flags)).to(dtype)


def series(b: int = 1, t: int = 3, height: int = 16, width: int = 16, channels: int = N_S2):
    generator = torch.Generator().manual_seed(b + 10 * t)
    x = torch.rand(b, t, channels, height, width, generator=generator)
    return x, torch.rand(b, t, generator=generator) * 90 + 1200


def test_attention_of_small_images_is_averaged_as_published():
    # published: average-pooling by 32 // H; maps of an image of 16 pixels repeat each pixel, so it is the same
    attention = torch.rand(6, 3, 16, 16).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    torch.testing.assert_close(resize(attention, 16, 16), F.avg_pool2d(attention, 2))


def test_low_res_size_is_read():
    # published: never read, 32 hard-coded (known issue 17)
    sizes = []
    for size in (4, 8):
        model = small(low_res_size=size).eval()
        model.netG.temporal_encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
        model(*series(1, 3, 24, 16))
    assert sizes == [(4, 4), (8, 8)]


@pytest.mark.parametrize("pad_value", [0.0, 0.3])
def test_a_padded_date_gets_no_attention(pad_value):
    model = small(pad_value=pad_value).eval()
    x, dates = series(2, 4)
    x[0, 2] = pad_value
    x[1, 1, 0] = pad_value  # one band alone is no padding
    seen = []
    model.netG.temporal_aggregator.register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    model(x, dates)
    attention, padded = seen[0]
    assert padded.tolist() == [[False, False, True, False], [False] * 4]
    assert (attention[:, 0, 2] == 0).all()
    assert (attention[:, 1] > 0).all()
    torch.testing.assert_close(attention.sum(dim=2), torch.ones_like(attention[:, :, 0]))


@pytest.mark.parametrize("mode", ["att_group", "att_mean", "mean"])
def test_maps_of_a_padded_date_do_not_enter_the_sum(mode):
    aggregate = TemporalAggregator(mode).eval()
    maps = list(torch.rand(3, 2, 8, 6, 6))
    attention = torch.rand(4, 2, 3, 3, 3)
    padded = torch.tensor([[False, True, False], [False, False, False]])
    before = aggregate(maps, attention, padded)
    maps[1] = maps[1].clone()
    maps[1][0] += 100.0
    torch.testing.assert_close(aggregate(maps, attention, padded)[0], before[0])
    maps[1][1] += 100.0
    assert not torch.allclose(aggregate(maps, attention, padded)[1], before[1])


def test_a_padded_date_still_enters_the_group_norm_of_the_attention():
    # published weights expect it: with the padded date cut off, the attention of the others differs
    torch.manual_seed(0)
    encoder = TemporalEncoder(8, 2, 8, 4).eval()
    maps, dates = torch.rand(1, 3, 8, 2, 2), torch.tensor([[10.0, 20.0, 30.0]])
    padded = torch.tensor([[False, False, True]])
    with_padding, _ = encoder(maps, dates, padded)
    without, _ = encoder(maps[:, :2], dates[:, :2], padded[:, :2])
    assert (with_padding[:, :, :2] - without).abs().max() > 1e-4
    alike, _ = encoder(maps.clone().index_fill_(1, torch.tensor([2]), 5.0), dates, padded)
    assert (with_padding - alike).abs().max() > 1e-4


def test_mean_leaves_padded_dates_out():
    model = small(agg_mode="mean").eval()
    x, dates = series(1, 3)
    x[:, 2] = 0
    torch.testing.assert_close(model(x, dates).mean, model(x[:, :2], dates[:, :2]).mean)


def test_order_of_dates_does_not_matter_but_dates_do():
    model = small().eval()
    x, dates = series(2, 3)
    mean = model(x, dates).mean
    order = [2, 0, 1]
    torch.testing.assert_close(model(x[:, order], dates[:, order]).mean, mean)
    assert (model(x, dates[:, order]).mean - mean).abs().max() > 1e-5
    undated = small(positional_encoding=False).eval()
    assert torch.equal(undated(x, None).mean, undated(x, dates).mean)

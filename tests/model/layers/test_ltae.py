"""Attention over dates: padded dates, the order of dates, the resolution of the attention."""

import pytest
import torch

from model.layers.ltae import TemporalEncoder
from tests.support.network_cases import random_series, small_network


def small(**changes):
    return small_network(**{"head": "gaussian", "scale_by": 10.0, **changes}).eval()


def test_low_res_size_has_an_effect():
    # published: without effect, 32 hard-coded (known issue 17)
    sizes = []
    for size in (4, 8):
        model = small(low_res_size=size)
        model.netG.temporal_encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
        model(*random_series(1, 3, 24, 16))
    assert sizes == [(4, 4), (8, 8)]


@pytest.mark.parametrize("pad_value", [0.0, 0.3])
def test_a_padded_date_gets_no_attention(pad_value):
    model = small(pad_value=pad_value)
    x, dates = random_series(2, 4)
    x[0, 2] = pad_value
    x[1, 1, 0] = pad_value  # one band alone is not padding
    inputs = []
    model.netG.temporal_aggregator.register_forward_pre_hook(lambda _, args: inputs.append(args[1:]))
    model(x, dates)
    attention, padded = inputs[0]
    assert padded.tolist() == [[False, False, True, False], [False] * 4]
    assert (attention[:, 0, 2] == 0).all()
    assert (attention[:, 1] > 0).all()
    torch.testing.assert_close(attention.sum(dim=2), torch.ones_like(attention[:, :, 0]))


def test_a_padded_date_still_enters_the_group_norm_of_the_attention():
    # published weights expect it: without the padded date, the attention of the others differs
    torch.manual_seed(0)
    encoder = TemporalEncoder(8, 2, 8, 4).eval()
    maps, dates = torch.rand(1, 3, 8, 2, 2), torch.tensor([[10.0, 20.0, 30.0]])
    padded = torch.tensor([[False, False, True]])
    with_padding, _ = encoder(maps, dates, padded)
    without, _ = encoder(maps[:, :2], dates[:, :2], padded[:, :2])
    assert (with_padding[:, :, :2] - without).abs().max() > 1e-4
    changed, _ = encoder(maps.clone().index_fill_(1, torch.tensor([2]), 5.0), dates, padded)
    assert (with_padding - changed).abs().max() > 1e-4


def test_mean_excludes_padded_dates():
    model = small(agg_mode="mean")
    x, dates = random_series(1, 3)
    x[:, 2] = 0
    torch.testing.assert_close(model(x, dates).mean, model(x[:, :2], dates[:, :2]).mean)


def test_order_of_dates_does_not_matter_but_dates_do():
    model = small()
    x, dates = random_series(2, 3)
    mean = model(x, dates).mean
    order = [2, 0, 1]
    torch.testing.assert_close(model(x[:, order], dates[:, order]).mean, mean)
    assert (model(x, dates[:, order]).mean - mean).abs().max() > 1e-5
    undated = small(positional_encoding=False)
    assert torch.equal(undated(x, None).mean, undated(x, dates).mean)

"""Sums over dates: weights by attention, padded dates, memory formats."""

import pytest
import torch
import torch.nn.functional as F

from model.layers.conv import resize
from model.layers.temporal import TemporalAggregator, sum_over_dates
from model.registry import AGGREGATIONS


def test_attention_of_small_images_is_averaged_as_published():
    # published: average-pooling by 32 // H; maps of an image of 16 pixels repeat each pixel, so it is the same
    attention = torch.rand(6, 3, 16, 16).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    torch.testing.assert_close(resize(attention, (16, 16)), F.avg_pool2d(attention, 2))


@pytest.mark.parametrize("mode", AGGREGATIONS)
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


def test_a_sum_over_dates_is_the_same_in_either_memory_format():
    # channels innermost take a separate function; einsum is the reference
    torch.manual_seed(0)
    weights = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(3, 2, 8, 5, 6, dtype=torch.float64)
    innermost = [date.contiguous(memory_format=torch.channels_last).requires_grad_() for date in maps]
    assert torch.autograd.gradcheck(lambda weights, *maps: sum_over_dates(maps, weights), (weights, *innermost))
    plain = torch.einsum("tbgchw,btghw->bgchw", maps.unflatten(2, (4, 2)), weights).flatten(1, 2)
    torch.testing.assert_close(sum_over_dates(innermost, weights), plain)
    torch.testing.assert_close(sum_over_dates(list(maps), weights), plain)

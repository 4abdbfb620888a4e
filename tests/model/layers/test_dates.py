"""Order, gaps and season of dates."""

import torch

from model.layers.dates import order_dates
from tests.support.network_cases import random_series


def test_gaps_and_seasons_are_in_the_order_of_dates():
    x, _ = random_series(1, 4)
    dates = torch.tensor([[1350.0, 1300.0, 9999.0, 1310.5]])
    padded = torch.tensor([[False, False, True, False]])
    date_order = order_dates(x, dates, padded, use_dates=True)
    assert date_order.order.tolist() == [[1, 3, 0, 2]]
    assert date_order.valid.tolist() == [[1, 1, 1, 0]]
    gaps = torch.tensor([10.5, 39.5]).log1p()
    torch.testing.assert_close(date_order.gap_before[0], torch.tensor([0, gaps[0], gaps[1], 0]))
    torch.testing.assert_close(date_order.gap_after[0], torch.tensor([gaps[0], gaps[1], 0, 0]))
    assert (date_order.season[0, 3] == 0).all()
    torch.testing.assert_close(date_order.season[0, :3].norm(dim=-1), torch.ones(3))
    assert torch.equal(date_order.sort(x)[0, 0], x[0, 1])
    assert torch.equal(date_order.unsort(date_order.sort(x)), x)

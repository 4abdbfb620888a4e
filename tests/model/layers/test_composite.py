"""The clear composite: clear observations are kept, gaps are filled."""

import pytest
import torch

from data.constants import N_S2
from model.layers.composite import START_LAND, ClearComposite


def test_a_composite_takes_clear_observations_and_fills_gaps_from_their_surroundings():
    composite = ClearComposite()
    optical = torch.full((1, 3, N_S2, 64, 64), 0.8)  # clouds
    optical[:, :, 10] = 0.001  # no cirrus
    land = torch.full((N_S2, 64, 64), 0.1)
    land[10] = 0.001
    optical[0, 1, :, :, :32] = land[:, :, :32]  # the left half is clear at one date
    with torch.no_grad():
        scores = composite.rule_scores(optical, torch.ones(1, 3))
        assert (scores[0, 1, 0, :, :32] == 0).all()  # no penalty for a dark pixel
        assert (scores[0, 0] < -50).all()  # 80 for each reflectance above 0.17, 160 for each above the darkest
        filled, support = composite(optical, scores, torch.ones(1, 3))
        # where it was clear: one clear date against a pull of a tenth towards the same land
        torch.testing.assert_close(filled[0, :, :, :24], land[:, :, :24], atol=0.01, rtol=0)
        # elsewhere: from the left half, not from the clouds, and beyond its reach towards the initial land
        assert filled[:, :, :, 32:].max() < max(START_LAND) + 1e-3
        assert support[0, 0, 0, 0] == pytest.approx(0.98, abs=0.01)
        assert support[0, 0, 0, 63] < 1e-6
        filled, support = composite(optical, scores, torch.zeros(1, 3))
        torch.testing.assert_close(filled, composite.land.sigmoid()[None, :, None, None].expand(filled.shape))
        assert (support == 0).all()

"""The shifts of inputs, and the figures about them."""

import numpy as np
import pytest
import torch

from benchmarks.shift import HARMLESS, SHIFTS, auroc, shift_inputs, square
from data.constants import band_index
from model.evidence import pseudo_shifts


def series():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 15, 16, 16, generator=generator) * 0.5 + 0.1


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_change_the_inputs_and_stay_in_range(name):
    x = series()
    shifted = shift_inputs(name, x, torch.Generator().manual_seed(0))
    assert shifted.shape == x.shape
    assert not torch.equal(shifted, x)
    assert shifted.min() >= 0
    assert shifted.max() <= 1


def test_no_shift_is_a_pseudo_shift_of_the_fit():
    assert not set(SHIFTS) & {*pseudo_shifts.OPTICAL, *pseudo_shifts.RADAR}


def test_the_harmless_shift_is_b10_alone():
    x = series()
    changed = (shift_inputs(HARMLESS, x, torch.Generator()) != x).flatten(3).any(dim=3).all(dim=1).all(dim=0)
    assert changed.nonzero().flatten().tolist() == [2 + band_index("B10")]


def test_radar_in_linear_power_is_near_the_upper_end_of_the_range():
    x = torch.full((1, 1, 15, 1, 1), 0.2)  # -20 dB, a power of 0.01
    assert shift_inputs("radar in linear power", x, torch.Generator())[0, 0, 0, 0, 0] == pytest.approx(1.0, abs=1e-6)


def test_auroc_counts_pairs_and_halves_ties():
    negative, positive = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert auroc(negative, positive) == pytest.approx(wins / 6)


def test_the_square_is_half_as_wide_and_has_a_margin():
    inside, outside = square(64, 64)
    assert inside.nonzero().aminmax().min == 20
    assert inside.nonzero().aminmax().max == 43
    assert int(inside.sum()) == 24 * 24
    assert int((~outside).sum()) == 40 * 40
    assert not (inside & outside).any()

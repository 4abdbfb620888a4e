"""Predictions from exported fields."""

import numpy as np
import pytest

from evaluation.mixture import PredictedImages


def test_exports_tell_the_kinds_of_variance_apart():
    shape = (13, 4, 4)
    mean = np.full(shape, 0.2, np.float32)
    nig = {"gamma": 4.0, "alpha": 3.0, "beta": 0.02}
    fields = {"pred": mean, **{name: np.full(shape, value, np.float32) for name, value in nig.items()}}
    output = PredictedImages.from_fields(fields)
    assert output.aleatoric == pytest.approx(0.01)  # beta / (alpha - 1)
    assert output.epistemic == pytest.approx(0.0025)  # that / gamma
    assert output.total == pytest.approx(0.0125)
    gaussian = PredictedImages.from_fields({"pred": mean, "var": np.full(shape, 0.04, np.float32)})
    assert gaussian.epistemic is None
    assert gaussian.total == pytest.approx(0.04)
    assert PredictedImages.from_fields({"pred": mean}).total is None

"""Predictions from exported fields."""

import numpy as np
import pytest

from common.errors import DataError
from evaluation.mixture import PredictedImages, check_fields


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


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("pred", value, "finite values;") for value in (np.nan, np.inf)),
        *(("var", value, "finite values from 0") for value in (np.nan, np.inf, -1e-9)),
        *(("gamma", value, "finite values above 0") for value in (np.nan, np.inf, 0, -1)),
        *(("alpha", value, "finite values above 1") for value in (np.nan, np.inf, 1, 0.5)),
        *(("beta", value, "finite values from 0") for value in (np.nan, np.inf, -1)),
        ("target", np.nan, "finite values;"),
    ],
)
def test_values_that_no_prediction_has_are_named(field, value, expected):
    fields = {"pred": 0.2, "var": 0.0, "gamma": 4.0, "alpha": 1.001, "beta": 0.0, "target": 0.3}
    images = {name: np.full((13, 4, 4), number, np.float32) for name, number in fields.items()}
    check_fields(images, "sample 3")
    images[field][2, 1, 0] = value
    with pytest.raises(
        DataError, match=rf"sample 3: {field} holds {value:g}, and 1 such values in all; expected {expected}"
    ):
        check_fields(images, "sample 3")

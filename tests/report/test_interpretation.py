"""Calibration figures in words."""

import pytest

from report.interpretation import interpret_calibration


@pytest.mark.parametrize(
    ("inside", "verdict"),
    [(0.8, "over-confident"), (0.889, "about right"), (0.915, "about right"), (0.97, "too cautious")],
)
def test_coverage_in_words(inside, verdict):
    metrics = {"ENCE": 0.05, "sharpness": 0.02, "coverage 50": 0.5, "coverage 90": inside, "coverage 95": 0.95}
    size, coverage = interpret_calibration(metrics)  # no statements without NLL and AUSE
    assert coverage.verdict == verdict
    assert f"holds {100 * inside:.1f} (" in coverage.text
    assert size.verdict == "yes, nearly"
    assert interpret_calibration({"RMSE": 0.1}) == []

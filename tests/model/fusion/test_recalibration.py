"""Recalibration lines and tails fitted to errors."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import check_grad

from model.fusion.recalibration import Recalibration, fit_recalibration, student_t_objective


def draw(n, a, c, dof, seed=0):
    """Predicted variances, and Student-t errors of variance V' with ln V' = a + c ln V."""
    rng = np.random.default_rng(seed)
    predicted = np.exp(rng.normal(-7, 0.8, n))
    true = np.exp(a + c * np.log(predicted))
    scale = np.sqrt(true * (dof - 2) / dof)
    return torch.from_numpy(predicted), torch.from_numpy(rng.standard_t(dof, n) * scale)


def test_objective_is_the_student_t_and_its_gradient():
    rng = np.random.default_rng(0)
    x, squared = rng.normal(size=50), rng.gamma(1, 0.01, 50)
    objective = student_t_objective(x, squared)
    for point in ([-4.0, 1.0, 1.0], [-3.0, 0.4, -1.5], [-6.0, 2.0, 4.0]):
        point = np.array(point)
        dof = 2 + np.exp(point[2])
        expected = -stats.t.logpdf(np.sqrt(squared), dof, scale=np.exp((point[0] + point[1] * x) / 2)).mean()
        assert objective(point)[0] == pytest.approx(expected, rel=1e-12)
        error = check_grad(lambda p: objective(p)[0], lambda p: objective(p)[1], point)
        assert error < 1e-5 * max(1, np.abs(objective(point)[1]).max())  # one-sided differences of step 1.5e-8


@pytest.mark.parametrize(("a", "c", "dof"), [(-1.2, 0.8, 5.0), (-3.0, 0.4, 12.0), (0.0, 0.95, 3.0)])
def test_fit_finds_the_truth(a, c, dof):
    variance, error = draw(40000, a, c, dof)
    line = fit_recalibration(variance, error)
    assert line.slope.item() == pytest.approx(c, abs=0.05)  # standard error of the slope: about 0.012
    level = line.intercept.item() - 7 * line.slope.item()  # ln V' where the predicted variances are
    assert level == pytest.approx(a - 7 * c, abs=0.12)  # with 3 dof the variance depends on the tails: 0.04
    assert line.dof.item() == pytest.approx(dof, rel=0.2)


def test_fit_stays_within_its_bounds():
    variance, error = draw(5000, 0.0, 1.0, 5.0)
    rng = np.random.default_rng(1)
    normal = fit_recalibration(variance, torch.from_numpy(rng.normal(size=5000)) * variance.sqrt())
    assert 30 < normal.dof.item() <= 200.01
    cauchy = fit_recalibration(variance, torch.from_numpy(rng.standard_cauchy(5000)) * variance.sqrt())
    assert cauchy.dof.item() == pytest.approx(2.1, abs=1e-4)
    against = fit_recalibration(1 / variance, error)  # the larger the predicted variance, the smaller the error
    assert against.slope.item() == 0.0
    assert torch.isfinite(torch.stack([against.intercept, against.dof])).all()
    assert fit_recalibration(*draw(5000, 2.0, 1.5, 6.0)).slope.item() == 1.0  # contrasts are not stretched


def test_one_factor_for_all():
    variance, error = draw(20000, 0.7, 1.0, 6.0)
    line = fit_recalibration(variance, error, fit_slope=False)
    assert line.slope.item() == 1.0
    assert line.intercept.item() == pytest.approx(0.7, abs=0.06)


def test_rows_are_fitted_one_by_one():
    rows = [draw(3000, a, 1.0, 6.0, seed) for seed, a in enumerate((-1.0, 0.0, 1.0, 2.0))]
    variance, error = (torch.stack([r[i] for r in rows]).reshape(2, 2, -1) for i in (0, 1))
    together = fit_recalibration(variance, error)
    for index, (v, e) in enumerate(rows):
        alone = fit_recalibration(v, e)
        assert together.intercept.flatten()[index].item() == pytest.approx(alone.intercept.item(), abs=1e-6)
    again = together.apply(variance[:, None, None, :, :, None])  # (K, B, 1, C, H, W)
    clamped = variance.log().clamp(together.low[..., None], together.high[..., None])
    expected = torch.exp(together.intercept[..., None] + together.slope[..., None] * clamped)
    torch.testing.assert_close(again[:, 0, 0, :, :, 0], expected, rtol=1e-5, atol=0)


def test_the_line_ends_where_the_fit_has_seen_nothing():
    variance, error = draw(20000, -2.0, 0.7, 8.0)
    line = fit_recalibration(variance, error)
    low, high = np.quantile(variance.log().numpy(), (0.005, 0.995))
    assert (line.low.item(), line.high.item()) == pytest.approx((low, high), abs=1e-5)
    extreme = torch.tensor([1e-20, 1e20], dtype=torch.float64)[:, None, None]  # (B, C, 1, 1)
    recalibrated = Recalibration(*(field.reshape(1) for field in vars(line).values())).apply(extreme[:, None])
    ends = [line.intercept.item() + line.slope.item() * end for end in (low, high)]
    assert recalibrated.flatten().log().tolist() == pytest.approx(ends, abs=1e-4)


def test_nothing_to_fit():
    with pytest.raises(ValueError, match="variances and errors of the same pixels"):
        fit_recalibration(torch.ones(2, 0), torch.ones(2, 0))
    line = fit_recalibration(torch.ones(3), torch.zeros(3))  # no error at all: tiny, but finite
    assert torch.isfinite(line.intercept)


def test_the_recalibration_of_a_network_is_applied_by_band():
    line = Recalibration(torch.arange(13.0), *torch.ones(2, 13), torch.full((13,), -9.0), torch.full((13,), 9.0))
    variance = torch.ones(2, 1, 13, 3, 3)
    torch.testing.assert_close(line.apply(variance)[1, 0, :, 2, 0].log(), torch.arange(13.0))

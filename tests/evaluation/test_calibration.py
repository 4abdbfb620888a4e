"""Calibration figures against published values, sorting by brute force, and scoringrules."""

import json
import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats

from evaluation.calibration import (
    CalibrationMeter,
    CalibrationSums,
    calibration_figures,
    coverage_curve,
    discard_curve,
    error_figures,
    reliability,
    sparsification,
    uce_auce,
)
from model.student_t import normal_scores, student_t_scores

DOFS = (2.02, 2.1, 3.0, 4.7, 8.0, 15.0, 40.0, 202.0, 2e6)


def draw(n=200_000, seed=0, spread=1.0):
    """Variances over a wide range, and errors that they describe exactly."""
    rng = np.random.default_rng(seed)
    variance = np.exp(spread * rng.standard_normal(n) - 6)
    return np.sqrt(variance) * rng.standard_normal(n), variance


def normal_nll(error, variance):
    return 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)


def fill(error, variance, dof=None, meter=None, **kwargs):
    meter = meter or CalibrationMeter()
    nll = normal_nll(error, variance)
    arrays = [None if a is None else torch.as_tensor(a) for a in (error, variance, nll, dof)]
    meter.update(*arrays, **kwargs)
    return meter


def test_published_calibration(golden):
    reference = json.loads((golden / "calibration.json").read_text())
    variance, error = reference["var"], reference["error"]
    assert uce_auce(variance, error) == pytest.approx((reference["uce_l2"], reference["auce_l2"]), abs=1e-5)
    assert uce_auce(variance, error, l2=False) == pytest.approx((reference["uce_l1"], reference["auce_l1"]), abs=1e-5)
    assert discard_curve(variance, np.square(error)) == pytest.approx(reference["discard_se"], abs=1e-5)


def test_published_figures_at_the_edges():
    assert all(math.isnan(value) for value in uce_auce([], []))
    # One bin of full weight: the published histogram puts equal variances into a bin without errors.
    assert uce_auce([0.04, 0.04], [0.3, -0.3]) == pytest.approx((0.1, 0.1), abs=1e-6)
    curve = discard_curve([1.0, math.nan, 3.0], [0.1, 0.2, 0.3])
    assert math.isnan(curve[0])
    assert curve[-1] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="one value for each image"):
        uce_auce([1.0], [1.0, 2.0])


def test_a_calibrated_model_scores_zero():
    # known issue 5: published UCE compares the mean signed error of an image, about 0, with the root mean variance
    rng = np.random.default_rng(1)
    meter, variances, errors = CalibrationMeter(), [], []
    for _ in range(40):
        variance = 0.003 * np.exp(0.5 * rng.standard_normal((13, 48, 48)) + 0.2 * rng.standard_normal())
        error = np.sqrt(variance) * rng.standard_normal(variance.shape)
        fill(error, variance, meter=meter)
        variances.append(variance.mean())
        errors.append(error.mean())
    figures = calibration_figures(meter.compute())
    assert uce_auce(variances, errors)[0] > 0.05
    assert figures["ENCE"] < 0.006  # 60,000 elements a bin: a relative error of an RMSE of 0.3 %
    assert figures["UCE"] < 0.0004
    for level in (50, 90, 95):
        assert figures[f"coverage {level}"] == pytest.approx(level / 100, abs=0.002)


def test_an_overconfident_model_is_found_out():
    # known issue 1: at batch 4 the published loss has its optimum at a quarter of the true variance
    error, variance = draw()
    figures = calibration_figures(fill(error, variance / 4).compute())
    assert figures["ENCE"] == pytest.approx(1.0, abs=0.01)  # errors are twice the stated deviation
    assert figures["coverage 90"] == pytest.approx(2 * stats.norm.cdf(1.6449 / 2) - 1, abs=0.005)


def test_streamed_bins_equal_sorting():
    error, variance = draw(n=100_000)
    error *= 1 + 0.5 * np.tanh(np.log(variance) + 6)  # miscalibrated, so that the figures are not near 0
    sums = fill(error, variance).compute()
    order = np.argsort(variance)
    rmv = np.sqrt(variance[order].reshape(20, -1).mean(axis=1))
    rmse = np.sqrt(np.square(error)[order].reshape(20, -1).mean(axis=1))
    streamed = reliability(sums)
    # a cell is 1 % of a variance wide: the bins differ by the shares of the two cells at their edges
    np.testing.assert_allclose(streamed[0], rmv, rtol=2e-3)
    np.testing.assert_allclose(streamed[1], rmse, rtol=1e-2)
    figures = calibration_figures(sums)
    assert figures["ENCE"] == pytest.approx(np.mean(np.abs(rmv - rmse) / rmv), rel=5e-3)
    assert figures["UCE"] == pytest.approx(np.mean(np.abs(rmv - rmse)), rel=5e-3)
    assert figures["sharpness"] == pytest.approx(np.sqrt(variance.mean()), rel=1e-9)
    assert figures["NLL"] == pytest.approx(normal_nll(error, variance).mean(), rel=1e-9)


def test_streamed_ause_equals_sorting():
    error, variance = draw(n=100_000)
    sums = fill(error, variance).compute()
    curves = []
    for key in (variance, np.abs(error)):
        squared = np.square(error)[np.argsort(key)]
        kept = [squared[: len(squared) - removed * len(squared) // 100] for removed in range(100)]
        curves.append(np.array([math.sqrt(part.mean()) for part in kept]))
    for streamed, exact in zip(sparsification(sums), curves, strict=True):
        np.testing.assert_allclose(streamed, exact, rtol=0.02, atol=1e-5)
    gap = curves[0] - curves[1]
    area = (gap[1:] + gap[:-1]).sum() / 200 / curves[0][0]
    assert calibration_figures(sums)["AUSE"] == pytest.approx(area, rel=5e-3)
    oracle = fill(error, np.square(error) + 1e-12).compute()
    assert calibration_figures(oracle)["AUSE"] == pytest.approx(0, abs=1e-3)  # sorting by V is sorting by |e|


def test_one_variance_for_all_is_shared_between_bins():
    error = np.full(1000, 0.3)
    rmv, rmse = reliability(fill(error, np.full(1000, 0.04)).compute())
    np.testing.assert_allclose(rmv, 0.2, rtol=1e-9)
    np.testing.assert_allclose(rmse, 0.3, rtol=1e-9)


def test_strata_add_up_and_state_does_not_grow():
    error, variance = draw(n=30_000)
    stratum = torch.arange(30_000) % 3
    meter = CalibrationMeter(n_strata=3)
    for part in np.array_split(np.arange(30_000), 7):
        fill(error[part], variance[part], meter=meter, stratum=stratum[part])
    unstratified, total = fill(error, variance).compute(), meter.compute()
    strata = [vars(meter.compute(stratum)) for stratum in range(3)]
    parts = CalibrationSums(**{name: sum(sums[name] for sums in strata) for name in strata[0]})
    assert calibration_figures(parts) == pytest.approx(calibration_figures(total), rel=1e-9)
    assert calibration_figures(unstratified) == pytest.approx(calibration_figures(total), rel=1e-9)
    alone = fill(error[1::3], variance[1::3]).compute()
    assert calibration_figures(meter.compute(1)) == pytest.approx(calibration_figures(alone), rel=1e-9)
    held = [value for value in vars(meter).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() * value.element_size() for value in held) < 600_000


def test_what_is_not_finite_is_left_out_and_counted():
    # known issue 15
    error, variance = draw(n=1000)
    clean = fill(error[4:], variance[4:]).compute()
    error[0], variance[1], variance[2], variance[3] = math.nan, math.inf, 0.0, -1.0
    with np.errstate(all="ignore"):
        sums = fill(error, variance).compute()
    assert sums.left_out == 4
    assert error_figures(sums)["elements"] == 996
    assert calibration_figures(sums) == pytest.approx(calibration_figures(clean), rel=1e-9)


def test_bands_of_a_pixel_share_its_stratum():
    generator = torch.Generator().manual_seed(8)
    error, variance = (torch.rand(3, 50, 40, generator=generator) for _ in range(2))
    nll, stratum = error + variance, torch.randint(0, 2, (50, 40), generator=generator)
    shared, spread = CalibrationMeter(n_strata=2), CalibrationMeter(n_strata=2)
    shared.update(error, variance, nll, None, stratum)
    spread.update(error, variance, nll, None, stratum.expand(3, 50, 40))
    for left, right in zip(shared.state(), spread.state(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12)  # float64, another order of sums
    with pytest.raises(ValueError, match=r"strata of shape \(40,\) for elements of shape \(3, 50, 40\)"):
        shared.update(error, stratum=stratum[0])


def test_an_empty_stratum_has_no_figures():
    sums = CalibrationMeter(n_strata=2).compute(1)
    assert all(math.isnan(value) for name, value in calibration_figures(sums).items() if name != "AUSE")
    with pytest.raises(ValueError, match="go together"):
        CalibrationMeter().update(torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("dof", DOFS)
def test_student_t_scores(dof):
    z = np.concatenate([np.linspace(0, 8, 400), np.geomspace(1e-6, 1e4, 300)])
    arguments = [torch.tensor(value, dtype=torch.float64) for value in (0.3 * z, 0.09 * dof / (dof - 2), dof)]
    for precision, tolerance in ((torch.float64, 1e-6), (torch.float32, 4e-6)):
        error, variance, nu = (value.to(precision).double() for value in arguments)  # rounded to float32
        scale = torch.sqrt(variance * (nu - 2) / nu).item()
        reference = scoringrules.crps_t(error.numpy(), nu.item(), 0.0, scale)
        central, crps = student_t_scores(error.to(precision), variance.to(precision), nu.to(precision))
        np.testing.assert_allclose(central, 1 - 2 * stats.t.sf(error / scale, nu), atol=tolerance)
        np.testing.assert_allclose(crps, reference, rtol=5 * tolerance)


def test_normal_scores():
    error = np.linspace(-2, 2, 401)
    central, crps = normal_scores(torch.tensor(error), torch.full((401,), 0.25, dtype=torch.float64))
    np.testing.assert_allclose(central, 1 - 2 * stats.norm.sf(np.abs(error) / 0.5), atol=1e-12)
    np.testing.assert_allclose(crps, scoringrules.crps_normal(error, 0.0, 0.5), rtol=1e-12)


def test_student_t_figures():
    rng = np.random.default_rng(3)
    dof = rng.uniform(2.5, 30, 200_000)
    scale = np.exp(0.5 * rng.standard_normal(200_000) - 3)
    error = scale * stats.t.rvs(dof, random_state=rng)
    nll = scoringrules.logs_t(error, dof, 0.0, scale)
    meter = CalibrationMeter()
    meter.update(*(torch.tensor(array) for array in (error, scale**2 * dof / (dof - 2), nll, dof)))
    figures = calibration_figures(meter.compute())
    assert figures["CRPS"] == pytest.approx(scoringrules.crps_t(error, dof, 0.0, scale).mean(), rel=1e-6)
    assert figures["NLL"] == pytest.approx(nll.mean(), rel=1e-9)
    nominal, inside = coverage_curve(meter.compute())
    np.testing.assert_allclose(inside, nominal, atol=0.004)  # 3.5 standard errors of a share of 200,000
    assert figures["coverage 90"] == inside[89]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_figures():
    error, variance = draw(n=300_000)
    nll, dof = normal_nll(error, variance), np.full(error.shape, 7.0)
    figures = []
    for device in ("cpu", "cuda"):
        meter = CalibrationMeter()
        meter.update(
            *(torch.tensor(array, dtype=torch.float32, device=device) for array in (error, variance, nll, dof))
        )
        figures.append(calibration_figures(meter.compute()))
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)  # the last bit of a log decides an element's cell

"""Lines and tails fitted to errors, and the samples they are fitted on."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import check_grad

from model.fusion.recalibration import Recalibration, fit_recalibration, student_t_objective
from model.fusion.statistics import Sampler
from tests.support.fusion_cases import fusion, pictures


def drawn(n, a, c, dof, seed=0):
    """Stated variances and errors of which ln V' = a + c ln V is the truth, Student-t with that variance."""
    rng = np.random.default_rng(seed)
    stated = np.exp(rng.normal(-7, 0.8, n))
    true = np.exp(a + c * np.log(stated))
    scale = np.sqrt(true * (dof - 2) / dof)
    return torch.from_numpy(stated), torch.from_numpy(rng.standard_t(dof, n) * scale)


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
    variance, error = drawn(40000, a, c, dof)
    line = fit_recalibration(variance, error)
    assert line.c.item() == pytest.approx(c, abs=0.05)  # standard error of the slope: about 0.012
    level = line.a.item() - 7 * line.c.item()  # ln V' where the stated variances are
    assert level == pytest.approx(a - 7 * c, abs=0.12)  # with 3 dof the variance hangs on the tails: 0.04
    assert line.dof.item() == pytest.approx(dof, rel=0.2)


def test_fit_stays_within_its_bounds():
    variance, error = drawn(5000, 0.0, 1.0, 5.0)
    rng = np.random.default_rng(1)
    normal = fit_recalibration(variance, torch.from_numpy(rng.normal(size=5000)) * variance.sqrt())
    assert 30 < normal.dof.item() <= 200.01
    cauchy = fit_recalibration(variance, torch.from_numpy(rng.standard_cauchy(5000)) * variance.sqrt())
    assert cauchy.dof.item() == pytest.approx(2.1, abs=1e-4)
    against = fit_recalibration(1 / variance, error)  # the larger the stated variance, the smaller the error
    assert against.c.item() == 0.0
    assert torch.isfinite(torch.stack([against.a, against.dof])).all()
    assert fit_recalibration(*drawn(5000, 2.0, 1.5, 6.0)).c.item() == 1.0  # contrasts are not stretched


def test_one_factor_for_all():
    variance, error = drawn(20000, 0.7, 1.0, 6.0)
    line = fit_recalibration(variance, error, slope=False)
    assert line.c.item() == 1.0
    assert line.a.item() == pytest.approx(0.7, abs=0.06)


def test_rows_are_fitted_one_by_one():
    rows = [drawn(3000, a, 1.0, 6.0, seed) for seed, a in enumerate((-1.0, 0.0, 1.0, 2.0))]
    variance, error = (torch.stack([r[i] for r in rows]).reshape(2, 2, -1) for i in (0, 1))
    together = fit_recalibration(variance, error)
    for index, (v, e) in enumerate(rows):
        alone = fit_recalibration(v, e)
        assert together.a.flatten()[index].item() == pytest.approx(alone.a.item(), abs=1e-6)
    again = together.apply(variance[:, None, None, :, :, None])  # (K, B, 1, C, H, W)
    seen = variance.log().clamp(together.low[..., None], together.high[..., None])
    expected = torch.exp(together.a[..., None] + together.c[..., None] * seen)
    torch.testing.assert_close(again[:, 0, 0, :, :, 0], expected, rtol=1e-5, atol=0)


def test_the_line_ends_where_the_fit_has_seen_nothing():
    variance, error = drawn(20000, -2.0, 0.7, 8.0)
    line = fit_recalibration(variance, error)
    low, high = np.quantile(variance.log().numpy(), (0.005, 0.995))
    assert (line.low.item(), line.high.item()) == pytest.approx((low, high), abs=1e-5)
    wild = torch.tensor([1e-20, 1e20], dtype=torch.float64)[:, None, None]  # (B, C, 1, 1)
    found = Recalibration(*(field.reshape(1) for field in vars(line).values())).apply(wild[:, None])
    ends = [line.a.item() + line.c.item() * end for end in (low, high)]
    assert found.flatten().log().tolist() == pytest.approx(ends, abs=1e-4)


def test_nothing_to_fit():
    with pytest.raises(ValueError, match="variances and errors of the same pixels"):
        fit_recalibration(torch.ones(2, 0), torch.ones(2, 0))
    line = fit_recalibration(torch.ones(3), torch.zeros(3))  # no error at all: tiny, but finite
    assert torch.isfinite(line.a)


def test_samples_are_seeded_bounded_and_spread():
    net, seen = fusion("average"), pictures(n=5, size=32)
    experts = net.consult(seen.x)

    def draw(seed, windows=12, size=8):
        sampler = Sampler(5, windows, size, seed)
        for part in (slice(0, 3), slice(3, 5)):
            sampler.add(type(experts)(*(f[:, part] for f in vars(experts).values())), seen.target[part])
        return sampler.samples()

    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(one.mean, again.mean)
    assert not torch.equal(one.mean, other.mean)
    assert one.mean.shape == (12, 2, 13, 8, 8)
    assert sorted(torch.bincount(one.group).tolist()) == [2, 2, 2, 3, 3]
    whole = draw(1, windows=1000, size=16)
    assert len(whole) == 5 * 4  # all there are, none twice
    first = whole.target[whole.group == 0].sum()
    torch.testing.assert_close(first, seen.target[0].sum(), rtol=1e-5, atol=0)
    pixels = draw(1, windows=50, size=1)
    assert pixels.target.shape == (50, 13, 1, 1)


def test_the_recalibration_of_a_network_is_applied_by_band():
    line = Recalibration(torch.arange(13.0), *torch.ones(2, 13), torch.full((13,), -9.0), torch.full((13,), 9.0))
    variance = torch.ones(2, 1, 13, 3, 3)
    torch.testing.assert_close(line.apply(variance)[1, 0, :, 2, 0].log(), torch.arange(13.0))

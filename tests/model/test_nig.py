"""Normal-Inverse-Gamma mathematics against scipy, scoringrules, closed forms and stored values."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from model.nig import NIG, nig_from_moments, scale, sum_beliefs
from model.student_t import log_gamma_ratio, log_gamma_ratio_slope, student_t_quantile

DOUBLE = torch.float64


def nig_of(delta, gamma, alpha, beta, dtype=DOUBLE):
    """A NIG distribution of one pixel and band, or of as many as the arrays hold."""
    shaped = [torch.as_tensor(v, dtype=dtype).reshape(1, 1, 1, 1, -1) for v in (delta, gamma, alpha, beta)]
    return NIG(*torch.broadcast_tensors(*shaped))


def value(number, dtype=DOUBLE):
    return torch.as_tensor(number, dtype=dtype).reshape(1, 1, 1, 1, -1)


def random_nig(n=500, seed=0, dtype=DOUBLE):
    rng = np.random.default_rng(seed)
    return nig_of(
        rng.uniform(0, 1, n), np.exp(rng.uniform(-3, 3, n)), 1.05 + rng.exponential(8, n), rng.gamma(2, 0.02, n), dtype
    )


def student_t(b):
    delta, gamma, alpha, beta = (t.numpy().astype(np.float64) for t in b.fields().values())
    return stats.t(2 * alpha, loc=delta, scale=np.sqrt(beta * (1 + gamma) / (gamma * alpha)))


VALUES = [
    ((0, 1, 2, 1), 0, 0.980829253012),
    ((0, 1, 2, 1), 1, 1.538688131297),
    ((0.3, 0.7, 1.8, 0.4), 1.1, 1.334065530005),
    ((0.25, 0.05, 1.05, 1e-5), 0.26, -2.893270052815),
    ((0.25, 10, 50, 0.02), 0.2, -0.152164150893),
]


@pytest.mark.parametrize(("parameters", "target", "expected"), VALUES)
def test_nll_has_the_stored_values_and_is_the_student_t(parameters, target, expected):
    b = nig_of(*parameters)
    got = b.nll(value(target)).item()
    assert got == pytest.approx(expected, abs=1e-12)  # stored with 12 decimals
    assert got == pytest.approx(-student_t(b).logpdf(target).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["expert0", "expert1", "expert2", "fused2", "fused3"])
def test_nll_of_the_reference(golden, name):
    with np.load(golden / "nig.npz") as stored:
        b = NIG(*(torch.from_numpy(stored[f"{name}/{f}"]) for f in ("delta", "gamma", "alpha", "beta")))
        got = b.nll(torch.from_numpy(stored["target"])).numpy()
        np.testing.assert_allclose(got, stored[f"{name}/nll"], rtol=1e-11, atol=1e-12)


def test_the_four_gradients_follow_the_formulas():
    b = random_nig().map(lambda t: t.clone().requires_grad_())
    y = value(np.random.default_rng(1).uniform(0, 1, 500))
    b.nll(y).sum().backward()
    d, g, a, be = (t.detach() for t in b.fields().values())
    e, omega = d - y, 2 * be * (1 + g)
    q = g * e**2 + omega
    expected = {
        "delta": (2 * a + 1) * g * e / q,
        "alpha": torch.log(q / omega) + torch.special.digamma(a) - torch.special.digamma(a + 0.5),
        "beta": -a / be + (2 * a + 1) * (1 + g) / q,
        "gamma": -1 / (2 * g) - a / (1 + g) + (a + 0.5) * (e**2 + 2 * be) / q,
    }
    for name, tensor in b.fields().items():
        # the printed formulas for beta and gamma are differences of large terms: absolute rounding of 1e-11
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-9, atol=1e-10)


def test_gradcheck():
    b = random_nig(12).map(lambda t: t.clone().requires_grad_())
    y = value(np.linspace(0, 1, 12))
    assert torch.autograd.gradcheck(lambda *f: NIG(*f).nll(y), tuple(b.fields().values()))
    x = torch.linspace(0.6, 40, 9, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(log_gamma_ratio, (x,))
    assert torch.autograd.gradgradcheck(log_gamma_ratio, (x,))


def test_no_datum_distinguishes_gamma_from_beta():
    b, y = random_nig(), value(np.random.default_rng(2).uniform(0, 1, 500))
    kept = b.beta * (1 + b.gamma) / b.gamma

    def along(gamma):
        return NIG(b.delta, gamma, b.alpha, kept * gamma / (1 + gamma))

    gamma = b.gamma.clone().requires_grad_()
    moved = along(gamma)
    (slope,) = torch.autograd.grad(moved.nll(y).sum(), gamma)
    assert slope.abs().max() < 1e-12  # zero but for rounding: the terms that cancel are of order 1..100
    torch.testing.assert_close(along(b.gamma * 7).nll(y), b.nll(y), rtol=1e-12, atol=1e-12)
    assert (along(b.gamma * 7).epistemic < b.epistemic).all()  # while the total is divided in another way
    torch.testing.assert_close(along(b.gamma * 7).total, b.total)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (DOUBLE, 2e-6)])
def test_many_degrees_of_freedom_are_the_normal(dtype, tolerance):
    # at alpha 1e6 the Student-t itself differs from the normal by about 1e-6; in float32 lgamma(1e6) is good to 1 only
    b = nig_from_moments(value([0.1, 0.2, 0.3], dtype), value(0.04, dtype), 0.25, 1e6)
    y = value([0.1, 0.5, -0.4], dtype)
    expected = -stats.norm(b.delta.numpy(), 0.2).logpdf(y.numpy())
    np.testing.assert_allclose(b.nll(y).numpy(), expected, rtol=tolerance * 5, atol=tolerance * 5)


def test_float32_agrees_with_float64_over_the_heads_range():
    rng = np.random.default_rng(3)
    n = 20000
    v, g, a = np.exp(rng.uniform(-14, 8, n)), np.exp(rng.uniform(-3, 3, n)), 1.05 + rng.uniform(0, 100, n)
    e = rng.uniform(-10, 10, n)
    single = nig_of(np.zeros(n), g, a, v * g * (a - 1) / (1 + g), torch.float32).map(
        lambda t: t.clone().requires_grad_()
    )
    double = single.map(lambda t: t.detach().double().requires_grad_())
    y = value(e, torch.float32)
    single.nll(y).sum().backward()
    double.nll(y.double()).sum().backward()
    np.testing.assert_allclose(
        single.nll(y).detach().numpy(), double.nll(y.double()).detach().numpy(), rtol=3e-6, atol=3e-6
    )
    for name, tensor in single.fields().items():
        exact = double.fields()[name].grad.numpy()
        # beta's gradient is the difference of 1/(2k) and a term of its size times the evidence: rounding grows by alpha
        magnitude = np.abs(exact) + (a / double.beta.detach().numpy().ravel() if name == "beta" else 1.0)
        assert np.max(np.abs(tensor.grad.numpy() - exact) / magnitude) < 1e-5, name


def test_log_gamma_ratio():
    x = torch.tensor([0.5, 1.0, 1.05, 1.5, 3.0, 10.0, 50.5], dtype=DOUBLE)
    exact = torch.tensor([math.lgamma(v + 0.5) - math.lgamma(v) for v in x.tolist()], dtype=DOUBLE)
    torch.testing.assert_close(log_gamma_ratio(x), exact, rtol=0, atol=2e-13)
    slope = torch.special.digamma(x + 0.5) - torch.special.digamma(x)
    torch.testing.assert_close(log_gamma_ratio_slope(x), slope, rtol=1e-12, atol=0)
    # far out, where lgamma in float32 has no digit left: ln(x)/2 - 1/(8x)
    far = torch.tensor([1e3, 1e6, 1e9])
    torch.testing.assert_close(log_gamma_ratio(far), 0.5 * far.log() - 1 / (8 * far), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_gamma_ratio(x.float()).double(), exact, rtol=0, atol=3e-7)


def test_moments():
    b = nig_of(0.3, 3.0, 3.0, 0.015)
    assert b.aleatoric.item() == pytest.approx(0.0075)
    assert b.epistemic.item() == pytest.approx(0.0025)
    assert b.total.item() == pytest.approx(0.01)
    many = random_nig()
    torch.testing.assert_close(many.aleatoric + many.epistemic, many.total)
    open_to_scipy = many.map(lambda t: t[..., many.alpha.flatten() > 1.2])
    np.testing.assert_allclose(open_to_scipy.total.numpy(), student_t(open_to_scipy).var(), rtol=1e-10)


def test_moments_to_a_belief_and_back():
    b = nig_from_moments(value(0.3), value(0.01), 0.25, 3.0)
    assert [t.item() for t in b.fields().values()] == pytest.approx([0.3, 3.0, 3.0, 0.015])
    many = random_nig()
    share = many.epistemic / many.total
    again = nig_from_moments(many.delta, many.total, share, many.alpha)
    for name, tensor in many.fields().items():
        torch.testing.assert_close(again.fields()[name], tensor, rtol=1e-9, atol=0)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_scaling_adds_the_logarithm_of_the_factor(factor):
    b, y = random_nig(), value(np.random.default_rng(4).uniform(0, 1, 500))
    scaled = scale(b, factor)
    torch.testing.assert_close(scaled.nll(y * factor), b.nll(y) + math.log(factor), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(scaled.total, b.total * factor**2)
    assert torch.equal(scaled.gamma, b.gamma)
    assert torch.equal(scaled.alpha, b.alpha)


def test_sum_of_two_beliefs():
    fused = sum_beliefs(nig_of(0.3, 0.7, 1.8, 0.4), nig_of(1.0, 2.0, 2.5, 1.0))
    assert [t.item() for t in fused.fields().values()] == pytest.approx([0.8185185185, 2.7, 4.8, 1.527037037], abs=1e-9)


def test_sums_of_the_reference(golden):
    with np.load(golden / "nig.npz") as stored:
        names = ("delta", "gamma", "alpha", "beta")
        experts = [NIG(*(torch.from_numpy(stored[f"expert{i}/{f}"]) for f in names)) for i in range(3)]
        two = sum_beliefs(experts[0], experts[1])
        three = sum_beliefs(two, experts[2])
        for got, name in ((two, "fused2"), (three, "fused3")):
            for field, tensor in got.fields().items():
                np.testing.assert_allclose(tensor.numpy(), stored[f"{name}/{field}"], rtol=1e-12)


def test_sum_is_commutative_associative_and_convex():
    a, b, c = (random_nig(seed=s) for s in (5, 6, 7))
    forward, backward = sum_beliefs(a, b), sum_beliefs(b, a)
    left, right = sum_beliefs(forward, c), sum_beliefs(a, sum_beliefs(b, c))
    for nig, expected in ((forward, backward), (left, right)):
        for name, tensor in nig.fields().items():
            torch.testing.assert_close(tensor, expected.fields()[name], rtol=1e-12, atol=1e-14)
    low, high = torch.minimum(a.delta, b.delta), torch.maximum(a.delta, b.delta)
    assert ((forward.delta >= low) & (forward.delta <= high)).all()


def test_sum_is_the_pooling_of_two_samples():
    rng = np.random.default_rng(8)
    first, second = rng.normal(0.2, 0.1, 11), rng.normal(0.5, 0.3, 7)

    def of_sample(x):
        return nig_of(x.mean(), len(x), (len(x) - 1) / 2, ((x - x.mean()) ** 2).sum() / 2)

    fused, pooled = (
        sum_beliefs(of_sample(first), of_sample(second)),
        of_sample(np.concatenate([first, second])),
    )
    for name, tensor in fused.fields().items():
        torch.testing.assert_close(tensor, pooled.fields()[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("alpha", "gamma"), [(1.5, 0.5), (3.0, 1.0), (20.0, 8.0)])
def test_sum_of_identical_beliefs_shrinks_the_variance(alpha, gamma):
    b = nig_of(0.3, gamma, alpha, 0.02)
    shrink = (sum_beliefs(b, b).total / b.total).item()
    assert shrink == pytest.approx((2 * alpha - 2) / (2 * alpha - 0.5) * (2 * gamma + 1) / (2 * gamma + 2), rel=1e-12)
    if (alpha, gamma) == (1.5, 0.5):
        assert shrink == pytest.approx(0.27, abs=0.005)


def test_sum_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"fields of the same shape, got \(1, 1, 1, 1, 2\) and \(1, 1, 1, 1, 1\)"):
        sum_beliefs(nig_of([0.1, 0.2], 1, 2, 1), nig_of(0.1, 1, 2, 1))


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.95, 0.999])
def test_interval_has_the_exact_quantiles(level):
    b = random_nig(3000)
    b = NIG(b.delta, b.gamma, torch.cat([b.alpha[..., :1500], b.alpha[..., 1500:] ** 4 + 1.001], -1), b.beta)
    exact = student_t(b).interval(level)
    for got, expected in zip(b.interval(level), exact, strict=True):
        reach = (exact[1] - exact[0]) / 2
        assert np.max(np.abs(got.numpy() - expected) / reach) < 1e-6  # interpolation in 4097 nodes: 3e-7 at 0.999
    single = student_t_quantile(level, (2 * b.alpha).float())
    torch.testing.assert_close(single.double(), student_t_quantile(level, 2 * b.alpha), rtol=2e-6, atol=0)


def test_quantile_at_the_ends_of_its_table():
    got = student_t_quantile(0.9, torch.tensor([1.0, 2.0, 1e12, math.inf, 0.9, math.nan], dtype=DOUBLE))
    exact = [6.313751514675043, 2.919985580353726, 1.6448536269514722, 1.6448536269514722]
    np.testing.assert_allclose(got[:4].numpy(), exact, rtol=1e-8)
    assert got[4:].isnan().all()  # below one degree of freedom the table ends


@pytest.mark.parametrize("level", [0.0, 1.0, 90, -0.5])
def test_interval_refuses_a_level_outside_0_and_1(level):
    with pytest.raises(ValueError, match="level between 0 and 1"):
        nig_of(0.1, 1, 2, 1).interval(level)


def test_interval_covers_what_it_says():
    b = nig_from_moments(torch.zeros(1, 1, 1, 1, 40000, dtype=DOUBLE), value(0.04), 0.3, 2.5)
    y = torch.from_numpy(student_t(b).rvs(random_state=np.random.default_rng(9)))
    low, high = b.interval(0.9)
    covered = ((y > low) & (y < high)).double().mean().item()
    assert covered == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 40000))  # four standard errors


def test_crps_is_that_of_the_student_t():
    scoringrules = pytest.importorskip("scoringrules", reason="the oracle for CRPS is not installed")
    b = random_nig(5000)
    rng = np.random.default_rng(10)
    y = b.delta + torch.from_numpy(rng.standard_t(2.5, b.delta.shape) * 0.2)
    exact = scoringrules.crps_t(y.numpy(), 2 * b.alpha.numpy(), b.delta.numpy(), b.width.numpy())
    np.testing.assert_allclose(b.crps(y).numpy(), exact, rtol=2e-6)
    single = b.map(lambda t: t.float()).crps(y.float())
    np.testing.assert_allclose(single.numpy(), exact, rtol=3e-5, atol=1e-7)

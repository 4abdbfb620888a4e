"""Beliefs from predictions and leverages: moments, bounds, and where novelty appears."""

import pytest
import torch

from common.errors import DataError
from data.constants import N_S2
from model import registry
from model.evidence.belief import Evidence, epistemic_variance, pixel_novelty
from model.evidence.fit import Errors, TrainingMoments, fit_numbers
from model.evidence.leverage import FeatureMoments
from model.evidence.pseudo_shifts import shift_inputs, shift_kinds
from model.evidence.views import describe_pixels
from model.fusion.network import FusionNet, FusionReconstructor
from model.nig import NIG
from model.predictions import Gaussian
from tests.support.network_cases import small_network

LOSS_OF = {"nig": "NIG", "gaussian": "MGNLL"}


def ground(b: int = 4, t: int = 3, size: int = 32, seed: int = 0):
    """Series (B, T, 15, H, W) whose bands follow one brightness, as those of land do, and noisy radar."""
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.rand(b, 1, 1, size, size, generator=generator) * 0.3 + 0.05
    slope = torch.linspace(0.5, 1.5, N_S2)[:, None, None]
    optical = brightness * slope * (1 + 0.1 * torch.randn(b, t, N_S2, size, size, generator=generator))
    radar = 0.5 + 0.1 * torch.randn(b, t, 2, size, size, generator=generator)
    return torch.cat([radar, optical], dim=2).clamp(0, 1)


def leverages_of(x):
    views = describe_pixels(x.double())
    result = {}
    for name, features in views.items():
        moments = FeatureMoments(features.shape[1])
        moments.update(features)
        result[name] = moments.leverage()
    return result


def evidence_of(x, **changes):
    per_band = torch.ones(N_S2, dtype=torch.float64)
    fields = {
        "n_effective": 10.0,
        "power": 1.0,
        "noise": 1e-3 * per_band,
        "prior_mean": 0.2 * per_band,
        "prior_variance": 0.01 * per_band,
        "aleatoric": per_band,
        "alpha": 3 * per_band,
    }
    return Evidence(leverages_of(x), **(fields | changes))


def constant_prediction(x, variance: float = 1e-3):
    shape = (len(x), 1, N_S2, *x.shape[-2:])
    return Gaussian(torch.full(shape, 0.2), torch.full(shape, variance))


def test_close_to_the_data_the_belief_is_that_of_conjugate_regression():
    x = ground()
    # a prior that does not bind, and noise that the network predicts exactly
    evidence = evidence_of(x, prior_variance=torch.full((N_S2,), 1e9, dtype=torch.float64))
    novelty = evidence.novelty(x)
    belief = evidence.believe(constant_prediction(x), novelty)
    gamma = 10.0 / novelty.unsqueeze(2).expand_as(belief.gamma)
    torch.testing.assert_close(belief.gamma, gamma)
    torch.testing.assert_close(belief.total, 1e-3 * (1 + 1 / gamma))
    torch.testing.assert_close(belief.aleatoric, torch.full_like(belief.aleatoric, 1e-3))


def test_the_mean_stays_to_the_bit():
    x = ground(b=1)
    prediction = constant_prediction(x)
    assert evidence_of(x).believe(prediction, torch.ones(1, 1, 32, 32)).mean is prediction.mean


def test_far_from_all_data_the_epistemic_variance_is_that_of_the_prior():
    mean, prior_mean, prior_variance = torch.tensor([0.3]), torch.tensor([0.2]), torch.tensor([0.04])
    bound = torch.tensor([0.04 + 0.01])
    torch.testing.assert_close(epistemic_variance(torch.tensor([1e6]), mean, prior_mean, prior_variance), bound)
    near = epistemic_variance(torch.tensor([1e-7]), mean, prior_mean, prior_variance)
    torch.testing.assert_close(near, torch.tensor([1e-7]), rtol=1e-4, atol=0)


def test_beliefs_have_the_units_of_the_prediction():
    x = ground(b=1)
    evidence = evidence_of(x)
    novelty = evidence.novelty(x)
    plain = constant_prediction(x)
    scaled = evidence.believe(Gaussian(plain.mean * 10, plain.variance * 100), novelty, 10.0).unscaled(10.0)
    for name, value in evidence.believe(plain, novelty).fields().items():
        torch.testing.assert_close(getattr(scaled, name), value)


def test_a_corrupted_patch_in_a_clean_image_shows_where_it_is():
    train, clean = ground(), ground(b=1, seed=1)
    corrupted = clean.clone()
    corrupted[:, :, 2:, 8:24, 8:24] = corrupted[:, :, 2:, 8:24, 8:24].flip(2)
    novelty = pixel_novelty(leverages_of(train), corrupted)[0, 0]
    inside, outside = novelty[12:20, 12:20], torch.cat([novelty[:4].flatten(), novelty[-4:].flatten()])
    assert inside.min() > 10 * outside.max()
    assert outside.mean() == pytest.approx(1, abs=0.5)


def test_missing_radar_raises_the_novelty_of_clean_optical_images():
    train, clean = ground(), ground(b=1, seed=1)
    missing = clean.clone()
    missing[:, :, :2] = 0
    leverages = leverages_of(train)
    assert pixel_novelty(leverages, missing).min() > 5 * pixel_novelty(leverages, clean).mean()


def test_padded_dates_do_not_count():
    x = ground(t=2)
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    mask = torch.tensor([[False, False, True]]).expand(len(x), 3)
    leverages = leverages_of(x)
    torch.testing.assert_close(pixel_novelty(leverages, padded, mask), pixel_novelty(leverages, x))


@pytest.mark.parametrize("head", LOSS_OF)
@pytest.mark.parametrize("name", registry.BACKBONES)
def test_every_backbone_believes_by_evidence_in_eval_mode_alone(name, head):
    model = small_network(name, head=head, loss=LOSS_OF[head], use_sar=True, scale_by=10.0).eval()
    x = ground(b=2, t=1 if model.netG.is_mono else 3)
    dates = None if model.netG.is_mono else torch.tensor([[0.0, 30.0, 60.0]]).expand(2, 3)
    with torch.no_grad():
        before = model(x, dates)
        model.evidence = evidence_of(x)
        after = model(x, dates)
        in_training = model.train()(x, dates)
    assert torch.equal(after.mean, before.mean)
    assert isinstance(after, NIG)
    assert (after.epistemic / after.aleatoric).std() > 0
    assert isinstance(in_training, type(before))
    torch.testing.assert_close(after.total, after.aleatoric + after.epistemic)


def test_a_fusion_believes_by_evidence_of_its_own():
    flags = {"use_sar": True, "scale_by": 10.0, "head": "nig", "loss": "NIG"}
    experts = [small_network(name, **flags) for name in registry.EXPERTS]
    model = FusionReconstructor(FusionNet(experts, "average", guarded=False), experts[0].head, experts[0].config).eval()
    model.fusion.fitted.fill_(True)
    x, dates = ground(b=2), torch.tensor([[0.0, 30.0, 60.0]]).expand(2, 3)
    with torch.no_grad():
        before = model(x, dates)
        model.evidence = evidence_of(x)
        after = model(x, dates)
    assert torch.equal(after.mean, before.mean)
    torch.testing.assert_close(after.aleatoric, before.total)
    assert (after.epistemic / after.aleatoric).std() > 0


def test_a_network_without_variance_ignores_evidence():
    model = small_network(head="mean", loss="l1").eval()
    x = ground(b=1)[:, :, 2:]
    dates = torch.tensor([[0.0, 30.0, 60.0]])
    before = model(x, dates)
    model.evidence = evidence_of(x)
    assert torch.equal(model(x, dates).mean, before.mean)


def test_a_state_restores_the_evidence():
    x = ground(b=1)
    evidence = evidence_of(x)
    restored = Evidence.from_state(evidence.state())
    assert torch.equal(restored.novelty(x), evidence.novelty(x))
    assert restored.n_effective == evidence.n_effective


@pytest.mark.parametrize("key", ["views", "n_effective", "alpha"])
def test_a_damaged_state_is_refused(key):
    state = evidence_of(ground(b=1)).state() | {key: None}
    with pytest.raises(DataError, match="evidence in a checkpoint is damaged"):
        Evidence.from_state(state)


def toy_errors(seed: int, inflation: float, novelty: float, n: int = 20_000):
    """Pixels whose true variance is `inflation` times what the network says."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.full((n, N_S2), 1e-3, dtype=torch.float64)
    noise = torch.randn(n, N_S2, generator=generator, dtype=torch.float64)
    mean = torch.full_like(predicted, 0.2)
    target = mean + noise * (predicted * inflation).sqrt()
    stated = Gaussian(mean, predicted).nll(target)
    return Errors(mean, predicted, target, stated, torch.full((n, 1), novelty).double())


def test_the_fit_finds_the_inflation_of_both_kinds_of_images():
    # usual pixels: twice the predicted variance; with 100 times the novelty, 20 times
    prior = torch.full((N_S2,), 0.2, dtype=torch.float64), torch.full((N_S2,), 1e6, dtype=torch.float64)
    unshifted, shifted = toy_errors(0, 2.0, 1.0), toy_errors(1, 20.0, 100.0)
    evidence = fit_numbers({}, prior, unshifted, shifted)
    for errors, inflation in ((unshifted, 2.0), (shifted, 20.0)):
        fields = (errors.mean, errors.variance)
        mean, variance = (field.T[None, None, :, None] for field in fields)
        belief = evidence.believe(Gaussian(mean, variance), errors.novelty.T[None, :, None])
        torch.testing.assert_close(
            belief.total, torch.full_like(belief.total, inflation * 1e-3), rtol=0.06, atol=0
        )  # of 8192 pixels a variance is known to 1.6 %


def test_moments_of_two_processes_equal_those_of_one():
    x = ground(b=4)

    class FakeBatch:
        def __init__(self, rows):
            self.x, self.target, self.valid = x[rows], x[rows, :1, 2:], None

    def moments(*parts):
        result = TrainingMoments()
        for rows in parts:
            result.update(FakeBatch(rows))
        return result

    alone, left, right = moments(slice(0, 4)), moments(slice(0, 1)), moments(slice(1, 4))
    left.merge([left, right, TrainingMoments()])
    for merged, single in zip(left.prior, alone.prior, strict=True):
        torch.testing.assert_close(merged, single, rtol=1e-10, atol=1e-14)
    for name, view in alone.views.items():
        torch.testing.assert_close(left.views[name].products, view.products, rtol=1e-10, atol=1e-10)


def test_no_training_image_is_an_error():
    with pytest.raises(DataError, match="no image of the training split"):
        TrainingMoments().leverages()


@pytest.mark.parametrize("kind", shift_kinds(use_sar=True))
def test_pseudo_shifts_change_one_sensor_and_stay_in_range(kind):
    x = ground(b=2, size=20)
    shifted = shift_inputs(kind, x, torch.Generator().manual_seed(0))
    assert shifted.shape == x.shape
    assert shifted.min() >= 0
    assert shifted.max() <= 1
    changed = [not torch.equal(shifted[:, :, part], x[:, :, part]) for part in (slice(0, 2), slice(2, None))]
    assert sum(changed) == 1

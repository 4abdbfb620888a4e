"""Requirements on every backbone; a new one is covered once it is registered."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UsageError
from data.constants import N_S2
from model import registry
from model.build import build_loss, build_optimizer
from model.layers.heads import START_SIGMA
from tests.support.network_cases import small_network

NAMES = tuple(registry.BACKBONES)
MONO = ("unet",)
LOSS_OF = {"nig": "NIG", "gaussian": "MGNLL", "mean": "l1"}
HEADS = tuple(LOSS_OF)


def build(name: str, head: str = "nig", seed: int = 0, **changes):
    return small_network(name, seed, **{"head": head, "loss": LOSS_OF[head], "scale_by": 10.0, **changes})


def batch(name: str, b: int = 2, size: tuple[int, int] = (16, 16), channels: int = N_S2):
    """Images, days and a target."""
    t = 1 if name in MONO else 3
    generator = torch.Generator().manual_seed(b)
    x = torch.rand(b, t, channels, *size, generator=generator)
    dates = torch.rand(b, t, generator=generator) * 60 + 1300
    return x, None if name in MONO else dates, x[:, :1, -N_S2:] * 0.5 + 0.1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_training_moves_every_parameter(name, head):
    model = build(name, head).train()
    x, dates, target = batch(name)
    optimizer = build_optimizer(model, 0.01)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    prediction = model(x, dates)
    loss = build_loss(model.config)(prediction, target * model.scale_by)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(field.shape == (2, 1, N_S2, 16, 16) for field in prediction.fields().values())
    unmoved = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert not unmoved


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_learn_one_image(name):
    model = build(name, "mean", scale_by=1.0).train()
    x, dates, target = batch(name, 1)
    optimizer, criterion, losses = build_optimizer(model, 0.01), build_loss(model.config), []
    for _ in range(25):
        optimizer.zero_grad()
        loss = criterion(model(x, dates), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize("head", ["nig", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_the_head_sets_the_start_of_the_uncertainties(name, head):
    model = build(name, head).eval()
    x, dates, _ = batch(name)
    prediction = model(x, dates).unscaled(model.scale_by)
    assert (prediction.total > 0).all()
    if head == "nig":  # its rows of the last convolution start at zero: alike at every pixel
        torch.testing.assert_close(prediction.aleatoric.sqrt().max(), prediction.aleatoric.sqrt().min())
        assert prediction.total.sqrt().mean().item() == pytest.approx(START_SIGMA, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_radar_goes_in_first(name):
    model = build(name, use_sar=True).eval()
    x, dates, _ = batch(name, channels=N_S2 + 2)
    assert model(x, dates).mean.shape == (2, 1, N_S2, 16, 16)
    with pytest.raises(ValueError, match="VV, VH, then 13 bands"):
        model(x[:, :, 2:], dates)


@pytest.mark.parametrize("size", [(16, 16), (19, 30)])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_samples_at_any_size(name, size):
    # known issue 11: nothing depends on the size of the batch
    model = build(name).eval()
    x, dates, _ = batch(name, 3, size)
    together = model(x, dates)
    assert together.mean.shape == (3, 1, N_S2, *size)
    for i in range(3):
        alone = model(x[i : i + 1], None if dates is None else dates[i : i + 1])
        for key, field in alone.fields().items():
            # 1e-5: float32 sums in another order, in units of up to 10
            torch.testing.assert_close(field, together.fields()[key][i : i + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_from_the_seed_alone(name):
    first, again, second = (list(build(name, seed=seed).parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_unknown_name_is_answered_with_a_list():
    expected = "unknown backbone 'utea'; choose --model uncrtaints, conv3d_mamba, utae, unet"
    with pytest.raises(UsageError, match=expected):
        registry.get_builder("utea")


def test_the_registry_imports_neither_torch_nor_a_backbone():
    code = (
        "import sys, model.registry\n"
        "assert not {'torch', 'model.backbones.utae'} & sys.modules.keys()\n"
        "model.registry.get_builder('utae')\n"
        "assert 'model.backbones.utae' in sys.modules and 'model.backbones.conv3d_mamba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])

"""Scenes put together from tiles, in memory."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import DataError
from model.predictions import NIG, Gaussian
from scenes.prediction import predict as prediction
from scenes.prediction.inference import run_inference, run_locally
from scenes.prediction.predict import Job
from scenes.prediction.tiles import TilePlan
from tests.support.scene_cases import MemoryProducts, border_steps, memory_series, write_run

NAMES = ("mean", "aleatoric", "epistemic")


def local_network(head):
    """A network with a field of view of 5 x 5 pixels, and reflection at the border as the networks have."""
    weights = torch.rand(13, 1, 5, 5, generator=torch.Generator().manual_seed(0)) / 25

    def network(x, dates):
        image = x[:, :, -13:].mean(dim=1)
        mean = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), weights, groups=13).unsqueeze(1)
        if head is Gaussian:
            return Gaussian(mean, mean**2)
        return NIG(mean, torch.ones_like(mean), torch.full_like(mean, 2.0), mean**2)

    return network


def scene(job, batch_size=2, block=512):
    products = MemoryProducts(job.plan.height, job.plan.width)
    run_inference(job, {0: products}, batch_size, run_locally, block)
    return products.maps


@pytest.fixture
def local(monkeypatch, tmp_path):
    """Makes jobs with a network of small field of view."""
    monkeypatch.setattr(prediction, "load_network", lambda *_: local_network(NIG))
    monkeypatch.setattr("scenes.prediction.inference.load_network", lambda *_: None)

    def job(series, tile, overlap, outputs=NAMES, **more):
        plan = TilePlan(*series.raw.shape[-2:], tile, overlap)
        return Job(series, plan, "none", str(tmp_path / f"{tile}_{overlap}"), outputs, **more)

    return job


def test_tiles_of_a_local_network_equal_the_untiled_prediction(local):
    series = memory_series(170, 210)
    untiled, tiled = (scene(local(series, tile, overlap), block=96) for tile, overlap in ((224, 0), (64, 32)))
    for name in ("reflectance", "aleatoric", "epistemic", "total"):
        # an eighth of the overlap, 4 pixels, has no weight: more than the 2 pixels that the network sees around each.
        # What remains is float32: sums of four shares, and for deviations the root of a spread near 0.
        np.testing.assert_allclose(tiled[name], untiled[name], rtol=0, atol=2e-6)
    assert untiled["reflectance"].std() > 0.01


def test_without_overlap_the_border_of_tiles_shows(local):
    """The blending is what makes the last test pass."""
    series = memory_series(170, 210)
    untiled, tiled = (scene(local(series, tile, 0)) for tile in (224, 64))
    assert np.abs(tiled["reflectance"] - untiled["reflectance"]).max() > 1e-3


def test_a_network_with_one_variance_has_the_tiles_disagreement_in_the_total(local, monkeypatch):
    monkeypatch.setattr(prediction, "load_network", lambda *_: local_network(Gaussian))
    result = scene(local(memory_series(80, 100), 64, 16, outputs=("mean", "aleatoric")))
    assert "epistemic" not in result
    assert (result["total"] >= result["aleatoric"]).all()


def test_a_scene_smaller_than_a_tile_is_mirrored_and_cut_again(local):
    series = memory_series(40, 50)
    untiled, tiled = (scene(local(series, tile, 0)) for tile in (50, 128))
    np.testing.assert_array_equal(untiled["reflectance"].shape, (13, 40, 50))
    np.testing.assert_allclose(tiled["reflectance"], untiled["reflectance"], rtol=0, atol=1e-6)


def test_memory_holds_one_row_of_tiles_on_disk_as_it_is_written(local, tmp_path):
    job = local(memory_series(300, 64), 64, 16)
    most = 0
    products = MemoryProducts(300, 64)

    def watched(*args):
        nonlocal most
        for batch in run_locally(*args):
            most = max(most, len(list(tmp_path.rglob("*.npz"))))
            yield batch

    run_inference(job, {0: products}, 1, watched, block=64)
    assert len(job.plan) == 6
    assert most <= 3  # a block of 64 rows touches two or three tiles of 64 in steps of 48
    assert not list(tmp_path.rglob("*.npz"))


def test_a_hole_in_the_data_does_not_change_what_lies_beside_it(local):
    series = memory_series(100, 120)
    valid = series.valid.copy()
    valid[:, 30:60, 50:110] = False
    holed = dataclasses.replace(series, raw=series.raw * valid[:, None], valid=valid)
    untiled, result = (scene(local(inputs, 64, 16)) for inputs in (series, holed))
    away = np.ones((100, 120), np.bool_)
    away[28:62, 48:112] = False  # 2 pixels: the network's field of view
    np.testing.assert_array_equal(result["valid"], valid[0])
    assert (result["reflectance"][:, away] == untiled["reflectance"][:, away]).all()
    assert result["reflectance"].min() > 0.001  # not a black hole


def test_tiles_without_data_are_not_predicted(local, monkeypatch):
    series = memory_series(128, 192)
    valid = series.valid.copy()
    valid[..., 64:] = False
    asked = []
    monkeypatch.setattr(
        prediction, "load_network", lambda *_: lambda x, d: asked.append(len(x)) or local_network(NIG)(x, d)
    )
    result = scene(local(dataclasses.replace(series, valid=valid), 64, 0))
    assert sum(asked) == 2  # of 6 tiles
    assert result["valid"].sum() == 128 * 64


def test_keep_copies_what_the_latest_date_shows_clear(local):
    series = memory_series(100, 120)
    valid = series.valid.copy()
    valid[2, :10] = False
    series = dataclasses.replace(series, valid=valid)
    options = {"detectors": ("s2cloudless_mask",) * 3}
    plain, kept = (scene(local(series, 64, 16, keep_clear=keep, **options)) for keep in (False, True))
    clear = kept["clouds"][2] == 0
    assert 0.2 < clear.mean() < 0.9
    np.testing.assert_array_equal(kept["observed"], clear)
    np.testing.assert_array_equal(kept["reflectance"][:, clear], series.raw[2][:, clear] / np.float32(10000))
    np.testing.assert_array_equal(kept["reflectance"][:, ~clear], plain["reflectance"][:, ~clear])
    assert (kept["total"][:, clear] == 0).all()
    assert (kept["total"][:, ~clear] > 0).all()
    assert (kept["clouds"][2, :10] == 255).all()
    assert "observed" not in plain


def test_a_network_that_predicts_nan_is_told(local, monkeypatch):
    monkeypatch.setattr(
        prediction, "load_network", lambda *_: lambda x, d: local_network(NIG)(x, d).map(lambda maps: maps * np.nan)
    )
    with pytest.raises(DataError, match="predicts NaN at Window"):
        scene(local(memory_series(64, 64), 64, 0))


@pytest.mark.parametrize("model", ["uncrtaints", "conv3d_mamba"])
def test_real_networks_leave_no_seam(model, tmp_path):
    """Random weights, untrained: their squeeze-excite and group norms differ most from tile to tile."""
    run = write_run(tmp_path / "run", model, seed=3)
    series = memory_series(200, 260)

    def ratio(overlap):
        job = Job(series, TilePlan(200, 260, 64, overlap), str(run), str(tmp_path / f"tiles_{overlap}"), NAMES)
        return border_steps(scene(job)["reflectance"], job.plan, 8)

    assert ratio(16) < 1.05  # the sampling noise of a mean over a few columns is 3 %
    assert ratio(0) > 1.1  # of tiles without overlap

"""Plans of tiles, weights that blend them, and scenes put together from them, in memory."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import DataError, UsageError
from data.clouds.detectors import detect_clouds
from model.predictions import NIG, Gaussian
from scenes import predict as prediction
from scenes.blending import blend, normalised_weights
from scenes.inference import run_inference, run_locally
from scenes.inputs.grid import Window
from scenes.predict import Job, fill_missing, read_tile
from scenes.tiles import Axis, TilePlan
from tests.support.scene_cases import MemoryProducts, border_steps, memory_series, write_run

SIZES = [(1200, 256, 64), (900, 256, 64), (257, 256, 64), (256, 256, 64), (100, 256, 64), (449, 256, 64)]
SIZES += [(640, 64, 0), (500, 64, 32), (70, 64, 16)]


@pytest.mark.parametrize(("size", "tile", "overlap"), SIZES)
def test_weights_of_all_tiles_add_up_to_one_and_are_smooth(size, tile, overlap):
    axis, total = Axis(size, tile, overlap), np.zeros(size)
    for number, start in enumerate(axis.starts):
        weights = normalised_weights(axis, number)
        total[start : start + axis.length] += weights
        if overlap:  # a raised cosine over 3/4 of the overlap climbs pi / 2 / steps a pixel at most; two may meet
            assert np.abs(np.diff(weights)).max() <= np.pi / (overlap * 3 / 4)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.length == size


@pytest.mark.parametrize(("size", "tile", "overlap"), SIZES)
def test_shares_of_tiles_are_disjoint_and_cover_the_scene(size, tile, overlap):
    plan = TilePlan(size, 300, tile, overlap)
    seen = np.zeros((size, 300), np.int64)
    for number in range(len(plan)):
        one = plan[number]
        seen[one.cell.slices] += 1
        window, cell = one.window, one.cell
        assert window.top <= cell.top
        assert cell.bottom <= window.bottom
        assert cell.top == 0 or cell.top - window.top >= overlap // 2
    assert (seen == 1).all()


def test_rows_of_blocks_name_the_tiles_they_need():
    plan = TilePlan(1200, 900, 256, 64)  # rows of tiles begin at 0, 192, 384, 576, 768, 944
    rows = plan.block_rows(512)
    assert [(row.tile_rows.start, row.tile_rows.stop) for row in rows] == [(0, 3), (2, 6), (5, 6)]
    assert [window.width for window in rows[0].windows] == [512, 388]
    for row in rows:
        for window in row.windows:
            assert all(tile.row in row.tile_rows for tile in plan.covering(window))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="--overlap 40: expected 0 to half of --tile, which is 32"):
        TilePlan(100, 100, 64, 40)
    with pytest.raises(UsageError, match="--tile 8 is too small"):
        TilePlan(100, 100, 8, 0)


def test_blending_gives_the_moments_of_the_mixture():
    plan = TilePlan(48, 70, 32, 8)
    rng = np.random.default_rng(0)
    parts = {number: {} for number in range(len(plan))}
    for part in parts.values():
        part |= {name: rng.random((13, 32, 32), np.float32) for name in ("mean", "aleatoric", "epistemic")}
    window = Window(3, 5, 40, 60)
    columns = len(plan.across.starts)
    found = blend(plan, window, ("mean", "aleatoric", "epistemic"), lambda t: parts[t.row * columns + t.column])
    # the same in float64 over the whole scene, by the law of total variance
    sums = {name: np.zeros((13, 48, 70)) for name in ("mean", "square", "aleatoric", "epistemic")}
    for number, part in parts.items():
        tile = plan[number]
        weights = np.outer(normalised_weights(plan.down, tile.row), normalised_weights(plan.across, tile.column))
        for name, values in (part | {"square": part["mean"].astype(np.float64) ** 2}).items():
            sums[name][(slice(None), *tile.window.slices)] += weights * values
    spread = sums["square"] - sums["mean"] ** 2
    expected = {"mean": sums["mean"], "aleatoric": sums["aleatoric"], "epistemic": sums["epistemic"] + spread}
    expected["total"] = expected["aleatoric"] + expected["epistemic"]
    for name, values in expected.items():  # float32 sums of at most four terms of size 1
        np.testing.assert_allclose(found[name], values[(slice(None), *window.slices)], rtol=0, atol=1e-6)
    assert spread.max() > 0.01


def local_network(head):
    """Looks 2 pixels around itself, and mirrors the border as the networks do."""
    weights = torch.rand(13, 1, 5, 5, generator=torch.Generator().manual_seed(0)) / 25

    def network(x, dates):
        image = x[:, :, -13:].mean(dim=1)
        mean = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), weights, groups=13).unsqueeze(1)
        if head is Gaussian:
            return Gaussian(mean, mean**2)
        return NIG(mean, torch.ones_like(mean), torch.full_like(mean, 2.0), mean**2)

    return network


def scene(job, names, batch_size=2, block=512):
    products = MemoryProducts(job.plan.height, job.plan.width)
    run_inference(job, products, names, batch_size, run_locally, block)
    return products.maps


@pytest.fixture
def local(monkeypatch, tmp_path):
    """A job with a network of small field of view."""
    monkeypatch.setattr(prediction, "load_network", lambda *_: local_network(NIG))
    monkeypatch.setattr("scenes.inference.load_network", lambda *_: None)

    def job(series, tile, overlap, **more):
        plan = TilePlan(*series.raw.shape[-2:], tile, overlap)
        return Job(series, plan, "none", str(tmp_path / f"{tile}_{overlap}"), **more)

    return job


NAMES = ("mean", "aleatoric", "epistemic")


def test_tiles_of_a_local_network_equal_the_untiled_prediction(local):
    series = memory_series(170, 210)
    whole, tiled = (scene(local(series, tile, overlap), NAMES, block=96) for tile, overlap in ((224, 0), (64, 32)))
    for name in ("reflectance", "aleatoric", "epistemic", "total"):
        # an eighth of the overlap, 4 pixels, has no weight: more than the 2 that the network looks around itself.
        # What remains is float32: sums of four shares, and for deviations the root of a spread near 0.
        np.testing.assert_allclose(tiled[name], whole[name], rtol=0, atol=2e-6)
    assert whole["reflectance"].std() > 0.01


def test_without_overlap_the_border_of_tiles_shows(local):
    """The blending is what makes the last test pass."""
    series = memory_series(170, 210)
    whole, tiled = (scene(local(series, tile, 0), NAMES) for tile in (224, 64))
    assert np.abs(tiled["reflectance"] - whole["reflectance"]).max() > 1e-3


def test_a_network_with_one_variance_has_the_tiles_disagreement_in_the_total(local, monkeypatch):
    monkeypatch.setattr(prediction, "load_network", lambda *_: local_network(Gaussian))
    found = scene(local(memory_series(80, 100), 64, 16), ("mean", "aleatoric"))
    assert "epistemic" not in found
    assert (found["total"] >= found["aleatoric"]).all()


def test_a_scene_smaller_than_a_tile_is_mirrored_and_cut_again(local):
    series = memory_series(40, 50)
    whole, tiled = (scene(local(series, tile, 0), NAMES) for tile in (50, 128))
    np.testing.assert_array_equal(whole["reflectance"].shape, (13, 40, 50))
    np.testing.assert_allclose(tiled["reflectance"], whole["reflectance"], rtol=0, atol=1e-6)


def test_memory_holds_one_row_of_tiles_on_disk_as_it_is_written(local, tmp_path):
    job = local(memory_series(300, 64), 64, 16)
    most = 0
    products = MemoryProducts(300, 64)

    def watched(*args):
        nonlocal most
        for batch in run_locally(*args):
            most = max(most, len(list(tmp_path.rglob("*.npz"))))
            yield batch

    run_inference(job, products, NAMES, 1, watched, block=64)
    assert len(job.plan) == 6
    assert most <= 3  # a block of 64 rows touches two or three tiles of 64 in steps of 48
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("detector", ["s2cloudless_mask", "s2cloudless_map"])
def test_cloud_masks_of_tiles_equal_those_of_the_whole_scene(local, detector):
    series = memory_series(150, 170)
    job = local(series, 64, 0, detector=detector)  # no overlap: the margin must be read beside the tile
    whole = np.stack([detect_clouds(image, detector) >= 0.5 for image in series.raw])
    assert 0.1 < whole.mean() < 0.9
    for number in range(len(job.plan)):
        tile = job.plan[number]
        np.testing.assert_array_equal(read_tile(job, tile).states, whole[(slice(None), *tile.cell.slices)])


def test_missing_values_are_filled_from_the_date_nearest_in_time():
    optical = np.arange(1, 4, dtype=np.float32)[:, None, None, None] * np.ones((3, 13, 4, 5), np.float32)
    valid = np.ones((3, 4, 5), np.bool_)
    valid[1, 0, :2] = valid[0, 0, 0] = False
    filled = fill_missing(optical, valid, (0, 10, 30))
    assert filled[1, 0, 0, 0] == 3  # the nearest date lacks it too
    assert filled[1, 0, 0, 1] == 1  # 10 days before rather than 20 after
    assert filled[0, 0, 0, 0] == 3
    assert (filled[:, :, 1:] == optical[:, :, 1:]).all()
    assert fill_missing(optical, np.ones_like(valid), (0, 10, 30)) is optical
    valid[:, 3] = False  # no date has the last row: the one above stands for it
    optical[:, :, 2, 4] = 7
    assert (fill_missing(optical, valid, (0, 10, 30))[:, :, 3, 4] == 7).all()


def test_a_hole_in_the_data_does_not_change_what_lies_beside_it(local):
    series = memory_series(100, 120)
    valid = series.valid.copy()
    valid[:, 30:60, 50:110] = False
    holed = dataclasses.replace(series, raw=series.raw * valid[:, None], valid=valid)
    whole, found = (scene(local(one, 64, 16), NAMES) for one in (series, holed))
    away = np.ones((100, 120), np.bool_)
    away[28:62, 48:112] = False  # 2 pixels: the network's look around
    np.testing.assert_array_equal(found["valid"], valid[0])
    assert (found["reflectance"][:, away] == whole["reflectance"][:, away]).all()
    assert found["reflectance"].min() > 0.001  # not a black hole


def test_tiles_without_data_are_not_predicted(local, monkeypatch):
    series = memory_series(128, 192)
    valid = series.valid.copy()
    valid[..., 64:] = False
    asked = []
    monkeypatch.setattr(
        prediction, "load_network", lambda *_: lambda x, d: asked.append(len(x)) or local_network(NIG)(x, d)
    )
    found = scene(local(dataclasses.replace(series, valid=valid), 64, 0), NAMES)
    assert sum(asked) == 2  # of 6 tiles
    assert found["valid"].sum() == 128 * 64


def test_keep_copies_what_the_latest_date_shows_clear(local):
    series = memory_series(100, 120)
    valid = series.valid.copy()
    valid[2, :10] = False
    series = dataclasses.replace(series, valid=valid)
    options = {"detector": "s2cloudless_mask"}
    plain, kept = (scene(local(series, 64, 16, keep_clear=keep, **options), NAMES) for keep in (False, True))
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
        scene(local(memory_series(64, 64), 64, 0), NAMES)


@pytest.mark.parametrize("model", ["uncrtaints", "conv3d_mamba"])
def test_real_networks_leave_no_seam(model, tmp_path):
    """Random weights, untrained: their squeeze-excite and group norms differ most from tile to tile."""
    run = write_run(tmp_path / "run", model, seed=3)
    series = memory_series(200, 260)

    def ratio(overlap):
        job = Job(series, TilePlan(200, 260, 64, overlap), str(run), str(tmp_path / f"spool_{overlap}"))
        return border_steps(scene(job, NAMES)["reflectance"], job.plan, 8)

    assert ratio(16) < 1.05  # the sampling noise of a mean over a few columns is 3 %
    assert ratio(0) > 1.1  # what the number says where tiles are laid side by side

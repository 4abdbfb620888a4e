"""Simulated landscapes: levels, seasons, clouds found by the real detector, radar, determinism."""

import numpy as np
import pytest

from data.constants import N_DATES, band_index
from data.synthetic import covers
from data.synthetic.clouds import KINDS, Weather, fractal_noise, simulate_clouds, simulate_weather
from data.synthetic.land import landscape_from_patch, simulate_landscape
from data.synthetic.scene import observe_optical, observe_radar

B04, B08, B09, B10, B11 = (band_index(name) for name in ("B04", "B08", "B09", "B10", "B11"))
SUN = 2.5  # radians: south-east, mid-morning


def landscape(climate="oceanic", size=96, seed=0):
    return simulate_landscape(np.random.default_rng(seed), (size, size), covers.CLIMATES[climate])


def acquire(land, day, weather, seed=0):
    rng = np.random.default_rng([seed, int(day)])
    clouds = simulate_clouds(rng, land.cover.shape, weather, 0.9 * land.cover.shape[0], SUN)
    return observe_optical(rng, land, day, clouds)


CLEAR = Weather("clear", 0.0)


@pytest.fixture(scope="module")
def detector():
    s2cloudless = pytest.importorskip("s2cloudless")
    return s2cloudless.S2PixelCloudDetector(threshold=0.4, all_bands=True, average_over=4, dilation_size=2)


def detect(detector, optical):
    return detector.get_cloud_masks(np.moveaxis(np.clip(optical, 0, 10000) / 1e4, 0, -1)[None])[0] > 0


@pytest.mark.parametrize("climate", sorted(covers.CLIMATES))
def test_real_detector_finds_clear_dates_clear(detector, climate):
    for day in (100, 250):
        mask = detect(detector, acquire(landscape(climate), day, CLEAR).optical)
        assert mask.mean() < 0.01


@pytest.mark.parametrize(
    ("kind", "cover", "least"),
    [("cumulus", 0.5, 0.7), ("layer", 0.5, 0.7), ("cumulus", 0.75, 0.7), ("cirrus", 0.6, 0.6), ("deck", 1.0, 0.95)],
)
def test_real_detector_agrees_with_the_truth(detector, kind, cover, least):
    land = landscape(size=128)
    overlaps = []
    for seed in range(2):
        seen = acquire(land, 180, Weather(kind, cover), seed)
        mask, truth = detect(detector, seen.optical), seen.clouds.cloud_mask
        assert truth.mean() == pytest.approx(cover, abs=0.01)  # cover is a quantile of the noise
        overlaps.append((mask & truth).sum() / (mask | truth).sum())
    # the detector dilates its mask by about 3 pixels (disc of 4 averaged, 2 dilated): at these sizes 0.75 to 0.9
    assert np.mean(overlaps) > least


def test_levels_are_those_of_satellites():
    for name in covers.CLIMATES:
        clear = acquire(landscape(name, 64), 190, CLEAR).optical
        assert clear.dtype == np.uint16
        means = clear.mean(axis=(1, 2))
        # between the 1 % and 99 % quantiles of the real clear patches, rounded outwards
        assert 1340 < means[0] < 1750
        assert 500 < means[B04] < 2100
        assert 900 < means[B08] < 4200
        assert 200 < means[B09] < 1700
        assert clear[B10].max() < 60  # without cirrus


def test_plants_follow_the_season():
    land = landscape("oceanic")
    winter, summer = (acquire(land, day, CLEAR).optical.astype(float) for day in (10, 190))
    ndvi = [(x[B08] - x[B04]) / (x[B08] + x[B04]) for x in (winter, summer)]
    forest = land.cover == covers.FOREST
    assert ndvi[1][forest].mean() > ndvi[0][forest].mean() + 0.05
    town = land.cover == covers.TOWN
    change = np.abs(summer - winter).mean(axis=0)
    assert change[forest].mean() > 2 * change[town].mean()
    south = landscape("southern")
    january, july = (south.seasons.greenness(day)[south.unit].mean() for day in (20, 200))
    assert january > july


def test_dates_near_each_other_differ_less():
    land = landscape("continental")
    images = [acquire(land, day, CLEAR).optical / 1e4 for day in (120, 130, 200)]
    near, far = (np.sqrt(np.mean((images[0] - images[i]) ** 2)) for i in (1, 2))
    assert near < 0.6 * far
    assert 0.01 < far < 0.06  # moderate: the mean over dates is a reasonable prediction


def test_greenness_is_periodic_and_bounded():
    seasons = landscape("monsoon").seasons
    values = np.stack([seasons.greenness(day) for day in range(0, 366, 5)])
    assert values.min() >= 0
    assert values.max() <= 1
    # a year later: pulses end at most 450 days after New Year's day and are counted in the years before and after
    np.testing.assert_allclose(seasons.greenness(0.0), seasons.greenness(365.0), atol=1e-3)


def test_clear_equals_seen_without_clouds_and_differs_under_them():
    land = landscape()
    clear = acquire(land, 100, CLEAR)
    np.testing.assert_array_equal(clear.optical, clear.clear)
    assert not clear.clouds.cloud_mask.any()
    seen = acquire(land, 100, Weather("cumulus", 0.5))
    cloud, shadow = seen.clouds.cloud_mask, seen.clouds.shadow_mask
    difference = seen.optical.astype(float) - seen.clear
    assert difference[B04][cloud].mean() > 1000
    assert shadow.any()
    assert difference[B08][shadow].mean() < -100  # shadows darken
    far = (seen.clouds.opacity == 0) & (seen.clouds.shade == 0)
    assert np.abs(difference[B04][far]).max(initial=0) == 0


def test_shadow_lies_away_from_the_sun():
    rng = np.random.default_rng(3)
    clouds = simulate_clouds(
        rng, (96, 96), Weather("cumulus", 0.3), 86.0, np.pi
    )  # sun in the south: shadows fall northwards

    def overlap(shift):
        return (np.roll(clouds.opacity, shift, axis=0)[20:-20] * clouds.shade[20:-20]).mean()

    shifts = range(-34, 35)
    assert max(shifts, key=overlap) < 0  # rows grow southwards


def test_cirrus_shows_in_b10_alone_of_low_clouds():
    land = landscape()
    low, high = (acquire(land, 100, Weather(kind, 0.9)) for kind in ("layer", "cirrus"))
    assert low.optical[B10].max() < 60
    assert high.optical[B10][high.clouds.cloud_mask].mean() > 100
    assert high.optical[B11].mean() < low.optical[B11].mean()


def test_thickness_varies():
    thick, thin = (acquire(landscape(), 100, Weather(kind, 0.9)).clouds.opacity for kind in ("cumulus", "thin"))
    assert thick.max() > 0.8 > 0.5 > thin.max()
    assert 0 < np.median(thin) < 0.45


def test_bands_have_their_ground_resolution():
    seen = acquire(landscape(size=61), 100, CLEAR).clear.astype(float)  # an odd size: cut blocks at the border
    assert seen.shape == (13, 61, 61)
    noise = covers.SENSOR_NOISE
    for band, factor in (("B11", 2), ("B8A", 2), ("B01", 6)):
        i = band_index(band)
        block = seen[i, : 60 // factor * factor, : 60 // factor * factor].reshape(60 // factor, factor, -1, factor)
        # within a block only sensor noise and rounding (variance 1/12) remain
        assert block.std(axis=(1, 3)).mean() < 1.2 * np.hypot(noise[i], 0.3)


@pytest.mark.parametrize("cloudy_start", [True, False])
def test_weather_keeps_clear_dates_and_varies(cloudy_start):
    season = np.cos(2 * np.pi * np.arange(N_DATES) / N_DATES)
    for seed in range(5):
        series = simulate_weather(np.random.default_rng(seed), N_DATES, 0.3, season, cloudy_start)
        assert len(series) == N_DATES
        assert sum(weather.kind == "clear" for weather in series) == 9
        assert all((weather.cover == 0) == (weather.kind == "clear") for weather in series)
        partial = [weather.cover for weather in series if 0 < weather.cover < 1]
        assert len(partial) >= 10
        assert min(partial) >= 0.1
        assert max(partial) <= 0.95
        if cloudy_start:
            assert all(0.45 <= weather.cover <= 0.85 for weather in series[:4])
        assert any(weather.cover == 1 for weather in series)
        assert all(weather.kind in KINDS or weather.kind == "clear" for weather in series)


def test_radar_levels_speckle_and_seasons():
    land = landscape(size=128)
    image = observe_radar(np.random.default_rng(0), land, 180)
    assert image.dtype == np.float32
    assert image.shape == (2, 128, 128)
    assert np.isfinite(image).all()
    by_cover = {c: image[:, land.cover == c].mean(axis=1) for c in np.unique(land.cover)}
    assert by_cover[covers.TOWN][0] > by_cover[covers.FOREST][0] > by_cover[covers.FIELD][0] > by_cover[covers.WATER][0]
    assert all(vv > vh + 3 for vv, vh in by_cover.values())


def test_leaves_raise_the_cross_polarised_backscatter():
    land = landscape("continental", size=128)
    days = (60, 190)
    green = [land.seasons.greenness(day)[land.unit] for day in days]
    image = [observe_radar(np.random.default_rng(i), land, day) for i, day in enumerate(days)]
    grown = (land.cover == covers.FIELD) & (green[1] - green[0] > 0.6)
    same = (land.cover == covers.FIELD) & (np.abs(green[1] - green[0]) < 0.1)
    change = [(image[1] - image[0])[:, part].mean(axis=1) for part in (grown, same)]
    # relative to unchanged fields (soil moisture cancels): 3.3 dB of VH and 1.6 dB of VV for 1.0 in the table
    assert 1.5 < change[0][1] - change[1][1] < 4.0
    assert change[0][1] - change[1][1] > change[0][0] - change[1][0]


def test_speckle_has_the_spread_and_correlation_of_sentinel_1():
    land = landscape(size=128)
    a, b = (observe_radar(np.random.default_rng(seed), land, 180) for seed in (1, 2))
    speckle = (a - b)[0][land.cover != covers.WATER] / np.sqrt(2)
    assert speckle.std() == pytest.approx(2.0, abs=0.2)  # measured on homogeneous savanna: 2.0 dB
    field = (a - b)[0]
    near = np.corrcoef(field[:, :-1].ravel(), field[:, 1:].ravel())[0, 1]
    assert near == pytest.approx(0.77, abs=0.07)  # measured there at one pixel


def test_real_patch_as_ground():
    rng = np.random.default_rng(0)
    optical = np.broadcast_to(covers.CROP_TEMPERATE[:, None, None], (13, 32, 32)).astype(np.uint16)
    radar = np.full((2, 32, 32), -10.0)
    land = landscape_from_patch(rng, optical, radar, covers.CLIMATES["oceanic"])
    seen = acquire(land, 190, CLEAR).optical.astype(float)
    assert np.abs(seen - optical).mean() < 250  # the patch itself in its season, except for atmosphere and vapour
    winter = acquire(land, 10, CLEAR).optical.astype(float)
    assert winter[B08].mean() < seen[B08].mean() - 300
    # -10 dB; dry soil -0.6, incomplete leaves -0.3, mean logarithm of 5-look speckle -0.5; weather 0.3
    assert observe_radar(rng, land, 190).mean() == pytest.approx(-11.4, abs=0.8)


def test_covers_are_all_there_and_landscapes_differ():
    kinds = np.concatenate([np.unique(landscape(name).cover) for name in covers.CLIMATES])
    assert set(kinds) == set(range(len(covers.COVER_NAMES)))
    a, b = (acquire(landscape(name), 190, CLEAR).clear.astype(float) for name in ("oceanic", "steppe"))
    assert np.abs(a.mean(axis=(1, 2)) - b.mean(axis=(1, 2))).max() > 150


def test_same_generator_same_image():
    a, b = (acquire(landscape(), 50, Weather("layer", 0.4), seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.optical, b.optical)
    c = acquire(landscape(seed=1), 50, Weather("layer", 0.4), seed=5)
    assert (a.optical != c.optical).mean() > 0.5


def test_fractal_noise_is_standardised_and_smooth():
    noise = fractal_noise(np.random.default_rng(0), (64, 96), 1.8, 40.0)
    assert noise.shape == (64, 96)
    assert abs(noise.mean()) < 1e-5
    assert noise.std() == pytest.approx(1.0, abs=1e-4)
    assert np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1] > 0.9

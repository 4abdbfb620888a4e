"""NDVI of images, its deviation, and its sums over blocks."""

import json

import numpy as np
import pytest
from affine import Affine

from scenes.inputs.rasters.grid import Grid, Window
from scenes.outputs.ndvi import NIR, RED, NdviSums, add_sums, block_sums, ndvi, ndvi_deviation

GRID = Grid(20, 30, Affine.identity(), None)


def block(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    observed = rng.uniform(0, 1, (2, 20, 30)).astype(np.float32)
    observed[0, :15] = np.nan
    valid = np.ones((20, 30), np.bool_)
    valid[:3] = False
    image, deviation = rng.uniform(0.02, 0.5, (13, 20, 30)), rng.uniform(0.001, 0.01, (13, 20, 30))
    return {
        "reflectance": image.astype(np.float32),
        "total": deviation.astype(np.float32),
        "valid": valid,
        "ndvi": observed,
    }


def test_stored_integers_and_reflectance_have_the_same_index():
    stored = np.zeros((13, 1, 3), np.uint16)
    stored[RED], stored[NIR] = [1000, 6000, 0], [3000, 2000, 0]
    np.testing.assert_allclose(ndvi(stored)[0], [0.5, -0.5, np.nan])
    np.testing.assert_allclose(ndvi(stored / np.float32(10_000)), ndvi(stored), rtol=1e-6)


def test_the_deviation_is_that_of_samples():
    rng = np.random.default_rng(0)
    image, deviation = np.full((13, 1, 1), 0.05), np.full((13, 1, 1), 0.002)
    image[NIR], deviation[NIR] = 0.3, 0.006
    samples = image + deviation * rng.standard_normal((20_000, 13, 1, 1))
    expected = ndvi(np.moveaxis(samples[..., 0], 0, -1)).std()
    assert ndvi_deviation(image, deviation)[0, 0] == pytest.approx(expected, rel=0.03)  # of 20,000 samples 0.5 %


def test_sums_of_blocks_are_those_of_the_scene():
    fields = block()
    scene = block_sums(fields, GRID.window, GRID)
    windows = [Window(0, 0, 12, 30), Window(12, 0, 8, 17), Window(12, 17, 8, 13)]
    parts = [block_sums({name: values[(..., *w.slices)] for name, values in fields.items()}, w, GRID) for w in windows]
    added = NdviSums.from_json(json.loads(json.dumps(add_sums(parts).to_json())))
    for name, value in scene.to_json().items():
        np.testing.assert_allclose(getattr(added, name), value, rtol=1e-6, err_msg=name)
    values = ndvi(fields["reflectance"])
    assert scene.pixels == 17 * 30
    assert scene.total == pytest.approx(values[3:].sum(dtype=np.float64), rel=1e-6)
    assert scene.middle[0] == values[10, 15]
    assert scene.clear == (5 * 30, 20 * 30)
    assert np.isnan(scene.clear_middle[0])
    assert scene.clear_middle[1] == fields["ndvi"][1, 10, 15]


def test_a_network_without_variance_has_no_deviation():
    fields = block()
    del fields["total"]
    sums = block_sums(fields, GRID.window, GRID)
    assert np.isfinite(sums.total)
    assert np.isnan([sums.deviation, sums.middle[1]]).all()

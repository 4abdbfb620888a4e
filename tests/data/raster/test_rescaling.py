import numpy as np
import pytest

from data.raster.rescaling import RawImage, optical_to_unit, sar_to_unit


def test_optical_rescaling():
    raw = np.array([0, 1, 5000, 10000, 10001, 65535], np.uint16)
    want = np.array([0, 1e-4, 0.5, 1, 1, 1], np.float32)
    np.testing.assert_array_equal(optical_to_unit(raw), want)
    np.testing.assert_array_equal(optical_to_unit(raw, "resnet"), np.array([0, 5e-4, 2.5, 5, 5, 5], np.float32))
    messy = np.array([np.nan, -5, 5000, np.inf], np.float32)
    np.testing.assert_array_equal(optical_to_unit(messy), np.array([0, 0, 0.5, 1], np.float32))
    assert optical_to_unit(raw).dtype == optical_to_unit(messy).dtype == np.float32


def test_both_ways_of_optical_rescaling_agree_exactly():
    raw = np.arange(65536, dtype=np.uint16)
    for method in ("default", "resnet"):
        np.testing.assert_array_equal(optical_to_unit(raw, method), optical_to_unit(raw.astype(np.float32), method))


def test_radar_rescaling():
    db = np.array([[[-30, -25, -12.5, 0, 3, np.nan]], [[-40, -32.5, -16.25, 0, 3, np.nan]]], np.float32)  # (2, 1, 6)
    np.testing.assert_array_equal(sar_to_unit(db)[0, 0], np.array([0, 0, 0.5, 1, 1, 0], np.float32))
    np.testing.assert_allclose(sar_to_unit(db)[1, 0], [0, 0, 0.35, 1, 1, 0], rtol=1e-6)
    want = np.array([[[0, 0, 1, 2, 2, 0]]] * 2, np.float32)
    np.testing.assert_array_equal(sar_to_unit(db, "resnet"), want)
    assert sar_to_unit(db).dtype == np.float32


def test_unknown_rescaling():
    with pytest.raises(ValueError, match="unknown rescale_method 'wild'; choose from default, resnet"):
        optical_to_unit(np.zeros(1), "wild")


@pytest.mark.parametrize("method", ["default", "resnet"])
@pytest.mark.parametrize(("bands", "rescale"), [(13, optical_to_unit), (2, sar_to_unit)])
def test_a_raw_image_is_rescaled_into_a_batch(method, bands, rescale):
    rng = np.random.default_rng(bands)
    raw = rng.integers(0, 12000, (13, 4, 5), dtype=np.uint16) if bands == 13 else rng.uniform(-40, 5, (2, 4, 5))
    image = RawImage(raw, rescale, method)
    batch = np.zeros((3, *image.shape), np.float32)
    image.to_unit(batch[1])
    np.testing.assert_array_equal(batch[1], rescale(raw, method))
    np.testing.assert_array_equal(image.to_unit(), batch[1])
    assert not batch[[0, 2]].any()

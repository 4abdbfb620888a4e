"""Cloud and cloud-shadow detection by thresholds on brightness and band ratios."""

import numpy as np
from scipy import ndimage

from data.constants import REFLECTANCE_SCALE, band_index

_B01, _B02, _B03, _B04, _B08, _B10, _B11 = (
    band_index(name) for name in ("B01", "B02", "B03", "B04", "B08", "B10", "B11")
)
_CLOSING, _SMOOTHING, _MEDIAN = 5, 7, 5  # window sides in pixels
_CSI_SHARE, _WATER_SHARE = (
    np.float32(3 / 4),
    np.float32(5 / 6),
)  # dark: below this fraction of the way from the minimum to the mean
_ZERO_SUM = np.float32(0.001)  # denominator of a ratio whose sum is 0


def get_cloud_mask(
    data_image: np.ndarray, cloud_threshold: float, binarize: bool = False, use_moist_check: bool = False
) -> np.ndarray:
    """Cloud score of each pixel: bright in blue, aerosol, cirrus and visible bands, and not snow.

    Args:
        data_image: (13, H, W), reflectance x 10000, within [0, 10000].
        cloud_threshold: minimum score of clouds, with `binarize`.
        binarize: return 0 and 1 instead of scores.
        use_moist_check: also require moisture (NDMI).

    Returns:
        Scores (H, W) in [1e-5, 1], closed over 5 x 5 and averaged over 7 x 7 pixels; or 0 and 1.

    Source:
        The cloud score of Murphy (2018) for Sentinel-2, as used by Ebel et al. (2022) for SEN12MS-CR-TS.
    """
    reflectance = _reflectance(data_image)
    blue, aerosol, cirrus = reflectance[_B02], reflectance[_B01], reflectance[_B10]
    tests = [
        _ramp(blue, 0.1, 0.5),
        _ramp(aerosol, 0.1, 0.3),
        _ramp(aerosol + cirrus, 0.4, 0.9),
        _ramp(reflectance[_B04] + reflectance[_B03] + blue, 0.2, 0.8),
        _ramp(_ratio(reflectance[_B03], reflectance[_B11]), 0.8, 0.6),  # NDSI: high over snow, so the ramp falls
    ]
    if use_moist_check:
        tests.append(_ramp(_ratio(reflectance[_B08], reflectance[_B11]), -0.1, 0.1))
    score = np.minimum.reduce([np.ones_like(blue), *tests])
    score = ndimage.grey_closing(score, size=(_CLOSING, _CLOSING))
    # float64 sums, zeros beyond the border: both as in the published convolution
    score = ndimage.uniform_filter(score.astype(np.float64), size=_SMOOTHING, mode="constant")
    score = np.clip(score, 1e-5, 1.0)
    return (score >= cloud_threshold).astype(score.dtype) if binarize else score


def get_shadow_mask(data_image: np.ndarray) -> np.ndarray:
    """Pixels that are dark in near and short-wave infrared and not bright in blue, relative to the image.

    Args:
        data_image: (13, H, W), reflectance x 10000, within [0, 10000].

    Returns:
        float32 (H, W): -1 in shadow, 0 elsewhere, after a 5 x 5 median.

    Source:
        Zhai et al. (2018), cloud-shadow index and water index with the thresholds of Ebel et al. (2022).
    """
    reflectance = _reflectance(data_image)
    infrared, blue = (reflectance[_B08] + reflectance[_B11]) / np.float32(2), reflectance[_B02]
    dark = (infrared < _dark_limit(infrared, _CSI_SHARE)) & (blue < _dark_limit(blue, _WATER_SHARE))
    # the median of 25 zeros and ones, with zeros beyond the border, is 1 if at least 13 are 1; counting is exact
    window = np.ones(_MEDIAN, np.int32)
    counts = ndimage.convolve1d(dark.astype(np.int32), window, axis=0, mode="constant")
    counts = ndimage.convolve1d(counts, window, axis=1, mode="constant")
    return np.where(counts > _MEDIAN**2 // 2, np.float32(-1), np.float32(0))


def _reflectance(data_image: np.ndarray) -> np.ndarray:
    return data_image.astype(np.float32) / np.float32(REFLECTANCE_SCALE)


def _ramp(values: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at `start`, 1 at `end`."""
    return (values - np.float32(start)) / np.float32(end - start)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return (a - b) / np.where(total == 0, _ZERO_SUM, total)


def _dark_limit(values: np.ndarray, share: np.float32) -> np.float32:
    lowest: np.float32 = values.min()
    return lowest + share * (values.mean() - lowest)

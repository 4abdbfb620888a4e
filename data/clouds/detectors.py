"""The three cloud detectors."""

import multiprocessing
import os
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from common.parallel import available_cores
from data.clouds.compiled_trees import CompiledTrees
from data.clouds.threshold_rules import get_cloud_mask, get_shadow_mask
from data.constants import N_S2, REFLECTANCE_SCALE
from data.raster.missing import missing_pixels

MOSTLY = 0.5  # share of pixels without data above which an image counts as entirely cloudy
_SETTINGS: dict[str, dict[str, Any]] = {
    "s2cloudless_mask": {"threshold": 0.4, "average_over": 4, "dilation_size": 2, "all_bands": True},
    "s2cloudless_map": {"zero_below": 0.5, "sigma": 2, "all_bands": True},
    "cloud_cloudshadow_mask": {"threshold": 0.2},
}


def detector_settings(detector: str) -> dict[str, Any]:
    """The settings that determine a detector's output; stored masks are valid for these only.

    Raises:
        ValueError: if the detector is unknown.
    """
    if detector not in _SETTINGS:
        raise ValueError(f"unknown cloud detector {detector!r}; choose from {', '.join(_SETTINGS)}")
    return {"detector": detector, **_SETTINGS[detector], "clip": [0, int(REFLECTANCE_SCALE)]}


def detect_clouds(image: np.ndarray, detector: str | None) -> np.ndarray:
    """The cloud mask of an image.

    Args:
        image: (13, H, W), raw values (reflectance x 10000), before any rescaling; NaN counts as 0.
        detector: "s2cloudless_mask", "s2cloudless_map" or "cloud_cloudshadow_mask".

    Returns:
        float32 (H, W): 0 clear, 1 cloudy; s2cloudless_map also has values in between. Its mean is the coverage.
        A blank image (all values 0) counts as cloudy, with a warning.

    Raises:
        ValueError: if the detector is unknown, or the image is not (13, H, W).

    Source:
        Detectors and settings of the published loader (Ebel et al. 2023). Changes: images need not be square.
    """
    settings = detector_settings(detector or "None")
    if image.ndim != 3 or len(image) != N_S2:
        raise ValueError(f"expected an image ({N_S2}, H, W), got {image.shape}")
    # float32 as in the published loader: values near a threshold are rounded the same way
    clipped = np.clip(np.nan_to_num(image.astype(np.float32)), 0, REFLECTANCE_SCALE)
    if not clipped.any():
        warnings.warn("blank optical image: it counts as cloudy everywhere", stacklevel=2)
        return np.ones(image.shape[1:], np.float32)
    if detector == "cloud_cloudshadow_mask":
        clouds = get_cloud_mask(clipped, settings["threshold"], binarize=True)
        return ((clouds > 0) | (get_shadow_mask(clipped) < 0)).astype(np.float32)
    probability = _probability(clipped)
    if detector == "s2cloudless_mask":
        return _s2cloudless().get_mask_from_prob(probability[None])[0].astype(np.float32)
    probability[probability < settings["zero_below"]] = 0
    smooth: np.ndarray = gaussian_filter(probability, sigma=settings["sigma"])
    return smooth.astype(np.float32)


def mask_and_coverage(image: np.ndarray, detector: str) -> tuple[np.ndarray, float]:
    """The cloud mask of an image whose pixels without data count as cloud, and its coverage.

    Args:
        image: (13, H, W), as for `detect_clouds`.
        detector: one of its detectors.

    Returns:
        The mask, 1 where no band is above 0; and its mean, or 1 if more than half of the pixels have no data.
    """
    mask, missing = detect_clouds(image, detector), missing_pixels(image)
    if missing is not None:
        mask[missing] = 1
        if missing.mean() > MOSTLY:
            return mask, 1.0
    return mask, float(mask.mean(dtype=np.float64))


def _probability(clipped: np.ndarray) -> np.ndarray:
    """s2cloudless's cloud probability, float32 (H, W), of an image (13, H, W) within [0, 10000]."""
    trees = _compiled_trees()
    if trees is None:
        return slow_probability(clipped)
    from s2cloudless.utils import MODEL_BAND_IDS  # deferred: heavy, brings LightGBM

    reflectance = (clipped[MODEL_BAND_IDS] / np.float32(REFLECTANCE_SCALE)).reshape(len(MODEL_BAND_IDS), -1)
    return trees.probabilities(reflectance, _threads()).reshape(clipped.shape[1:])


def slow_probability(clipped: np.ndarray) -> np.ndarray:
    """The same computed by s2cloudless with LightGBM: `_probability` is bitwise equal to it."""
    reflectance = np.ascontiguousarray(np.moveaxis(clipped / np.float32(REFLECTANCE_SCALE), 0, -1))[None]  # (1,H,W,13)
    maps: np.ndarray = _s2cloudless().get_cloud_probability_maps(reflectance, num_threads=_threads())
    return maps[0]


@lru_cache(maxsize=1)
def _s2cloudless() -> Any:
    from s2cloudless import S2PixelCloudDetector  # deferred: heavy, brings LightGBM

    return S2PixelCloudDetector(**_SETTINGS["s2cloudless_mask"])


@lru_cache(maxsize=1)
def _compiled_trees() -> CompiledTrees | None:
    """The detector's trees in a form that is evaluated faster; None if they cannot be compiled, with a warning."""
    booster = _s2cloudless().classifier.classifier
    try:
        trees = CompiledTrees.from_text(booster.model_to_string())
        probe = trees.probe()
        scores = trees.raw_scores(probe)
    except (ImportError, RuntimeError, ValueError) as error:  # numba raises RuntimeError if it cannot write its cache
        warnings.warn(f"cloud detection uses LightGBM, slower but with the same result: {error}", stacklevel=2)
        return None
    if not np.array_equal(scores, booster.predict(probe.T, raw_score=True, num_threads=1)):
        warnings.warn("cloud detection uses LightGBM: the compiled trees differ from it on this machine", stacklevel=2)
        return None
    return trees


def _threads() -> int:
    # One thread in a worker: workers provide the parallelism, and OpenMP hangs in a child that was forked after the
    # parent has used it. Otherwise OMP_NUM_THREADS, or every core.
    if multiprocessing.parent_process() is not None:
        return 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, int(limit)) if limit.isdigit() else available_cores()

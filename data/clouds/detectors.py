"""The three cloud detectors behind one function."""

import multiprocessing
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data.clouds.compiled_trees import Forest
from data.constants import DETECTORS, N_S2, REFLECTANCE_SCALE

if TYPE_CHECKING:
    from data.clouds.forest_tensor import TensorForest

_MASK_SETTINGS: dict[str, Any] = {"threshold": 0.4, "average_over": 4, "dilation_size": 2, "all_bands": True}
_MAP_SETTINGS: dict[str, Any] = {"zero_below": 0.5, "sigma": 2, "all_bands": True}
_RULES_SETTINGS: dict[str, Any] = {"threshold": 0.2}


def detector_settings(detector: str) -> dict[str, Any]:
    """What decides the outcome of a detector besides the image: a store of masks is valid for these only.

    Raises:
        ValueError: if the detector is unknown.
    """
    settings = dict(zip(DETECTORS, (_MASK_SETTINGS, _MAP_SETTINGS, _RULES_SETTINGS), strict=True))
    if detector not in settings:
        raise ValueError(f"unknown cloud detector {detector!r}; choose from {', '.join(DETECTORS)}")
    return {"detector": detector, **settings[detector], "clip": [0, int(REFLECTANCE_SCALE)]}


def is_binary(detector: str) -> bool:
    """Whether a detector's masks hold only 0 and 1."""
    return detector != "s2cloudless_map"


def detect_clouds(image: np.ndarray, detector: str | None, device: str = "cpu") -> np.ndarray:
    """Where an image is clouded.

    Args:
        image: (13, H, W), raw values (reflectance x 10000), before any rescaling; NaN counts as 0.
        detector: "s2cloudless_mask", "s2cloudless_map" or "cloud_cloudshadow_mask".
        device: where s2cloudless's trees are evaluated, "cpu" or a GPU as torch names it; the outcome is the same.

    Returns:
        float32 (H, W): 0 clear, 1 clouded; s2cloudless_map also gives values between. Its mean is the coverage.
        A blank image (every value 0) counts as clouded all over, with a warning.

    Raises:
        ValueError: if the detector is unknown, or the image is not (13, H, W).

    Source:
        Detectors and settings of the published loader (Ebel et al. 2023). Changes: images need not be square.
    """
    settings = detector_settings(detector or "None")
    if image.ndim != 3 or len(image) != N_S2:
        raise ValueError(f"an image ({N_S2}, H, W) is needed, not {image.shape}")
    # float32 as in the published loader: the detectors' thresholds see the same rounding
    clipped = np.clip(np.nan_to_num(image.astype(np.float32)), 0, REFLECTANCE_SCALE)
    if not clipped.any():
        warnings.warn("blank optical image: it counts as clouded all over", stacklevel=2)
        return np.ones(image.shape[1:], np.float32)
    if detector == "cloud_cloudshadow_mask":
        return _threshold_rules(clipped, settings["threshold"])
    probability = _probability(clipped, device)
    if detector == "s2cloudless_mask":
        return _s2cloudless().get_mask_from_prob(probability[None])[0].astype(np.float32)
    from scipy.ndimage import gaussian_filter

    probability[probability < settings["zero_below"]] = 0
    smooth: np.ndarray = gaussian_filter(probability, sigma=settings["sigma"])
    return smooth.astype(np.float32)


def _probability(clipped: np.ndarray, device: str = "cpu") -> np.ndarray:
    """s2cloudless's probability of cloud, float32 (H, W), of an image (13, H, W) within [0, 10000]."""
    forest = _forest(device)
    if forest is None:
        return slow_probability(clipped)
    from s2cloudless.utils import MODEL_BAND_IDS

    reflectance = (clipped[MODEL_BAND_IDS] / np.float32(REFLECTANCE_SCALE)).reshape(len(MODEL_BAND_IDS), -1)
    return forest.probabilities(reflectance, _threads()).reshape(clipped.shape[1:])


def slow_probability(clipped: np.ndarray) -> np.ndarray:
    """The same by s2cloudless itself, LightGBM evaluating the trees: what `_probability` must equal bit by bit."""
    reflectance = np.ascontiguousarray(np.moveaxis(clipped / np.float32(REFLECTANCE_SCALE), 0, -1))[None]  # (1,H,W,13)
    maps: np.ndarray = _s2cloudless().get_cloud_probability_maps(reflectance, num_threads=_threads())
    return maps[0]


def _threshold_rules(clipped: np.ndarray, threshold: float) -> np.ndarray:
    from data.clouds.threshold_rules import get_cloud_mask, get_shadow_mask

    clouds, shadows = get_cloud_mask(clipped, threshold, binarize=True), get_shadow_mask(clipped)
    return ((clouds > 0) | (shadows < 0)).astype(np.float32)


@lru_cache(maxsize=1)
def _s2cloudless() -> Any:
    from s2cloudless import S2PixelCloudDetector

    return S2PixelCloudDetector(**_MASK_SETTINGS)


@lru_cache(maxsize=2)
def _forest(device: str = "cpu") -> "Forest | TensorForest | None":
    """The detector's trees in a form that is evaluated faster; None where it is not to be had, with a warning."""
    booster = _s2cloudless().classifier.classifier
    try:
        trees = Forest.from_text(booster.model_to_string())
        forest, probe = trees if device == "cpu" else _on_device(trees, device), trees.probe()
        ours = forest.raw_scores(probe)
    except (ImportError, RuntimeError, ValueError) as error:  # numba says RuntimeError where it can store nothing
        warnings.warn(f"cloud detection takes the slow way, with the same outcome: {error}", stacklevel=2)
        return None
    if not np.array_equal(ours, booster.predict(probe.T, raw_score=True, num_threads=1)):
        warnings.warn("cloud detection takes the slow way: the fast one does not equal LightGBM here", stacklevel=2)
        return None
    return forest


def _on_device(trees: Forest, device: str) -> "TensorForest":
    from data.clouds.forest_tensor import TensorForest

    return TensorForest(trees, device)


def _threads() -> int:
    # One thread in a worker: workers are the parallelism there, and OpenMP hangs in a child forked after the
    # parent has used it. Elsewhere what OMP_NUM_THREADS allows, or every core.
    if multiprocessing.parent_process() is not None:
        return 1
    allowed = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if allowed.isdigit():
        return max(1, int(allowed))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

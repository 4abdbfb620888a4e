import os
import subprocess
import sys

import numpy as np
import pytest

from data.clouds import detectors
from data.clouds.compiled_trees import CompiledTrees
from data.clouds.detectors import detect_clouds, detector_settings, slow_probability
from data.clouds.threshold_rules import get_cloud_mask, get_shadow_mask
from data.constants import DETECTORS
from data.raster.geotiff import read_bands

# binary masks are compared exactly; a map passes a float32 filter, whose sums may differ in the last digits
TOLERANCE = {"s2cloudless_mask": 0, "s2cloudless_map": 1e-4, "cloud_cloudshadow_mask": 1e-4}
PATCHES = {
    "p839": "ROIs1970_fall_s2_cloudy/s2_cloudy_139/ROIs1970_fall_s2_cloudy_139_p839.tif",
    "p797": "ROIs2017_winter_s2_cloudy/s2_cloudy_112/ROIs2017_winter_s2_cloudy_112_p797.tif",
    "p30": "ROIs1868_summer_s2_cloudy/s2_cloudy_19/ROIs1868_summer_s2_cloudy_19_p30.tif",
}


@pytest.fixture(scope="module")
def made_up(golden):
    """Fields, snow, thick and thin cloud, shadow, a blank and a saturated pixel; with the reference masks."""
    with np.load(golden / "cloud_masks.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("detector", DETECTORS)
def test_masks_of_the_made_up_image_equal_the_reference(made_up, detector):
    mask = detect_clouds(made_up["image"], detector)
    assert (mask.shape, mask.dtype) == ((48, 64), np.float32)
    np.testing.assert_allclose(mask, made_up[detector], rtol=0, atol=TOLERANCE[detector])
    assert 0.05 < mask.mean() < 0.5  # the mask is not trivial


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_masks_of_real_patches_equal_the_reference(shared, patch, detector):
    with np.load(shared / "golden" / "reference" / "cloud_masks.npz") as arrays:
        want = arrays[f"{patch}_{detector}"]
    mask = detect_clouds(read_bands(shared / "data" / "SEN12MSCR" / PATCHES[patch], 13, 256), detector)
    np.testing.assert_allclose(mask, want, rtol=0, atol=TOLERANCE[detector])


def assert_fast_equals_slow(image):
    """The probability is bitwise equal, and the masks; the mask also equals that of s2cloudless itself."""
    assert detectors._compiled_trees() is not None
    clipped = np.clip(image.astype(np.float32), 0, 10000)
    fast = detectors._probability(clipped)
    assert fast.dtype == np.float32
    np.testing.assert_array_equal(fast.view(np.int32), slow_probability(clipped).view(np.int32))
    reflectance = np.moveaxis(clipped / np.float32(10000), 0, -1)[None]
    (mask,) = detectors._s2cloudless().get_cloud_masks(np.ascontiguousarray(reflectance))
    np.testing.assert_array_equal(detect_clouds(image, "s2cloudless_mask"), mask)
    return fast


def test_fast_equals_slow_on_the_made_up_image(made_up):
    probability = assert_fast_equals_slow(made_up["image"])
    assert np.percentile(probability, 20) < 0.2 < 0.8 < np.percentile(probability, 95)  # clear and cloudy


@pytest.mark.parametrize("patch", PATCHES)
def test_fast_equals_slow_on_real_patches(shared, patch):
    assert_fast_equals_slow(read_bands(shared / "data" / "SEN12MSCR" / PATCHES[patch], 13, 256))


@pytest.mark.parametrize("highest", [3000, 65535])
def test_fast_equals_slow_where_no_pixel_is_like_another(highest):
    image = np.random.default_rng(highest).integers(0, highest, (13, 61, 83), endpoint=True, dtype=np.uint16)
    image[:, 40:] = image[:, 40:41, :1]  # more copies of one pixel than the maximum size of a group
    assert_fast_equals_slow(image)


def test_fast_equals_slow_between_whole_numbers(made_up):
    """Resampled images have fractional values."""
    noise = np.random.default_rng(0).uniform(0.9, 1.1, made_up["image"].shape)
    assert_fast_equals_slow((made_up["image"] * noise).astype(np.float32))


def test_threads_change_nothing(made_up, monkeypatch):
    image = np.tile(made_up["image"], (1, 4, 4))
    masks = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        masks.append(detect_clouds(image, "s2cloudless_map"))
    np.testing.assert_array_equal(*masks)


@pytest.fixture
def fresh():
    """Compile the trees again, before and after."""
    detectors._compiled_trees.cache_clear()
    yield
    detectors._compiled_trees.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_numba_the_slow_way_gives_the_same(made_up, monkeypatch):
    want = made_up["s2cloudless_mask"]
    monkeypatch.setitem(sys.modules, "data.clouds.tree_kernels", None)  # importing it raises ImportError
    with pytest.warns(
        UserWarning, match="cloud detection uses LightGBM, slower but with the same result: .*tree_kernels"
    ):
        mask = detect_clouds(made_up["image"], "s2cloudless_mask")
    np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(detect_clouds(made_up["image"], "s2cloudless_mask"), want)  # warned once


@pytest.mark.usefixtures("fresh")
def test_a_fast_way_that_differs_in_one_digit_is_not_taken(made_up, monkeypatch):
    exact = CompiledTrees.raw_scores
    monkeypatch.setattr(CompiledTrees, "raw_scores", lambda *args: np.nextafter(exact(*args), np.inf))
    with pytest.warns(UserWarning, match="uses LightGBM: the compiled trees differ from it"):
        mask = detect_clouds(made_up["image"], "s2cloudless_mask")
    np.testing.assert_array_equal(mask, made_up["s2cloudless_mask"])


def test_threshold_rules_one_by_one(made_up):
    clipped = np.clip(made_up["image"].astype(np.float32), 0, 10000)
    np.testing.assert_array_equal(get_shadow_mask(clipped), made_up["shadow"])
    # sums over 49 pixels in another order: a few units in the last place of float64
    moist = get_cloud_mask(clipped, 0.2, use_moist_check=True)
    np.testing.assert_allclose(moist, made_up["moist_score"], rtol=0, atol=1e-12)
    binary = get_cloud_mask(clipped, 0.2, binarize=True)
    np.testing.assert_array_equal(binary, get_cloud_mask(clipped, 0.2) >= 0.2)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_blank_image_counts_as_clouded(detector):
    with pytest.warns(UserWarning, match="blank optical image"):
        mask = detect_clouds(np.zeros((13, 8, 12), np.uint16), detector)
    np.testing.assert_array_equal(mask, np.ones((8, 12), np.float32))


def test_nan_counts_as_zero(made_up):
    image = made_up["image"].astype(np.float32)
    image[:, 0, 0] = np.nan  # the reference image is 0 there
    np.testing.assert_array_equal(detect_clouds(image, DETECTORS[2]), made_up[DETECTORS[2]])


def test_the_image_is_left_alone(made_up):
    before = made_up["image"].copy()
    for detector in DETECTORS:
        detect_clouds(made_up["image"], detector)
    np.testing.assert_array_equal(made_up["image"], before)


@pytest.mark.parametrize("detector", ["s2cloudles_mask", None])
def test_unknown_detectors(detector):
    with pytest.raises(ValueError, match=f"unknown cloud detector .*{detector}.*; choose from s2cloudless_mask"):
        detect_clouds(np.ones((13, 4, 4)), detector)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"expected an image \(13, H, W\), got \(12, 4, 4\)"):
        detect_clouds(np.ones((12, 4, 4)), "s2cloudless_mask")


def test_settings_are_those_of_the_published_loader():
    assert detector_settings("s2cloudless_mask") == {
        "detector": "s2cloudless_mask",
        "threshold": 0.4,
        "average_over": 4,
        "dilation_size": 2,
        "all_bands": True,
        "clip": [0, 10000],
    }


def test_s2cloudless_is_imported_only_when_asked_for():
    heavy = "{'s2cloudless', 'lightgbm', 'numba', 'torch', 'cv2'}"
    code = f"import sys, data.clouds.mask_store; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


FORKED = """
import multiprocessing, sys
import numpy as np
from data.clouds.detectors import detect_clouds
image = np.load(sys.argv[1])["image"]
detect_clouds(image, "s2cloudless_mask")  # starts OpenMP's threads, which a forked child lacks
child = multiprocessing.get_context("fork").Process(target=detect_clouds, args=(image, "s2cloudless_mask"))
child.start()
child.join(60)
code = child.exitcode
child.kill()
sys.exit(code is None or code)
"""


def test_a_worker_forked_after_its_parent_detected_does_not_hang(golden):
    """Data loader workers are such children: with more than one thread, LightGBM hangs there."""
    command = [sys.executable, "-c", FORKED, str(golden / "cloud_masks.npz")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"}, timeout=120)

"""Pictures: names, sizes and colours; that figures appear whole, and without pyplot."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data.constants import band_index
from model.predictions import Gaussian, Mean
from util.plotting import (
    DEVIATION_MAX,
    SampleRow,
    plot_coverage,
    plot_discard,
    plot_reliability,
    plot_sample,
    plot_samples,
    plot_training,
    root_mean_square,
    standard_deviation,
    to_rgb,
)

REPORT = {
    "ENCE": 0.05,
    "coverage 90": 0.88,
    "reliability": {"RMV": [0.01, 0.02, 0.04], "RMSE": [0.012, 0.02, 0.05]},
    "coverage curve": {"nominal": [0.25, 0.5, 0.75], "inside": [0.2, 0.5, 0.7]},
}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def drawn(path, share=0.005):
    """Whether a picture shows more than a page."""
    return path.stat().st_size > 1000 and (pixels(path) < 250).any(axis=2).mean() > share


def test_pictures_of_a_sample(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 15, 20, 24, generator=generator) * 0.3
    target, mean = torch.rand(2, 1, 13, 20, 24, generator=generator) * 0.3
    prediction = Gaussian(mean[None], torch.full((1, 1, 13, 20, 24), 0.04**2))
    plot_sample(tmp_path, 7, x, target, prediction, torch.ones(3, 20, 24))
    kinds = ["err", "in_t-0", "in_t-1", "in_t-2", "mask", "pred", "target", "var"]
    assert names(tmp_path) == [f"img-7_{kind}.png" for kind in kinds]
    for kind, image in (("in_t-1", x[1, 2:]), ("pred", mean[0]), ("target", target[0])):
        shown = pixels(tmp_path / f"img-7_{kind}.png")
        assert shown.shape == (20, 24, 3)  # pixel for pixel
        np.testing.assert_allclose(shown, 255 * to_rgb(image), atol=1)
    assert all(drawn(tmp_path / f"img-7_{kind}.png", share=0.3) for kind in ("err", "var", "mask"))


def test_a_single_date_and_a_mean_alone(tmp_path):
    image = torch.full((1, 13, 8, 8), 0.2)
    plot_sample(tmp_path / "mono", 0, image, image, Mean(image[None]))
    assert names(tmp_path / "mono") == [f"img-0_{kind}.png" for kind in ("err", "in", "pred", "target")]
    plot_sample(tmp_path / "bare", 0, None, image, Mean(image[None]))
    assert names(tmp_path / "bare") == [f"img-0_{kind}.png" for kind in ("err", "pred", "target")]


def test_true_colour_takes_red_green_blue_in_this_order():
    image = np.zeros((13, 2, 2), np.float32)
    image[band_index("B04")] = 0.5
    assert to_rgb(image)[0, 0].tolist() == [1, 0, 0]
    radar = np.concatenate([np.ones((2, 2, 2), np.float32), image])
    assert to_rgb(radar)[0, 0].tolist() == [1, 0, 0]
    image[band_index("B02")] = np.nan  # a hole is black, not an error
    assert to_rgb(image)[0, 0].tolist() == [1, 0, 0]


def test_error_and_deviation_share_a_unit_and_a_scale(tmp_path):
    # A calibrated constant: the squared error equals the variance, so both pictures show the same colour.
    target = torch.full((13, 16, 16), 0.3)
    prediction = Gaussian(target[None, None] + 0.06, torch.full((1, 1, 13, 16, 16), 0.06**2))
    np.testing.assert_allclose(root_mean_square(prediction.mean - target), 0.06, rtol=1e-5)
    np.testing.assert_allclose(standard_deviation(prediction.total), 0.06, rtol=1e-5)
    plot_sample(tmp_path, 1, None, target, prediction)
    error, deviation = (pixels(tmp_path / f"img-1_{kind}.png") for kind in ("err", "var"))
    middle = error.shape[0] // 2, error.shape[1] // 3
    np.testing.assert_array_equal(error[middle], deviation[deviation.shape[0] // 2, deviation.shape[1] // 3])
    from matplotlib import colormaps

    expected = 255 * np.array(colormaps["viridis"](0.06 / DEVIATION_MAX)[:3])
    np.testing.assert_allclose(error[middle], expected, atol=3)  # one of 256 colours


def test_contact_sheet(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for n_inputs, variance in ((3, rng.random((13, 16, 16)) * 1e-3), (2, None)):
        inputs = rng.random((n_inputs, 13, 16, 16)) * 0.3
        target, prediction = rng.random((2, 13, 16, 16)) * 0.3
        dates, coverage = ["2018-06-21", "2018-07-01"], [0.4, 1.0]
        rows.append(SampleRow(inputs, target, prediction, variance, dates, coverage, "ROIs1868/73, patch 171"))
    assert drawn(plot_samples(rows, tmp_path / "samples.png", "Two samples"), share=0.3)
    with pytest.raises(ValueError, match="no sample"):
        plot_samples([], tmp_path / "none.png")
    assert names(tmp_path) == ["samples.png"]


def test_discard_curve_under_its_published_names(tmp_path):
    paths = plot_discard([float("nan"), 0.001, 0.002, 0.004], tmp_path)
    assert names(tmp_path) == ["plot_test_SE_discard.pdf", "plot_test_SE_discard.png"]
    assert drawn(paths[0])
    assert paths[1].read_bytes().startswith(b"%PDF")
    first = paths[1].read_bytes()
    plot_discard([float("nan"), 0.001, 0.002, 0.004], tmp_path)
    assert paths[1].read_bytes() == first  # no date inside: the same figure is the same file


def test_curves(tmp_path):
    nothing = {**REPORT, "reliability": {"RMV": [float("nan")] * 3, "RMSE": [float("nan")] * 3}}
    assert drawn(plot_reliability({"uncrtaints": REPORT, "other": REPORT}, tmp_path / "reliability.png"))
    assert drawn(plot_reliability({"empty": nothing}, tmp_path / "empty.png"))
    assert drawn(plot_coverage({"uncrtaints": REPORT}, tmp_path / "coverage.png"))
    log = {"1": {"train_loss": 1.0}, "2": {"train_loss": 0.5, "val_loss": 0.6, "val PSNR": 25.0}}
    assert drawn(plot_training(log, tmp_path / "training.png"))


def test_a_picture_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "plot_test_SE_discard.png").write_text("what stood here")
    with pytest.raises(ValueError, match="could not convert"):
        plot_discard(["not a number"], tmp_path)
    assert names(tmp_path) == ["plot_test_SE_discard.png"]
    assert (tmp_path / "plot_test_SE_discard.png").read_text() == "what stood here"


def test_neither_import_nor_drawing_needs_pyplot_or_a_display():
    # TRAPS 13: published figures go through pyplot and a global writer
    code = """
import sys, tempfile
import util.plotting
assert "matplotlib" not in sys.modules
util.plotting.plot_discard([0.1, 0.2], tempfile.mkdtemp())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "PYTHONPATH": ".", "MPLBACKEND": "TkAgg"})

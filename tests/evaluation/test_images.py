"""Pictures: names, sizes and colours, the maps of a gate, and no need of pyplot."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data.raster.rgb import to_rgb
from evaluation import images as plotting
from evaluation.images import (
    DEVIATION_MAX,
    plot_gate,
    plot_sample,
    plot_samples,
    root_mean_square,
    standard_deviation,
)
from evaluation.mixture import PredictedImages
from evaluation.sample_records import SampleImages, SampleRecord
from model.predictions import Gaussian, Mean


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
    samples = []
    for n_inputs, variance in ((3, rng.random((13, 16, 16)) * 1e-3), (2, None)):
        inputs = rng.random((n_inputs, 13, 16, 16)) * 0.3
        target, mean = rng.random((2, 13, 16, 16)) * 0.3
        dates, coverage = ("2018-06-21", "2018-07-01"), (0.4, 1.0)
        record = SampleRecord(0, 0, "ROIs1868/73", "171", dates, "", coverage, {})
        samples.append(SampleImages(record, target, {"net": PredictedImages(mean, total=variance)}, inputs))
    assert drawn(plot_samples(samples, tmp_path / "samples.png", "Two samples"), share=0.3)
    with pytest.raises(ValueError, match="no sample"):
        plot_samples([], tmp_path / "none.png")
    assert names(tmp_path) == ["samples.png"]


def gate_sample():
    """The first expert is nearer on the left half, by 0.02; the gate is wrong in the lowest quarter only."""
    target = np.full((13, 16, 24), 0.2, np.float32)
    first, second = target + 0.03, target - 0.03
    first[:, :, :12], second[:, :, 12:] = 0.21, 0.19
    weight = np.zeros((1, 16, 24), np.float32)
    weight[:, :12, :12] = 1
    weight[:, 12:, 12:] = 1
    return target, {"one": first, "other": second}, weight * first + (1 - weight) * second, weight


def test_the_gate_beside_the_errors(tmp_path, monkeypatch):
    target, experts, fused, weight = gate_sample()
    figures = []
    save = plotting.save_figure
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    assert drawn(plot_gate(tmp_path / "gate.png", target, experts, fused, torch.tensor(weight), "A sample"), share=0.3)
    panels = {axes.get_title(): axes.images[0] for axes in figures[0].axes if axes.get_title()}
    assert list(panels) == [
        "one: mean error 0.0200",
        "other: mean error 0.0200",
        "fusion: mean error 0.0150",  # 0.01 where the gate is right, 0.03 in the quarter where it is wrong
        "target",
        "nearer: one at 50 % of pixels",
        "gate leans to the nearer one at 75 %",
    ]
    first, _, fusion, _, nearer, gate = panels.values()
    assert (first.get_array()[0, 0], first.get_array()[0, 20]) == pytest.approx((0.01, 0.03), rel=1e-5)
    assert (nearer.get_array()[0, 0], nearer.get_array()[0, 20]) == pytest.approx((0.02, -0.02), rel=1e-4)
    np.testing.assert_array_equal(gate.get_array(), weight[0])
    assert first.get_clim() == fusion.get_clim() == pytest.approx((0, 0.03))
    assert nearer.get_clim() == pytest.approx((-0.02, 0.02))
    assert gate.get_clim() == (0, 1)
    assert nearer.get_cmap().name == gate.get_cmap().name  # so that the two can be compared by eye
    labels = " ".join(axes.get_xlabel() + axes.get_ylabel() for axes in figures[0].axes)
    assert labels.count("reflectance") == 2


def test_the_gate_of_experts_that_agree_or_are_three(tmp_path):
    target, experts, fused, weight = gate_sample()
    twins = {"a": target, "b": target}
    assert drawn(plot_gate(tmp_path / "twins.png", target, twins, target, weight), share=0.2)
    with pytest.raises(ValueError, match="expected two experts, got 3: one, other, third"):
        plot_gate(tmp_path / "three.png", target, {**experts, "third": fused}, fused, weight)


@pytest.mark.parametrize(("value", "end"), [(0.0123, 0.015), (0.05, 0.05), (0.0051, 0.0055), (0.97, 1.0), (0.0, 0.1)])
def test_the_end_of_a_scale_is_a_round_number(value, end):
    assert plotting._round_end(np.full((4, 4), value)) == pytest.approx(end)


def test_neither_import_nor_drawing_needs_pyplot_or_a_display():
    # known issue 13: published figures go through pyplot and a global writer
    code = """
import sys, tempfile
import evaluation.charts, evaluation.images
assert "matplotlib" not in sys.modules
evaluation.charts.plot_discard([0.1, 0.2], tempfile.mkdtemp())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "PYTHONPATH": ".", "MPLBACKEND": "TkAgg"})


@pytest.mark.parametrize("name", ["$\\frac$", "a $x$ b", "caf\udce9"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    figure = plotting.new_figure(3, 2)
    axes = figure.add_subplot(title=name, xlabel=name)
    axes.set_xticks([0, 1], ["zero", "one"])
    axes.plot([1, 10], label=name)
    axes.set_yscale("log")
    axes.legend()
    assert drawn(plotting.save_figure(figure, tmp_path / "names.png"))
    assert not axes.title.get_parse_math() or "$" not in name
    assert "mathdefault" in axes.yaxis.get_major_ticks()[1].label1.get_text()  # powers of ten stay formulas

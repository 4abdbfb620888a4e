"""Metrics per image against published values and an independent SSIM."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.image_metrics import average_metrics, batch_metrics, image_metrics
from tests.support.random_images import random_images

GOLDEN_TOLERANCE = 1e-5  # published values were computed in float32


def check_published(arrays, expected):
    for index, reference in enumerate(expected):
        metrics = image_metrics(*(arrays[name][index] for name in ("target", "pred", "var")))
        assert metrics.keys() == reference.keys()
        for name, value in reference.items():
            assert metrics[name] == pytest.approx(value, abs=GOLDEN_TOLERANCE, rel=GOLDEN_TOLERANCE), name


def test_published_metrics(golden):
    # The variances there are 48 x 48 beside images of 32 x 32: only their mean enters.
    check_published(np.load(golden / "metrics_in.npz"), json.loads((golden / "metrics.json").read_text()))


def test_published_metrics_and_average_of_all_images(shared):
    reference = json.loads((shared / "golden/reference/metrics.json").read_text())
    arrays = np.load(shared / "golden/reference/metrics_in.npz")
    check_published(arrays, reference["per_image"])
    images = zip(arrays["target"], arrays["pred"], arrays["var"], strict=True)
    means, left_out = average_metrics([image_metrics(*image) for image in images])
    assert means == pytest.approx(reference["average"], rel=GOLDEN_TOLERANCE, abs=GOLDEN_TOLERANCE)
    assert left_out == {}


@pytest.mark.parametrize("size", [(24, 31), (5, 6), (1, 3)])
def test_ssim_equals_the_full_window(size):
    generator = torch.Generator().manual_seed(4)
    x, y = torch.rand(2, 13, *size, generator=generator, dtype=torch.float64)
    offset = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window = (window / window.sum()).reshape(1, 1, 11, 11)

    def blur(image):
        return F.conv2d(image[:, None], window, padding=5)[:, 0]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()
    assert image_metrics(x, y)["SSIM"] == pytest.approx(expected.item(), abs=1e-12)


def test_closed_forms():
    target, prediction = torch.full((13, 8, 8), 0.4), torch.full((13, 8, 8), 0.3)
    metrics = image_metrics(target, prediction, torch.full((13, 8, 8), 0.02))
    # PSNR of an error of 0.1 is 20 dB; two grey spectra have no angle (float32: acos near 1 is good to 0.02 degrees)
    assert metrics["RMSE"] == pytest.approx(0.1, abs=1e-6)
    assert metrics["PSNR"] == pytest.approx(20, abs=1e-4)
    assert metrics["SAM"] == pytest.approx(0, abs=0.05)
    assert metrics["error"] == pytest.approx(0.1, abs=1e-6)
    assert metrics["mean var"] == pytest.approx(0.02, abs=1e-8)
    orthogonal = torch.zeros(2, 13, 4, 4)
    orthogonal[0, 0], orthogonal[1, 1] = 1, 1
    assert image_metrics(*orthogonal)["SAM"] == pytest.approx(90, abs=1e-4)


def test_batch_equals_single_images():
    # known issue 11: a batch of one is nothing special
    target, prediction = random_images()
    for index, metrics in enumerate(batch_metrics(target, prediction, prediction)):
        series = (target[index], prediction[index], prediction[index])
        assert metrics == pytest.approx(image_metrics(*series), rel=1e-5)
        assert metrics == pytest.approx(image_metrics(*(image[0].numpy() for image in series)), rel=1e-5)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        image_metrics(torch.zeros(13, 8, 8), torch.zeros(13, 8, 9))

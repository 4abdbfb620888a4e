"""Trivial reconstructions and the table that compares methods."""

import json
import math

import pytest
import torch

from evaluation.baselines import (
    EVERY_CLOUDED,
    OVERALL,
    ComparisonTable,
    cloud_cover_bins,
    comparison_markdown,
    trivial_predictions,
)
from evaluation.image_metrics import batch_metrics


def test_trivial_predictions():
    values = torch.tensor([[0.2, 0.4, 0.9], [0.1, 0.5, 0.6]])  # (B,T)
    optical = values[:, :, None, None, None].expand(2, 3, 13, 2, 2)
    masks = torch.zeros(2, 3, 2, 2)
    masks[0, 2] = 1  # the third date is clouded everywhere
    masks[0, 1, 0, 0] = 1  # and the second at one pixel
    masks[0, :, 1, 1] = 1  # here no date is clear
    coverage = torch.tensor([[0.5, 0.5, 1.0], [0.3, 0.2, 0.2]])
    images = trivial_predictions(optical, masks, coverage)
    assert {name: tuple(image.shape) for name, image in images.items()} == dict.fromkeys(
        ("least_cloudy", "mean", "clear_mean"), (2, 1, 13, 2, 2)
    )
    assert images["least_cloudy"][:, 0, 0, 0, 0].tolist() == pytest.approx([0.2, 0.5])  # the earliest among equals
    assert images["mean"][:, 0, 0, 0, 0].tolist() == pytest.approx([0.5, 0.4])
    clear_mean = images["clear_mean"][0, 0, 7]
    assert clear_mean[0, 1] == pytest.approx(0.3)  # two clear dates
    assert clear_mean[0, 0] == pytest.approx(0.2)  # one
    assert clear_mean[1, 1] == pytest.approx(0.5)  # none: the mean of all
    assert images["clear_mean"][1, 0, 3, 0, 0] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("coverage", "bin_name", "every"),
    [
        ((0.0, 0.0, 0.0), "inputs 0-10 % clouded", False),
        ((0.0, 0.1, 0.2), "inputs 10-30 % clouded", False),  # an edge belongs to the bin above
        ((0.3, 0.3, 0.3), "inputs 30-60 % clouded", True),
        ((0.29, 0.9, 0.9), "inputs 60-100 % clouded", False),
        ((1.0, 1.0), "inputs 60-100 % clouded", True),
    ],
)
def test_bins_of_cloud_cover(coverage, bin_name, every):
    assert cloud_cover_bins(coverage) == (OVERALL, bin_name) + (EVERY_CLOUDED,) * every


def test_comparison_table():
    target = torch.full((2, 1, 13, 4, 4), 0.4)
    target[:, :, 0] = 0.2
    coverage = torch.tensor([[0.0, 0.1], [0.5, 0.8]])
    table = ComparisonTable("good")
    for name, errors in {"good": (0.1, 0.01), "perfect on one": (0.0, 0.1)}.items():
        shift = torch.tensor(errors).reshape(2, 1, 1, 1, 1)
        table.add(name, batch_metrics(target, target + shift), coverage)
    table.add("no coverage known", batch_metrics(target, target + 0.2))
    report = table.compute()
    assert json.loads(json.dumps(report)) == report
    assert list(report) == [OVERALL, "inputs 0-10 % clouded", "inputs 60-100 % clouded", EVERY_CLOUDED]
    assert list(report[OVERALL]) == ["good", "perfect on one", "no coverage known"]
    assert report[OVERALL]["good"]["images"] == 2
    assert report[OVERALL]["good"]["PSNR"] == pytest.approx(30, abs=1e-3)  # 20 and 40 dB
    assert report[EVERY_CLOUDED]["good"]["PSNR"] == pytest.approx(40, abs=1e-3)
    # known issue 15: the perfect image has infinite PSNR, which is said beside the mean of the others
    assert report[OVERALL]["perfect on one"]["PSNR"] == pytest.approx(20, abs=1e-3)
    assert report[OVERALL]["perfect on one"]["left out"]["PSNR"] == {"nan": 0, "inf": 1}
    assert report["inputs 0-10 % clouded"]["perfect on one"]["PSNR"] == math.inf
    text = comparison_markdown(report)
    assert "| good              | 0.0550 " in text
    assert "20.00 (1 inf)" in text
    assert f"{EVERY_CLOUDED} (1 images)" in text
    section = text.split(EVERY_CLOUDED)[1]
    assert "40.00*" in section
    assert "20.00*" not in section

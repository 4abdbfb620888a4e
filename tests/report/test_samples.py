"""Inputs and radar of exported samples."""

import numpy as np
import pytest

from data.raster.geotiff import read_bands
from evaluation.image_metrics import image_metrics
from report.samples import read_series


def test_inputs_that_are_not_there_are_told(tree):
    info = {"input_paths": ["ROIs1868/73/S2/14/nowhere.tif"], "sar_paths": []}
    assert read_series(info, "")[2] == "Name the data set by --root to see the inputs."
    assert read_series({}, str(tree))[2] == "The exports do not name the files of the inputs."
    optical, radar, reason = read_series(info, str(tree))
    assert optical is None
    assert radar is None
    assert reason.startswith("The inputs cannot be read: ")


def test_series_of_exports_are_read_in_reflectance_and_decibels(tree):
    optical = sorted(path.relative_to(tree).as_posix() for path in tree.glob("ROIs*/*/S2/*/*.tif"))[:2]
    radar = sorted(path.relative_to(tree).as_posix() for path in tree.glob("ROIs*/*/S1/*/*.tif"))[:2]
    images, backscatter, reason = read_series({"input_paths": optical, "sar_paths": radar}, str(tree))
    assert reason == ""
    raw = read_bands(tree / optical[1])
    assert images[1] == pytest.approx(np.clip(raw, 0, 10000) / 10000, abs=1e-6)
    assert backscatter[0] == pytest.approx(np.clip(read_bands(tree / radar[0])[0], -25, 0))
    assert image_metrics(images[1], images[1])["RMSE"] == 0

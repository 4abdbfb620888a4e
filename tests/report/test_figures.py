"""What a report is made of: records and the choice of samples, sums by band, tables, words, what exports tell."""

import math

import numpy as np
import pytest
import torch

from common.errors import DataError
from data.constants import S2_BANDS
from evaluation.bands import BandMeter
from evaluation.metrics import image_metrics
from evaluation.sample_records import choose, iso_date, read_records, record_of, write_records
from report import interpretation as words
from report import tables
from report.samples import output_of, read_series


def record(number, rmse):
    return record_of(number, {"index": number + 7, "roi": "ROIs1868/73"}, {"RMSE": rmse, "loss": 1.0})


def test_best_median_and_worst_by_rmse():
    records = [record(number, rmse) for number, rmse in enumerate((0.3, 0.1, 0.2, math.nan, 0.1))]
    assert [(label, found.id) for label, found in choose(records)] == [
        ("best of 5", 1),  # of equal ones the first
        ("median of 5", 2),
        ("worst of 5", 3),  # no figure at all is the worst
    ]
    assert [(label, found.id) for label, found in choose(records[:2])] == [("best of 2", 1), ("worst of 2", 0)]
    assert [label for label, _ in choose(records[:1])] == ["the only sample"]
    assert choose([]) == []


def test_records_survive_the_file(tmp_path):
    info = {"index": 3, "roi": "ROIs1158/106", "patch": "9", "input_days": [0, 1371], "target_days": 1461}
    row = {"RMSE": 0.01, "PSNR": math.inf, "SAM": math.nan, "mean var": 1.0}
    records = [record(5, 0.2), record_of(2, info | {"coverage": [0.5, 1.0]}, row)]
    write_records(tmp_path / "test_samples.json", records)
    first, second = read_records(tmp_path / "test_samples.json")
    assert (first.id, first.index, second.id, second.index) == (2, 3, 5, 12)  # in the order of their numbers
    assert first.dates == ("2014-04-03", "2018-01-03")
    assert first.place == ("ROIs1158/106", "9", "2018-04-03")
    assert first.coverage == (0.5, 1.0)
    assert math.isinf(first.metrics["PSNR"])
    assert math.isnan(first.metrics["SAM"])
    assert set(first.metrics) == {"RMSE", "PSNR", "SAM"}
    assert iso_date(1) == "2014-04-04"
    (tmp_path / "bad.json").write_text('{"samples": [{"id": 1}]}')
    with pytest.raises(DataError, match="is not a list of tested samples .*test the run again"):
        read_records(tmp_path / "bad.json")


def test_bands_equal_numpy_over_batches_and_processes():
    rng = np.random.default_rng(0)
    target, mean = rng.random((2, 5, 1, 13, 8, 8), np.float32)
    variance = rng.random(mean.shape, np.float32)
    target[1, 0, 4, 2, 3] = np.nan  # counts nowhere
    meters = [BandMeter(), BandMeter()]
    for meter, part in zip(meters, (slice(0, 3), slice(3, 5)), strict=True):
        meter.add(*(torch.from_numpy(image[part]) for image in (target, mean, variance)))
    meters[0].join([meter.parts() for meter in meters])
    found = meters[0].summary()
    assert tuple(found) == S2_BANDS
    error = np.moveaxis(mean.astype(np.float64) - target, 2, 0).reshape(13, -1)
    known = np.isfinite(error)
    spread = np.moveaxis(variance.astype(np.float64), 2, 0).reshape(13, -1)
    for band, (name, figures) in enumerate(found.items()):
        kept = error[band][known[band]]
        expected = {
            "RMSE": np.sqrt(np.mean(kept**2)),
            "MAE": np.abs(kept).mean(),
            "bias": kept.mean(),
            "RMV": np.sqrt(spread[band][known[band]].mean()),
        }
        assert figures == pytest.approx(expected, rel=1e-5, abs=1e-8), name  # float32 sums of 64 pixels; biases cancel
    alone = BandMeter()
    alone.add(torch.zeros(1, 1, 13, 4, 4), torch.ones(1, 1, 13, 4, 4))
    assert alone.summary()["B01"] == {"RMSE": 1.0, "MAE": 1.0, "bias": 1.0}
    with pytest.raises(ValueError, match="expected 13 bands"):
        alone.add(torch.zeros(1, 1, 3, 4, 4), torch.zeros(1, 1, 3, 4, 4))


def test_the_best_of_a_column_is_marked_whichever_way_is_better():
    rows = {
        "a": {"RMSE": 0.1, "PSNR": 20.0, "coverage 90": 0.80, "sharpness": 0.1, "NLL": math.nan},
        "b": {"RMSE": 0.2, "PSNR": 21.0, "coverage 90": 0.95, "sharpness": 0.2, "NLL": -1.0},
        "c": {"RMSE": 0.10001, "PSNR": 19.0, "coverage 90": 0.99, "sharpness": 0.3, "NLL": -2.0},
    }
    best = {name: [cell.best for cell in cells] for name, cells in tables.ranked(rows).items()}
    assert best["a"] == [True, False, False, False, False]
    assert best["b"] == [False, True, True, False, False]
    assert best["c"] == [True, False, False, False, True]  # 0.1000 reads like that of a; there is no best sharpness
    assert tables.ranked({"a": {"RMSE": 0.1}})["a"] == (tables.Cell("0.1000"),)  # nothing to be better than
    assert tables.number("coverage 90", 0.8812) == "88.1\N{NO-BREAK SPACE}%"
    assert tables.number("NLL", -1.5) == "\N{MINUS SIGN}1.500"
    assert tables.number("PSNR", math.inf) == "infinite"
    perfect = {"a": {"PSNR": 50.0}, "b": {"PSNR": math.inf}, "c": {"PSNR": math.nan}}
    assert [cells[0].best for cells in tables.ranked(perfect).values()] == [False, True, False]


def test_runs_beside_each_other_with_differences_to_the_first():
    bands = {band: {"RMSE": 0.03, "MAE": 0.02, "bias": 0.0} for band in S2_BANDS}
    runs = {
        "old": {"RMSE": 0.03, "PSNR": 30.0, "coverage 90": 0.7, "bands": bands},
        "new": {"RMSE": 0.02, "PSNR": 33.5, "coverage 90": 0.92, "bands": {**bands, "B08": {"RMSE": 0.02}}},
    }
    errors, calibration = tables.of_runs(runs)
    assert [column.name for column in errors.columns] == ["RMSE", "PSNR"]
    first, second = errors.rows
    assert first.note == "the reference"
    assert [cell.note for cell in first.cells] == ["", ""]
    assert [(cell.text, cell.best, cell.note) for cell in second.cells] == [
        ("0.0200", True, "\N{MINUS SIGN}0.0100"),
        ("33.50", True, "+3.50"),
    ]
    assert calibration.rows[1].cells[0].note == "+22.0 points"
    by_band = tables.by_band(runs)
    row = next(row for row in by_band.rows if row.name == "B08")
    assert [(cell.text, cell.best) for cell in row.cells] == [("0.0300", False), ("0.0200", True)]


def test_pixels_pool_over_strata_and_over_bands():
    strata = {
        "clouded at no date": {"elements": 100, "RMSE": 0.01, "MAE": 0.01},
        "clouded at all dates": {"elements": 300, "RMSE": 0.03, "MAE": 0.02},
    }
    (row, clear, clouded) = tables.by_stratum({"run": {"strata": strata}}).rows
    pooled = math.sqrt((0.01**2 + 3 * 0.03**2) / 4)
    assert row.cells[0].text == f"{pooled:.4f}"
    assert row.cells[1].text == "0.0175"
    assert (clear.note, clouded.note) == ("25 % of pixels", "75 % of pixels")
    assert tables.by_stratum({"run": {"strata": {}}}) is None
    assert tables.by_band({"run": {}}) is None


@pytest.mark.parametrize(
    ("inside", "verdict"),
    [(0.8, "over-confident"), (0.889, "about right"), (0.915, "about right"), (0.97, "too cautious")],
)
def test_coverage_in_words(inside, verdict):
    metrics = {"ENCE": 0.05, "sharpness": 0.02, "coverage 50": 0.5, "coverage 90": inside, "coverage 95": 0.95}
    size, coverage = words.calibration(metrics)  # without NLL and AUSE there is nothing to say of them
    assert coverage.verdict == verdict
    assert f"holds {100 * inside:.1f} (" in coverage.text
    assert size.verdict == "yes, nearly"
    assert words.calibration({"RMSE": 0.1}) == []


def test_exports_tell_the_kinds_of_variance_apart():
    shape = (13, 4, 4)
    mean = np.full(shape, 0.2, np.float32)
    nig = {"gamma": 4.0, "alpha": 3.0, "beta": 0.02}
    fields = {"pred": mean, **{name: np.full(shape, value, np.float32) for name, value in nig.items()}}
    output = output_of(fields)
    assert output.aleatoric == pytest.approx(0.01)  # beta / (alpha - 1)
    assert output.epistemic == pytest.approx(0.0025)  # that / gamma
    assert output.total == pytest.approx(0.0125)
    gaussian = output_of({"pred": mean, "var": np.full(shape, 0.04, np.float32)})
    assert gaussian.epistemic is None
    assert gaussian.total == pytest.approx(0.04)
    assert output_of({"pred": mean}).total is None


def test_inputs_that_are_not_there_are_told(tree):
    info = {"input_paths": ["ROIs1868/73/S2/14/nowhere.tif"], "sar_paths": []}
    assert read_series(info, "")[2] == "Name the data set by --root to see the inputs."
    assert read_series({}, str(tree))[2] == "The exports do not tell which files the inputs are."
    optical, radar, reason = read_series(info, str(tree))
    assert optical is None
    assert radar is None
    assert reason.startswith("The inputs cannot be read: ")


def test_series_of_exports_are_read_in_reflectance_and_decibels(tree):
    from data.raster.geotiff import read_bands

    optical = sorted(path.relative_to(tree).as_posix() for path in tree.glob("ROIs*/*/S2/*/*.tif"))[:2]
    radar = sorted(path.relative_to(tree).as_posix() for path in tree.glob("ROIs*/*/S1/*/*.tif"))[:2]
    images, backscatter, reason = read_series({"input_paths": optical, "sar_paths": radar}, str(tree))
    assert reason == ""
    raw = read_bands(tree / optical[1])
    assert images[1] == pytest.approx(np.clip(raw, 0, 10000) / 10000, abs=1e-6)
    assert backscatter[0] == pytest.approx(np.clip(read_bands(tree / radar[0])[0], -25, 0))
    assert image_metrics(images[1], images[1])["RMSE"] == 0

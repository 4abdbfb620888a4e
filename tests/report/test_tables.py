"""Tables: formats, the best of a column, runs and their differences, pooled pixels."""

import math

from data.constants import S2_BANDS
from report import tables


def test_the_best_of_a_column_is_marked_whichever_way_is_better():
    rows = {
        "a": {"RMSE": 0.1, "PSNR": 20.0, "coverage 90": 0.80, "sharpness": 0.1, "NLL": math.nan},
        "b": {"RMSE": 0.2, "PSNR": 21.0, "coverage 90": 0.95, "sharpness": 0.2, "NLL": -1.0},
        "c": {"RMSE": 0.10001, "PSNR": 19.0, "coverage 90": 0.99, "sharpness": 0.3, "NLL": -2.0},
    }
    best = {name: [cell.best for cell in cells] for name, cells in tables.ranked(rows).items()}
    assert best["a"] == [True, False, False, False, False]
    assert best["b"] == [False, True, True, False, False]
    assert best["c"] == [True, False, False, False, True]  # 0.1000 looks like that of a; there is no best sharpness
    assert tables.ranked({"a": {"RMSE": 0.1}})["a"] == (tables.Cell("0.1000"),)  # nothing to compare with
    assert tables.format_figure("coverage 90", 0.8812) == "88.1\N{NO-BREAK SPACE}%"
    assert tables.format_figure("NLL", -1.5) == "\N{MINUS SIGN}1.500"
    assert tables.format_figure("PSNR", math.inf) == "infinite"
    perfect = {"a": {"PSNR": 50.0}, "b": {"PSNR": math.inf}, "c": {"PSNR": math.nan}}
    assert [cells[0].best for cells in tables.ranked(perfect).values()] == [False, True, False]


def test_runs_beside_each_other_with_differences_to_the_first():
    bands = {band: {"RMSE": 0.03, "MAE": 0.02, "bias": 0.0} for band in S2_BANDS}
    runs = {
        "old": {"RMSE": 0.03, "PSNR": 30.0, "coverage 90": 0.7, "bands": bands},
        "new": {"RMSE": 0.02, "PSNR": 33.5, "coverage 90": 0.92, "bands": {**bands, "B08": {"RMSE": 0.02}}},
    }
    errors, calibration = tables.runs_tables(runs)
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

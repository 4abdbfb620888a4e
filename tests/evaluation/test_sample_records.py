"""Records of samples: the choice of those to show, and their file."""

import math
from datetime import date

import pytest

from common.errors import DataError
from data.batch import sample_info
from data.dataLoader import SEN12MSCRTS
from evaluation.sample_records import choose_samples, iso_date, read_records, sample_record, write_records
from tests.support.fake_trees import optical_date


def record(number, rmse):
    return sample_record(number, {"index": number + 7, "roi": "ROIs1868/73"}, {"RMSE": rmse, "loss": 1.0})


def test_best_median_and_worst_by_rmse():
    records = [record(number, rmse) for number, rmse in enumerate((0.3, 0.1, 0.2, math.nan, 0.1))]
    assert [(label, chosen.id) for label, chosen in choose_samples(records)] == [
        ("best of 5", 1),  # the first of equal ones
        ("median of 5", 2),
        ("worst of 5", 3),  # a missing figure is the worst
    ]
    assert [(label, chosen.id) for label, chosen in choose_samples(records[:2])] == [
        ("best of 2", 1),
        ("worst of 2", 0),
    ]
    assert [label for label, _ in choose_samples(records[:1])] == ["the only sample"]
    assert choose_samples([]) == []


def test_records_survive_the_file(tmp_path):
    info = {"index": 3, "roi": "ROIs1158/106", "patch": "9", "input_days": [0, 1371], "target_days": 1461}
    row = {"RMSE": 0.01, "PSNR": math.inf, "SAM": math.nan, "mean var": 1.0}
    records = [record(5, 0.2), sample_record(2, info | {"coverage": [0.5, 1.0]}, row)]
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
    with pytest.raises(DataError, match=r"bad.json: samples\[0\] must contain .*; test the run again"):
        read_records(tmp_path / "bad.json")


def test_records_keep_the_calendar_whatever_the_reference_date(tree):
    sample = SEN12MSCRTS(tree, "test", ref_date=date(2017, 1, 1))[0]
    info = sample_info(sample, 0)
    assert info == sample_info(SEN12MSCRTS(tree, "test")[0], 0)
    record = sample_record(0, info.to_json(), {})
    assert record.target_date == optical_date(sample["target"]["idx"][0]).isoformat()
    assert record.dates == tuple(optical_date(day).isoformat() for day in sample["input"]["idx"])

"""What a run requires of a scene, read from its conf.json."""

from datetime import date

import pytest

from common.errors import DataError
from scenes.prediction.predict import Job
from scenes.prediction.tiles import TilePlan
from scenes.requirements import read_requirements
from tests.support.scene_cases import memory_series, write_run


def test_dates_count_from_the_reference_date_of_the_training(tmp_path):
    requirements = read_requirements(write_run(tmp_path / "run", ref_date="2017-01-01"))[0]
    assert requirements.reference_day == (date(2017, 1, 1) - date(2014, 4, 3)).days
    series = memory_series(20, 20)
    job = Job(series, TilePlan(20, 20, 16, 0), "", "", reference_day=requirements.reference_day)
    assert job.dates == tuple(day - 1004 for day in series.days)
    assert read_requirements(write_run(tmp_path / "default"))[0].reference_day == 0


def test_a_stored_reference_date_must_be_one(tmp_path):
    with pytest.raises(DataError, match=r"conf\.json: .*ref_date"):
        read_requirements(write_run(tmp_path / "run", ref_date="yesterday"))

"""Numbers on the command line."""

import argparse

import pytest

from common.parallel import map_in_processes, worker_count
from common.ranges import LARGEST_INT, Range, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "must be above 0, got 0.0"),
        (float("nan"), "must be above 0, got nan"),
        (float("inf"), "must be at most 1, got inf"),
        (10**400, "must be at most 1, got 1000000000"),
        (-(10**400), "must be above 0, got -100000000"),
        (0.5, ""),
        (1, ""),
    ],
)
def test_the_violated_bound_is_named(value, text):
    violation = Range(0, 1, open=True).violation(value)
    assert violation.startswith(text)
    assert bool(violation) == bool(text)
    assert len(violation) < 80


@pytest.mark.parametrize("text", ["-1", str(LARGEST_INT + 1), "9" * 5000, "1.5", "nan", "x", "", "\N{SUPERSCRIPT TWO}"])
def test_whole_numbers_out_of_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be at|expected a whole number"):
        number(int, 0)(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e31", "-0.1", "x", ""])
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be at|expected a number"):
        number(float, 0)(text)


def test_workers_are_counted_alike_by_every_command():
    assert [worker_count(text) for text in ("auto", "0", "1", "1024")] == ["auto", 0, 1, 1024]
    for text in ("-1", "1025", "9" * 5000, "1.5", "nan", "", "\N{SUPERSCRIPT TWO}"):
        with pytest.raises(argparse.ArgumentTypeError, match="auto or a number of workers up to 1024"):
            worker_count(text)


def test_no_more_workers_start_than_there_are_items(monkeypatch):
    counts = []
    monkeypatch.setattr("common.parallel.ProcessPoolExecutor", lambda n, *_, **__: counts.append(n) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(abs, [-1, -2, -3], 999))
    assert counts == [3]
    assert list(map_in_processes(abs, [-1], 999)) == [1]
    assert list(map_in_processes(abs, [], "auto")) == []

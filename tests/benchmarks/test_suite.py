"""The page of the speed benchmarks: figures, ranges and goals."""

import json
import math

import pytest

from benchmarks import suite
from benchmarks.suite import BENCHMARKS, Row

SPREAD = {"median": 17.79, "least": 16.98, "most": 1234.5}


@pytest.mark.parametrize(
    ("smaller", "goal", "reached"),
    [(False, 4.0, True), (False, 20.0, False), (True, 20.0, True), (True, 4.0, False), (False, math.nan, None)],
)
def test_a_goal_is_reached_or_not(smaller, goal, reached):
    assert Row("what", **SPREAD, goal=goal, smaller=smaller).reached is reached


def test_the_cells_of_a_row():
    assert Row("a", **SPREAD, goal=4.0).cells() == ["a", "17.8 times", "17.0 to 1,234", ">= 4.00", "yes"]
    assert Row("a", **SPREAD, goal=0.5, smaller=True).cells()[3:] == ["<= 0.50", "**no**"]
    assert Row("a", 2.0, 2.0, 2.0, unit="s").cells() == ["a", "2.00 s", "", "", ""]


def test_committed_results_have_their_median_within_their_range():
    results = {module: path for module in BENCHMARKS if (path := suite.RESULTS / f"{module}.json").is_file()}
    assert results
    for module, path in results.items():
        _, rows_of = BENCHMARKS[module]
        for row in rows_of(json.loads(path.read_text())):
            assert row.least <= row.median <= row.most, row.title


def test_the_page_and_the_plot(tmp_path, monkeypatch):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    figures = {"median": 1.1, "least": 1.05, "most": 1.3, "goal": 1.2}
    origin = {
        "commit": "abc",
        "device": "a machine, 2 cores",
        "gpu": None,
        "command": "python -m benchmarks.evaluation",
    }
    (results / "evaluation.json").write_text(json.dumps({**origin, "test / forward": figures}))
    data = [{"folder": "F", "images": 3, "times faster": SPREAD}]
    (results / "cloud_masks.json").write_text(json.dumps({**origin, "data": data}))
    for name, path in (("RESULTS", results), ("PAGE", tmp_path / "RESULTS.md"), ("PLOT", tmp_path)):
        monkeypatch.setattr(suite, name, path)
    rows = suite.write_page()
    assert [row.reached for row in rows] == [True, True]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| 1.10 times | 1.05 to 1.30 | <= 1.20 | yes |" in page
    assert (
        "| [evaluation](results/evaluation.json) | abc | a machine, 2 cores | `python -m benchmarks.evaluation` |"
        in page
    )
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(suite.UsageError, match="--only nothing: expected"):
        suite.main(["--only", "nothing", "--page"])

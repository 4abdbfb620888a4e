"""Charts: their curves, several runs in one chart, atomic writes."""

import numpy as np
import pytest
from PIL import Image

from evaluation import charts
from evaluation.charts import (
    metrics_by_stratum,
    plot_calibration,
    plot_coverage,
    plot_discard,
    plot_reliability,
    plot_training,
)

METRICS = {
    "ENCE": 0.05,
    "NLL": -1.5,
    "AUSE": 0.4,
    "coverage 90": 0.88,
    "reliability": {"RMV": [0.01, 0.02, 0.04], "RMSE": [0.012, 0.02, 0.05]},
    "coverage curve": {"nominal": [0.25, 0.5, 0.75], "inside": [0.2, 0.5, 0.7]},
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def drawn(path, share=0.005):
    """Whether a picture shows more than a page."""
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB"))
    return path.stat().st_size > 1000 and (shown < 250).any(axis=2).mean() > share


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = charts.save_figure
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def curves(axes):
    """The lines of a panel after its diagonal, as (x, y)."""
    return [tuple(np.asarray(values).tolist() for values in line.get_data()) for line in axes.get_lines()[1:]]


def written(figure):
    """The words of all legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_discard_curve_under_its_published_names(tmp_path):
    paths = plot_discard([float("nan"), 0.001, 0.002, 0.004], tmp_path)
    assert names(tmp_path) == ["plot_test_SE_discard.pdf", "plot_test_SE_discard.png"]
    assert drawn(paths[0])
    assert paths[1].read_bytes().startswith(b"%PDF")
    first = paths[1].read_bytes()
    plot_discard([float("nan"), 0.001, 0.002, 0.004], tmp_path)
    assert paths[1].read_bytes() == first  # no date inside: the same figure is the same file


def test_reliability_of_several_runs(tmp_path, figures):
    gaps = {**METRICS, "reliability": {"RMV": [0.01, float("nan"), 0.04], "RMSE": [0.012, 0.02, 0.0]}}
    assert drawn(plot_reliability({"uncrtaints": METRICS, "other": gaps}, tmp_path / "reliability.png"))
    (axes,) = figures[0].axes
    # bins without mass or without error cannot be drawn on logarithmic axes
    assert curves(axes) == [([0.01, 0.02, 0.04], [0.012, 0.02, 0.05]), ([0.01], [0.012])]
    assert written(figures[0]) == ["calibrated", "uncrtaints, ENCE 0.050", "other, ENCE 0.050"]
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx((0.01 / 1.25, 0.05 * 1.25))
    assert len({line.get_color() for line in axes.get_lines()}) == 3
    nothing = {**METRICS, "reliability": {"RMV": [float("nan")] * 3, "RMSE": [float("nan")] * 3}}
    assert drawn(plot_reliability({"empty": nothing}, tmp_path / "empty.png"))


def test_coverage_of_several_runs(tmp_path, figures):
    assert drawn(plot_coverage({"uncrtaints": METRICS, "other": METRICS}, tmp_path / "coverage.png"))
    assert curves(figures[0].axes[0]) == [([0.25, 0.5, 0.75], [0.2, 0.5, 0.7])] * 2
    assert written(figures[0])[1] == "uncrtaints, 90 % interval holds 88.0 %"


def test_both_side_by_side_and_by_cloudiness(tmp_path, figures):
    clouded = {**METRICS, "elements": 30, "ENCE": 0.3, "reliability": {"RMV": [0.05], "RMSE": [0.1]}}
    strata = {
        "clouded at no date": {**METRICS, "elements": 10},
        "clouded at some dates": {"elements": 0, "reliability": {"RMV": [], "RMSE": []}},
        "clouded at all dates": clouded,
    }
    assert drawn(plot_calibration({"a": METRICS, "b": clouded}, tmp_path / "runs.png", "Two runs"))
    assert drawn(plot_calibration(metrics_by_stratum({**METRICS, "strata": strata}), tmp_path / "strata.png"))
    left, right = figures[1].axes
    assert [len(x) for x, _ in curves(left)] == [3, 3, 1]  # all pixels, then the strata that have any
    assert len(curves(right)) == 3
    assert written(figures[1]) == [
        "all pixels: ENCE 0.050, 90 % interval holds 88.0 %, NLL -1.50, AUSE 0.40",
        "clouded at no date, 25 % of all: ENCE 0.050, 90 % interval holds 88.0 %, NLL -1.50, AUSE 0.40",
        "clouded at all dates, 75 % of all: ENCE 0.300, 90 % interval holds 88.0 %, NLL -1.50, AUSE 0.40",
        "calibrated",
    ]
    assert drawn(plot_calibration(metrics_by_stratum({**METRICS, "strata": {}}), tmp_path / "unknown.png"))


def test_training(tmp_path):
    log = {"1": {"train_loss": 1.0}, "2": {"train_loss": 0.5, "val_loss": 0.6, "val PSNR": 25.0}}
    assert drawn(plot_training(log, tmp_path / "training.png"))


def test_a_picture_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "plot_test_SE_discard.png").write_text("what stood here")
    with pytest.raises(ValueError, match="could not convert"):
        plot_discard(["not a number"], tmp_path)
    assert names(tmp_path) == ["plot_test_SE_discard.png"]
    assert (tmp_path / "plot_test_SE_discard.png").read_text() == "what stood here"

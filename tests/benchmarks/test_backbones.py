"""The comparison of backbones, from made-up metrics files."""

import json
import math

import pytest

from benchmarks import backbones, runner
from common.errors import DataError
from tests.support.benchmark_runs import check_page, finish

WORDS = ["--root", "ROOT", "--masks", "", "--models", "uncrtaints", "utae"]


def finish_test(out, model, seed, **figures):
    """The files of a tested run, with some figures."""
    options = backbones._parser().parse_args([*WORDS, "--out", str(out)])
    line = runner.network_line(model, runner.flags_by_model(options.flags, options.models), options)
    curves = {"RMV": [0.1, 0.2], "RMSE": [0.1, 0.25]}, {"nominal": [0.5, 0.9], "inside": [0.4, 0.9]}
    metrics = {"images": 4, "RMSE": 0.1, "SSIM": 0.8, "NLL": -1.0, "ENCE": 0.05, "AUSE": 0.4, "coverage 90": 0.9}
    metrics |= {**figures, "reliability": curves[0], "coverage curve": curves[1]}
    groups = {"all samples": {model: metrics, "mean": {"images": 4, "RMSE": 0.3, "left out": {}}}}
    finish(out, runner.plan(model, seed, line, options), metrics=metrics, groups=groups)


def row(model, seed, **figures):
    return {"model": model, "seed": seed, "images": 4, **figures}


def test_averages_and_paired_differences():
    rows = [row("a", 1, SSIM=0.8, NLL=-1.0), row("b", 1, SSIM=0.9, NLL=0.5), row("b", 2, SSIM=0.6, NLL=-3.0)]
    rows += [row("a", 2, SSIM=0.7, NLL=-2.0), row("b", 3, SSIM=0.1), row("c", 7, SSIM=0.0)]
    summary = backbones.summarise(rows)
    assert summary["a"]["SSIM"] == pytest.approx({"mean": 0.75, "std": 0.1 / math.sqrt(2), "n": 2})
    assert list(summary) == ["a", "b", "c"]
    assert math.isnan(summary["c"]["SSIM"]["std"])
    assert "RMSE" not in summary["a"]
    paired = backbones.paired_differences(rows, "a")
    assert list(paired) == ["b"]  # c shares no seed with a; seed 3 of b has no counterpart
    ssim, nll = paired["b"]["SSIM"], paired["b"]["NLL"]
    assert ssim["by seed"] == pytest.approx({"1": 0.1, "2": -0.1})
    assert (ssim["ahead"], ssim["n"], ssim["mean"]) == (1, 2, pytest.approx(0))
    assert nll["by seed"] == pytest.approx({"1": 1.5, "2": -1.0})
    assert nll["ahead"] == 1  # lower is better


def test_tests_on_different_samples_are_not_compared():
    same = {"a_seed1": {"mean": {"RMSE": 0.3}}, "b_seed1": {"mean": {"RMSE": 0.3}}}
    assert backbones.same_for_all(same) == {"mean": {"RMSE": 0.3}}
    same["b_seed1"] = {"mean": {"RMSE": 0.31}}
    with pytest.raises(DataError, match="a_seed1 and b_seed1 were tested on different samples: RMSE of the baseline"):
        backbones.same_for_all(same)


def test_the_whole_table(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for model, ssim in (("uncrtaints", 0.8), ("utae", 0.7)):
        for seed in (1, 2):
            finish_test(out, model, seed, SSIM=ssim + 0.02 * seed)
    cost = {"wall_s": 0.5, "peak_mb": 300.0, "gflops_forward": 14.7, "parameters": 106740, "precision": "bf16: it can"}
    measured = []

    def measure(lines, sizes, *_):
        measured.append(sizes)
        return {model: {"64x4": cost} for model in lines}

    monkeypatch.setattr(backbones, "measure_in_turns", measure)
    page, table = tmp_path / "results.md", tmp_path / "backbones.json"
    page.write_text("# Results\n\nBefore.\n\n", encoding="utf-8")
    words = [*WORDS, "--out", str(out), "--seeds", "1", "2", "--costs", "64x4"]
    words += ["--json", str(table), "--page", str(page)]
    assert backbones.main(words) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\nBefore.\n")
    assert "| `uncrtaints` | 0.1000 ± 0.0000 |  |  | 0.8300 ± 0.0141 |" in text
    assert "| mean | 0.3000 |" in text
    assert "| `utae` | SSIM | -0.1000 | -0.1000 | -0.1000 ± 0.0000 | 0 of 2 |" in text
    assert "| `utae` | 106,740 | 0.500 s | 300 MB | 14.70 |" in text
    assert "![Reliability and coverage of the networks, first seed](images/backbones_calibration.png)" in text
    assert (tmp_path / "images" / "backbones_calibration.png").stat().st_size > 1000
    assert str(out) not in text + table.read_text(encoding="utf-8")  # no folder of this machine
    report = json.loads(table.read_text(encoding="utf-8"))
    assert report["settings"]["training samples"] == 8
    assert report["commits of the runs"] == ["abc"]
    page.write_text(text + "\nAfter.\n", encoding="utf-8")
    assert backbones.main(words) == 0
    assert page.read_text(encoding="utf-8") == text + "\nAfter.\n"
    assert measured == [[(64, 4)]]  # once
    page.write_text("<!-- benchmarks.backbones: from here -->", encoding="utf-8")
    with pytest.raises(DataError, match="only one of the marks"):
        backbones.main(words)


def test_the_page_shows_the_stored_results():
    check_page("results.md", "backbones", backbones.markdown)

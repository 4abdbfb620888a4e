"""Comparisons of runs: figures, cards, notes, and runs that cannot be compared."""

import json
import shutil
from dataclasses import replace

import pytest

from common.errors import DataError, UsageError
from evaluation.sample_records import read_records, write_records
from tests.support.report_pages import check_page
from util import compare_runs


def compare(members, out, *more, names=("gaussian", "nig")):
    folders = [str(members / "inference" / name) for name in names]
    return compare_runs.main([*folders, "--out", str(out), *map(str, more)])


def test_runs_side_by_side(members, tmp_path, capsys):
    out = tmp_path / "compare.html"
    assert compare(members, out) == 0
    assert f"comparison: {out}" in capsys.readouterr().out
    page = check_page(out)
    metrics = [
        json.loads((members / "inference" / name / "test_metrics.json").read_text()) for name in ("gaussian", "nig")
    ]
    for figures in metrics:
        assert f"{figures['RMSE']:.4f}" in page.words
    difference = f"{metrics[1]['PSNR'] - metrics[0]['PSNR']:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert difference in page.words
    assert "nig saw inputs of other dates than gaussian; the targets are the same." in page.words  # two dates and three
    assert "best of 2" in page.words
    alts = [image["alt"] for image in page.named("img")]
    for name in ("gaussian", "nig"):
        assert sum(f"Map of the error of {name}, sample" in alt for alt in alts) == 2  # two samples
    assert sum("input 1, true colour" in alt for alt in alts) == 2  # read from the runs' own --root2
    assert "Trivial baselines on these samples" in page.words


def test_without_exports_there_are_figures_and_advice(members, tmp_path):
    shutil.copytree(members / "inference", tmp_path / "inference")
    for name in ("gaussian", "nig"):
        shutil.rmtree(tmp_path / "inference" / name / "export")
    compare(tmp_path, tmp_path / "compare.html")
    page = check_page(tmp_path / "compare.html")
    assert "To see pictures, test with --export_every 1." in page.words
    assert page.named("article") == []


def test_other_samples_are_refused(members, tmp_path):
    shutil.copytree(members / "inference", tmp_path / "inference")
    path = tmp_path / "inference" / "nig" / "test_samples.json"
    records = read_records(path)
    write_records(path, [replace(record, patch="99") if record.id else record for record in records])
    with pytest.raises(
        DataError, match=r"sample 1 is .*patch \d+, .* in .*gaussian, but .*patch 99, .* in .*nig; test"
    ):
        compare(tmp_path, tmp_path / "compare.html")
    metrics = tmp_path / "inference" / "nig" / "test_metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"images": 7}))
    with pytest.raises(DataError, match=r"gaussian was tested on 2 samples, .*nig on 7; test both on the same data"):
        compare(tmp_path, tmp_path / "compare.html")
    assert not (tmp_path / "compare.html").exists()


def test_what_cannot_be_compared(members, tmp_path):
    with pytest.raises(UsageError, match="one run is no comparison: name two or more"):
        compare(members, tmp_path / "x.html", names=("nig",))
    with pytest.raises(UsageError, match="nig is named twice"):
        compare(members, tmp_path / "x.html", names=("nig", "nig"))
    with pytest.raises(DataError, match="there is no test_metrics.json in .*nowhere; give the folder"):
        compare(members, tmp_path / "x.html", names=("nig", "nowhere"))
    with pytest.raises(UsageError, match="--root nowhere: there is no such folder"):
        compare(members, tmp_path / "x.html", "--root", "nowhere")
    (tmp_path / "inference" / "bad").mkdir(parents=True)
    (tmp_path / "inference" / "bad" / "test_metrics.json").write_text("{")
    with pytest.raises(DataError, match="test_metrics.json is not valid JSON .*test the run again"):
        compare(tmp_path, tmp_path / "x.html", names=("bad", "bad2"))

"""Reports that commands write: of tests, of trainings, of ensembles, of several runs beside each other."""

import json
import shutil
from dataclasses import replace

import pytest

from common.errors import DataError, UsageError
from evaluation.sample_records import read_records, write_records
from report.screenshot import find_browser, take_screenshot
from report.test_page import write_report
from tests.support.commands import TINY
from tests.support.report_pages import check_page, fake_tested
from util import compare_runs
from util.demo import picture_report


def test_a_test_writes_its_report_and_what_it_remembers(members):
    folder = members / "inference" / "nig"
    page = check_page(folder / "report.html")
    assert "nig" in page.words
    assert "python test_reconstruct.py --device cpu --weight_folder" in page.words
    assert "Radar of the same dates, VV" in page.words
    assert '"experiment_name": "nig"' in page.words
    assert "least_cloudy" in page.words
    records = read_records(folder / "test_samples.json")
    metrics = json.loads((folder / "test_metrics.json").read_text())
    comparison = json.loads((folder / "comparison.json").read_text())
    assert len(records) == metrics["images"] == 2
    assert sum(record.rmse for record in records) / 2 == pytest.approx(metrics["RMSE"])
    manifest = json.loads(next(folder.glob("export/*/test/manifest.json")).read_text())
    for record in records:
        info = manifest["samples"][str(record.id)]["info"]
        assert (record.roi, record.patch, list(record.coverage)) == (info["roi"], info["patch"], info["coverage"])
        assert len(record.dates) == 2
        assert f"RMSE {record.rmse:.4f}" in page.words
    bands = metrics["bands"].values()
    mean_square = sum(record.rmse**2 for record in records) / 2
    assert sum(band["RMSE"] ** 2 for band in bands) / 13 == pytest.approx(mean_square, rel=1e-5)
    assert f"{comparison['all samples']['uncrtaints']['PSNR']:.2f}" in page.words


def test_a_network_without_radar_says_so(members):
    page = check_page(members / "inference" / "gaussian" / "report.html")
    assert "No radar: this network takes optical images only (--use_sar was not given)." in page.words
    assert "does not tell epistemic uncertainty apart" in page.words


@pytest.fixture(scope="module")
def without_variance(commands, sample_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    line = "--loss l2 --head mean --input_t 2 --epochs 1 --experiment_name mean --res_dir"
    run = commands.run("train_reconstruct.py", TINY, line, folder, sample_data.roots).ok()
    assert f"report: {folder / 'mean' / 'report.html'}" in run.text
    return folder / "mean"


def test_a_training_ends_with_a_report_that_tells_how_to_test(without_variance):
    page = check_page(without_variance / "report.html")
    assert "there is nothing to calibrate" in page.words
    assert "This test ended a training. The same test by itself:" in page.words
    assert "test_reconstruct.py --experiment_name mean --root1 " in page.words


def test_the_command_of_a_training_s_report_runs(without_variance, commands, sample_data, tmp_path):
    import shlex

    page = check_page(without_variance / "report.html")
    words = shlex.split(page.text[page.text.index("python test_reconstruct.py") :].splitlines()[0])
    commands.run("test_reconstruct.py", words[2:], "--res_dir", tmp_path).ok()
    ours, again = (
        json.loads((folder / "test_metrics.json").read_text()) for folder in (without_variance, tmp_path / "mean")
    )
    assert again["RMSE"] == pytest.approx(ours["RMSE"], rel=1e-6)


def test_an_ensemble_reports_its_parts(members, commands, sample_data, tmp_path):
    exports = [members / "inference" / name for name in ("gaussian", "nig")]
    flags = ["--root", sample_data.series, "--res_dir", tmp_path / "both"]
    run = commands.run("ensemble_reconstruct.py", exports, flags).ok()
    assert f"report: {tmp_path / 'both' / 'report.html'}" in run.text
    page = check_page(tmp_path / "both" / "report.html")
    alts = " ".join(image["alt"] for image in page.named("img"))
    for words in ("Map of the aleatoric", "Map of the epistemic", "Map of the total deviation", "Radar of 20"):
        assert words in alts
    assert "The other rows are its members." in page.words
    assert "the mean of the members' variances plus the variance of their means" in page.words
    assert len(read_records(tmp_path / "both" / "test_samples.json")) == 2


def test_an_ensemble_without_the_data_set_tells_how_to_see_inputs(members, commands, tmp_path):
    exports = [members / "inference" / name for name in ("gaussian", "nig")]
    commands.run("ensemble_reconstruct.py", exports, "--uncertainty epistemic --res_dir", tmp_path).ok()
    page = check_page(tmp_path / "report.html")
    assert "Name the data set by --root to see the inputs." in page.words
    alts = " ".join(image["alt"] for image in page.named("img"))
    assert "Map of the epistemic" in alts
    assert "Map of the aleatoric" not in alts


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
    with pytest.raises(DataError, match="test_metrics.json cannot be read as JSON .*test the run again"):
        compare(tmp_path, tmp_path / "x.html", names=("bad", "bad2"))


def test_a_picture_of_a_card_or_a_line_without_a_browser(tmp_path, monkeypatch, capsys):
    report = write_report(tmp_path, fake_tested(n=3))
    monkeypatch.setattr("report.screenshot.find_browser", lambda: None)
    picture_report(report, tmp_path / "card.png")
    assert f"no picture of {report}: it needs chromium and playwright" in capsys.readouterr().out
    assert not (tmp_path / "card.png").exists()
    monkeypatch.undo()
    pytest.importorskip("playwright", reason="playwright is not installed")
    if find_browser() is None:
        pytest.skip("no chromium on this machine")
    from PIL import Image

    picture_report(report, tmp_path / "card.png")
    with Image.open(tmp_path / "card.png") as image:
        assert image.width == 1152  # the page's 1,200 less its margins of 24
    with pytest.raises(DataError, match="made no picture of .nothing in .*report.html: "):
        take_screenshot(report, tmp_path / "x.png", ".nothing", wait_s=0.3)
    assert not (tmp_path / "x.png").exists()

"""Reports of tests: of a test script, and at the end of a training."""

import json
import shlex

import pytest

from evaluation.sample_records import read_records
from tests.support.commands import TINY
from tests.support.report_pages import check_page


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
    assert "does not separate epistemic uncertainty" in page.words


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
    page = check_page(without_variance / "report.html")
    words = shlex.split(page.text[page.text.index("python test_reconstruct.py") :].splitlines()[0])
    commands.run("test_reconstruct.py", words[2:], "--res_dir", tmp_path).ok()
    ours, again = (
        json.loads((folder / "test_metrics.json").read_text()) for folder in (without_variance, tmp_path / "mean")
    )
    assert again["RMSE"] == pytest.approx(ours["RMSE"], rel=1e-6)

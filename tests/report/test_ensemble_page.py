"""Reports of ensembles, with and without the data set."""

from evaluation.sample_records import read_records
from tests.support.report_pages import check_page


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

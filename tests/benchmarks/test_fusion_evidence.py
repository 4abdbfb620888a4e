"""The evidence for the fusion: its runs, the bootstrap, and the page of made-up scores."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import backbones, fusion_evidence, runner
from benchmarks.fusion_scoring import GUARDED, Scores, recalibrated
from common.errors import DataError, UsageError
from model.fusion.network import FUSED
from model.registry import FUSION_RULES
from tests.support.benchmark_runs import check_page, fake_scripts, finish
from tests.support.fusion_cases import fusion, pictures

EXPERTS = fusion_evidence.EXPERTS
ROIS = ["a", "a", "b", "c"]


def options(out, *more):
    words = ["--root", "ROOT", "--out", str(out), "--seeds", "1", "2", "--fit_rois", "3", *more]
    given = fusion_evidence._parser().parse_args(words)
    given.training = f"--fit_rois {given.fit_rois} {given.training}".strip()
    return given


def planned(out, *more):
    given = options(out, *more)
    flags = runner.flags_by_model(given.flags, (*EXPERTS, "fusion_net"))
    return fusion_evidence.plan_all(flags, given)


def test_the_experts_are_the_runs_of_the_comparison_of_backbones(tmp_path):
    fusions, useless, twins = planned(tmp_path, "--flags", "uncrtaints=--n_head 4", "fusion_net=--fusion_epochs 2")
    words = ["--root", "ROOT", "--out", str(tmp_path), "--training", "--fit_rois 3", "--flags", "uncrtaints=--n_head 4"]
    given = backbones._parser().parse_args(words)
    flags = runner.flags_by_model(given.flags, list(EXPERTS))
    for fused, seed in zip(fusions, (1, 2), strict=True):
        for run, model in zip(fused.after, EXPERTS, strict=True):
            expert = runner.plan(model, seed, runner.network_line(model, flags, given), given)
            assert run.record() == expert.record()
            assert f"{model}={tmp_path}/results/{model}_seed{seed}" in fused.train
    names = [run.name for run in fusion_evidence.all_of([*fusions, useless, twins])]
    assert names == [
        *("uncrtaints_seed1", "conv3d_mamba_seed1", "fusion_net_seed1"),
        *("uncrtaints_seed2", "conv3d_mamba_seed2", "fusion_net_seed2"),
        *("uncrtaints_useless_seed1", "fusion_net_useless_seed1", "fusion_net_twins_seed1"),
    ]
    weak = useless.after[0].train
    assert weak[weak.index("--max_samples_count") + 1] == "40"  # ten steps of four
    assert twins.after == (fusions[0].after[1],)
    assert twins.config.experts  # valid flags
    with pytest.raises(UsageError, match="with a model of uncrtaints, conv3d_mamba, fusion_net; got 'utae="):
        planned(tmp_path, "--flags", "utae=--lr 1")


def test_a_fusion_is_done_only_with_its_own_experts(tmp_path):
    fused = planned(tmp_path)[0][0]
    for run in (*fused.after, fused):
        finish(tmp_path, run)
    assert runner.progress(fused, tmp_path) == "done"
    # the line of the fusion is the same, that of an expert is not
    changed = planned(tmp_path, "--flags", "uncrtaints=--lr 0.1")[0][0]
    assert changed.train == fused.train
    assert runner.progress(changed, tmp_path) == "new"
    shutil.rmtree(tmp_path / "inference" / "uncrtaints_seed1")
    assert runner.progress(fused, tmp_path) == "new"


def test_a_fusion_waits_for_its_experts_and_is_not_started_without_them(tmp_path, monkeypatch):
    calls = fake_scripts(monkeypatch, tmp_path, failing="conv3d_mamba_seed2")
    fusions, _, _ = planned(tmp_path / "out")
    with pytest.raises(DataError, match=r"1 of 6 runs failed \(1 that need them were not started\), see the end of"):
        runner.run_all(fusion_evidence.all_of(fusions), tmp_path / "out", jobs=3)
    calls = calls()
    assert "train fusion_net_seed2" not in calls
    assert calls.index("train fusion_net_seed1") > calls.index("test uncrtaints_seed1")
    assert calls.index("train fusion_net_seed1") > calls.index("test conv3d_mamba_seed1")
    assert "test fusion_net_seed1" in calls  # the failure of seed 2 does not stop it


def test_bootstrap_draws_regions():
    bootstrap = fusion_evidence.paired_bootstrap([1.0, 3.0, 2.0, 2.0], [2.0, 2.0, 4.0, 8.0], ROIS)
    assert bootstrap["ratio"]["value"] == pytest.approx(8 / 16)
    assert bootstrap["difference"]["value"] == pytest.approx(-2)
    # the ends are draws of one region alone: a has ratio 1, b 1/2, c 1/4; one in 27 draws is each of them
    assert bootstrap["ratio"]["low"] == pytest.approx(1 / 4)
    assert bootstrap["ratio"]["high"] == pytest.approx(1)
    assert (bootstrap["difference"]["low"], bootstrap["difference"]["high"]) == pytest.approx((-6, 0))
    assert bootstrap == fusion_evidence.paired_bootstrap([1.0, 3.0, 2.0, 2.0], [2.0, 2.0, 4.0, 8.0], ROIS)


def test_the_error_of_the_bootstrap_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=200)
    error = fusion_evidence.paired_bootstrap(values, np.zeros(200) + 1, [str(n) for n in range(200)])["difference"]
    assert error["error"] == pytest.approx(values.std() / 200**0.5, rel=0.06)  # of 2000 resamples: 1.6 %, fourfold


def test_equal_images_are_a_ratio_of_exactly_one():
    values = [0.1, 0.7, 0.3, 0.9]
    ratio = fusion_evidence.paired_bootstrap(values, values, ROIS)["ratio"]
    assert (ratio["value"], ratio["low"], ratio["high"], ratio["error"]) == (1, 1, 1, 0)


@pytest.fixture(scope="module")
def scored():
    """Scores of a fusion of two experts whose deviations are exchanged between image halves; `gated` is accepted."""
    seen, net = pictures(n=4, size=24), fusion("gated")
    net.variance_factor[:], net.fitted[...] = 0.8, True
    net.accepted[:], net.variance_source[:] = True, FUSED
    scores = Scores(net, EXPERTS)
    for part in (slice(0, 3), slice(3, 4)):
        experts = net.predict_experts(seen.x[part])
        scores.update(experts, seen.target[part], None, ROIS[part])
    return scores.compute()


def test_all_rows_answer_for_the_same_images(scored):
    assert list(scored["rows"]) == [*EXPERTS, *(recalibrated(name) for name in EXPERTS), *FUSION_RULES, GUARDED]
    assert {len(values) for row in scored["per image"].values() for values in row.values()} == {4}
    rows = scored["rows"]
    assert rows[GUARDED]["RMSE"] == rows["gated"]["RMSE"]  # accepted
    assert rows["best"]["RMSE"] == rows["uncrtaints"]["RMSE"]
    assert rows["ivw"]["RMSE"] < rows["average"]["RMSE"] < rows["best"]["RMSE"]  # variances predict who is right where
    for name, values in scored["per image"].items():
        assert np.mean(values["RMSE"]) == pytest.approx(rows[name]["RMSE"])
        assert np.mean(values["NLL"]) == pytest.approx(rows[name]["NLL"], rel=1e-5)  # summed in another order
    # errors share 0.36 of their variance where the deviations are equal; here they are 0.05 and 0.02
    assert scored["rho"] == pytest.approx(0.36 * 2 * 0.05 * 0.02 / (0.05**2 + 0.02**2), abs=0.02)
    assert scored["r"] == pytest.approx(1, abs=0.02)
    assert scored["AUC"]["average"] == 0.5  # chance
    assert scored["AUC"]["ivw"] > 0.6
    json.dumps(scored)


def guard(**changes):
    decision = {"rule": "gated", "better": "uncrtaints", "accepted": True, "variance": "fused", "n_clusters": 6}
    return {**decision, "clustered_by": "region", **changes}


def test_rules_are_compared_with_the_best_expert_by_each_figure(scored):
    comparison = fusion_evidence.compare(2, scored, guard(), resamples=50)
    rows, figures = comparison["compared"], comparison["figures"]
    assert (comparison["seed"], comparison["images"], comparison["regions"]) == (2, 4, 3)
    assert comparison["better"] == min(EXPERTS, key=lambda name: figures[name]["RMSE"])
    assert rows[comparison["better"]]["RMSE ratio"]["value"] == 1
    ratio = figures["gated"]["RMSE"] / figures[comparison["better"]]["RMSE"]
    assert rows["gated"]["RMSE ratio"]["value"] == pytest.approx(ratio)
    likeliest = min(figures[recalibrated(name)]["NLL"] for name in EXPERTS)
    assert rows["ivw"]["NLL difference"]["value"] == pytest.approx(figures["ivw"]["NLL"] - likeliest, abs=1e-5)
    assert comparison["held"]["RMSE at or below the better expert's"]


def row(ratio=0.98, high=1.0, ssim=0.0, nll=-0.1, ence=0.0, coverage=0.9):
    return {
        "RMSE ratio": {"value": ratio, "high": high},
        "SSIM difference": {"value": ssim, "error": 0.01},
        "NLL difference": {"value": nll},
        "ENCE difference": ence,
        "coverage 90": coverage,
    }


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, None),
        ({"ratio": 1.0, "high": 1.005, "ssim": -0.01, "nll": 0.0, "ence": 0.01, "coverage": 0.88}, None),
        ({"ratio": 1.001}, "RMSE at or"),
        ({"high": 1.006}, "upper end"),
        ({"ssim": -0.011}, "SSIM"),
        ({"nll": 0.001}, "NLL"),
        ({"ence": 0.011}, "ENCE"),
        ({"coverage": 0.93}, "90 % interval"),
    ],
)
def test_criteria(changes, lost):
    failed = [text for text, holds in fusion_evidence.CRITERIA.items() if not holds(row(**changes))]
    assert len(failed) == (lost is not None)
    assert all(text.startswith(lost) for text in failed)


def test_averages_over_seeds(scored):
    seeds = [fusion_evidence.compare(seed, scored, guard(), resamples=20) for seed in (1, 2)]
    seeds[1]["figures"] = {name: {key: 3 * v for key, v in row.items()} for name, row in seeds[0]["figures"].items()}
    seeds[1]["compared"]["gated"]["RMSE ratio"]["value"] = 1.5
    seeds[1]["held"] = dict.fromkeys(seeds[0]["held"], False)
    total = fusion_evidence.aggregate(seeds)
    assert total["summary"]["monig"]["NLL"]["mean"] == pytest.approx(2 * scored["rows"]["monig"]["NLL"])
    assert total["ratios"]["gated"]["largest"] == 1.5
    assert total["held"] == {text: int(holds) for text, holds in seeds[0]["held"].items()}


def test_variance_of_twins():
    rows = {name: {"mean var": v} for name, v in {"u": 2.0, "u, recalibrated": 4.0, "gated": 4.0, "monig": 1.0}.items()}
    scores = {"experts": ["u", "twin"], "rules": ["gated", "monig"], "rows": rows}
    assert fusion_evidence.variance_ratios(scores) == {"gated": 1.0, "monig": 0.5}


def test_the_whole_page_and_nothing_scored_twice(tmp_path, monkeypatch, scored, capsys):
    out, page, table = tmp_path / "out", tmp_path / "fusion.md", tmp_path / "evidence.json"
    fusions, useless, twins = planned(out)
    for run in fusion_evidence.all_of([*fusions, useless, twins]):
        name = GUARDED if run.model == "fusion_net" else run.model
        finish(out, run, train_samples=40, metrics={"RMSE": scored["rows"][name]["RMSE"]})
        folder = out / "results" / run.name
        (folder / "model.pth.tar").write_bytes(b"weights")
        (folder / "guard.json").write_text(json.dumps(guard(accepted=run is not useless)))
    calls = []
    monkeypatch.setattr(fusion_evidence, "score_run", lambda words: calls.append(words) or scored)
    page.write_text("# Fusion\n\nBefore.\n\n<!-- benchmarks.fusion_evidence: from here -->\n"
                    "<!-- benchmarks.fusion_evidence: to here -->\n\nAfter.\n", encoding="utf-8")  # fmt: skip
    words = ["--root", "ROOT", "--out", str(out), "--seeds", "1", "2", "--fit_rois", "3"]
    words += ["--json", str(table), "--page", str(page)]
    assert fusion_evidence.main(words) == 0
    assert len(calls) == 4
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Fusion\n\nBefore.\n")
    assert text.endswith("to here -->\n\nAfter.\n")
    assert f"| `gated` | {scored['rows']['gated']['RMSE']:.4f} | " in text
    assert "| accepts gated, fused variance | " in text
    assert "- A useless second expert (`uncrtaints` after 10 steps" in text
    assert "falls back to uncrtaints, fused variance. Unguarded" in text
    assert "fitted on 3 held-out training regions" in text
    assert "--training" not in text  # the command line is the one that was typed
    report = json.loads(table.read_text(encoding="utf-8"))
    assert [seed["seed"] for seed in report["seeds"]] == [1, 2]
    assert report["commits of the runs"] == ["abc"]
    assert str(out) not in text + table.read_text(encoding="utf-8")  # no folder of this machine
    for picture in (fusion_evidence.RATIOS, fusion_evidence.CURVES):
        assert (tmp_path / picture).stat().st_size > 1000
    assert fusion_evidence.main(words) == 0
    assert page.read_text(encoding="utf-8") == text
    assert len(calls) == 4
    (out / "results" / "fusion_net_seed2" / "model.pth.tar").write_bytes(b"other weights")
    fusion_evidence.main(words)
    assert len(calls) == 5


def test_scores_that_a_test_does_not_find_are_refused():
    fusion_evidence.check_agreement("guarded", 0.1, "fusion_net_seed1", 0.100001)
    with pytest.raises(DataError, match=r"guarded has RMSE 0.1 in this pass, but 0.11 in the test of fusion_net_seed1"):
        fusion_evidence.check_agreement("guarded", 0.1, "fusion_net_seed1", 0.11)


def test_the_page_shows_the_stored_results():
    check_page("fusion.md", "fusion_evidence", fusion_evidence.markdown)

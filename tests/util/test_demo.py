"""The summary of the demo, from made-up figures; the demo itself is the command `make demo`."""

import json

import pytest

from util.demo import EXPERTS, FUSION, summarise

FIGURES = {"PSNR": 30.0, "SSIM": 0.9, "SAM": 5.0, "images": 8}


@pytest.fixture
def inference(tmp_path):
    for name, rmse in (("uncrtaints", 0.04), ("conv3d_mamba", 0.032), (FUSION, 0.03), ("ensemble", 0.031)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_metrics.json").write_text(json.dumps({**FIGURES, "RMSE": rmse, "NLL": -2.5}))
    groups = {
        "all samples": {
            FUSION: {**FIGURES, "PSNR": 31.0, "RMSE": 0.03},
            "mean": {**FIGURES, "PSNR": 13.5, "RMSE": 0.2},
            "clear_mean": {**FIGURES, "PSNR": 17.0, "RMSE": 0.1},
        },
        "every input >= 30 %": {FUSION: {**FIGURES, "PSNR": 29.0}, "mean": {**FIGURES, "PSNR": 12.0}},
    }
    (tmp_path / FUSION / "comparison.json").write_text(json.dumps(groups))
    return tmp_path


@pytest.mark.parametrize(("accepted", "words"), [(True, "accepted gated"), (False, "did not accept gated")])
def test_the_summary_compares_the_fusion_with_the_better_network(inference, accepted, words):
    text = summarise(inference, [*EXPERTS, FUSION], {"accepted": accepted, "rule": "gated"})
    assert f"On validation the acceptance test {words}; on the test split the RMSE of fusion_net is 0.938 times" in text
    assert "that of conv3d_mamba, the better network of the two." in text  # 0.03 / 0.032
    assert "fusion_net is 17.5 dB PSNR above the mean of the inputs." in text
    assert "(8 samples) it is 17.0 dB above the best baseline, mean." in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == [*EXPERTS, FUSION, "ensemble", "mean", "clear_mean"]
    assert table[6].split("|")[6].strip() == ""  # a baseline has no NLL

"""Every loss, head and option of the network trains, validates and tests from the command line, in a few pixels."""

import json
import math

import pytest
import torch

from model.weights import load_checkpoint
from tests.support.commands import TINY

# Each value of each option stands in one line at least; which go together does not matter.
LINES = {
    "l1, mean": "--loss l1 --block_type residual --agg_mode att_mean --encoder_norm batch --decoder_norm group",
    "l2, mean": "--loss l2 --agg_mode mean --encoder_norm instance --decoder_norm none --padding_mode zeros",
    "GNLL, Gaussian": "--loss GNLL --head gaussian --var_nonLinearity relu --encoder_norm none --positional_encoding",
    "GNLL, NIG": "--loss GNLL --head nig --use_v --separate_out --decoder_norm instance --accumulate 2",
    "MGNLL, iso": "--loss MGNLL --covmode iso --var_nonLinearity elu --use_v --padding_mode replicate",
    "MGNLL, diag": "--loss MGNLL --head gaussian --covmode diag --separate_out --low_res_size 16 --mean_nonLinearity",
    "MGNLL, relu": "--loss MGNLL --head gaussian --covmode iso --var_nonLinearity relu --separate_out",
    "MGNLL, legacy": "--loss MGNLL --legacy --scale_by 10 --vary_samples --batch_size 2",
    "NIG": "--loss NIG --use_sar --scale_by 10 --separate_out --encoder_widths 8 8 --clip_grad 1 --gamma 0.5",
    "NIG, amini": "--loss NIG --evidence_reg amini --weight_reg 0.1 --out_conv 16 13 --d_k 2 --input_t 1",
    "NIG, bf16": "--loss NIG --evidence_reg meinert --precision bf16 --input_t 5 --padding_mode circular",
    "NIG, no regulariser": "--loss NIG --evidence_reg none --max_cov 0.5 --no-vary_samples --region europa",
}
CHANNELS = {"nig": 52, "gaussian": 26, "mean": 13}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_trains_and_tests(commands, sample_data, tmp_path, line):
    words = [TINY, line, sample_data.roots, "--epochs 1 --lr 0.001 --experiment_name run --res_dir", tmp_path]
    trained = commands.run("train_reconstruct.py", *words).ok()
    run = tmp_path / "run"
    conf = json.loads((run / "conf.json").read_text())
    channels = 14 if conf["covmode"] == "iso" else CHANNELS[conf["head"]]
    assert conf["out_conv"][-1] == channels
    state = load_checkpoint(run / "model_epoch_1.pth.tar")["state_dict_G"]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    metrics = json.loads((run / "test_metrics.json").read_text())
    assert metrics["samples"] == 2
    assert math.isfinite(metrics["loss"])
    assert 3 < metrics["PSNR"] < 40
    assert ("NLL" in metrics) == (conf["head"] != "mean")
    assert metrics["legacy"] == ("--legacy" in line)
    assert "Traceback" not in trained.text
    # which dates to test on is the test's own choice, everything else is restored
    own = "--max_cov 0.5" if "--max_cov 0.5" in line else ""
    words = ["--experiment_name run --device cpu --weight_folder", tmp_path, "--res_dir", tmp_path / "again", own]
    commands.run("test_reconstruct.py", *words).ok()
    again = json.loads((tmp_path / "again" / "run" / "test_metrics.json").read_text())
    # the same weights and the same samples; a batch of four instead of one or two sums in another order
    assert again["PSNR"] == pytest.approx(metrics["PSNR"], rel=1e-3 if "bf16" in line else 1e-5)
    fields = {path.name.split("_")[1] for path in (tmp_path / "again").rglob("img-0_*.npy")}
    variance = {"var.npy"} if conf["head"] != "mean" else set()
    parameters = {"gamma.npy", "alpha.npy", "beta.npy"} if conf["head"] == "nig" else set()
    assert fields == {"pred.npy", "target.npy"} | variance | parameters

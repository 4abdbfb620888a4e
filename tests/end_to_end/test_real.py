"""Real patches: the command lines run on them, and a small network learns one of them by heart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from config.resolve import resolve_config
from data.batch import Collate
from data.dataLoader import SEN12MSCR
from evaluation.evaluate import evaluate
from evaluation.image_metrics import image_metrics
from evaluation.split_metrics import SplitMetrics
from model.build import build_loss, build_model, build_optimizer, build_scheduler
from model.runtime import Compute
from parse_args import parse
from tests.support.commands import TINY
from training.engine import TrainState, train_one_epoch

pytestmark = pytest.mark.shared
PATCH = "ROIs1970_fall_s2/s2_139/ROIs1970_fall_s2_139_p839.tif"  # of the test split


@pytest.fixture(scope="module")
def real(shared):
    root = shared / "data" / "SEN12MSCR"
    before = sorted(root.rglob("*"))
    yield root
    assert sorted(root.rglob("*")) == before


@pytest.fixture(scope="module")
def run(commands, real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    options = "--pretrain --loss l2 --use_sar --epochs 1 --lr 0.01 --experiment_name real --precomputed"
    words = [TINY, options, folder / "masks", "--root3", real, "--res_dir", folder / "results"]
    return commands.run("train_reconstruct.py", *words).ok(), folder


def test_training_takes_the_whole_triplets(run):
    done, folder = run
    # one triplet is of a training region, one of a test region, and the third lacks its clear image
    assert "samples: train 1, val 0, test 1" in done.text
    assert "\nwarning: 1 triplets of split 'val'" in done.text  # one line, not the source line of the warning
    assert "UserWarning" not in done.text
    assert "continuing without that split" in done.text
    assert "no epoch was validated; the last one is tested" in done.text
    stored = sorted(path.stem for path in (folder / "masks").rglob("*.npz"))
    assert stored == ["ROIs1970_fall_s2_cloudy_139_p839", "ROIs2017_winter_s2_cloudy_112_p797"]


def test_the_real_test_patch_is_tested(commands, run, real):
    _, folder = run
    words = ["--experiment_name real --device cpu --weight_folder", folder / "results", "--res_dir", folder / "out"]
    commands.run("test_reconstruct.py", *words, "--root3", real).ok()
    out = folder / "out" / "real"
    exports = out / "export" / "epoch_1" / "test"
    target, prediction = (np.load(exports / f"img-0_{field}.npy") for field in ("target", "pred"))
    assert target.shape == prediction.shape == (13, 256, 256)
    assert json.loads((exports / "manifest.json").read_text())["samples"]["0"]["info"]["target_path"] == PATCH
    metrics = json.loads((out / "test_metrics.json").read_text())
    figures = image_metrics(torch.from_numpy(target), torch.from_numpy(prediction))
    for name, value in figures.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    table = json.loads((out / "comparison.json").read_text())["all samples"]
    clouded = SEN12MSCR(real, split="test", import_data_path=folder / "masks")[0]["input"]["S2"]
    figures = image_metrics(torch.from_numpy(target), torch.from_numpy(np.asarray(clouded)))
    assert table["least_cloudy"]["PSNR"] == pytest.approx(figures["PSNR"], rel=1e-4)


def test_a_small_network_learns_a_real_patch_by_heart(run, real):
    """PSNR above 30 dB in 125 steps (36 measured; the clouded input has 20.3), on a quarter of the patch."""
    options = "--pretrain --loss l2 --use_sar --encoder_widths 16 --decoder_widths 16 16 --lr 0.01 --gamma 0.99"
    config, _ = resolve_config(*parse("train", [*options.split(), "--device", "cpu"]))
    whole = Collate(use_sar=True)([SEN12MSCR(real, split="train", import_data_path=run[1] / "masks")[0]])
    x, target, masks = (values[..., :128, :128].contiguous() for values in (whole.x, whole.target, whole.masks))
    batch = replace(whole, x=x, target=target, masks=masks)
    torch.manual_seed(1)
    model = build_model(config)
    optimizer = build_optimizer(model, config.lr)
    state = TrainState(model, optimizer, build_scheduler(optimizer, config.gamma))
    criterion, compute = build_loss(config), Compute(torch.device("cpu"))
    for epoch in range(125):
        train_one_epoch(state, [batch], criterion, compute, steps=1)
        state.scheduler.step()
        state.epoch = epoch + 1
    metrics = SplitMetrics()
    evaluate(model, [batch], criterion, compute, [metrics], title="overfitting")
    assert metrics.compute()["PSNR"] > 30

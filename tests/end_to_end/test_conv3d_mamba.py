"""The published command line with `--model conv3d_mamba`, then its test: word by word, only paths and size changed."""

import json

import pytest
import torch

from model import load_model
from tests.end_to_end.test_verbatim import TEST, TRAIN, call

MAMBA = TRAIN.replace("--model uncrtaints", "--model conv3d_mamba")
TINY = "--device cpu --epochs 1 --max_samples_count 2 --encoder_widths 8 8 --decoder_widths 8 8"


@pytest.fixture(scope="module")
def said(place, sample_data):
    return call(place, MAMBA, TINY, sample_data).stdout


def test_the_published_command_trains_conv3d_mamba(place, said):
    assert "conv3d_mamba, head nig" in said
    assert "selective scan torch (triton and mamba_ssm need a CUDA device, and this is cpu)" in said
    assert "--model conv3d_mamba ignores --n_head" in said  # named by the published command
    conf = json.loads((place / "results/my_first_experiment/conf.json").read_text())
    assert conf["encoder_norm"] == "batch"  # its own default
    assert conf["decoder_norm"] == "batch"


def test_its_test_command_restores_it(place, said, sample_data):
    call(place, TEST, "--device cpu --max_samples_count 2", sample_data)
    metrics = json.loads((place / "inference/my_first_experiment/test_metrics.json").read_text())
    assert metrics["images"] == 2
    assert metrics["mean var"] > 0


def test_the_trained_network_takes_any_number_of_dates(place, said):
    reconstruct = load_model(place / "results/my_first_experiment")
    generator = torch.Generator().manual_seed(0)
    for t in (1, 5, 30):
        x = torch.rand(1, t, 15, 19, 22, generator=generator)
        prediction = reconstruct(x, torch.arange(t)[None] * 6.0 + 1300)
        assert prediction.mean.shape == (1, 1, 13, 19, 22)
        assert prediction.total.isfinite().all()

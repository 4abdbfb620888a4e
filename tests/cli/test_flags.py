"""The flags: published spellings and defaults, what follows from what, and what is refused (known issue 17)."""

import json
import shlex
import subprocess
import sys

import pytest

from common.errors import DataError, UsageError
from config.resolve import head_channels, resolve_config, restore_config
from config.stored import read_conf
from parse_args import Config, parse

TRAIN = (
    "--experiment_name my_first_experiment --root1 path/to/SEN12MSCRtrain --root2 path/to/SEN12MSCRtest "
    "--root3 path/to/SEN12MSCR --model uncrtaints --input_t 3 --region all --epochs 20 --lr 0.001 --batch_size 4 "
    '--gamma 1.0 --scale_by 10.0 --trained_checkp "" --loss MGNLL --covmode diag --var_nonLinearity softplus '
    "--display_step 10 --use_sar --block_type mbconv --n_head 16 --device cuda --res_dir ./results --rdm_seed 1"
)
TEST = (
    "--experiment_name my_first_experiment -root1 path/to/SEN12MSCRtrain --root2 path/to/SEN12MSCRtest "
    "--root3 path/to/SEN12MSCR --input_t 3 --region all --export_every 1 --res_dir ./inference "
    "--weight_folder ./results"
)
# Facts of the published parser that a user's command line may lean on.
PUBLISHED_DEFAULTS = {
    "model": "uncrtaints",
    "experiment_name": "my_first_experiment",
    "plot_every": -1,
    "mean_nonLinearity": True,
    "positional_encoding": True,
    "vary_samples": True,
    "var_nonLinearity": "softplus",
    "agg_mode": "att_group",
    "encoder_norm": "group",
    "decoder_norm": "batch",
    "block_type": "mbconv",
    "padding_mode": "reflect",
    "pad_value": 0,
    "n_head": 16,
    "d_model": 256,
    "d_k": 4,
    "low_res_size": 32,
    "use_v": False,
    "num_workers": 0,
    "rdm_seed": 1,
    "device": "cuda",
    "display_step": 10,
    "loss": "MGNLL",
    "resume_from": False,
    "unfreeze_after": 0,
    "epochs": 20,
    "batch_size": 4,
    "lr": 0.01,
    "gamma": 1.0,
    "chunk_size": None,
    "val_every": 1,
    "val_after": 0,
    "use_sar": False,
    "pretrain": False,
    "input_t": 3,
    "ref_date": "2014-04-03",
    "sample_type": "cloudy_cloudfree",
    "min_cov": 0.0,
    "max_cov": 1.0,
    "region": "all",
    "max_samples_count": 10**9,
    "max_samples_frac": 1.0,
    "profile": False,
    "trained_checkp": "",
    "covmode": "diag",
    "scale_by": 1.0,
    "separate_out": False,
    "weight_folder": "./results",
    "load_config": "",
    "weight_reg": 0.05,
    "lambda1": 1.0,
    "lambda2": 1.0,
}


def resolved(line: str, mode: str = "train") -> Config:
    values, typed = parse(mode, shlex.split(line))
    return resolve_config(values, typed)[0]


@pytest.mark.parametrize("mode", ["train", "test"])
def test_published_defaults_stay(mode):
    values, typed = parse(mode, [])
    assert typed == set()
    assert {name: values[name] for name in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS
    special = {"train": ("./results", -1, 0), "test": ("./inference", 1, -1)}[mode]
    assert (values["res_dir"], values["export_every"], values["resume_at"]) == special


def test_the_published_training_command_trains_the_nig_version():
    config = resolved(TRAIN)
    assert (config.head, config.loss, config.out_conv, config.scale_by) == ("nig", "MGNLL", (52,), 10.0)
    assert (config.root1, config.root3) == ("path/to/SEN12MSCRtrain", "path/to/SEN12MSCR")


def test_the_published_test_command_takes_root1_with_one_dash():
    values, typed = parse("test", shlex.split(TEST))
    assert values["root1"] == "path/to/SEN12MSCRtrain"
    assert "root1" in typed


@pytest.mark.parametrize("name", ["mean_nonLinearity", "positional_encoding", "vary_samples"])
def test_naming_a_published_switch_turns_it_off_and_so_does_its_honest_twin(name):
    # known issue 17: the presence of these flags switches a thing off; the spelling stays, the help says so
    assert getattr(resolved(f"--{name}"), name) is False
    assert getattr(resolved(f"--no-{name}"), name) is False
    assert getattr(resolved(""), name) is True


@pytest.mark.parametrize("typed", ["[64,64,128]", "64 64 128", "'[64, 64, 128]'", "[64, 64, 128]"])
def test_widths_in_every_spelling(typed):
    assert resolved(f"--encoder_widths {typed}").encoder_widths == (64, 64, 128)


@pytest.mark.parametrize(
    ("line", "head", "channels"),
    [
        ("--loss NIG", "nig", 52),
        ("--loss l2", "mean", 13),
        ("--covmode iso", "gaussian", 14),
        ("--loss GNLL", "nig", 52),
        ("--head gaussian --loss GNLL", "gaussian", 26),
        ("--covmode uni", "gaussian", 26),
        ("--head gaussian", "gaussian", 26),
        ("--legacy", "gaussian", 26),
        ("--head gaussian --out_conv [26]", "gaussian", 26),
        ("--head gaussian --out_conv 64 13", "gaussian", 26),
    ],
)
def test_head_and_width_follow_from_loss_and_covmode(line, head, channels):
    config = resolved(line)
    assert (config.head, config.out_conv[-1]) == (head, channels)
    assert head_channels(config.head, config.covmode) == channels


def test_pretraining_is_mono_temporal():
    config = resolved("--pretrain --input_t 5")
    assert (config.input_t, config.n_head, config.positional_encoding, config.sample_type) == (1, 1, False, "pretrain")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("--loss NIG --head gaussian", "--loss NIG with --head gaussian: .* use --head nig"),
        ("--loss MGNLL --head mean", "needs a variance"),
        ("--loss l1 --head nig", "trains no variance"),
        ("--loss fusion", "fusion_net"),
        ("--min_cov 0.6 --max_cov 0.2", "--min_cov <= --max_cov"),
        ("--max_samples_frac 0", "--max_samples_frac"),
        ("--max_samples_count 0", "--max_samples_count"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--batch_size -1", "--batch_size must be at least 1, got -1"),
        ("--n_head 3", "--n_head 3 must divide"),
        ("--encoder_widths 64 --n_head 4", "needs them equal"),
        ("--device tpu", "--device takes"),
        ("--ref_date yesterday", "--ref_date"),
        ("--sample_type generic", "no target"),
        ("--sample_type pretrain", "--pretrain"),
        ("--out_conv 7", "--out_conv ends in 7"),
    ],
)
def test_contradictions_are_usage_errors(line, match):
    with pytest.raises(UsageError, match=match):
        resolved(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--min_cov 0.1", "do not apply to training"),
        ("--chunk_size 8", "--chunk_size has no effect"),
        ("", "--loss NIG learns the tails"),
        ("--legacy", "Gaussian head"),
    ],
)
def test_flags_without_effect_are_told(line, words):
    values, typed = parse("train", shlex.split(line))
    assert any(words in text for text in resolve_config(values, typed)[1])


def test_conf_json_round_trip(tmp_path):
    config = resolved(TRAIN + " --encoder_widths 64 --decoder_widths 64 64")
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(config.to_json()))
    values, typed = parse("train", [])
    again, _ = restore_config(read_conf(path), values, typed, "train")
    assert again == config


def test_a_test_restores_the_run_and_hand_given_flags_win(tmp_path):
    # known issue 12: the published test takes input_t from the command line's default
    path = tmp_path / "conf.json"
    path.write_text(
        json.dumps(resolved("--input_t 5 --use_sar --root2 there --head gaussian --batch_size 7").to_json())
    )
    values, typed = parse("test", ["--min_cov", "0.2"])
    config, _ = restore_config(read_conf(path), values, typed, "test")
    assert (config.input_t, config.use_sar, config.root2, config.head) == (5, True, "there", "gaussian")
    assert (config.min_cov, config.res_dir, config.export_every, config.batch_size) == (0.2, "./inference", 1, 4)
    values, typed = parse("test", ["--input_t", "2"])
    assert restore_config(read_conf(path), values, typed, "test")[0].input_t == 2


def test_stored_flags_are_not_replaced_by_the_defaults_of_a_backbone(tmp_path):
    """Also where a stored value is the default of the flag, which is not that of conv3d_mamba."""
    path = tmp_path / "conf.json"
    flags = resolved("--model conv3d_mamba --encoder_norm group --encoder_widths 128 --decoder_widths 128")
    path.write_text(json.dumps(flags.to_json()))
    for mode in ("train", "test"):
        values, typed = parse(mode, [])
        config, _ = restore_config(read_conf(path), values, typed, mode)
        assert (config.encoder_norm, config.encoder_widths) == ("group", (128,))


def test_a_published_conf_has_no_head(tmp_path):
    path = tmp_path / "conf.json"
    published = {
        name: value for name, value in PUBLISHED_DEFAULTS.items() if name not in ("weight_reg", "lambda1", "lambda2")
    }
    widths = {
        "encoder_widths": [32],
        "decoder_widths": [32, 32],
        "out_conv": [14],
        "covmode": "iso",
        "pid": 0,
        "use_custom": False,
    }
    path.write_text(json.dumps({**published, **widths, "loss": "MGNLL"}))
    values, typed = parse("test", [])
    config, _ = restore_config(read_conf(path), values, typed, "test")
    assert (config.head, config.out_conv, config.use_custom) == ("gaussian", (14,), "")
    path.write_text(json.dumps({**published, **widths, "covmode": "diag", "out_conv": [13], "loss": "l2"}))
    assert restore_config(read_conf(path), values, typed, "test")[0].head == "mean"


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "not valid JSON"), ("[]", "conf.json: the content must be object, got"), (None, "cannot read")],
)
def test_an_unreadable_conf_is_a_data_error(tmp_path, text, match):
    path = tmp_path / "conf.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_conf(path)


@pytest.mark.parametrize("script", ["train_reconstruct.py", "test_reconstruct.py", "ensemble_reconstruct.py"])
def test_help_needs_no_heavy_import(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\ntry: runpy.run_path('{script}', run_name='__main__')\n"
    )
    code += "except SystemExit as end:\n    heavy = ('torch', 'rasterio', 'matplotlib', 's2cloudless')\n"
    code += "    print(end.code, [name for name in heavy if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("0 []"), done.stdout[-300:] + done.stderr

"""fusion_net from the command line: the run of a fusion, its acceptance test, its reproduction; every error."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import test_reconstruct
import train_reconstruct
from common.errors import UsageError
from common.run_folder import RunFolder
from config.resolve import resolve_config, resolve_training
from config.stored import read_conf
from model import load_model
from model.fusion.network import RECALIBRATED
from model.registry import EXPERTS
from model.weights import load_checkpoint, save_checkpoint
from parse_args import parse
from tests.cli.test_flags import TRAIN
from tests.support.cli_cases import TEST_ROI, TRAIN_ROI, VAL_ROI, assert_whole, call, evaluating, files_in, refused
from tests.support.fake_trees import coverages_with_clear, write_series, write_triplet
from training.fusion import expert_config, train_experts

OTHER_TRAIN_ROI = "ROIs1970/35"
NETWORK = ["--n_head", "2", "--d_model", "8", "--device", "cpu", "--batch_size", "2", "--epochs", "1"]
WIDTHS = ["--encoder_widths", "8", "--decoder_widths", "8", "8"]
SQUARE = ["--encoder_widths", "8", "8", "--decoder_widths", "8", "8"]
FAST = ["--fusion_epochs", "2", "--device", "cpu", "--batch_size", "2"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two training regions, one to validate on with six patches, one to test on with two."""
    root = tmp_path_factory.mktemp("fusion_tree")
    places = {TRAIN_ROI: (1, 2), OTHER_TRAIN_ROI: (3,), VAL_ROI: (4, 5, 6, 7, 8, 9), TEST_ROI: (10, 11)}
    for roi, patches in places.items():
        for patch in patches:
            write_series(root, roi, patch, coverages_with_clear(4, 9))
    return root


def train(tree, res_dir, name, *words) -> Path:
    roots = ["--root1", tree, "--root2", tree, "--res_dir", res_dir, "--experiment_name", name]
    assert call(train_reconstruct.main, *roots, *words) == 0
    return res_dir / name


@pytest.fixture(scope="module")
def experts(tree, tmp_path_factory) -> Path:
    """Runs: `u` and `m` of both backbones with a region held out, `idle`, whose weights hardly moved."""
    runs = tmp_path_factory.mktemp("experts")
    common = [*NETWORK, "--input_t", "2", "--loss", "NIG", "--fit_rois", "1"]
    train(tree, runs, "u", *common, *WIDTHS, "--scale_by", "10", "--lr", "0.01", "--epochs", "2")
    train(tree, runs, "m", *common, *SQUARE, "--model", "conv3d_mamba", "--lr", "0.01")
    train(tree, runs, "idle", *common, *WIDTHS, "--lr", "1e-9", "--rdm_seed", "1")
    return runs


@pytest.fixture(scope="module")
def untouched(experts) -> dict[str, bytes]:
    """The files of the experts before any fusion."""
    return files_in(experts)


@pytest.fixture(scope="module")
def fused(tree, experts, untouched, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("fused")
    return fuse(tree, experts, runs, "f", "u", "m")


def fuse(tree, experts, res_dir, name, *members, words=()) -> Path:
    names = {"u": "uncrtaints", "m": "conv3d_mamba"}
    entries = [f"{names.get(member, member)}={experts / member}" for member in members]
    return train(tree, res_dir, name, "--model", "fusion_net", "--experts", *entries, *FAST, *words)


def images(t=2, size=32, channels=13, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(2, t, channels, size, size, generator=rng), torch.rand(2, t, generator=rng) * 50 + 1300


def metrics(run, split="test"):
    return json.loads((run / f"{split}_metrics.json").read_text())


def test_a_run_of_a_fusion_is_complete(fused, experts):
    files = {path.name for path in fused.iterdir()}
    assert {"conf.json", "model.pth.tar", "model_epoch_1.pth.tar", "guard.json", "guard.md", "trainlog.json"} <= files
    assert {"test_metrics.json", "val_epoch_1_metrics.json", "plot_test_SE_discard.png", "plot_gate_1.png"} <= files
    assert_whole(fused)
    conf = read_conf(fused / "conf.json")
    assert [entry["name"] for entry in conf["expert_configs"]] == ["uncrtaints", "conv3d_mamba"]
    assert (conf["input_t"], conf["use_sar"], conf["head"]) == (2, False, "nig")  # taken from the experts
    assert conf["held_out"] == read_conf(experts / "u" / "conf.json")["held_out"]
    assert len(conf["held_out"]) == 1
    content = load_checkpoint(fused / "model.pth.tar")
    assert content["guard"] == json.loads((fused / "guard.json").read_text())
    assert content["guard"]["n_images"] == 7  # one of the held-out region, six of the validation region
    assert {"NLL", "ENCE", "coverage 90", "RMSE"} <= metrics(fused).keys()  # known issue 16


def test_the_checkpoint_holds_everything(fused, experts, tmp_path):
    """Away from its experts and from its folder a fusion predicts the same."""
    for name in ("conf.json", "model.pth.tar"):
        (tmp_path / name).write_bytes((fused / name).read_bytes())
    x, dates = images()
    here, there = load_model(fused)(x, dates), load_model(tmp_path)(x, dates)
    for name, field in here.fields().items():
        assert torch.equal(field, there.fields()[name]), name
    assert (here.total > 0).all()


@pytest.mark.parametrize(("index", "name"), [(0, "u"), (1, "m")])
def test_an_expert_inside_is_the_expert_alone_bit_by_bit(fused, experts, index, name):
    x, dates = images()
    net = load_model(fused).model.fusion
    with torch.no_grad():
        inside = net.experts[index](x, dates)
        stacked = net.predict_experts(x, dates)
    reconstruction = load_model(experts / name)
    with torch.no_grad():
        alone = reconstruction.model(x, dates)
    for field, tensor in alone.fields().items():
        assert torch.equal(inside.fields()[field], tensor), field
    unscaled = reconstruction(x, dates)
    assert torch.equal(stacked.mean[index], unscaled.mean)
    assert torch.equal(stacked.variance[index], unscaled.total)


def test_fusing_leaves_the_experts_as_they_were(fused, experts, untouched):
    assert files_in(experts) == untouched
    state = load_checkpoint(fused / "model.pth.tar")["state_dict_G"]
    for index, name in enumerate("um"):
        own = load_checkpoint(experts / name / "model.pth.tar")["state_dict_G"]
        assert all(torch.equal(state[f"experts.{index}.netG.{key}"], value) for key, value in own.items())


def test_the_test_script_repeats_the_test_of_the_training(fused, tree, tmp_path):
    words = ["--experiment_name", fused.name]
    assert call(test_reconstruct.main, *evaluating(fused.parent, tree, tmp_path, *words)) == 0
    again, first = metrics(tmp_path / fused.name), metrics(fused)
    for key in ("RMSE", "PSNR", "NLL", "ENCE"):  # batches of one and of two round differently
        assert again[key] == pytest.approx(first[key], rel=1e-4, abs=1e-6)
    exported = {path.name for path in (tmp_path / fused.name / "export/epoch_1/test").iterdir()}
    assert {"img-0_pred.npy", "img-0_var.npy", "img-1_gamma.npy", "img-1_alpha.npy", "img-1_beta.npy"} <= exported


@pytest.mark.parametrize("rule", ["convex", "monig"])
def test_another_rule_of_a_fitted_fusion(fused, rule, tmp_path, tree):
    """The numbers of all rules are fitted, so that each can be tested from the one run."""
    words = ["--experiment_name", fused.name, "--fusion", rule, "--unguarded", "--export_every", "-1"]
    assert call(test_reconstruct.main, *evaluating(fused.parent, tree, tmp_path, *words)) == 0
    row = next(row for row in json.loads((fused / "guard.json").read_text())["rows"] if row["name"] == rule)
    tested = metrics(tmp_path / fused.name)
    assert tested["RMSE"] == pytest.approx(row["rmse"], rel=0.1)  # the test region looks like the validation region
    assert tested["NLL"] == pytest.approx(row["nll"], abs=0.3)


def test_a_useless_expert_is_left_out(tree, experts, tmp_path):
    run = fuse(tree, experts, tmp_path, "f", "u", "idle")
    guard = json.loads((run / "guard.json").read_text())
    alone, of_fusion = metrics(experts / guard["better"].replace("uncrtaints", "u")), metrics(run)
    assert guard["better"] == "uncrtaints"
    if not guard["accepted"]:
        assert of_fusion["RMSE"] == alone["RMSE"]  # ratio 1.000
        assert of_fusion["SSIM"] == pytest.approx(alone["SSIM"], abs=1e-6)  # float32 sums over another memory layout
    assert of_fusion["RMSE"] <= alone["RMSE"]


def test_twins_do_not_shrink_the_variance(tree, experts, tmp_path):
    run = fuse(tree, experts, tmp_path, "f", "u", "u")
    guard = json.loads((run / "guard.json").read_text())
    assert guard["experts"] == ["uncrtaints_1", "uncrtaints_2"]
    assert not guard["accepted"]
    assert metrics(run)["RMSE"] == metrics(experts / "u")["RMSE"]
    x, dates = images()
    net = load_model(run).model.fusion
    with torch.no_grad():
        predictions = net.predict_experts(x, dates)
        alone = net.recalibrate_expert(predictions, 0, RECALIBRATED).total
        for rule in ("gated", "convex", "ivw", "ivw_rho", "average"):
            ratio = (net.apply_rule(rule, predictions).prediction.total.mean() / alone.mean()).item()
            assert ratio == pytest.approx(1, abs=0.1 if rule == "gated" else 0.02), rule


def test_published_gaussian_and_nig(tree, golden, tmp_path):
    common = [*NETWORK, "--input_t", "3", "--use_sar", "--loss", "NIG"]
    train(tree, tmp_path, "nig", *common, *WIDTHS)
    published = golden / "checkpoints" / "diag"
    words = ["--model", "fusion_net", "--experts", f"published={published}", f"uncrtaints={tmp_path / 'nig'}", *FAST]
    run = train(tree, tmp_path, "mixed", *words)
    x, dates = images(t=3, channels=15)
    fused = load_model(run)
    with torch.no_grad():
        stacked = fused.model.fusion.predict_experts(x, dates)
    alone = load_model(published)(x, dates)
    assert torch.equal(stacked.mean[0], alone.mean)
    assert torch.equal(stacked.variance[0], alone.total)
    assert torch.equal(stacked.gamma[0], torch.ones_like(alone.mean))
    assert (stacked.alpha[0] > 1).all()
    conf = read_conf(run / "conf.json")
    assert conf["expert_configs"][0]["flags"]["head"] == "gaussian"
    assert (conf["use_sar"], conf["input_t"]) == (True, 3)


def test_three_experts(tree, experts, tmp_path):
    run = fuse(tree, experts, tmp_path, "f", "u", "m", "idle")
    names = [row["name"] for row in json.loads((run / "guard.json").read_text())["rows"]]
    assert names == ["uncrtaints", "conv3d_mamba", "idle", "gated", "convex", "ivw", "average", "monig"]
    x, dates = images()
    net = load_model(run).model.fusion
    with torch.no_grad():
        fused = net.apply_rule("gated", net.predict_experts(x, dates))
    torch.testing.assert_close(fused.weights.sum(0), torch.ones_like(fused.weights[0]))


def test_experts_that_held_nothing_out_share_validation(tree, experts, tmp_path, capsys):
    train(tree, tmp_path, "plain", *NETWORK, *WIDTHS, "--input_t", "2", "--loss", "NIG")
    capsys.readouterr()
    entries = [f"uncrtaints={tmp_path / 'plain'}", f"conv3d_mamba={experts / 'm'}"]
    run = train(tree, tmp_path, "f", "--model", "fusion_net", "--experts", *entries, *FAST, "--fusion", "convex")
    out = capsys.readouterr().out
    assert "note: no training region was held out by every expert (--fit_rois), and validation has one region" in out
    assert json.loads((run / "guard.json").read_text())["n_images"] == 6  # three by three, crosswise
    assert "1 region to test on, fewer than 5: patches are treated as independent" in out
    assert not read_conf(run / "conf.json")["held_out"]


def test_networks_of_single_dates(tmp_path):
    root = tmp_path / "mono"
    for roi, patches in (("ROIs1158_spring/1", 2), ("ROIs1158_spring/17", 4), ("ROIs1158_spring/31", 1)):
        for patch in range(patches):
            write_triplet(root, roi, patch)
    common = ["--pretrain", "--root3", root, "--res_dir", tmp_path, *NETWORK, *WIDTHS, "--loss", "NIG"]
    for name, seed in (("a", 1), ("b", 2)):
        assert call(train_reconstruct.main, *common, "--experiment_name", name, "--rdm_seed", seed) == 0
    words = ["--model", "fusion_net", "--experts", tmp_path / "a", tmp_path / "b", "--root3", root, *FAST]
    assert call(train_reconstruct.main, *words, "--res_dir", tmp_path, "--experiment_name", "f") == 0
    assert read_conf(tmp_path / "f" / "conf.json")["pretrain"] is True
    x = images(t=1)[0]
    assert load_model(tmp_path / "f")(x).mean.shape == (2, 1, 13, 32, 32)


# One command


def test_the_published_command_trains_a_fusion():
    """Word by word, except for the name of the network: both experts keep their own widths."""
    values, typed = parse("train", shlex.split(TRAIN.replace("--model uncrtaints", "--model fusion_net")))
    config, _ = resolve_config(values, typed)
    assert (config.head, config.fusion, config.scale_by) == ("nig", "gated", 10.0)
    folder = RunFolder(Path(config.res_dir), config.experiment_name)
    first, second = (expert_config(config, name, folder) for name in EXPERTS)
    alone = [resolve_config(*parse("train", shlex.split(TRAIN.replace("uncrtaints", name))))[0] for name in EXPERTS]
    for expert, own in zip((first, second), alone, strict=True):
        place = {"res_dir": own.res_dir, "experiment_name": own.experiment_name}
        assert replace(expert, **place) == own
    assert first.encoder_widths == (128,)
    assert second.encoder_widths != first.encoder_widths
    assert Path(second.res_dir) == Path("results/my_first_experiment/experts")


@pytest.fixture(scope="module")
def one_command(tree, tmp_path_factory) -> Path:
    words = [*NETWORK, *WIDTHS[:2], "--decoder_widths", "8", "--input_t", "2", "--lr", "0.01", "--fit_rois", "1"]
    words += ["--model", "fusion_net", "--loss", "fusion", "--joint_epochs", "1", "--fusion_epochs", "2"]
    return train(tree, tmp_path_factory.mktemp("one"), "one", *words)


def test_one_command_trains_experts_and_fusion(one_command):
    for name in ("uncrtaints", "conv3d_mamba"):
        conf = read_conf(one_command / "experts" / name / "conf.json")
        assert (conf["model"], conf["loss"], conf["head"]) == (name, "NIG", "nig")
        assert conf["held_out"] == read_conf(one_command / "conf.json")["held_out"]
        assert metrics(one_command / "experts" / name)["samples"] == 2
    x, dates = images()
    assert load_model(one_command)(x, dates).mean.shape == (2, 1, 13, 32, 32)


def test_joint_training_is_tested(one_command):
    guard = json.loads((one_command / "guard.json").read_text())
    remark = next(note for note in guard["notes"] if note.startswith("joint training is"))
    own = load_checkpoint(one_command / "experts/uncrtaints/model.pth.tar")["state_dict_G"]
    state = load_checkpoint(one_command / "model.pth.tar")["state_dict_G"]
    moved = any(not torch.equal(state[f"experts.0.netG.{key}"], value) for key, value in own.items())
    assert moved == remark.startswith("joint training is kept")


def test_a_resumed_command_does_not_train_experts_again(one_command, tree):
    before = files_in(one_command / "experts")
    conf = json.loads((one_command / "conf.json").read_text())
    again = ("--resume_from", "--device", "cpu", "--model", "fusion_net")
    train(tree, one_command.parent, one_command.name, *again, "--fusion_epochs", "3")
    assert files_in(one_command / "experts") == before
    changed = {**conf, "resume_from": True, "fusion_epochs": 3, "history": [{"epoch": 1, "fusion_epochs": [2, 3]}]}
    assert json.loads((one_command / "conf.json").read_text()) == changed
    events = EventAccumulator(str(one_command.parents[1] / "logs" / one_command.name)).Reload()
    assert [event.step for event in events.Scalars("fusion/gate, training")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("test/loss")] == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume_at", "1"], "--resume_at: a fusion is fitted anew when it resumes"),
        (["--trained_checkp", "x.pth.tar"], "--trained_checkp: a fusion is fitted anew when it resumes"),
        (["--loss", "NIG"], r"--loss NIG \(it has fusion\) would make this training another experiment"),
        (["--experts", "a=b", "c=d"], "--experts .* would make this training another experiment"),
    ],
)
def test_a_fusion_does_not_resume_with_everything(one_command, tree, words, message):
    values, typed = parse(
        "train", ["--res_dir", str(one_command.parent), "--experiment_name", one_command.name, *words]
    )
    with pytest.raises(UsageError, match=message):
        resolve_training({**values, "resume_from": True}, {*typed, "resume_from"})


def test_fewer_epochs_than_an_expert_has_are_refused(one_command, monkeypatch):
    values = json.loads((one_command / "conf.json").read_text()) | {"resume_from": True}
    folder = RunFolder(one_command.parent, one_command.name)
    monkeypatch.setattr(RunFolder, "epochs", lambda self: [1, 2])
    with pytest.raises(UsageError, match="--epochs 1: uncrtaints has 2 epochs already"):
        train_experts(resolve_config(values, {"head"})[0], folder, pytest.fail)


# Errors


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--experts", "uncrtaints=RUNS/u"], "--experts names one run, uncrtaints=", 2),
        (["--experts", "utae=RUNS/u", "RUNS/m"], "that run is of uncrtaints; write uncrtaints=", 2),
        (["--experts", "RUNS/nowhere", "RUNS/m"], "expected the folder of a trained run, as name=RUN", 1),
        (["--experts", "RUNS", "RUNS/m"], "there is no conf.json in", 1),
        (["--experts", "RUNS/u", "RUNS/m", "--input_t", "3"], "--input_t 3: the experts were trained with 2", 2),
        (["--experts", "RUNS/u", "RUNS/m", "--use_sar"], "--use_sar True: the experts were trained with False", 2),
        (["--experts", "RUNS/u", "RUNS/m", "RUNS/m", "--fusion", "ivw_rho"], "ivw_rho fuses two experts, got 3", 2),
        (["--experts", "RUNS/u", "RUNS/m", "--loss", "l2"], "needs experts with a variance, --loss l2 trains none", 2),
        (["--experts", "RUNS/u", "RUNS/m", "--head", "gaussian"], "predicts with --head nig, got gaussian", 2),
        (["--experts", "RUNS/u", "RUNS/m", "--trained_checkp", "x"], "does not initialise a fusion", 2),
        (["--experts", "RUNS/u", "RUNS/m", "--profile"], "--profile measures one network", 2),
        (["--fit_rois", "2"], "--fit_rois 2 leaves none of the 2 training regions", 1),
    ],
)  # fmt: skip
def test_refusals(tree, experts, tmp_path, capsys, words, message, code):
    words = [word.replace("RUNS", str(experts)) for word in words]
    roots = ["--root1", tree, "--root2", tree, "--res_dir", tmp_path / "r", "--device", "cpu"]
    assert message in refused(capsys, train_reconstruct.main, *roots, "--model", "fusion_net", *words, code=code)


def test_experts_with_different_inputs(tree, experts, tmp_path, capsys):
    (tmp_path / "three").mkdir()
    conf = json.loads((experts / "u" / "conf.json").read_text())
    (tmp_path / "three" / "conf.json").write_text(json.dumps(conf | {"input_t": 3}))
    words = ["--model", "fusion_net", "--experts", experts / "m", tmp_path / "three", "--device", "cpu"]
    roots = ["--root1", tree, "--root2", tree, "--res_dir", tmp_path / "r"]
    error = refused(capsys, train_reconstruct.main, *roots, *words, code=2)
    assert "--experts must have the same inputs; their --input_t differs: m 2, three 3" in error


def test_experts_belong_to_fusion_net(tree, experts, capsys):
    error = refused(capsys, train_reconstruct.main, "--root1", tree, "--experts", experts / "u", experts / "m", code=2)
    assert "--experts belongs to --model fusion_net, got --model uncrtaints" in error


@pytest.mark.parametrize(("change", "word"), [("missing", "missing: in_conv"), ("extra", "unexpected: surplus")])
def test_weights_that_do_not_fit_are_listed(tree, experts, tmp_path, capsys, change, word):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "conf.json").write_bytes((experts / "u" / "conf.json").read_bytes())
    content = load_checkpoint(experts / "u" / "model.pth.tar")
    state = content["state_dict_G"]
    if change == "missing":
        del state[next(key for key in state if key.startswith("in_conv"))]
    else:
        state["surplus"] = torch.zeros(2)
    save_checkpoint(spoiled / "model.pth.tar", {**content, "state_dict": {}, "state_dict_G": state})
    words = ["--model", "fusion_net", "--experts", spoiled, experts / "m", *FAST, "--res_dir", tmp_path / "r"]
    error = refused(capsys, train_reconstruct.main, "--root1", tree, "--root2", tree, *words, code=1)
    assert word in error


def test_weights_of_a_fusion_that_do_not_fit_are_listed(fused, tmp_path, tree, capsys):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "conf.json").write_bytes((fused / "conf.json").read_bytes())
    content = load_checkpoint(fused / "model.pth.tar")
    del content["state_dict_G"][
        "experts.1.netG." + next(iter(load_model(fused).model.fusion.experts[1].netG.state_dict()))
    ]
    save_checkpoint(spoiled / "model.pth.tar", {**content, "state_dict": {}})
    words = ["--experiment_name", "spoiled", "--weight_folder", tmp_path, "--root2", tree, "--device", "cpu"]
    error = refused(capsys, test_reconstruct.main, *words, "--res_dir", tmp_path / "i", code=1)
    assert "missing: experts.1.netG." in error

"""Checkpoints: whole or absent, read without running code, fitted strictly; resuming; weights of another network."""

import copy
import io
import math
import pickle
import random
import resource
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.random import mtrand

from common.errors import DataError
from model.build import build_loss, build_optimizer, build_scheduler
from model.compat import rename_keys
from model.weights import load_checkpoint, save_checkpoint
from tests.support.network_cases import small_network
from training.checkpoint import (
    VERSION,
    load_weights,
    random_states,
    restore_random_states,
    resume,
    save_state,
    set_rates,
)
from training.engine import TrainState

RATES = SimpleNamespace(lr=0.01, gamma=0.9, to_json=lambda: {"model": "uncrtaints", "encoder_widths": [8]})
GOLDEN = {"encoder_widths": (32,), "decoder_widths": (32, 32, 32), "n_head": 4, "d_model": 64, "use_sar": True}


def build(seed: int = 0, **changes):
    return small_network(seed=seed, **{"head": "gaussian", "scale_by": 10.0, **changes})


def training(seed: int = 0, **changes) -> TrainState:
    model = build(seed, **changes)
    optimizer = build_optimizer(model, RATES.lr)
    return TrainState(model, optimizer, build_scheduler(optimizer, RATES.gamma))


def train_epoch(state: TrainState, steps: int = 2) -> None:
    """A few steps whose data and dropout come from torch's global generator, as a check of its state."""
    criterion = build_loss(state.model.config)
    for _ in range(steps):
        x, dates = torch.rand(1, 3, 13, 12, 12), torch.rand(1, 3) * 60
        state.optimizer.zero_grad()
        criterion(state.model(x, dates), x[:, :1] * 10).backward()
        state.optimizer.step()
    state.scheduler.step()
    state.epoch += 1
    state.best_loss = 1.5 - state.epoch
    state.trainlog[str(state.epoch)] = {"train_loss": 0.5}


def same(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(key == name and torch.equal(a, b) for (key, a), (name, b) in pairs)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    # known issue 10: published resuming starts at epoch 1, forgets the best loss and the random states
    path = tmp_path / "model_epoch_1.pth.tar"
    whole = training()
    train_epoch(whole)
    save_state(path, whole, RATES)
    train_epoch(whole)
    torch.manual_seed(99)
    random.seed(99)
    again = training(seed=7)
    resume(path, again)
    assert (again.epoch, again.best_loss, again.trainlog) == (1, 0.5, {"1": {"train_loss": 0.5}})
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.009)
    train_epoch(again)
    assert same(whole.model, again.model)
    moments = [s.optimizer.state_dict()["state"][0]["exp_avg"] for s in (whole, again)]
    assert torch.equal(*moments)


def test_what_a_checkpoint_holds(tmp_path):
    path = tmp_path / "model.pth.tar"
    state = training()
    train_epoch(state)
    save_state(path, state, RATES)
    content = torch.load(path, weights_only=True)
    published = {"epoch", "state_dict", "state_dict_G", "optimizer_G", "scheduler_G"}
    assert set(content) == published | {"scaler", "best_loss", "frozen", "trainlog", "rng", "config", "version"}
    assert content["version"] == VERSION
    assert content["config"] == {"model": "uncrtaints", "encoder_widths": [8]}
    assert set(content["rng"]) == {"python", "numpy", "torch", "cuda"}
    assert list(content["state_dict"]) == [f"netG.{key}" for key in content["state_dict_G"]]
    # the two dicts share their tensors: weights are stored once
    for key, value in content["state_dict_G"].items():
        assert value.data_ptr() == content["state_dict"][f"netG.{key}"].data_ptr()
    other = build(seed=3)
    assert load_weights(path, other) == 1
    assert same(state.model, other)


def test_best_loss_of_a_fresh_training_survives(tmp_path):
    state = training()
    save_state(tmp_path / "fresh.pth.tar", state, RATES)
    again = training()
    resume(tmp_path / "fresh.pth.tar", again)
    assert again.best_loss == math.inf


def test_all_generators_go_back():
    def draw():
        return random.random(), mtrand.random_sample(), mtrand.standard_normal(), torch.rand(1).item()

    mtrand.standard_normal()  # the legacy generator keeps the second of a pair
    states = random_states()
    first = draw()
    assert draw() != first
    restore_random_states(states)
    assert draw() == first


def test_published_checkpoints_resume(golden):
    flags = {"loss": "MGNLL", "covmode": "iso", **GOLDEN, "low_res_size": 32}
    state = training(**flags)
    state.best_loss = 2.0
    resume(golden / "checkpoints" / "iso" / "model.pth.tar", state)
    assert state.epoch == 3
    assert state.best_loss == 2.0  # it stores none
    assert state.optimizer.param_groups[0]["lr"] == 0.001
    weights = torch.load(golden / "checkpoints" / "iso" / "model.pth.tar", weights_only=True)["state_dict_G"]
    assert torch.equal(state.model.netG.in_conv.last.weight, weights["in_conv.conv.conv.0.weight"])


def test_frozen_weights_stay_frozen_after_resuming(tmp_path):
    state = training()
    state.frozen = tuple(name for name, _ in state.model.named_parameters() if "in_block" in name)
    save_state(tmp_path / "frozen.pth.tar", state, RATES)
    again = training()
    resume(tmp_path / "frozen.pth.tar", again)
    assert again.frozen == state.frozen
    assert {n for n, p in again.model.named_parameters() if not p.requires_grad} == set(state.frozen)


def test_weights_alone_cannot_be_resumed(tmp_path):
    path = tmp_path / "weights.pth.tar"
    save_checkpoint(path, {"state_dict_G": build().netG.state_dict()})
    with pytest.raises(DataError, match=r"weights.pth.tar has no epoch, optimizer_G, scheduler_G.*--trained_checkp"):
        resume(path, training())


def test_an_optimiser_of_another_training_is_refused(tmp_path):
    path = tmp_path / "other.pth.tar"
    state = training()
    save_state(path, state, RATES)
    content = torch.load(path, weights_only=True)
    content["optimizer_G"]["param_groups"][0]["params"] = [0, 1]
    save_checkpoint(path, content)
    with pytest.raises(DataError, match="other.pth.tar, entry optimizer_G, params: expected numbers of the 52 weights"):
        resume(path, training())


def stored_training(path) -> dict:
    """The content of a checkpoint after one epoch, to damage."""
    state = training()
    train_epoch(state, steps=1)
    save_state(path, state, RATES)
    return torch.load(path, weights_only=True)


def put(*keys_and_value):
    """A function that replaces an entry of a nested checkpoint."""
    *keys, last, value = keys_and_value

    def damage(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return damage


FIRST_GROUP = ("optimizer_G", "param_groups", 0)
DAMAGED = {
    "epoch of text": (put("epoch", "one"), "expected a number of epochs under 'epoch', got 'one'"),
    "negative epoch": (put("epoch", -1), "expected a number of epochs under 'epoch', got -1"),
    "half an epoch": (put("epoch", 1.5), "expected a number of epochs under 'epoch', got 1.5"),
    "no epoch": (put("epoch", None), "entry epoch: expected the number of completed epochs, got None"),
    "later layout": (put("version", 2), "entry version: expected 1, the layout of this version, got 2"),
    "best loss NaN": (
        put("best_loss", math.nan),
        "entry best_loss: expected the lowest validation loss so far, got nan",
    ),
    "best loss -inf": (put("best_loss", -math.inf), "entry best_loss: .* got -inf"),
    "best loss of text": (put("best_loss", "0.1"), "entry best_loss: .* got '0.1'"),
    "best loss a tensor": (put("best_loss", torch.zeros(3)), "entry best_loss: .* got tensor"),
    "frozen a number": (put("frozen", 3), "entry frozen: expected names of weights of this network, got 3"),
    "frozen of numbers": (put("frozen", [3]), r"entry frozen: .* got \[3\]"),
    "frozen unknown": (put("frozen", ["netG.nothing"]), "entry frozen: .*netG.nothing"),
    "trainlog a list": (put("trainlog", []), r"entry trainlog: expected figures of epochs up to 1, got \[\]"),
    "trainlog of later epochs": (put("trainlog", {"2": {}}), "entry trainlog: expected figures of epochs up to 1"),
    "trainlog of text": (put("trainlog", {"1": {"val_loss": "low"}}), "entry trainlog: .*low"),
    "trainlog with numbers as keys": (put("trainlog", {1: {}}), "entry trainlog"),
    "optimiser a list": (put("optimizer_G", []), "entry optimizer_G: expected the state of Adam with one group"),
    "optimiser without state": (put("optimizer_G", "state", None), "entry optimizer_G, state: expected the moments"),
    "moments lost": (put("optimizer_G", "state", {}), "entry optimizer_G, state: expected the moments"),
    "moments of a list": (
        put("optimizer_G", "state", 0, [1]),
        "entry optimizer_G, state, 0: expected step, and exp_avg",
    ),
    "moments of another shape": (put("optimizer_G", "state", 0, "exp_avg", torch.ones(2)), "state, 0: .* of shape"),
    "moments of whole numbers": (put("optimizer_G", "state", 5, "exp_avg_sq", torch.ones(8).int()), "state, 5: "),
    "step NaN": (put("optimizer_G", "state", 0, "step", torch.tensor(math.nan)), "state, 0: expected step"),
    "step of text": (put("optimizer_G", "state", 0, "step", "1"), "state, 0: expected step"),
    "no groups": (
        put("optimizer_G", "param_groups", []),
        "entry optimizer_G: expected the state of Adam with one group",
    ),
    "rate NaN": (put(*FIRST_GROUP, "lr", math.nan), "entry optimizer_G, lr: expected a learning rate, got nan"),
    "rate of text": (put(*FIRST_GROUP, "lr", "fast"), "entry optimizer_G, lr: expected a learning rate, got 'fast'"),
    "uphill": (put(*FIRST_GROUP, "maximize", True), "entry optimizer_G, maximize: expected False as in this training"),
    "other betas": (put(*FIRST_GROUP, "betas", (0.5, 2.0)), r"optimizer_G, betas: expected \(0.9, 0.999\)"),
    "betas of tensors": (put(*FIRST_GROUP, "betas", (torch.ones(2), 1)), "optimizer_G, betas"),
    "schedule a list": (put("scheduler_G", [1]), "entry scheduler_G: expected gamma, base_lrs and last_epoch"),
    "gamma of text": (put("scheduler_G", "gamma", "x"), "entry scheduler_G, gamma: expected a value as 0.9, got 'x'"),
    "rates of the schedule": (put("scheduler_G", "base_lrs", [math.inf]), "entry scheduler_G, base_lrs"),
    "epoch of the schedule": (put("scheduler_G", "last_epoch", 0.5), "entry scheduler_G, last_epoch"),
    "generators a list": (put("rng", []), "entry rng: expected states of the random generators"),
    "generator of Python": (put("rng", "python", (3, (1, 2), None)), "entry rng: "),
    "generator of numpy": (put("rng", "numpy", ("MT19937", torch.ones(3), 0, 0, 0.0)), "entry rng: "),
    "position in numpy's": (put("rng", "numpy", ("MT19937", torch.ones(624).long(), 10**9, 0, 0.0)), "entry rng: "),
    "generator of torch": (put("rng", "torch", torch.ones(3)), "entry rng: "),
    "generator missing": (lambda content: content["rng"].pop("torch"), "entry rng: "),
    "weights of numbers": (put("state_dict_G", {"a": 1}), None),  # `state_dict` has them too
    "weights complex": (
        lambda content: content["state_dict_G"].update({k: v + 0j for k, v in content["state_dict_G"].items()}),
        "holds .* weights of another kind: in_conv.conv.conv.0.weight complex64 instead of floating-point",
    ),
    "weights int8": (
        lambda content: content["state_dict_G"].update({"in_conv.conv.conv.0.bias": torch.ones(8).char()}),
        "holds 1 weights of another kind: in_conv.conv.conv.0.bias integer instead of floating-point",
    ),
    "weights sparse": (
        lambda content: content["state_dict_G"].update({"in_conv.conv.conv.0.bias": torch.ones(8).to_sparse()}),
        "in_conv.conv.conv.0.bias sparse_coo instead of floating-point",
    ),
    "weights without names": (
        lambda content: content.update({"state_dict_G": {1: torch.ones(1)}, "state_dict": torch.ones(2)}),
        "expected weights under 'state_dict'",
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_entry_is_named(tmp_path, how):
    path = tmp_path / "model_epoch_1.pth.tar"
    content = stored_training(path)
    damage, expected = DAMAGED[how]
    damage(content)
    torch.save(content, path)
    if expected is None:
        resume(path, training())
        return
    with pytest.raises(DataError, match=expected) as caught:
        resume(path, training())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def entries(content, *above):
    """The path of every entry of a nested dict, but those of the weights and of most moments."""
    for key, value in content.items():
        yield (*above, key)
        if (
            isinstance(value, dict)
            and key not in ("state_dict", "state_dict_G")
            and not (above and key in range(1, 99))
        ):
            yield from entries(value, *above, key)


def test_any_entry_replaced_by_anything_is_used_or_named(tmp_path):
    content = stored_training(tmp_path / "whole.pth.tar")
    path, refused = tmp_path / "model_epoch_1.pth.tar", 0
    replacements = [None, "x", -1, True, math.nan, math.inf, 2**70, [], {}, (1, "x"), torch.zeros(2, 2), [[[]]]]
    places = [place for place in entries(content) if place[0] != "config"]
    assert len(places) > 25
    for number, place in enumerate(places):
        for replacement in replacements[number % 4 :: 4]:
            damaged = copy.deepcopy(content)
            put(*place, replacement)(damaged)
            torch.save(damaged, path)
            state = training()
            try:
                resume(path, state)
            except DataError:
                refused += 1
            else:
                train_epoch(state, steps=1)
    assert refused > 60


@pytest.mark.parametrize("prefix", ["module.", "netG.module.", "_orig_mod.", "module.netG._orig_mod.", ""])
@pytest.mark.parametrize("entry", ["state_dict", "state_dict_G"])
def test_prefixes_of_wrappers_are_understood(tmp_path, prefix, entry):
    """Those of DataParallel, DistributedDataParallel and torch.compile."""
    path = tmp_path / "model.pth.tar"
    weights = build().netG.state_dict()
    torch.save({entry: {prefix + key: value for key, value in weights.items()}, "epoch": 2}, path)
    other = build(seed=1)
    assert load_weights(path, other) == 2
    assert all(torch.equal(value, weights[key]) for key, value in other.netG.state_dict().items())


def test_weights_of_a_compiled_part_are_understood(tmp_path):
    path = tmp_path / "model.pth.tar"
    weights = build().netG.state_dict()
    torch.save({"state_dict": {key.replace("in_conv.", "in_conv._orig_mod."): v for key, v in weights.items()}}, path)
    assert load_checkpoint(path)["state_dict_G"].keys() == weights.keys()
    torch.save({"state_dict": {**weights, "module.in_conv.conv.conv.0.bias": torch.ones(8)}}, path)
    with pytest.raises(DataError, match="holds 1 weights twice, with and without prefixes"):
        load_checkpoint(path)


def test_numbers_of_numpy_are_plain_numbers(tmp_path):
    path = tmp_path / "model.pth.tar"
    content = stored_training(path)
    content |= {"epoch": np.int64(1), "best_loss": np.float64(0.25), "trainlog": {"1": {"val_loss": np.float32(0.25)}}}
    torch.save(content, path)
    state = training()
    resume(path, state)
    assert (state.epoch, state.best_loss, state.trainlog) == (1, 0.25, {"1": {"val_loss": 0.25}})
    assert type(state.epoch) is int
    assert type(state.trainlog["1"]["val_loss"]) is float
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):  # as numpy 1 and 2 write them
        written = pickle.dumps({"a": np.float64(0.5)}, protocol=2)
        for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            written = written.replace(b"c" + name + b"\n", b"c" + module + b"\n")
        assert torch.load(io.BytesIO(archive(written)), weights_only=True) == {"a": 0.5}


def archive(pickled: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    source, target = io.BytesIO(), io.BytesIO()
    torch.save({}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return target.getvalue()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Path("x"), "pathlib.*Path"),
        (np.arange(3), "numpy.*_reconstruct"),
        (np.datetime64("2018-01-01"), "numpy.dtypes.DateTime64DType"),
        (SimpleNamespace(a=1), "types.SimpleNamespace"),
    ],
)
def test_the_offender_in_a_refused_checkpoint_is_named(tmp_path, value, name):
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": build().netG.state_dict(), "extra": value}, path)
    with pytest.raises(DataError, match=f"is refused: it holds {name}, neither tensor nor plain value, .* save it wit"):
        load_checkpoint(path)


def test_a_rate_that_is_named_acts_from_the_next_epoch_on(tmp_path):
    path = tmp_path / "model_epoch_1.pth.tar"
    stored_training(path)
    state = training()
    resume(path, state)
    assert not set_rates(state, RATES.lr, RATES.gamma)  # the command line of the start repeated
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.009)
    assert set_rates(state, 1e-5, 0.5)
    assert state.optimizer.param_groups[0]["lr"] == 1e-5
    train_epoch(state)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(5e-6)
    save_state(path, state, RATES)
    again = training()
    resume(path, again)
    assert not set_rates(again, 1e-5, 0.5)
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(5e-6)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "model.pth.tar"
    save_checkpoint(path, {"state_dict_G": {"old": torch.ones(3)}})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))  # files end here, as they do on a full disk
    try:
        with pytest.raises(DataError, match="disk full while saving .*what stood there before is untouched"):
            save_state(path, training(), RATES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth.tar"]


class Hostile:
    """Unpickled by a trusting reader, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, writer):
    path, mark = tmp_path / "model.pth.tar", tmp_path / "ran"
    content = {"state_dict_G": {"weight": torch.ones(1)}, "config": Hostile(mark)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict_G": Hostile(mark)}, protocol=2))
    with pytest.raises(DataError, match="model.pth.tar is refused: .* could run code"):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_file_is_refused(tmp_path, share, zipped):
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict_G": build().netG.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"model.pth.tar (cannot be read as a checkpoint; is it complete|is refused)"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict with 'state_dict', got a list"),
        ({"epoch": 3, "weights": {}}, r"expected weights under 'state_dict', got \['epoch', 'weights'\]"),
        ({"state_dict_G": {"a": 1.0}}, "expected weights under 'state_dict'"),
        ({"state_dict": {}}, "expected weights under 'state_dict'"),
    ],
)
def test_other_files_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "model.pth.tar"
    torch.save(content, path)
    with pytest.raises(DataError, match=message):
        load_checkpoint(path)
    with pytest.raises(DataError, match="there is no checkpoint .*absent"):
        load_checkpoint(tmp_path / "absent")


def test_text_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.pth.tar"
    path.write_text("not a checkpoint at all")
    with pytest.raises(DataError, match="model.pth.tar is refused|cannot be read"):
        load_checkpoint(path)


def test_every_weight_that_does_not_fit_is_named_with_its_shape(tmp_path):
    # known issue 10: published loading leaves what does not fit random, without a word
    path = tmp_path / "model.pth.tar"
    save_checkpoint(path, {"state_dict_G": build(use_sar=True).netG.state_dict(), "epoch": 1})
    other = build(seed=1, decoder_widths=(8, 8, 8), use_v=True, covmode="iso")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_weights(path, other)
    message = str(caught.value)
    assert "of another architecture than the flags describe" in message
    assert "in_conv.conv.conv.0.weight 8x15x1x1 instead of 8x13x1x1" in message
    assert "out_conv.conv.conv.0.bias 26 instead of 14" in message
    assert "36 missing: temporal_encoder.out_norm.weight 8, " in message
    assert "and 33 more; " in message
    for flag in ("--use_sar", "--decoder_widths", "--use_v", "--covmode", "--head"):
        assert flag in message.split("check ")[1]
    assert "\n" not in message
    assert len(message) < 1000
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    save_checkpoint(path, {"state_dict_G": build(use_v=True).netG.state_dict()})
    with pytest.raises(DataError, match=r"11 unexpected: temporal_encoder.out_norm.weight 8, .*--use_v"):
        load_weights(path, build())


def test_the_oldest_names_are_understood(tmp_path):
    state = build().netG.state_dict()
    old = {
        key.replace("in_block.0.", "in_block1.").replace("out_block.1.", "out_block2."): v for key, v in state.items()
    }
    old = {key.replace("out_block.0.", "out_block1."): value for key, value in old.items()}
    assert rename_keys(old).keys() == state.keys()
    assert rename_keys(state).keys() == state.keys()
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {f"netG.{key}": value for key, value in old.items()}, "epoch": 4}, path)
    other = build(seed=5)
    assert load_weights(path, other) == 4
    assert torch.equal(other.netG.out_block[1].conv.fn[3].weight, state["out_block.1.conv.fn.3.weight"])


def test_optimiser_and_rate():
    model = build()
    optimizer = build_optimizer(model, RATES.lr)
    scheduler = build_scheduler(optimizer, RATES.gamma)
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups) == 1
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.netG.parameters()]
    for expected in (0.009, 0.0081):
        optimizer.step()
        scheduler.step()
        assert np.isclose(optimizer.param_groups[0]["lr"], expected)

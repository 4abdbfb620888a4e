"""The flags of every script: one line each, a frozen `Config`, and how conf.json goes in and out.

Spelling and defaults are those of UnCRtainTS; what its flags did not do, or did by surprise, is said in the help.
`resolve` is pure: it takes what was typed and gives what will be done, or says which flags contradict each other.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from common.errors import DataError, UsageError
from config.defaults import RULES, WITH_SCAN, settle_network
from config.stored import check_stored
from config.validation import refuse_contradictions
from data.constants import N_S2, REGIONS

MODELS = ("uncrtaints", "conv3d_mamba", "fusion_net", "utae", "unet")
LOSSES = ("l1", "l2", "GNLL", "MGNLL", "NIG", "fusion")
HEADS = ("nig", "gaussian", "mean")
NORMS = ("group", "batch", "instance", "none")
TEST_DEFAULTS = {"res_dir": "./inference", "export_every": 1, "resume_at": -1}
# Beside the flags of the group "run", a test takes these from its own command line rather than from the run's conf.json.
OF_THIS_TEST = {"batch_size", "num_workers", "max_samples_count", "max_samples_frac", "min_cov", "max_cov", "region"}
OF_THIS_TEST |= {"skip_bad_samples", "resume_at", "resume_from", "trained_checkp"}


def flag(
    group: str, default: Any, text: str, *, choices: Sequence[str] = (), off: bool = False, kind: Any = None
) -> Any:
    """One flag: its group in the help ("": no one types it), default, explanation; `off`: its presence switches off."""
    return field(default=default, metadata={"group": group, "text": text, "choices": choices, "off": off, "kind": kind})


def widths(text: str) -> tuple[int, ...]:
    """Layer widths from `[64,64,128]`, `64 64 128` or JSON."""
    try:
        found = tuple(int(word) for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as [64,64,128], got {text!r}") from error
    if any(width < 1 for width in found):
        raise argparse.ArgumentTypeError(f"widths must be positive, got {text!r}")
    return found


def workers(text: str) -> int | str:
    """A number of workers, or `auto`."""
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of workers or auto, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class Config:
    """Every flag, resolved; field names are the flags' names."""

    # fmt: off
    model: str = flag("model", "uncrtaints", "backbone", choices=MODELS)
    head: str = flag("model", "", "what the network predicts: Normal-Inverse-Gamma, Gaussian, or the mean alone (default: nig; mean for l1 and l2; gaussian with --covmode iso or uni)", choices=HEADS)
    encoder_widths: tuple[int, ...] = flag("model", (128,), "channels of the encoder blocks, as [64,64,128] or 64 64 128", kind=widths)
    decoder_widths: tuple[int, ...] = flag("model", (128, 128, 128, 128, 128), "channels of the decoder blocks", kind=widths)
    out_conv: tuple[int, ...] = flag("model", (N_S2,), "channels of the last layers; the last one grows to what the head needs", kind=widths)
    mean_nonLinearity: bool = flag("model", True, "NAMING THIS FLAG SWITCHES OFF the sigmoid of the mean, as published; --no-mean_nonLinearity does the same", off=True)
    var_nonLinearity: str = flag("model", "softplus", "how a Gaussian head keeps its variance positive", choices=("softplus", "relu", "elu"))
    agg_mode: str = flag("model", "att_group", "how dates are merged", choices=("att_group", "att_mean", "mean"))
    encoder_norm: str = flag("model", "group", "normalisation in the encoder", choices=NORMS)
    decoder_norm: str = flag("model", "batch", "normalisation in the decoder", choices=NORMS)
    block_type: str = flag("model", "mbconv", "convolution block", choices=("mbconv", "residual"))
    padding_mode: str = flag("model", "reflect", "how convolutions pad the border", choices=("reflect", "zeros", "replicate", "circular"))
    pad_value: float = flag("model", 0.0, "a date whose every value is this one is padding")
    n_head: int = flag("model", 16, "attention heads over dates")
    d_model: int = flag("model", 256, "channels inside the attention over dates")
    d_k: int = flag("model", 4, "channels of keys and queries")
    positional_encoding: bool = flag("model", True, "NAMING THIS FLAG SWITCHES OFF the encoding of dates, as published; also --no-positional_encoding", off=True)
    low_res_size: int = flag("model", 32, "pixels across of the map on which dates are compared")
    use_v: bool = flag("model", False, "attention carries values as well as weights")
    separate_out: bool = flag("model", False, "separate last layers for mean and variance")
    covmode: str = flag("model", "diag", "variance of a Gaussian head: diag and uni one for each band, iso one for all", choices=("diag", "iso", "uni"))
    scale_by: float = flag("model", 1.0, "the network sees reflectance multiplied by this; 10 steadies the likelihood losses")

    loss: str = flag("training", "MGNLL", "what is minimised", choices=LOSSES)
    weight_reg: float = flag("training", 0.05, "weight of the evidence regulariser of --loss NIG")
    evidence_reg: str = flag("training", "prior", "evidence regulariser of --loss NIG", choices=("prior", "amini", "meinert", "none"))
    lambda1: float = flag("fusion", 1.0, "--loss fusion: weight of the conv3d_mamba term")
    lambda2: float = flag("fusion", 1.0, "--loss fusion: weight of the uncrtaints term")
    epochs: int = flag("training", 20, "epochs to train")
    batch_size: int = flag("training", 4, "samples of one step; torchrun's processes share them (docs/scaling.md)")
    lr: float = flag("training", 0.01, "learning rate of Adam")
    gamma: float = flag("training", 1.0, "the rate is multiplied by this after each epoch")
    accumulate: int = flag("training", 1, "steps whose gradients are averaged before the weights move: the memory of one, the batch of all")
    clip_grad: float = flag("training", 0.0, "largest norm of the gradient; 0 leaves it alone")
    rdm_seed: int = flag("training", 1, "seed of weights, order, dates and dropout")
    val_every: int = flag("training", 1, "epochs from one validation to the next")
    val_after: int = flag("training", 0, "no validation up to this epoch")
    trained_checkp: str = flag("training", "", "weights to start from; with --resume_from, the checkpoint to go on from")
    unfreeze_after: int = flag("training", 0, "keep loaded weights frozen up to this epoch")
    resume_from: bool = flag("training", False, "go on with this experiment: its conf.json, and its latest epoch or --trained_checkp")
    resume_at: int = flag("training", 0, "training: the epoch to go on from (0: the latest); test: the epoch to load (-1: the best on validation)")
    chunk_size: int | None = flag("training", None, "accepted for old command lines, without effect: no covariance is formed any more", kind=int)
    legacy: bool = flag("training", False, "bring back the published behaviour, mistakes included, for comparison (docs/deviations.md)")

    experts: tuple[str, ...] = flag("fusion", (), "trained runs that --model fusion_net fuses, as uncrtaints=RUN conv3d_mamba=RUN; without them it trains both first", kind=str)
    fusion: str = flag("fusion", "gated", "how experts are weighed (docs/fusion.md)", choices=RULES)
    fusion_epochs: int = flag("fusion", 30, "epochs of the gate")
    fusion_lr: float = flag("fusion", 0.003, "learning rate of the gate at its start")
    joint_epochs: int = flag("fusion", 5, "--loss fusion: epochs in which experts and gate train together, at a tenth of --lr")
    fit_rois: int = flag("fusion", -1, "training regions that are held out (drawn by --rdm_seed) to fit a fusion later; -1: a tenth of them where fusion_net trains its experts, else none")
    unguarded: bool = flag("fusion", False, "follow the rule even where validation does not show that it helps")
    expert_configs: tuple[Any, ...] = flag("", (), "the experts' own flags")
    held_out: tuple[str, ...] = flag("", (), "the regions that --fit_rois held out")

    root1: str = flag("data", "", "SEN12MS-CR-TS, where the training regions lie")
    root2: str = flag("data", "", "SEN12MS-CR-TS, where the validation and test regions lie")
    root3: str = flag("data", "", "SEN12MS-CR, for --pretrain")
    precomputed: str = flag("data", "", "folder of stored cloud masks, or of published coverage files (default: a store beside the data)")
    region: str = flag("data", "all", "part of the world", choices=REGIONS)
    input_t: int = flag("data", 3, "dates that go in")
    use_sar: bool = flag("data", False, "radar goes in as well")
    pretrain: bool = flag("data", False, "one date in: train on SEN12MS-CR (--root3)")
    sample_type: str = flag("data", "cloudy_cloudfree", "cloudy dates with one clear target, or all dates", choices=("cloudy_cloudfree", "generic", "pretrain"))
    vary_samples: bool = flag("data", True, "NAMING THIS FLAG SWITCHES OFF new dates in each epoch, as published; also --no-vary_samples", off=True)
    min_cov: float = flag("data", 0.0, "least cloud cover of an input (ignored in training while dates vary)")
    max_cov: float = flag("data", 1.0, "largest cloud cover of an input (ignored in training while dates vary)")
    ref_date: str = flag("data", "2014-04-03", "day from which dates are counted")
    max_samples_count: int = flag("data", int(1e9), "take at most so many samples of each split")
    max_samples_frac: float = flag("data", 1.0, "take this share of each split, spread over its regions")
    num_workers: int | str = flag("data", 0, "processes that load data, or auto", kind=workers)
    skip_bad_samples: bool = flag("data", False, "go on past unreadable patches and list them at the end")

    experiment_name: str = flag("run", "my_first_experiment", "name of the run")
    res_dir: str = flag("run", "./results", "where runs are written")
    weight_folder: str = flag("run", "./results", "test: where trained runs lie")
    load_config: str = flag("run", "", "test: a conf.json to restore (default: the run's own)")
    use_custom: str = flag("run", "", "test: a JSON list of custom samples; bare: the published list")
    device: str = flag("run", "cuda", "cuda, cuda:1, or cpu")
    precision: str = flag("run", "fp32", "arithmetic of the backbone; auto takes bf16 where the device has it", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = flag("run", False, "torch.compile the backbone")
    ssm_backend: str = flag("run", "auto", "what computes the selective scan of conv3d_mamba; auto takes the fastest that works on the device", choices=("auto", "torch", "triton", "mamba_ssm"))
    display_step: int = flag("run", 10, "steps between two entries in the logs")
    plot_every: int = flag("run", -1, "plot every so many samples of validation and test; -1 none")
    export_every: int = flag("run", -1, "export every so many samples of validation and test; -1 none")
    profile: bool = flag("run", False, "report FLOPs, parameters, time and memory of one step, then stop")
    debug: bool = flag("run", False, "show the traceback of an error")
    # fmt: on

    def to_json(self) -> dict[str, Any]:
        """Every flag by name, as conf.json holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class _Help(argparse.HelpFormatter):
    """Tells the defaults that are worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in ("", None, False, True, argparse.SUPPRESS):
            return text
        return f"{text} (default: {list(default) if isinstance(default, tuple) else default})"


def build_parser(mode: str, *, bare: bool = False) -> argparse.ArgumentParser:
    """The parser of a script.

    Args:
        mode: "train" or "test", for their different defaults.
        bare: leave out what was not typed, to learn what was.
    """
    about = {"train": "Train a network that reconstructs clouded images.", "test": "Test a trained network."}[mode]
    parser = argparse.ArgumentParser(description=about, formatter_class=_Help)
    groups = {name: parser.add_argument_group(name) for name in ("model", "training", "fusion", "data", "run")}
    hints = get_type_hints(Config)
    for entry in (entry for entry in fields(Config) if entry.metadata["group"]):  # the others no one types
        group, info = groups[entry.metadata["group"]], entry.metadata
        default = TEST_DEFAULTS.get(entry.name, entry.default) if mode == "test" else entry.default
        common: dict[str, Any] = {
            "dest": entry.name,
            "default": argparse.SUPPRESS if bare else default,
            "help": info["text"],
        }
        names = [f"--{entry.name}"] + ([f"-{entry.name}"] if entry.name in ("root1", "root2", "root3") else [])
        if info["off"]:
            group.add_argument(*names, f"--no-{entry.name}", action="store_false", **common)
        elif hints[entry.name] is bool:
            group.add_argument(*names, action="store_true", **common)
        elif info["kind"] is widths:
            group.add_argument(*names, nargs="+", metavar="N", **common)
        elif entry.name == "experts":
            group.add_argument(*names, nargs="+", metavar="NAME=RUN", **common)
        elif entry.name == "use_custom":
            group.add_argument(*names, nargs="?", const="published", metavar="LIST.json", **common)
        else:
            kind = info["kind"] or hints[entry.name]
            choices = info["choices"] or None
            metavar = None if choices else {int: "N", workers: "N", float: "X"}.get(kind, "TEXT")
            group.add_argument(*names, type=kind, choices=choices, metavar=metavar, **common)
    return parser


def parse(mode: str, argv: Sequence[str] | None) -> tuple[dict[str, Any], set[str]]:
    """What was typed, filled up with defaults, and the names of the flags that were typed."""
    values = vars(build_parser(mode).parse_args(argv))
    typed = set(vars(build_parser(mode, bare=True).parse_args(argv)))
    return values, typed


def head_channels(head: str, covmode: str) -> int:
    """Output channels of a head over the 13 optical bands: NIG 52, Gaussian 26 (iso 14), mean 13."""
    return {"nig": 4 * N_S2, "mean": N_S2, "gaussian": N_S2 + (1 if covmode == "iso" else N_S2)}[head]


def resolve(values: Mapping[str, Any], typed: set[str]) -> tuple[Config, list[str]]:
    """Settle what follows from what, and refuse what contradicts itself.

    Args:
        values: a value for every flag.
        typed: names of the flags that were given by hand.

    Returns:
        The configuration, and notes for the user about flags that have no effect.

    Raises:
        UsageError: naming the flags that contradict each other, or the one out of range.
    """
    known = {entry.name for entry in fields(Config)}
    value = {name: given for name, given in values.items() if name in known}
    for name in ("encoder_widths", "decoder_widths", "out_conv"):
        value[name] = _widths(name, value[name])
    for name in ("experts", "expert_configs", "held_out"):
        value[name] = tuple(value.get(name) or ())
    notes = settle_network(value, typed, {entry.name: entry.default for entry in fields(Config)})
    if value["pretrain"]:
        value.update(input_t=1, n_head=1, positional_encoding=False, sample_type="pretrain")
    elif value["sample_type"] == "pretrain":
        raise UsageError("--sample_type pretrain belongs to --pretrain; add it, or choose cloudy_cloudfree")
    elif value["sample_type"] == "generic":
        raise UsageError("--sample_type generic has no target to train or test on; use it with the data loader alone")
    if value["loss"] == "GNLL":
        value["covmode"] = "uni"
    if value["model"] == "fusion_net":
        value["head"] = value["head"] or "nig"
    elif not value["head"]:
        if value["loss"] in ("l1", "l2"):
            value["head"] = "mean"
        else:
            value["head"] = "gaussian" if "covmode" in typed and value["covmode"] != "diag" else "nig"
    if value["legacy"] and "head" not in typed and value["head"] == "nig" and value["model"] != "fusion_net":
        value["head"] = "gaussian"
        notes.append("--legacy: the published network has a Gaussian head, --head nig brings ours")
    channels = head_channels(value["head"], value["covmode"])
    if value["out_conv"][-1] not in (N_S2, channels):
        raise UsageError(
            f"--out_conv ends in {value['out_conv'][-1]}, but --head {value['head']} needs {channels} (or write {N_S2})"
        )
    value["out_conv"] = (*value["out_conv"][:-1], channels)
    config = Config(**value)
    refuse_contradictions(config)
    if config.vary_samples and not config.pretrain and (config.min_cov, config.max_cov) != (0.0, 1.0):
        notes.append("--min_cov and --max_cov do not act on training while dates vary; add --no-vary_samples")
    if config.chunk_size is not None:
        notes.append("--chunk_size has no effect: no covariance is formed any more")
    if "ssm_backend" in typed and config.model not in WITH_SCAN:
        notes.append(f"--ssm_backend has no effect: --model {config.model} has no selective scan")
    if config.head == "nig" and config.loss in ("MGNLL", "GNLL") and not config.experts:
        notes.append(
            f"--loss {config.loss} trains mean and total variance; the split into aleatoric and epistemic stays at its "
            "start (half, half). --loss NIG learns the tails and pins the split"
        )
    return config, notes


def _widths(name: str, value: Any) -> tuple[int, ...]:
    text = value if isinstance(value, str) else " ".join(str(word) for word in value)
    try:
        found = widths(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--{name}: {error}") from error
    if not found:
        raise UsageError(f"--{name} is empty; give at least one width, as [128]")
    return found


def read_conf(path: str | Path) -> dict[str, Any]:
    """The flags in a conf.json, ours or a published one (which has no `head`).

    Raises:
        DataError: if it cannot be read, is not JSON, holds no configuration, or a value of another kind.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore it or give another with --load_config") from error
    if not isinstance(stored, dict) or "model" not in stored:
        raise DataError(f"{path} holds no configuration: expected the flags of a run by name, 'model' among them")
    check_stored(stored, path, Config)
    if "head" not in stored:
        stored["head"] = "gaussian" if stored.get("loss", "MGNLL") in ("GNLL", "MGNLL") else "mean"
    return stored


def restore(
    stored: Mapping[str, Any], values: Mapping[str, Any], typed: set[str], mode: str
) -> tuple[Config, list[str]]:
    """The configuration of a stored run with what was typed laid over it.

    Args:
        stored: flags of a conf.json.
        values: flags of this command line, defaults filled in.
        typed: names of those that were given by hand; they win.
        mode: "train" (a run that goes on) or "test" (which keeps its own outputs, subsets and device).
    """
    if mode == "test":
        own = OF_THIS_TEST | {entry.name for entry in fields(Config) if entry.metadata["group"] == "run"}
    else:
        own = {"resume_from", "resume_at", "trained_checkp", "device", "debug"}
    keep = {name: given for name, given in stored.items() if name not in own}
    hand = {name: given for name, given in values.items() if name in typed or name not in keep}
    merged = {**keep, **hand}
    if "head" not in typed and ("loss" in typed or "covmode" in typed) and mode == "train":
        merged["head"] = ""
    return resolve(merged, typed | {"head"} if merged["head"] else typed)

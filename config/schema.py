"""Every flag of training and test, with its default, choices and help text."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from common.parallel import worker_count
from common.ranges import LARGEST_FLOAT, Range, default_maximum
from data.constants import N_S2, REGIONS
from model.registry import (
    AGGREGATIONS,
    BLOCKS,
    COVARIANCES,
    EVIDENCE_REGULARISERS,
    FUSION_RULES,
    HEADS,
    LOSSES,
    MODELS,
    NORMS,
    PADDING_MODES,
    SCAN_BACKENDS,
    VARIANCE_ACTIVATIONS,
)

WIDTHS = Range(1, 65536)  # channels and sizes of layers
TEST_DEFAULTS = {"res_dir": "./inference", "export_every": 1, "resume_at": -1}
# Besides those of the group "run", the flags that a test takes from its own command line, not from the conf.json.
TEST_FLAGS = {"batch_size", "num_workers", "max_samples_count", "max_samples_frac", "min_cov", "max_cov", "region"}
TEST_FLAGS |= {"skip_bad_samples", "resume_at", "resume_from", "trained_checkp"}
# The flags that a resumed training may change, from its next epoch on; conf.json records when. Those of COMMAND_FLAGS
# are of one command only, or have no effect on a training. Any other flag would make it another experiment.
RESUME_FLAGS = {"epochs", "batch_size", "lr", "gamma", "accumulate", "clip_grad", "val_every", "val_after"}
RESUME_FLAGS |= {"root1", "root2", "root3", "precomputed", "num_workers", "skip_bad_samples", "device", "precision"}
RESUME_FLAGS |= {"compile", "ssm_backend", "display_step", "plot_every", "export_every"}
RESUME_FLAGS |= {"fusion", "unguarded", "fusion_epochs", "fusion_lr", "joint_epochs", "lambda1", "lambda2"}
COMMAND_FLAGS = {"resume_from", "resume_at", "trained_checkp", "experiment_name", "res_dir", "profile", "debug"}
COMMAND_FLAGS |= {"weight_folder", "load_config", "use_custom", "chunk_size"}


def flag(
    group: str,
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    off: bool = False,
    inferred: bool = False,
    kind: Callable[[str], Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    open: bool = False,
) -> Any:
    """A dataclass field that is a command line flag.

    Args:
        group: group in the help; "" for values that have no flag.
        default: value of an absent flag.
        text: help text.
        choices: accepted values.
        off: whether the presence of the flag switches off.
        inferred: whether an absent flag is resolved from others rather than by its default.
        kind: parser of the value, where the annotated type is not one.
        minimum: smallest number; every number has one.
        maximum: largest number; by default that of `common.ranges`.
        open: whether `minimum` itself is refused.
    """
    allowed = None
    if minimum is not None:
        allowed = Range(minimum, default_maximum(type(default)) if maximum is None else maximum, open)
    metadata = {"group": group, "text": text, "choices": choices, "off": off, "inferred": inferred, "kind": kind}
    return field(default=default, metadata=metadata | {"range": allowed})


def unset_value(entry: Field[Any]) -> Any:
    """The value of a flag that is absent from the command line: its default, or "" where it is to be inferred."""
    return "" if entry.metadata["inferred"] else entry.default


def parse_widths(text: str) -> tuple[int, ...]:
    """Layer widths from `[64,64,128]`, `64 64 128` or JSON.

    Raises:
        argparse.ArgumentTypeError: if they are not integers within `WIDTHS`.
    """
    try:
        widths = tuple(int(word) for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as [64,64,128], got {text[:40]!r}") from error
    if any(width not in WIDTHS for width in widths):
        raise argparse.ArgumentTypeError(f"widths must lie between 1 and {WIDTHS.maximum}, got {text[:40]!r}")
    return widths


# fmt: off
@dataclass(frozen=True)
class ModelConfig:
    """The flags that define a network and its loss; what each means is in `train_reconstruct.py --help`."""

    model: str = flag("model", "uncrtaints", "backbone", choices=MODELS)
    head: str = flag("model", "nig", "what the network predicts: Normal-Inverse-Gamma, Gaussian, or the mean alone (default: nig; mean for l1 and l2; gaussian with --covmode iso or uni)", choices=HEADS, inferred=True)
    encoder_widths: tuple[int, ...] = flag("model", (128,), "channels of the encoder blocks, as [64,64,128] or 64 64 128", kind=parse_widths)
    decoder_widths: tuple[int, ...] = flag("model", (128, 128, 128, 128, 128), "channels of the decoder blocks", kind=parse_widths)
    out_conv: tuple[int, ...] = flag("model", (N_S2,), "channels of the last layers; the last number is extended to what the head needs", kind=parse_widths)
    mean_nonLinearity: bool = flag("model", True, "NAMING THIS FLAG SWITCHES OFF the sigmoid of the mean, as published; --no-mean_nonLinearity does the same", off=True)
    var_nonLinearity: str = flag("model", "softplus", "activation that keeps the variance of a Gaussian head positive", choices=VARIANCE_ACTIVATIONS)
    agg_mode: str = flag("model", "att_group", "aggregation over dates", choices=AGGREGATIONS)
    encoder_norm: str = flag("model", "group", "normalisation in the encoder", choices=NORMS)
    decoder_norm: str = flag("model", "batch", "normalisation in the decoder", choices=NORMS)
    block_type: str = flag("model", "mbconv", "convolution block", choices=BLOCKS)
    padding_mode: str = flag("model", "reflect", "padding of convolutions", choices=PADDING_MODES)
    pad_value: float = flag("model", 0.0, "value that fills padded dates", minimum=-LARGEST_FLOAT)
    n_head: int = flag("model", 16, "heads of the attention over dates", minimum=1, maximum=WIDTHS.maximum)
    d_model: int = flag("model", 256, "channels of the attention over dates", minimum=1, maximum=WIDTHS.maximum)
    d_k: int = flag("model", 4, "channels of keys and queries", minimum=1, maximum=WIDTHS.maximum)
    positional_encoding: bool = flag("model", True, "NAMING THIS FLAG SWITCHES OFF the encoding of dates, as published; also --no-positional_encoding", off=True)
    low_res_size: int = flag("model", 32, "size in pixels of the maps on which dates attend to each other", minimum=1, maximum=WIDTHS.maximum)
    use_v: bool = flag("model", False, "attention with values, not with weights alone")
    separate_out: bool = flag("model", False, "separate last layers for mean and variance")
    covmode: str = flag("model", "diag", "variance of a Gaussian head: diag and uni one for each band, iso one for all", choices=COVARIANCES)
    scale_by: float = flag("model", 1.0, "factor on reflectance before the network; 10 stabilises the likelihood losses", minimum=0, open=True)
    use_sar: bool = flag("data", False, "radar (Sentinel-1) as an additional input")
    pretrain: bool = flag("data", False, "single-date training on SEN12MS-CR (--root3)")
    loss: str = flag("training", "MGNLL", "training loss", choices=LOSSES)
    weight_reg: float = flag("training", 0.05, "weight of the evidence regulariser of --loss NIG", minimum=0)
    evidence_reg: str = flag("training", "prior", "evidence regulariser of --loss NIG", choices=EVIDENCE_REGULARISERS)
    legacy: bool = flag("training", False, "published behaviour, bugs included, for comparison (docs/deviations.md)")
    compile: bool = flag("run", False, "compile the backbone with torch.compile")
    ssm_backend: str = flag("run", "auto", "backend of the selective scan of conv3d_mamba; auto: the fastest that works on the device", choices=("auto", *SCAN_BACKENDS))
    fusion: str = flag("fusion", "gated", "rule that weights the experts (docs/fusion.md)", choices=FUSION_RULES)
    unguarded: bool = flag("fusion", False, "use the rule even where validation shows no gain")
    expert_configs: tuple[Any, ...] = flag("", (), "name, run and flags of each expert of fusion_net")

    @classmethod
    def of(cls, config: "ModelConfig") -> "ModelConfig":
        """The part of a `Config` that defines the network."""
        return cls(**{entry.name: getattr(config, entry.name) for entry in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """All flags by name, as in conf.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Config(ModelConfig):
    """All flags, resolved; field names are the names of the flags."""

    lambda1: float = flag("fusion", 1.0, "--loss fusion: weight of the conv3d_mamba term", minimum=0)
    lambda2: float = flag("fusion", 1.0, "--loss fusion: weight of the uncrtaints term", minimum=0)
    epochs: int = flag("training", 20, "training epochs", minimum=1)
    batch_size: int = flag("training", 4, "samples per step, of all processes together (docs/scaling.md)", minimum=1)
    lr: float = flag("training", 0.01, "learning rate of Adam", minimum=0, open=True)
    gamma: float = flag("training", 1.0, "factor on the learning rate after each epoch", minimum=0, maximum=10)
    accumulate: int = flag("training", 1, "gradient accumulation: batches averaged into one optimiser step", minimum=1)
    clip_grad: float = flag("training", 0.0, "gradient clipping: largest norm; 0 for none", minimum=0)
    rdm_seed: int = flag("training", 1, "random seed of weights, sample order, dates and dropout", minimum=0, maximum=2**62)
    val_every: int = flag("training", 1, "epochs between validations", minimum=1)
    val_after: int = flag("training", 0, "first epochs without validation", minimum=-1)
    trained_checkp: str = flag("training", "", "checkpoint to initialise the weights from; with --resume_from, the checkpoint to resume from")
    unfreeze_after: int = flag("training", 0, "freeze loaded weights up to this epoch", minimum=-1)
    resume_from: bool = flag("training", False, "resume this experiment: its conf.json, and its latest epoch or --trained_checkp; flags of optimisation, machine and output may change (a --lr other than in conf.json is set), those of network, loss and samples may not")
    resume_at: int = flag("training", 0, "training: epoch to resume from (0: the latest), later ones are set aside; test: epoch to load (-1: the best on validation)", minimum=-1)
    chunk_size: int | None = flag("training", None, "no effect, accepted for old command lines: no covariance matrix is built", kind=int)
    experts: tuple[str, ...] = flag("fusion", (), "trained runs for --model fusion_net, as uncrtaints=RUN conv3d_mamba=RUN; default: train both first", kind=str)
    fusion_epochs: int = flag("fusion", 30, "training epochs of the gate", minimum=1)
    fusion_lr: float = flag("fusion", 0.003, "initial learning rate of the gate", minimum=0, open=True)
    joint_epochs: int = flag("fusion", 5, "--loss fusion: epochs of joint training of experts and gate, at a tenth of --lr", minimum=1)
    fit_rois: int = flag("fusion", -1, "training regions to hold out (drawn by --rdm_seed) for fitting a fusion; -1: a tenth of them if fusion_net trains its experts, else none", minimum=-1)
    held_out: tuple[str, ...] = flag("", (), "regions held out by --fit_rois")
    root1: str = flag("data", "", "root of SEN12MS-CR-TS with the training regions")
    root2: str = flag("data", "", "root of SEN12MS-CR-TS with the validation and test regions")
    root3: str = flag("data", "", "root of SEN12MS-CR, for --pretrain")
    precomputed: str = flag("data", "", "folder of stored cloud masks, or of published coverage files (default: a store beside the data)")
    region: str = flag("data", "all", "part of the world", choices=REGIONS)
    input_t: int = flag("data", 3, "number of input dates", minimum=1)
    sample_type: str = flag("data", "cloudy_cloudfree", "cloudy dates with one clear target, or all dates", choices=("cloudy_cloudfree", "generic", "pretrain"))
    vary_samples: bool = flag("data", True, "NAMING THIS FLAG SWITCHES OFF new dates in each epoch, as published; also --no-vary_samples", off=True)
    min_cov: float = flag("data", 0.0, "minimum cloud cover of an input (ignored in training while dates vary)", minimum=0, maximum=1)
    max_cov: float = flag("data", 1.0, "maximum cloud cover of an input (ignored in training while dates vary)", minimum=0, maximum=1)
    ref_date: str = flag("data", "2014-04-03", "reference day from which dates are counted")
    max_samples_count: int = flag("data", int(1e9), "maximum number of samples of each split", minimum=1)
    max_samples_frac: float = flag("data", 1.0, "fraction of each split, spread over its regions", minimum=0, maximum=1, open=True)
    num_workers: int | str = flag("data", 0, "data loading processes, or auto", kind=worker_count)
    skip_bad_samples: bool = flag("data", False, "leave out unreadable patches, and targets with pixels of zeros, and list them at the end")
    experiment_name: str = flag("run", "my_first_experiment", "name of the run")
    res_dir: str = flag("run", "./results", "folder of the runs")
    weight_folder: str = flag("run", "./results", "test: folder of the trained runs")
    load_config: str = flag("run", "", "test: a conf.json to restore (default: the run's own)")
    use_custom: str = flag("run", "", "test: a JSON list of custom samples; bare: the published list")
    device: str = flag("run", "cuda", "cuda, cuda:1, or cpu")
    precision: str = flag("run", "fp32", "precision of the backbone; auto: bf16 where the device supports it", choices=("auto", "fp32", "bf16", "fp16"))
    display_step: int = flag("run", 10, "steps between log entries", minimum=1)
    plot_every: int = flag("run", -1, "plot every N-th sample of validation and test; -1 none", minimum=-1)
    export_every: int = flag("run", -1, "export every N-th sample of validation and test; -1 none", minimum=-1)
    profile: bool = flag("run", False, "report FLOPs, parameters, time and memory of one step, then stop")
    debug: bool = flag("run", False, "show the traceback of an error")

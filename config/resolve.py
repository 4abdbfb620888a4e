"""From the values of flags to a complete, valid configuration."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from common import process_group
from common.errors import UsageError
from config.defaults import apply_backbone_defaults
from config.experts import resolve_experts
from config.schema import COMMAND_FLAGS, RESUME_FLAGS, TEST_FLAGS, Config, parse_widths, unset_value
from config.stored import read_conf, rewind
from config.validation import check_distributed, validate_config
from data.constants import N_S2
from model.registry import FUSION, WITH_SCAN

_WIDTHS = ("encoder_widths", "decoder_widths", "out_conv")


def head_channels(head: str, covmode: str) -> int:
    """Output channels of a head for the 13 optical bands: NIG 52, Gaussian 26 (iso 14), mean 13."""
    return {"nig": 4 * N_S2, "mean": N_S2, "gaussian": N_S2 + (1 if covmode == "iso" else N_S2)}[head]


def resolve_config(
    values: Mapping[str, Any], typed: set[str], stored: Collection[str] = frozenset()
) -> tuple[Config, list[str]]:
    """Resolve flags that depend on others, and validate them all.

    Args:
        values: a value for every flag.
        typed: names of the flags given on the command line.
        stored: names of those in the conf.json of the run.

    Returns:
        The configuration, and notes for the user about flags without effect.

    Raises:
        UsageError: naming the flags that contradict each other, or the one out of range.
    """
    flags = {entry.name: values.get(entry.name, unset_value(entry)) for entry in fields(Config)}
    for name in _WIDTHS:
        flags[name] = _widths(name, flags[name])
    for name in ("experts", "expert_configs", "held_out"):
        flags[name] = tuple(flags[name] or ())
    notes = apply_backbone_defaults(flags, typed, stored)
    if flags["pretrain"]:
        flags.update(input_t=1, n_head=1, positional_encoding=False, sample_type="pretrain")
    elif flags["sample_type"] == "pretrain":
        raise UsageError("--sample_type pretrain belongs to --pretrain; add it, or choose cloudy_cloudfree")
    elif flags["sample_type"] == "generic":
        raise UsageError("--sample_type generic has no target to train or test on; use it with the data loader alone")
    if flags["loss"] == "GNLL":
        flags["covmode"] = "uni"
    if not flags["head"]:
        flags["head"] = _infer_head(flags, typed)
    if flags["legacy"] and "head" not in typed and flags["head"] == "nig" and flags["model"] != FUSION:
        flags["head"] = "gaussian"
        notes.append("--legacy: the published network has a Gaussian head, --head nig selects ours")
    channels = head_channels(flags["head"], flags["covmode"])
    if flags["out_conv"][-1] not in (N_S2, channels):
        raise UsageError(
            f"--out_conv ends in {flags['out_conv'][-1]}, but --head {flags['head']} needs {channels} (or write {N_S2})"
        )
    flags["out_conv"] = (*flags["out_conv"][:-1], channels)
    config = Config(**flags)
    validate_config(config)
    return config, [*notes, *_notes(config, typed)]


def resolve_training(values: dict[str, Any], typed: set[str]) -> tuple[Config, str, list[str]]:
    """The configuration of a training that starts or resumes.

    Args:
        values: a value for every flag.
        typed: names of the flags given on the command line.

    Returns:
        The configuration, the checkpoint to resume from ("": the latest), and notes for the user.

    Raises:
        DataError: if a stored configuration cannot be read.
        UsageError: if flags contradict each other or a root is missing.
    """
    checkpoint = ""
    conf = Path(values["res_dir"]) / values["experiment_name"] / "conf.json"
    if values["resume_at"] and not values["resume_from"]:
        raise UsageError(f"--resume_at {values['resume_at']} belongs to --resume_from; add it, or leave both out")
    if values["resume_from"] and conf.is_file():
        stored = read_conf(conf)
        if values["resume_at"] > 0:  # later changes belong to the epochs that are abandoned
            stored = rewind(stored, values["resume_at"]) | {"epochs": stored.get("epochs", values["epochs"])}
        initial = stored.get("trained_checkp") or ""
        if not _same_file(values["trained_checkp"], initial):  # else the command line of the start was repeated
            checkpoint = values["trained_checkp"]
        values["trained_checkp"] = initial
        config, notes = restore_training(stored, values, typed - {"trained_checkp"})
        if config.model == FUSION and (checkpoint or values["resume_at"]):
            flag = "trained_checkp" if checkpoint else "resume_at"
            raise UsageError(
                f"--{flag}: a fusion is fitted anew when it resumes; its experts go on from their latest epoch"
            )
    else:
        adopted = resolve_experts(values, typed) if values["model"] == FUSION and values["experts"] else []
        config, notes = resolve_config(values, typed)
        notes = [*adopted, *notes]
        if config.resume_from and not (config.root3 if config.pretrain else config.root1):
            raise UsageError(f"--resume_from: nothing to resume, {conf} is missing; start without --resume_from")
        if config.resume_from:
            notes.append(f"there is no {conf} yet: this training starts with the given flags")
    for name in ("root3",) if config.pretrain else ("root1", "root2"):
        if not getattr(config, name):
            dataset = "SEN12MS-CR" if name == "root3" else "SEN12MS-CR-TS"
            raise UsageError(f"--{name} is missing: the folder of {dataset}")
    check_distributed(config)
    return config, checkpoint, notes


def restore_training(stored: Mapping[str, Any], values: Mapping[str, Any], typed: set[str]) -> tuple[Config, list[str]]:
    """The configuration of a training that resumes: that of its conf.json, and the flags that may change.

    Args:
        stored: flags of a conf.json.
        values: flags of this command line, defaults filled in.
        typed: names of those given on it; repeating a stored value is no change.

    Raises:
        UsageError: if a flag differs that would make it another experiment.
    """
    may_change = typed & (RESUME_FLAGS | COMMAND_FLAGS)
    config, notes = restore_config(stored, values, may_change, "train")
    given = {name: _given(name, values[name]) for name in sorted(typed - may_change)}
    changed = {name: value for name, value in given.items() if value != getattr(config, name)}
    try:  # values differ from resolved ones, as --input_t 3 --pretrain, where the command line of the start is repeated
        refused = bool(changed) and restore_config(stored, values, typed, "train")[0] != config
    except UsageError:
        refused = True
    if refused:
        flags = ", ".join(f"--{name} {value} (it has {getattr(config, name)})" for name, value in changed.items())
        raise UsageError(
            f"--resume_from: {flags} would make this training another experiment; leave that out, or start a new "
            "--experiment_name"
        )
    return config, notes


def resolve_test(values: dict[str, Any], typed: set[str]) -> tuple[Config, Path, list[str]]:
    """The configuration of a test, from the conf.json of the trained run and the command line.

    Args:
        values: a value for every flag.
        typed: names of the flags given on the command line.

    Returns:
        The configuration, the folder of the trained run, and notes for the user.

    Raises:
        DataError: if the stored configuration cannot be read.
        UsageError: if there is none, or flags contradict each other.
    """
    weights = Path(values["weight_folder"]) / values["experiment_name"]
    conf = Path(values["load_config"]) if values["load_config"] else weights / "conf.json"
    if not conf.is_file():
        raise UsageError(
            f"there is no configuration {conf}; --weight_folder and --experiment_name must name a trained run, "
            "or --load_config its conf.json"
        )
    config, notes = restore_config(read_conf(conf), values, typed, "test")
    if config.precomputed and "precomputed" not in typed and not Path(config.precomputed).exists():
        notes.append(f"the run's --precomputed {config.precomputed} is not here; masks come from the data's own store")
        config = replace(config, precomputed="")
    process_group.check_batch_size(config.batch_size)
    return config, weights, notes


def restore_config(
    stored: Mapping[str, Any], values: Mapping[str, Any], typed: set[str], mode: str
) -> tuple[Config, list[str]]:
    """The configuration of a stored run, updated by the flags of a command line.

    Args:
        stored: flags of a conf.json.
        values: flags of this command line, defaults filled in.
        typed: names of those given on it; they take precedence.
        mode: "train" (a run that is resumed) or "test" (which has its own outputs, subsets and device).
    """
    if mode == "test":
        own = TEST_FLAGS | {entry.name for entry in fields(Config) if entry.metadata["group"] == "run"}
    else:
        own = {"resume_from", "resume_at", "trained_checkp", "device", "debug"}
    kept = {name: value for name, value in stored.items() if name not in own}
    new = {name: value for name, value in values.items() if name in typed or name not in kept}
    merged = {**kept, **new}
    return resolve_config(merged, typed | {"head"} if merged["head"] else typed, kept.keys())


def _given(name: str, value: Any) -> Any:
    """The value of a flag in the type of the configuration."""
    if name in _WIDTHS:
        return _widths(name, value)
    return tuple(value) if isinstance(value, list) else value


def _same_file(left: str, right: str) -> bool:
    return bool(left and right) and Path(left).resolve() == Path(right).resolve()


def _infer_head(flags: Mapping[str, Any], typed: set[str]) -> str:
    if flags["model"] == FUSION:
        return "nig"
    if flags["loss"] in ("l1", "l2"):
        return "mean"
    return "gaussian" if "covmode" in typed and flags["covmode"] != "diag" else "nig"


def _notes(config: Config, typed: set[str]) -> list[str]:
    notes = []
    if config.vary_samples and not config.pretrain and (config.min_cov, config.max_cov) != (0.0, 1.0):
        notes.append("--min_cov and --max_cov do not apply to training while dates vary; add --no-vary_samples")
    if config.chunk_size is not None:
        notes.append("--chunk_size has no effect: no covariance matrix is built")
    if "ssm_backend" in typed and config.model not in WITH_SCAN:
        notes.append(f"--ssm_backend has no effect: --model {config.model} has no selective scan")
    if config.head == "nig" and config.loss in ("MGNLL", "GNLL") and not config.experts:
        notes.append(
            f"--loss {config.loss} trains mean and total variance; the split into aleatoric and epistemic stays at its "
            "start (half, half). --loss NIG learns the tails and pins the split"
        )
    return notes


def _widths(name: str, value: Any) -> tuple[int, ...]:
    text = value if isinstance(value, str) else " ".join(str(width) for width in value)
    try:
        widths = parse_widths(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--{name}: {error}") from error
    if not widths:
        raise UsageError(f"--{name} is empty; give at least one width, as [128]")
    return widths

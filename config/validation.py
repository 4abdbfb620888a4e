"""Flags that are out of range or contradict each other."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import date
from typing import Any

from common import process_group
from common.errors import UsageError
from common.files import require_utf8
from common.ranges import LARGEST_FLOAT
from config.defaults import PYRAMIDS, UNETS
from config.schema import Config, ModelConfig
from model.registry import FUSION, LOSS_HEADS

DATE_GROUPS = 4  # channel groups that conv3d_mamba weights over dates


def validate_config(config: Config) -> None:
    """Raise a `UsageError` for the first flag that is out of range or contradicts another."""
    for problem in range_violations(vars(config)):
        raise UsageError(f"--{problem}")
    if config.min_cov > config.max_cov:
        raise UsageError(f"expected --min_cov <= --max_cov, got {config.min_cov} and {config.max_cov}")
    if math.log10(config.lr) + config.epochs * math.log10(max(config.gamma, 1)) > math.log10(LARGEST_FLOAT):
        raise UsageError(
            f"--gamma {config.gamma} over --epochs {config.epochs} raises --lr {config.lr} beyond all bounds"
        )
    if config.model == FUSION:
        _validate_fusion(config)
    elif config.loss == "fusion":
        raise UsageError(f"--loss fusion belongs to --model fusion_net, got --model {config.model}")
    elif config.experts:
        raise UsageError(f"--experts belongs to --model fusion_net, got --model {config.model}")
    check_loss(config.loss, config.head)
    check_widths(config)
    if config.experiment_name in ("", ".", ".."):
        raise UsageError(f"--experiment_name must name a folder below --res_dir, got {config.experiment_name!r}")
    require_utf8(config.experiment_name, "--experiment_name")
    require_utf8(config.res_dir, "--res_dir")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UsageError(f"--device takes cuda, cuda:N or cpu, got {config.device!r}")
    try:
        date.fromisoformat(config.ref_date)
    except ValueError as error:
        raise UsageError(f"--ref_date must be YYYY-MM-DD, got {config.ref_date!r}") from error


def range_violations(flags: Mapping[str, Any]) -> Iterator[str]:
    """The numbers among flags by name that are out of range, each as "epochs must be at least 1, got 0"."""
    for entry in fields(Config):
        allowed, value = entry.metadata["range"], flags.get(entry.name)
        if allowed is not None and value is not None and (violation := allowed.violation(value)):
            yield f"{entry.name} {violation}"


def check_distributed(config: Config) -> None:
    """Raise a `UsageError` for a training that several processes cannot share."""
    if not process_group.is_distributed():
        return
    alone = "; start it with python instead of torchrun"
    if config.model == FUSION:
        raise UsageError(
            "--model fusion_net is fitted by one process; train its experts with torchrun, each in a run of its own, "
            "then fuse them with --experts" + alone
        )
    if config.profile:
        raise UsageError("--profile measures one process" + alone)
    if config.legacy and config.loss == "MGNLL":
        raise UsageError("--legacy --loss MGNLL depends on the batch of a process, as published" + alone)
    process_group.check_batch_size(config.batch_size)


def check_loss(loss: str, head: str) -> None:
    """Raise a `UsageError` unless the loss trains every output of the head."""
    if loss not in LOSS_HEADS:
        raise UsageError(f"unknown loss {loss!r}; choose --loss {', '.join(LOSS_HEADS)}")
    if head not in LOSS_HEADS[loss]:
        why = {"mean": "trains no variance", "nig": "needs evidence parameters"}.get(LOSS_HEADS[loss][0])
        heads = " or ".join(LOSS_HEADS[loss])
        raise UsageError(f"--loss {loss} with --head {head}: the loss {why or 'needs a variance'}; use --head {heads}")


def check_widths(config: ModelConfig) -> None:
    """Raise a `UsageError` if layer widths and heads do not fit together."""
    if config.model == FUSION:  # its experts are checked one by one
        return
    encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
    if config.model in PYRAMIDS and (len(encoder) != len(decoder) or encoder[-1] != decoder[-1]):
        raise UsageError(
            f"--encoder_widths {encoder} and --decoder_widths {decoder} of --model {config.model} go from the full "
            "resolution to the lowest: expected as many of both and the same last one, as "
            f"{list(PYRAMIDS[config.model][0])} and {list(PYRAMIDS[config.model][1])}"
        )
    if config.model == "conv3d_mamba":
        for width in encoder:
            if width % DATE_GROUPS:
                raise UsageError(f"--encoder_widths of conv3d_mamba must be multiples of {DATE_GROUPS}, got {width}")
        return
    if config.model in UNETS:
        without_time = config.pretrain or config.model == "unet"
        split_by_heads = [] if without_time else encoder if config.agg_mode == "att_group" else encoder[-1:]
    else:
        if encoder[-1] != decoder[-1] and config.model == "uncrtaints":
            raise UsageError(
                f"--encoder_widths ends in {encoder[-1]}, --decoder_widths in {decoder[-1]}; "
                "uncrtaints needs them equal"
            )
        split_by_heads = [] if config.pretrain else encoder[:1]
    for width in split_by_heads:
        if width % config.n_head:
            raise UsageError(f"--n_head {config.n_head} must divide --encoder_widths {width}")
    if config.d_model % config.n_head:
        raise UsageError(f"--n_head {config.n_head} must divide --d_model {config.d_model}")


def _validate_fusion(config: Config) -> None:
    if config.loss in ("l1", "l2"):
        raise UsageError(f"--model fusion_net needs experts with a variance, --loss {config.loss} trains none; use NIG")
    if config.head != "nig":
        raise UsageError(
            f"--model fusion_net predicts with --head nig, got {config.head}; to fuse Gaussian experts, train them "
            "alone and name their runs with --experts"
        )
    if config.trained_checkp and not config.resume_from:
        raise UsageError(
            "--trained_checkp does not initialise a fusion; use it for its experts, each in its own training"
        )
    if config.profile:
        raise UsageError("--profile measures one network; use it with --model uncrtaints or conv3d_mamba")
    if len(config.experts) == 1:
        raise UsageError(f"--experts names one run, {config.experts[0]}; a fusion needs at least two")
    if config.fusion == "ivw_rho" and len(config.experts) > 2:
        raise UsageError(f"--fusion ivw_rho fuses two experts, got {len(config.experts)}; choose ivw, convex or gated")

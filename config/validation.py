"""Flags that cannot all be followed; imports nothing heavy."""

import math
import re
from datetime import date
from typing import TYPE_CHECKING

from common.errors import UsageError
from config.defaults import check_network

if TYPE_CHECKING:
    from parse_args import Config


def refuse_contradictions(config: "Config") -> None:
    """Raise a `UsageError` for the first pair of flags that cannot both be followed."""
    positive = "epochs batch_size lr scale_by input_t n_head d_model d_k low_res_size accumulate val_every display_step"
    for name in (*positive.split(), "fusion_epochs", "fusion_lr", "joint_epochs"):
        if not 0 < getattr(config, name) < math.inf:  # NaN fails too
            raise UsageError(f"--{name} must be above 0, got {getattr(config, name)}")
    for name in ("gamma", "clip_grad", "weight_reg", "lambda1", "lambda2", "rdm_seed"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UsageError(f"--{name} must not be below 0, got {getattr(config, name)}")
    if not 0.0 <= config.min_cov <= config.max_cov <= 1.0:
        raise UsageError(f"expected 0 <= --min_cov <= --max_cov <= 1, got {config.min_cov} and {config.max_cov}")
    if not 0.0 < config.max_samples_frac <= 1.0:
        raise UsageError(f"--max_samples_frac must lie in (0, 1], got {config.max_samples_frac}")
    if config.max_samples_count < 1:
        raise UsageError(f"--max_samples_count must be at least 1, got {config.max_samples_count}")
    if config.model == "fusion_net":
        _refuse_for_fusion(config)
    if config.loss in ("l1", "l2") and config.head != "mean":
        raise UsageError(f"--loss {config.loss} trains no variance; use --head mean, got --head {config.head}")
    if config.loss in ("GNLL", "MGNLL") and config.head == "mean":
        raise UsageError(f"--loss {config.loss} needs a variance, --head mean has none; use --head nig or gaussian")
    if config.loss == "NIG" and config.head != "nig":
        raise UsageError(f"--loss NIG needs --head nig, got --head {config.head}")
    if config.model != "fusion_net":
        if config.loss == "fusion":
            raise UsageError(f"--loss fusion belongs to --model fusion_net, got --model {config.model}")
        if config.experts:
            raise UsageError(f"--experts belongs to --model fusion_net, got --model {config.model}")
    check_network(config)
    if config.experiment_name in ("", ".", ".."):
        raise UsageError(f"--experiment_name must name a folder below --res_dir, got {config.experiment_name!r}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UsageError(f"--device takes cuda, cuda:N or cpu, got {config.device!r}")
    try:
        date.fromisoformat(config.ref_date)
    except ValueError as error:
        raise UsageError(f"--ref_date must be YYYY-MM-DD, got {config.ref_date!r}") from error


def _refuse_for_fusion(config: "Config") -> None:
    if config.loss in ("l1", "l2"):
        raise UsageError(f"--model fusion_net needs experts with a variance, --loss {config.loss} trains none; use NIG")
    if config.head != "nig":
        raise UsageError(
            f"--model fusion_net answers with --head nig, got {config.head}; to fuse Gaussian experts, train them "
            "alone and name their runs with --experts"
        )
    if config.trained_checkp and not config.resume_from:
        raise UsageError(
            "--trained_checkp does not start a fusion; start its experts with it, each in its own training"
        )
    if config.profile:
        raise UsageError("--profile measures one network; use it with --model uncrtaints or conv3d_mamba")
    if len(config.experts) == 1:
        raise UsageError(f"--experts names one run, {config.experts[0]}; a fusion needs at least two")
    if config.fusion == "ivw_rho" and len(config.experts) > 2:
        raise UsageError(f"--fusion ivw_rho fuses two experts, got {len(config.experts)}; choose ivw, convex or gated")

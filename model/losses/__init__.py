"""Losses by name: functions of a prediction and a target, both in scaled units."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from common.errors import UsageError
from model.losses.evidential import WEIGHT_REG, find_penalty, nig_loss
from model.losses.gaussian import check_shapes, gaussian_nll, multivariate_gaussian_nll
from model.predictions import NIG, Mean, Prediction
from model.registry import LOSSES

__all__ = ["gaussian_nll", "get_loss", "multivariate_gaussian_nll", "nig_loss"]

LossFunction = Callable[[Prediction, Tensor], Tensor]


def get_loss(
    name: str, *, weight_reg: float = WEIGHT_REG, evidence_reg: str = "prior", legacy: bool = False
) -> LossFunction:
    """The loss of that name.

    Args:
        name: l1, l2, GNLL, MGNLL, NIG or fusion (of the fused belief: that of NIG), in any case.
        weight_reg: weight of the evidence penalty of NIG, not negative.
        evidence_reg: the penalty of NIG.
        legacy: MGNLL as published, which depends on the batch size.

    Returns:
        A function of a prediction and a target (B, 1, C, H, W), both in scaled units, which gives a scalar. On a NIG
        belief GNLL and MGNLL use delta and the total variance.

    Raises:
        UsageError: if a name is unknown or the weight negative; from the returned function, if the prediction lacks
            what the loss needs.
    """
    if not weight_reg >= 0:
        raise UsageError(f"expected a --weight_reg of 0 or more, got {weight_reg}")
    find_penalty(evidence_reg)
    functions: dict[str, LossFunction] = {
        "l1": partial(_of_mean, F.l1_loss),
        "l2": partial(_of_mean, F.mse_loss),
        "GNLL": partial(_of_moments, gaussian_nll, "GNLL"),
        "MGNLL": partial(_of_moments, partial(multivariate_gaussian_nll, legacy=legacy), "MGNLL"),
        "NIG": partial(_of_belief, weight_reg, evidence_reg),
        "fusion": partial(_of_belief, weight_reg, evidence_reg),
    }
    by_lower_case = {loss.lower(): function for loss, function in functions.items()}
    if name.lower() not in by_lower_case:
        raise UsageError(f"unknown loss {name!r}; choose --loss {', '.join(LOSSES)}")
    return by_lower_case[name.lower()]


def _of_mean(loss: Callable[[Tensor, Tensor], Tensor], prediction: Prediction, target: Tensor) -> Tensor:
    check_shapes(prediction.mean, target)
    return loss(prediction.mean, target)


def _of_moments(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], name: str, prediction: Prediction, target: Tensor
) -> Tensor:
    if isinstance(prediction, Mean):
        raise UsageError(f"--loss {name} needs a variance, which --head mean does not give; use --head gaussian or nig")
    variance = prediction.total if isinstance(prediction, NIG) else prediction.variance
    return loss(prediction.mean, target, variance)


def _of_belief(weight_reg: float, evidence_reg: str, prediction: Prediction, target: Tensor) -> Tensor:
    if not isinstance(prediction, NIG):
        head = type(prediction).__name__.lower()
        raise UsageError(f"--loss NIG needs a belief, which --head {head} does not give; use --head nig")
    return nig_loss(prediction, target, weight_reg, evidence_reg)

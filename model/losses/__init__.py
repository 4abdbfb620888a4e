"""Losses by name: functions of a prediction and a target, both in scaled units."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from common.errors import UsageError
from model.containers import check_target, select_pixels
from model.losses.evidential import WEIGHT_REG, get_penalty, nig_loss
from model.losses.gaussian import gaussian_nll, multivariate_gaussian_nll
from model.predictions import NIG, Mean, Prediction
from model.registry import LOSSES

__all__ = ["gaussian_nll", "get_loss", "multivariate_gaussian_nll", "nig_loss"]

_Loss = Callable[[Prediction, Tensor], Tensor]


class LossFunction(Protocol):
    """A loss of predictions."""

    def __call__(self, prediction: Prediction, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The mean over all pixels, or over those at which `valid`, bool (B, 1, H, W), is True."""


def get_loss(
    name: str, *, weight_reg: float = WEIGHT_REG, evidence_reg: str = "prior", legacy: bool = False
) -> LossFunction:
    """Loss of that name.

    Args:
        name: l1, l2, GNLL, MGNLL, NIG or fusion (of the fused prediction: that of NIG), in any case.
        weight_reg: weight of the evidence penalty of NIG, not negative.
        evidence_reg: the penalty of NIG.
        legacy: MGNLL as published, which depends on the batch size.

    Returns:
        A function of a prediction and a target (B, 1, C, H, W), both in scaled units, to a scalar, with an optional
        mask of the valid pixels. On a NIG prediction GNLL and MGNLL use delta and the total variance.

    Raises:
        UsageError: if a name is unknown or the weight negative; from the returned function, if the prediction lacks
            what the loss needs.
    """
    if not weight_reg >= 0:
        raise UsageError(f"expected a --weight_reg of 0 or more, got {weight_reg}")
    get_penalty(evidence_reg)
    evidential = partial(_evidential_loss, weight_reg, evidence_reg)

    def multivariate(prediction: Prediction, target: Tensor, valid: Tensor | None = None) -> Tensor:
        loss = partial(multivariate_gaussian_nll, legacy=legacy, n_images=len(target))
        return _mean_over_valid(partial(_variance_loss, loss, "MGNLL"), prediction, target, valid)

    means: dict[str, _Loss] = {
        "l1": partial(_mean_loss, F.l1_loss),
        "l2": partial(_mean_loss, F.mse_loss),
        "gnll": partial(_variance_loss, gaussian_nll, "GNLL"),
        "nig": evidential,
        "fusion": evidential,
    }
    functions = {"mgnll": multivariate} | {key: partial(_mean_over_valid, loss) for key, loss in means.items()}
    if name.lower() not in functions:
        raise UsageError(f"unknown loss {name!r}; choose --loss {', '.join(LOSSES)}")
    return functions[name.lower()]


def _mean_over_valid(loss: _Loss, prediction: Prediction, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """A loss that is a mean over pixels, of the valid ones only."""
    if valid is None:
        return loss(prediction, target)
    return loss(prediction.map(partial(select_pixels, valid=valid)), select_pixels(target, valid))


def _mean_loss(loss: Callable[[Tensor, Tensor], Tensor], prediction: Prediction, target: Tensor) -> Tensor:
    check_target(prediction.mean, target)
    return loss(prediction.mean, target)


def _variance_loss(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], name: str, prediction: Prediction, target: Tensor
) -> Tensor:
    if isinstance(prediction, Mean):
        raise UsageError(f"--loss {name} needs a variance, which --head mean does not give; use --head gaussian or nig")
    variance = prediction.total if isinstance(prediction, NIG) else prediction.variance
    return loss(prediction.mean, target, variance)


def _evidential_loss(weight_reg: float, evidence_reg: str, prediction: Prediction, target: Tensor) -> Tensor:
    if not isinstance(prediction, NIG):
        head = type(prediction).__name__.lower()
        raise UsageError(f"--loss NIG needs a NIG prediction, which --head {head} does not give; use --head nig")
    return nig_loss(prediction, target, weight_reg, evidence_reg)

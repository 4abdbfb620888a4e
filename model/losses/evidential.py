"""Loss of the evidential head: Student-t likelihood, and a penalty on the evidence that data cannot determine."""

from collections.abc import Callable

from torch import Tensor

from common.errors import UsageError
from model.predictions import NIG

WEIGHT_REG = 0.05


def prior_penalty(nig: NIG, target: Tensor) -> Tensor:
    """Squared log-distance of the evidence from gamma = 1, alpha = 3; does not depend on errors or their unit.

    The likelihood depends on gamma and beta through beta (1 + gamma) / gamma alone, so a prior must determine gamma.
    """
    return nig.gamma.log().square().mean() + 0.25 * ((nig.alpha - 1) / 2).log().square().mean()


def amini_penalty(nig: NIG, target: Tensor) -> Tensor:
    """Absolute error times evidence (Amini et al. 2020, eq. 9); outweighs the likelihood as scale_by grows."""
    return ((nig.delta - target).abs() * (2 * nig.gamma + nig.alpha)).mean()


def meinert_penalty(nig: NIG, target: Tensor) -> Tensor:
    """The same with the error in units of the Student-t's width (after Meinert et al. 2023): independent of units."""
    return ((nig.delta - target).abs() / nig.width * (2 * nig.gamma + nig.alpha)).mean()


PENALTIES: dict[str, Callable[[NIG, Tensor], Tensor] | None] = {
    "prior": prior_penalty,
    "amini": amini_penalty,
    "meinert": meinert_penalty,
    "none": None,
}


def get_penalty(evidence_reg: str) -> Callable[[NIG, Tensor], Tensor] | None:
    """Penalty of that name; the UsageError for an unknown one lists the names."""
    if evidence_reg not in PENALTIES:
        raise UsageError(f"unknown evidence regulariser {evidence_reg!r}; choose --evidence_reg {', '.join(PENALTIES)}")
    return PENALTIES[evidence_reg]


def nig_loss(nig: NIG, target: Tensor, weight_reg: float = WEIGHT_REG, evidence_reg: str = "prior") -> Tensor:
    """Negative log-likelihood of the predictive Student-t plus a penalty on the evidence, averaged over all elements.

    Args:
        nig: fields (B, 1, C, H, W), scaled units.
        target: (B, 1, C, H, W), scaled units.
        weight_reg: weight of the penalty.
        evidence_reg: `prior` (default), `amini`, `meinert` or `none`.

    Returns:
        A scalar. With `prior`, `meinert` or `none` a change of unit adds a constant and moves no optimum.

    Raises:
        ValueError: if the shapes differ.
        UsageError: if the regulariser is unknown.

    Source:
        Amini et al. 2020. Changes: the default penalty, because error times evidence drives gamma towards zero.
    """
    penalty = get_penalty(evidence_reg)
    loss = nig.nll(target).mean()
    if penalty is None or weight_reg == 0:
        return loss
    return loss + weight_reg * penalty(nig, target)

"""Loss of joint training: a term for each expert, and one for their fusion."""

from collections.abc import Sequence

from torch import Tensor

from model.losses.evidential import WEIGHT_REG, nig_loss
from model.losses.gaussian import gaussian_nll
from model.predictions import NIG, Prediction


def expert_term(prediction: Prediction, target: Tensor, weight_reg: float, evidence_reg: str) -> Tensor:
    """Negative log-likelihood of an expert, plus the penalty if it predicts evidence; both in its scaled units."""
    if isinstance(prediction, NIG):
        return nig_loss(prediction, target, weight_reg, evidence_reg)
    assert prediction.total is not None
    return gaussian_nll(prediction.mean, target, prediction.total)


def fusion_loss(
    fused: NIG,
    experts: Sequence[Prediction],
    scales: Sequence[float],
    weights: Sequence[float],
    target: Tensor,
    scale_by: float,
    weight_reg: float = WEIGHT_REG,
    evidence_reg: str = "prior",
) -> Tensor:
    """Weighted sum of the experts' terms and the fused term.

    Args:
        fused: the fused prediction, scaled by `scale_by`.
        experts: the experts' predictions, each in its scaled units.
        scales: scaled units per reflectance of each expert.
        weights: of the experts' terms; the fused term has weight 1.
        target: (B, 1, C, H, W), scaled by `scale_by`.
        scale_by: scaled units per reflectance of fused prediction and target.
        weight_reg: weight of the evidence regulariser in every term.
        evidence_reg: its name.

    Returns:
        A scalar.

    Source:
        The name and weights are those of the first version; its terms are not (docs/fusion.md).
    """
    total = nig_loss(fused, target, weight_reg, evidence_reg)
    for prediction, scale, weight in zip(experts, scales, weights, strict=True):
        if weight:
            total = total + weight * expert_term(prediction, target * (scale / scale_by), weight_reg, evidence_reg)
    return total

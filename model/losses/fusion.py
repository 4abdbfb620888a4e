"""Loss of joint training: a term for each expert, and one for their fusion."""

from collections.abc import Sequence

from torch import Tensor

from model.losses.evidential import WEIGHT_REG, nig_loss
from model.losses.gaussian import gaussian_nll
from model.predictions import NIG, Prediction


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
    """Negative log-likelihood of the fused prediction, plus weighted ones of the experts.

    Terms of NIG predictions have the penalty on the evidence.

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
        if not weight:
            continue
        expert_target = target * (scale / scale_by)
        if isinstance(prediction, NIG):
            term = nig_loss(prediction, expert_target, weight_reg, evidence_reg)
        else:
            assert prediction.total is not None
            term = gaussian_nll(prediction.mean, expert_target, prediction.total)
        total = total + weight * term
    return total

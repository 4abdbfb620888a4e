"""Mean and variances of a prediction as arrays, and of an equally weighted mixture of several.

Needs numpy only: `ensemble_reconstruct.py --help` lists UNCERTAINTIES.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import DataError

UNCERTAINTIES = ("aleatoric", "epistemic", "both")
NIG_FIELDS = ("gamma", "alpha", "beta")

# Bounds that values exceed: the variance of a Student-t is finite for alpha above 1 alone.
_LIMITS = {"var": (0.0, True), "gamma": (0.0, False), "alpha": (1.0, False), "beta": (0.0, True)}  # bound, included

Image = npt.NDArray[np.float32]
Fields = Mapping[str, Image]  # as exported: `pred`, and by the head `var` and NIG_FIELDS


def check_fields(fields: Fields, name: str) -> None:
    """Raise a `DataError` about the first value that no prediction has: NaN, infinite, a negative variance, alpha <= 1.

    Args:
        fields: as exported.
        name: of their sample, for the message.
    """
    for field, values in fields.items():
        bound, included = _LIMITS.get(field, (-np.inf, False))
        allowed = np.isfinite(values) & ((values >= bound) if included else (values > bound))
        if not allowed.all():
            value, count = values[~allowed][0], int((~allowed).sum())
            expected = "finite values" + (f" {'from' if included else 'above'} {bound:g}" if bound > -np.inf else "")
            raise DataError(
                f"{name}: {field} holds {value:g}, and {count} such values in all; expected {expected}; export it again"
            )


@dataclass(frozen=True)
class PredictedImages:
    """The prediction of one sample, (13,H,W): reflectance, and variances in reflectance squared."""

    mean: Image
    aleatoric: Image | None = None
    epistemic: Image | None = None
    total: Image | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> "PredictedImages":
        """The prediction from exported fields; without NIG parameters all of the variance is aleatoric."""
        mean = np.array(fields["pred"])
        total = np.array(fields["var"]) if "var" in fields else None
        if not all(name in fields for name in NIG_FIELDS):
            return cls(mean, total, None, total)
        gamma, alpha, beta = (np.asarray(fields[name]) for name in NIG_FIELDS)
        aleatoric = beta / (alpha - 1)
        epistemic = aleatoric / gamma
        return cls(mean, aleatoric, epistemic, aleatoric + epistemic if total is None else total)


@dataclass(frozen=True)
class Mixture:
    """Moments of an equally weighted mixture at each pixel and band, (13,H,W), reflectance (squared)."""

    mean: Image  # mean of the members' means
    aleatoric: Image | None  # mean of the members' predictive variances; None if a member has none
    epistemic: Image  # variance of the members' means
    own_epistemic: Image  # the part of `aleatoric` that is epistemic in the members' own predictions

    @property
    def member_split(self) -> tuple[float, float] | None:
        """Mean of the members' aleatoric variances, and of the rest of the mixture's variance; their sum is `both`."""
        if self.aleatoric is None:
            return None
        return float(np.mean(self.aleatoric - self.own_epistemic)), float(np.mean(self.epistemic + self.own_epistemic))

    def prediction(self, uncertainty: str) -> PredictedImages:
        """The mixture with the variance by `uncertainty`, one of UNCERTAINTIES; `both` is that of the mixture.

        Raises:
            ValueError: if a member has no variance and it is needed.
        """
        if uncertainty == "epistemic":
            return PredictedImages(self.mean, None, self.epistemic, self.epistemic)
        if self.aleatoric is None:
            raise ValueError(f"uncertainty {uncertainty!r} needs the variance of every member")
        if uncertainty == "aleatoric":
            return PredictedImages(self.mean, self.aleatoric, None, self.aleatoric)
        return PredictedImages(self.mean, self.aleatoric, self.epistemic, self.aleatoric + self.epistemic)


def mix(members: Sequence[PredictedImages]) -> Mixture:
    """Combine members' predictions of one sample.

    Returns:
        The moments. `aleatoric` averages total predictive variances, so that `both` is the exact variance of the
        mixture; `own_epistemic` is the part that NIG members count as epistemic.

    Source:
        Lakshminarayanan et al. 2017. Changes: variance of means from differences, which does not cancel in float32.
    """
    means = np.stack([member.mean for member in members])
    mean = means.mean(axis=0)
    epistemic = np.square(means - mean).mean(axis=0)
    totals = [member.total for member in members if member.total is not None]
    aleatoric = np.stack(totals).mean(axis=0) if len(totals) == len(members) else None
    own = [np.zeros_like(mean) if member.epistemic is None else member.epistemic for member in members]
    return Mixture(mean, aleatoric, epistemic, np.stack(own).mean(axis=0))

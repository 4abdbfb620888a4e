"""Metrics of a split: means over images, and calibration over pixels, overall and by cloud cover of the pixel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.json_files import Schema
from data.constants import S2_BANDS
from evaluation.accumulator import MISSING, Accumulator, EvaluatedBatch, Part
from evaluation.baselines import COMPARISON_SCHEMA
from evaluation.calibration import (
    BINS,
    CENTRAL_CELLS,
    Array,
    CalibrationMeter,
    CalibrationSums,
    calibration_figures,
    coverage_curve,
    discard_curve,
    error_figures,
    reliability,
    uce_auce,
)
from evaluation.image_metrics import at_least_float32, average_metrics
from model.predictions import NIG

VARIANCE_METRICS = ("error", "mean ae", "mean se", "mean var")
STRATA = ("clouded at no date", "clouded at some dates", "clouded at all dates")
_UNKNOWN = len(STRATA)  # stratum of samples without masks

_FIGURE = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_FIGURES = {"^(RMSE|MAE|PSNR|SAM|SSIM|NLL|CRPS|ENCE|UCE|AUSE|sharpness|coverage [0-9]+)$": {"type": "number"}}
_CURVES = {
    "reliability": {
        "type": "object",
        "required": ["RMV", "RMSE"],
        "properties": dict.fromkeys(
            ("RMV", "RMSE"), {"type": "array", "items": _FIGURE, "minItems": BINS, "maxItems": BINS}
        ),
    },
    "coverage curve": {
        "type": "object",
        "required": ["nominal", "inside"],
        "properties": dict.fromkeys(
            ("nominal", "inside"),
            {"type": "array", "items": _FIGURE, "minItems": CENTRAL_CELLS - 1, "maxItems": CENTRAL_CELLS - 1},
        ),
    },
    "discard curve SE": {"type": "array", "items": _FIGURE},
}
METRICS_SCHEMA: Schema = {  # of a test's metrics file: `SplitMetrics.compute`, `BandMeter.compute`, and the comparison
    "type": "object",
    "properties": {
        **_CURVES,
        "images": {"type": "integer"},
        "strata": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["elements", "RMSE", "MAE"],
                "properties": {"elements": {"type": "integer"}, "RMSE": _FIGURE, "MAE": _FIGURE},
                "patternProperties": _FIGURES,
            },
        },
        "bands": {
            "type": "object",
            "required": list(S2_BANDS),
            "additionalProperties": {
                "type": "object",
                "required": ["RMSE", "MAE", "bias"],
                "properties": dict.fromkeys(("RMSE", "MAE", "bias", "RMV"), _FIGURE),
            },
        },
        "comparison": COMPARISON_SCHEMA,
    },
    "patternProperties": _FIGURES,
    "dependencies": {"reliability": ["coverage curve", "discard curve SE", "ENCE", "coverage 90"]},
}

# has_variance, (id, metrics) of each image, number of missing pixels, sums of the other pixels
State = tuple[bool | None, list[tuple[int, dict[str, float]]], int, tuple[Array, ...]]


class SplitMetrics(Accumulator):
    """Accumulates the metrics of each image and the calibration of pixels by stratum.

    Attributes:
        has_variance: whether the predictions have a variance; None before the first batch.
        per_image: the metrics of each image, by id.
    """

    def __init__(self) -> None:
        self.has_variance: bool | None = None
        self.per_image: list[dict[str, float]] = []
        self._ids: list[int] = []
        self._missing = 0
        self._pixels = CalibrationMeter(n_strata=len(STRATA) + 1)

    @torch.no_grad()
    def update(self, batch: EvaluatedBatch) -> None:
        """Take a batch into account.

        Raises:
            ValueError: if only some of the predictions have a variance.
        """
        if self.has_variance not in (None, batch.has_variance):
            raise ValueError("expected predictions with a variance in every batch or in none")
        self.has_variance = batch.has_variance
        self._ids += batch.ids
        self.per_image += batch.metrics
        for part in batch.parts:
            self._update_pixels(part, None if batch.masks is None else batch.masks[part.rows])

    def _update_pixels(self, part: Part, masks: Tensor | None) -> None:
        target, prediction = part.reference.target, part.prediction  # (B,1,13,H,W)
        fields = [at_least_float32(target - prediction.mean)]
        if part.variance is not None:
            fields += [part.variance, prediction.nll(target)]
            fields += [2 * prediction.alpha] if isinstance(prediction, NIG) else []
        columns = [_bands_first(field) for field in fields]
        stratum = torch.full_like(target[:, :, 0], _UNKNOWN, dtype=torch.int64) if masks is None else _strata(masks)
        if part.reference.valid is not None:
            valid = part.reference.valid[:, :, 0]  # (B,1,H,W)
            self._missing += int((~valid).sum())
            columns, stratum = [column[:, valid] for column in columns], stratum[valid]
        error, *others = columns
        variance, nll, dof = [*others, None, None, None][:3]
        self._pixels.update(error, variance, nll, dof, stratum)

    def state(self) -> State:
        """All that was accumulated so far, for `merge`."""
        images = list(zip(self._ids, self.per_image, strict=True))
        return self.has_variance, images, self._missing, self._pixels.state()

    def merge(self, states: Sequence[State]) -> None:
        """Replace the own state by that of all processes, images in the order of their ids."""
        self.has_variance = next((has_variance for has_variance, *_ in states if has_variance is not None), None)
        images = sorted((image for _, per_image, *_ in states for image in per_image), key=lambda image: image[0])
        self._ids, self.per_image = [number for number, _ in images], [metrics for _, metrics in images]
        self._missing = sum(missing for *_, missing, _ in states)
        self._pixels.merge([pixels for *_, pixels in states])

    def compute(self) -> dict[str, Any]:
        """The content of a metrics file, ready for JSON.

        Returns:
            `images`, the averages by their published names, with a variance `UCE SE`, `AUCE SE` and the
            calibration figures; then nested: `strata` (figures and curves by cloud cover of the pixel), `left out`
            (counts of NaN and infinite values, and of target pixels without data, if any), `discard curve SE`,
            `reliability`, `coverage curve`.
        """
        means, left_out = average_metrics(self.per_image)
        sums = self._pixels.compute()
        report: dict[str, Any] = {"images": len(self.per_image), **means}
        if self.has_variance:
            columns = {name: [metrics[name] for metrics in self.per_image] for name in VARIANCE_METRICS}
            report["UCE SE"], report["AUCE SE"] = uce_auce(columns["mean var"], columns["error"])
            report |= calibration_figures(sums)
        strata = {name: self._pixels.compute(index) for index, name in enumerate(STRATA)}
        report["strata"] = {
            name: error_figures(part) | (calibration_figures(part) | _curves(part) if self.has_variance else {})
            for name, part in strata.items()
            if part.count + part.left_out > 0
        }
        report["left out"] = {**left_out, "elements": int(sums.left_out)}
        if self._missing:
            report["left out"][MISSING] = self._missing
        if self.has_variance:
            report["discard curve SE"] = discard_curve(columns["mean var"], columns["mean se"])
            report |= _curves(sums)
        return report


def _curves(sums: CalibrationSums) -> dict[str, dict[str, list[float]]]:
    """The curves of the reliability and coverage plots, ready for JSON."""
    rmv, rmse = reliability(sums)
    nominal, inside = coverage_curve(sums)
    return {
        "reliability": {"RMV": rmv.tolist(), "RMSE": rmse.tolist()},
        "coverage curve": {"nominal": nominal.tolist(), "inside": inside.tolist()},
    }


def _strata(masks: Tensor) -> Tensor:
    """(B,T,H,W) masks to (B,1,H,W) positions in STRATA."""
    clouded = masks >= 0.5
    at_some, at_all = clouded.any(dim=1), clouded.all(dim=1)  # (B,H,W)
    return (at_some.long() + at_all.long())[:, None]  # (B,1,H,W)


def _bands_first(image: Tensor) -> Tensor:
    """(B,1,13,H,W) to (13,B,1,H,W)."""
    return image.movedim(2, 0)

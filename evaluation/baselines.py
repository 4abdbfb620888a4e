"""Trivial baselines, and the table that compares methods on the same samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.json_files import Schema
from data.constants import N_S2
from evaluation.accumulator import Accumulator, EvaluatedBatch
from evaluation.image_metrics import IMAGE_METRICS, average_metrics

OVERALL = "all samples"
EVERY_CLOUDED = "every input >= 30 %"
_BIN_EDGES = (0.1, 0.3, 0.6)  # mean coverage of a sample's inputs
_BIN_NAMES = tuple(f"inputs {per_cent} % clouded" for per_cent in ("0-10", "10-30", "30-60", "60-100"))
_CLOUDED = 0.3

Rows = dict[str, dict[str, list[dict[str, float]]]]  # method -> group -> metrics of each image
HIGHER_IS_BETTER = ("PSNR", "SSIM")


def trivial_predictions(optical: Tensor, masks: Tensor, coverage: Tensor) -> dict[str, Tensor]:
    """Three reconstructions that need no training.

    Args:
        optical: (B,T,13,H,W), the inputs without radar, reflectance.
        masks: (B,T,H,W), cloud masks; 0.5 and above is cloud.
        coverage: (B,T), share of cloud of each date.

    Returns:
        Images (B,1,13,H,W): `least_cloudy`, the input of the clearest date (the earliest of equal ones); `mean`, of
        all dates; `clear_mean`, of the dates that are clear at the pixel, or of all dates if none is.
    """
    items = torch.arange(len(optical), device=optical.device)
    clearest = coverage.to(optical.device).sort(dim=1, stable=True).indices[:, 0]  # (B,)
    mean = optical.mean(dim=1)  # (B,13,H,W)
    clear = (masks < 0.5).to(optical)[:, :, None]  # (B,T,1,H,W)
    n_clear = clear.sum(dim=1)  # (B,1,H,W)
    clear_mean = torch.where(n_clear > 0, (optical * clear).sum(dim=1) / n_clear.clamp(min=1), mean)
    images = {"least_cloudy": optical[items, clearest], "mean": mean, "clear_mean": clear_mean}
    return {name: image.unsqueeze(1) for name, image in images.items()}


def cloud_cover_bins(coverage: Sequence[float]) -> tuple[str, ...]:
    """The groups of a sample by the cloud cover of its inputs, in [0, 1].

    Returns:
        `all samples`, the bin of the mean coverage (0-10, 10-30, 30-60 or 60-100 %; an edge belongs to the bin
        above it), and `every input >= 30 %` if that holds.
    """
    mean = sum(coverage) / len(coverage)
    groups = (OVERALL, _BIN_NAMES[sum(mean >= edge for edge in _BIN_EDGES)])
    return (*groups, EVERY_CLOUDED) if min(coverage) >= _CLOUDED else groups


COMPARISON_SCHEMA: Schema = {  # of `ComparisonTable.compute`
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "required": ["images", *IMAGE_METRICS],
            "properties": {"images": {"type": "integer"}, **dict.fromkeys(IMAGE_METRICS, {"type": "number"})},
        },
    },
}


class ComparisonTable(Accumulator):
    """Metrics of several methods, averaged over all samples and by the cloud cover of their inputs.

    Args:
        method: name of the evaluated method in the table.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self._rows: Rows = {}

    def update(self, batch: EvaluatedBatch) -> None:
        """Take the evaluated method into account, and the trivial baselines if the batch has inputs and masks."""
        self.add(self.method, batch.metrics, batch.coverage)
        if batch.inputs is None or batch.masks is None or batch.coverage is None:
            return
        for part in batch.parts:
            optical, coverage = batch.inputs[part.rows, :, -N_S2:], batch.coverage[part.rows]
            for name, image in trivial_predictions(optical, batch.masks[part.rows], coverage).items():
                self.add(name, part.reference.metrics(image), coverage)

    def add(self, method: str, per_image: Sequence[dict[str, float]], coverage: Tensor | None = None) -> None:
        """Take images of any method into account.

        Args:
            method: its name in the table.
            per_image: the metrics of each image, as from `batch_metrics`.
            coverage: (B,T), share of cloud of each input; without it the images count among all samples only.
        """
        groups = self._rows.setdefault(method, {})
        memberships = [(OVERALL,)] * len(per_image) if coverage is None else map(cloud_cover_bins, coverage.tolist())
        for metrics, names in zip(per_image, memberships, strict=True):
            for group in names:
                groups.setdefault(group, []).append(metrics)

    def state(self) -> Rows:
        """All that was accumulated so far, for `merge`."""
        return self._rows

    def merge(self, states: Sequence[Rows]) -> None:
        """Replace the own state by that of all processes."""
        rows: Rows = {}
        for state in states:
            for method, groups in state.items():
                for group, images in groups.items():
                    rows.setdefault(method, {}).setdefault(group, []).extend(images)
        self._rows = rows

    def compute(self) -> dict[str, Any]:
        """Group -> method -> number of images, averages, and counts of values left out of the averages."""
        table: dict[str, Any] = {}
        for group in (OVERALL, *_BIN_NAMES, EVERY_CLOUDED):
            for method, groups in self._rows.items():
                if group not in groups:
                    continue
                means, left_out = average_metrics(groups[group])
                entry: dict[str, Any] = {"images": len(groups[group]), **means}
                table.setdefault(group, {})[method] = {**entry, "left out": left_out} if left_out else entry
        return table


def comparison_markdown(comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A computed `ComparisonTable` as a Markdown table for each group; `*` marks the best of a column."""
    tables = []
    for group, methods in comparison.items():
        counts = sorted({entry["images"] for entry in methods.values()})
        title = f"{group} ({' or '.join(str(count) for count in counts)} images)"
        tables.append("\n".join([title, "", *_markdown_rows(methods)]))
    return "\n\n".join(tables) + "\n"


def _markdown_rows(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table with aligned columns."""
    best = {}
    for name in IMAGE_METRICS:
        values = [entry[name] for entry in methods.values() if not math.isnan(entry[name])]
        best[name] = (max if name in HIGHER_IS_BETTER else min)(values, default=math.nan)
    cells = [["method", *(f"{name} {'+' if name in HIGHER_IS_BETTER else '-'}" for name in IMAGE_METRICS)]]
    for method, entry in methods.items():
        row = [method]
        for name in IMAGE_METRICS:
            mark = "*" if entry[name] == best[name] and len(methods) > 1 else ""
            left_out = entry.get("left out", {}).get(name, {})
            note = "".join(f" ({count} {kind})" for kind, count in left_out.items() if count)
            row.append(f"{entry[name]:.{2 if name in ('PSNR', 'SAM') else 4}f}{mark}{note}")
        cells.append(row)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]

"""What any network must beat, and the table that sets methods side by side under one evaluator."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.image_metrics import IMAGE_METRICS, average_metrics

OVERALL = "all samples"
EVERY_CLOUDED = "every input >= 30 %"
_BIN_EDGES = (0.0, 0.1, 0.3, 0.6, 1.0)  # mean coverage of a sample's inputs
_CLOUDED = 0.3
_HIGHER_IS_BETTER = {"PSNR": True, "SSIM": True, "RMSE": False, "MAE": False, "SAM": False}


def trivial_predictions(optical: Tensor, masks: Tensor, coverage: Tensor) -> dict[str, Tensor]:
    """Three reconstructions that need no training.

    Args:
        optical: (B,T,13,H,W), the inputs without radar, reflectance.
        masks: (B,T,H,W), cloud masks; 0.5 and above is cloud.
        coverage: (B,T), share of cloud of each date.

    Returns:
        Images (B,1,13,H,W): `least_cloudy`, the input of the clearest date (the earliest among equals); `mean`, of
        all dates; `clear_mean`, of the dates that are clear at the pixel, and of all dates where none is.
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
    """The groups that a sample with these input coverages belongs to.

    Args:
        coverage: share of cloud of each input, in [0, 1].

    Returns:
        `all samples`, the bin of the mean coverage (0-10, 10-30, 30-60 or 60-100 %; an edge belongs to the bin
        above it), and `every input >= 30 %` where that holds.
    """
    mean = sum(coverage) / len(coverage)
    position = sum(mean >= edge for edge in _BIN_EDGES[1:-1])
    groups = (OVERALL, _bin_names()[position])
    return (*groups, EVERY_CLOUDED) if min(coverage) >= _CLOUDED else groups


class ComparisonTable:
    """Metrics per image of several methods, averaged over all samples and by the cloud cover of their inputs."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[dict[str, float]]]] = {}  # method -> group -> images

    def add(self, method: str, per_image: Sequence[dict[str, float]], coverage: Tensor | None = None) -> None:
        """Take in a batch of one method.

        Args:
            method: its name in the table.
            per_image: the metrics of each image, as `EvaluationMeter.add` returns them.
            coverage: (B,T), share of cloud of each input; without it they count only among all samples.
        """
        groups = self._rows.setdefault(method, {})
        memberships = [(OVERALL,)] * len(per_image) if coverage is None else map(cloud_cover_bins, coverage.tolist())
        for metrics, names in zip(per_image, memberships, strict=True):
            for group in names:
                groups.setdefault(group, []).append(metrics)

    def join(self, others: Sequence["ComparisonTable"]) -> None:
        """Become the table of all that others took in, this one among them."""
        rows: dict[str, dict[str, list[dict[str, float]]]] = {}
        for table in others:
            for method, groups in table._rows.items():
                for group, images in groups.items():
                    rows.setdefault(method, {}).setdefault(group, []).extend(images)
        self._rows = rows

    def to_json(self) -> dict[str, Any]:
        """Group -> method -> number of images, averages, and counts of values that no average contains."""
        report: dict[str, Any] = {}
        for group in (OVERALL, *_bin_names(), EVERY_CLOUDED):
            for method, groups in self._rows.items():
                if group not in groups:
                    continue
                means, left_out = average_metrics(groups[group])
                entry: dict[str, Any] = {"images": len(groups[group]), **means}
                report.setdefault(group, {})[method] = {**entry, "left out": left_out} if left_out else entry
        return report

    def markdown(self) -> str:
        """A table for each group, readable on a terminal; the best of each column is marked with `*`."""
        parts = []
        for group, methods in self.to_json().items():
            counts = sorted({entry["images"] for entry in methods.values()})
            title = f"{group} ({' or '.join(str(count) for count in counts)} images)"
            parts.append("\n".join([title, "", *_table(methods)]))
        return "\n\n".join(parts) + "\n"


def _table(methods: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table with aligned columns."""
    best = {}
    for name, higher in _HIGHER_IS_BETTER.items():
        values = [entry[name] for entry in methods.values() if not math.isnan(entry[name])]
        best[name] = (max if higher else min)(values, default=math.nan)
    cells = [["method", *(f"{name} {'+' if _HIGHER_IS_BETTER[name] else '-'}" for name in IMAGE_METRICS)]]
    for method, entry in methods.items():
        row = [method]
        for name in IMAGE_METRICS:
            mark = "*" if entry[name] == best[name] and len(methods) > 1 else ""
            left_out = entry.get("left out", {}).get(name, {})
            note = "".join(f" ({count} {kind})" for kind, count in left_out.items() if count)
            row.append(f"{entry[name]:.{2 if name in ('PSNR', 'SAM') else 4}f}{mark}{note}")
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _bin_names() -> tuple[str, ...]:
    per_cent = [round(100 * edge) for edge in _BIN_EDGES]
    return tuple(f"inputs {low}-{high} % clouded" for low, high in zip(per_cent[:-1], per_cent[1:], strict=True))

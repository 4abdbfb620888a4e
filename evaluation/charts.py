"""Charts: calibration, discard curves, training, ratios. Maps are in `evaluation/images.py`.

The colours are those of Okabe and Ito, distinct for colour-blind people; runs differ by marker as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evaluation.images import UNIT, new_figure, save_figure

if TYPE_CHECKING:  # matplotlib takes half a second, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
_MARKERS = "os^Dv*"
_GREY = "#666666"
_WIDTH = 5.4  # of a single chart, inches

Metrics = Mapping[str, Any]  # as from `SplitMetrics.compute`, or one of its strata


def plot_discard(curve: Sequence[float], folder: str | Path) -> list[Path]:
    """Write `plot_test_SE_discard.png` and `.pdf`: error of the most certain images against their share."""
    curves, paths = {"sorted by predicted variance": curve}, ("plot_test_SE_discard.png", "plot_test_SE_discard.pdf")
    return [plot_discards(curves, Path(folder) / path) for path in paths]


def plot_discards(curves: Mapping[str, Sequence[float]], path: str | Path, width: float = _WIDTH) -> Path:
    """Draw the discard curves of several runs, as from `calibration.discard_curve`; see `plot_reliability`."""
    labels = "share of images kept, the most certain first", "mean squared error, reflectance squared"
    figure, axes = _new_chart(*labels, width)
    for index, (name, curve) in enumerate(curves.items()):
        values = np.asarray(curve, dtype=np.float64)
        share = np.arange(1, len(values) + 1) / len(values)
        finite = np.isfinite(values)
        axes.plot(share[finite], values[finite], label=name, **_style(index))
        if len(curves) == 1 and finite.any() and finite[-1]:
            axes.axhline(values[-1], color=_GREY, linestyle="--", linewidth=1, label="all images")
    highest = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    axes.set(xlim=(0, 1.02), ylim=(0, 1.06 * max(highest, default=1.0) or 1.0))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def plot_reliability(runs: Mapping[str, Metrics], path: str | Path, width: float = _WIDTH) -> Path:
    """Draw root mean squared error against root mean variance in bins of equal mass.

    Both axes are logarithmic: the distance from the diagonal is the factor between the two.

    Args:
        runs: name -> as from `SplitMetrics.compute`; all are drawn in one chart.
        path: .png, .pdf or .svg.
        width: inches; the font size does not depend on it.
    """
    return _plot_runs(_draw_reliability, runs, path, width, lambda metrics: f"ENCE {metrics['ENCE']:.3f}")


def plot_coverage(runs: Mapping[str, Metrics], path: str | Path, width: float = _WIDTH) -> Path:
    """Draw the share of targets inside the central intervals against their nominal level; see `plot_reliability`."""
    return _plot_runs(_draw_coverage, runs, path, width, _coverage_label)


def plot_calibration(runs: Mapping[str, Metrics], path: str | Path, title: str = "") -> Path:
    """Draw reliability and coverage of several runs side by side, and their figures below; see `plot_reliability`."""
    figure = new_figure(9.6, 4.75 + 0.21 * len(runs))
    left, right = figure.subplots(1, 2)
    _draw_reliability(_style_axes(left), runs)
    _draw_coverage(_style_axes(right), runs)
    left.set_title("reliability", fontsize=10.5)
    right.set_title("coverage", fontsize=10.5)
    below = 0.62 + 0.21 * (len(runs) + 1)
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - 0.65 / figure.get_figheight(), wspace=0.22)
    figure.subplots_adjust(bottom=below / figure.get_figheight())
    labels = [
        f"{name}: ENCE {metrics['ENCE']:.3f}, {_coverage_label(metrics)}, NLL {metrics['NLL']:.2f}, "
        f"AUSE {metrics['AUSE']:.2f}"
        for name, metrics in runs.items()
    ]
    handles = right.get_lines()
    figure.legend([*handles[1:], handles[0]], [*labels, "calibrated"], loc="lower center", frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, weight="bold", y=1 - 0.06 / figure.get_figheight(), va="top")
    return save_figure(figure, path)


def metrics_by_stratum(metrics: Metrics) -> dict[str, Metrics]:
    """The metrics of all pixels and of each stratum that has any, named with its share, for `plot_calibration`."""
    strata = {name: stratum for name, stratum in metrics["strata"].items() if "reliability" in stratum}
    total = sum(stratum["elements"] for stratum in strata.values())
    shares = {name: stratum["elements"] / total for name, stratum in strata.items() if stratum["elements"]}
    return {"all pixels": metrics} | {
        f"{name}, {100 * share:.0f} % of all": strata[name] for name, share in shares.items()
    }


def colour_table(name: str) -> npt.NDArray[np.uint8]:
    """The 256 colours (256,3) of a colour map, such as "viridis"."""
    from matplotlib import colormaps  # deferred: matplotlib

    return np.rint(255 * colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)


def plot_ratios(
    ratios: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str], path: str | Path, label: str
) -> Path:
    """Draw ratios with their intervals, grouped by run, and a line at 1.

    Args:
        ratios: method -> for each run `value`, `low` and `high`.
        names: of the runs.
        path: of the file.
        label: of the ratio.
    """
    figure, axes = _new_chart("", label)
    axes.axhline(1.0, color=_GREY, linestyle="--", linewidth=1)
    for index, (method, runs) in enumerate(ratios.items()):
        x = np.arange(len(names)) + 0.16 * (index - (len(ratios) - 1) / 2)
        value, low, high = (np.array([run[key] for run in runs]) for key in ("value", "low", "high"))
        errors = np.maximum(np.stack([value - low, high - value]), 0)
        axes.errorbar(x, value, errors, linestyle="none", capsize=3, linewidth=1, label=method, **_style(index))
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(ratios), fontsize=9)
    return save_figure(figure, path)


def plot_speed_ups(rows: Mapping[str, Mapping[str, float]], path: str | Path, label: str) -> Path:
    """Draw speed-ups over a reference with their goals, on a logarithmic axis.

    Args:
        rows: what is measured -> `median`, `least`, `most` and `goal` (NaN if there is none).
        path: of the file.
        label: of the axis.
    """
    figure = new_figure(7.4, 1.1 + 0.42 * len(rows))
    axes = _style_axes(figure.add_subplot())
    axes.grid(axis="y", visible=False)
    y = np.arange(len(rows))[::-1]
    value, low, high, goal = (
        np.array([row[key] for row in rows.values()]) for key in ("median", "least", "most", "goal")
    )
    axes.barh(y, value - 1, 0.55, left=1, color=_COLOURS[5])
    axes.errorbar(value, y, xerr=np.stack([value - low, high - value]), fmt="none", ecolor="black", capsize=3)
    axes.plot(goal, y, "|", color=_COLOURS[1], markersize=17, markeredgewidth=2, label="goal")
    for height, row in zip(y, rows.values(), strict=True):
        text = f"{row['median']:,.{0 if row['median'] >= 100 else 1}f}"
        axes.annotate(text, (row["most"], height), (6, 0), textcoords="offset points", va="center")
    axes.set(xscale="log", xlabel=label, xlim=(1, 2.2 * float(np.nanmax([high.max(), np.nanmax(goal)]))))
    axes.set_yticks(y, list(rows))
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return save_figure(figure, path)


def plot_training(log: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the losses, and the PSNR of validation if it was measured, over epochs; `log` is as in trainlog.json."""
    figure, axes = _new_chart("epoch", "loss")
    epochs = sorted(log, key=int)
    names = list(dict.fromkeys(name for epoch in epochs for name in log[epoch]))
    quality = axes.twinx() if any("PSNR" in name for name in names) else None
    for index, name in enumerate(name for name in names if name.endswith("loss") or "PSNR" in name):
        points = [(int(epoch), float(log[epoch][name])) for epoch in epochs if name in log[epoch]]
        panel = quality if quality is not None and "PSNR" in name else axes
        label, line = name.replace("_", " "), "-" if panel is axes else ":"
        panel.plot(*zip(*points, strict=True), label=label, linestyle=line, **_style(index))
    panels = [axes] if quality is None else [axes, quality]
    if quality is not None:
        quality.set_ylabel("PSNR, dB")
        quality.spines["top"].set_visible(False)
    handles = [handle for panel in panels for handle in panel.get_lines()]
    axes.legend(handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    axes.locator_params(axis="x", integer=True)
    return save_figure(figure, path)


def _draw_reliability(axes: "Axes", runs: Mapping[str, Metrics]) -> None:
    """One line for the diagonal, then one for each run."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # deferred: matplotlib

    curves = [_positive(metrics["reliability"]["RMV"], metrics["reliability"]["RMSE"]) for metrics in runs.values()]
    values = np.concatenate([np.concatenate(curve) for curve in curves])
    low, high = (values.min() / 1.25, values.max() * 1.25) if values.size else (0.01, 0.1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.plot([low, high], [low, high], "--", color=_GREY, linewidth=1, label="calibrated")
    for index, (rmv, rmse) in enumerate(curves):
        axes.plot(rmv, rmse, linewidth=1, **_style(index))
    axes.set_xlabel(f"stated: root mean variance, {UNIT}")
    axes.set_ylabel(f"true: root mean squared error, {UNIT}")
    subs = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 1000 else (1,)  # as many labels as fit
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _label_sides(axes, above="over-confident", below="too cautious")


def _draw_coverage(axes: "Axes", runs: Mapping[str, Metrics]) -> None:
    """One line for the diagonal, then one for each run."""
    axes.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1, label="calibrated")
    for index, metrics in enumerate(runs.values()):
        curve = metrics["coverage curve"]
        axes.plot(curve["nominal"], curve["inside"], linewidth=1.4, markevery=(4 + index % 6, 10), **_style(index))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("nominal level of the central interval")
    axes.set_ylabel("share of targets inside")
    _label_sides(axes, above="too cautious", below="over-confident")


def _label_sides(axes: "Axes", above: str, below: str) -> None:
    """Label the regions above and below the diagonal."""
    style: dict[str, Any] = {"transform": axes.transAxes, "color": _GREY, "fontsize": 8.5, "style": "italic"}
    axes.text(0.03, 0.97, above, ha="left", va="top", **style)
    axes.text(0.97, 0.03, below, ha="right", va="bottom", **style)


def _positive(rmv: Sequence[float], rmse: Sequence[float]) -> npt.NDArray[np.float64]:
    """The bins that can be drawn on logarithmic axes, (2,N)."""
    points = np.array([rmv, rmse], dtype=np.float64)
    return points[:, (np.isfinite(points) & (points > 0)).all(axis=0)]


def _coverage_label(metrics: Metrics) -> str:
    return f"90 % interval holds {100 * metrics['coverage 90']:.1f} %"


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % 6], "marker": _MARKERS[index % 6], "markersize": 4}


def _plot_runs(
    draw: "Callable[[Axes, Mapping[str, Metrics]], None]",
    runs: Mapping[str, Metrics],
    path: str | Path,
    width: float,
    label: Callable[[Metrics], str],
) -> Path:
    """One chart of several runs, each with one figure in the legend; `draw` draws the diagonal first."""
    figure = new_figure(width, width - 0.4)
    axes = _style_axes(figure.add_subplot())
    draw(axes, runs)
    for line, (name, metrics) in zip(axes.get_lines()[1:], runs.items(), strict=True):
        line.set_label(f"{name}, {label(metrics)}")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=9)
    return save_figure(figure, path)


def _new_chart(x_label: str, y_label: str, width: float = _WIDTH) -> tuple["Figure", "Axes"]:
    figure = new_figure(width, 4.2 if width == _WIDTH else width - 0.4)
    axes = _style_axes(figure.add_subplot())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _style_axes(axes: "Axes") -> "Axes":
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes

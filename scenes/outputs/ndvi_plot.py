"""The quick-look of a series: NDVI over time with its 90 % band, of the middle pixel and of the scene, and pictures.

With `evaluation.images` and `evaluation.charts` the only module that draws figures.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import atomic_file
from data.constants import DATE_ORIGIN
from scenes.output_images import OutputImage
from scenes.outputs.ndvi import NdviSums

if TYPE_CHECKING:  # matplotlib takes half a second, and a scene of one image draws nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Half-width of the band in standard deviations: of a Gaussian head its 90 % interval, to first order. A NIG head
# predicts a Student-t with the same variance, whose degrees of freedom the maps do not keep: its own half-width is 1.36
# (3 degrees of freedom) to 1.645 deviations, so that the band holds 90 % or more.
REACH = 1.6448536269514722  # scipy.special.ndtri(0.95)
SHARE = 0.5  # of a scene that must be clear at a date for its observed mean to stand for the scene
_PICTURES = 7
_COLOURS = {"middle": "#009E73", "mean": "#0072B2"}  # Okabe and Ito 2008
_INK, _GREY = "#222222", "#8a8a8a"


@dataclass(frozen=True)
class NdviCurve:
    """NDVI over time of one place, days since 2014-04-03; (N,) each, NaN where there is no value.

    Attributes:
        days: of the images.
        value: predicted.
        deviation: its standard deviation.
        observed_days: of the observations.
        observed: clear observations.
    """

    days: np.ndarray
    value: np.ndarray
    deviation: np.ndarray
    observed_days: np.ndarray
    observed: np.ndarray


def ndvi_curves(
    days: Sequence[int], images: Sequence[OutputImage], sums: Sequence[NdviSums]
) -> tuple[NdviCurve, NdviCurve]:
    """The curves of the middle pixel and of the mean of the scene.

    The deviation of the mean is the mean of the pixels' deviations: their errors, of which clouds and haze are a large
    part, are taken as the same everywhere, which is the widest that the mean can vary.

    Args:
        days: of the series.
        images: of the series.
        sums: of each image.
    """
    size = np.array([max(part.pixels, 1) for part in sums])
    empty = np.array([part.pixels == 0 for part in sums])
    clear = np.full((len(days), 2), np.nan)  # middle, mean
    for image, part in zip(images, sums, strict=True):
        observed = zip(image.dates, part.clear, part.clear_total, part.clear_middle, strict=True)
        for date, count, total, of_middle in observed:
            clear[date] = of_middle, total / count if count and count >= SHARE * part.pixels else np.nan
    at = np.array([image.middle for image in images])
    mean, mean_deviation = (
        np.where(empty, np.nan, np.array([getattr(part, name) for part in sums]) / size)
        for name in ("total", "deviation")
    )
    middle, middle_deviation = (np.array([part.middle[index] for part in sums]) for index in (0, 1))
    observed_days = np.array(days, np.float64)
    return (
        NdviCurve(at, middle, middle_deviation, observed_days, clear[:, 0]),
        NdviCurve(at, mean, mean_deviation, observed_days, clear[:, 1]),
    )


def write_csv(path: Path, images: Sequence[OutputImage], curves: tuple[NdviCurve, NdviCurve]) -> None:
    """Write the numbers of the plot, a row for each image, and one for each observation of a series, atomically."""
    middle, mean = curves
    rows: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        values = (middle.value, middle.deviation, mean.value, mean.deviation)
        rows.append(_row("predicted", image.name, *(float(value[index]) for value in values)))
    for index, day in enumerate(mean.observed_days):
        label = (DATE_ORIGIN + timedelta(days=int(day))).isoformat()
        rows.append(_row("observed", label, float(middle.observed[index]), np.nan, float(mean.observed[index]), np.nan))
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _row(kind: str, name: str, middle: float, middle_std: float, mean: float, mean_std: float) -> dict[str, str]:
    values = {"middle_pixel": middle, "middle_pixel_std": middle_std, "mean": mean, "mean_std": mean_std}
    numbers = {name: "" if np.isnan(value) else f"{value:.5f}" for name, value in values.items()}
    return {"kind": kind, "time": name, **numbers}


def plot_ndvi(
    path: Path, images: Sequence[OutputImage], curves: tuple[NdviCurve, NdviCurve], pictures: Sequence[Path]
) -> None:
    """Draw the curves one above the other, and some of the images over them; a PNG, atomic.

    Args:
        path: of the file.
        images: of the series.
        curves: of the middle pixel and of the mean.
        pictures: the quick-look of each image.
    """
    from matplotlib.figure import Figure  # deferred: matplotlib

    figure = Figure(figsize=(10.5, 7.0), facecolor="white")
    grid = figure.add_gridspec(3, 1, height_ratios=(1.05, 1.5, 1.5), hspace=0.16)
    grid.update(left=0.065, right=0.985, top=0.915, bottom=0.06)
    panels = [figure.add_subplot(grid[1])]
    panels.append(figure.add_subplot(grid[2], sharex=panels[0]))
    titles = {"middle": "middle pixel", "mean": "mean of the scene"}
    for axes, curve, name in zip(panels, curves, titles, strict=True):
        _draw_curve(axes, curve, _COLOURS[name], titles[name])
    panels[0].tick_params(labelbottom=False)
    _style_dates(panels[1], images)
    _add_pictures(figure, grid[0].get_position(figure).bounds, panels[0], images, pictures)
    figure.text(0.065, 0.972, "NDVI of the cloud-free series", fontsize=13, weight="bold", color=_INK, va="center")
    _add_legend(figure, panels[0])
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    line, band, points = axes.get_lines()[0], axes.collections[0], axes.collections[1]
    labels = ("predicted", "90 % band", f"observed, clear (scene: {100 * SHARE:.0f} % of it or more)")
    place: dict[str, Any] = {"loc": "center right", "bbox_to_anchor": (0.99, 0.972), "borderaxespad": 0.0}
    style: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": 9, "labelcolor": _INK, "columnspacing": 1.8}
    figure.legend([line, band, points], labels, **place, **style)


def _draw_curve(axes: "Axes", curve: NdviCurve, colour: str, title: str) -> None:
    times, observed_times = _times(curve.days), _times(curve.observed_days)
    low, high = curve.value - REACH * curve.deviation, curve.value + REACH * curve.deviation
    finite = np.isfinite(low)
    # kept observations have no band: a slope from them to the next image would suggest one
    step: Any = "mid" if (curve.deviation[finite] == 0).any() else None
    axes.fill_between(times[finite], low[finite], high[finite], step=step, color=colour, alpha=0.18, linewidth=0)
    axes.plot(times, curve.value, color=colour, linewidth=1.6, marker="o", markersize=2.6, solid_capstyle="round")
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": _INK, "linewidth": 1.1, "zorder": 3}
    axes.scatter(observed_times, curve.observed, s=24, **style)
    centre = np.concatenate([curve.value, curve.observed])
    centre = centre[np.isfinite(centre)]
    if centre.size:
        # the band of a date without any clear pixel may be as wide as the range of the index: curves stay readable
        reach = max(0.12, 0.75 * float(np.ptp(centre)))
        limits = (centre.min() - reach, centre.max() + reach)
        edges = (min(low[finite], default=limits[0]), max(high[finite], default=limits[1]))
        bottom, top = (
            max(limits[0], min(edges[0], centre.min()) - 0.04),
            min(limits[1], max(edges[1], centre.max()) + 0.04),
        )
        axes.set_ylim(max(-1.02, bottom), min(1.02, top))
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_GREY)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
    axes.tick_params(labelsize=8.5, color="#b0b0b0", labelcolor=_INK)
    axes.locator_params(axis="y", nbins=6)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    axes.text(
        0.008, 0.955, title, transform=axes.transAxes, va="top", fontsize=10.5, weight="bold", color=colour, bbox=box
    )


def _style_dates(axes: "Axes", images: Sequence[OutputImage]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # deferred: matplotlib

    first, last = min(image.middle for image in images), max(image.middle for image in images)
    margin = max(1.0, 0.02 * (last - first))
    axes.set_xlim(*_times(np.array([first - margin, last + margin])))
    locator = AutoDateLocator(minticks=4, maxticks=12)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _add_pictures(
    figure: "Figure",
    place: tuple[float, float, float, float],
    axes: "Axes",
    images: Sequence[OutputImage],
    pictures: Sequence[Path],
) -> None:
    """Pictures of some images side by side, evenly spaced in time, each with a line to its time."""
    from matplotlib.dates import date2num  # deferred: matplotlib
    from matplotlib.image import imread  # deferred: matplotlib
    from matplotlib.patches import ConnectionPatch  # deferred: matplotlib

    middles = np.array([image.middle for image in images])
    wanted = np.linspace(middles[0], middles[-1], min(_PICTURES, len(images)))
    chosen = sorted({int(np.abs(middles - day).argmin()) for day in wanted})
    left, bottom, width, height = place
    step = width / len(chosen)
    for position, index in enumerate(chosen):
        panel = figure.add_axes((left + position * step + 0.04 * step, bottom, 0.92 * step, height))
        picture = imread(pictures[index])
        stride = max(1, max(picture.shape[:2]) // 400)
        panel.imshow(picture[::stride, ::stride], interpolation="antialiased")
        panel.set_anchor("S")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color("#cccccc")
        panel.set_title(images[index].name, fontsize=8.5, color=_INK, pad=3)
        line = ConnectionPatch(
            (0.5, 0),
            (float(date2num(_times(middles[index : index + 1]))[0]), 1),
            coordsA=panel.transAxes,
            coordsB=axes.get_xaxis_transform(),
            color="#c4c4c4",
            linewidth=0.7,
        )
        figure.add_artist(line)


def _times(days: np.ndarray) -> np.ndarray:
    """Days since 2014-04-03 as times of numpy, which matplotlib draws."""
    hours = np.round(np.asarray(days, np.float64) * 24).astype("timedelta64[h]")
    return np.datetime64(DATE_ORIGIN.isoformat(), "h") + hours

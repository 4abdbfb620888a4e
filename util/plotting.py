"""Every picture of the project. Figures are drawn without pyplot (no global state, no display) and appear whole.

Colour scales are fixed, so that pictures of different samples and runs can be compared: error and standard deviation
share one scale and one unit, and what exceeds it is marked on the colour bar. viridis and cividis stay readable for
colour-blind eyes and in grey.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from data.constants import N_S1, N_S2, RGB
from util.atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from util.export import Exportable

DEVIATION_MAX = 0.1  # end of the scale of errors and standard deviations, reflectance
# Reflectance shown as black and as white in B04, B03, B02: the air alone gives the first, bright soil and thin cloud
# stay below the second. The exponent lifts forest and water out of the dark.
_BLACK, _WHITE = np.array((0.025, 0.045, 0.07)), np.array((0.29, 0.28, 0.29))
_EXPONENT = 1 / 1.6
_UNIT = "reflectance"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
_MARKERS = "os^Dv*"

Array = npt.NDArray[np.float32]
Image = Tensor | npt.NDArray[Any]


@dataclass(frozen=True)
class SampleRow:
    """One sample for `plot_samples`; images in reflectance."""

    inputs: Image  # (T,13,H,W) or (T,15,H,W) with radar first
    target: Image  # (13,H,W)
    prediction: Image  # (13,H,W)
    variance: Image | None = None  # (13,H,W), total, reflectance squared
    dates: Sequence[str] = ()  # T
    coverage: Sequence[float] = ()  # T, share of cloud
    title: str = ""


def to_rgb(image: Image) -> Array:
    """True colour (H,W,3) in [0, 1] of a 13-band image, or of a 15-band one with radar first, by a fixed stretch."""
    bands = _array(image)  # (C,H,W)
    optical = bands[N_S1:] if bands.shape[0] == N_S1 + N_S2 else bands
    colours = (np.moveaxis(np.nan_to_num(optical[list(RGB)]), 0, -1) - _BLACK) / (_WHITE - _BLACK)  # (H,W,3)
    return (colours.clip(0, 1) ** _EXPONENT).astype(np.float32)


def root_mean_square(image: Image) -> Array:
    """(13,H,W) to (H,W): root of the mean square over bands."""
    return np.sqrt(np.square(_array(image)).mean(axis=0))


def standard_deviation(variance: Image) -> Array:
    """(13,H,W) variances to (H,W): root of their mean over bands."""
    return np.sqrt(_array(variance).mean(axis=0))


def plot_sample(
    folder: str | Path,
    sample_id: int,
    inputs: Image | None,
    target: Image,
    prediction: "Exportable",
    masks: Image | None = None,
) -> None:
    """Write the pictures of one sample under their published names, `img-ID_KIND.png`.

    `in_t-K` (`in` for a single date), `pred` and `target` are true colour, pixel for pixel. `err` is the root mean
    square error over bands, `var` the root of the mean predictive variance over bands (where there is one), both in
    reflectance on one scale; `mask` counts the dates on which a pixel is clouded.

    Args:
        folder: where to; made if missing.
        sample_id: number of the sample.
        inputs: (T,13,H,W) or (T,15,H,W), or None.
        target: (1,13,H,W) or (13,H,W).
        prediction: of this sample alone, leading dimensions of 1.
        masks: (T,H,W) cloud masks; 0.5 and above is cloud.
    """
    folder = Path(folder)
    series = () if inputs is None else _array(inputs, dims=4)
    truth, mean = _array(target), _array(prediction.mean)
    for date, image in enumerate(series):
        _save_pixels(folder / f"img-{sample_id}_{'in' if len(series) == 1 else f'in_t-{date}'}.png", to_rgb(image))
    _save_pixels(folder / f"img-{sample_id}_pred.png", to_rgb(mean))
    _save_pixels(folder / f"img-{sample_id}_target.png", to_rgb(truth))
    _save_map(folder / f"img-{sample_id}_err.png", root_mean_square(mean - truth), f"RMSE over bands, {_UNIT}")
    if prediction.total is not None:
        deviation = standard_deviation(prediction.total)
        _save_map(folder / f"img-{sample_id}_var.png", deviation, f"standard deviation, {_UNIT}")
    if masks is not None:
        _save_counts(folder / f"img-{sample_id}_mask.png", (_array(masks) >= 0.5).sum(axis=0), len(masks))


def plot_samples(
    rows: Sequence[SampleRow], path: str | Path, title: str = "", deviation_max: float = DEVIATION_MAX
) -> Path:
    """Draw samples below each other: inputs with dates and cloud cover, prediction, target, error, deviation.

    Args:
        rows: at least one; the number of inputs may differ.
        path: .png or .pdf.
        title: above all.
        deviation_max: end of the scale that errors and deviations of all rows share, reflectance.

    Returns:
        The path.
    """
    if not rows:
        raise ValueError("no sample to draw")
    n_inputs = max(len(row.inputs) for row in rows)
    with_variance = any(row.variance is not None for row in rows)
    n_maps = 2 if with_variance else 1
    widths = [1.0] * n_inputs + [0.06] + [1.0, 1.0] + [0.06] + [1.0] * n_maps + [0.045]
    size, top = 1.75, 0.5 + 0.27 * bool(title)
    figure = _figure(sum(widths) * size * 1.045 + 0.75, len(rows) * size * 1.13 + top)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(rows),
        len(widths),
        width_ratios=widths,
        wspace=0.045,
        hspace=0.13,
        left=0.012,
        right=1 - 0.62 / figure.get_figwidth(),
        top=1 - top / height,
        bottom=0.12 / height,
    )
    first_image, first_map = n_inputs + 1, n_inputs + 4
    shown: AxesImage | None = None
    for index, row in enumerate(rows):
        for date, image in enumerate(row.inputs):
            axes = _bare(figure.add_subplot(grid[index, date]), to_rgb(image))
            axes.set_title(_input_caption(row, date), fontsize=7.5, pad=2.5, color="#333333")
        error = root_mean_square(_array(row.prediction) - _array(row.target))
        rmse = float(np.sqrt(np.square(error).mean()))
        images = (
            (to_rgb(row.prediction), f"PSNR {-20 * np.log10(max(rmse, 1e-9)):.1f} dB"),
            (to_rgb(row.target), row.title),
        )
        for column, (picture, caption) in enumerate(images, start=first_image):
            _bare(figure.add_subplot(grid[index, column]), picture).set_title(caption, fontsize=7.5, pad=2.5)
        maps = [(error, f"RMSE {rmse:.3f}")]
        if row.variance is not None:
            deviation = standard_deviation(row.variance)
            maps.append((deviation, f"root mean variance {np.sqrt(np.square(deviation).mean()):.3f}"))
        for column, (values, caption) in enumerate(maps, start=first_map):
            axes = _bare(figure.add_subplot(grid[index, column]), values, cmap="viridis", vmin=0, vmax=deviation_max)
            axes.set_title(caption, fontsize=7.5, pad=2.5)
            shown = axes.images[0]
    assert shown is not None
    bar = figure.colorbar(shown, cax=figure.add_subplot(grid[:, -1]), extend="max")
    bar.set_label(f"error and standard deviation, {_UNIT}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    names = {first_image: "prediction", first_image + 1: "target", first_map: "error", first_map + 1: "total deviation"}
    for column in range(first_map + n_maps):
        heading = f"input {column + 1}" if column < n_inputs else names.get(column)
        if heading:
            box = grid[0, column].get_position(figure)
            middle = (box.x0 + box.x1) / 2
            figure.text(middle, box.y1 + 0.23 / height, heading, ha="center", va="bottom", fontsize=9.5, weight="bold")
    if title:
        figure.text(0.012, 1 - 0.08 / height, title, ha="left", va="top", fontsize=11, weight="bold")
    return _save(figure, path, dpi=170)


def plot_discard(curve: Sequence[float], folder: str | Path, split: str = "test") -> list[Path]:
    """Write `plot_SPLIT_SE_discard.png` and `.pdf`: error of the most certain images against their share.

    Args:
        curve: as from `util.calibration.discard_curve`, equal steps up to all images.
        folder: where to.
        split: for the names.

    Returns:
        Both paths.
    """
    values = np.asarray(curve, dtype=np.float64)
    share = np.arange(1, len(values) + 1) / len(values)
    known = np.isfinite(values)
    figure, axes = _chart("share of images kept, the most certain first", "mean squared error, reflectance squared")
    axes.plot(share[known], values[known], "o-", color=_COLOURS[0], markersize=4, label="sorted by predicted variance")
    if known.any() and known[-1]:
        axes.axhline(values[-1], color="#666666", linestyle="--", linewidth=1, label="all images")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return [_save(figure, Path(folder) / f"plot_{split}_SE_discard{ending}") for ending in (".png", ".pdf")]


def plot_reliability(reports: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw root mean squared error against root mean variance in bins of equal mass, for each named report.

    Args:
        reports: name -> what `EvaluationMeter.summary` returned.
        path: .png or .pdf.
    """
    figure, axes = _chart(f"root mean variance, {_UNIT}", f"root mean squared error, {_UNIT}")
    end = 0.0
    for index, (name, report) in enumerate(reports.items()):
        rmv, rmse = (np.asarray(report["reliability"][key], dtype=np.float64) for key in ("RMV", "RMSE"))
        drawn = np.isfinite(rmv)
        style: dict[str, Any] = {
            "color": _COLOURS[index % 6],
            "marker": _MARKERS[index % 6],
            "markersize": 4,
            "linewidth": 1,
        }
        axes.plot(rmv[drawn], rmse[drawn], label=f"{name}, ENCE {report['ENCE']:.3f}", **style)
        end = max(end, rmv[drawn].max(initial=0), rmse[drawn].max(initial=0))
    if end > 0:
        axes.plot([0, end], [0, end], "--", color="#666666", linewidth=1, label="calibrated")
        axes.set_xlim(0, 1.05 * end)
        axes.set_ylim(0, 1.05 * end)
    axes.set_aspect("equal")
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_coverage(reports: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the share of targets inside the central intervals against their nominal level, for each named report.

    Args:
        reports: name -> what `EvaluationMeter.summary` returned.
        path: .png or .pdf.
    """
    figure, axes = _chart("nominal level of the central interval", "share of targets inside")
    axes.plot([0, 1], [0, 1], "--", color="#666666", linewidth=1, label="calibrated")
    for index, (name, report) in enumerate(reports.items()):
        curve = report["coverage curve"]
        label = f"{name}, 90 % interval holds {100 * report['coverage 90']:.1f} %"
        axes.plot(curve["nominal"], curve["inside"], color=_COLOURS[index % 6], label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return _save(figure, path)


def plot_training(log: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the losses, and the PSNR of validation where it is known, over epochs.

    Args:
        log: epoch -> figures by name, such as trainlog.json holds.
        path: .png or .pdf.
    """
    figure, axes = _chart("epoch", "loss")
    epochs = sorted(log, key=int)
    names = list(dict.fromkeys(name for epoch in epochs for name in log[epoch]))
    quality = axes.twinx() if any("PSNR" in name for name in names) else None
    for index, name in enumerate(name for name in names if name.endswith("loss") or "PSNR" in name):
        points = [(int(epoch), float(log[epoch][name])) for epoch in epochs if name in log[epoch]]
        panel = quality if quality is not None and "PSNR" in name else axes
        style: dict[str, Any] = {"color": _COLOURS[index % 6], "marker": _MARKERS[index % 6], "markersize": 4}
        panel.plot(
            *zip(*points, strict=True), label=name.replace("_", " "), linestyle="-" if panel is axes else ":", **style
        )
    panels = [axes] if quality is None else [axes, quality]
    if quality is not None:
        quality.set_ylabel("PSNR, dB")
        quality.spines["right"].set_visible(True)
    handles = [handle for panel in panels for handle in panel.get_lines()]
    axes.legend(handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    axes.locator_params(axis="x", integer=True)
    return _save(figure, path)


def _array(image: Image, dims: int = 3) -> Array:
    """float32 on the CPU, leading dimensions of 1 dropped down to `dims`."""
    values = image.detach().float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image, dtype=np.float32)
    return values.reshape(values.shape[-dims:]) if values.ndim > dims else values


def _input_caption(row: SampleRow, date: int) -> str:
    parts = [row.dates[date]] if date < len(row.dates) else []
    if date < len(row.coverage):
        parts.append(f"{100 * row.coverage[date]:.0f} % cloud")
    return ", ".join(parts)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # here: it takes half a second, and most commands draw nothing

    return Figure(figsize=(width, height), facecolor="white")


def _chart(x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    figure = _figure(5.4, 4.2)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bare(axes: "Axes", image: Array, **style: Any) -> "Axes":
    axes.imshow(image, interpolation="nearest", **style)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():  # a thin frame: clouds are as white as the page
        spine.set(color="#bbbbbb", linewidth=0.4)
    return axes


def _save_pixels(path: Path, image: Array) -> None:
    from matplotlib.image import imsave

    with whole_file(path) as temporary:
        imsave(temporary, image)


def _save_map(path: Path, values: Array, label: str) -> None:
    figure = _figure(4.2, 3.6)
    axes = _bare(figure.add_subplot(), values, cmap="viridis", vmin=0, vmax=DEVIATION_MAX)
    figure.colorbar(axes.images[0], extend="max", fraction=0.046, pad=0.03).set_label(label)
    _save(figure, path)


def _save_counts(path: Path, counts: npt.NDArray[np.integer], n_dates: int) -> None:
    from matplotlib import colormaps

    figure = _figure(4.2, 3.6)
    style: dict[str, Any] = {"cmap": colormaps["cividis"].resampled(n_dates + 1), "vmin": -0.5, "vmax": n_dates + 0.5}
    axes = _bare(figure.add_subplot(), counts.astype(np.float32), **style)
    bar = figure.colorbar(axes.images[0], ticks=range(n_dates + 1), fraction=0.046, pad=0.03)
    bar.set_label("dates with cloud")
    _save(figure, path)


def _save(figure: "Figure", path: str | Path, dpi: int = 150) -> Path:
    path = Path(path)
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # the same figure is the same file
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pad_inches=0.06, metadata=metadata)
    return path

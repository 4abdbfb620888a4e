"""Pictures of images and maps, drawn without pyplot (no global state, no display) and written atomically.

Colour scales are fixed, so that pictures of different samples and runs can be compared: error and standard deviation
share one scale and one unit, and an arrow on the colour bar marks values above it. viridis and cividis are readable
for colour-blind people and in grey.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from common import process_group
from common.files import atomic_file
from data.raster.rgb import save_pixels, to_rgb
from evaluation.accumulator import Accumulator, EvaluatedBatch
from evaluation.sample_records import SampleImages, SampleRecord, sample_record
from model.predictions import Prediction

if TYPE_CHECKING:  # matplotlib takes half a second, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.image import AxesImage

DEVIATION_MAX = 0.1  # end of the scale of errors and standard deviations, reflectance
UNIT = "reflectance"

Array = npt.NDArray[np.float32]
Image = Tensor | npt.NDArray[Any]


class SamplePlots(Accumulator):
    """Pictures of every N-th sample, and the first few of them on one sheet, `samples.png`.

    Args:
        folder: of the pictures.
        every: N.
        network: name of the network.
        title: of the sheet.
    """

    ROWS = 4  # of the sheet

    def __init__(self, folder: Path, every: int, network: str, title: str) -> None:
        self.folder, self.every, self.network, self.title = folder, every, network, title
        self._sheet: dict[int, SampleImages] = {}  # by sample id

    def update(self, batch: EvaluatedBatch) -> None:
        """Plot those samples of a batch whose id is a multiple of `every`."""
        assert batch.inputs is not None
        assert batch.masks is not None
        for position, sample_id in enumerate(batch.ids):
            if sample_id % self.every:
                continue
            images = batch.inputs[position], batch.target[position], batch.prediction.item(position)
            plot_sample(self.folder, sample_id, *images, batch.masks[position])
            if sample_id // self.every < self.ROWS:
                record = sample_record(sample_id, batch.infos[position], {})
                self._sheet[sample_id] = SampleImages.from_batch(record, batch, position, self.network)

    def state(self) -> dict[int, SampleImages]:
        """The own samples of the sheet, for `merge`."""
        return self._sheet

    def merge(self, states: Sequence[dict[int, SampleImages]]) -> None:
        """Bring the samples of the sheet together."""
        self._sheet = {sample_id: images for state in states for sample_id, images in state.items()}

    def compute(self) -> None:
        """Draw the sheet, in the first process."""
        if self._sheet and process_group.is_rank_zero():
            plot_samples(
                [self._sheet[number] for number in sorted(self._sheet)], self.folder / "samples.png", self.title
            )


def root_mean_square(image: Image) -> Array:
    """Root of the mean square over bands of (13,H,W), (H,W)."""
    return np.sqrt(np.square(_array(image)).mean(axis=0))


def standard_deviation(variance: Image) -> Array:
    """Root of the mean over bands of variances (13,H,W), (H,W)."""
    return np.sqrt(_array(variance).mean(axis=0))


def plot_sample(
    folder: str | Path,
    sample_id: int,
    inputs: Image | None,
    target: Image,
    prediction: Prediction,
    masks: Image | None = None,
) -> None:
    """Write the pictures of one sample under their published names, `img-ID_KIND.png`.

    `in_t-K` (`in` for a single date), `pred` and `target` are true colour, one pixel each. `err` is the root mean
    square error over bands, `var` the root of the mean predictive variance over bands, both in reflectance on one
    scale; `mask` counts the dates on which a pixel is clouded.

    Args:
        folder: created if missing.
        sample_id: number of the sample.
        inputs: (T,13,H,W) or (T,15,H,W), or None.
        target: (1,13,H,W) or (13,H,W).
        prediction: of this sample alone.
        masks: (T,H,W) cloud masks; 0.5 and above is cloud.
    """
    folder = Path(folder)
    series = () if inputs is None else _array(inputs, dims=4)
    truth, mean = _array(target), _array(prediction.mean)
    for date, image in enumerate(series):
        save_pixels(folder / f"img-{sample_id}_{'in' if len(series) == 1 else f'in_t-{date}'}.png", to_rgb(image))
    save_pixels(folder / f"img-{sample_id}_pred.png", to_rgb(mean))
    save_pixels(folder / f"img-{sample_id}_target.png", to_rgb(truth))
    _save_map(folder / f"img-{sample_id}_err.png", root_mean_square(mean - truth), f"RMSE over bands, {UNIT}")
    if prediction.total is not None:
        deviation = standard_deviation(prediction.total)
        _save_map(folder / f"img-{sample_id}_var.png", deviation, f"standard deviation, {UNIT}")
    if masks is not None:
        _save_counts(folder / f"img-{sample_id}_mask.png", (_array(masks) >= 0.5).sum(axis=0), len(masks))


def plot_samples(samples: Sequence[SampleImages], path: str | Path, title: str = "") -> Path:
    """Draw one row per sample: inputs with dates and cloud cover, prediction, target, error, deviation.

    Args:
        samples: at least one, with inputs and one prediction; the number of inputs may differ.
        path: .png or .pdf.
        title: of the figure.
    """
    if not samples:
        raise ValueError("no sample to draw")
    predictions = [next(iter(sample.predictions.values())) for sample in samples]
    n_inputs = max(len(sample.inputs) for sample in samples if sample.inputs is not None)
    n_maps = 1 if all(prediction.total is None for prediction in predictions) else 2
    widths = [1.0] * n_inputs + [0.06] + [1.0, 1.0] + [0.06] + [1.0] * n_maps + [0.045]
    size, top = 1.75, 0.5 + 0.27 * bool(title)
    figure = new_figure(sum(widths) * size * 1.045 + 0.75, len(samples) * size * 1.13 + top)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(samples),
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
    scaled: AxesImage | None = None
    for index, (sample, prediction) in enumerate(zip(samples, predictions, strict=True)):
        for date, image in enumerate(() if sample.inputs is None else sample.inputs):
            axes = _image_axes(figure.add_subplot(grid[index, date]), to_rgb(image))
            axes.set_title(_input_caption(sample.record, date), fontsize=7.5, pad=2.5, color="#333333")
        error = root_mean_square(prediction.mean - sample.target)
        rmse = float(np.sqrt(np.square(error).mean()))
        images = (
            (to_rgb(prediction.mean), f"PSNR {-20 * np.log10(max(rmse, 1e-9)):.1f} dB"),
            (to_rgb(sample.target), f"{sample.record.roi}, patch {sample.record.patch}"),
        )
        for column, (picture, caption) in enumerate(images, start=first_image):
            _image_axes(figure.add_subplot(grid[index, column]), picture).set_title(caption, fontsize=7.5, pad=2.5)
        maps = [(error, f"RMSE {rmse:.3f}")]
        if prediction.total is not None:
            deviation = standard_deviation(prediction.total)
            maps.append((deviation, f"root mean variance {np.sqrt(np.square(deviation).mean()):.3f}"))
        for column, (values, caption) in enumerate(maps, start=first_map):
            style: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": DEVIATION_MAX}
            axes = _image_axes(figure.add_subplot(grid[index, column]), values, **style)
            axes.set_title(caption, fontsize=7.5, pad=2.5)
            scaled = axes.images[0]
    assert scaled is not None
    bar = figure.colorbar(scaled, cax=figure.add_subplot(grid[:, -1]), extend="max")
    bar.set_label(f"error and standard deviation, {UNIT}", fontsize=8)
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
    return save_figure(figure, path, dpi=170)


def plot_gate(
    path: str | Path,
    target: Image,
    experts: Mapping[str, Image],
    fused: Image,
    weight: Image,
    title: str = "",
) -> Path:
    """Draw the weights of a fusion gate on one sample next to the ideal ones.

    Upper row: the absolute errors of both experts and of the fusion, means over bands on one scale. Lower row: the
    target, the expert with the smaller error and the difference, and the gate's weight. The last two share their
    colours, so that an ideal gate looks like the map to its left.

    Args:
        path: .png or .pdf.
        target: (13,H,W), reflectance.
        experts: name -> predicted mean (13,H,W), two of them.
        fused: fused mean (13,H,W).
        weight: of the first expert, in [0, 1]: (13,H,W), averaged over bands, or (1,H,W).
        title: of the figure.

    Raises:
        ValueError: if there are not two experts.
    """
    if len(experts) != 2:
        raise ValueError(f"expected two experts, got {len(experts)}: {', '.join(experts)}")
    first, second = experts
    truth, shares = _array(target), _array(weight).mean(axis=0)  # (13,H,W), (H,W)
    errors = {name: np.abs(_array(mean) - truth).mean(axis=0) for name, mean in {**experts, "fusion": fused}.items()}
    ahead = errors[second] - errors[first]  # above 0 where the first expert is nearer
    error_end = _round_end(np.stack([errors[first], errors[second]]))
    ahead_end = _round_end(np.abs(ahead))
    right = ((shares > 0.5) == (ahead > 0)).mean()
    figure, grid = _gate_page(truth.shape[-1] / truth.shape[-2], bool(title))
    for column, (name, error) in enumerate(errors.items()):
        axes = _image_axes(figure.add_subplot(grid[0, column]), error, cmap="viridis", vmin=0, vmax=error_end)
        axes.set_title(f"{name}: mean error {error.mean():.4f}", fontsize=9.5)
        if column == 2:
            bar = figure.colorbar(axes.images[0], cax=figure.add_subplot(grid[0, 3]), extend="max")
            bar.set_label(f"absolute error, {UNIT}", fontsize=8.5)
            bar.ax.tick_params(labelsize=8)
    _image_axes(figure.add_subplot(grid[1, 0]), to_rgb(truth)).set_title("target", fontsize=9.5)
    maps = (
        (ahead, -ahead_end, ahead_end, f"nearer: {first} at {100 * (ahead > 0).mean():.0f} % of pixels"),
        (shares, 0.0, 1.0, f"gate leans to the nearer one at {100 * right:.0f} %"),
    )
    labels = (
        f"difference of errors, {UNIT}\n\N{LEFTWARDS ARROW} {second} nearer    {first} nearer \N{RIGHTWARDS ARROW}",
        f"weight, mean over bands\n\N{LEFTWARDS ARROW} all {second}    all {first} \N{RIGHTWARDS ARROW}",
    )
    for column, (values, low, high, caption) in enumerate(maps, start=1):
        axes = _image_axes(figure.add_subplot(grid[1, column]), values, cmap="PuOr_r", vmin=low, vmax=high)
        axes.set_title(caption, fontsize=9.5)
        extend: Any = "neither" if low == 0 else "both"
        place, ticks = figure.add_subplot(grid[2, column]), np.linspace(low, high, 5)
        bar = figure.colorbar(
            axes.images[0], cax=place, orientation="horizontal", extend=extend, ticks=ticks, format="%g"
        )
        bar.set_label(labels[column - 1], fontsize=8.5)
        place.tick_params(labelsize=8)
    if title:
        figure.text(0.01, 1 - 0.08 / figure.get_figheight(), title, ha="left", va="top", fontsize=11, weight="bold")
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size, inches."""
    from matplotlib.figure import Figure  # deferred: matplotlib

    return Figure(figsize=(width, height), facecolor="white")


def save_figure(figure: "Figure", path: str | Path, dpi: int = 150) -> Path:
    """Write a figure atomically; equal figures give equal files."""
    from matplotlib.text import Text  # deferred: matplotlib

    path = Path(path)
    for text in figure.findobj(Text):  # names of runs may hold anything
        content = text.get_text()
        if "$" in content:
            text.set_parse_math(False)
        if not content.isascii():
            text.set_text(content.encode(errors="backslashreplace").decode())
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pad_inches=0.06, metadata=metadata)
    return path


def _array(image: Image, dims: int = 3) -> Array:
    """float32 on the CPU, leading dimensions of 1 dropped down to `dims`."""
    values = image.detach().float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image, dtype=np.float32)
    return values.reshape(values.shape[-dims:]) if values.ndim > dims else values


def _round_end(values: Array) -> float:
    """The end of a scale for nearly all values: their 95th percentile, rounded up to half a digit."""
    end = float(np.nanpercentile(values, 95))
    if not end > 0:
        return DEVIATION_MAX
    step = 0.5 * 10.0 ** np.floor(np.log10(end))
    return float(np.ceil(end / step - 1e-4) * step)  # float32 may lie slightly above a round number


def _gate_page(aspect: float, titled: bool) -> tuple["Figure", "GridSpec"]:
    """The layout of `plot_gate`: two rows of three pictures, a bar right of the first row and bars below the second."""
    side, bar = 2.9, 0.12  # inches: width of a picture, thickness of a bar
    top, bottom = 0.3 + 0.28 * titled, 0.62
    width, height = 3.205 * side + 0.75, 2 * side / aspect + 0.6 + bar + top + bottom
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        3,
        4,
        width_ratios=(1, 1, 1, bar / side),
        height_ratios=(1, 1, bar / side * aspect),
        wspace=0.06,
        hspace=0.3 / (2 * side / aspect / 3),
        left=0.01,
        right=1 - 0.75 / width,
        top=1 - top / height,
        bottom=bottom / height,
    )
    return figure, grid


def _input_caption(record: SampleRecord, date: int) -> str:
    covers = [f"{100 * cover:.0f} % cloud" for cover in record.coverage[date : date + 1]]
    return ", ".join([*record.dates[date : date + 1], *covers])


def _image_axes(axes: "Axes", image: Array, **style: Any) -> "Axes":
    axes.imshow(image, interpolation="nearest", **style)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():  # a thin frame, as clouds are as white as the page
        spine.set(color="#bbbbbb", linewidth=0.4)
    return axes


def _save_map(path: Path, values: Array, label: str) -> None:
    figure = new_figure(4.2, 3.6)
    axes = _image_axes(figure.add_subplot(), values, cmap="viridis", vmin=0, vmax=DEVIATION_MAX)
    figure.colorbar(axes.images[0], extend="max", fraction=0.046, pad=0.03).set_label(label)
    save_figure(figure, path)


def _save_counts(path: Path, counts: npt.NDArray[np.integer], n_dates: int) -> None:
    from matplotlib import colormaps  # deferred: matplotlib

    figure = new_figure(4.2, 3.6)
    style: dict[str, Any] = {"cmap": colormaps["cividis"].resampled(n_dates + 1), "vmin": -0.5, "vmax": n_dates + 0.5}
    axes = _image_axes(figure.add_subplot(), counts.astype(np.float32), **style)
    bar = figure.colorbar(axes.images[0], ticks=range(n_dates + 1), fraction=0.046, pad=0.03)
    bar.set_label("dates with cloud")
    save_figure(figure, path)

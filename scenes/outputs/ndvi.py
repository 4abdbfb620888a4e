"""The vegetation index NDVI of observed and predicted pixels, and its sums over a scene, for the plot of a series."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.constants import band_index
from scenes.inputs.rasters.grid import Grid, Window

RED, NIR = band_index("B04"), band_index("B08")
NAN = float("nan")


def ndvi(image: np.ndarray) -> np.ndarray:
    """(B08 - B04) / (B08 + B04) of (13, h, w), any unit: (h, w) float32, NaN where both bands are 0."""
    red, nir = image[RED].astype(np.float32), image[NIR].astype(np.float32)
    return np.divide(nir - red, nir + red, out=np.full_like(red, np.nan), where=nir + red > 0)


def ndvi_deviation(image: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Standard deviation of the NDVI, from those of B04 and B08, to first order.

    Errors of the two bands are taken as independent: the network predicts no covariance. Where both err in the same
    direction, as below thin cloud, they partly cancel, and this is too large.

    Args:
        image: (13, h, w), reflectance.
        deviation: the same shape and unit.

    Returns:
        (h, w) float32, NaN where both bands are 0.
    """
    red, nir = image[RED].astype(np.float32), image[NIR].astype(np.float32)
    numerator = 2 * np.hypot(red * deviation[NIR], nir * deviation[RED])
    return np.divide(numerator, (nir + red) ** 2, out=np.full_like(red, np.nan), where=nir + red > 0)


@dataclass(frozen=True)
class NdviSums:
    """Sums over the pixels of a block or a scene, which add up; JSON values.

    Attributes:
        pixels: with a prediction.
        total: of their NDVI.
        deviation: of its standard deviation; NaN if the network has none.
        middle: NDVI of the scene's middle pixel and its standard deviation; NaN if it lies elsewhere or has no data.
        clear: for each date the number of pixels that it shows clear.
        clear_total: of their observed NDVI.
        clear_middle: the observed NDVI of the middle pixel; NaN where it is not clear.
    """

    pixels: int
    total: float
    deviation: float
    middle: tuple[float, float]
    clear: tuple[int, ...]
    clear_total: tuple[float, ...]
    clear_middle: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NdviSums":
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)


def block_sums(block: Mapping[str, np.ndarray], window: Window, grid: Grid) -> NdviSums:
    """The sums of a block.

    Args:
        block: `reflectance`, `valid`, `ndvi` (T, h, w), NaN where a date is not clear, and `total` if there is one.
        window: its place in the scene.
        grid: of the scene.
    """
    deviation = block.get("total", np.float32(NAN) * block["reflectance"])
    predicted = np.where(block["valid"], ndvi(block["reflectance"]), np.float32(NAN))
    spread = np.where(block["valid"], ndvi_deviation(block["reflectance"], deviation), np.float32(NAN))
    row, column = grid.height // 2 - window.top, grid.width // 2 - window.left
    inside = 0 <= row < window.height and 0 <= column < window.width
    middle = [float(values[row, column]) if inside else NAN for values in (predicted, spread, *block["ndvi"])]
    usable = np.isfinite(predicted)
    clear = np.isfinite(block["ndvi"])
    return NdviSums(
        pixels=int(usable.sum()),
        total=float(predicted[usable].sum(dtype=np.float64)),
        deviation=float(spread[usable].sum(dtype=np.float64)),
        middle=(middle[0], middle[1]),
        clear=tuple(clear.sum(axis=(1, 2)).tolist()),
        clear_total=tuple(np.where(clear, block["ndvi"], 0).sum(axis=(1, 2), dtype=np.float64).tolist()),
        clear_middle=tuple(middle[2:]),
    )


def add_sums(parts: Iterable[NdviSums]) -> NdviSums:
    """The sums of all blocks of a scene."""
    blocks = list(parts)

    def first(values: Sequence[float]) -> float:
        return next((value for value in values if np.isfinite(value)), NAN)

    middles = [block.middle for block in blocks]
    return NdviSums(
        pixels=sum(block.pixels for block in blocks),
        total=sum(block.total for block in blocks),
        deviation=sum(block.deviation for block in blocks),
        middle=(first([value for value, _ in middles]), first([deviation for _, deviation in middles])),
        clear=tuple(map(sum, zip(*(block.clear for block in blocks), strict=True))),
        clear_total=tuple(map(sum, zip(*(block.clear_total for block in blocks), strict=True))),
        clear_middle=tuple(map(first, zip(*(block.clear_middle for block in blocks), strict=True))),
    )

"""Sentinel-2 images of any producer, read with the values that the training data have."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import DataError
from data.clouds.product_classes import product_clouds
from data.constants import N_S2
from scenes.inputs.dataset_pool import probe_windows
from scenes.inputs.grid import Grid, Window
from scenes.inputs.products import Band, ClassBand, OpticalProduct
from scenes.inputs.raster import Pixels, Raster, sample
from scenes.inputs.scaling import check_values, resolve_scaling
from scenes.options import SceneInputs

NO_DATA = "no pixel has data: all are nodata, NaN, infinite, or 0 in all bands"
_UINT16_MAX = np.iinfo(np.uint16).max
_BLOCK = 512  # pixels along a side of the windows in which an image is searched for data


@dataclass(frozen=True)
class OpticalImage:
    """An image of one date; picklable.

    Attributes:
        name: for messages.
        bands: the 13 bands; None for B10 where there is none.
        factors: reflectance x 10000 of a band is the stored value times this, plus its shift.
        shifts: see `factors`.
        classes: a classification of clouds that comes with it, if any.
    """

    name: str
    bands: tuple[Band | None, ...]
    factors: tuple[float, ...]
    shifts: tuple[float, ...]
    classes: ClassBand | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        bands = (*self.bands, self.classes.band if self.classes else None)
        return tuple(dict.fromkeys(path for band in bands if band for path in band.raster.paths))

    @property
    def nodata(self) -> float | None:
        """As declared for the first band."""
        return next(band.nodata for band in self.bands if band)

    def read(self, window: Window, grid: Grid, resampling: str = "bilinear") -> tuple[np.ndarray, np.ndarray]:
        """The pixels of a window of a scene, see `OpticalSource.read`.

        Raises:
            DataError: if a file is damaged.
        """
        stored, missing = self.read_stored(window, grid, resampling)
        raw = np.zeros((N_S2, *window.shape), np.uint16)
        present = [index for index, band in enumerate(self.bands) if band]
        raw[present] = self._convert(stored, present)
        valid = ~missing
        raw *= valid
        return raw, valid

    def read_stored(self, window: Window, grid: Grid, resampling: str = "bilinear") -> tuple[np.ndarray, np.ndarray]:
        """The present bands as stored (12 or 13,h,w), and where there is no data, bool (h,w)."""
        return self._stack(
            window.shape,
            lambda raster, positions, nodata: raster.read(positions, window, grid, resampling, nodata),
        )

    def sample_stored(self, grid: Grid, step: int) -> tuple[np.ndarray, np.ndarray]:
        """As `read_stored`, of one of `step` x `step` pixels of a scene, each the nearest stored one."""
        shape = -(-grid.height // step), -(-grid.width // step)
        return self._stack(shape, lambda raster, positions, _: sample(raster, positions, grid, step))

    def read_classes(self, window: Window, grid: Grid) -> Pixels:
        """Its classification as stored; each pixel has the nearest class."""
        assert self.classes is not None
        return self.classes.band.raster.read(self.classes.positions, window, grid, "nearest")

    def read_clouds(self, window: Window, grid: Grid) -> np.ndarray:
        """Where its classification has clouds or is not known, bool (h,w); each pixel has the nearest class."""
        assert self.classes is not None
        stored, outside = self.read_classes(window, grid)
        clouds = product_clouds(stored, self.classes.kind)
        return clouds if outside is None else clouds | outside

    def _stack(
        self, shape: tuple[int, int], read: Callable[[Raster, Sequence[int], float | None], Pixels]
    ) -> tuple[np.ndarray, np.ndarray]:
        present = [band for band in self.bands if band]
        groups: dict[tuple[Raster, float | None], list[int]] = {}
        for index, band in enumerate(present):
            groups.setdefault((band.raster, band.nodata), []).append(index)
        pixels = {
            key: read(key[0], [present[index].position for index in indices], key[1]) for key, indices in groups.items()
        }
        if len(groups) == 1:
            stored = next(iter(pixels.values())).stored
        else:
            stored = np.empty((len(present), *shape), np.result_type(*(part.stored for part in pixels.values())))
            for key, indices in groups.items():
                stored[indices] = pixels[key].stored
        missing = missing_pixels(stored, [band.nodata for band in present])
        for part in pixels.values():
            if part.outside is not None:
                missing |= part.outside
        return stored, missing

    def _convert(self, stored: np.ndarray, present: Sequence[int]) -> np.ndarray:
        """Reflectance x 10000 as uint16, rounded and clipped."""
        factors, shifts = {self.factors[band] for band in present}, {self.shifts[band] for band in present}
        if stored.dtype == np.uint16 and factors == {1} and len(shifts) == 1:
            shift = next(iter(shifts))
            if not shift:
                return stored
            if shift == int(shift) and shift < 0:
                offset = np.uint16(-shift)
                return np.maximum(stored, offset) - offset  # negative reflectance would be clipped anyway
        factor_by_band, shift_by_band = (
            np.array([values[band] for band in present], np.float32)[:, None, None]
            for values in (self.factors, self.shifts)
        )
        values = stored.astype(np.float32) * factor_by_band + shift_by_band
        return np.nan_to_num(values).round().clip(0, _UINT16_MAX).astype(np.uint16)


@dataclass(frozen=True)
class OpticalDate:
    """The images of one date on the grid of a scene, an `OpticalSource`.

    Attributes:
        images: of which the first one takes precedence where they overlap.
        grid: of the scene.
        resampling: "bilinear" or "nearest".
    """

    images: tuple[OpticalImage, ...]
    grid: Grid
    resampling: str = "bilinear"

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(path for image in self.images for path in image.paths)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """See `OpticalSource.read`."""
        raw, valid = self.images[0].read(window, self.grid, self.resampling)
        for image in self.images[1:]:
            if valid.all():
                break
            more, more_valid = image.read(window, self.grid, self.resampling)
            added = more_valid & ~valid
            raw[:, added] = more[:, added]
            valid |= added
        return raw, valid

    def read_clouds(self, window: Window) -> np.ndarray:
        """Where the classifications of its images have clouds or are not known, bool (h,w); each for its own pixels."""
        if len(self.images) == 1:
            return self.images[0].read_clouds(window, self.grid)
        clouds: np.ndarray = np.ones(window.shape, np.bool_)
        missing = clouds.copy()
        for image in self.images:
            added = missing & ~image.read_stored(window, self.grid, self.resampling)[1]
            clouds[added] = image.read_clouds(window, self.grid)[added]
            missing &= ~added
        return clouds


def missing_pixels(stored: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray:
    """Where an image (C,h,w) has no data, bool (h,w).

    `nodata` in one band is enough, except for 0, declared or not, which valid water and B10 reach: it must be in all
    bands. NaN and infinity are always missing.

    Args:
        stored: the bands.
        nodata: of each band, as declared.
    """
    missing: np.ndarray = np.zeros(stored.shape[1:], bool)
    if stored.dtype.kind == "f":
        missing = ~np.isfinite(stored).all(axis=0)
    values = set(nodata)
    if values <= {None, 0}:
        return missing | ~stored.any(axis=0)
    if len(values) == 1:
        return missing | (stored == next(iter(values))).any(axis=0)
    for band, value in zip(stored, nodata, strict=True):
        if value:
            missing |= band == value
    return missing


def open_optical(product: OpticalProduct, inputs: SceneInputs) -> tuple[OpticalImage, list[str]]:
    """Determine how to read an optical image; pixels are sampled.

    Returns:
        The image, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, or has other values than reflectance x 10000.
    """
    notes = list(product.notes)
    factors, shifts, scaling_notes = resolve_scaling(product, inputs)
    image = OpticalImage(product.name, product.bands, tuple(factors.tolist()), tuple(shifts.tolist()), product.classes)
    notes += scaling_notes
    present = [index for index, band in enumerate(product.bands) if band]
    first = present[0]
    any_data, value_notes = check_values(product, factors[first], shifts[first], _samples(image))
    if not any_data and not _has_data(image):
        value_notes.append(NO_DATA)
    return image, notes + value_notes


def _samples(image: OpticalImage) -> Iterator[np.ndarray]:
    """Stored values (C,n) of the valid pixels of sampled windows."""
    grid = finest_grid(image.bands)
    for window in probe_windows(grid):
        stored, missing = image.read_stored(window, grid, "nearest")
        yield stored[:, ~missing]


def finest_grid(bands: Sequence[Band | None]) -> Grid:
    """The grid of the band with the most pixels."""
    return max((band.raster.grid for band in bands if band), key=lambda grid: grid.height * grid.width)


def _has_data(image: OpticalImage) -> bool:
    """Whether any pixel of an image has data; reads block by block."""
    grid = finest_grid(image.bands)
    for top in range(0, grid.height, _BLOCK):
        for left in range(0, grid.width, _BLOCK):
            window = Window(top, left, min(_BLOCK, grid.height - top), min(_BLOCK, grid.width - left))
            if not image.read_stored(window, grid, "nearest")[1].all():
                return True
    return False


def check_types(path: str, dtypes: Sequence[str]) -> None:
    """Raise a `DataError` if bands have types that cannot hold reflectance x 10000."""
    if set(dtypes) & {"uint8", "int8"} or any(name.startswith("complex") for name in dtypes):
        raise DataError(f"{path}: {', '.join(sorted(set(dtypes)))} values; expected reflectance x 10000 as uint16")

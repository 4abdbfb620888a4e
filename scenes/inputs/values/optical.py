"""Sentinel-2 images of any producer, read with the values that the training data have."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.errors import DataError
from data.clouds.product_classes import product_clouds
from data.constants import N_S2, band_index
from scenes.inputs.products import Band, ClassBand, OpticalProduct
from scenes.inputs.rasters.dataset_pool import dataset_pool, gdal_settings, probe_windows
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import ImageFile, Pixels, Raster, sample
from scenes.inputs.values.scaling import OFFSET, ValueCheck, resolve_scaling
from scenes.options import SceneInputs

NO_B10 = "B10 is missing and filled with 0; the network was trained on L1C, where clear ground is near 0 in B10"
NO_DATA = "no pixel has data: all are nodata, NaN, infinite, or 0 in all bands"
_NEIGHBOURS = tuple(  # in the spectrum; of B10, which does reach 0, none
    (band_index(first), band_index(second))
    for first, second in (
        *(("B01", "B02"), ("B02", "B03"), ("B03", "B04"), ("B04", "B05"), ("B05", "B06"), ("B06", "B07")),
        *(("B07", "B08"), ("B08", "B8A"), ("B8A", "B09"), ("B11", "B12")),
    )
)
_ROUNDING = 0.02  # reflectance x 10000, of float32 at a reflectance of -0.1
_BRIGHT = 1000.0  # reflectance x 10000, beside which no band is 0
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
        empty: stored value of empty borders where no nodata is declared, left out of the interpolation on other grids;
            None where there are none.
        classes: a classification of clouds that comes with it, if any.
    """

    name: str
    bands: tuple[Band | None, ...]
    factors: tuple[float, ...]
    shifts: tuple[float, ...]
    empty: float | None = 0.0
    classes: ClassBand | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        bands = (*self.bands, self.classes.band if self.classes else None)
        return tuple(dict.fromkeys(path for band in bands if band for path in band.raster.paths))

    def cache_bytes(self, grid: Grid) -> int:
        """What its bands take in GDAL's cache so that each block is decoded once, see `ImageFile.cache_bytes`."""
        rasters = [band.raster for band in self.bands if band]
        return sum(raster.cache_bytes(grid) for raster in rasters if isinstance(raster, ImageFile))

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
            key: read(key[0], [present[index].position for index in indices], self.empty if key[1] is None else key[1])
            for key, indices in groups.items()
        }
        if len(groups) == 1:
            stored = next(iter(pixels.values())).stored
        else:
            stored = np.empty((len(present), *shape), np.result_type(*(part.stored for part in pixels.values())))
            for key, indices in groups.items():
                stored[indices] = pixels[key].stored
        missing = self._missing(stored)
        for part in pixels.values():
            if part.outside is not None:
                missing |= part.outside
        return stored, missing

    def _missing(self, stored: np.ndarray) -> np.ndarray:
        present = [index for index, band in enumerate(self.bands) if band]
        nodata = [band.nodata for band in self.bands if band]
        factors, shifts = (np.array([values[band] for band in present]) for values in (self.factors, self.shifts))
        return missing_pixels(stored, nodata, present, factors, shifts)

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

    @property
    def cache_bytes(self) -> int:
        """What its images take in GDAL's cache so that each block is decoded once."""
        return sum(image.cache_bytes(self.grid) for image in self.images)

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


def missing_pixels(
    stored: np.ndarray, nodata: Sequence[float | None], bands: Sequence[int], factors: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """Where an image (C,h,w) has no data, bool (h,w).

    - A declared `nodata` in one band is enough, except for 0.
    - 0 in all bands, and the largest uint16 in all bands, are missing whatever is declared.
    - With a negative offset 0 in one band is: products reserve it, and darker ground is stored as 1 and more. So is
      -0.1 where the offset was taken off already.
    - Otherwise 0 in some bands may be water, or ground in B10; where a neighbour in the spectrum is bright, it is the
      edge of the swath, which bands reach at different places.
    - NaN and infinity always are.

    Args:
        stored: the bands.
        nodata: of each band, as declared.
        bands: of these, by index.
        factors: reflectance x 10000 of a band is its stored value times this, plus its shift.
        shifts: see `factors`.
    """
    missing: np.ndarray = np.zeros(stored.shape[1:], bool)
    if stored.dtype.kind == "f":
        missing = ~np.isfinite(stored).all(axis=0)
    elif stored.dtype == np.uint16:
        missing = (stored == _UINT16_MAX).all(axis=0)
    for band, value in zip(stored, nodata, strict=True):
        if value:
            missing |= band == value
    zero = stored == 0
    if zero.any():
        missing |= zero.all(axis=0) | zero[shifts < 0].any(axis=0)
        missing |= _at_edges(stored, zero, bands, factors)
    if stored.dtype.kind != "u" and (stored < 0).any():
        taken_off = np.abs(stored * factors[:, None, None] + (shifts[:, None, None] - OFFSET)) < _ROUNDING
        missing |= taken_off.any(axis=0)
    return missing


def _at_edges(stored: np.ndarray, zero: np.ndarray, bands: Sequence[int], factors: np.ndarray) -> np.ndarray:
    """Where a band is 0 beside a bright one, bool (h,w)."""
    edges: np.ndarray = np.zeros(stored.shape[1:], bool)
    at = {band: position for position, band in enumerate(bands)}
    for pair in _NEIGHBOURS:
        if not set(pair) <= set(at):
            continue
        first, second = (at[band] for band in pair)
        for empty, bright in ((first, second), (second, first)):
            if zero[empty].any():
                edges |= zero[empty] & (stored[bright] * factors[bright] >= _BRIGHT)
    return edges


def open_optical(product: OpticalProduct, inputs: SceneInputs) -> tuple[OpticalImage, list[str]]:
    """Determine how to read an optical image; pixels are sampled.

    Returns:
        The image, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, or has other values than reflectance x 10000.
    """
    scaling, scaling_notes = resolve_scaling(product, inputs)
    factors, shifts = tuple(scaling.factors.tolist()), tuple(scaling.shifts.tolist())
    image = OpticalImage(product.name, product.bands, factors, shifts, classes=product.classes)
    dataset_pool().reserve(image.cache_bytes(finest_grid(image.bands)), len(image.paths))
    check = ValueCheck(product, scaling)
    has_empty = False
    with gdal_settings():
        for stored, missing in _samples(image):
            check.add(stored[:, ~missing])
            has_empty |= stored.dtype.kind != "f" or bool((stored == 0).all(axis=0).any())
            if check.decided:
                break
    scaling, value_notes = check.finish()
    image = replace(image, shifts=tuple(scaling.shifts.tolist()), empty=0.0 if has_empty else None)
    if not check.parts and not _has_data(image):
        value_notes.append(NO_DATA)
    filled = [NO_B10] if None in product.bands else []
    return image, [*product.notes, *filled, *scaling_notes, *value_notes]


def _samples(image: OpticalImage) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stored values (C,h,w) of sampled windows, and where they are missing."""
    grid = finest_grid(image.bands)
    for window in probe_windows(grid):
        yield image.read_stored(window, grid, "nearest")


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

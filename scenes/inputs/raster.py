"""Rasters on any grid, read by windows of the grid of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from scenes.inputs.dataset_pool import dataset_key, dataset_pool, grid_of, image_files, open_raster, read_errors
from scenes.inputs.grid import Grid, Window

RESAMPLING = ("bilinear", "nearest")
_TOLERANCE = 1e-6  # of a pixel, of warped positions; rasterio rejects 0
_FINER = 1.05  # source pixels along one of the scene's, from which on they are averaged


class Pixels(NamedTuple):
    """Stored values on the grid of a scene.

    Attributes:
        stored: (C,h,w), as stored where the grids coincide, otherwise float32 with NaN where there is no data.
        outside: bool (h,w), True beyond the raster or where its mask is 0; None if nowhere.
    """

    stored: np.ndarray
    outside: np.ndarray | None


class Raster(Protocol):
    """Bands on one grid, of any file format; picklable and hashable."""

    @property
    def name(self) -> str:
        """The name of the file in messages."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, absolute or remote."""

    @property
    def grid(self) -> Grid:
        """Its own grid."""

    def read(
        self,
        positions: Sequence[int],
        window: Window,
        grid: Grid,
        resampling: str = "bilinear",
        nodata: float | None = None,
    ) -> Pixels:
        """The pixels of a window of a scene.

        Args:
            positions: of the bands, from 1.
            window: the pixels to read, in the grid of the scene.
            grid: of the scene.
            resampling: "bilinear" or "nearest", where grids differ by more than a shift of whole pixels.
            nodata: stored value that is left out of the interpolation.

        Raises:
            DataError: if the file is damaged.
        """


@dataclass(frozen=True)
class ImageFile:
    """An image that GDAL reads, a `Raster`.

    Attributes:
        path: a file, or what else GDAL opens: /vsizip/…, https://…
        grid: its own grid.
        masked: whether it has a mask of valid pixels.
        sources: of a VRT.
    """

    path: str
    grid: Grid
    masked: bool = False
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """See `Raster`."""
        return self.path

    @property
    def paths(self) -> tuple[str, ...]:
        """The file, and the sources of a VRT."""
        return (self.path, *self.sources)

    def read(
        self,
        positions: Sequence[int],
        window: Window,
        grid: Grid,
        resampling: str = "bilinear",
        nodata: float | None = None,
    ) -> Pixels:
        """See `Raster.read`.

        Positions are computed exactly for each pixel, so that windows equal the full image; GDAL's own approximation is
        up to an eighth of a pixel off.
        """
        place = self.grid.place_in(grid)
        pool = dataset_pool()
        with pool.lock:
            if place is None:
                key = (*dataset_key(self.path), grid, resampling, nodata)
                dataset = pool.get(key, lambda: self._warped(grid, resampling, nodata))
                with read_errors(self.path):
                    stored = dataset.read(list(positions), window=window.rasterio)
                return Pixels(stored, None)
            dataset = pool.get(dataset_key(self.path), self._open)
            return self._read_shifted(dataset, list(positions), window, Window(*place, *self.grid.shape))

    def _read_shifted(self, dataset: Any, positions: list[int], window: Window, place: Window) -> Pixels:
        """The pixels of a window of a scene in which the file lies at `place`."""
        shared = window.intersection(place)
        with read_errors(self.path):
            own = shared.relative_to(place).rasterio
            stored = dataset.read(positions, window=own) if shared.size else None
            mask = dataset.dataset_mask(window=own) == 0 if self.masked and shared.size else None
        if stored is not None and shared == window:
            return Pixels(stored, mask)
        dtype = np.result_type(*(dataset.dtypes[position - 1] for position in positions))
        full, outside = np.zeros((len(positions), *window.shape), dtype), np.ones(window.shape, np.bool_)
        if stored is not None:
            part = shared.relative_to(window).slices
            full[(..., *part)] = stored
            outside[part] = False if mask is None else mask
        return Pixels(full, outside)

    def _open(self) -> Any:
        return open_raster(self.path, bool(self.sources))

    def _warped(self, grid: Grid, resampling: str, nodata: float | None) -> Any:
        source = self._open()
        x_scale, y_scale = _warp_scales(source, grid)
        return _Warped(
            source,
            resampling=Resampling[resampling],
            tolerance=_TOLERANCE,
            XSCALE=x_scale,
            YSCALE=y_scale,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            src_nodata=np.nan if nodata is None else nodata,
            nodata=np.nan,
            dtype="float32",
        )


def image_file(path: str, dataset: Any) -> ImageFile:
    """The image of an open data set."""
    # a mask within the file or beside it, not one that rasterio derives from nodata
    masked = any("per_dataset" in flag.name for flag in dataset.mask_flag_enums[0])
    grid = grid_of(dataset)
    grid.check_transform(path)
    return ImageFile(path, grid, masked, image_files(path)[1:])


class _Warped(WarpedVRT):
    """A warped view that closes its source too."""

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, **options)
        self._source = source

    def close(self) -> None:
        super().close()
        self._source.close()


def _warp_scales(source: Any, grid: Grid) -> tuple[float, float]:
    """Scene pixels along one pixel of an image, horizontally and vertically; at most 1.

    GDAL would derive them for each piece that it warps from the outline of the piece: a grid rotated by some degrees
    then counts as finer, and smoothing varies from piece to piece, by up to 5 dB in speckle.
    """
    column, row = grid.width // 2, grid.height // 2
    points = [grid.xy(column, row), grid.xy(column + 1, row), grid.xy(column, row + 1)]
    columns, rows = pixel_positions(grid_of(source), points, grid)
    steps = [float(np.hypot(columns[i] - columns[0], rows[i] - rows[0])) for i in (1, 2)]
    horizontal, vertical = (1.0 if step < _FINER else 1 / step for step in steps)
    return horizontal, vertical


def pixel_positions(image: Grid, points: Sequence[tuple[float, float]], scene: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) in the grid of an image of points in a scene's coordinate system."""
    xs, ys = transform_points(scene.crs, image.crs, *map(list, zip(*points, strict=True)))[:2]
    a, b, c, d, e, f = tuple(~image.transform)[:6]
    return a * np.array(xs) + b * np.array(ys) + c, d * np.array(xs) + e * np.array(ys) + f

"""Rasters on any grid, read by windows of the grid of a scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from data.raster.geotiff import open_image
from scenes.inputs.rasters.dataset_pool import (
    dataset_key,
    dataset_pool,
    grid_of,
    image_files,
    open_raster,
    read_errors,
    try_again,
)
from scenes.inputs.rasters.grid import Grid, Window

_TOLERANCE = 1e-6  # of a pixel, of warped positions; rasterio rejects 0
_FEW_BANDS = 32  # GDAL warps all bands of a file; of files with more, those that are read are copied first
_LATTICE = 17  # points along each side of a window at which positions are computed
_COARSE_ROWS, _COARSE_COLUMNS = 256, 2048  # of files without overviews that a coarse read holds at once
_WARPED_ROWS = 3 * 128  # of blocks of warped views that a row of tiles of 256 pixels needs
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
        count: its bands.
        row_bytes: of a row of decoded blocks of one band, where they are slow to decode (JPEG 2000); otherwise 0.
    """

    path: str
    grid: Grid
    masked: bool = False
    sources: tuple[str, ...] = ()
    count: int = 0
    row_bytes: int = 0

    def cache_bytes(self, grid: Grid) -> int:
        """What a band takes in GDAL's cache so that rows of tiles of a scene decode each of its blocks once."""
        if not self.row_bytes:
            return 0
        warped = _WARPED_ROWS * grid.width * 4 if self.grid.place_in(grid) is None else 0
        return 2 * self.row_bytes + warped

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
        return try_again(self.path, lambda: self._read(positions, window, grid, resampling, nodata))

    def _read(
        self, positions: Sequence[int], window: Window, grid: Grid, resampling: str, nodata: float | None
    ) -> Pixels:
        pool, key = dataset_pool(), dataset_key(self.path)
        with pool.lock:
            source = pool.get(key, self._open)  # one for all views: its decoded blocks are shared
            if self.count > _FEW_BANDS or self.grid.place_in(grid) is not None:
                read = partial(self._read_own, source, positions)
                dtypes = [source.dtypes[position - 1] for position in positions]
                return read_on_grid(read, self.grid, dtypes, window, grid, resampling, nodata)
            options = _warp_options(self.grid, grid, resampling, nodata)
            warped = pool.get((*key, grid, resampling, nodata), lambda: WarpedVRT(source, **options))
            with read_errors(self.path):
                return Pixels(warped.read(list(positions), window=window.rasterio), None)

    def _read_own(self, dataset: Any, positions: Sequence[int], window: Window) -> Pixels:
        """The pixels of a window of the file itself."""
        with read_errors(self.path):
            stored = dataset.read(list(positions), window=window.rasterio)
            return Pixels(stored, dataset.dataset_mask(window=window.rasterio) == 0 if self.masked else None)

    def read_coarse(self, positions: Sequence[int], window: Window, step: int, overviews: bool = True) -> Pixels:
        """See the function `read_coarse`; overviews include the resolution levels of JPEG 2000."""
        return try_again(self.path, lambda: self._read_coarse(positions, window, step, overviews))

    def _read_coarse(self, positions: Sequence[int], window: Window, step: int, overviews: bool) -> Pixels:
        pool, shape = dataset_pool(), _coarse_shape(window, step)
        with pool.lock:
            dataset = pool.get(dataset_key(self.path), self._open)
            if step > 1 and not (
                overviews and dataset.overviews(positions[0])
            ):  # GDAL would decode a block once for each band
                read = partial(self._read_own, dataset, positions)
                return _read_strided(read, window, step, dataset.block_shapes[0][0])
            with read_errors(self.path):
                stored = dataset.read(list(positions), window=window.rasterio, out_shape=(len(positions), *shape))
                mask = dataset.dataset_mask(window=window.rasterio, out_shape=shape) == 0 if self.masked else None
        return Pixels(stored, mask)

    def _open(self) -> Any:
        return open_raster(self.path, bool(self.sources))


def image_file(path: str, dataset: Any) -> ImageFile:
    """The image of an open data set."""
    # an internal or external mask, not one that rasterio derives from nodata
    masked = any("per_dataset" in flag.name for flag in dataset.mask_flag_enums[0])
    grid = grid_of(dataset)
    grid.check_transform(path)
    row_bytes = 0
    if dataset.driver == "JP2OpenJPEG":
        height, width = dataset.block_shapes[0]
        row_bytes = height * width * -(-grid.width // width) * np.dtype(dataset.dtypes[0]).itemsize
    return ImageFile(path, grid, masked, image_files(path)[1:], dataset.count, row_bytes)


def read_on_grid(
    read: Callable[[Window], Pixels],
    image: Grid,
    dtypes: Sequence[Any],
    window: Window,
    grid: Grid,
    resampling: str,
    nodata: float | None,
) -> Pixels:
    """The pixels of a window of a scene: as they are stored where pixels coincide, else warped; see `Raster.read`.

    Args:
        read: returns a window of the image.
        image: the grid of the image.
        dtypes: of the bands that `read` returns.
        window: the pixels to read, in the grid of the scene.
        grid: of the scene.
        resampling: "bilinear" or "nearest".
        nodata: stored value that is left out of the interpolation.
    """
    place = image.place_in(grid)
    if place is None:
        return Pixels(read_warped(read, image, window, grid, resampling, nodata), None)
    return read_shifted(read, len(dtypes), np.result_type(*dtypes), window, Window(*place, *image.shape))


def read_shifted(read: Callable[[Window], Pixels], count: int, dtype: Any, window: Window, place: Window) -> Pixels:
    """The pixels of a window of a scene in whose grid an image lies at `place`, as they are stored.

    Args:
        read: returns a window of the image.
        count: bands that it returns.
        dtype: of these.
        window: the pixels to read, in the grid of the scene.
        place: of the image in this grid.
    """
    shared = window.intersection(place)
    pixels = read(shared.relative_to(place)) if shared.size else None
    if pixels is not None and shared == window:
        return pixels
    full, outside = np.zeros((count, *window.shape), dtype), np.ones(window.shape, np.bool_)
    if pixels is not None:
        part = shared.relative_to(window).slices
        full[(..., *part)] = pixels.stored
        outside[part] = False if pixels.outside is None else pixels.outside
    return Pixels(full, outside)


def read_warped(
    read: Callable[[Window], Pixels],
    image: Grid,
    window: Window,
    grid: Grid,
    resampling: str = "bilinear",
    nodata: float | None = None,
) -> np.ndarray:
    """The pixels of a window of a scene, warped from the part of an image that it needs, float32 (C,h,w).

    The part is written to a sparse file in memory on the image's own grid, which GDAL warps as it warps files: windows
    equal the full image, and a cube equals a GeoTIFF of the same pixels, to the bit.

    Args:
        read: returns a window of the image.
        image: the grid of the image.
        window: the pixels to read, in the grid of the scene.
        grid: of the scene.
        resampling: "bilinear" or "nearest".
        nodata: stored value that is left out of the interpolation.
    """
    options = _warp_options(image, grid, resampling, nodata)
    needed = _needed_window(image, window, grid, max(1 / options["XSCALE"], 1 / options["YSCALE"]))
    if not needed.size:
        needed = Window(0, 0, 1, 1)  # for the number of bands; the window lies outside of the image
    pixels = read(needed)
    stored = pixels.stored
    if pixels.outside is not None:
        stored = np.where(pixels.outside, np.float32(np.nan if nodata is None else nodata), stored.astype(np.float32))
    profile = {"driver": "GTiff", "sparse_ok": True, "tiled": True, "bigtiff": "if_safer", "interleave": "band"}
    profile |= {"height": image.height, "width": image.width, "crs": image.crs, "transform": image.transform}
    with MemoryFile() as memory:
        with memory.open(count=len(stored), dtype=stored.dtype, **profile) as target:
            target.write(stored, window=needed.rasterio)
        with open_image(memory.name) as source, WarpedVRT(source, **options) as warped:
            values: np.ndarray = warped.read(window=window.rasterio)
    return values


def _needed_window(image: Grid, window: Window, grid: Grid, pixels: float) -> Window:
    """The window of an image that holds all that a window of a scene is interpolated from.

    Args:
        image: the grid of the image.
        window: in the grid of the scene.
        grid: of the scene.
        pixels: of the image along one of the scene.
    """
    rows, columns = (
        np.linspace(first, last, _LATTICE) for first, last in ((window.top, window.bottom), (window.left, window.right))
    )
    columns, rows = pixel_positions(image, [grid.xy(column, row) for row in rows for column in columns], grid)
    finite = np.isfinite(columns) & np.isfinite(rows)
    if not finite.any():
        return Window(0, 0, 0, 0)
    margin = 2 * int(np.ceil(pixels)) + 4  # the kernel, and the curvature between the points
    left, right = int(columns[finite].min()) - margin, int(columns[finite].max()) + margin + 1
    top, bottom = int(rows[finite].min()) - margin, int(rows[finite].max()) + margin + 1
    return Window.from_edges(top, left, bottom, right).intersection(image.window)


def _warp_options(image: Grid, grid: Grid, resampling: str, nodata: float | None) -> dict[str, Any]:
    """How GDAL warps an image to the grid of a scene: exact positions, float32, NaN where there is no data."""
    x_scale, y_scale = _warp_scales(image, grid)
    return {
        **{"resampling": Resampling[resampling], "tolerance": _TOLERANCE, "XSCALE": x_scale, "YSCALE": y_scale},
        **{"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width},
        **{"src_nodata": np.nan if nodata is None else nodata, "nodata": np.nan, "dtype": "float32"},
    }


def _warp_scales(image: Grid, grid: Grid) -> tuple[float, float]:
    """Scene pixels along one pixel of an image, horizontally and vertically; at most 1.

    GDAL would derive them for each piece that it warps from the outline of the piece: a grid rotated by some degrees
    then counts as finer, and smoothing varies from piece to piece, by up to 5 dB in speckle.
    """
    column, row = grid.width // 2, grid.height // 2
    points = [grid.xy(column, row), grid.xy(column + 1, row), grid.xy(column, row + 1)]
    columns, rows = pixel_positions(image, points, grid)
    steps = [float(np.hypot(columns[i] - columns[0], rows[i] - rows[0])) for i in (1, 2)]
    horizontal, vertical = (1.0 if step < _FINER else 1 / step for step in steps)
    return horizontal, vertical


def read_coarse(raster: Raster, positions: Sequence[int], window: Window, step: int, overviews: bool = True) -> Pixels:
    """About one of `step` x `step` pixels of a window of a raster's own grid, as stored.

    Args:
        raster: of any kind.
        positions: of the bands, from 1.
        window: within its grid.
        step: 1 reads all pixels.
        overviews: whether those of a file may be read, whose averages are rounded.
    """
    if isinstance(raster, ImageFile):
        return raster.read_coarse(positions, window, step, overviews)
    return _read_strided(lambda part: raster.read(positions, part, raster.grid), window, step, 1)


def _read_strided(read: Callable[[Window], Pixels], window: Window, step: int, block: int) -> Pixels:
    """Every step-th pixel of a window, from full reads of parts that start with blocks of a file."""
    height, width = (step * max(1, -(-size // step)) for size in (max(block, _COARSE_ROWS), _COARSE_COLUMNS))
    stored, outside = None, np.zeros(_coarse_shape(window, step), np.bool_)
    for top in range(window.top, window.bottom, height):
        for left in range(window.left, window.right, width):
            part = Window(top, left, height, width).intersection(window)
            pixels = read(part)
            if stored is None:
                stored = np.zeros((len(pixels.stored), *outside.shape), pixels.stored.dtype)
            rows, columns = (np.minimum(np.arange(0, size, step) + step // 2, size - 1) for size in part.shape)
            place = Window((top - window.top) // step, (left - window.left) // step, len(rows), len(columns)).slices
            stored[(..., *place)] = pixels.stored[:, rows[:, None], columns]
            if pixels.outside is not None:
                outside[place] = pixels.outside[rows[:, None], columns]
    assert stored is not None
    return Pixels(stored, outside)


def sample(raster: Raster, positions: Sequence[int], scene: Grid, step: int) -> Pixels:
    """One of `step` x `step` pixels of a scene, each the nearest stored one of a coarse read.

    Returns:
        Arrays of ceil(height / step) x ceil(width / step).
    """
    shape = _coarse_shape(scene.window, step)
    rows, columns = (
        np.minimum(np.arange(length) * step + step / 2, size - 0.5)
        for length, size in zip(shape, scene.shape, strict=True)
    )
    a, b, c, d, e, f = tuple(scene.transform)[:6]
    xs, ys = (a * columns[None, :] + b * rows[:, None] + c, d * columns[None, :] + e * rows[:, None] + f)
    if raster.grid.crs != scene.crs:
        points = transform_points(scene.crs, raster.grid.crs, xs.ravel(), ys.ravel())[:2]
        xs, ys = (np.reshape(values, shape) for values in points)
    own_columns, own_rows = ~raster.grid.transform @ (xs, ys)
    inside = (own_rows >= 0) & (own_rows < raster.grid.height) & (own_columns >= 0) & (own_columns < raster.grid.width)
    if not inside.any():
        return Pixels(np.zeros((len(positions), *shape), np.float32), ~inside)
    own_rows, own_columns = own_rows[inside], own_columns[inside]
    top, left = int(own_rows.min()), int(own_columns.min())
    window = Window.from_edges(top, left, int(own_rows.max()) + 1, int(own_columns.max()) + 1)
    own_step = max(1, int(np.sqrt(window.size / inside.sum())))
    stored, outside = read_coarse(raster, positions, window, own_step)
    down, across = (
        np.minimum((places - start) * length / size, length - 1).astype(int)
        for places, start, length, size in (
            (own_rows, top, stored.shape[1], window.height),
            (own_columns, left, stored.shape[2], window.width),
        )
    )
    full, missing = np.zeros((len(positions), *shape), stored.dtype), ~inside
    full[:, inside] = stored[:, down, across]
    if outside is not None:
        missing[inside] = outside[down, across]
    return Pixels(full, missing)


def _coarse_shape(window: Window, step: int) -> tuple[int, int]:
    return -(-window.height // step), -(-window.width // step)


def pixel_positions(image: Grid, points: Sequence[tuple[float, float]], scene: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) in the grid of an image of points in a scene's coordinate system."""
    xs, ys = transform_points(scene.crs, image.crs, *map(list, zip(*points, strict=True)))[:2]
    a, b, c, d, e, f = tuple(~image.transform)[:6]
    return a * np.array(xs) + b * np.array(ys) + c, d * np.array(xs) + e * np.array(ys) + f

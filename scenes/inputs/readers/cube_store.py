"""Cubes in netCDF files and Zarr stores: opened with checks, stored values read by windows."""

import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.damage import DAMAGED_ARRAY, DAMAGED_HDF5
from common.errors import DataError
from data.raster.geotiff import LARGEST
from scenes.inputs.rasters.dataset_pool import dataset_key, dataset_pool, is_remote
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import Pixels, read_on_grid

_HDF5, _NETCDF3 = b"\x89HDF\r\n\x1a\n", (b"CDF\x01", b"CDF\x02", b"CDF\x05")
_ZARR = ("zarr.json", ".zmetadata", ".zgroup")
_CACHE_BYTES = 2**27  # of windows that are kept of other dates in the same chunks
_LARGEST_METADATA = 2**26  # bytes of a Zarr store's
_DAMAGED = (*DAMAGED_HDF5, *DAMAGED_ARRAY)

Select = tuple[tuple[str, int], ...]
"""Indices by dimension."""


@dataclass(frozen=True)
class Plane:
    """Two dimensions of a variable.

    Attributes:
        variable: its name.
        select: an index in every other dimension.
    """

    variable: str
    select: Select


@dataclass(frozen=True)
class CubeRaster:
    """Planes of a cube on one grid, a `Raster` whose bands they are.

    Attributes:
        path: the file or store.
        grid: of the planes, north up.
        planes: the bands.
        rows, columns: names of their dimensions.
        flips: whether rows and columns are stored in the opposite order.
        unsigned: whether stored integers are of the other signedness, `_Unsigned` of netCDF.
    """

    path: str
    grid: Grid
    planes: tuple[Plane, ...]
    rows: str
    columns: str
    flips: tuple[bool, bool] = (False, False)
    unsigned: bool | None = None

    @property
    def name(self) -> str:
        """See `Raster`."""
        return self.path

    @property
    def paths(self) -> tuple[str, ...]:
        """The file; of a store its metadata and arrays too."""
        if not Path(self.path).is_dir():
            return (self.path,)
        arrays = dict.fromkeys(plane.variable for plane in self.planes)
        parts = (*(Path(self.path) / name for name in _ZARR), *(Path(self.path) / name for name in arrays))
        return (self.path, *(str(part) for part in parts if part.exists()))

    def read(
        self,
        positions: Sequence[int],
        window: Window,
        grid: Grid,
        resampling: str = "bilinear",
        nodata: float | None = None,
    ) -> Pixels:
        """See `Raster.read`."""
        pool = dataset_pool()
        with pool.lock:
            cube = pool.get((*dataset_key(self.path), "cube"), lambda: _OpenCube(open_cube(self.path)))
            read = partial(self._read_own, cube, positions)
            variables = [cube.dataset[self.planes[position - 1].variable] for position in positions]
            dtypes = [stored_type(variable.dtype, self.unsigned) for variable in variables]
            return read_on_grid(read, self.grid, dtypes, window, grid, resampling, nodata)

    def _read_own(self, cube: "_OpenCube", positions: Sequence[int], window: Window) -> Pixels:
        rows, columns = (
            slice(size - stop, size - start) if flip else slice(start, stop)
            for flip, size, (start, stop) in zip(
                self.flips,
                self.grid.shape,
                ((window.top, window.bottom), (window.left, window.right)),
                strict=True,
            )
        )
        step_down, step_right = (-1 if flip else 1 for flip in self.flips)
        planes = []
        with cube_errors(self.path):
            for position in positions:
                plane = self.planes[position - 1]
                part = cube.read(plane, {self.rows: rows, self.columns: columns})
                values = part[::step_down, ::step_right]
                planes.append(values.view(stored_type(values.dtype, self.unsigned)))
        return Pixels(np.stack(planes), None)


class _OpenCube:
    """An open cube that decodes chunks of several dates once: windows of the other dates are kept for later reads.

    Args:
        dataset: of `open_cube`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._kept: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()

    def read(self, plane: Plane, window: Mapping[str, slice]) -> np.ndarray:
        """A window of a plane, by its dimensions: rows, then columns."""
        variable = self.dataset[plane.variable]
        chunks = variable.encoding.get("preferred_chunks") or {}
        starts = {dim: index - index % int(chunks.get(dim, 1)) for dim, index in plane.select}
        stops = {dim: min(start + int(chunks.get(dim, 1)), variable.sizes[dim]) for dim, start in starts.items()}
        edges = tuple((part.start, part.stop) for part in window.values())
        key = (plane.variable, *starts.items(), *edges)
        if key not in self._kept:
            part = {dim: slice(start, stops[dim]) for dim, start in starts.items()}
            block: np.ndarray = variable.isel(part | dict(window)).transpose(*starts, *window).values
            if block.ndim == 2 or block.shape[:-2] == (1,) * (block.ndim - 2):
                return block.reshape(block.shape[-2:])
            self._kept[key] = block
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(block.nbytes for block in self._kept.values()) > _CACHE_BYTES:
            self._kept.popitem(last=False)
        values: np.ndarray = self._kept[key][tuple(index - starts[dim] for dim, index in plane.select)]
        return values

    def close(self) -> None:
        """Close the file or store."""
        self._kept.clear()
        self.dataset.close()


def stored_type(dtype: np.dtype, unsigned: bool | None) -> np.dtype:
    """The type of values stored as `dtype`: of the other signedness if `_Unsigned` says so."""
    if unsigned is None or dtype.kind not in "iu":
        return dtype
    return np.dtype(f"{dtype.byteorder}{'u' if unsigned else 'i'}{dtype.itemsize}")


def is_cube(path: str) -> bool:
    """Whether a path is a netCDF or HDF5 file, or a Zarr store."""
    if is_remote(path):
        return path.rstrip("/").endswith((".nc", ".zarr"))
    if Path(path).is_dir():
        return any((Path(path) / name).is_file() for name in _ZARR)
    try:
        with open(path, "rb") as file:
            start = file.read(len(_HDF5))
    except OSError:
        return False
    return start == _HDF5 or start.startswith(_NETCDF3)


def open_cube(path: str) -> Any:
    """An open `xarray.Dataset`, lazy: values as stored, times decoded.

    Raises:
        DataError: if it cannot be read, or refers to other files.
    """
    import xarray as xr  # deferred: heavy, needed for cubes only

    if is_remote(path):
        raise DataError(f"{path}: cubes are read from local files only; download it, or load it with xarray in Python")
    options: dict[str, Any] = {"decode_cf": False, "cache": False}
    if Path(path).is_dir():
        _check_zarr(path)
        options |= {"engine": "zarr", "chunks": None}
    elif _is_hdf5(path):
        _check_hdf5(path)
        options |= {"engine": "h5netcdf", "phony_dims": "sort"}
    else:
        options["engine"] = "scipy"
    with cube_errors(path):
        dataset = xr.open_dataset(path, **options)
        _check_chunks(path, dataset)
        try:
            return xr.decode_cf(dataset, mask_and_scale=False, decode_coords=False)
        except ValueError:  # times that cannot be decoded: those of variables that are no dates, or another calendar
            return xr.decode_cf(dataset, mask_and_scale=False, decode_coords=False, decode_times=False)


@contextmanager
def cube_errors(path: str) -> Iterator[None]:
    """Turn errors of reading a cube into a `DataError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # xarray and zarr warn of what is checked here
            yield
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"damaged or unreadable cube: {path} ({reason}); fetch it again") from error


def _is_hdf5(path: str) -> bool:
    with cube_errors(path), open(path, "rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _check_hdf5(path: str) -> None:
    """Raise a `DataError` if a file refers to others: HDF5 would read any file of this machine."""
    import h5py  # deferred: heavy, needed for cubes only

    foreign: list[str] = []

    def check_link(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            foreign.append(name)

    def check_object(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            foreign.append(name)

    with cube_errors(path), h5py.File(path, "r") as file:
        file.visititems_links(check_link)
        if not foreign:
            file.visititems(check_object)
    if foreign:
        raise DataError(f"{path}: {foreign[0]!r} lies in another file; expected a cube in one file (copy it with ncks)")


def _check_zarr(path: str) -> None:
    """Raise a `DataError` if values of a store are decoded by running code from it."""
    for file in sorted(
        {
            *Path(path).glob(".z*"),
            *Path(path).glob("*/.zarray"),
            *Path(path).glob("zarr.json"),
            *Path(path).glob("*/zarr.json"),
        }
    ):
        with cube_errors(path):
            if file.stat().st_size > _LARGEST_METADATA:
                raise DataError(f"{file}: expected metadata of at most {_LARGEST_METADATA >> 20} MB")
            content = json.loads(file.read_text(encoding="utf-8"))
        if "pickle" in _codecs(content):
            raise DataError(f"{file}: values stored as Python objects are not read, which can run code")


def _codecs(content: Any) -> set[str]:
    """The names of all codecs in the metadata of a store."""
    names: set[str] = set()
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            names |= {str(item[key]).rpartition(".")[2].lower() for key in ("id", "name") if key in item}
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return names


def _check_chunks(path: str, dataset: Any) -> None:
    for name, variable in dataset.variables.items():
        chunks = variable.encoding.get("chunks") or variable.encoding.get("chunksizes") or ()
        if math.prod(chunks) > LARGEST:
            raise DataError(f"{path}: {name} is stored in chunks of {chunks}, expected at most {LARGEST:,} values")

"""What the dimensions, coordinates and attributes of a cube mean: layers, dates, and the pixel grid.

Cubes are `xarray.Dataset`s as openEO, odc-stac, stackstac, Sentinel Hub, xcube and rioxarray make them: one variable a
band, or a dimension of bands; values as stored or decoded.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from common.errors import DataError, list_some
from scenes.inputs.dates import find_date, parse_date
from scenes.inputs.rasters.grid import Grid
from scenes.inputs.values.bands import band_of, polarisation_of

_ROWS = ("y", "lat", "latitude", "northing", "northings")
_COLUMNS = ("x", "lon", "long", "longitude", "easting", "eastings")
_TIME = ("time", "t", "date", "dates", "datetime", "times")
_STANDARD = {
    "rows": ("projection_y_coordinate", "latitude"),
    "columns": ("projection_x_coordinate", "longitude"),
    "time": ("time",),
}
_NAMES = ("common_name", "band_name", "band_names", "name", "names", "title", "long_name", "description")
_WKT = ("crs_wkt", "spatial_ref", "wkt", "proj:wkt2", "crs", "proj:code", "proj:epsg", "epsg", "epsg_code", "proj4")
_REGULAR = 0.05  # of a pixel: coordinates that deviate by less from equal steps are equally spaced
_CORNER = 0.1  # of a pixel: how close a coordinate must come to a corner of a declared grid to be taken for one
_SCL = re.compile(r"(?<![a-z])scl(?![a-z])|scene[ _-]?classification", re.IGNORECASE)
_COPY = re.compile(r"[-_]jp2$", re.IGNORECASE)  # the same band once more, in catalogues such as Earth Search
_SCALED_UNITS = {"reflectance": 1.0, "percent": 0.01, "%": 0.01}

Select = tuple[tuple[str, int], ...]
"""Indices by dimension."""


@dataclass(frozen=True)
class Layer:
    """One band of a cube, at all dates.

    Attributes:
        label: its name; empty if it has none.
        variable: that holds it.
        select: its index in other dimensions.
        rows, columns, time: names of its dimensions; `time` is empty if it has one date only.
        scale: as declared: the value is the stored one times this, plus `offset`; None if nothing is declared.
        offset: see `scale`.
        nodata: stored value of missing pixels, None if none is declared.
        unsigned: `_Unsigned` of netCDF; None if it is absent or without effect.
        units: as declared.
    """

    label: str
    variable: str
    select: Select
    rows: str
    columns: str
    time: str
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    unsigned: bool | None = None
    units: str = ""

    @property
    def is_classes(self) -> bool:
        """Whether it is the scene classification of L2A."""
        return _SCL.search(self.label) is not None


def find_layers(path: str, dataset: Any) -> list[Layer]:
    """The bands of a cube: all planes with rows and columns, without auxiliary coordinates.

    Args:
        path: for messages.
        dataset: an `xarray.Dataset`.

    Raises:
        DataError: if there are none.
    """
    layers: list[Layer] = []
    for name, variable in dataset.data_vars.items():
        rows = _dimension(dataset, variable.dims, _ROWS, "rows")
        columns = _dimension(dataset, variable.dims, _COLUMNS, "columns")
        if rows and columns and str(name).lower() not in (*_ROWS, *_COLUMNS) and variable.dtype.kind in "iuf":
            layers += _layers_of(dataset, str(name), variable, rows, columns)
    if not layers:
        sizes = ", ".join(f"{name} {dict(variable.sizes)}" for name, variable in dataset.data_vars.items())
        raise DataError(
            f"{path}: no variable has dimensions y and x (or lat and lon) besides time and bands; found {sizes[:300]}"
        )
    if any(layer.time for layer in layers):
        layers = [layer for layer in layers if layer.time]
    labels = {layer.label for layer in layers}
    return [layer for layer in layers if not (_COPY.search(layer.label) and _COPY.sub("", layer.label) in labels)]


def find_days(path: str, dataset: Any, time: str) -> list[date | None]:
    """The acquisition date of each step of a cube's time dimension.

    Args:
        path: of the cube.
        dataset: an `xarray.Dataset`.
        time: the dimension; empty for a cube of one date, which then comes from a scalar coordinate, its attributes or
            the path. None where nothing says it.

    Raises:
        DataError: if the coordinate does not hold dates.
    """
    if time:
        if time not in dataset.variables:
            return [None] * int(dataset.sizes[time])
        return [_to_day(path, value) for value in np.asarray(dataset.variables[time].values).ravel()]
    for name in _TIME:
        if name in dataset.variables and dataset.variables[name].size == 1:
            return [_to_day(path, np.asarray(dataset.variables[name].values).ravel()[0])]
    return [find_date(path, {str(key): str(value) for key, value in dataset.attrs.items()})]


def find_grid(path: str, dataset: Any, layer: Layer) -> tuple[Grid, tuple[bool, bool], list[str]]:
    """The pixel grid of a layer, north up.

    Coordinates are those of pixel centres, or of upper left corners if a declared transform says so, as in cubes of
    stackstac.

    Args:
        path: for messages.
        dataset: an `xarray.Dataset`.
        layer: one of `find_layers`.

    Returns:
        The grid, whether rows and columns are stored in the opposite order, and notes.

    Raises:
        DataError: if coordinates are missing or irregular, or the coordinate system is invalid.
    """
    variable = dataset[layer.variable]
    mapping = _grid_mapping(dataset, variable)
    declared = _declared_transform(dataset, variable, mapping)
    axes = [_axis(path, dataset, dimension) for dimension in (layer.columns, layer.rows)]
    steps = [step or (abs((declared.a, declared.e)[index]) if declared else 0) for index, (_, step) in enumerate(axes)]
    steps = [step or other for step, other in zip(steps, reversed(steps), strict=True)]
    if not all(steps):
        raise DataError(f"{path}: a single pixel without a transform; its size is unknown")
    (xs, _), (ys, _) = axes
    width, height = len(xs), len(ys)
    left, top, notes = float(xs.min()) - abs(steps[0]) / 2, float(ys.max()) + abs(steps[1]) / 2, []
    if declared is not None and _at_corners(xs, ys, declared):
        left, top = left + abs(steps[0]) / 2, top - abs(steps[1]) / 2
        notes.append("coordinates of the cube are those of upper left corners of pixels, as its transform says")
    crs = _find_crs(path, dataset, variable, mapping)
    if crs is None and _is_geographic(layer, xs, ys):
        crs = CRS.from_epsg(4326)
        notes.append(f"no coordinate system is declared: {layer.rows} and {layer.columns} are taken as EPSG:4326")
    elif crs is None:
        notes.append("no coordinate system is declared in the cube")
    transform = Affine(abs(steps[0]), 0, left, 0, -abs(steps[1]), top)
    flips = (bool(height > 1 and ys[0] < ys[-1]), bool(width > 1 and xs[0] > xs[-1]))
    return Grid(height, width, transform, crs), flips, notes


def find_coordinate(dataset: Any, names: Sequence[str], time: str) -> list[Any] | None:
    """The values of a scalar coordinate, or of one along the time dimension, for each date; None without one."""
    count = int(dataset.sizes[time]) if time else 1
    for name in names:
        if name in dataset.variables:
            variable = dataset.variables[name]
            if variable.dims in ((), (time,)):
                return list(np.broadcast_to(np.asarray(variable.values), (count,)))
        if name in dataset.attrs:
            return [dataset.attrs[name]] * count
    return None


def _dimension(dataset: Any, dims: Sequence[Hashable], names: Sequence[str], role: str) -> str:
    """The dimension of a variable that has a role, by its name or else by the attributes of its coordinate."""
    for dim in dims:
        if str(dim).lower() in names:
            return str(dim)
    for dim in dims:
        if dim in dataset.variables:
            variable = dataset.variables[dim]
            axis = {"rows": "Y", "columns": "X", "time": "T"}[role]
            if variable.attrs.get("standard_name") in _STANDARD[role] or variable.attrs.get("axis") == axis:
                return str(dim)
            if role == "time" and variable.dtype.kind == "M":
                return str(dim)
    return ""


def _layers_of(dataset: Any, name: str, variable: Any, rows: str, columns: str) -> list[Layer]:
    """The layers of one variable; none if it has more dimensions than time and bands."""
    time = _dimension(dataset, variable.dims, _TIME, "time")
    others = [str(dim) for dim in variable.dims if dim not in (rows, columns, time)]
    long = [dim for dim in others if variable.sizes[dim] > 1]
    if len(long) > 1:
        return []
    singletons = tuple((dim, 0) for dim in others if dim not in long)
    own = name if band_of(name) is not None or polarisation_of(name) is not None else _text(variable, name)
    labels = [own]
    if long:
        labels = _labels(dataset, variable, long[0])
    elif others:
        labels = [next((text for text in (_labels(dataset, variable, dim)[0] for dim in others) if _means(text)), own)]
    layers = []
    for index, label in enumerate(labels):
        select = (*singletons, (long[0], index)) if long else singletons
        values = _values_of(variable, index, len(labels))
        layers.append(Layer(label, name, select, rows, columns, time, **values))
    return layers


def _text(variable: Any, name: str) -> str:
    """The long name of a variable if it means a band, else its name."""
    texts = (str(variable.attrs.get(key, "")) for key in _NAMES)
    return next((text for text in texts if _means(text)), name)


def _means(text: str) -> bool:
    return band_of(text) is not None or polarisation_of(text) is not None or _SCL.search(text) is not None


def _labels(dataset: Any, variable: Any, dim: str) -> list[str]:
    """The names of the bands along a dimension: of its coordinate, others along it, or attributes; else empty."""
    count = int(variable.sizes[dim])
    along = [own for key, own in dataset.variables.items() if own.dims == (dim,) and key != dim]
    named = [dataset.variables[name] for name in _NAMES if name in dataset.variables]
    coordinates = [dataset.variables[dim]] if dim in dataset.variables else []
    choices = [
        [_decode(value) for value in np.asarray(own.values).tolist()]
        for own in (*coordinates, *named, *along)
        if own.dims == (dim,)
    ]
    choices += [
        [_decode(value) for value in variable.attrs[key]]
        for key in _NAMES
        if isinstance(variable.attrs.get(key), list | tuple | np.ndarray)
    ]
    choices = [choice for choice in choices if len(choice) == count]
    best = max(choices, key=lambda choice: sum(map(_means, choice)), default=[""] * count)
    if any(map(_means, best)):
        return best
    if coordinates and coordinates[0].dtype.kind in "if" and dim.lower() in ("wavelength", "wavelengths", "lambda"):
        return [f"{_nanometres(float(value)):.0f} nm" for value in np.asarray(coordinates[0].values)]
    texts = bool(coordinates) and coordinates[0].dtype.kind in "OSU"
    return best if texts else [""] * count


def _nanometres(wavelength: float) -> float:
    return wavelength * 1000 if wavelength < 20 else wavelength  # micrometres


def _decode(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _values_of(variable: Any, index: int, count: int) -> dict[str, Any]:
    """What the attributes of a variable declare about its values."""
    attrs = variable.attrs
    flag = str(_decode(attrs.get("_Unsigned", ""))).lower()
    unsigned = {"true": True, "false": False}.get(flag) if variable.dtype.kind in "iu" else None
    if unsigned is (variable.dtype.kind == "u"):
        unsigned = None
    scale, offset = (_number(attrs.get(key), index, count) for key in ("scale_factor", "add_offset"))
    if scale in (None, 1) and not offset:
        units = str(attrs.get("units", "")).strip().lower()
        scale = _SCALED_UNITS.get(units) if variable.dtype.kind == "f" else None
        offset = None if scale is None else 0.0
    else:
        scale, offset = 1.0 if scale is None else scale, offset or 0.0
    nodata = None
    for key in ("_FillValue", "missing_value", "nodata", "nodatavals", "_nodata"):
        nodata = _number(attrs.get(key), index, count)
        if nodata is not None:
            break
    if nodata is not None and np.isnan(nodata):
        nodata = None
    if nodata is not None and unsigned is not None:
        bits = 8 * variable.dtype.itemsize
        nodata = float(
            int(nodata) % 2**bits if unsigned else (int(nodata) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        )
    units = _decode(attrs.get("units", ""))
    return {"scale": scale, "offset": offset, "nodata": nodata, "unsigned": unsigned, "units": units}


def _number(value: Any, index: int, count: int) -> float | None:
    """A number of the attributes, or that of a band in a list of them."""
    values = np.asarray(value if value is not None else []).ravel()
    if values.size not in (1, count):
        return None
    try:
        return float(values[0 if values.size == 1 else index])
    except (TypeError, ValueError):
        return None


def _to_day(path: str, value: Any) -> date | None:
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return None
        days: date = value.astype("datetime64[D]").astype(object)
        return days
    if isinstance(value, datetime | date):
        return date(value.year, value.month, value.day)
    if all(hasattr(value, name) for name in ("year", "month", "day")):  # cftime
        return date(value.year, value.month, value.day)
    text = _decode(value)
    if isinstance(value, int | float | np.number) and not re.fullmatch(r"(19|20)\d{6}", text):
        raise DataError(
            f"{path}: its time coordinate holds numbers without a unit, such as {text}; expected dates "
            "(days since 1970-01-01), or give --dates"
        )
    return parse_date(text, f"time of {path}")


def _axis(path: str, dataset: Any, dimension: str) -> tuple[np.ndarray, float]:
    """The coordinates of a dimension, and their step; 0 for a single one."""
    if dimension not in dataset.variables:
        raise DataError(f"{path}: its dimension {dimension} has no coordinates; expected those of pixel centres")
    variable = dataset.variables[dimension]
    stored = np.asarray(variable.values)
    if stored.dtype.kind not in "iuf" or not stored.size:
        raise DataError(f"{path}: coordinates {dimension} are no numbers")
    values = stored.astype(np.float64)
    scale, offset = (_number(variable.attrs.get(key), 0, 1) for key in ("scale_factor", "add_offset"))
    values = values * (1 if scale is None else scale) + (offset or 0)
    step = float(values[-1] - values[0]) / max(len(values) - 1, 1)
    if len(values) == 1:
        return values, 0.0
    precision = np.spacing(np.abs(values).max().astype(stored.dtype)) if stored.dtype.kind == "f" else 0.0
    deviation = np.abs(values - (values[0] + step * np.arange(len(values)))).max()
    if not (step and deviation <= _REGULAR * abs(step) + min(2 * float(precision), 0.2 * abs(step))):
        gaps = np.diff(values)
        raise DataError(
            f"{path}: coordinates {dimension} are not equally spaced: steps of {np.min(gaps):.6g} to "
            f"{np.max(gaps):.6g}; bring the cube to a regular grid (odc-stac, gdalwarp)"
        )
    return values, step


def _grid_mapping(dataset: Any, variable: Any) -> Mapping[str, Any]:
    """The attributes of the variable that describes the coordinate system."""
    named = variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping") or ""
    for name in (_decode(named).split(":")[0].strip(), "spatial_ref", "crs", "transverse_mercator", "projection"):
        if name and name in dataset.variables:
            attrs: Mapping[str, Any] = dataset.variables[name].attrs
            if attrs:
                return attrs
    return {}


def _find_crs(path: str, dataset: Any, variable: Any, mapping: Mapping[str, Any]) -> Any:
    """The coordinate system, a `rasterio.crs.CRS`; None where none is declared."""
    for attrs in (mapping, variable.attrs, dataset.attrs):
        for key in _WKT:
            if key in attrs and str(_decode(attrs[key])).strip():
                return _parse_crs(path, attrs[key])
    for key in _WKT:
        if key in dataset.variables:
            values = {_decode(value) for value in np.asarray(dataset.variables[key].values).ravel().tolist()}
            values -= {"", "0", "None", "nan"}
            if len(values) > 1:
                raise DataError(f"{path}: its dates have different coordinate systems: {list_some(sorted(values))}")
            if values:
                return _parse_crs(path, values.pop())
    if mapping.get("grid_mapping_name") == "latitude_longitude":
        return CRS.from_epsg(4326)
    if mapping.get("grid_mapping_name") == "transverse_mercator":
        names = {"lat_0": "latitude_of_projection_origin", "lon_0": "longitude_of_central_meridian"}
        names |= {"k": "scale_factor_at_central_meridian", "x_0": "false_easting", "y_0": "false_northing"}
        parts = {key: _number(mapping.get(name), 0, 1) for key, name in names.items()}
        if None not in parts.values():
            text = " ".join(f"+{key}={value:.17g}" for key, value in parts.items() if value is not None)
            return _parse_crs(path, f"+proj=tmerc {text} +datum=WGS84 +units=m")
    return None


def _parse_crs(path: str, value: Any) -> Any:
    text = _decode(value).strip()
    try:
        return CRS.from_epsg(int(float(text))) if re.fullmatch(r"\d{4,6}(\.0)?", text) else CRS.from_user_input(text)
    except CRSError as error:
        raise DataError(
            f"{path}: its coordinate system {text[:60]!r} is not understood; expected EPSG or WKT"
        ) from error


def _declared_transform(dataset: Any, variable: Any, mapping: Mapping[str, Any]) -> Affine | None:
    """The affine transform that attributes declare, if it is not rotated."""
    choices = [(mapping.get("GeoTransform"), True), (variable.attrs.get("transform"), False)]
    choices.append((dataset.attrs.get("transform"), False))
    for value, gdal in choices:
        if value is None:
            continue
        numbers = value.split() if isinstance(value, str) else np.asarray(value).ravel()
        try:
            six = [float(number) for number in numbers][:6]
        except (TypeError, ValueError):
            continue
        if len(six) == 6:
            transform = Affine.from_gdal(*six) if gdal else Affine(*six)
            if transform.a and transform.e and not (transform.b or transform.d):
                return transform
    return None


def _at_corners(xs: np.ndarray, ys: np.ndarray, transform: Affine) -> bool:
    """Whether coordinates lie on the corners of a declared grid rather than on its centres."""
    phases = np.array([(xs.min() - transform.c) / transform.a, (ys.max() - transform.f) / transform.e])
    same_size = len(xs) == 1 or abs(abs(xs[1] - xs[0]) / abs(transform.a) - 1) < _REGULAR
    return bool(same_size and (np.abs(phases - np.round(phases)) < _CORNER).all())


def _is_geographic(layer: Layer, xs: np.ndarray, ys: np.ndarray) -> bool:
    named = layer.rows.lower().startswith("lat") and layer.columns.lower().startswith("lon")
    return named and bool(np.abs(ys).max() <= 90 and np.abs(xs).max() <= 360)

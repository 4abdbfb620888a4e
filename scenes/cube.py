"""Reconstruction of cubes in Python: xarray in, xarray out, lazily where the cube is backed by dask."""

import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask import delayed

from common.errors import DataError, UsageError
from data.constants import N_S1, N_S2, REFLECTANCE_SCALE, S2_BANDS
from data.raster.geotiff import days_since_origin
from model.restore import Reconstruction
from scenes.inputs.dates import date_labels, describe_pairs, pair_nearest
from scenes.inputs.products import Band, OpticalProduct
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import Pixels
from scenes.inputs.readers.cube import read_baselines
from scenes.inputs.readers.cube_layout import Layer, find_days, find_grid, find_layers
from scenes.inputs.readers.cube_store import stored_type
from scenes.inputs.series import SceneSeries
from scenes.inputs.values.bands import are_named, optical_bands, polarisation_of, radar_bands
from scenes.inputs.values.evidence import offset_evidence
from scenes.inputs.values.optical import NO_B10, OpticalDate, OpticalImage
from scenes.inputs.values.radar import UNITS, RadarDay, RadarImage
from scenes.inputs.values.scaling import resolve_scaling
from scenes.options import SceneInputs
from scenes.outputs.cog import BLOCK
from scenes.outputs.fields import FIELDS
from scenes.prediction.inference import assemble_block
from scenes.prediction.predict import Job, read_tile, tile_contents
from scenes.prediction.tiles import Tile, TilePlan
from scenes.requirements import read_requirements

_NAME = "the cube"  # in messages
_REFLECTANCE_MAX = 2.0  # of a tile: values that nowhere exceed this are reflectance, not reflectance x 10000
_REFLECTANCE_LEAST = 3.0  # of the darkest pixel of a tile: not even clouds have it
_BLOCK_BYTES, _LEAST_BLOCK = 2**27, 128  # of blocks that tiles are cut from, and their least side in pixels
_lock = Lock()  # threads of a worker share one network, and torch's number of threads


def reconstruct_cube(
    cube: xr.DataArray | xr.Dataset,
    network: str | Path | Reconstruction,
    radar: xr.DataArray | xr.Dataset | None = None,
    tile: int = 256,
    overlap: int = 64,
    *,
    scale: float | None = None,
    offset: float | Sequence[float] | None = None,
    radar_units: str = "db",
    device: str = "cpu",
    precision: str = "fp32",
) -> xr.Dataset:
    """The reconstruction of a cube, with its uncertainty; lazy if the cube is backed by dask.

    Values are those of `reconstruct_scene.py` with the same tiles, to the bit: before it rounds them to uint16,
    reflectance to 0.0001 and deviations to 0.00001. Each tile is predicted on its own, as there on a CPU. All dates are
    used; the result stands for the latest one.

    Args:
        cube: dimensions time, band, y, x in any order, or one variable a band; x and y may be lon and lat. Bands are
            found by name, see `scenes.inputs.values.bands.band_of`; B10 may be missing. Integers are reflectance
            x 10000 unless attributes (`scale_factor`, `add_offset`) say otherwise; `_FillValue`, `nodata`, NaN and 0 in
            all bands are missing. The time coordinate holds dates.
        network: a run's folder, or what `model.load_model` returns.
        radar: VV and VH on the same grid, at any dates; each date takes the nearest in time. None takes them from
            `cube`, if it has them.
        tile: pixels along a side of the tiles that the network sees; best as in training.
        overlap: pixels that neighbouring tiles share.
        scale: reflectance for each stored unit; 1 for reflectance. None takes it from the attributes, else 0.0001.
        offset: added to stored values, such as -1000 for products from baseline 04.00 that still have it; one number,
            or one for each time step. None takes it from the attributes or the coordinate `s2:processing_baseline`.
        radar_units: of stored radar values, "db", "power" or "amplitude".
        device: cpu, cuda or cuda:N, of a network that is given as a folder.
        precision: auto, fp32, bf16 or fp16.

    Returns:
        Variables (band, y, x), float32: `reflectance`; `aleatoric`, `epistemic`, `total`, standard deviations, as the
        network has them; NaN where no date has data. Coordinates of `cube` without time are kept; `attrs` hold the
        network, the dates, and notes on how the cube is read, which are warnings too.

    Raises:
        DataError: if the cube lacks bands, dates or coordinates; when computed, if its values are no reflectance.
        UsageError: if the network cannot take it.
    """
    weights = network.path if isinstance(network, Reconstruction) else str(Path(network).resolve())
    if not weights:
        raise UsageError("expected a network of load_model, which has the path of its run; give the run's folder")
    requirements, _ = read_requirements(weights)
    dataset = _as_dataset(cube)
    layers = find_layers(_NAME, dataset)
    optical = _open_optical(dataset, layers)
    inputs = SceneInputs(optical=("cube",), scale=scale, offset=_single(offset))
    images, notes = _scale(optical, inputs, offset)
    backscatter = _open_radar(dataset if radar is None else _as_dataset(radar), radar is not None, optical.grid)
    notes = [*optical.notes, *notes, *requirements.check(len(optical.days), backscatter is not None)]
    radar_images: tuple[_Radar, ...] = ()
    radar_days: tuple[int, ...] = ()
    if backscatter is not None and requirements.radar:
        backscatter, radar_images, radar_days = _pair(optical, backscatter, radar_units)
        pairs = describe_pairs(optical.days, radar_days)
    else:
        backscatter, pairs = None, []
    for note in dict.fromkeys(notes):
        warnings.warn(note, stacklevel=2)
    notes += pairs
    series = SceneSeries(optical.grid, optical.days, radar_days, (), (), None, tuple(notes))
    job = Job(
        series=series,
        plan=TilePlan(*optical.grid.shape, tile, overlap),
        weights=weights,
        tile_folder="",
        outputs=("mean", *requirements.variances),
        device=_device_of(network) if isinstance(network, Reconstruction) else device,
        precision=precision,
        uses_radar=requirements.radar,
        uses_dates=not requirements.single,
        reference_day=requirements.reference_day,
    )
    spec = _Spec(job, images, radar_images)
    given = network if isinstance(network, Reconstruction) else None
    fields = _build(spec, optical.array, None if backscatter is None else backscatter.array, given)
    result = _as_result(
        fields, dataset, optical, {"network": f"{requirements.name}, {weights}", "notes": "; ".join(notes)}
    )
    is_lazy = optical.is_lazy or (backscatter is not None and backscatter.is_lazy)
    return result if is_lazy else result.compute()


@dataclass(frozen=True)
class _Stack:
    """Bands of a cube in one array.

    Attributes:
        array: (T, C, y, x), of dask, as stored, north up, dates ascending.
        layers: the bands, (C).
        grid: of the pixels.
        flips: whether rows and columns of the cube have the opposite order.
        days: of the dates, since 2014-04-03.
        order: of the dates, by their places in the cube.
        offsets: by processing baselines, in reflectance, None where unknown.
        bands: 13 places in `layers`; None where the cube has none. Empty for radar.
        is_lazy: whether the cube is backed by dask.
        notes: on how it is read.
    """

    array: Any
    layers: tuple[Layer, ...]
    grid: Grid
    flips: tuple[bool, bool]
    days: tuple[int, ...]
    order: tuple[int, ...]
    offsets: tuple[float | None, ...]
    bands: tuple[int | None, ...]
    is_lazy: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Optical:
    """How the optical image of one date is read: `scenes.inputs.values.optical.OpticalImage` without its raster.

    Attributes:
        bands: 13 times the place in the array and the declared nodata value; None for a band that is missing.
        factors, shifts: as of `OpticalImage`.
        offset_given: whether the user gives the offset.
    """

    bands: tuple[tuple[int, float | None] | None, ...]
    factors: tuple[float, ...]
    shifts: tuple[float, ...]
    offset_given: bool


@dataclass(frozen=True)
class _Radar:
    """How the radar of one date is read.

    Attributes:
        dates: places of the images of that day in the array.
        layers: VV and VH.
        units: as of `RadarImage`.
    """

    dates: tuple[int, ...]
    layers: tuple[Layer, ...]
    units: str


@dataclass(frozen=True)
class _Spec:
    """What all tasks of a cube share; picklable."""

    job: Job
    optical: tuple[_Optical, ...]
    radar: tuple[_Radar, ...]

    def series(self, window: Window, optical: np.ndarray, radar: np.ndarray | None) -> SceneSeries:
        """The series of the pixels of one window."""
        grid = self.job.series.grid
        dates = []
        for image, pixels in zip(self.optical, optical, strict=True):
            raster = _WindowRaster(grid, window, pixels)
            bands = tuple(Band(raster, band[0] + 1, nodata=band[1]) if band else None for band in image.bands)
            dates.append(OpticalDate((OpticalImage(_NAME, bands, image.factors, image.shifts),), grid))
        radar_dates = []
        for own in self.radar:
            images = []
            for date in own.dates:
                assert radar is not None, "there are pixels where there are images"
                raster = _WindowRaster(grid, window, radar[date])
                vv, vh = (
                    Band(raster, position, layer.scale, layer.offset, layer.nodata)
                    for position, layer in enumerate(own.layers, start=1)
                )
                images.append(RadarImage("radar of the cube", (vv, vh), grid, own.units))
            radar_dates.append(RadarDay(tuple(images)))
        return replace(self.job.series, optical=tuple(dates), radar=tuple(radar_dates))


@dataclass(frozen=True, eq=False)
class _WindowRaster:
    """The pixels of one window of a scene in memory, a `scenes.inputs.rasters.raster.Raster`.

    Attributes:
        grid: of the scene.
        window: the pixels in it.
        pixels: (C, h, w).
    """

    grid: Grid
    window: Window
    pixels: np.ndarray
    name: str = _NAME
    paths: tuple[str, ...] = ()

    def read(
        self,
        positions: Sequence[int],
        window: Window,
        grid: Grid,
        resampling: str = "bilinear",
        nodata: float | None = None,
    ) -> Pixels:
        """See `Raster.read`; the grid is always that of the scene."""
        part = window.relative_to(self.window).slices
        return Pixels(self.pixels[[position - 1 for position in positions]][(..., *part)], None)


def _as_dataset(cube: xr.DataArray | xr.Dataset) -> xr.Dataset:
    if isinstance(cube, xr.Dataset):
        return cube
    if not isinstance(cube, xr.DataArray):
        raise UsageError(f"expected an xarray.DataArray or Dataset, got {type(cube).__name__}")
    return cube.rename(None).to_dataset(name="pixels")


def _single(offset: float | Sequence[float] | None) -> float | str:
    return float(offset) if isinstance(offset, int | float) else "auto"


def _device_of(network: Reconstruction) -> str:
    return str(next(network.parameters()).device)


def _open_optical(dataset: xr.Dataset, layers: Sequence[Layer]) -> _Stack:
    images = [layer for layer in layers if not layer.is_classes and polarisation_of(layer.label) is None]
    labels = [layer.label or None for layer in images]
    if not are_named(labels):
        raise DataError(f"{_NAME}: its bands have no names; expected {S2_BANDS[0]} to {S2_BANDS[-1]} as coordinates")
    positions = optical_bands(_NAME, labels)
    present = tuple(images[position - 1] for position in positions if position)
    places = iter(range(len(present)))
    bands = tuple(next(places) if position else None for position in positions)
    stack = _open_stack(dataset, present)
    return replace(stack, bands=bands, notes=(*stack.notes, *((NO_B10,) if None in bands else ())))


def _open_radar(dataset: xr.Dataset, required: bool, grid: Grid) -> _Stack | None:
    """VV and VH of a cube; None if they may be missing and are."""
    name = "the radar cube"
    layers = find_layers(name, dataset)
    if not required:
        layers = [layer for layer in layers if polarisation_of(layer.label) is not None]
        if {polarisation_of(layer.label) for layer in layers} != set(range(N_S1)):
            return None
    positions = radar_bands(name, [layer.label or None for layer in layers])
    stack = _open_stack(dataset, tuple(layers[position - 1] for position in positions))
    crs = stack.grid.crs or grid.crs  # arithmetic on arrays drops attributes
    difference = replace(grid, crs=grid.crs or crs).difference(replace(stack.grid, crs=crs))
    if difference:
        raise DataError(
            f"radar and optical cube have different {difference}; load both on one grid (odc.stac.load(like=...), "
            "rio.reproject_match)"
        )
    return stack


def _open_stack(dataset: xr.Dataset, layers: tuple[Layer, ...]) -> _Stack:
    """Bands on one grid, as one array."""
    first = layers[0]
    other = next((layer for layer in layers if (layer.rows, layer.columns) != (first.rows, first.columns)), None)
    if other is not None:
        raise DataError(f"{_NAME}: {first.label} and {other.label} lie on different grids; load all bands on one")
    grid, flips, notes = find_grid(_NAME, dataset, first)
    days = find_days(_NAME, dataset, first.time)
    if not days or None in days:
        raise DataError(f"{_NAME}: no dates; expected a coordinate time with the date of each image")
    order = sorted(range(len(days)), key=lambda index: days[index] or 0)
    dims = (*((first.time,) if first.time else ()), first.rows, first.columns)
    planes = [dataset[layer.variable].isel(dict(layer.select)).transpose(*dims) for layer in layers]
    is_lazy = any(plane.chunks is not None for plane in planes)
    bands = []
    for layer, plane in zip(layers, planes, strict=True):
        array = da.asarray(plane.data).astype(stored_type(plane.dtype, layer.unsigned))
        bands.append(array if first.time else array[None])
    array = da.stack(bands, axis=1)  # (T, C, y, x)
    array = array[:, :, :: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    if order != list(range(len(days))):
        array = array[order]
    own = [_decoded(layer, dataset[layer.variable]) for layer in layers]
    baselines = read_baselines(dataset, first.time)
    integers = all(dataset[layer.variable].dtype.kind in "iu" for layer in layers)
    return _Stack(
        array=array,
        layers=tuple(own),
        grid=grid,
        flips=flips,
        days=tuple(days_since_origin(day) for day in sorted(day for day in days if day)),
        order=tuple(order),
        offsets=tuple(baselines[index] if integers else None for index in order),
        bands=(),
        is_lazy=is_lazy,
        notes=tuple(notes),
    )


def _decoded(layer: Layer, variable: xr.DataArray) -> Layer:
    """A layer whose scale xarray has applied when it opened the file: its values are reflectance."""
    applied = variable.encoding.get("scale_factor", 1) != 1 and variable.dtype.kind == "f"
    return replace(layer, scale=1.0, offset=0.0) if applied and layer.scale is None else layer


def _scale(
    stack: _Stack, inputs: SceneInputs, offset: float | Sequence[float] | None
) -> tuple[tuple[_Optical, ...], list[str]]:
    """How the values of each date become reflectance, and notes."""
    offsets: list[float | None] = [None] * len(stack.days)
    if offset is not None and not isinstance(offset, int | float):
        if len(offset) != len(stack.days):
            raise UsageError(f"offset: expected one number, or one for each of {len(stack.days)} dates")
        offsets = [float(offset[index]) for index in stack.order]
    images, notes = [], dict.fromkeys(_repeated_days(stack.days))
    for number, label in enumerate(date_labels(stack.days)):
        raster = _WindowRaster(stack.grid, stack.grid.window, np.empty((0, 0, 0)))
        layers = [None if place is None else stack.layers[place] for place in stack.bands]
        declared = stack.offsets[number]
        bands = tuple(
            Band(raster, 1, layer.scale, declared if layer.scale is None else layer.offset, layer.nodata)
            if layer
            else None
            for layer in layers
        )
        scaled = any(layer and layer.scale is not None for layer in layers)
        by = "the file" if scaled else "" if declared is None else "processing baseline in the cube"
        day = np.datetime64("2014-04-03") + stack.days[number]
        product = OpticalProduct(_NAME, f"{_NAME}, {label}", bands, day.astype(object), by, offset=offsets[number])
        scaling, scale_notes = resolve_scaling(product, inputs)
        notes |= dict.fromkeys(scale_notes)
        places = tuple(None if place is None else (place, stack.layers[place].nodata) for place in stack.bands)
        factors, shifts = tuple(scaling.factors.tolist()), tuple(scaling.shifts.tolist())
        images.append(_Optical(places, factors, shifts, scaling.given))
    return tuple(images), list(notes)


def _repeated_days(days: Sequence[int]) -> list[str]:
    repeated = sorted({label[:10] for label in date_labels(days) if len(label) > 10})
    return [
        f"several images of {day}: all are used; join those of one overpass before (groupby time.date, first)"
        for day in repeated
    ]


def _pair(optical: _Stack, radar: _Stack, units: str) -> tuple[_Stack, tuple[_Radar, ...], tuple[int, ...]]:
    """The radar of each date, all images of the nearest day, as in `scenes.inputs.open`; only these are kept."""
    if units not in UNITS:
        raise UsageError(f"radar_units must be one of {', '.join(UNITS)}, not {units!r}")
    nearest = [radar.days[index] for index in pair_nearest(optical.days, radar.days)]
    used = [index for index, day in enumerate(radar.days) if day in nearest]
    places = {index: place for place, index in enumerate(used)}
    images = tuple(
        _Radar(tuple(places[index] for index in used if radar.days[index] == day), radar.layers, units)
        for day in nearest
    )
    array = radar.array if len(used) == len(radar.days) else radar.array[used]
    return replace(radar, array=array), images, tuple(nearest)


def _build(spec: _Spec, optical: Any, radar: Any, network: Reconstruction | None) -> dict[str, Any]:
    """Lazy arrays (13, y, x) of the fields: a task for each tile, and one for each block of the output."""
    plan, token = spec.job.plan, uuid.uuid4().hex
    shared = delayed(spec, name=f"cube-spec-{token}", traverse=False)
    model = None if network is None else delayed(network, name=f"cube-network-{token}", traverse=False)
    predict, assemble = (delayed(task, pure=False, traverse=False) for task in (_predict_tile, _assemble))
    sources = [None if array is None else _Source.of(array) for array in (optical, radar)]
    tiles = []
    for number in range(len(plan)):
        parts = [None if source is None else source.parts(plan[number].window) for source in sources]
        tiles.append(predict(shared, number, *parts, model, dask_key_name=f"cube-tile-{token}-{number}"))
    names = [name for name in FIELDS if name == "reflectance" or name in spec.job.outputs]
    names += ["total"] if len(spec.job.outputs) > 1 else []
    blocks: list[list[Any]] = []
    for top in range(0, plan.height, BLOCK):
        blocks.append([])
        for left in range(0, plan.width, BLOCK):
            window = Window.from_edges(top, left, min(top + BLOCK, plan.height), min(left + BLOCK, plan.width))
            numbers = [_number(plan, tile) for tile in plan.covering(window)]
            edges = window.top, window.left, window.height, window.width
            key, needed = f"cube-block-{token}-{top}-{left}", [tiles[number] for number in numbers]
            block = assemble(shared, edges, names, numbers, needed, dask_key_name=key)
            shape = (len(names), N_S2, *window.shape)
            blocks[-1].append(da.from_delayed(block, shape, meta=np.empty((0,) * 4, np.float32)))
    array = da.block(blocks)
    return {name: array[index] for index, name in enumerate(names)}


@dataclass(frozen=True)
class _Source:
    """The pixels of all dates and bands in square blocks, from which tiles are cut.

    Attributes:
        blocks: delayed (T, C, h, w), by row and column.
        size: pixels along a side of a block.
    """

    blocks: Any
    size: int

    @classmethod
    def of(cls, array: Any) -> "_Source":
        """The blocks of an array (T, C, y, x) of dask."""
        size = BLOCK
        while size > _LEAST_BLOCK and array.shape[0] * array.shape[1] * size**2 * array.dtype.itemsize > _BLOCK_BYTES:
            size //= 2
        return cls(array.rechunk((-1, -1, size, size)).to_delayed()[0, 0], size)

    def parts(self, window: Window) -> list[list[Any]]:
        """The parts of blocks that make up a window, row by row: cut where the blocks are, so that less is moved."""
        rows, columns = (
            range(start // self.size, -(-stop // self.size))
            for start, stop in ((window.top, window.bottom), (window.left, window.right))
        )
        return [[self._part(window, row, column) for column in columns] for row in rows]

    def _part(self, window: Window, row: int, column: int) -> Any:
        block = Window(row * self.size, column * self.size, self.size, self.size)
        return self.blocks[row, column][(..., *window.intersection(block).relative_to(block).slices)]


def _number(plan: TilePlan, tile: Tile) -> int:
    return tile.row * len(plan.across.starts) + tile.column


def _predict_tile(
    spec: _Spec,
    number: int,
    optical: Sequence[Sequence[np.ndarray]],
    radar: Sequence[Sequence[np.ndarray]] | None,
    network: Reconstruction | None,
) -> dict[str, np.ndarray]:
    """A task: the contents of a tile, from the pieces (T, C, h, w) of its window, row by row."""
    tile = spec.job.plan[number]
    pixels, radar_pixels = _join(optical), None if radar is None else _join(radar)
    job = replace(spec.job, series=spec.series(tile.window, pixels, radar_pixels))
    _check_values(spec, job.series, tile.window)
    with _lock:
        content: dict[str, np.ndarray] = next(tile_contents(job, [tile], [read_tile(job, tile)], network=network))
    return content


def _join(pieces: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.concatenate([np.concatenate(row, axis=-1) for row in pieces], axis=-2)


def _check_values(spec: _Spec, series: SceneSeries, window: Window) -> None:
    """Raise a `DataError` if the values of a tile are no reflectance, or no dB, with the scale that is assumed."""
    for source, own in zip(series.optical, spec.optical, strict=True):
        assert isinstance(source, OpticalDate)
        stored, missing = source.images[0].read_stored(window, source.grid)
        bands = [index for index, band in enumerate(own.bands) if band]
        factors, shifts = (np.array(numbers)[bands, None] for numbers in (own.factors, own.shifts))
        values = stored[:, ~missing] * factors
        if not values.size:
            continue
        if 0 < values.max() <= _REFLECTANCE_MAX:
            raise DataError(
                f"{_NAME}: expected reflectance x 10000, found values up to {values.max():.3g}; give scale=1 if they "
                "are reflectance"
            )
        lowest = float((values + shifts).min()) / REFLECTANCE_SCALE
        if lowest >= _REFLECTANCE_LEAST:
            raise DataError(
                f"{_NAME}: expected reflectance, found {lowest:.3g} or more after scaling; check scale and offset"
            )
        evidence = offset_evidence(values, bands)
        if evidence.kind == "in" and not (own.offset_given or shifts.any()):
            raise DataError(
                f"{_NAME}: the offset of 1000 of new baselines is in the values: {evidence.reason}; give offset=-1000 "
                "to take it off, one number for each date if only some have it, or offset=0 to keep it"
            )
    for day in series.radar:
        values = day.read(window)
        if (values > 0).any() and not (values < 0).any():
            raise DataError(
                f"{_NAME}: expected radar in dB, found positive values only, up to {np.nanmax(values):.3g}; give "
                f"radar_units, one of {', '.join(UNITS)}"
            )


def _assemble(
    spec: _Spec,
    window: tuple[int, int, int, int],
    names: Sequence[str],
    numbers: Sequence[int],
    contents: Sequence[Mapping[str, np.ndarray]],
) -> np.ndarray:
    """A task: fields (F, 13, h, w) of a block, from the tiles that cover it."""
    job, by_number = spec.job, dict(zip(numbers, contents, strict=True))

    def load(own: Job, tile: Tile, wanted: Sequence[str], image: int) -> dict[str, np.ndarray]:
        content = by_number[_number(own.plan, tile)]
        return {name: content[name] for name in wanted if name in content}

    block = assemble_block(job, Window(*window), load=load)
    fields = np.stack([block[name] for name in names])
    fields[:, :, ~block["valid"]] = np.nan
    return fields


def _as_result(fields: Mapping[str, Any], dataset: xr.Dataset, stack: _Stack, attrs: Mapping[str, Any]) -> xr.Dataset:
    """The fields with the coordinates of the cube, in its order."""
    rows, columns = stack.layers[0].rows, stack.layers[0].columns
    source = dataset[stack.layers[0].variable]
    kept = {
        name: coordinate
        for name, coordinate in dataset.coords.items()
        if set(coordinate.dims) <= {rows, columns} and coordinate.dtype.kind != "M" and name != "band"
    }
    flip = partial(_flip, stack.flips)
    variables = {}
    for name, array in fields.items():
        title = FIELDS[name].title
        variables[name] = xr.Variable(
            ("band", rows, columns), flip(array), {"long_name": title, "units": "reflectance"}
        )
    result = xr.Dataset(variables, {"band": list(S2_BANDS), **kept}, dict(attrs))
    mapping = source.attrs.get("grid_mapping") or source.encoding.get("grid_mapping")
    if mapping is None and stack.grid.crs is not None and "spatial_ref" not in result.coords:
        mapping = "spatial_ref"
    if mapping is not None and mapping not in result.coords and stack.grid.crs is not None:
        transform = " ".join(f"{value:.17g}" for value in stack.grid.transform.to_gdal())
        wkt = stack.grid.crs.to_wkt()
        reference = {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": transform}
        result = result.assign_coords({mapping: xr.Variable((), 0, reference)})
    for name in fields:
        if mapping is not None:
            result[name].encoding["grid_mapping"] = mapping
    result.attrs["dates"] = ",".join(date_labels(stack.days))
    return result


def _flip(flips: tuple[bool, bool], array: Any) -> Any:
    return array[:, :: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

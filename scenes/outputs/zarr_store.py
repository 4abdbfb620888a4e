"""A series as one Zarr store that xarray opens with its coordinates, CRS and scales."""

import os
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import DataError
from data.constants import DATE_ORIGIN, S2_BANDS
from data.raster.geotiff import open_image
from scenes.inputs.rasters.dataset_pool import gdal_settings
from scenes.inputs.rasters.grid import Grid
from scenes.output_images import OutputImage
from scenes.outputs.cog import BLOCK
from scenes.outputs.fields import FIELDS, MASK_NODATA

STORE = "series.zarr"
_EPOCH = (DATE_ORIGIN - date(1970, 1, 1)).days


def write_store(
    folder: Path, work: Path, grid: Grid, images: Sequence[OutputImage], fields: Sequence[str], nodata: int | None
) -> Path:
    """Write FOLDER/series.zarr from the products of the images; it appears when it is complete.

    Its variables are named like the files: `reflectance`, `aleatoric_std` ... (time, band, y, x) and `observed` (time,
    y, x), with the stored values of the files, which xarray scales and masks when it opens them. A chunk is a block of
    an image with all bands. The time of a month or a season is its first day.

    Args:
        folder: of the series.
        work: a folder on the same disk for the unfinished store.
        grid: of the images.
        images: whose products are in folders of their names.
        fields: the products, of `FIELDS`; cloud masks, which are of the inputs, are left out.
        nodata: of stored values, None where none is declared.

    Returns:
        The store.

    Raises:
        DataError: if products cannot be read, or the disk is full.
    """
    import zarr  # deferred: heavy

    unfinished, path = work / STORE, folder / STORE
    names = {field: Path(FIELDS[field].file).stem for field in fields if field != "clouds"}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        template = _template(grid, images, names, nodata)
        template.to_zarr(unfinished, mode="w", compute=False, consolidated=True, zarr_format=2)
        store: Any = zarr.open_group(str(unfinished), mode="r+")
        with gdal_settings():
            for number, image in enumerate(tqdm(images, desc="zarr", unit="image")):
                for field, name in names.items():
                    _copy(folder / image.name / FIELDS[field].file, store[name], number)
        remove_store(folder)
        os.replace(unfinished, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; check the disk's free space") from error
    return path


def remove_store(folder: Path) -> None:
    """Delete FOLDER/series.zarr if there is one."""
    shutil.rmtree(folder / STORE, ignore_errors=True)


def _template(grid: Grid, images: Sequence[OutputImage], names: dict[str, str], nodata: int | None) -> Any:
    """A dataset with all metadata, whose values are not computed."""
    import dask.array  # deferred: heavy
    import xarray  # deferred: heavy

    height, width = grid.shape
    variables: dict[str, Any] = {}
    for field, name in names.items():
        scale = FIELDS[field].scale
        bands = (len(S2_BANDS),) if scale else ()
        shape, chunks = (len(images), *bands, height, width), (1, *bands, min(BLOCK, height), min(BLOCK, width))
        attributes: dict[str, Any] = {"grid_mapping": "spatial_ref"}
        attributes["long_name"] = FIELDS[field].title.format(kept="the date")
        if scale:
            attributes |= {"scale_factor": scale, "add_offset": 0.0, "units": "1"}
        fill = nodata if scale else MASK_NODATA
        attributes |= {} if fill is None else {"_FillValue": fill}
        values = dask.array.zeros(shape, np.uint16 if scale else np.uint8, chunks=chunks)
        variables[name] = (("time", *(("band",) if scale else ()), "y", "x"), values, attributes)
    days = np.array([image.first_day + _EPOCH for image in images])
    time = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
    coordinates = {"time": ("time", days, time), "band": ("band", np.array(S2_BANDS)), **_axes(grid)}
    dataset = xarray.Dataset(variables, coordinates, {"Conventions": "CF-1.8", "title": "Cloud-free Sentinel-2 series"})
    return dataset.assign_coords(spatial_ref=((), np.int64(0), _spatial_reference(grid)))


def _axes(grid: Grid) -> dict[str, Any]:
    """Coordinates of the centres of pixels; none for a rotated grid, whose rows and columns have none."""
    if grid.transform.b or grid.transform.d:
        return {}
    degrees = grid.crs is not None and grid.crs.is_geographic
    names = ("longitude", "latitude") if degrees else ("projection_x_coordinate", "projection_y_coordinate")
    units = ("degrees_east", "degrees_north") if degrees else ("metre", "metre")
    xs = [grid.xy(column + 0.5, 0)[0] for column in range(grid.width)]
    ys = [grid.xy(0, row + 0.5)[1] for row in range(grid.height)]
    return {
        "x": ("x", np.array(xs), {"standard_name": names[0], "units": units[0], "axis": "X"}),
        "y": ("y", np.array(ys), {"standard_name": names[1], "units": units[1], "axis": "Y"}),
    }


def _spatial_reference(grid: Grid) -> dict[str, Any]:
    """Attributes of the grid mapping, as rioxarray and GDAL read them."""
    attributes: dict[str, Any] = {"GeoTransform": " ".join(f"{x:.17g}" for x in grid.transform.to_gdal())}
    if grid.crs is not None:
        wkt = grid.crs.to_wkt(version="WKT2_2019")
        attributes |= {"crs_wkt": wkt, "spatial_ref": wkt}
    return attributes


def _copy(file: Path, target: Any, number: int) -> None:
    """Copy a file into one date of a variable, a row of blocks at a time."""
    with open_image(str(file)) as source:
        for top in range(0, source.height, BLOCK):
            rows = slice(top, min(top + BLOCK, source.height))
            values = source.read(window=((rows.start, rows.stop), (0, source.width)))
            if target.ndim == values.ndim:  # without a band
                target[number, rows, :] = values[0]
            else:
                target[number, :, rows, :] = values

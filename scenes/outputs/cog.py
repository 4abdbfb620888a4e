"""Cloud-Optimised GeoTIFFs of windows that lie in files of their own: a virtual mosaic, copied by GDAL."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from common.errors import DataError
from common.files import whole_file
from scenes.inputs.grid import Grid, Window

BLOCK = 512
_COLOURS = {"B04": "Red", "B03": "Green", "B02": "Blue"}  # what programs show first


@dataclass(frozen=True)
class Layer:
    """The bands of one product.

    Attributes:
        names: of the bands.
        first: position of the first one in the windows' files, from 1.
        kind: GDAL's data type.
        nodata: None declares none.
        scale: units for each stored one; None declares none.
        unit: of scaled values.
        tags: of the file.
    """

    names: Sequence[str]
    first: int
    kind: str
    nodata: int | None
    scale: float | None
    unit: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Spooled:
    """A window's file, in the folder of the mosaic."""

    name: str
    window: Window


def write_vrt(path: Path, grid: Grid, layer: Layer, sources: Sequence[Spooled]) -> None:
    """Write a virtual mosaic of one product's bands; files are opened only when they are read.

    Source:
        GDAL's VRT format, https://gdal.org/drivers/raster/vrt.html.
    """
    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ElementTree.SubElement(root, "SRS").text = grid.crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(f"{x:.17g}" for x in grid.transform.to_gdal())
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in layer.tags.items():
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    for place, name in enumerate(layer.names):
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=layer.kind, band=str(place + 1))
        ElementTree.SubElement(band, "Description").text = name
        if layer.nodata is not None:
            ElementTree.SubElement(band, "NoDataValue").text = str(layer.nodata)
        if layer.scale is not None:
            ElementTree.SubElement(band, "UnitType").text = layer.unit
            ElementTree.SubElement(band, "Offset").text = "0"
            ElementTree.SubElement(band, "Scale").text = repr(layer.scale)
        ElementTree.SubElement(band, "ColorInterp").text = _COLOURS.get(name, "Undefined")
        for source in sources:
            _add_source(band, source, layer.first + place)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


def write_cog(source: Path, path: Path, work: Path, average: bool) -> None:
    """Copy an image into a Cloud-Optimised GeoTIFF with overviews, whole or not at all.

    Args:
        source: what GDAL can open.
        path: the file to make.
        work: a folder on the same disk for what is in the making.
        average: whether overviews are means, as of measured values, or pixels picked out, as of masks.

    Raises:
        DataError: if the disk is full.
    """
    making = work / path.name
    options = {"BLOCKSIZE": str(BLOCK), "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BIGTIFF": "IF_SAFER"}
    options |= {"OVERVIEW_RESAMPLING": "AVERAGE" if average else "NEAREST", "NUM_THREADS": "ALL_CPUS"}
    try:
        rasterio.shutil.copy(str(source), str(making), driver="COG", **options)
        with rasterio.open(making) as made:  # GDAL reports a full disk late
            made.read(1, window=((made.height - 1, made.height), (made.width - 1, made.width)))
    except (RasterioError, CPLE_BaseError) as error:  # copying tells GDAL's errors as they are
        raise DataError(f"cannot write {path}: {error.__cause__ or error}; check the disk's free space") from error
    with whole_file(path) as temporary:
        os.replace(making, temporary)


def _add_source(band: ElementTree.Element, source: Spooled, position: int) -> None:
    window = source.window
    simple = ElementTree.SubElement(band, "SimpleSource")
    ElementTree.SubElement(simple, "SourceFilename", relativeToVRT="1").text = source.name
    ElementTree.SubElement(simple, "SourceBand").text = str(position)
    size = {"xSize": str(window.width), "ySize": str(window.height)}
    raster = {"RasterXSize": str(window.width), "RasterYSize": str(window.height), "DataType": "UInt16"}
    ElementTree.SubElement(simple, "SourceProperties", raster | {"BlockXSize": str(BLOCK), "BlockYSize": str(BLOCK)})
    ElementTree.SubElement(simple, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    ElementTree.SubElement(simple, "DstRect", {"xOff": str(window.left), "yOff": str(window.top), **size})

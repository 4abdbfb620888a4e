"""Cloud-Optimised GeoTIFFs from blocks in files of their own: a virtual mosaic that GDAL copies."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from common.errors import DataError
from common.files import atomic_file
from data.raster.geotiff import open_image
from scenes.inputs.rasters.grid import Grid, Window

BLOCK = 512
_COLOURS = {"B04": "Red", "B03": "Green", "B02": "Blue"}  # the bands that viewers display first


@dataclass(frozen=True)
class Layer:
    """The bands of one product.

    Attributes:
        names: of the bands.
        first: position of the first one in the files of the blocks, from 1.
        nodata: None declares none.
        scale: reflectance of a stored 1, as uint16; 0 for masks, stored as bytes.
        tags: of the file.
    """

    names: Sequence[str]
    first: int
    nodata: int | None
    scale: float
    tags: Mapping[str, str]


def write_vrt(path: Path, grid: Grid, layer: Layer, blocks: Mapping[str, Window]) -> None:
    """Write a virtual mosaic of the bands of one product.

    Args:
        path: the file to write.
        grid: of the scene.
        layer: the bands.
        blocks: window of each block by the name of its file, in the same folder; files are not opened.

    Source:
        GDAL's VRT format, https://gdal.org/drivers/raster/vrt.html.
    """
    root = Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        SubElement(root, "SRS").text = grid.crs.to_wkt()
    SubElement(root, "GeoTransform").text = ", ".join(f"{x:.17g}" for x in grid.transform.to_gdal())
    metadata = SubElement(root, "Metadata")
    for key, value in layer.tags.items():
        SubElement(metadata, "MDI", key=key).text = value
    for index, name in enumerate(layer.names):
        band = SubElement(root, "VRTRasterBand", dataType="UInt16" if layer.scale else "Byte", band=str(index + 1))
        SubElement(band, "Description").text = name
        if layer.nodata is not None:
            SubElement(band, "NoDataValue").text = str(layer.nodata)
        if layer.scale:
            SubElement(band, "UnitType").text = "reflectance"
            SubElement(band, "Offset").text = "0"
            SubElement(band, "Scale").text = repr(layer.scale)
        SubElement(band, "ColorInterp").text = _COLOURS.get(name, "Undefined")
        for file, window in blocks.items():
            _add_block(band, file, window, layer.first + index)
    ElementTree(root).write(path, encoding="utf-8")


def write_cog(source: Path, path: Path, work: Path, average: bool) -> None:
    """Copy an image into a Cloud-Optimised GeoTIFF with overviews, atomically.

    Args:
        source: a file that GDAL can open.
        path: the file to write.
        work: a folder on the same disk for the unfinished file.
        average: whether overviews are means, as for measured values, or the nearest pixels, as for masks.

    Raises:
        DataError: if the disk is full.
    """
    unfinished = work / path.name
    options = {"BLOCKSIZE": str(BLOCK), "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BIGTIFF": "IF_SAFER"}
    options |= {"OVERVIEW_RESAMPLING": "AVERAGE" if average else "NEAREST", "NUM_THREADS": "ALL_CPUS"}
    try:
        rasterio.shutil.copy(str(source), str(unfinished), driver="COG", **options)
        with open_image(str(unfinished)) as written:  # GDAL reports a full disk late
            written.read(1, window=((written.height - 1, written.height), (written.width - 1, written.width)))
    except (RasterioError, CPLE_BaseError) as error:  # rasterio's copy raises GDAL's errors unconverted
        raise DataError(f"cannot write {path}: {error.__cause__ or error}; check the disk's free space") from error
    with atomic_file(path) as temporary:
        os.replace(unfinished, temporary)


def _add_block(band: Element, file: str, window: Window, position: int) -> None:
    source = SubElement(band, "SimpleSource")
    SubElement(source, "SourceFilename", relativeToVRT="1").text = file
    SubElement(source, "SourceBand").text = str(position)
    size = {"xSize": str(window.width), "ySize": str(window.height)}
    raster = {"RasterXSize": str(window.width), "RasterYSize": str(window.height), "DataType": "UInt16"}
    SubElement(source, "SourceProperties", raster | {"BlockXSize": str(BLOCK), "BlockYSize": str(BLOCK)})
    SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    SubElement(source, "DstRect", {"xOff": str(window.left), "yOff": str(window.top), **size})

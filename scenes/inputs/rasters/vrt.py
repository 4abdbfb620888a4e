"""Virtual mosaics (GDAL's VRT) whose sources are restricted to images beside them.

A VRT can read any file of this machine, fetch addresses and run code. Here it is read by us: only mosaics and stacks of
images are understood, as `gdalbuildvrt` writes them, and GDAL gets a copy in which every source is a checked path.
"""

import os
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from common.errors import DataError

_HEAD = 1024  # bytes in which GDAL looks for the root element
_LARGEST = 2**26  # bytes of a file; a source takes 500
_SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource")
_UNDERSTOOD = {
    *("VRTDataset", "VRTRasterBand", *_SOURCES),
    *("SRS", "GeoTransform", "Metadata", "MDI", "OverviewList", "BlockXSize", "BlockYSize"),
    *("Description", "UnitType", "Offset", "Scale", "NoDataValue", "HideNoDataValue", "ColorInterp"),
    *("ColorTable", "Entry", "CategoryNames", "Category", "Histograms", "HistItem", "HistMin", "HistMax", "HistCounts"),
    *("BucketCount", "IncludeOutOfRange", "Approximate"),
    *("SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"),
    *("ScaleOffset", "ScaleRatio", "LUT"),
}
_CLASSES = (None, "VRTSourcedRasterBand")


def is_vrt(path: str) -> bool:
    """Whether GDAL would open a local file as a VRT."""
    if path.lower().endswith(".vrt"):
        return True
    try:
        with open(path, "rb") as file:
            return b"<VRTDataset" in file.read(_HEAD)
    except OSError:
        return False


def read_vrt(path: str) -> tuple[str, tuple[str, ...]]:
    """A VRT with absolute paths, and its sources.

    Args:
        path: a local file, as `gdalbuildvrt` writes it.

    Returns:
        The XML text for GDAL, and the paths of its sources; these are not opened.

    Raises:
        DataError: if it is no mosaic of images in its folder or below.
    """
    try:
        if os.path.getsize(path) > _LARGEST:
            raise DataError(f"{path}: expected a VRT of at most {_LARGEST >> 20} MB")
        root = ElementTree.fromstring(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"not a readable VRT: {path} ({error})") from error
    folder = Path(path).resolve().parent
    sources: dict[str, None] = {}
    for element in root.iter():
        kind = next((value for key, value in element.items() if key.lower() == "subclass"), None)  # as GDAL compares
        if element.tag not in _UNDERSTOOD or kind not in _CLASSES:
            raise DataError(
                f"{path}: a VRT with {kind or element.tag} is not read, only mosaics and stacks of images; write its "
                "pixels with gdal_translate"
            )
        if element.tag == "SourceFilename":
            element.text = _source(path, folder, element)
            element.set("relativeToVRT", "0")
            sources[element.text] = None
    if root.tag != "VRTDataset" or not sources:
        raise DataError(f"{path}: expected a VRT with sources")
    return ElementTree.tostring(root, encoding="unicode"), tuple(sources)


def _source(path: str, folder: Path, element: Element) -> str:
    """The absolute path of a source, which must be a file in the VRT's folder."""
    text = (element.text or "").strip()
    relative = element.get("relativeToVRT") == "1"
    source = Path(folder if relative else ".", text).resolve()
    if not source.is_relative_to(folder) or not source.is_file():
        raise DataError(f"{path}: its source {text!r} is no file in {folder}; a VRT may use images beside it only")
    if is_vrt(str(source)):
        raise DataError(f"{path}: its source {text!r} is a VRT too; build one VRT of the images themselves")
    return str(source)

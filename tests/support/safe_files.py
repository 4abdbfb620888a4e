"""Products of one file a band, small: .SAFE of both levels and formats, AWS layout, their archives, loose files."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine, from_origin

from data.constants import S2_BANDS

TILE, DAY, TIME = "T32TQM", "2018-06-21", "T103021"
CRS, CORNER = "EPSG:32632", (600_000, 5_000_040)
SIZES = dict(
    zip(S2_BANDS, (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 6, 2, 2), strict=True)  # pixels of 10 m along one of the band
)
OFFSETS = {name: -1000 for name in S2_BANDS}


def coarse_bands(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The bands of an image (13,h,w) at their own resolutions: means of pixels, the last partly beyond the edge."""
    return {name: _coarse(band, SIZES[name]) for name, band in zip(S2_BANDS, pixels, strict=True)}


def _coarse(band: np.ndarray, factor: int) -> np.ndarray:
    below, right = -band.shape[0] % factor, -band.shape[1] % factor
    padded = np.pad(band, ((0, below), (0, right)), mode="edge")
    means = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor).mean(axis=(1, 3))
    return means.round().astype(band.dtype)


def grid_of(factor: int) -> Affine:
    return from_origin(*CORNER, 10 * factor, 10 * factor)


def write_band(path: Path, band: np.ndarray, factor: int = 1, driver: str = "JP2OpenJPEG", block: int = 64) -> str:
    """One band as lossless JPEG 2000, or as GeoTIFF, whatever the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict = {"driver": driver, "blockxsize": block, "blockysize": block, "crs": CRS}
    if driver == "GTiff":
        options |= {"tiled": True}
    else:
        options |= {"QUALITY": 100, "REVERSIBLE": "YES"}
    shape = {"count": 1, "height": band.shape[0], "width": band.shape[1], "dtype": band.dtype}
    with rasterio.open(path, "w", transform=grid_of(factor), **shape, **options) as target:
        target.write(band, 1)
    return str(path)


def product_xml(
    level: str = "L1C",
    day: str = DAY,
    *,
    baseline: str = "05.00",
    offsets: Mapping[str, int] | None = None,
    quantification: int = 10000,
    nodata: int = 0,
    tile: str = TILE,
) -> str:
    """MTD_MSIL1C.xml or MTD_MSIL2A.xml, as far as products differ in it."""
    long, compact = f"Level-{level[1:]}", day.replace("-", "") + TIME
    kind, listed = ("RADIO", "Radiometric") if level == "L1C" else ("BOA", "BOA")
    values = "".join(
        f'<{kind}_ADD_OFFSET band_id="{S2_BANDS.index(name)}">{value}</{kind}_ADD_OFFSET>'
        for name, value in (offsets or {}).items()
    )
    values = f"<{listed}_Offset_List>{values}</{listed}_Offset_List>" if values else ""
    unit = f"<QUANTIFICATION_VALUE unit='none'>{quantification}</QUANTIFICATION_VALUE>"
    if level == "L2A":
        unit = (
            f"<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE>{quantification}</BOA_QUANTIFICATION_VALUE>"
            "<AOT_QUANTIFICATION_VALUE>1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>"
        )
    time = f"{day}T10:30:21.024Z"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:{long}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_{long}.xsd"><n1:General_Info>
<Product_Info><PRODUCT_START_TIME>{time}</PRODUCT_START_TIME>
<PRODUCT_URI>S2A_MSI{level}_{compact}_N{baseline.replace(".", "")}_R108_{tile}_{compact}.SAFE</PRODUCT_URI>
<PROCESSING_LEVEL>{long}</PROCESSING_LEVEL><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Datatake datatakeIdentifier="GS2A_{compact}_015650_N{baseline}"><DATATAKE_SENSING_START>{time}</DATATAKE_SENSING_START>
</Datatake></Product_Info><Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>{nodata}</SPECIAL_VALUE_INDEX>
</Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
</Special_Values>{unit}{values}</Product_Image_Characteristics></n1:General_Info></n1:{long}_User_Product>
"""


def tile_xml(level: str = "L1C", day: str = DAY, tile: str = TILE, baseline: str = "05.00") -> str:
    """MTD_TL.xml."""
    name = f"S2A_OPER_MSI_{level}_TL_SGS__20300101T000000_A015650_{tile}_N{baseline}"
    return f"""<n1:Level-{level[1:]}_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/Tile.xsd"><n1:General_Info>
<TILE_ID metadataLevel="Brief">{name}</TILE_ID><SENSING_TIME metadataLevel="Standard">{day}T10:34:00.127Z</SENSING_TIME>
</n1:General_Info></n1:Level-{level[1:]}_Tile_ID>
"""


def write_safe(
    folder: Path,
    pixels: np.ndarray,
    level: str = "L1C",
    day: str = DAY,
    *,
    tile: str = TILE,
    block: int = 64,
    **xml: Any,
) -> Path:
    """A .SAFE of compact format.

    Args:
        folder: that gets it.
        pixels: (13,h,w) uint16 as stored, on the grid of 10 m.
        level: L2A has folders of resolutions, each with all coarser bands too, and SCL.
        day: of acquisition.
        tile: in names.
        block: pixels along a side of the blocks.
        **xml: see `product_xml`.
    """
    compact = day.replace("-", "") + TIME
    baseline = xml.get("baseline", "05.00")
    name = f"S2A_MSI{level}_{compact}_N{baseline.replace('.', '')}_R108_{tile}_{compact}"
    safe = folder / f"{name}.SAFE"
    granule = safe / "GRANULE" / f"{level}_{tile}_A015650_{compact}"
    images = granule / "IMG_DATA"
    for band, values in coarse_bands(pixels).items():
        stem, factor = f"{tile}_{compact}_{band}", SIZES[band]
        if level == "L1C":
            write_band(images / f"{stem}.jp2", values, factor, block=block)
        elif band != "B10":
            for coarser in (step for step in (1, 2, 6) if step >= factor and (band != "B08" or step == 1)):
                own = values if coarser == factor else _coarse(pixels[S2_BANDS.index(band)], coarser)
                write_band(images / f"R{coarser}0m" / f"{stem}_{coarser}0m.jp2", own, coarser, block=block)
    if level == "L2A":
        classes = np.where(_coarse(pixels[0], 2) > 3000, np.uint8(9), np.uint8(4))
        for factor, values in ((2, classes), (6, classes[::3, ::3])):
            write_band(images / f"R{factor}0m" / f"{tile}_{compact}_SCL_{factor}0m.jp2", values, factor, block=block)
        write_band(images / "R20m" / f"{tile}_{compact}_AOT_20m.jp2", classes.astype(np.uint16), 2, block=block)
    (safe / f"MTD_MSI{level}.xml").write_text(product_xml(level, day, tile=tile, **xml))
    (granule / "MTD_TL.xml").write_text(tile_xml(level, day, tile, baseline))
    (safe / "INSPIRE.xml").write_text("<gmd:MD_Metadata xmlns:gmd='x'/>")
    quality = granule / "QI_DATA"
    quality.mkdir()
    (quality / "MSK_DEFECT_B04.gml").write_text("<eop:Mask xmlns:eop='x'/>")
    write_band(quality / "MSK_DETFOO_B04.jp2", np.ones((16, 16), np.uint8), 6)
    return safe


def write_zip(path: Path, folder: Path, inner: str | None = None) -> Path:
    """An archive of a folder, below the folder's name or `inner`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                top = folder.name if inner is None else inner
                archive.write(file, Path(top, file.relative_to(folder)).as_posix())
    return path

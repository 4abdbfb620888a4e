"""The STAC item of a scene's products: their place and time, and the contents of each file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pystac

from common.files import write_json
from data.constants import DATE_ORIGIN, S2_BANDS
from scenes.inputs.rasters.grid import Grid
from scenes.inputs.series import SceneSeries
from scenes.output_images import OutputImage
from scenes.outputs.fields import FIELDS, LATEST, MASK_NODATA, band_names

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
SOFTWARE, VERSION = "cloudless-uncertainty", "0.1.0"
# Centre wavelengths of Sentinel-2A in micrometres, and the extension's common names.
_WAVELENGTHS = (0.4427, 0.4927, 0.5598, 0.6646, 0.7041, 0.7405, 0.7828, 0.8328, 0.8647, 0.9451, 1.3735, 1.6137, 2.2024)
_COMMON = (
    *("coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09"),
    *("cirrus", "swir16", "swir22"),
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
COLLECTION = "collection.json"  # in the folder above those of its items


@dataclass(frozen=True)
class ItemDetails:
    """What the item of an output image says besides its place and files.

    Attributes:
        nodata: of stored values, None where none is declared.
        network: its name and where its weights were.
        notes: how the inputs were read.
        image: of a series, whose item belongs to a collection; None for the only image of a scene.
        kept: the date whose clear pixels are kept.
    """

    nodata: int | None
    network: str
    notes: Sequence[str]
    image: OutputImage | None = None
    kept: str = LATEST


def write_item(path: Path, series: SceneSeries, files: Mapping[str, Path], details: ItemDetails) -> None:
    """Write a STAC 1.1 item, atomically.

    Args:
        path: of the item, whose identifier is the name of its folder, of a series after that of the collection's; files
            are named relative to it.
        series: the inputs.
        files: by field, and "quicklook".
        details: what else it says.
    """
    image, folder = details.image, path.resolve().parent
    days = (min(series.days), max(series.days)) if image is None else (image.first_day, image.last_day)
    first, last = (DATE_ORIGIN + timedelta(days=day) for day in days)
    start = datetime.combine(first, time.min, timezone.utc)
    lineage = f"reconstructed by {details.network} from {', '.join(series.labels)}"
    geometry, bbox = series.grid.footprint()
    span = f"{first.isoformat()} to {last.isoformat()}" if image is None or first != last else first.isoformat()
    item = pystac.Item(
        id=folder.name if image is None else f"{folder.parent.name}_{folder.name}",
        geometry=geometry,
        bbox=bbox,
        datetime=start if image is not None and first == last else None,  # null for a composite of several dates
        start_datetime=start,
        end_datetime=datetime.combine(last, time(23, 59, 59), timezone.utc),
        properties={
            "title": f"Cloud-free Sentinel-2 reflectance, {span}",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            **_properties(series.grid),
            "processing:software": {SOFTWARE: VERSION},
            "processing:lineage": "; ".join((lineage, *details.notes)),
        },
        stac_extensions=list(EXTENSIONS),
    )
    for name, file in files.items():
        item.add_asset(name, pystac.Asset.from_dict(_asset(name, file, series, details)))
    item.set_self_href(str(path.resolve()))
    item.make_asset_hrefs_relative()
    content = item.to_dict(include_self_link=False)
    if image is not None:
        content["collection"] = folder.parent.name
        content["links"] = [
            {"rel": rel, "href": f"../{COLLECTION}", "type": "application/json"}
            for rel in ("root", "parent", "collection")
        ]
    write_json(path, content)


def _properties(grid: Grid) -> dict[str, Any]:
    transform = grid.transform
    properties: dict[str, Any] = {
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(transform)[:6],
    }
    if grid.crs is None or grid.crs.is_projected:  # defined in metres, not in degrees
        steps = np.hypot(transform.a, transform.d), np.hypot(transform.b, transform.e)
        properties["gsd"] = round(float(min(steps)), 6)
    if grid.crs is not None:
        code = grid.crs.to_epsg()
        properties["proj:code"] = f"EPSG:{code}" if code else None
        properties |= {} if code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
        properties["proj:bbox"] = list(grid.bounds)
    return properties


def _asset(name: str, file: Path, series: SceneSeries, details: ItemDetails) -> dict[str, Any]:
    href = str(file.resolve())
    if name == "quicklook":
        roles = ["thumbnail", "overview"]
        return {"href": href, "type": "image/png", "title": "Quick-look, true colour", "roles": roles}
    field = FIELDS[name]
    asset: dict[str, Any] = {"href": href, "type": _COG, "title": field.title.format(kept=details.kept)}
    asset["roles"] = list(field.roles)
    if not field.scale:
        names = band_names(name, series.labels)
        return asset | {"data_type": "uint8", "nodata": MASK_NODATA, "bands": [{"name": band} for band in names]}
    asset |= {"data_type": "uint16", "unit": "1", "raster:scale": field.scale, "raster:offset": 0}
    asset |= {} if details.nodata is None else {"nodata": details.nodata}
    keys = ("name", "eo:common_name", "eo:center_wavelength")
    bands = [dict(zip(keys, band, strict=True)) for band in zip(S2_BANDS, _COMMON, _WAVELENGTHS, strict=True)]
    return asset | {"bands": bands}

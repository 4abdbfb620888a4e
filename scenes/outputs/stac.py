"""The STAC item beside a scene's products: where and when they lie, and what each file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.warp import transform_geom

from common.files import write_json
from data.constants import S2_BANDS
from scenes.inputs.grid import Grid

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
_LONGITUDE_LATITUDE = "EPSG:4326"
_EDGE_POINTS = 16  # along each edge: straight in the scene's projection is bent in longitude and latitude
# Centre wavelengths of Sentinel-2A in micrometres, and the extension's common names.
_WAVELENGTHS = (0.4427, 0.4927, 0.5598, 0.6646, 0.7041, 0.7405, 0.7828, 0.8328, 0.8647, 0.9451, 1.3735, 1.6137, 2.2024)
_COMMON = (
    *("coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09"),
    *("cirrus", "swir16", "swir22"),
)
_ROLES = {"clouds": ["cloud", "data-mask"], "observed": ["data-mask"], "reflectance": ["data", "reflectance"]}
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@dataclass(frozen=True)
class ItemFacts:
    """What an item tells besides its files.

    Attributes:
        name: the item's identifier.
        grid: where it lies.
        first: day of the earliest input.
        last: day of the latest input.
        labels: names of all dates.
        nodata: of stored values, None where none is declared.
        scales: for each field what a stored 1 is worth; 0 for masks.
        titles: words about each field.
        network: which network it was.
        notes: what was done to the inputs.
        software: name and version.
    """

    name: str
    grid: Grid
    first: date
    last: date
    labels: Sequence[str]
    nodata: int | None
    scales: Mapping[str, float]
    titles: Mapping[str, str]
    network: str
    notes: Sequence[str]
    software: Mapping[str, str]


def write_item(path: Path, facts: ItemFacts, files: Mapping[str, Path]) -> None:
    """Write a STAC 1.1 item, whole or not at all.

    Args:
        path: of the item; files are named relative to it.
        facts: see there.
        files: by field, and "quicklook".
    """
    import pystac

    geometry, bbox = footprint(facts.grid)
    item = pystac.Item(
        id=facts.name,
        geometry=geometry,
        bbox=bbox,
        datetime=None,  # a composite of several dates: start and end are told
        start_datetime=datetime.combine(facts.first, time.min, timezone.utc),
        end_datetime=datetime.combine(facts.last, time(23, 59, 59), timezone.utc),
        properties=_properties(facts),
        stac_extensions=list(EXTENSIONS),
    )
    for name, file in files.items():
        item.add_asset(name, pystac.Asset.from_dict(_asset(name, file, facts)))
    item.set_self_href(str(path.resolve()))
    item.make_asset_hrefs_relative()
    write_json(path, item.to_dict(include_self_link=False))


def footprint(grid: Grid) -> tuple[dict[str, Any] | None, list[float] | None]:
    """The outline of a scene as GeoJSON in longitude and latitude, and west, south, east, north.

    Across the 180th meridian it is two polygons, and west exceeds east, as GeoJSON has it. None without a CRS.
    """
    if grid.crs is None:
        return None, None
    ring = []
    corners = grid.corners
    for (column, row), (next_column, next_row) in zip(corners, (*corners[1:], corners[0]), strict=True):
        for part in np.arange(_EDGE_POINTS) / _EDGE_POINTS:
            ring.append(grid.place(column + part * (next_column - column), row + part * (next_row - row)))
    outline = {"type": "Polygon", "coordinates": [[*reversed(ring), ring[-1]]]}  # outer rings run anticlockwise
    geometry: dict[str, Any] = transform_geom(
        grid.crs, _LONGITUDE_LATITUDE, outline, antimeridian_cutting=True, precision=7
    )
    split = geometry["type"] == "MultiPolygon"
    rings = [part[0] for part in geometry["coordinates"]] if split else [geometry["coordinates"][0]]
    points = [(float(point[0]), float(point[1])) for part in rings for point in part]
    south, north = min(y for _, y in points), max(y for _, y in points)
    if split:
        west, east = min(x for x, _ in points if x > 0), max(x for x, _ in points if x <= 0)
    else:
        west, east = min(x for x, _ in points), max(x for x, _ in points)
    return geometry, [west, south, east, north]


def _properties(facts: ItemFacts) -> dict[str, Any]:
    grid = facts.grid
    made = f"reconstructed by {facts.network} from {', '.join(facts.labels)}"
    found: dict[str, Any] = {
        "title": f"Cloud-free Sentinel-2 reflectance, {facts.first.isoformat()} to {facts.last.isoformat()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": round(min(float(np.hypot(*step)) for step in _steps(grid)), 6),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(grid.transform)[:6],
        "processing:software": dict(facts.software),
        "processing:lineage": "; ".join((made, *facts.notes)),
    }
    if grid.crs is not None:
        code = grid.crs.to_epsg()
        found["proj:code"] = f"EPSG:{code}" if code else None
        found |= {} if code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
        found["proj:bbox"] = list(grid.bounds)
        if not grid.crs.is_projected:
            del found["gsd"]  # degrees are no metres
    return found


def _steps(grid: Grid) -> tuple[tuple[float, float], tuple[float, float]]:
    return (grid.transform.a, grid.transform.d), (grid.transform.b, grid.transform.e)


def _asset(name: str, file: Path, facts: ItemFacts) -> dict[str, Any]:
    href = str(file.resolve())
    if name == "quicklook":
        return {
            "href": href,
            "type": "image/png",
            "title": "Quick-look, true colour",
            "roles": ["thumbnail", "overview"],
        }
    scale = facts.scales[name]
    asset: dict[str, Any] = {"href": href, "type": _COG, "title": facts.titles[name]}
    asset["roles"] = _ROLES.get(name, ["data", "uncertainty"])
    if not scale:
        names = facts.labels if name == "clouds" else ("observed",)
        return asset | {"data_type": "uint8", "nodata": 255, "bands": [{"name": label} for label in names]}
    asset |= {"data_type": "uint16", "unit": "1", "raster:scale": scale, "raster:offset": 0}
    asset |= {} if facts.nodata is None else {"nodata": facts.nodata}
    optics = zip(S2_BANDS, _COMMON, _WAVELENGTHS, strict=True)
    bands = [
        {"name": band, "eo:common_name": common, "eo:center_wavelength": micrometres}
        for band, common, micrometres in optics
    ]
    return asset | {"bands": bands}

"""The STAC collection of a series: an item for each image, and what belongs to all of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta, timezone
from pathlib import Path

import pystac

from common.files import write_json
from data.constants import DATE_ORIGIN
from scenes.inputs.series import SceneSeries
from scenes.output_images import OutputImage
from scenes.outputs.stac import EXTENSIONS

ASSETS = {  # name -> media type, title, roles
    "quicklook": ("image/png", "Quick-look: NDVI over time", ["thumbnail", "overview"]),
    "ndvi": ("text/csv", "NDVI of the middle pixel and of the scene over time", ["metadata"]),
    "series": ("application/vnd+zarr", "All images in one Zarr store: time, band, y, x", ["data"]),
}
_EARTH = [-180.0, -90.0, 180.0, 90.0]  # the extent of a collection is required


def write_collection(
    path: Path,
    series: SceneSeries,
    images: Sequence[OutputImage],
    files: Mapping[str, Path],
    network: str,
    notes: Sequence[str],
) -> None:
    """Write a STAC 1.1 collection, atomically.

    Args:
        path: of the collection, whose identifier is the name of its folder; the item of an image is expected at
            NAME/item.json beside it.
        series: the inputs.
        images: the items.
        files: of the whole series, of `ASSETS`.
        network: its name and where its weights were.
        notes: how the inputs were read.
    """
    first = DATE_ORIGIN + timedelta(days=min(image.first_day for image in images))
    last = DATE_ORIGIN + timedelta(days=max(image.last_day for image in images))
    start, end = (datetime.combine(*when, timezone.utc) for when in ((first, time.min), (last, time(23, 59, 59))))
    folder = path.resolve().parent
    lines = (f"{len(images)} cloud-free images, reconstructed by {network} from {len(series.days)} dates", *notes)
    collection = pystac.Collection(
        id=folder.name,
        title=f"Cloud-free Sentinel-2 series, {first.isoformat()} to {last.isoformat()}",
        description="; ".join(lines),
        extent=pystac.Extent(
            pystac.SpatialExtent([series.grid.footprint()[1] or _EARTH]), pystac.TemporalExtent([[start, end]])
        ),
        license="other",
        keywords=["Sentinel-2", "cloud-free", "uncertainty"],
        stac_extensions=list(EXTENSIONS[:1]),
        summaries=pystac.Summaries({"constellation": ["sentinel-2"], "instruments": ["msi"]}),
    )
    for name, (media_type, title, roles) in ASSETS.items():
        if name in files:
            collection.add_asset(name, pystac.Asset(f"./{files[name].name}", title, None, media_type, roles))
    for image in images:
        collection.add_link(pystac.Link("item", f"./{image.name}/item.json", "application/geo+json", title=image.name))
    content = collection.to_dict(include_self_link=False, transform_hrefs=False)
    content["links"] = [
        link | {"href": f"./{path.name}"} if link["rel"] == "root" else link for link in content["links"]
    ]
    write_json(path, content)

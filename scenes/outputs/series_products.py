"""What a series has besides its images: a quick-look with the NDVI over time, a Zarr store and a STAC collection."""

from collections.abc import Sequence
from pathlib import Path

from scenes.inputs.series import SceneSeries
from scenes.output_images import OutputImage
from scenes.outputs.collection import write_collection
from scenes.outputs.ndvi import NdviSums
from scenes.outputs.ndvi_plot import ndvi_curves, plot_ndvi, write_csv
from scenes.outputs.stac import COLLECTION
from scenes.outputs.zarr_store import remove_store, write_store


def finish_series(
    folder: Path,
    series: SceneSeries,
    images: Sequence[OutputImage],
    sums: Sequence[NdviSums],
    *,
    network: str,
    notes: Sequence[str],
    store_fields: Sequence[str] = (),
    nodata: int | None = None,
    work: Path | None = None,
) -> dict[str, Path]:
    """Write the files of a series whose images are finished, each atomically.

    Args:
        folder: of the series, in which each image has the folder of its name.
        series: the inputs.
        images: of the series.
        sums: of the NDVI of each image.
        network: its name and where its weights were.
        notes: how the inputs were read.
        store_fields: the products that the Zarr store holds; empty for no store.
        nodata: of stored values, None where none is declared.
        work: a folder on the same disk for unfinished files.

    Returns:
        The files by name: `quicklook`, `ndvi`, `series` if there is a store, and `collection`.

    Raises:
        DataError: if the disk is full.
    """
    files = {"quicklook": folder / "quicklook.png", "ndvi": folder / "ndvi.csv"}
    curves = ndvi_curves(series.days, images, sums)
    write_csv(files["ndvi"], images, curves)
    plot_ndvi(files["quicklook"], images, curves, [folder / image.name / "quicklook.png" for image in images])
    remove_store(folder)  # of a series that this one replaces
    if store_fields:
        files["series"] = write_store(folder, work or folder, series.grid, images, store_fields, nodata)
    write_collection(folder / COLLECTION, series, images, files, network, notes)
    return files | {"collection": folder / COLLECTION}

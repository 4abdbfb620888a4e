"""Regions of SEN12MS-CR-TS as HDF5 files; the layouts are those of `util.export_hdf5`."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import DataError
from common.files import atomic_file
from data.clouds.mask_store import MaskStore
from data.constants import N_DATES
from data.datasets.file_index import SeriesPaths
from data.layout import SENSORS, patch_number
from data.raster.geotiff import acquisition_date
from data.raster.hdf5 import check_written, write_hdf5
from data.raster.image_store import Images
from data.raster.patch_mosaic import PatchMosaic, plan_mosaic

_GZIP = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def write_region(
    target: Path, layout: str, images: Images, roi: str, patches: Sequence[SeriesPaths], store: MaskStore | None
) -> None:
    """Write a region to a file of its own, atomically.

    Args:
        target: the file.
        layout: "scenes" or "patches".
        images: folder or pack of the data set.
        roi: the region, "ROIs1868/73".
        patches: its patches, at least one.
        store: adds cloud masks; None writes none.

    Raises:
        DataError: if an image cannot be read, or the patches make no scene.
    """
    with atomic_file(target) as temporary, write_hdf5(temporary) as file:
        file.attrs["layout"] = layout
        group = file.create_group(roi)
        if layout == "scenes":
            _write_scene(group, images, patches, store)
            return
        for paths in patches:
            name = f"{roi.replace('/', '_')}_patch_{patch_number(paths['S2'][0])}"
            _write_patch(group.create_group(name), images, paths, store)


def is_written(target: Path, layout: str) -> bool:
    """Whether a region's file exists and is readable.

    Raises:
        DataError: if it has another layout.
    """
    if not target.is_file():
        return False
    try:
        with h5py.File(target, "r", locking=False) as file:
            stored = file.attrs.get("layout")
    except OSError:  # damaged: it is written again
        return False
    if stored != layout:
        raise DataError(f"{target} is of layout {stored}, not {layout}; name another --out, or remove it")
    return True


def write_links(path: Path, regions: Sequence[tuple[str, Path]]) -> None:
    """Write a file that links to the files of (region, file) pairs."""
    with atomic_file(path) as temporary, write_hdf5(temporary) as file:
        for roi, target in regions:
            file[roi] = h5py.ExternalLink(target.relative_to(path.parent).as_posix(), f"/{roi}")


def _write_scene(group: Any, images: Images, patches: Sequence[SeriesPaths], store: MaskStore | None) -> None:
    mosaic = plan_mosaic(images, [paths["S2"][0] for paths in patches])
    group.attrs.update({"crs": mosaic.crs, "transform": mosaic.transform, "patch_size": mosaic.patch_size})
    group["patches"] = mosaic.places
    group.create_dataset("covered", data=mosaic.covered(), **_GZIP)
    dates = {sensor: [[paths[sensor][date] for paths in patches] for date in range(N_DATES)] for sensor in SENSORS}
    for sensor in SENSORS:
        part = group.create_group(sensor)
        _write_dates(part, sensor, dates[sensor])
        _write_mosaics(part, sensor, mosaic, dates[sensor], lambda path: images.read_native(path, mosaic.patch_size)[0])
    if store is not None:
        _write_mosaics(group["S2"], "cloud_mask", mosaic, dates["S2"], lambda path: _masks(store, images, [path])[0])


def _write_mosaics(
    group: Any, name: str, mosaic: PatchMosaic, dates: Sequence[Sequence[str]], read: Callable[[str], np.ndarray]
) -> None:
    """Write the joined patches of all dates, (T, C, H, W), in chunks of one patch."""
    dataset: Any = None
    for date, paths in enumerate(dates):
        scene = mosaic.join(paths, read)
        if dataset is None:
            chunk = (1, len(scene), *mosaic.patch_size)
            dataset = group.create_dataset(name, (len(dates), *scene.shape), scene.dtype, chunks=chunk, **_GZIP)
        dataset[date] = scene
        check_written(group)


def _write_patch(group: Any, images: Images, paths: SeriesPaths, store: MaskStore | None) -> None:
    for sensor in SENSORS:
        part = group.create_group(sensor)
        part.create_dataset(sensor, data=np.stack([images.read_native(path)[0] for path in paths[sensor]]), **_GZIP)
        _write_dates(part, sensor, [[path] for path in paths[sensor]])
        check_written(part)
    if store is not None:
        group["S2"].create_dataset("cloud_mask", data=_masks(store, images, paths["S2"]), **_GZIP)


def _masks(store: MaskStore, images: Images, paths: Sequence[str]) -> np.ndarray:
    """Cloud masks, uint8 (n, 1, h, w)."""
    return np.stack(store.masks(images.root, paths))[:, None].astype(np.uint8)


def _write_dates(group: Any, sensor: str, dates: Sequence[Sequence[str]]) -> None:
    """Write the acquisition day of each date; if its patches differ, the most frequent one."""
    days = []
    for date, paths in enumerate(dates):
        day, count = Counter(acquisition_date(path).isoformat() for path in paths).most_common(1)[0]
        if count < len(paths):
            text = f"{len(paths) - count} of {len(paths)} patches are of other days than {day}"
            warnings.warn(f"{group.name}, date {date}: {text}", stacklevel=2)
        days.append(day)
    group[f"{sensor}_dates"] = days

"""Pack one region (`data.raster.packed_store`), and compare it with its GeoTIFFs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import atomic_file, remove_stale_files
from common.locks import folder_lock
from data.constants import N_DATES, N_S1, N_S2
from data.layout import STACKS, list_images
from data.raster.geotiff import check_image
from data.raster.hdf5 import check_written, write_hdf5
from data.raster.image_store import ImageFolder
from data.raster.packed_store import (
    BLOSC_FILTER,
    FORMAT,
    TABLES_CHECKSUM,
    RoiFile,
    blosc,
    checksum,
    checksum_tables,
    roi_path,
)
from data.splits import SERIES

# Level 5 of lz4hc decodes in a third of zstd's time, 0.28 instead of 0.83 ms an optical image, for 5 % more space. The
# low-order bytes of radar are noise, on which a higher level only costs time.
_CODEC, _LEVELS = "lz4hc", {"u": 5, "f": 1}
_BLOSC_FORMAT, _BLOSC_VERSION, _LZ4 = 2, 2, 1  # parameters of the filter, as its HDF5 plugin reads them

Manifest = dict[str, dict[tuple[int, int], str]]
"""group -> (patch number, date) -> path relative to the root."""


@dataclass(frozen=True)
class RoiResult:
    """Result of one region: number of images, bytes of their GeoTIFFs, bytes of its file, and problems.

    `has_checksum`: whether its file has one of names and georeferences.
    """

    images: int = 0
    tif_bytes: int = 0
    packed_bytes: int = 0
    problems: tuple[str, ...] = ()
    has_checksum: bool = True


def update_roi(root: Path, out: Path, dataset: str, roi: str) -> RoiResult:
    """Pack a region below `root` into the pack in `out`, unless it is packed already; for `dataset` see `list_roi`."""
    images, target = ImageFolder(str(root)), roi_path(out, roi)
    try:
        manifest = list_roi(images, dataset, roi)
        if not manifest:
            return RoiResult()
        remove_stale_files(target.parent)
        if not is_packed(images, manifest, target):
            with folder_lock(target, "--out", as_sibling=True, wait=True):  # several commands may fill one pack
                if not is_packed(images, manifest, target):
                    pack_roi(images, manifest, out, dataset, roi)
    except DataError as error:
        return RoiResult(problems=(str(error),))
    sizes = [images.file_bytes(path) for _, path in _stack_paths(manifest)]
    return RoiResult(len(sizes), sum(sizes), target.stat().st_size)


def verify_roi(root: Path | None, out: Path, dataset: str, packed_rois: Sequence[str], roi: str) -> RoiResult:
    """Compare a packed region with its GeoTIFFs, or with its own checksums if `root` is None.

    Args:
        root: of the GeoTIFFs.
        out: the pack.
        dataset: as for `list_roi`.
        packed_rois: regions that the pack lists; those must have a file.
        roi: the region.
    """
    target = roi_path(out, roi)
    try:
        manifest = {} if root is None else list_roi(ImageFolder(str(root)), dataset, roi)
        if not target.is_file():
            return RoiResult(problems=(f"{roi} is not packed",) if manifest or roi in packed_rois else ())
        packed = RoiFile(target)
        problems = damaged(packed) if root is None else differences(ImageFolder(str(root)), manifest, packed)
        has_checksum = packed.has_intact_tables() is not None
        return RoiResult(sum(1 for _ in packed.slots()), problems=tuple(problems), has_checksum=has_checksum)
    except DataError as error:
        return RoiResult(problems=(str(error),))


def list_roi(images: ImageFolder, dataset: str, roi: str) -> Manifest:
    """The images of a region that are present; downloads may be partial.

    Args:
        images: the folder of GeoTIFFs.
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        roi: "ROIs1868/73", of SEN12MS-CR "ROIs1970_fall/139".

    Raises:
        DataError: if a patch has two files for one date, or a file belongs to another folder.
    """
    manifest: Manifest = {}
    for stack in STACKS[dataset]:
        paths: dict[tuple[int, int], str] = {}
        for date, number, path in list_images(images.names, dataset, roi, stack):
            if number is None:
                raise DataError(f"{path} is misplaced: by its name it belongs to another folder; move or remove it")
            if (number, date) in paths:
                raise DataError(f"two files for one date of one patch: {paths[number, date]} and {path}; remove one")
            paths[number, date] = path
        if paths:
            manifest[stack] = dict(sorted(paths.items(), key=lambda item: (item[0][1], item[1])))
    return manifest


def _stack_paths(manifest: Manifest) -> Iterator[tuple[str, str]]:
    return ((stack, path) for stack, paths in manifest.items() for path in paths.values())


def is_packed(images: ImageFolder, manifest: Manifest, target: Path) -> bool:
    """Whether a region's file holds these images, by their names and sizes."""
    if not target.is_file():
        return False
    try:
        roi = RoiFile(target)
        packed_sizes = {(slot[0], name): roi.file_bytes(slot) for slot, name in roi.slots()}
    except DataError:  # damaged: it is written again
        return False
    sizes = {(stack, path.rpartition("/")[2]): images.file_bytes(path) for stack, path in _stack_paths(manifest)}
    return packed_sizes == sizes


def pack_roi(images: ImageFolder, manifest: Manifest, out: str | Path, dataset: str, roi: str) -> None:
    """Pack the images of a manifest; the file appears only after it has been compared with every GeoTIFF.

    Raises:
        DataError: if an image cannot be read, differs in size or type from the first of its group, or is not the same
            after packing; no file is left then.
    """
    with atomic_file(roi_path(out, roi)) as temporary:
        with write_hdf5(temporary, libver=("v110", "v110")) as file:
            file.attrs.update({"format": FORMAT, "dataset": dataset, "roi": roi})
            georefs: dict[tuple[Any, ...], int] = {}  # row of each distinct (bounds, transform, CRS)
            for stack, paths in manifest.items():
                _write_stack(file.create_group(stack), images, stack, paths, georefs)
            _write_georefs(file, georefs)
            file.attrs[TABLES_CHECKSUM] = checksum_tables(file)
        difference = next(differences(images, manifest, RoiFile(temporary)), None)
        if difference is not None:
            raise DataError(f"{roi} was not packed without loss: {difference}; check the disk and pack it again")


def differences(images: ImageFolder, manifest: Manifest, packed: RoiFile) -> Iterator[str]:
    """Differences between a region's file and the GeoTIFFs: names, pixels (bitwise), type, georeference, file size."""
    slots = {(slot[0], name): slot for slot, name in packed.slots()}
    for stack, path in _stack_paths(manifest):
        slot = slots.pop((stack, path.rpartition("/")[2]), None)
        if slot is None:
            yield f"{path} is not in {packed.path}"
            continue
        pixels, georef = images.read_native(path)
        try:
            stored = packed.pixels(slot)
        except DataError as error:
            yield str(error)
            continue
        if stored.dtype != pixels.dtype or stored.shape != pixels.shape or stored.tobytes() != pixels.tobytes():
            yield f"{path}: other pixels in {packed.path}"
        elif packed.georef(slot) != georef:
            yield f"{path}: another georeference in {packed.path}"
        elif packed.file_bytes(slot) != images.file_bytes(path):
            yield f"{path}: its file size differs from that packed into {packed.path}"
        elif not packed.is_intact(slot):
            yield f"{path}: its checksum in {packed.path} does not match its pixels"
    for _, name in slots:
        yield f"{name} is in {packed.path} and not in {images.root}"


def damaged(packed: RoiFile) -> Iterator[str]:
    """The images of a region's file whose pixels do not match their checksums, and damage of its tables."""
    if packed.has_intact_tables() is False:
        yield f"{packed.path}: names or georeferences do not match their checksum"
    for stack, name in packed.without_pixels():
        yield f"{name} in {packed.path} has no pixels ({stack})"
    for slot, name in packed.slots():
        try:
            if not packed.is_intact(slot):
                yield f"{name} in {packed.path} does not match its checksum"
        except DataError as error:
            yield str(error)


def _write_georefs(file: Any, georefs: dict[tuple[Any, ...], int]) -> None:
    file["bounds"] = np.array([bounds for bounds, _, _ in georefs], np.float64).reshape(-1, 4)
    file["transform"] = np.array([transform for _, transform, _ in georefs], np.float64).reshape(-1, 6)
    file["crs"] = [wkt.encode() for _, _, wkt in georefs]


def _write_stack(
    group: Any,
    images: ImageFolder,
    stack: str,
    paths: Mapping[tuple[int, int], str],
    georefs: dict[tuple[Any, ...], int],
) -> None:
    numbers = sorted({number for number, _ in paths})
    rows = {number: row for row, number in enumerate(numbers)}
    n_dates = N_DATES if stack in STACKS[SERIES] else 1
    bands = N_S1 if stack.lower() == "s1" else N_S2
    names = np.zeros((len(numbers), n_dates), f"S{max(len(path.rpartition('/')[2]) for path in paths.values())}")
    file_bytes, crc, place = (np.zeros(names.shape, dtype) for dtype in (np.int64, np.uint32, np.uint32))
    pixels: Any = None
    for (number, date), path in paths.items():
        image, georef = images.read_native(path)
        check_image(path, image.shape, {image.dtype.name}, bands, None if pixels is None else pixels.shape[3:])
        if pixels is None:
            pixels = _create_pixels(group, (len(numbers), n_dates, *image.shape), image.dtype)
        if image.dtype != pixels.dtype:
            raise DataError(f"{path}: {image.dtype} values, those of the images before it are {pixels.dtype}")
        slot = rows[number], date
        pixels.id.write_direct_chunk((*slot, 0, 0, 0), _compress(image), 0)
        check_written(group)
        names[slot], file_bytes[slot] = path.rpartition("/")[2].encode(), images.file_bytes(path)
        key = georef.bounds, tuple(georef.transform)[:6], "" if georef.crs is None else str(georef.crs.to_wkt())
        crc[slot], place[slot] = checksum(image), georefs.setdefault(key, len(georefs))
    group["patch"] = np.array(numbers, np.int64)
    for name, table in {"names": names, "file_bytes": file_bytes, "crc32": crc, "place": place}.items():
        group.create_dataset(name, data=table, compression="gzip", shuffle=True)


def _create_pixels(group: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A data set with one image in each chunk, declared as Blosc-compressed even if HDF5 lacks that filter here."""
    import h5py  # deferred: heavy, needed for packs only

    chunk = (1, 1, *shape[2:])
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_chunk(chunk)
    size = int(np.prod(chunk)) * dtype.itemsize
    parameters = (_BLOSC_FORMAT, _BLOSC_VERSION, dtype.itemsize, size, _LEVELS[dtype.kind], blosc().SHUFFLE, _LZ4)
    options.set_obj_track_times(False)  # packs of the same images are the same files
    options.set_filter(BLOSC_FILTER, h5py.h5z.FLAG_OPTIONAL, parameters)
    space, datatype = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    return h5py.Dataset(h5py.h5d.create(group.id, b"pixels", datatype, space, dcpl=options))


def _compress(image: np.ndarray) -> bytes:
    codec = blosc()
    level = _LEVELS[image.dtype.kind]
    frame: bytes = codec.compress_ptr(image.ctypes.data, image.size, image.itemsize, level, codec.SHUFFLE, _CODEC)
    return frame

"""Writing one region of a pack (`data.raster.packed_store`), and comparing it with the GeoTIFFs it was made of."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import whole_file
from data.constants import N_DATES, N_S1, N_S2
from data.raster.geotiff import GeoRef, check_image, read_with_georef
from data.raster.image_store import Folder
from data.raster.packed_store import BLOSC_FILTER, FORMAT, STACKS, RoiFile, blosc, checksum, patch_number, roi_path
from data.splits import MONO, SERIES

# Level 5 of lz4hc: decodes in a third of zstd's time, 0.28 for 0.83 ms an optical image, for 5 % more space. The
# lowest bytes of radar are noise, on which a higher level only spends time.
_CODEC, _LEVELS = "lz4hc", {"u": 5, "f": 1}
_BLOSC_FORMAT, _BLOSC_VERSION, _LZ4 = 2, 2, 1  # parameters of the filter, as its HDF5 plugin reads them

Listing = dict[str, dict[tuple[int, int], str]]
"""group -> (number of the patch, date) -> path below the root."""


def list_roi(images: Folder, dataset: str, roi: str) -> Listing:
    """The images of a region, whatever is there of it: downloads may be partial.

    Args:
        images: the folder of GeoTIFFs.
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        roi: "ROIs1868/73", of SEN12MS-CR "ROIs1970_fall/139".

    Raises:
        DataError: if there are two files for one date of one patch, or a file of another folder.
    """
    listing: Listing = {}
    for stack in STACKS[dataset]:
        found: dict[tuple[int, int], str] = {}
        for date, folder, start in _folders(dataset, roi, stack):
            for name in sorted(images.names(folder)):
                number, path = patch_number(name), f"{folder}/{name}"
                if number is None:
                    continue
                if not name.startswith(start):
                    raise DataError(f"{path} is misplaced: a name there begins with {start}; move or remove it")
                if (number, date) in found:
                    raise DataError(
                        f"two files for one date of one patch: {found[number, date]} and {path}; remove one"
                    )
                found[number, date] = path
        if found:
            listing[stack] = found
    return listing


def is_packed(images: Folder, listing: Listing, packed: Path) -> bool:
    """Whether a region's file holds these images, by their names and sizes."""
    if not packed.is_file():
        return False
    try:
        roi = RoiFile(packed)
        there = {(s[0], name): int(roi.stacks[s[0]].file_bytes[s[1:]]) for s, name in roi.slots()}
    except DataError:  # of a damaged disk: it is made again
        return False
    return there == {
        (stack, path.rpartition("/")[2]): images.file_bytes(path)
        for stack, paths in listing.items()
        for path in paths.values()
    }


def pack_roi(images: Folder, listing: Listing, out: str | Path, dataset: str, roi: str) -> Path:
    """Pack a region, compare the file with every GeoTIFF, and give it its name when all are equal.

    Args:
        images: the folder of GeoTIFFs.
        listing: what to pack, of `list_roi`.
        out: the pack's folder.
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        roi: the region.

    Returns:
        The file.

    Raises:
        DataError: if an image cannot be read, differs in size or type from the first of its group, or the file does
            not hold what the GeoTIFFs do; no file is left then.
    """
    import h5py

    target = roi_path(out, roi)
    with whole_file(target) as temporary:
        with h5py.File(temporary, "w", libver=("v110", "v110"), locking=False) as file:
            file.attrs.update({"format": FORMAT, "dataset": dataset, "roi": roi})
            places = _Places()
            for stack, paths in listing.items():
                _write_stack(file.create_group(stack), images, stack, paths, places)
            places.write(file)
        problems = list(differences(images, listing, RoiFile(temporary)))
        if problems:
            raise DataError(f"{roi} did not come out as it went in: {problems[0]}; check the disk and pack it again")
    return target


def differences(images: Folder, listing: Listing, packed: RoiFile) -> Iterator[str]:
    """Where a region's file differs from the GeoTIFFs: names, pixels to the bit, type, georeference, file sizes."""
    slots = {(slot[0], name): slot for slot, name in packed.slots()}
    for stack, paths in listing.items():
        for path in paths.values():
            slot = slots.pop((stack, path.rpartition("/")[2]), None)
            if slot is None:
                yield f"{path} is not in {packed.path}"
                continue
            pixels, georef = read_with_georef(os.path.join(images.root, path))
            try:
                stored = packed.pixels(slot)
            except DataError as error:
                yield str(error)
                continue
            if stored.dtype != pixels.dtype or stored.shape != pixels.shape or stored.tobytes() != pixels.tobytes():
                yield f"{path}: other pixels in {packed.path}"
            elif packed.georef(slot) != georef:
                yield f"{path}: another georeference in {packed.path}"
            elif int(packed.stacks[stack].file_bytes[slot[1:]]) != images.file_bytes(path):
                yield f"{path}: its file has another size than when it was packed into {packed.path}"
            elif not packed.intact(slot):
                yield f"{path}: its checksum in {packed.path} is of other pixels"
    for _, name in slots:
        yield f"{name} is in {packed.path} and not in {images.root}"


def damaged(packed: RoiFile) -> Iterator[str]:
    """The images of a region's file whose pixels are not those that were packed, by their checksums."""
    for slot, name in packed.slots():
        try:
            if not packed.intact(slot):
                yield f"{name} in {packed.path} has another checksum than when it was packed"
        except DataError as error:
            yield str(error)


@dataclass
class _Places:
    """Distinct georeferences, in the order in which they come."""

    rows: dict[tuple[Any, ...], int] = field(default_factory=dict)
    georefs: list[GeoRef] = field(default_factory=list)

    def row(self, georef: GeoRef) -> int:
        key = georef.bounds, tuple(georef.transform), _wkt(georef)
        if key not in self.rows:
            self.rows[key] = len(self.georefs)
            self.georefs.append(georef)
        return self.rows[key]

    def write(self, file: Any) -> None:
        file["bounds"] = np.array([georef.bounds for georef in self.georefs], np.float64).reshape(-1, 4)
        transforms = [tuple(georef.transform)[:6] for georef in self.georefs]
        file["transform"] = np.array(transforms, np.float64).reshape(-1, 6)
        file["crs"] = [_wkt(georef).encode() for georef in self.georefs]


def _write_stack(group: Any, images: Folder, stack: str, paths: Mapping[tuple[int, int], str], places: _Places) -> None:
    numbers = sorted({number for number, _ in paths})
    rows = {number: row for row, number in enumerate(numbers)}
    n_dates = N_DATES if stack in STACKS[SERIES] else 1
    bands = N_S1 if stack.lower() == "s1" else N_S2
    names = np.zeros((len(numbers), n_dates), f"S{max(len(path.rpartition('/')[2]) for path in paths.values())}")
    file_bytes, crc, place = (np.zeros(names.shape, kind) for kind in (np.int64, np.uint32, np.uint32))
    pixels: Any = None
    for (number, date), path in paths.items():
        image, georef = read_with_georef(os.path.join(images.root, path))
        if pixels is None:
            pixels = _create(group, (len(numbers), n_dates, *image.shape), image.dtype)
        check_image(path, image.shape, {image.dtype.name}, bands, pixels.shape[3:])
        if image.dtype != pixels.dtype:
            raise DataError(f"{path}: {image.dtype} values, those of the images before it are {pixels.dtype}")
        at = rows[number], date
        pixels.id.write_direct_chunk((*at, 0, 0, 0), _frame(image), 0)
        names[at], file_bytes[at] = path.rpartition("/")[2].encode(), images.file_bytes(path)
        crc[at], place[at] = checksum(image), places.row(georef)
    group["patch"] = np.array(numbers, np.int64)
    for name, table in {"names": names, "file_bytes": file_bytes, "crc32": crc, "place": place}.items():
        group.create_dataset(name, data=table, compression="gzip", shuffle=True)


def _create(group: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A data set with one image a chunk, marked as compressed by Blosc, whether HDF5 has that filter here or not."""
    import h5py

    chunk = (1, 1, *shape[2:])
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_chunk(chunk)
    size = int(np.prod(chunk)) * dtype.itemsize
    parameters = (_BLOSC_FORMAT, _BLOSC_VERSION, dtype.itemsize, size, _LEVELS[dtype.kind], blosc().SHUFFLE, _LZ4)
    options.set_filter(BLOSC_FILTER, h5py.h5z.FLAG_OPTIONAL, parameters)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    return h5py.Dataset(h5py.h5d.create(group.id, b"pixels", kind, space, dcpl=options))


def _frame(image: np.ndarray) -> bytes:
    codec = blosc()
    level = _LEVELS[image.dtype.kind]
    packed: bytes = codec.compress_ptr(image.ctypes.data, image.size, image.itemsize, level, codec.SHUFFLE, _CODEC)
    return packed


def _folders(dataset: str, roi: str, stack: str) -> Iterator[tuple[int, str, str]]:
    """Date, folder and how the names in it begin."""
    season, number = roi.split("/")
    if dataset == MONO:
        yield 0, f"{season}_{stack}/{stack}_{number}", f"{season}_{stack}_{number}_p"
        return
    for date in range(N_DATES):
        yield date, f"{roi}/{stack}/{date}", f"{stack.lower()}_{season}_{number}_ImgNo_{date}_"


def _wkt(georef: GeoRef) -> str:
    return "" if georef.crs is None else str(georef.crs.to_wkt())

"""Sentinel-2 products of one file a band: .SAFE and AWS layouts as folders or archives, and loose band files.

Files are bands by their names: `T33UUU_20170216T102101_B04.jp2`, `…_B04_10m.jp2`, `B04.jp2`. Files of
one folder whose names are the same apart from the band are one image; of a band at several resolutions the finest is
taken. What the values mean comes from the XML of the product.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date

from common.errors import DataError, list_some
from data.clouds.product_classes import CLASS_BANDS
from data.constants import REFLECTANCE_SCALE, S2_BANDS, band_index
from scenes.inputs.dates import find_date
from scenes.inputs.products import Band, ClassBand, OpticalProduct, Products, Reader
from scenes.inputs.rasters.dataset_pool import is_remote, open_raster
from scenes.inputs.rasters.raster import image_file
from scenes.inputs.readers.product_files import ProductFile, check_companions, files_in, is_zip, list_files
from scenes.inputs.readers.product_metadata import Metadata, read_metadata, start_in, tile_in
from scenes.inputs.values.bands import band_of
from scenes.inputs.values.optical import check_types
from scenes.inputs.values.scaling import declared_bands
from scenes.options import SceneInputs

_OPTIONAL = "B10"  # which L2A lacks
_CODE = re.compile(r"(?<![A-Za-z0-9])B(0[1-9]|1[0-2]|8A|[1-9])(?![A-Za-z0-9])", re.IGNORECASE)
_CLASSES = re.compile(r"(?<![A-Za-z0-9])SCL(?![A-Za-z0-9])", re.IGNORECASE)
_RESOLUTION = re.compile(r"(?<![A-Za-z0-9])(?:R?[126]0m|MSI)(?![A-Za-z0-9])", re.IGNORECASE)  # MSI: SCL has none
_RESOLUTION_FOLDER = re.compile(r"R?[126]0m", re.IGNORECASE)
_CLOUDS = re.compile(r"(?:MSK_)?CLASSI(?:_B00)?", re.IGNORECASE)
_OTHER = re.compile(  # files and folders of masks, angles and previews that have a band in their names
    r"MSK|MASK|DETFOO|QUALIT|DEFECT|SATURA|NODATA|TECQUA|ANGLE|ZENITH|AZIMUTH|PREVIEW|PVI", re.IGNORECASE
)
_LAYER = re.compile(r"(?<![A-Za-z0-9])(?:TCI|AOT|WVP|SCL)(?![A-Za-z0-9])", re.IGNORECASE)
_LANDSAT = re.compile(r"L[COTEM]0[4-9]_", re.IGNORECASE)
_SKIPPED = {"qi_data", "qi", "aux_data", "auxiliary", "preview", "html", "rep_info", "datastrip", "thumbnail"}
_GENERATED = re.compile(r"_(?:OPER|USER)_")  # names of before December 2016 begin with the time of processing
_SENSED = re.compile(r"_V(\d{8}T\d{6})")
_PARENTS = 6  # folders above a band file in which the XML of its product may lie


@dataclass
class _Image:
    """Files of one image.

    Attributes:
        path: the value of the flag that named them.
        folder: of the files, without folders of resolutions.
        key: what their names have in common.
        bands: the files of each band by its index.
        scl: the scene classifications.
    """

    path: str
    folder: str
    key: str
    bands: dict[int, list[ProductFile]] = field(default_factory=dict)
    scl: list[ProductFile] = field(default_factory=list)

    @property
    def granule(self) -> str:
        """The folder that contains IMG_DATA, or the folder of the bands where there is none."""
        parent, name = os.path.split(self.folder)
        return parent if name.upper() == "IMG_DATA" else self.folder

    @property
    def files(self) -> list[ProductFile]:
        """Of all bands."""
        return [file for files in self.bands.values() for file in files]

    @property
    def name(self) -> str:
        """For messages."""
        return os.path.join(self.folder, self.key) if self.key else self.folder


def split_name(name: str) -> tuple[int | None, str]:
    """The band that the name of a file holds, and what it has in common with those of other bands.

    Args:
        name: `T33UUU_20170216T102101_B04_10m.jp2`; band by code anywhere in it, or by common name at its end.

    Returns:
        The index of the band, None if there is none or several; and `T33UUU_20170216T102101`.
    """
    stem = os.path.splitext(name)[0]
    if _OTHER.search(stem) or _LANDSAT.match(stem):
        return None, stem
    codes = list(_CODE.finditer(stem))
    if len(codes) == 1:
        return band_index(codes[0][0].upper()), _without(stem, *codes[0].span())
    first, separator, last = stem.rpartition("_")
    band = band_of(last) if not codes and last.isalnum() and not last.isdigit() else None
    return band, _without(first, len(first), len(first)) if separator else ""


def _without(stem: str, begin: int, end: int) -> str:
    """A name without a part of it and without resolutions."""
    rest = _RESOLUTION.sub("", stem[:begin] + stem[end:])
    return re.sub(r"([._-])[._-]+", r"\1", rest).strip("._- ")


def _is_product(path: str) -> bool:
    if is_remote(path):
        return False
    if os.path.isdir(path) or is_zip(path):
        return True
    return _is_metadata(path)


def _is_metadata(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return re.search(rb"<(?:\w+:)?Level-(?:1C|2A)p?_(?:User_Product|Tile_ID)", start) is not None


def _is_band_file(path: str) -> bool:
    """Whether a file is an image of one band, or of another layer of a product, which its name says."""
    name = os.path.basename(path)
    if is_remote(path) or not os.path.isfile(path):
        return False
    if _LAYER.search(os.path.splitext(name)[0]):
        return ProductFile(path, "", name).is_image
    if split_name(name)[0] is None:
        return False
    try:
        with open_raster(path) as dataset:
            return bool(dataset.count == 1)
    except DataError:
        return False


def _read_products(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    """The images of folders and archives."""
    products: list[OpticalProduct] = []
    for path in paths:
        _require_optical(path, sensor)
        root = os.path.dirname(path) if os.path.isfile(path) and not is_zip(path) else path
        products += _read_tree(path, root, inputs)
    return Products(tuple(products))


def _read_tree(path: str, root: str, inputs: SceneInputs) -> list[OpticalProduct]:
    """The images of a folder or an archive.

    Args:
        path: the value of the flag that named it.
        root: the folder or archive.
        inputs: how it is read.
    """
    files = list_files(root)
    images = _group(path, root, files)
    archives = [] if is_zip(root) else [file.path for file in files if is_zip(file.path)]
    products = [product for archive in archives for product in _read_tree(path, archive, inputs)]
    if not images and not products:
        kind = "archive" if is_zip(root) else "folder"
        if any("MTD_MSIL" in file.name or file.name == "manifest.safe" for file in files):
            raise DataError(f"{root}: a product without band files (GRANULE/*/IMG_DATA); is the download complete?")
        raise DataError(
            f"{root}: no band files of Sentinel-2 in this {kind}; expected names like T33UUU_20170216T102101_B04.jp2"
        )
    files += [] if is_zip(root) else _files_above(root)
    return [*products, *(_product(image, files, inputs) for image in images)]


def _read_loose(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    """The images of band files, and what the XML beside them says."""
    products = []
    files = [ProductFile(path, os.path.dirname(path), os.path.basename(path)) for path in paths]
    _require_optical(paths[0], sensor)
    images = _group("", "", files)
    if not images:
        raise DataError(f"{paths[0]}: a layer of a product, but no bands of it are named; give these, or its folder")
    for image in images:
        image.path = image.files[0].path
        own = image.files[0].folder
        beside = files_in(own)
        products.append(_product(image, [*beside, *_files_above(own)], inputs))
    used = {file.path for image in images for file in (*image.files, *image.scl)}
    unused = [file.name for file in files if file.path not in used]
    return Products(tuple(products), notes=(f"not bands, not used: {list_some(unused, 6)}",) if unused else ())


def _require_optical(path: str, sensor: str) -> None:
    if sensor == "radar":
        raise DataError(
            f"{path}: --sar takes images of VV and VH that are terrain-corrected (GeoTIFF, STAC items or cubes), "
            "found a folder, an archive or bands of Sentinel-2"
        )


def _files_above(folder: str) -> list[ProductFile]:
    """The files between a folder of images or a granule of a product and the product's own folder."""
    files: list[ProductFile] = []
    parent, name = os.path.split(folder)
    while (
        _RESOLUTION_FOLDER.fullmatch(name)
        or name.upper() in ("IMG_DATA", "GRANULE")
        or os.path.basename(parent).upper() == "GRANULE"
    ):
        if name.upper() == "IMG_DATA" and os.path.isdir(os.path.join(parent, "QI_DATA")):
            files += files_in(os.path.join(parent, "QI_DATA"))
        files += files_in(parent)
        parent, name = os.path.split(parent)
    return files


def _group(path: str, root: str, files: Sequence[ProductFile]) -> list[_Image]:
    """Images by folder and name, in the order of their files.

    Args:
        path: the value of the flag that named them.
        root: folders below it of previews and masks are left out; empty for files that the user names.
        files: of any kind.
    """
    images: dict[tuple[str, str], _Image] = {}
    scl: dict[tuple[str, str], list[ProductFile]] = {}
    for file in files:
        if root and _SKIPPED & set(os.path.relpath(file.folder, root).lower().split(os.sep)):
            continue
        parent, own = os.path.split(file.folder)
        folder = parent if _RESOLUTION_FOLDER.fullmatch(own) else file.folder
        match = _CLASSES.search(os.path.splitext(file.name)[0])
        band, key = split_name(file.name)
        if match is not None and band is None and file.is_image:
            scl.setdefault((folder, _without(os.path.splitext(file.name)[0], *match.span())), []).append(file)
        elif band is not None and file.is_image:
            image = images.setdefault((folder, key), _Image(path, folder, key))
            image.bands.setdefault(band, []).append(file)
    for (folder, key), found in scl.items():
        owner = images.get((folder, key))
        if owner is not None:
            owner.scl += found
    return list(images.values())


def _product(image: _Image, files: Sequence[ProductFile], inputs: SceneInputs) -> OpticalProduct:
    missing = [name for index, name in enumerate(S2_BANDS) if index not in image.bands and name != _OPTIONAL]
    if missing:
        present = ", ".join(S2_BANDS[index] for index in sorted(image.bands))
        advice = (
            "name the files of all bands" if image.path in {file.path for file in image.files} else "fetch it again"
        )
        if "B08" in missing and len(missing) <= 3:
            advice = "Level-2A has B08 at 10 m only: process or fetch that resolution too"
        raise DataError(
            f"{image.name}: bands {', '.join(missing)} are missing, found {present}; a network needs all (B10 may be "
            f"absent); {advice}"
        )
    check_companions(image.files, files)
    metadata = _find_metadata(image, files)
    bands: list[Band | None] = [None] * len(S2_BANDS)
    sources: list[str] = []
    for index, candidates in sorted(image.bands.items()):
        bands[index], source = _open_band(image, index, candidates, metadata, inputs)
        sources.append(source)
    rasters = [band.raster for band in bands if band]
    crs = {raster.grid.crs_name for raster in rasters}
    if len(crs) > 1:
        raise DataError(f"{image.name}: its bands have several coordinate systems, {list_some(sorted(crs), 3)}")
    has_cirrus = bands[band_index(_OPTIONAL)] is not None
    level = metadata.level or _level_in(image.name) or ("L1C" if has_cirrus else "")
    return OpticalProduct(
        path=image.path,
        name=_name(image),
        bands=tuple(bands),
        day=metadata.day or _day_in(image),
        declared_by=next((source for source in sources if source), ""),
        level=level,
        overpass=metadata.start or ("" if _GENERATED.search(image.key) else start_in(image.key)),
        classes=_find_classes(image, files, inputs),
        notes=tuple(_notes(bands, inputs)),
    )


def _open_band(
    image: _Image, index: int, candidates: Sequence[ProductFile], metadata: Metadata, inputs: SceneInputs
) -> tuple[Band, str]:
    """The band from the finest of its files, and what declares its scale and offset."""
    by_size: dict[float, tuple[Band, str]] = {}
    first: dict[float, str] = {}
    for file in candidates:
        with open_raster(file.path, inputs.allow_vrt) as dataset:
            if dataset.count != 1:
                raise DataError(
                    f"{file.path}: {dataset.count} bands, expected one, {S2_BANDS[index]} as its name says; give "
                    "images of several bands by their own names"
                )
            check_types(file.path, dataset.dtypes)
            raster = image_file(file.path, dataset)
            positions = [int(position == index) for position in range(len(S2_BANDS))]
            declared, source = declared_bands(file.path, dataset, raster, positions)
        size = abs(raster.grid.transform.determinant)
        if size in by_size:
            raise DataError(f"{image.name}: two files of {S2_BANDS[index]}, {first[size]} and {file.path}; remove one")
        band = declared[index]
        assert band is not None
        by_size[size], first[size] = _with_metadata(band, index, metadata, source), file.path
    return by_size[min(by_size)]


def _with_metadata(band: Band, index: int, metadata: Metadata, source: str) -> tuple[Band, str]:
    """A band with what the product says about its values, where its file has no scale of its own."""
    nodata = band.nodata if band.nodata is not None else metadata.nodata
    if band.scale is not None:
        return Band(band.raster, 1, band.scale, band.offset, nodata), source
    stored = metadata.offset(index)
    quantification = metadata.quantification or REFLECTANCE_SCALE
    if stored is None:
        scale = 1 / quantification if metadata.quantification else None
        return Band(band.raster, 1, scale, band.offset, nodata), source or (metadata.names[0] if scale else "")
    return Band(band.raster, 1, 1 / quantification, stored / quantification, nodata), metadata.names[0]


def _find_metadata(image: _Image, files: Sequence[ProductFile]) -> Metadata:
    """Of the nearest folders above the bands, nearest first; files about other tiles or days are left out."""
    by_folder: dict[str, list[ProductFile]] = {}
    for file in files:
        by_folder.setdefault(file.folder, []).append(file)
    tile, day = tile_in(image.key), _day_in(image) if not _GENERATED.search(image.key) else None
    folder, parts = image.files[0].folder, list[Metadata]()
    for _ in range(_PARENTS):
        parts += [part for part in read_metadata(by_folder.get(folder, [])) if part.fits(tile, day)]
        if folder.upper().endswith(".SAFE"):
            break
        folder = os.path.dirname(folder)
    # products before tiles: only they list offsets, and the datatake is the same for all tiles
    parts.sort(key=lambda part: not (part.offsets or part.quantification))
    metadata = Metadata()
    for part in parts:
        metadata = metadata.fill(part)
    return metadata


def _day_in(image: _Image) -> date | None:
    """The date in the names of the files, or else of the folders of their product."""
    folder, names = image.folder, [image.key]
    while True:
        if image.path == image.files[0].path and not _in_product(folder):
            break  # files that the user names, whose folder may be called after any day
        names.append(os.path.basename(folder))
        if folder == image.path or folder.upper().endswith(".SAFE") or len(names) > _PARENTS:
            break
        folder = os.path.dirname(folder)
    for name in names:
        sensed = _SENSED.search(name)
        if sensed is not None:
            return find_date(sensed[1], {})
        day = None if _GENERATED.search(name) else find_date(name, {})
        if day is not None:
            return day
    return None


def _in_product(folder: str) -> bool:
    """Whether a folder is one of a .SAFE, or itself one."""
    return ".SAFE" in folder.upper() or os.path.basename(folder).upper() in ("IMG_DATA", "GRANULE")


def _level_in(name: str) -> str:
    levels = re.findall(r"L(?:evel-?)?(1C|2A)(?![A-Za-z0-9])", name)
    return f"L{levels[-1]}" if levels else ""


def _name(image: _Image) -> str:
    """The product, and its granule where its name does not say it."""
    parts = image.folder.split(os.sep)
    for number, part in enumerate(parts):
        if part.upper().endswith(".SAFE"):
            product = os.sep.join(parts[: number + 1])
            tile = tile_in(image.key)
            return product if not tile or f"T{tile}" in part else f"{product}, tile {tile}"
    return image.name


def _find_classes(image: _Image, files: Sequence[ProductFile], inputs: SceneInputs) -> ClassBand | None:
    """The scene classification, or else MSK_CLASSI of the same granule; None if there is none."""
    clouds = [
        file
        for file in files
        if _CLOUDS.fullmatch(os.path.splitext(file.name)[0])
        and file.folder in (image.granule, *(os.path.join(image.granule, name) for name in ("QI_DATA", "qi")))
        and file.is_image
    ]
    for kind, candidates in (("scl", image.scl), ("classi", clouds)):
        rasters = []
        for file in candidates:
            with open_raster(file.path, inputs.allow_vrt) as dataset:
                if dataset.count >= CLASS_BANDS[kind]:
                    rasters.append(image_file(file.path, dataset))
        if rasters:
            finest = min(rasters, key=lambda raster: abs(raster.grid.transform.determinant))
            return ClassBand(Band(finest, 1), kind)
    return None


def _notes(bands: Sequence[Band | None], inputs: SceneInputs) -> Iterator[str]:
    grids = [band.raster.grid for band in bands if band]
    finest = min(abs(grid.transform.a) for grid in grids)
    coarse = [
        name
        for name, band in zip(S2_BANDS, bands, strict=True)
        if band and abs(band.raster.grid.transform.a) > 1.01 * finest
    ]
    if coarse:
        yield f"{', '.join(coarse)} are brought to the pixels of the others ({inputs.resampling})"


READERS = (
    Reader("Sentinel-2 product (.SAFE, its zip, AWS layout)", _is_product, _read_products),
    Reader("band files of Sentinel-2", _is_band_file, _read_loose),
)

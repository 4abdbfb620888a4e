"""The files of products in folders and zip archives, which are listed but not unpacked."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from common.errors import DataError

_MOST_FILES, _DEEPEST = 20_000, 10  # of a folder or an archive: a product has 150, in folders six deep
_LARGEST_TEXT = 2**25  # bytes of an XML or JSON file; the largest of real products take 2 MB
_LARGEST_IMAGE = 2**32  # bytes of an image in an archive; the largest of real products take 150 MB
_LARGEST_RATIO = 200  # of unpacked to packed bytes; an image without data, the most compressible, reaches 100
_RATIO_FROM = 2**24  # bytes below which the ratio does not matter
_ZIP = b"PK\x03\x04"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_ENCRYPTED = 1  # a flag of archive members


@dataclass(frozen=True)
class ProductFile:
    """A file of a product.

    Attributes:
        path: as GDAL opens it.
        folder: its folder, in an archive below the archive's path.
        name: in the folder.
        archive: that contains it; empty for a file of its own.
        member: its name in the archive.
    """

    path: str
    folder: str
    name: str
    archive: str = ""
    member: str = ""

    def start(self, length: int = 16) -> bytes:
        """Its first bytes."""
        return self._read(length)

    @property
    def is_image(self) -> bool:
        """Whether it is a TIFF or JPEG 2000, by its first bytes."""
        start = self.start()
        return start.startswith(_TIFF) or start.startswith(_JPEG_2000)

    def read_text(self) -> bytes:
        """Its content, if it is small.

        Raises:
            DataError: if it cannot be read, or is too large.
        """
        content = self._read(_LARGEST_TEXT + 1)
        if len(content) > _LARGEST_TEXT:
            raise DataError(f"{self.path}: expected metadata of at most {_LARGEST_TEXT >> 20} MB; fetch it again")
        return content

    def _read(self, length: int) -> bytes:
        try:
            if not self.archive:
                with open(self.path, "rb") as file:
                    return file.read(length)
            with zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as file:
                return file.read(length)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise DataError(f"cannot read {self.path} ({error}); fetch it again") from error
        except Exception as error:  # zlib.error, lzma.LZMAError: what the members' compression raises
            raise DataError(f"damaged archive: {self.path} ({error}); fetch it again") from error


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which metadata of products do not have")


def read_xml(file: ProductFile) -> Element:
    """The root element of an XML file without entities.

    Raises:
        DataError: if it cannot be read, is too large, or has a DOCTYPE.
    """
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(file.read_text())
        root: Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"not readable as XML: {file.path} ({error}); fetch it again") from error
    return root


def is_zip(path: str) -> bool:
    """Whether a file is a zip archive, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError:
        return False


def list_files(path: str) -> list[ProductFile]:
    """The files of a folder and its subfolders, or of a zip archive, by name.

    Raises:
        DataError: if there are too many, or the archive is damaged, encrypted or a decompression bomb.
    """
    return list(_list_archive(path) if is_zip(path) else _list_folder(path))


def files_in(folder: str) -> list[ProductFile]:
    """The files of a folder without its subfolders."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from error
    return [
        ProductFile(os.path.join(folder, name), folder, name)
        for name in names
        if os.path.isfile(os.path.join(folder, name))
    ]


def _list_folder(path: str) -> Iterator[ProductFile]:
    count, depth = 0, path.rstrip(os.sep).count(os.sep)
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(folders) if folder.count(os.sep) - depth < _DEEPEST else []
        count += len(names)
        if count > _MOST_FILES:
            raise DataError(f"{path}: more than {_MOST_FILES:,} files; name the products in it one by one")
        for name in sorted(names):
            if os.path.isfile(os.path.join(folder, name)):  # neither pipe nor device
                yield ProductFile(os.path.join(folder, name), folder, name)


def _list_archive(path: str) -> Iterator[ProductFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"truncated or damaged archive: {path} ({error}); fetch it again") from error
    if len(members) > _MOST_FILES:
        raise DataError(f"{path}: {len(members):,} files, expected at most {_MOST_FILES:,}; unpack the product")
    for member in sorted(members, key=lambda member: member.filename):
        _check_member(path, member)
        folder, _, name = member.filename.rpartition("/")
        place = os.path.join(path, folder) if folder else path
        yield ProductFile(f"/vsizip/{{{path}}}/{member.filename}", place, name, path, member.filename)


def _check_member(path: str, member: zipfile.ZipInfo) -> None:
    name, size = member.filename, member.file_size
    if member.flag_bits & _ENCRYPTED:
        raise DataError(f"{path}: {name} is encrypted; unpack the archive with its password")
    if name.lower().endswith(".zip"):
        raise DataError(f"{path}: it contains {name}, an archive in an archive; unpack the outer one")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise DataError(f"{path}: {name!r} leads out of the archive; fetch it again")
    if size > _LARGEST_IMAGE or (size > _RATIO_FROM and size > _LARGEST_RATIO * max(1, member.compress_size)):
        raise DataError(
            f"{path}: {name} would unpack from {member.compress_size:,} to {size:,} bytes, more than an image of a "
            "product; fetch it again"
        )


def check_companions(images: Sequence[ProductFile], files: Sequence[ProductFile]) -> None:
    """Raise a `DataError` if masks or overviews beside images in an archive are no TIFF: GDAL opens any driver's."""
    by_path = {file.path: file for file in files}
    for image in images:
        for suffix in (".msk", ".ovr"):
            companion = by_path.get(image.path + suffix)
            if companion is not None and not companion.start().startswith(_TIFF):
                raise DataError(f"{companion.path}: expected a TIFF beside {image.name}; remove it")

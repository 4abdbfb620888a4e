"""The archives of both data sets: their addresses and sizes, and which of them a selection needs."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, UsageError
from common.json_files import Schema, read_json

TABLE = Path(__file__).with_name("archives.json")
FOLDERS = {"multi": "SEN12MSCRTS", "mono": "SEN12MSCR"}
_SCHEMA: Schema = {
    "type": "object",
    "required": ["archives"],
    "properties": {
        "archives": {
            "type": "object",
            "patternProperties": {
                "^(multi|mono)_[^_]+_.": {
                    "type": "object",
                    "required": ["url", "extracted_kib"],
                    "properties": {
                        "url": {"type": "string", "pattern": "^[!-~]*[./=][!-~]*[.](tar[.]gz|tgz)$"},
                        "extracted_kib": {"type": "integer", "minimum": 0, "maximum": 2**50},
                    },
                }
            },
            "additionalProperties": False,
        }
    },
}
SEASONS = ("spring", "summer", "fall", "winter")


@dataclass(frozen=True)
class Archive:
    """One archive of the public releases.

    Attributes:
        key: its name in the table, such as "multi_s2_africa_test".
        url: its address.
        file_name: its name on disk.
        extracted_bytes: disk space of its files with blocks of 4 KiB. The compressed size is not in the table: the
            server reports it.
    """

    key: str
    url: str
    file_name: str
    extracted_bytes: int

    @property
    def folder(self) -> str:
        """The folder of its data set, as the loaders expect it."""
        return FOLDERS[self.key.split("_")[0]]


def read_table(path: str | Path = TABLE) -> dict[str, Archive]:
    """Read the table of archives.

    Args:
        path: a JSON file in the form of `util/download/archives.json`.

    Returns:
        Archives by key.

    Raises:
        DataError: if the file is no such table.
    """
    advice = f"expected the form of {TABLE}"
    entries = read_json(path, _SCHEMA, advice)["archives"]
    try:
        return {
            key: Archive(key, entry["url"], _file_name(entry["url"]), 1024 * int(entry["extracted_kib"]))
            for key, entry in entries.items()
        }
    except ValueError as error:
        raise DataError(f"{path}: {error}; {advice}") from error


def choose_archives(
    table: dict[str, Archive], dataset: str, region: str, split: str, season: str, sensor: str
) -> list[Archive]:
    """The archives that contain a selection.

    Args:
        table: from `read_table`.
        dataset: "SEN12MSCRTS", "SEN12MSCR" or "both".
        region: of SEN12MSCRTS, or "all".
        split: of SEN12MSCRTS, or "all"; train and val share archives.
        season: of SEN12MSCR, or "all"; its archives are divided by season, not by region or split.
        sensor: "S1", "S2" or "all"; S2 of SEN12MSCR includes clear and cloudy images.

    Returns:
        Archives in the order of the table.

    Raises:
        UsageError: if no archive matches, or an option belongs to the other data set.
    """
    if dataset == "SEN12MSCR" and (region != "all" or split != "all"):
        raise UsageError("SEN12MSCR is divided by --season only, not by --region or --split: omit those")
    if dataset == "SEN12MSCRTS" and season != "all":
        raise UsageError("--season divides SEN12MSCR only: omit it, or use --dataset both")
    chosen = []
    for key, archive in table.items():
        kind, band, *rest = key.split("_")
        if dataset not in (archive.folder, "both") or sensor not in (band.upper(), "all"):
            continue
        if kind == "multi":
            splits = ("test", "all") if rest[-1] == "test" else ("train", "val", "all")
            if region in (rest[0], "all") and split in splits:
                chosen.append(archive)
        elif season in (rest[-1], "all"):
            chosen.append(archive)
    if not chosen:
        raise UsageError("no archive matches this selection; --list shows all")
    return chosen


def _file_name(url: str) -> str:
    """The file name of an address, `…/download?path=/&files=s2_africa.tar.gz` or `…/s2_africa.tar.gz`."""
    name = url.rsplit("files=", 1)[-1] if "files=" in url else url.rsplit("/", 1)[-1]
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"no plain file name at the end of {url!r}")
    return name

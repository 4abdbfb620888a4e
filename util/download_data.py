"""Download SEN12MS-CR-TS and SEN12MS-CR, and unpack them as the loaders expect.

    python -m util.download_data --list
    python -m util.download_data --out DATA --dataset SEN12MSCRTS --region europa --split test

Files go to DATA/SEN12MSCRTS and DATA/SEN12MSCR. A cut download goes on where it stopped when the same command is run
again; archives that are already unpacked are left out.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError, run_command
from common.files import write_json
from util.download.archives import REGIONS, SEASONS, SENSORS, SPLITS, TABLE, Archive, choose_archives, read_table
from util.download.extract import extract
from util.download.fetch import check_url, fetch, remote_size

DONE = ".downloaded"  # folder of notes on what is unpacked
MOST_PACKED = 20  # no archive of images packs to less than a twentieth
SLACK = 1.02  # folders, rounding
EXPECTED_WITHIN = 0.01  # relative difference between what was unpacked and the table


def download(archives: Sequence[Archive], out: str | Path, url_base: str | None = None, keep: bool = False) -> None:
    """Fetch, check and unpack archives one after the other.

    Args:
        archives: which.
        out: folder that gets SEN12MSCRTS and SEN12MSCR.
        url_base: fetch `url_base/FILE_NAME` instead of the published addresses.
        keep: leave the archives there after they are unpacked.

    Raises:
        DataError: if the disk is too small for all of them (nothing is fetched then), the server fails, or an
            archive is damaged, hostile or too large.
    """
    out = Path(out)
    left = [archive for archive in archives if not (out / DONE / f"{archive.key}.json").exists()]
    for archive in archives:
        if archive not in left:
            print(f"{archive.key}: already there")
    if not left:
        return
    urls = {archive.key: _url(archive, url_base) for archive in left}
    _check_disk(out, left, _packed_sizes(left, out, urls), keep)
    for archive in left:
        packed = out / archive.file_name
        if not packed.exists():
            _fetch_with_bar(urls[archive.key], packed, archive)
        size = packed.stat().st_size
        n_files, on_disk = _extract_with_bar(packed, out / archive.folder, archive)
        if abs(on_disk - archive.extracted_bytes) > EXPECTED_WITHIN * archive.extracted_bytes:
            print(
                f"warning: {archive.key} unpacked to {_gb(on_disk)}, the table says {_gb(archive.extracted_bytes)}: "
                "has the release changed?"
            )
        write_json(out / DONE / f"{archive.key}.json", {"bytes": size, "files": n_files, "unpacked_bytes": on_disk})
        if not keep:
            packed.unlink()
        print(f"{archive.key}: {n_files} files in {out / archive.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    table = read_table(args.table)
    archives = choose_archives(table, args.dataset, args.region, args.split, args.season, args.sensor)
    if args.list:
        _print_list(archives)
        return 0
    if args.out is None:
        raise UsageError("--out DIR is missing: where should the data go? (--list shows sizes without fetching)")
    if args.url_base is not None:
        check_url(args.url_base)
    download(archives, args.out, args.url_base, args.keep_archives)
    folders = sorted({archive.folder for archive in archives})
    print("done: " + ", ".join(f"{args.out}/{folder}" for folder in folders))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m util.download_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", metavar="DIR", help="folder that gets SEN12MSCRTS and SEN12MSCR")
    parser.add_argument("--dataset", choices=("SEN12MSCRTS", "SEN12MSCR", "both"), default="both")
    parser.add_argument("--region", choices=("all", *REGIONS), default="all", help="of SEN12MSCRTS (all)")
    parser.add_argument(
        "--split", choices=SPLITS, default="all", help="of SEN12MSCRTS (all); train and val lie in the same archives"
    )
    parser.add_argument("--season", choices=("all", *SEASONS), default="all", help="of SEN12MSCR (all)")
    parser.add_argument("--sensor", choices=(*SENSORS, "all"), default="all", help="S1 radar, S2 optical (all)")
    parser.add_argument("--list", action="store_true", help="show the chosen archives and their sizes, fetch nothing")
    parser.add_argument("--keep-archives", action="store_true", help="leave the .tar.gz there after unpacking")
    parser.add_argument("--url-base", metavar="URL", help="fetch URL/FILE_NAME instead, for a mirror or a test server")
    parser.add_argument("--table", default=TABLE, metavar="JSON", help="another table of archives")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _url(archive: Archive, base: str | None) -> str:
    url = archive.url if base is None else f"{base.rstrip('/')}/{archive.file_name}"
    check_url(url)
    return url


def _packed_sizes(archives: Sequence[Archive], out: Path, urls: dict[str, str]) -> dict[str, int]:
    """Bytes of each archive: on disk, or as the server tells, or as many as it can have at most."""
    sizes = {}
    for archive in archives:
        packed = out / archive.file_name
        told = packed.stat().st_size if packed.exists() else remote_size(urls[archive.key])
        if told is not None and told > _largest(archive):
            raise DataError(
                f"{urls[archive.key]}: {told} bytes, but {archive.key} cannot have more than {_largest(archive)}; "
                "is the address right?"
            )
        sizes[archive.key] = archive.extracted_bytes if told is None else told
    return sizes


def _largest(archive: Archive) -> int:
    """No archive is larger than its files on disk: a tar header is smaller than what block sizes waste."""
    return int(SLACK * archive.extracted_bytes) + (1 << 20)


def _check_disk(out: Path, archives: Sequence[Archive], packed: dict[str, int], keep: bool) -> None:
    unpacked = sum(min(archive.extracted_bytes, MOST_PACKED * packed[archive.key]) for archive in archives)
    missing = [packed[archive.key] - _have(out, archive) for archive in archives]
    needed = unpacked + (sum(missing) if keep else max(missing))
    place = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    print(f"{len(archives)} archives, {_gb(sum(packed.values()))} packed, {_gb(unpacked)} unpacked; {_gb(free)} free")
    if free < needed:
        raise DataError(
            f"{out}: {_gb(needed)} are needed for archives and files, {_gb(free)} are free; choose fewer regions, "
            "splits or sensors, or another disk. Nothing was fetched"
        )


def _have(out: Path, archive: Archive) -> int:
    paths = (out / archive.file_name, out / f"{archive.file_name}.part")
    return sum(path.stat().st_size for path in paths if path.exists())


def _fetch_with_bar(url: str, packed: Path, archive: Archive) -> None:
    from tqdm import tqdm

    with tqdm(desc=f"fetch {archive.key}", unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fetch(url, packed, _largest(archive), show)


def _extract_with_bar(packed: Path, root: Path, archive: Archive) -> tuple[int, int]:
    from tqdm import tqdm

    size = packed.stat().st_size
    with tqdm(total=size, desc=f"unpack {archive.key}", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        return extract(packed, root, _largest(archive), lambda done: _advance(bar, done))


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _print_list(archives: Sequence[Archive]) -> None:
    print(f"{'archive':24} {'unpacked':>10}  goes to      file")
    for archive in archives:
        print(f"{archive.key:24} {_gb(archive.extracted_bytes):>10}  {archive.folder:12} {archive.file_name}")
    print(f"{len(archives)} archives, {_gb(sum(archive.extracted_bytes for archive in archives))} unpacked")
    print("(packed sizes are asked from the server before anything is fetched)")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


if __name__ == "__main__":
    raise SystemExit(run_command(main))

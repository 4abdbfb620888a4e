"""Download SEN12MS-CR-TS and SEN12MS-CR, and extract them into the layout of the loaders.

    python -m util.download_data --list
    python -m util.download_data --out DATA --dataset SEN12MSCRTS --region europa --split test

Files go to DATA/SEN12MSCRTS and DATA/SEN12MSCR. Run the same command again to resume an interrupted download; extracted
archives are skipped.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import check_disk_space, write_json
from common.locks import folder_lock
from common.ranges import number
from data.constants import REGIONS, SPLITS
from util.download.archives import SEASONS, TABLE, Archive, choose_archives, read_table
from util.download.extract import extract
from util.download.fetch import check_url, fetch, remote_size

DONE = ".downloaded"  # folder of notes on extracted archives
MOST_PACKED = 20  # largest compression ratio of an archive of images
SIZE_LIMIT = 1.02  # times the size in the table that an archive may have: folders, rounding
EXPECTED_WITHIN = 0.01  # relative difference between the extracted size and the table


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog="python -m util.download_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", metavar="DIR", help="folder for SEN12MSCRTS and SEN12MSCR")
    parser.add_argument("--dataset", choices=("SEN12MSCRTS", "SEN12MSCR", "both"), default="both")
    parser.add_argument("--region", choices=REGIONS, default="all", help="of SEN12MSCRTS (all)")
    parser.add_argument(
        "--split", choices=SPLITS, default="all", help="of SEN12MSCRTS (all); train and val share their archives"
    )
    parser.add_argument("--season", choices=("all", *SEASONS), default="all", help="of SEN12MSCR (all)")
    parser.add_argument("--sensor", choices=("S1", "S2", "all"), default="all", help="S1 radar, S2 optical (all)")
    parser.add_argument("--list", action="store_true", help="list the selected archives and their sizes, then exit")
    parser.add_argument("--keep-archives", action="store_true", help="keep the .tar.gz files after extraction")
    parser.add_argument("--url-base", metavar="URL", help="fetch URL/FILE_NAME instead, for a mirror or a test server")
    parser.add_argument("--table", default=TABLE, metavar="JSON", help="another table of archives")
    parser.add_argument(
        "--size-limit",
        type=number(float, 1, 1000),
        default=SIZE_LIMIT,
        metavar="FACTOR",
        help=f"accept archives that unpack to FACTOR times their size in the table ({SIZE_LIMIT})",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Download from the command line."""
    args = build_parser().parse_args(argv)
    table = read_table(args.table)
    archives = choose_archives(table, args.dataset, args.region, args.split, args.season, args.sensor)
    if args.list:
        _print_list(archives)
        return 0
    if args.out is None:
        raise UsageError("--out DIR is missing: where should the data go? (--list shows sizes without fetching)")
    if args.url_base is not None:
        check_url(args.url_base)
    download(archives, args.out, args.url_base, args.keep_archives, args.size_limit)
    folders = sorted({archive.folder for archive in archives})
    print("done: " + ", ".join(f"{args.out}/{folder}" for folder in folders))
    return 0


def download(
    archives: Sequence[Archive],
    out: str | Path,
    url_base: str | None = None,
    keep: bool = False,
    size_limit: float = SIZE_LIMIT,
) -> None:
    """Download, check and extract archives one by one.

    Args:
        archives: the archives.
        out: folder for SEN12MSCRTS and SEN12MSCR.
        url_base: fetch `url_base/FILE_NAME` instead of the published addresses.
        keep: keep the archives after extraction.
        size_limit: times the size in the table that an archive may have.

    Raises:
        DataError: if the disk is too small for all of them (nothing is fetched then), the server fails, or an
            archive is damaged, hostile or too large.
    """
    out = Path(out)
    missing = []
    for archive in archives:
        if _is_done(out, archive):
            print(f"{archive.key}: already there")
        else:
            missing.append(archive)
    if not missing:
        return
    urls = {archive.key: _url(archive, url_base) for archive in missing}
    _check_disk(out, missing, _packed_sizes(missing, out, urls, size_limit), keep)
    for archive in missing:
        with folder_lock(out / archive.file_name, "--out or other archives", as_sibling=True):
            if _is_done(out, archive):  # by another command in the meantime
                print(f"{archive.key}: already there")
            else:
                _download(archive, out, urls[archive.key], keep, _largest(archive, size_limit))


def _download(archive: Archive, out: Path, url: str, keep: bool, largest: int) -> None:
    """Fetch and extract an archive of at most `largest` bytes, and note that it is done."""
    packed = out / archive.file_name
    if not packed.exists():
        with _progress_bar(f"fetch {archive.key}") as show:
            fetch(url, packed, largest, show)
    size = packed.stat().st_size
    with _progress_bar(f"extract {archive.key}", size) as show:
        n_files, on_disk = extract(packed, out / archive.folder, largest, show)
    if abs(on_disk - archive.extracted_bytes) > EXPECTED_WITHIN * archive.extracted_bytes:
        print(
            f"warning: {archive.key} extracted to {_gb(on_disk)}, the table says {_gb(archive.extracted_bytes)}: "
            "has the release changed?"
        )
    write_json(out / DONE / f"{archive.key}.json", {"bytes": size, "files": n_files, "unpacked_bytes": on_disk})
    if not keep:
        packed.unlink()
    print(f"{archive.key}: {n_files} files in {out / archive.folder}")


def _is_done(out: Path, archive: Archive) -> bool:
    return (out / DONE / f"{archive.key}.json").exists()


def _url(archive: Archive, base: str | None) -> str:
    url = archive.url if base is None else f"{base.rstrip('/')}/{archive.file_name}"
    check_url(url)
    return url


def _packed_sizes(archives: Sequence[Archive], out: Path, urls: dict[str, str], size_limit: float) -> dict[str, int]:
    """Bytes of each archive: on disk, as reported by the server, or their upper bound."""
    sizes = {}
    for archive in archives:
        packed = out / archive.file_name
        size = packed.stat().st_size if packed.exists() else remote_size(urls[archive.key])
        largest = _largest(archive, size_limit)
        if size is not None and size > largest:
            raise DataError(
                f"{urls[archive.key]}: {size} bytes, but {archive.key} cannot have more than {largest}; "
                "is the address right? If the release has grown add --size-limit"
            )
        sizes[archive.key] = archive.extracted_bytes if size is None else size
    return sizes


def _largest(archive: Archive, size_limit: float) -> int:
    """Upper bound of an archive's size: tar headers are smaller than the rounding of files to disk blocks."""
    return int(size_limit * archive.extracted_bytes) + (1 << 20)


def _check_disk(out: Path, archives: Sequence[Archive], packed: dict[str, int], keep: bool) -> None:
    extracted = sum(min(archive.extracted_bytes, MOST_PACKED * packed[archive.key]) for archive in archives)
    missing = [packed[archive.key] - _downloaded(out, archive) for archive in archives]
    print(f"{len(archives)} archives, {_gb(sum(packed.values()))} packed, {_gb(extracted)} extracted")
    advice = "choose fewer regions, splits or sensors, or another disk. Nothing was fetched"
    check_disk_space(out, extracted + (sum(missing) if keep else max(missing)), advice)


def _downloaded(out: Path, archive: Archive) -> int:
    paths = (out / archive.file_name, out / f"{archive.file_name}.part")
    return sum(path.stat().st_size for path in paths if path.exists())


@contextmanager
def _progress_bar(label: str, n_bytes: int | None = None) -> Iterator[Callable[..., None]]:
    """A function that shows the bytes done, and those in total if they become known, in a progress bar."""
    from tqdm import tqdm  # deferred: keeps --help fast

    with tqdm(desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(done: int, total: int | None = n_bytes) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _print_list(archives: Sequence[Archive]) -> None:
    print(f"{'archive':24} {'unpacked':>10}  goes to      file")
    for archive in archives:
        print(f"{archive.key:24} {_gb(archive.extracted_bytes):>10}  {archive.folder:12} {archive.file_name}")
    print(f"{len(archives)} archives, {_gb(sum(archive.extracted_bytes for archive in archives))} unpacked")
    print("(the server reports the packed sizes before anything is fetched)")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


if __name__ == "__main__":
    raise SystemExit(run_command(main))

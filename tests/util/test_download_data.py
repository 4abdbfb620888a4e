"""The downloader with a server on 127.0.0.1: resume, sizes, hostile archives, disk, selection."""

import gzip
import io
import json
import re
import shutil
import ssl
import tarfile
import threading
import tracemalloc
import urllib.error
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from common.cli import run_command
from common.errors import DataError, UsageError
from tests.support.hard_use import start_two
from util import download_data
from util.download import fetch as archive_fetch
from util.download.archives import choose_archives, read_table
from util.download.extract import extract, place_of

MULTI = "ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_171.tif"
MONO = "ROIs1970_fall_s2/s2_139/ROIs1970_fall_s2_139_p839.tif"
NOISE = np.random.default_rng(0).bytes(300_000)  # incompressible: the archive is longer than one read of the server


class Server(ThreadingHTTPServer):
    """Serves `files` by name; after `cut_after` bytes the connection breaks once."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cut_after, self.ranges, self.reported, self.etag = (
            {},
            [],
            None,
            True,
            None,
            '"v1"',
        )

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, body = self.server, self.server.files.get(self.path.lstrip("/"))
        requested = self.headers.get("Range")
        server.requests.append(requested)
        if body is None:
            self.send_error(404, "no such file")
            return
        start, status = 0, 200
        if requested and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start, status = int(requested.split("=")[1].split("-")[0]), 206
            if start >= len(body):
                self.send_error(416, "range")
                return
        self.send_response(status)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(server.reported or len(body) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        part = body[start:]
        if server.cut_after is not None and len(server.requests) > 1:  # the first request is for the size only
            part, server.cut_after = part[: server.cut_after], None
            self.close_connection = True
        try:
            self.wfile.write(part)
        except (BrokenPipeError, ConnectionResetError):  # the client read only the headers
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(archive_fetch.time, "sleep", lambda seconds: None)


def pack(members):
    """A .tar.gz of (name or TarInfo, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def table(tmp_path):
    """Three small archives in the format of the real table."""
    sizes = {"multi_s2_africa": 296, "multi_s1_africa_test": 296, "mono_s2_fall": 296}
    names = ("s2_africa.tar.gz", "s1_africa_test.tar.gz", "ROIs1970_fall_s2.tar.gz")
    entries = {
        key: {"url": f"https://example.invalid/download?path=/&files={name}", "extracted_kib": kib}
        for (key, kib), name in zip(sizes.items(), names, strict=True)
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"archives": entries}))
    return path


def command(server, table, out, *more):
    return ["--out", str(out), "--url-base", server.base, "--table", str(table), *more]


def test_archives_merge_into_the_layout_of_the_loaders(server, table, tmp_path, capsys):
    radar = MULTI.replace("S2/", "S1/").replace("s2_", "s1_")
    server.files = {
        "s2_africa.tar.gz": pack([(f"africa/{MULTI}", NOISE), ("africa/readme.txt", b"hello")]),
        "s1_africa_test.tar.gz": pack([(f"./s1_africa_test/{radar}", NOISE)]),
        "ROIs1970_fall_s2.tar.gz": pack([(MONO, NOISE)]),
    }
    assert download_data.main(command(server, table, tmp_path / "out")) == 0
    for place in (f"SEN12MSCRTS/{MULTI}", f"SEN12MSCRTS/{radar}", f"SEN12MSCR/{MONO}"):
        assert (tmp_path / "out" / place).read_bytes() == NOISE
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and ".downloaded" not in path.parts]
    assert len(files) == 3  # neither archive, part, note nor readme
    assert "warning" not in capsys.readouterr().out  # 300,000 bytes are 74 blocks of 4 KiB, as in the table
    n_requests = len(server.requests)
    assert download_data.main(command(server, table, tmp_path / "out")) == 0
    assert len(server.requests) == n_requests  # no further requests
    assert "already there" in capsys.readouterr().out


def single_archive(server, content=None):
    server.files = {"s2_africa.tar.gz": content or pack([(f"africa/{MULTI}", NOISE)])}
    return "--dataset", "SEN12MSCRTS", "--sensor", "S2"


def test_of_two_downloads_of_one_archive_one_works(server, table, tmp_path, commands):
    choice = single_archive(server)
    words = command(server, table, tmp_path / "out", *choice)
    first, second = start_two(commands, "util.download_data", words, tmp_path / "out" / ".s2_africa.tar.gz.lock")
    assert first.code == 0, first.text
    assert second.code == 1, second.text
    holder = rf"error: {tmp_path}/out/s2_africa.tar.gz is in use by util.download_data \(process {first.pid} on "
    assert re.search(holder, second.text)
    assert (tmp_path / "out" / "SEN12MSCRTS" / MULTI).read_bytes() == NOISE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".downloaded", "SEN12MSCRTS"]


def test_cut_connection_is_resumed_by_range(server, table, tmp_path):
    choice = single_archive(server)
    server.cut_after = 100_000
    assert download_data.main(command(server, table, tmp_path / "out", *choice)) == 0
    assert server.requests == [None, None, "bytes=100000-"]
    assert (tmp_path / "out/SEN12MSCRTS" / MULTI).read_bytes() == NOISE


def half_done(server, out):
    """A .part of a killed run."""
    content = server.files["s2_africa.tar.gz"]
    out.mkdir()
    (out / "s2_africa.tar.gz.part").write_bytes(content[:50_000])
    note = {"url": f"{server.base}/s2_africa.tar.gz", "version": '"v1"', "size": len(content)}
    (out / "s2_africa.tar.gz.part.json").write_text(json.dumps(note))


@pytest.mark.parametrize("change", ["nothing", "file changed", "no ranges", "part too long", "note of another url"])
def test_part_of_an_earlier_run(server, table, tmp_path, change):
    choice = single_archive(server)
    half_done(server, tmp_path / "out")
    if change == "file changed":  # resuming would mix two files
        server.etag = '"v2"'
        server.files["s2_africa.tar.gz"] = pack([(f"africa/{MULTI}", NOISE[::-1])])
    elif change == "no ranges":
        server.ranges = False
    elif change == "part too long":
        (tmp_path / "out/s2_africa.tar.gz.part").write_bytes(b"x" * 400_000)
    elif change == "note of another url":
        (tmp_path / "out/s2_africa.tar.gz.part.json").write_text('{"url": "https://elsewhere.invalid/x"}')
    assert download_data.main(command(server, table, tmp_path / "out", *choice)) == 0
    expected = NOISE[::-1] if change == "file changed" else NOISE
    assert (tmp_path / "out/SEN12MSCRTS" / MULTI).read_bytes() == expected
    if change == "nothing":
        assert server.requests == [None, "bytes=50000-"]


def test_connection_that_never_ends_well_keeps_the_part(server, table, tmp_path):
    choice = single_archive(server)
    server.reported = len(server.files["s2_africa.tar.gz"]) + 1000  # always 1000 bytes short
    server.ranges = False
    with pytest.raises(DataError, match=r"closed after .* run the same command again"):
        download_data.main(command(server, table, tmp_path / "out", *choice))
    assert (tmp_path / "out/s2_africa.tar.gz.part").exists()
    assert not (tmp_path / "out/SEN12MSCRTS").exists()


def test_larger_than_the_archive_can_be(server, table, tmp_path):
    choice = single_archive(server)
    server.reported = 10_000_000  # the table allows 296 KiB, 2 % and a MiB
    with pytest.raises(DataError, match="10000000 bytes, but multi_s2_africa cannot have more"):
        download_data.main(command(server, table, tmp_path / "out", *choice))
    assert not list((tmp_path / "out").rglob("*"))


def test_web_page_instead_of_an_archive(server, table, tmp_path):
    choice = single_archive(server, b"<html>please log in</html>")
    with pytest.raises(DataError, match="no .tar.gz archive"):
        download_data.main(command(server, table, tmp_path / "out", *choice))
    assert not (tmp_path / "out/s2_africa.tar.gz").exists()
    assert not (tmp_path / "out/s2_africa.tar.gz.part").exists()


def test_server_refuses(server, table, tmp_path):
    with pytest.raises(DataError, match="returned 404"):
        download_data.main(command(server, table, tmp_path / "out"))


def test_disk_too_small_fetches_nothing(server, table, tmp_path, monkeypatch):
    choice = single_archive(server)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 500_000))  # archive and files: 600 kB
    with pytest.raises(DataError, match="out needs .* GB are free; .*Nothing was fetched"):
        download_data.main(command(server, table, tmp_path / "out", *choice))
    assert not (tmp_path / "out").exists()
    assert server.requests == [None]  # the size only


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("../../ROIs1868/73/evil.tif", b"x"),
        ("/ROIs1868/73/evil.tif", b"x"),
        ("africa/ROIs1868/../../../evil.tif", b"x"),
        ("africa/ROIs1868/73/..\\evil.tif", b"x"),
        (link("africa/ROIs1868/73", "/tmp"), b""),
        (link("africa/ROIs1868/passwd", "/etc/passwd", tarfile.LNKTYPE), b""),
        (link("africa/ROIs1868/fifo", "", tarfile.FIFOTYPE), b""),
        (link("africa/ROIs1868/device", "", tarfile.CHRTYPE), b""),
    ],
)
def test_hostile_archive_leaves_nothing(tmp_path, member, content):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack([(f"africa/{MULTI}", NOISE), (member, content)]))
    with pytest.raises(DataError, match="refused, "):
        extract(archive, tmp_path / "deep/er/root", 10**9)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_archive_that_unpacks_without_end(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack([(f"africa/{MULTI}", bytes(5_000_000))]))  # 5 kB packed
    with pytest.raises(DataError, match="unpacks to more than 1000000"):
        extract(archive, tmp_path / "root", 1_000_000)
    assert not list((tmp_path / "root").rglob("*"))


def header(kind: bytes, size: int) -> bytes:
    """A header of 512 bytes that declares `size` bytes of content."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_gigabytes_is_not_read(tmp_path, kind):
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write(header(kind, 2 << 30))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match="refused, it holds a header of more than 65536 bytes"):
        extract(archive, tmp_path / "root", 10**12)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_headers_without_end_are_not_read(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write((header(tarfile.GNUTYPE_LONGNAME, 10) + bytes(512)) * 5000)  # tarfile reads them recursively
    with pytest.raises(DataError, match="refused, it holds a header of more than 65536 bytes"):
        extract(archive, tmp_path / "root", 10**12)


def test_an_archive_of_countless_empty_files_is_refused(tmp_path):
    archive, info = tmp_path / "a.tar.gz", tarfile.TarInfo("readme")
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write(info.tobuf() * 20_020)
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes or 20015 files"):
        extract(archive, tmp_path / "root", 1_000_000)


@pytest.mark.parametrize("name", [f"africa/{MULTI}", "africa/readme.txt"])
def test_members_that_are_left_out_count_too(tmp_path, name):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack([(name, bytes(5_000_000)), (f"africa/{MULTI}", NOISE)]))
    with pytest.raises(DataError, match="unpacks to more than 1000000"):
        extract(archive, tmp_path / "root", 1_000_000)


def test_what_follows_the_last_member_is_limited(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack([(f"africa/{MULTI}", NOISE)]) + gzip.compress(bytes(1 << 25), 1))
    with pytest.raises(DataError, match="or as much after its last member"):
        extract(archive, tmp_path / "root", 10**9)


def test_a_release_that_has_grown_is_accepted_on_demand(server, table, tmp_path):
    server.files = {"s2_africa.tar.gz": pack([(f"africa/{MULTI}", NOISE * 10)])}
    choice = ("--dataset", "SEN12MSCRTS", "--sensor", "S2")
    with pytest.raises(DataError, match="cannot have more than"):
        download_data.main(command(server, table, tmp_path / "out", *choice))
    assert download_data.main(command(server, table, tmp_path / "out", *choice, "--size-limit", "20")) == 0
    assert (tmp_path / "out/SEN12MSCRTS" / MULTI).read_bytes() == NOISE * 10


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_damaged_archive_is_removed(tmp_path, damage):
    content = bytearray(pack([(f"africa/{MULTI}", NOISE)]))
    if damage == "cut":
        del content[-2000:]
    else:
        content[-6] ^= 1  # the checksum at the end of the file
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged .* removed"):
        extract(archive, tmp_path / "root", 10**9)
    assert not archive.exists()
    assert not list((tmp_path / "root").rglob("*"))


def test_archive_without_regions(tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack([("pictures/cat.tif", b"x")]))
    with pytest.raises(DataError, match="no folder of ROIs"):
        extract(archive, tmp_path / "root", 10**9)


def test_places():
    assert str(place_of(f"africa/{MULTI}")) == MULTI
    assert str(place_of(f"./{MONO}")) == MONO
    assert place_of("africa/readme.txt") is None


def test_kept_archive_and_changed_release(server, table, tmp_path, capsys):
    choice = single_archive(server, pack([(f"africa/{MULTI}", NOISE[:1000])]))
    assert download_data.main(command(server, table, tmp_path / "out", *choice, "--keep-archives")) == 0
    assert (tmp_path / "out/s2_africa.tar.gz").read_bytes() == server.files["s2_africa.tar.gz"]
    assert "warning: multi_s2_africa extracted to" in capsys.readouterr().out


def test_only_https_leaves_this_machine(tmp_path, table):
    with pytest.raises(UsageError, match="only https"):
        download_data.main(["--out", str(tmp_path), "--table", str(table), "--url-base", "http://example.invalid/"])
    archive_fetch.check_url("https://example.invalid/x")
    with pytest.raises(UsageError, match="only https"):
        archive_fetch.check_url("ftp://127.0.0.1/x")


def test_certificate_errors_are_reported_and_not_retried(monkeypatch, tmp_path):
    calls = []

    def refuse(url, headers):
        calls.append(url)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(archive_fetch, "_open", refuse)
    with pytest.raises(DataError, match="certificate of the server is not valid"):
        archive_fetch.fetch("https://example.invalid/a.tar.gz", tmp_path / "a.tar.gz")
    assert len(calls) == 1


def test_table_covers_the_release():
    table = read_table()
    assert len(table) == 32
    assert all(archive.url.startswith("https://") for archive in table.values())
    # 300 patches x 30 dates in the test region of western Asia, 1668 KiB each (file of 1666.4 KiB, blocks of 4 KiB):
    # this determines the unit of the table. Folders take less than 0.01 %.
    kib = table["multi_s2_asiaWest_test"].extracted_bytes / 1024
    assert 300 * 30 * 1668 <= kib < 300 * 30 * 1668 * 1.0001


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (("SEN12MSCRTS", "africa", "val", "all", "S2"), ["multi_s2_africa"]),
        (("SEN12MSCRTS", "africa", "train", "all", "all"), ["multi_s2_africa", "multi_s1_africa"]),
        (("SEN12MSCRTS", "europa", "test", "all", "S1"), ["multi_s1_europa_test"]),
        (("SEN12MSCR", "all", "all", "fall", "all"), ["mono_s2_fall", "mono_s2_cloudy_fall", "mono_s1_fall"]),
    ],
)
def test_choice(choice, expected):
    assert [archive.key for archive in choose_archives(read_table(), *choice)] == expected


def test_choices_count():
    table = read_table()
    assert len(choose_archives(table, "both", "all", "all", "all", "all")) == 32
    assert len(choose_archives(table, "SEN12MSCRTS", "all", "test", "all", "all")) == 10


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        ([], 2, "--out DIR is missing"),
        (["--out", "x", "--dataset", "SEN12MSCR", "--region", "africa"], 2, "divided by --season only"),
        (["--out", "x", "--dataset", "SEN12MSCRTS", "--season", "fall"], 2, "--season divides SEN12MSCR only"),
        (["--list", "--table", "no-such.json"], 1, "cannot read no-such.json: No such file"),
    ],
)
def test_wrong_flags(flags, code, text, capsys):
    assert run_command(download_data.main, flags) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_list_shows_sizes_and_fetches_nothing(capsys):
    assert download_data.main(["--list", "--dataset", "SEN12MSCRTS", "--region", "africa", "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "multi_s2_africa_test" in out
    assert "26.0 GB" in out  # 25421744 KiB
    assert "2 archives, 42.1 GB" in out


def test_default_table_is_part_of_the_project():
    assert Path(download_data.TABLE).parent.name == "download"

"""Fetches one file over HTTPS: resumes, checks certificate and size, leaves no short file under its name."""

import errno
import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError
from common.files import write_json

CHUNK = 1 << 20
TIMEOUT_S = 60.0
RETRIES, FIRST_PAUSE_S = 5, 2.0
GZIP_MAGIC = b"\x1f\x8b"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_BROKEN = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


def check_url(url: str) -> None:
    """Refuse an address that is neither https nor on this machine.

    Raises:
        UsageError: for http to another machine, or any other scheme.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return
    raise UsageError(f"{url}: only https is fetched (http from this machine alone); check --url-base")


def remote_size(url: str) -> int | None:
    """The size in bytes that the server tells, or None where it tells none.

    Raises:
        DataError: if the server cannot be reached or refuses.
    """
    try:
        with _open(url, {}) as response:  # the body is not read: not every server answers HEAD
            return _length(response)
    except _BROKEN as error:
        raise _as_data_error(url, error) from error


def fetch(
    url: str,
    path: Path,
    largest: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    pause_s: float = FIRST_PAUSE_S,
) -> int:
    """Fetch a .tar.gz to `path`; what an earlier, cut call left in `path`.part is continued.

    Args:
        url: https address.
        path: where the whole file goes.
        largest: more bytes than this are refused.
        progress: called with bytes so far and in all (None: unknown).
        pause_s: first pause after a cut connection; it doubles each time.

    Returns:
        The size of the file.

    Raises:
        DataError: if the server refuses, the file is not gzip or too large, the disk is full, or the connection
            broke too often; then the next call goes on where this one stopped.
    """
    check_url(url)
    part = path.with_name(f"{path.name}.part")
    note = path.with_name(f"{path.name}.part.json")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _continue(url, part, note, largest, progress)
            have = part.stat().st_size
            if total is None or have == total:
                break
            if have > total:
                part.unlink()
                raise DataError(f"{url}: {have} bytes came where the server told {total}; run again")
            raise ConnectionError(f"the connection closed after {have} of {total} bytes")
        except _BROKEN as error:
            if not _worth_another_try(error):
                raise _as_data_error(url, error) from error
            if part.exists() and part.stat().st_size > before:
                failures = 0  # it moves: only failures in a row count
            failures += 1
            if failures > RETRIES:
                raise DataError(f"{url}: {error}; run the same command again to go on from here") from error
            time.sleep(pause_s * 2 ** (failures - 1))
    _check_magic(url, part)
    part.replace(path)
    note.unlink(missing_ok=True)
    return path.stat().st_size


def _continue(
    url: str, part: Path, note: Path, largest: int | None, progress: Callable[[int, int | None], None]
) -> int | None:
    """Add to the part what one connection gives; the size in all, if the server tells it."""
    told = _read_note(note)
    offset = part.stat().st_size if part.exists() and told.get("url") == url else 0
    if offset and offset == told.get("size"):
        return offset
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if told.get("version"):
            headers["If-Range"] = told["version"]  # a changed file comes whole, with status 200
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        part.unlink()  # longer than the file there: begin again
        raise ConnectionError("the file at the server is shorter than what is here") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if not resumed:
            offset = 0
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-"):
            part.unlink()
            raise ConnectionError("the server sent another part than asked for")
        length = _length(response)
        total = None if length is None else offset + length
        if largest is not None and total is not None and total > largest:
            raise DataError(
                f"{url}: the server tells {total} bytes, but this archive cannot have more than {largest}; is the "
                "address right?"
            )
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and version.startswith("W/"):
            version = None  # a weak tag cannot vouch for single bytes
        write_json(note, {"url": url, "version": version, "size": total})
        with part.open("ab" if resumed else "wb") as target:
            while chunk := response.read(CHUNK):
                _write(target, chunk, part)
                offset += len(chunk)
                if largest is not None and offset > largest:
                    raise DataError(f"{url}: more than {largest} bytes came, more than this archive can have")
                progress(offset, total)
    return total


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow a redirection, but never from https to http."""
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> Any:
    check_url(url)
    context = ssl.create_default_context()  # certificate and host name are checked
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context), _HttpsRedirects()]
    if urllib.parse.urlsplit(url).hostname in _LOCAL:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"} | headers)
    return opener.open(request, timeout=TIMEOUT_S)


def _length(response: Any) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _read_note(note: Path) -> dict[str, Any]:
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write(target: Any, chunk: bytes, part: Path) -> None:
    try:
        target.write(chunk)
        target.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"disk full while writing {part}; make room and run again: it goes on from here") from error
        raise DataError(f"cannot write {part}: {error.strerror}") from error


def _worth_another_try(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    return not isinstance(getattr(error, "reason", None), ssl.SSLError)


def _as_data_error(url: str, error: Exception) -> DataError:
    if isinstance(error, urllib.error.HTTPError):
        return DataError(f"{url}: the server answers {error.code} {error.reason}; is the address still right?")
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return DataError(f"{url}: the certificate of the server is not valid ({reason}); nothing was fetched")
    return DataError(f"{url}: cannot be reached ({reason}); check the network and run again")


def _check_magic(url: str, part: Path) -> None:
    with part.open("rb") as file:
        start = file.read(len(GZIP_MAGIC))
    if start != GZIP_MAGIC:
        part.unlink()
        raise DataError(f"{url}: what came is no .tar.gz archive (a page of the web site?); nothing was kept")

"""Download one file over HTTPS, with resume and checks of certificate and size."""

import errno
import http.client
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
from common.json_files import Schema, read_json

CHUNK = 1 << 20
TIMEOUT_S = 60.0
RETRIES, FIRST_PAUSE_S = 5, 2.0
GZIP_MAGIC = b"\x1f\x8b"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_BROKEN = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
_NOTE: Schema = {
    "type": "object",
    "properties": {
        "url": {"type": "string"},
        "version": {"type": ["string", "null"], "pattern": "^[ -~]*$"},
        "size": {"type": ["integer", "null"]},
    },
}


def check_url(url: str) -> None:
    """Reject an address that is neither https nor on this machine.

    Raises:
        UsageError: for http to another machine, or any other scheme.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return
    raise UsageError(f"{url}: only https is fetched (http from this machine alone); check --url-base")


def remote_size(url: str) -> int | None:
    """The size in bytes reported by the server, or None.

    Raises:
        DataError: if the server cannot be reached or returns an error.
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
    """Download a .tar.gz to `path`; an interrupted download is resumed from `path`.part.

    Args:
        url: https address.
        path: file that appears when the download is complete.
        largest: maximum size in bytes.
        progress: called with the bytes so far and in total (None: unknown).
        pause_s: pause after the first interruption; it doubles each time.

    Returns:
        The size of the file.

    Raises:
        DataError: if the server returns an error, the file is not gzip or too large, the disk is full, or the
            connection is interrupted too often; then the next call resumes here.
    """
    check_url(url)
    part = path.with_name(f"{path.name}.part")
    note = path.with_name(f"{path.name}.part.json")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _resume(url, part, note, largest, progress)
            have = part.stat().st_size
            if total is None or have == total:
                break
            if have > total:
                part.unlink()
                raise DataError(f"{url}: received {have} bytes, the server reported {total}; run again")
            raise ConnectionError(f"the connection closed after {have} of {total} bytes")
        except _BROKEN as error:
            if not _is_retryable(error):
                raise _as_data_error(url, error) from error
            if part.exists() and part.stat().st_size > before:
                failures = 0  # progress: only consecutive failures count
            failures += 1
            if failures > RETRIES:
                raise DataError(f"{url}: {error}; run the same command again to resume") from error
            time.sleep(pause_s * 2 ** (failures - 1))
    _check_magic(url, part)
    part.replace(path)
    note.unlink(missing_ok=True)
    return path.stat().st_size


def _resume(
    url: str, part: Path, note: Path, largest: int | None, progress: Callable[[int, int | None], None]
) -> int | None:
    """Append the content of one connection to the part; returns the total size if the server reports it."""
    state = _read_note(note)
    offset = part.stat().st_size if part.exists() and state.get("url") == url else 0
    if offset and offset == state.get("size"):
        return offset
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if state.get("version"):
            headers["If-Range"] = state["version"]  # a changed file is sent completely, with status 200
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        part.unlink()  # longer than the file: start again
        raise ConnectionError("the file on the server is shorter than the downloaded part") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if not resumed:
            offset = 0
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than requested")
        length = _length(response)
        total = None if length is None else offset + length
        if largest is not None and total is not None and total > largest:
            raise DataError(
                f"{url}: the server reports {total} bytes, but this archive cannot have more than {largest}; is the "
                "address right?"
            )
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and version.startswith("W/"):
            version = None  # a weak tag does not identify the content bytewise
        write_json(note, {"url": url, "version": version, "size": total})
        with part.open("ab" if resumed else "wb") as target:
            while chunk := response.read(CHUNK):
                _write(target, chunk, part)
                offset += len(chunk)
                if largest is not None and offset > largest:
                    raise DataError(f"{url}: received more than {largest} bytes, more than this archive can have")
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
    return int(length) if length is not None and length.isdecimal() else None


def _read_note(note: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = read_json(note, _NOTE, "")
    except DataError:  # missing or damaged: the download starts again
        return {}
    return state


def _write(target: Any, chunk: bytes, part: Path) -> None:
    try:
        target.write(chunk)
        target.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"disk full while writing {part}; make room and run again to resume") from error
        raise DataError(f"cannot write {part}: {error.strerror}") from error


def _is_retryable(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    return not isinstance(getattr(error, "reason", None), ssl.SSLError)


def _as_data_error(url: str, error: Exception) -> DataError:
    if isinstance(error, urllib.error.HTTPError):
        return DataError(f"{url}: the server returned {error.code} {error.reason}; is the address still valid?")
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return DataError(f"{url}: the certificate of the server is not valid ({reason}); nothing was downloaded")
    return DataError(f"{url}: cannot be reached ({reason}); check the network and run again")


def _check_magic(url: str, part: Path) -> None:
    with part.open("rb") as file:
        start = file.read(len(GZIP_MAGIC))
    if start != GZIP_MAGIC:
        part.unlink()
        raise DataError(f"{url}: the response is no .tar.gz archive (a web page?); nothing was kept")

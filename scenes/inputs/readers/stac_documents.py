"""The items of STAC documents: items, item collections, search results, catalogues and collections, local or remote.

A document of others decides what is read, so that its references are restricted: http(s), s3, and files in the folder
of the document or below.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from common.errors import DataError

MOST_ITEMS = 10_000
_MOST_DOCUMENTS = 2 * MOST_ITEMS
_LARGEST = 64 << 20  # bytes of a document
_START = 4096  # bytes that are looked at to recognise JSON
_ATTEMPTS, _FIRST_WAIT, _TIMEOUT = 4, 0.5, 20.0  # of a request; seconds, waits double
_PASSING = (429, 500, 502, 503, 504)
_DEEPEST = 8  # parts of an address that may be folders beside a document
_REMOTE = ("http", "https", "s3")


@dataclass(frozen=True)
class Item:
    """A STAC item.

    Attributes:
        path: the value of the flag that led to it.
        location: of the document that holds it.
        content: as parsed.
    """

    path: str
    location: str
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its identifier, or the document's name."""
        return str(self.content.get("id") or os.path.basename(self.location))

    @property
    def properties(self) -> Mapping[str, Any]:
        """Its metadata."""
        return mapping(self.content.get("properties"))

    @property
    def assets(self) -> Mapping[str, Mapping[str, Any]]:
        """Its files by key."""
        return {key: asset for key, asset in mapping(self.content.get("assets")).items() if isinstance(asset, dict)}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list of JSON; empty for anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def is_stac(path: str) -> bool:
    """Whether a local file or an address holds a STAC document, by its content."""
    try:
        if is_address(path):
            start = _fetch(path, _START)
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                start = file.read(_START)
        else:
            return False
        if not start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n").startswith("{"):
            return False
        return _kind(_read(path)) != ""
    except (DataError, OSError):
        return False


def read_items(path: str) -> tuple[list[Item], list[str]]:
    """The items that a document has or leads to, each once, and notes.

    Args:
        path: of the document, local or http(s) or s3.

    Raises:
        DataError: if a document cannot be read, is not STAC, or leads to too many others.
    """
    root = path if is_address(path) else os.path.dirname(os.path.abspath(path))
    waiting, seen = deque([path]), {_identity(path)}
    items: dict[tuple[str, str], Item] = {}
    notes: list[str] = []
    while waiting:
        location = waiting.popleft()
        content = _read(location)
        kind = _kind(content)
        if not kind:
            raise DataError(
                f"{location}: expected a STAC item, item collection, catalogue or collection, found other JSON "
                f"(type {content.get('type')!r:.40})"
            )
        own = [content] if kind == "Feature" else objects(content.get("features")) if kind == "items" else []
        for entry in own:
            item = Item(path, location, entry)
            items.setdefault((str(entry.get("collection")), item.name), item)
        for link in _links(content, kind):
            if link == "next" or (kind == "items" and not is_address(location)):
                notes.append(
                    f"{os.path.basename(location)} has further pages, which are not read; save all items in it"
                )
                continue
            target = _target(link, location, root)
            if _identity(target) not in seen:
                seen.add(_identity(target))
                waiting.append(target)
        if len(items) > MOST_ITEMS or len(seen) > _MOST_DOCUMENTS:
            raise DataError(f"{path}: more than {MOST_ITEMS:,} items; name a part of the catalogue or a search result")
    return list(items.values()), notes


def is_address(path: str) -> bool:
    """Whether a path is http(s) or s3."""
    return urlsplit(path).scheme.lower() in _REMOTE


def beside(href: str, location: str) -> str | None:
    """The local file in the folder of a local document, or below, that a reference names; None if there is none.

    A reference to elsewhere names a file beside the document by its last parts: `S2A_29RKH/B04.tif`, else `B04.tif`.
    """
    if is_address(location):
        return None
    folder = os.path.dirname(os.path.abspath(location))
    parts = [part for part in unquote(urlsplit(href).path).split("/") if part not in ("", ".")]
    parts = parts[-_DEEPEST:]
    for first in range(len(parts)):
        place = os.path.join(folder, *parts[first:])
        if "\0" not in place and os.path.isfile(place) and is_below(place, folder):
            return place
    return None


def remote_path(href: str, location: str) -> str | None:
    """What GDAL opens for a reference to http(s) or s3; None for other references."""
    address = urljoin(location, href) if is_address(location) and not urlsplit(href).scheme else href
    if not is_address(address) or any(character.isspace() or character < " " for character in address):
        return None
    scheme, rest = address.split("://", 1) if "://" in address else ("", "")
    if not rest or rest.startswith("/"):
        return None
    return f"/vsis3/{rest}" if scheme.lower() == "s3" else f"/vsicurl/{address}"


def is_below(path: str, folder: str) -> bool:
    """Whether a file, with links resolved, lies in a folder or below."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([real, root]) == root


def _kind(content: Mapping[str, Any]) -> str:
    """The kind: "Feature", "items" (several), "Catalog" or "Collection"; empty for what is not STAC."""
    kind = content.get("type")
    if kind == "Feature":
        return "Feature" if isinstance(content.get("assets"), dict) else ""
    if kind == "FeatureCollection":
        features = objects(content.get("features"))
        return "items" if "stac_version" in content or any("assets" in feature for feature in features) else ""
    if kind in ("Catalog", "Collection") or "stac_version" in content:
        return str(kind or "Catalog") if isinstance(content.get("links"), list) else ""
    return ""


def _links(content: Mapping[str, Any], kind: str) -> Iterator[str]:
    """References to further documents; "next" for a page that only a search can fetch."""
    links = objects(content.get("links"))
    by_relation: dict[str, list[str]] = {}
    for link in links:
        href = link.get("href")
        if isinstance(href, str):
            is_search = str(link.get("method", "GET")).upper() != "GET"
            by_relation.setdefault(str(link.get("rel")), []).append("next" if is_search else href)
    if kind == "items":
        yield from by_relation.get("next", [])
    elif kind != "Feature":
        own = [href for relation in ("item", "child") for href in by_relation.get(relation, [])]
        yield from own or by_relation.get("items", [])


def _target(href: str, location: str, root: str) -> str:
    """The document that a link leads to.

    Raises:
        DataError: if it is neither http(s) nor s3 nor in the folder of the first document or below.
    """
    if is_address(href):
        return href
    scheme = urlsplit(href).scheme
    if is_address(location) and not scheme:
        return urljoin(location, href)
    place = unquote(href)
    if not scheme and not is_address(location) and "\0" not in place:
        target = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(location)), place))
        if is_below(target, root):
            return target
    raise DataError(
        f"{location}: a link to {href[:200]!r}; expected http(s), s3, or a file in the folder of the catalogue"
    )


def _identity(location: str) -> str:
    return location if is_address(location) else os.path.realpath(location)


def _read(location: str) -> Mapping[str, Any]:
    """The object in a JSON document.

    Raises:
        DataError: if there is none.
    """
    content = _fetch(location, _LARGEST + 1) if is_address(location) else _read_file(location)
    if len(content) > _LARGEST:
        raise DataError(f"{location}: larger than {_LARGEST >> 20} MB; name a part of the items")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location} is not valid JSON ({error}); expected a STAC document") from error
    if not isinstance(value, dict):
        raise DataError(f"{location}: expected a STAC document, found a JSON {type(value).__name__}")
    return value


def _read_file(location: str) -> bytes:
    try:
        if os.path.exists(location) and not os.path.isfile(location):
            raise DataError(f"{location} is not a file; expected a STAC document")
        with open(location, "rb") as file:
            return file.read(_LARGEST + 1)
    except OSError as error:
        raise DataError(f"cannot read {location}: {error.strerror or error}; expected a STAC document") from error


def _fetch(address: str, length: int, attempts: int = _ATTEMPTS) -> bytes:
    """The first bytes of a document; passing failures are tried again.

    Raises:
        DataError: if it cannot be fetched.
    """
    url = _url(address)
    request = urllib.request.Request(url, headers={"Accept": "application/geo+json, application/json"})
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                content: bytes = response.read(length)
                if len(content) >= min(length, int(response.headers.get("Content-Length") or 0)):
                    return content
                reason = f"it ended after {len(content):,} bytes"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code not in _PASSING:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise DataError(f"cannot fetch {short(address)} ({reason}); check the address and the network")


def _url(address: str) -> str:
    """The address by which a document is fetched: objects of s3 by their public one."""
    parts = urlsplit(address)
    if parts.scheme.lower() != "s3":
        return address
    endpoint = os.environ.get("AWS_S3_ENDPOINT")
    if endpoint:
        protocol = "http" if os.environ.get("AWS_HTTPS", "YES").upper() in ("NO", "FALSE", "OFF") else "https"
        return f"{protocol}://{endpoint}/{parts.netloc}{parts.path}"
    return f"https://{parts.netloc}.s3.amazonaws.com{parts.path}"


def short(address: str) -> str:
    """An address for messages: without its query, which may hold a signature."""
    return address.removeprefix("/vsicurl/").partition("?")[0]


def unique(items: Sequence[Item]) -> list[Item]:
    """Items of several documents, each once."""
    return list({(str(item.content.get("collection")), item.name): item for item in reversed(items)}.values())[::-1]

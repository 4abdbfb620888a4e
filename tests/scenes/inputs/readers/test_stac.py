"""STAC items of several providers, local and from a server that fails now and then."""

import json
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from scenes.inputs.open import open_series, read_products
from scenes.inputs.readers.stac import READER, parse_range
from scenes.inputs.readers.stac_documents import beside, remote_path
from scenes.options import SceneInputs
from tests.support.scene_files import ground, notes_of, speckle, write_tif

SIZE = (64, 96)
L2A = [name for name in S2_BANDS if name != "B10"]
COMMON = dict(
    zip(
        L2A,
        (
            *("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3"),
            *("nir", "nir08", "nir09", "swir16", "swir22"),
        ),
        strict=True,
    )
)
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def pixels_of(seed: int = 0, offset: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The 12 bands of L2A (12,h,w)."""
    return ground(seed, 12, size, offset)


def write_bands(folder: Path, pixels: np.ndarray, suffix: str = "") -> None:
    for name, band in zip(L2A, pixels, strict=True):
        write_tif(folder / f"{name}{suffix}.tif", band[None], nodata=0)


def item_of(name: str, assets: dict, day: str = "2018-06-21", **properties) -> dict:
    properties = {"datetime": f"{day}T10:30:21Z", "constellation": "sentinel-2", **properties}
    return {
        **{"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a", "geometry": None},
        **{"properties": properties, "links": [], "assets": assets},
    }


def earth_search(name: str = "S2A_32TQM_20180621_0_L2A", offset: float = 0.0, base: str = "https://h.invalid/", **own):
    """As version 1 of Earth Search: keys are common names, JPEG 2000 beside, previews."""
    assets = {"visual": {"href": base + "TCI.tif", "type": COG, "roles": ["visual"]}}
    for band, common in COMMON.items():
        asset = {"href": f"{base}{band}.tif", "type": COG, "roles": ["data", "reflectance"]}
        asset["eo:bands"] = [{"name": common, "common_name": "rededge" if "edge" in common else common}]
        asset["raster:bands"] = [{"nodata": 0, "scale": 0.0001, "offset": offset}]
        assets[common] = asset
        assets[f"{common}-jp2"] = {**asset, "href": f"{base}{band}.jp2", "type": "image/jp2"}
    assets["thumbnail"] = {"href": base + "preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    return item_of(name, assets, **own)


def earth_search_0(**own) -> dict:
    """As version 0 of Earth Search and Digital Earth Africa: keys are codes, no values."""
    assets = {"visual": {"href": "TCI.tif", "type": COG, "eo:bands": [{"name": "B04"}, {"name": "B03"}]}}
    assets["overview"] = {"href": "L2A_PVI.tif", "type": COG, "roles": ["overview"]}
    for band, common in COMMON.items():
        names = [{"name": band, "common_name": "rededge" if "edge" in common else common}]
        assets[band] = {"href": f"./{band}.tif", "type": COG, "eo:bands": names}
    return item_of("S2A_32TQM_20180621_0_L2A", assets, **own)


def planetary_computer(**own) -> dict:
    """As Planetary Computer: codes, no values, the baseline among the properties."""
    assets = {"visual": {"href": "TCI.tif", "type": COG, "roles": ["data"], "eo:bands": [{"name": "B04"}] * 3}}
    for band in L2A:
        href = f"https://account.invalid/T32TQM_{band}_10m.tif?sv=1&sig=abc"
        assets[band] = {"href": href, "type": COG, "roles": ["data"], "eo:bands": [{"name": band}]}
    assets["AOT"] = {"href": "AOT.tif", "type": COG, "roles": ["data"]}
    return item_of("S2A_MSIL2A_20180621", assets, **own)


def copernicus(scale: float = 0.0001, offset: float = -0.1, **own) -> dict:
    """As the Copernicus Data Space: STAC 1.1, several resolutions, s3 with https as an alternative."""
    assets = {"Product": {"href": "https://zipper.invalid/x", "type": "application/zip"}}
    for band in L2A:
        for metres in (10, 20, 60):
            asset = {"href": f"s3://eodata/R{metres}m/{band}_{metres}m.tif", "type": COG, "gsd": 10}
            asset |= {"bands": [{"name": band}], "raster:scale": scale, "raster:offset": offset, "nodata": 0}
            assets[f"{band}_{metres}m"] = asset | {"roles": ["data", "reflectance"]}
    return item_of("S2A_MSIL2A_20180621T103021", assets, **own) | {"stac_version": "1.1.0"}


def save(path: Path, content: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def read_item(path: str, **options) -> tuple[np.ndarray, str]:
    """Reflectance x 10000 of the 12 bands on the first date, and the notes."""
    with open_series(SceneInputs(stac=(path,), **options)) as series:
        raw, valid = series.optical[0].read(series.grid.window)
        assert valid.all()
        return np.delete(raw, 10, axis=0), notes_of(series)


@pytest.mark.parametrize("make", [earth_search, earth_search_0, planetary_computer])
def test_items_of_providers_give_their_bands(tmp_path, make):
    write_bands(tmp_path, pixels_of(), "" if make is not planetary_computer else "_10m")
    if make is planetary_computer:
        for file in tmp_path.glob("*_10m.tif"):
            file.rename(tmp_path / f"T32TQM_{file.name}")
    raw, notes = read_item(save(tmp_path / "item.json", make(**{"s2:processing_baseline": "02.14"})))
    np.testing.assert_array_equal(raw, pixels_of())
    assert "B10 is missing" in notes


def test_the_finest_of_several_resolutions_is_read_and_the_declared_offset_is_added(tmp_path):
    write_bands(tmp_path / "R10m", pixels_of(offset=1000), "_10m")
    write_bands(tmp_path / "R20m", pixels_of(seed=1, offset=1000), "_20m")
    write_bands(tmp_path / "R60m", pixels_of(seed=2, offset=1000), "_60m")
    raw, _ = read_item(save(tmp_path / "item.json", copernicus()))
    np.testing.assert_array_equal(raw, pixels_of())


def test_an_item_is_a_value_of_optical_and_of_lists(tmp_path):
    write_bands(tmp_path, pixels_of())
    path = save(tmp_path / "item.json", earth_search())
    assert READER.recognises(path)
    (product,) = read_products([path], "optical", SceneInputs(optical=(path,))).optical
    assert (product.level, str(product.day)) == ("L2A", "2018-06-21")
    manifest = tmp_path / "list.csv"
    manifest.write_text("optical\nitem.json\n")
    with open_series(SceneInputs(manifest=str(manifest))) as listed:
        raw, _ = listed.optical[0].read(listed.grid.window)
    np.testing.assert_array_equal(np.delete(raw, 10, axis=0), pixels_of())


@pytest.mark.parametrize(
    ("properties", "offset", "inside"),
    [
        ({"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}, -0.1, 0),
        ({"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}, 0.0, 0),
        ({"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "05.09"}, -0.1, 1000),
        ({"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "04.00"}, 0.0, 1000),
        ({"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "02.14"}, 0.0, 0),
        ({"s2:processing_baseline": "05.00"}, -0.1, 1000),
    ],
)
def test_offsets_follow_what_items_say(tmp_path, properties, offset, inside):
    write_bands(tmp_path, pixels_of(offset=inside))
    raw, notes = read_item(save(tmp_path / "item.json", earth_search(offset=offset, **properties)))
    np.testing.assert_array_equal(raw, pixels_of())
    assert ("taken off already" in notes) == (offset != 0 and inside == 0)


def test_the_baseline_gives_the_offset_where_nothing_else_does(tmp_path):
    write_bands(tmp_path, pixels_of(offset=1000))
    raw, notes = read_item(save(tmp_path / "item.json", earth_search_0(**{"s2:processing_baseline": "05.00"})))
    np.testing.assert_array_equal(raw, pixels_of())
    assert "processing baseline 05.00 of the item" in notes


def test_values_that_contradict_the_item_are_refused(tmp_path):
    write_bands(tmp_path, pixels_of())
    path = save(tmp_path / "item.json", earth_search_0(**{"s2:processing_baseline": "05.00"}))
    with pytest.raises(DataError, match="taken off already; give --offset none"):
        read_item(path)
    np.testing.assert_array_equal(read_item(path, offset="none")[0], pixels_of())


def test_an_offset_that_contradicts_the_baseline_is_refused(tmp_path):
    write_bands(tmp_path, pixels_of())
    own = {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "02.14"}
    path = save(tmp_path / "item.json", earth_search(offset=-0.1, **own))
    with pytest.raises(DataError, match="baseline 02.14 has an offset of 0, but the item declares -1000"):
        read_item(path)
    np.testing.assert_array_equal(read_item(path, offset="none")[0], pixels_of())


def test_one_asset_may_hold_all_bands(tmp_path):
    write_tif(tmp_path / "stack.tif", pixels_of(), names=list(COMMON.values()))
    asset = {"href": "stack.tif", "type": COG, "roles": ["data"]}
    np.testing.assert_array_equal(read_item(save(tmp_path / "a.json", item_of("a", {"data": asset})))[0], pixels_of())
    asset["bands"] = [{"name": name} for name in COMMON.values()]
    np.testing.assert_array_equal(read_item(save(tmp_path / "b.json", item_of("a", {"data": asset})))[0], pixels_of())


def test_the_scene_classification_comes_along(tmp_path):
    write_bands(tmp_path, pixels_of())
    write_tif(tmp_path / "SCL.tif", np.full((1, *SIZE), 4, np.uint8))
    item = earth_search()
    item["assets"]["scl"] = {"href": "SCL.tif", "type": COG}
    path = save(tmp_path / "item.json", item)
    (product,) = READER.read([path], "optical", SceneInputs(stac=(path,))).optical
    assert product.classes is not None
    assert product.classes.kind == "scl"


def collection(tmp_path: Path, days: dict[str, float]) -> str:
    """A catalogue with a cycle, a collection and an item of each day with its cloud cover."""
    links = [{"rel": "child", "href": "./s2/collection.json"}, {"rel": "self", "href": "https://h.invalid/c.json"}]
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": links}
    item_links = [{"rel": "item", "href": f"./{day}/item.json"} for day in days]
    own = [*item_links, {"rel": "parent", "href": "../catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    save(tmp_path / "s2" / "collection.json", catalogue | {"type": "Collection", "links": own})
    for seed, (day, cover) in enumerate(days.items()):
        write_bands(tmp_path / "s2" / day, pixels_of(seed))
        item = earth_search(f"item_{day}", day=day, **{"eo:cloud_cover": cover})
        save(tmp_path / "s2" / day / "item.json", item)
    return save(tmp_path / "catalog.json", catalogue)


def test_catalogues_are_followed_and_items_chosen_by_date_and_clouds(tmp_path):
    path = collection(tmp_path, {"2018-06-01": 5, "2018-06-11": 80, "2018-06-21": 10, "2018-08-01": 0})
    with open_series(SceneInputs(stac=(path,), date_range="2018-06-01/2018-07-01", max_cloud=40)) as series:
        assert len(series.days) == 2
        assert "1 of 4 items lie outside of --date_range" in notes_of(series)
        assert "1 items have more clouds than --max_cloud" in notes_of(series)
    with pytest.raises(DataError, match="no item is left"):
        open_series(SceneInputs(stac=(path,), date_range="2020-01-01/.."))


def test_an_item_collection_finds_the_files_of_each_item(tmp_path):
    items = []
    for seed, day in enumerate(("2018-06-01", "2018-06-11")):
        write_bands(tmp_path / f"item_{day}", pixels_of(seed))
        items.append(earth_search(f"item_{day}", base=f"https://h.invalid/x/item_{day}/", day=day))
    path = save(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})
    with open_series(SceneInputs(stac=(path,))) as series:
        for number in range(2):
            raw, _ = series.optical[number].read(series.grid.window)
            np.testing.assert_array_equal(np.delete(raw, 10, axis=0), pixels_of(number))


def test_files_beside_a_document_are_not_those_of_several_items(tmp_path):
    write_bands(tmp_path, pixels_of())
    items = [earth_search(f"item_{day}", day=day) for day in ("2018-06-01", "2018-06-11")]
    path = save(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})
    with pytest.raises(DataError, match="a file of item_2018-06-01 and of item_2018-06-11"):
        open_series(SceneInputs(stac=(path,)))


def test_the_newest_processing_of_an_image_is_used(tmp_path):
    items = []
    for seed, baseline in enumerate(("05.00", "02.14")):
        write_bands(tmp_path / baseline, pixels_of(seed))
        own = {"s2:processing_baseline": baseline, "earthsearch:boa_offset_applied": True, "grid:code": "MGRS-32TQM"}
        own["s2:datatake_id"] = f"GS2A_20180621T103021_015650_N{baseline}"
        items.append(earth_search(f"item_{baseline}", base=f"https://h.invalid/{baseline}/", **own))
    raw, notes = read_item(save(tmp_path / "i.json", {"type": "FeatureCollection", "features": items}))
    np.testing.assert_array_equal(raw, pixels_of(0))
    assert "older processings of the same images, not used: item_02.14" in notes


def radar_item(folder: Path, polarisations=("VV", "VH"), **own) -> dict:
    assets = {}
    power = (10 ** (speckle(0, SIZE) / 10)).astype(np.float32)
    for name, band in zip(polarisations, power, strict=True):
        write_tif(folder / f"{name.lower()}.tif", band[None])
        assets[name.lower()] = {"href": f"{name.lower()}.tif", "type": COG, "roles": ["data"]}
    properties = {"constellation": "Sentinel-1", "sar:polarizations": list(polarisations)}
    return item_of("S1A_IW", assets, "2018-06-22", **properties) | {"collection": "sentinel-1-rtc"} | own


def test_radar_items_are_read_as_power(tmp_path):
    write_bands(tmp_path, pixels_of())
    items = [earth_search(), radar_item(tmp_path)]
    path = save(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})
    with open_series(SceneInputs(stac=(path,))) as series:
        np.testing.assert_allclose(series.radar[0].read(series.grid.window), speckle(0, SIZE), atol=1e-4)
    optical, radar = save(tmp_path / "s2.json", items[0]), save(tmp_path / "s1.json", items[1])
    with open_series(SceneInputs(optical=(optical,), radar=(radar,))) as series:
        np.testing.assert_allclose(series.radar[0].read(series.grid.window), speckle(0, SIZE), atol=1e-4)
    with pytest.raises(DataError, match="expected items of Sentinel-1"):
        open_series(SceneInputs(optical=(optical,), radar=(optical,)))


def test_radar_items_of_other_polarisations_are_refused(tmp_path):
    path = save(tmp_path / "s1.json", radar_item(tmp_path, ("HH", "HV")))
    with pytest.raises(DataError, match="expected VV and VH of Sentinel-1, terrain-corrected; found HH, HV"):
        open_series(SceneInputs(stac=(path,)))


def test_documents_do_not_reach_files_elsewhere(tmp_path):
    outside, inside = tmp_path / "B04.tif", tmp_path / "own" / "item.json"
    outside.write_bytes(b"II*\0")
    inside.parent.mkdir()
    for href in ("../B04.tif", str(outside), outside.as_uri(), "/vsizip/../B04.tif", "%2e%2e/B04.tif"):
        assert beside(href, str(inside)) is None, href
        assert remote_path(href, str(inside)) is None, href
    (inside.parent / "B02.tif").symlink_to(outside)
    assert beside("B02.tif", str(inside)) is None
    assert remote_path("file:///etc/passwd", "https://h.invalid/item.json") is None
    assert remote_path("/vsimem/x.tif", "https://h.invalid/item.json") == "/vsicurl/https://h.invalid/vsimem/x.tif"
    assert remote_path("s3://bucket/a.tif", "i.json") == "/vsis3/bucket/a.tif"
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "links": [{"rel": "item", "href": "../secret.json"}]}
    with pytest.raises(DataError, match="expected http.s., s3, or a file in the folder"):
        open_series(SceneInputs(stac=(save(inside, catalogue),)))


def test_vrt_assets_are_refused(tmp_path):
    write_bands(tmp_path, pixels_of())
    (tmp_path / "B04.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    with pytest.raises(DataError, match="VRT"):
        read_item(save(tmp_path / "item.json", earth_search(base="")), allow_vrt=True)


@pytest.mark.parametrize("content", ['{"type": "Feature", "geometry": null}', '{"a": 1}', "[1]", "{", "[" * 10**5])
def test_other_json_is_no_stac(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert not READER.recognises(str(path))
    with pytest.raises(DataError, match="x.json"):
        open_series(SceneInputs(stac=(str(path),)))


def test_items_without_some_bands_are_refused_with_their_assets(tmp_path):
    write_bands(tmp_path, pixels_of())
    item = earth_search()
    for key in ("nir08", "nir08-jp2"):
        del item["assets"][key]
    with pytest.raises(DataError, match="bands B8A are missing.*found assets visual, coastal"):
        read_item(save(tmp_path / "item.json", item))


def test_ranges_of_dates():
    assert [str(day) for day in parse_range("2018-06-01/2018-07-01")] == ["2018-06-01", "2018-07-01"]
    assert str(parse_range("2018-06-01")[1]) == "2018-06-01"
    assert str(parse_range("../2018-07-01")[1]) == "2018-07-01"
    for text in ("2018-07-01/2018-06-01", "x/2018-06-01"):
        with pytest.raises(UsageError, match="--date_range"):
            parse_range(text)
    with pytest.raises(UsageError, match="--stac"):
        SceneInputs(stac=("a.json",), optical=("a.tif",))


class Flaky(SimpleHTTPRequestHandler):
    """Serves files with range requests; each seventh request fails, by a status or a dropped connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, counts: Counter, every: int, **options):
        self.counts, self.every = counts, every
        super().__init__(*arguments, **options)

    def do_HEAD(self):
        self._respond(False)

    def do_GET(self):
        self._respond(True)

    def _respond(self, with_body: bool) -> None:
        path = Path(self.translate_path(self.path))
        self.counts["all"] += 1
        self.counts[path.name] += 1
        is_cut = False
        if self.every and self.counts["all"] % self.every == 0:
            self.counts["failed"] += 1
            if self.counts["failed"] % 3 == 1:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            is_cut = self.close_connection = True
            if self.counts["failed"] % 3 == 2:
                self.connection.close()
                return
        if not path.is_file():
            self.counts["missing"] += 1
            self.send_error(404)
            return
        content, part = path.read_bytes(), self.headers.get("Range")
        begin, end = 0, len(content)
        if part:
            first, last = part.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or end - 1) + 1, end)
        self.send_response(206 if part else 200)
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if with_body:
            # the third kind of failure: half of the content
            self.wfile.write(content[begin : (begin + end) // 2 if is_cut else end])

    def log_message(self, *arguments):
        pass

    def handle(self):
        with suppress(OSError, ValueError):
            super().handle()


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(every: int = 0) -> tuple[str, Counter]:
        counts: Counter = Counter()
        handler = partial(Flaky, directory=str(tmp_path), counts=counts, every=every)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/", counts

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Without the proxies of the machine."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("every", [0, 7])
def test_a_server_that_fails_now_and_then_gives_the_same_bits(tmp_path, serve, monkeypatch, every):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
    monkeypatch.setattr("scenes.inputs.readers.stac_documents._FIRST_WAIT", 0.05)
    write_bands(tmp_path / "files", pixels_of(size=(300, 400)))
    save(tmp_path / "files" / "item.json", earth_search())
    address, counts = serve(every)
    remote = earth_search(base="files/")
    save(tmp_path / "remote.json", remote)
    expected, _ = read_item(str(tmp_path / "files" / "item.json"))
    raw, _ = read_item(address + "remote.json")
    np.testing.assert_array_equal(raw, expected)
    assert not counts["missing"], counts
    assert (counts["failed"] > 3) == bool(every)


def test_a_dead_server_gives_one_line_soon(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
    monkeypatch.setattr("scenes.inputs.readers.stac_documents._FIRST_WAIT", 0.05)
    address, _ = serve()
    path = save(tmp_path / "item.json", earth_search(base=address + "nowhere/"))
    begin = time.monotonic()
    with pytest.raises(DataError, match="asset coastal cannot be read") as caught:
        read_item(path)
    assert "\n" not in str(caught.value)
    path = save(tmp_path / "item.json", earth_search(base="http://127.0.0.1:9/"))
    with pytest.raises(DataError, match="asset coastal cannot be read"):
        read_item(path)
    with pytest.raises(DataError, match=r"cannot fetch http://127.0.0.1:9/item.json"):
        open_series(SceneInputs(stac=("http://127.0.0.1:9/item.json",)))
    assert time.monotonic() - begin < 10


def test_a_real_item_reads_as_its_files(products):
    folder = products / "l2a_cogs_stac" / "S2A_29RKH_20200219_0_L2A"
    path = str(folder / "S2A_29RKH_20200219_0_L2A.json")
    with open_series(SceneInputs(stac=(path,))) as series:
        raw, _ = series.optical[0].read(series.grid.window)
        for name in ("B02", "B04", "B08"):
            with rasterio.open(os.path.join(folder, f"{name}.tif")) as source:
                np.testing.assert_array_equal(raw[S2_BANDS.index(name)], source.read(1))

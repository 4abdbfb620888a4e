"""Products of one file a band: what each layout gives, against plain numpy and rasterio; and faults."""

import json
import shutil
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.ndimage import map_coordinates

from common.errors import DataError
from data.constants import S2_BANDS
from reconstruct_scene import main
from scenes.inputs.open import open_series, read_products
from scenes.inputs.rasters.dataset_pool import CACHE_BYTES, DatasetPool
from scenes.inputs.readers.safe import split_name
from scenes.options import SceneInputs
from tests.support.safe_files import (
    CRS,
    DAY,
    OFFSETS,
    SIZES,
    TILE,
    TIME,
    coarse_bands,
    grid_of,
    product_xml,
    tile_xml,
    write_band,
    write_safe,
    write_zip,
)
from tests.support.scene_cases import maps_in, write_run
from tests.support.scene_files import ground, notes_of, read_all, write_tif

SIZE = (130, 150)  # 10 m; several blocks, and no multiple of 60 m


def smooth(offset: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Reflectance x 10000 that changes from pixel to pixel, so that a shift by half a pixel is seen."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (ground(1, size=size) // 8 + 4 * rows + 7 * columns + 400 + offset).astype(np.uint16)


def expected(pixels: np.ndarray, offsets=None, order: int = 1) -> np.ndarray:
    """Bands at their own resolutions brought to 10 m by plain scipy, with offsets taken off."""
    rows, columns = np.mgrid[: pixels.shape[1], : pixels.shape[2]]
    bands = []
    for name, band in coarse_bands(pixels).items():
        places = [(axis + 0.5) / SIZES[name] - 0.5 for axis in (rows, columns)]
        values = map_coordinates(band.astype(float), places, order=order, mode="nearest")
        bands.append(np.clip(values + (offsets or {}).get(name, 0), 0, None))
    return np.stack(bands)


def series_of(*paths, **options):
    return open_series(SceneInputs(optical=[str(path) for path in paths], **options))


def products_of(*paths):
    return read_products([str(path) for path in paths], "optical", SceneInputs(optical=["x"])).optical


def check_values(path, pixels, offsets=None, bands=range(13), **options) -> None:
    series = series_of(path, **options)
    assert series.labels == (DAY,)
    read = read_all(series)
    wanted = expected(pixels, offsets, 0 if options.get("resampling") == "nearest" else 1)
    assert np.abs(read.raw[0][list(bands)] - wanted[list(bands)]).max() <= 0.51
    assert read.valid.all()


def aws(safe: Path, folder: Path) -> Path:
    """The files of a .SAFE in the layout of the AWS open data registry."""
    folder.mkdir()
    for path in safe.glob("GRANULE/*/IMG_DATA/*.jp2"):
        shutil.copy(path, folder / path.name[-7:])
    shutil.copy(next(safe.glob("GRANULE/*/MTD_TL.xml")), folder / "metadata.xml")
    (folder / "tileInfo.json").write_text(json.dumps({"path": "tiles/32/T/QM", "timestamp": f"{DAY}T10:34:00Z"}))
    (folder / "productInfo.json").write_text(json.dumps({"name": safe.stem, "timestamp": f"{DAY}T10:30:21Z"}))
    (folder / "preview").mkdir()
    for band in S2_BANDS:
        write_band(folder / "preview" / f"{band}.jp2", np.ones((16, 16), np.uint16), 32)
    return folder


def old(safe: Path, folder: Path) -> Path:
    """The same as before December 2016: names begin with the time of processing."""
    product = folder / f"S2A_OPER_PRD_MSIL1C_PDMC_20300101T000000_R065_V{DAY.replace('-', '')}{TIME}.SAFE"
    granule = product / "GRANULE" / f"S2A_OPER_MSI_L1C_TL_EPA__20300101T000000_A000734_{TILE}_N02.01"
    (granule / "IMG_DATA").mkdir(parents=True)
    for path in safe.glob("GRANULE/*/IMG_DATA/*.jp2"):
        band = path.stem[-3:]
        shutil.copy(path, granule / "IMG_DATA" / f"S2A_OPER_MSI_L1C_TL_EPA__20300101T000000_A000734_{TILE}_{band}.jp2")
    text = (safe / "MTD_MSIL1C.xml").read_text().replace(f"_{TILE}_", "_")
    (product / "S2A_OPER_MTD_SAFL1C_PDMC_20300101T000000_R065.xml").write_text(text)
    shutil.copy(next(safe.glob("GRANULE/*/MTD_TL.xml")), granule / "S2A_OPER_MTD_L1C_TL_EPA__20300101T000000.xml")
    return product


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return smooth(1000)


@pytest.fixture(scope="module")
def safe(tmp_path_factory, pixels) -> Path:
    """A compact L1C product of baseline 05.00."""
    return write_safe(tmp_path_factory.mktemp("safe"), pixels, offsets=OFFSETS)


@pytest.mark.parametrize("layout", ["folder", "zip", "xml", "IMG_DATA", "aws", "aws zip", "old", "loose"])
def test_each_layout_has_the_values_of_its_bands_at_their_places(layout, safe, pixels, tmp_path):
    path = {
        "folder": lambda: safe,
        "zip": lambda: write_zip(tmp_path / "product.bin", safe),
        "xml": lambda: safe / "MTD_MSIL1C.xml",
        "IMG_DATA": lambda: next(safe.glob("GRANULE/*/IMG_DATA")),
        "aws": lambda: aws(safe, tmp_path / "5"),
        "aws zip": lambda: write_zip(tmp_path / "aws.zip", aws(safe, tmp_path / "5"), ""),
        "old": lambda: old(safe, tmp_path),
        "loose": lambda: None,
    }[layout]()
    if path is None:
        series = series_of(*sorted(safe.glob("GRANULE/*/IMG_DATA/*.jp2")))
        assert np.abs(read_all(series).raw[0] - expected(pixels, OFFSETS)).max() <= 0.51
        return
    check_values(path, pixels, OFFSETS)
    (product,) = products_of(path)
    assert (product.level, product.day, product.path) == ("L1C", date.fromisoformat(DAY), str(path))
    assert product.overpass == DAY.replace("-", "") + TIME


def test_nearest_resampling_takes_the_pixel_in_which_each_lies(safe, pixels):
    series = series_of(safe, resampling="nearest")
    raw = read_all(series).raw[0]
    for index, (name, band) in enumerate(coarse_bands(pixels).items()):
        repeated = band.repeat(SIZES[name], 0).repeat(SIZES[name], 1)[: SIZE[0], : SIZE[1]]
        np.testing.assert_array_equal(raw[index], repeated - 1000, err_msg=name)


def test_l2a_takes_the_finest_resolution_of_each_band_and_its_scl(tmp_path, pixels):
    safe = write_safe(tmp_path, pixels, "L2A", offsets=OFFSETS)
    (product,) = products_of(safe)
    assert (product.level, product.bands[10], product.classes.kind) == ("L2A", None, "scl")
    assert product.classes.band.raster.grid.transform.a == 20
    assert product.declared_by == "MTD_MSIL2A.xml"
    check_values(write_zip(tmp_path / "l2a.zip", safe), pixels, OFFSETS, [*range(10), 11, 12])
    loose = sorted(safe.glob("GRANULE/*/IMG_DATA/R*/*.jp2"))
    series = series_of(*loose)
    assert np.abs(read_all(series).raw[0][:10] - expected(pixels, OFFSETS)[:10]).max() <= 0.51
    assert "not used" in notes_of(series)
    assert "AOT_20m" in notes_of(series)


def test_offsets_and_quantification_of_each_band_are_those_of_the_xml(tmp_path):
    offsets = {name: -1000 - 10 * index for index, name in enumerate(S2_BANDS)}
    pixels = smooth(2200)
    safe = write_safe(tmp_path, pixels, offsets=offsets, quantification=20000)
    read = read_all(series_of(safe)).raw[0]
    wanted = (expected(pixels) + np.array(list(offsets.values()))[:, None, None]) / 2
    assert np.abs(read - wanted).max() <= 0.51


def test_old_baselines_without_offsets_are_read_as_stored(tmp_path):
    pixels = smooth()
    check_values(write_safe(tmp_path, pixels, baseline="02.06"), pixels)


def test_the_baseline_in_the_tile_metadata_gives_the_offset_of_the_aws_layout(tmp_path, safe, pixels):
    folder = aws(safe, tmp_path / "5")
    (folder / "productInfo.json").unlink()
    check_values(folder, pixels, OFFSETS)
    (product,) = products_of(folder)
    assert product.declared_by == "metadata.xml"


def test_nodata_is_not_mixed_into_its_neighbours(tmp_path):
    pixels = smooth(1000)
    pixels[:, :60, :60] = 0
    safe = write_safe(tmp_path, pixels, offsets=OFFSETS)
    read = read_all(series_of(safe))
    assert not read.valid[0, :60, :60].any()
    assert read.valid[0, 63:, 63:].all()
    wanted = expected(smooth(1000), OFFSETS)
    inside = np.abs(read.raw[0] - wanted)[:, read.valid[0]]
    assert inside.max() < 100, "half of a coarse pixel beside the gap, not a mixture with 0"


def test_granules_of_one_overpass_are_one_date(tmp_path, pixels):
    first = write_safe(tmp_path, pixels, offsets=OFFSETS)
    product = old(first, tmp_path / "old")
    granule = next(product.glob("GRANULE/*"))
    second = granule.parent / granule.name.replace(TILE, "T33TUG")
    shutil.copytree(granule, second)
    for path in (*second.glob("IMG_DATA/*"), *second.glob("*.xml")):
        if path.suffix == ".jp2":
            with rasterio.open(path) as source:
                band, factor = source.read(1), round(source.transform.a / 10)
            path.unlink()
            moved = path.with_name(path.name.replace(TILE, "T33TUG"))
            write_band(moved, band, factor)
        else:
            path.write_text(tile_xml(tile="T33TUG"))
    products = products_of(product)
    assert len(products) == 2
    assert len({entry.overpass for entry in products}) == 1
    assert len(series_of(product).days) == 1


def test_loose_files_of_several_dates_and_tiles_are_grouped_by_name(tmp_path):
    pixels = smooth()
    names = [f"{tile}_{day}T101010" for tile in ("T32TQM", "T33TUG") for day in ("20180601", "20180611")]
    for name in names:
        for band, values in coarse_bands(pixels).items():
            write_band(tmp_path / f"{name}_{band}.jp2", values, SIZES[band])
    files = sorted(tmp_path.glob("*.jp2"))
    products = products_of(*reversed(files))
    assert sorted((Path(product.name).name, str(product.day)) for product in products) == [
        (name, f"{name[7:11]}-{name[11:13]}-{name[13:15]}") for name in sorted(names)
    ]
    assert {Path(product.name).name for product in products_of(tmp_path)} == set(names)


def test_kinds_of_files_are_found_by_content_not_by_ending(tmp_path):
    pixels = smooth()
    for index, (band, values) in enumerate(coarse_bands(pixels).items()):
        driver, ending = (("JP2OpenJPEG", "tif"), ("GTiff", "jp2"))[index % 2]
        write_band(tmp_path / f"T32TQM_{DAY.replace('-', '')}{TIME}_{band}.{ending}", values, SIZES[band], driver)
    check_values(tmp_path, pixels)


@pytest.mark.parametrize(
    ("name", "band", "rest"),
    [
        ("T33UUU_20170216T102101_B04.jp2", "B04", "T33UUU_20170216T102101"),
        ("T33UUU_20170216T102101_B8A_20m.jp2", "B8A", "T33UUU_20170216T102101"),
        ("L2A_T33UUU_20170216T102101_B12_60m.jp2", "B12", "L2A_T33UUU_20170216T102101"),
        ("S2A_OPER_MSI_L1C_TL_EPA__20160605T113933_A000734_T32TQM_B01.jp2", "B01", None),
        ("S2A_USER_MSI_L2A_TL_MPS__20160613T114925_A005081_T32TQR_B02_10m.jp2", "B02", None),
        ("S2A_MSIL1C_20170216T102101_B4.tif", "B04", "S2A_MSIL1C_20170216T102101"),
        ("B10.jp2", "B10", ""),
        ("2018-06-21_rededge1.tif", "B05", "2018-06-21"),
        ("MSK_DETFOO_B04.jp2", None, None),
        ("LC08_L1TP_193024_20180621_B4.TIF", None, None),
        ("T33UUU_20170216T102101_TCI.jp2", None, None),
        ("ratio_B04_B08.tif", None, None),
    ],
)
def test_bands_are_found_in_names(name, band, rest):
    index, key = split_name(name)
    assert (None if index is None else S2_BANDS[index]) == band
    assert rest is None or key == rest


def test_a_time_of_processing_in_the_name_is_no_date(tmp_path):
    for band, values in coarse_bands(smooth()).items():
        name = f"S2A_OPER_MSI_L1C_TL_EPA__20160605T113933_A000734_T32TQM_{band}.jp2"
        write_band(tmp_path / "of 2016-01-01" / name, values, SIZES[band])
    files = sorted(tmp_path.glob("*/*.jp2"))
    assert [product.day for product in products_of(*files)] == [None]
    with pytest.raises(DataError, match="no date for .*--dates"):
        series_of(*files)
    assert series_of(*files, dates=["2015-07-04"]).labels == ("2015-07-04",)


def test_metadata_of_another_tile_beside_loose_files_are_not_theirs(tmp_path):
    for band, values in coarse_bands(smooth()).items():
        write_band(tmp_path / f"T33UUU_20170216T102101_{band}.jp2", values, SIZES[band])
    (tmp_path / "MTD_MSIL1C.xml").write_text(product_xml(offsets=OFFSETS))
    (product,) = products_of(*sorted(tmp_path.glob("*.jp2")))
    assert (product.declared_by, product.day) == ("", date(2017, 2, 16))
    (tmp_path / "MTD_MSIL1C.xml").write_text(product_xml(day="2017-02-16", tile="T33UUU", offsets=OFFSETS))
    (product,) = products_of(*sorted(tmp_path.glob("*.jp2")))
    assert product.declared_by == "MTD_MSIL1C.xml"


def test_msk_classi_of_the_granule_comes_along(tmp_path, pixels):
    safe = write_safe(tmp_path, pixels, offsets=OFFSETS)
    quality = next(safe.glob("GRANULE/*/QI_DATA"))
    shape = {"height": 22, "width": 25, "count": 3, "dtype": "uint8", "crs": CRS, "transform": grid_of(6)}
    with rasterio.open(quality / "MSK_CLASSI_B00.jp2", "w", driver="JP2OpenJPEG", **shape) as target:
        target.write(np.zeros((3, 22, 25), np.uint8))
    assert [product.classes.kind for product in products_of(safe)] == ["classi"]
    assert [product.classes.kind for product in products_of(write_zip(tmp_path / "a.zip", safe))] == ["classi"]


def remove_band(safe: Path) -> Path:
    next(safe.glob("GRANULE/*/IMG_DATA/*_B04.jp2")).unlink()
    return safe


def with_doctype(safe: Path) -> Path:
    path = safe / "MTD_MSIL1C.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text().partition("?>")[2])
    return safe


def repeat_band(safe: Path) -> Path:
    path = next(safe.glob("GRANULE/*/IMG_DATA/*_B04.jp2"))
    shutil.copy(path, path.with_suffix(".tif"))
    return safe


def nested(safe: Path) -> Path:
    inner = write_zip(safe.parent / "inner.zip", safe)
    with zipfile.ZipFile(safe.parent / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    return safe.parent / "outer.zip"


def encrypted(safe: Path) -> Path:
    path = write_zip(safe.parent / "a.zip", safe)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    return path


def bomb(safe: Path) -> Path:
    path = safe.parent / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.SAFE/B04.jp2", bytes(2**25))
    return path


def truncated(safe: Path) -> Path:
    path = write_zip(safe.parent / "a.zip", safe)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def without_images(safe: Path) -> Path:
    shutil.rmtree(next(safe.glob("GRANULE/*/IMG_DATA")))
    return safe


def empty_folder(safe: Path) -> Path:
    (safe.parent / "empty").mkdir()
    return safe.parent / "empty"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_band, "bands B04 are missing, found B01, B02"),
        (with_doctype, "MTD_MSIL1C.xml .*DOCTYPE"),
        (repeat_band, "two files of B04"),
        (nested, "an archive in an archive; unpack the outer one"),
        (encrypted, "is encrypted; unpack"),
        (bomb, "would unpack from"),
        (truncated, "truncated or damaged archive"),
        (without_images, "without band files"),
        (empty_folder, "no band files of Sentinel-2 in this folder"),
    ],
)
def test_faults_are_one_line_that_names_the_file(damage, message, safe, tmp_path):
    path = damage(Path(shutil.copytree(safe, tmp_path / safe.name)))
    with pytest.raises(DataError, match=message) as error:
        series_of(path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_radar_is_not_taken_from_products(safe, tmp_path):
    optical = write_tif(tmp_path / "s2_2018-06-21.tif", ground())
    with pytest.raises(DataError, match="--sar takes images of VV and VH"):
        series_of(optical, radar=[str(safe)])


def test_archives_go_from_zip_to_cog_with_the_maps_of_the_same_pixels_as_geotiff(tmp_path, capsys):
    paths, tiffs = [], []
    for number, day in enumerate(("2018-06-01", "2018-06-11", "2018-06-21")):
        pixels = smooth(1000) + np.uint16(30 * number)
        safe = write_safe(tmp_path / "safe", pixels, day=day, offsets=OFFSETS)
        paths.append(write_zip(tmp_path / f"{safe.stem}.zip", safe))
        series = series_of(paths[-1])
        transform = series.grid.transform
        raw = read_all(series).raw[0]
        tiffs.append(write_tif(tmp_path / f"s2_{day}.tif", raw, names=S2_BANDS, crs=CRS, transform=transform, nodata=0))
    run = write_run(tmp_path / "run")
    outs = [tmp_path / "from zip", tmp_path / "from tif"]
    for files, out in zip((paths, tiffs), outs, strict=True):
        words = ["--weights", run, "--optical", *files, "--out", out, "--tile", "64", "--device", "cpu"]
        words += ["--detector", "none", "--workers", "1"]
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    maps, same = (maps_in(out) for out in outs)
    assert maps.keys() == same.keys()
    assert "reflectance" in maps
    for name, values in maps.items():
        np.testing.assert_array_equal(values, same[name], err_msg=name)
    with rasterio.open(outs[0] / "reflectance.tif") as source:
        assert (source.shape, source.transform.a, source.crs) == (SIZE, 10, CRS)


def plain(band: rasterio.DatasetReader, grid) -> np.ndarray:
    """A band on a grid of 10 m by plain scipy."""
    factor = band.transform.a / grid.transform.a
    rows, columns = np.mgrid[: grid.height, : grid.width]
    places = [(axis + 0.5) / factor - 0.5 for axis in (rows, columns)]
    return map_coordinates(band.read(1).astype(float), places, order=1, mode="nearest")


def test_real_archive_equals_plain_reading(products):
    (path,) = (products / "l1c_safe_zip").glob("*.zip")
    series = series_of(path)
    assert series.labels == ("2017-12-07",)
    read = read_all(series)
    with zipfile.ZipFile(path) as archive:
        names = {name[-7:-4]: name for name in archive.namelist() if "/IMG_DATA/" in name and "TCI" not in name}
    for index, band in enumerate(S2_BANDS):
        with rasterio.open(f"/vsizip/{{{path}}}/{names[band]}") as source:
            wanted = plain(source, series.grid)
        inside = np.zeros(series.grid.shape, bool)
        inside[:140, :140] = True  # the corner has no data, which plain interpolation mixes in
        assert np.abs(read.raw[0, index] - wanted)[inside].max() <= 0.51, band
    assert 0.99 < read.valid.mean() < 1


def test_real_band_files_equal_plain_reading(products):
    files = sorted((products / "l1c_bands_jp2").glob("*.jp2"))
    series = series_of(*files)
    assert (series.labels, series.grid.shape) == (("2017-02-16",), (768, 1536))
    read = read_all(series)
    for path in files:
        with rasterio.open(path) as source:
            wanted = plain(source, series.grid)
        assert np.abs(read.raw[0, S2_BANDS.index(path.stem[-3:])] - wanted).max() <= 0.51, path


def test_the_cache_holds_decoded_blocks_within_bounds(safe):
    with series_of(safe) as series:
        rows = sum(-(-SIZE[1] // (64 * size)) * 64 * 64 * 2 for size in SIZES.values())
        assert series.cache_bytes >= 2 * rows
    pool = DatasetPool()
    pool.reserve(series.cache_bytes, 13)
    assert pool.cache_bytes == CACHE_BYTES + series.cache_bytes
    pool.reserve(10**12, 10**6)
    assert pool.cache_bytes <= 2**30

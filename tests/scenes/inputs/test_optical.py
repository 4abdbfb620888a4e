"""A scene's optical images: bands, dates, offsets, scales, nodata, grids, lists, and windows that equal the whole."""

import json
import pickle

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from data.raster.rescaling import optical_to_unit
from scenes.inputs.bands import optical_bands
from scenes.inputs.dataset_pool import dataset_pool
from scenes.inputs.dates import date_labels, find_date, parse_date
from scenes.inputs.grid import Window
from scenes.inputs.manifest import read_manifest
from scenes.inputs.open import open_series
from tests.support.scene_files import HEIGHT, PLACE, WIDTH, ground, write_tif

WITHOUT_B10 = tuple(name for name in S2_BANDS if name != "B10")


@pytest.fixture
def optical(tmp_path):
    """Writes one image; returns its path."""

    def write(pixels=None, name="s2_2018-06-21.tif", **more) -> str:
        return write_tif(tmp_path / name, ground() if pixels is None else pixels, **more)

    return write


def read_all(series):
    with series:
        return series.read(series.grid.window)


def said(series) -> str:
    return "\n".join(series.notes)


# Bands


@pytest.mark.parametrize("spell", [str.lower, str, lambda n: f"S2_{n} (10 m)", lambda n: n.replace("B0", "B")])
def test_bands_are_found_by_name_in_any_order(spell, optical):
    order = np.random.default_rng(3).permutation(13)
    pixels = ground()
    names = ["SCL", *(spell(S2_BANDS[band]) for band in order), None]
    extra = np.full((1, HEIGHT, WIDTH), 7, np.uint16)
    path = optical(np.concatenate([extra, pixels[order], extra]), names=names)
    assert np.array_equal(read_all(open_series([path])).raw[0], pixels)


def test_gdals_own_band_names_are_understood():
    names = [f"{name.replace('B0', 'B')}, central wavelength 665 nm" for name in S2_BANDS]
    assert optical_bands("a.tif", names) == tuple(range(1, 14))


@pytest.mark.parametrize("names", [None, WITHOUT_B10])
def test_level_2a_without_b10_has_zeros_there_and_says_so(names, optical):
    pixels = ground(bands=12)
    series = open_series([optical(pixels, names=names)])
    found = read_all(series)
    assert not found.raw[0, 10].any()
    assert np.array_equal(np.delete(found.raw[0], 10, axis=0), pixels)
    assert found.valid.all()
    assert "B10 is missing and filled with 0; the network was trained on L1C" in said(series)


def test_missing_bands_are_listed(optical):
    path = optical(ground(bands=11), names=[name for name in S2_BANDS if name not in ("B05", "B8A")])
    with pytest.raises(DataError, match=r"s2_2018-06-21\.tif: missing B05, B8A; expected all bands of Sentinel-2"):
        open_series([path])
    with pytest.raises(DataError, match=r"4 bands without names; expected the 13 bands B01 to B12 in order, or 12"):
        open_series([optical(ground(bands=4))])
    with pytest.raises(DataError, match="bands 1 and 2 are both called B01"):
        open_series([optical(names=["B1", "B01", *S2_BANDS[2:]])])


# Dates


@pytest.mark.parametrize(
    ("name", "tags", "day"),
    [
        ("ROI_2018-06-21_x.tif", {}, "2018-06-21"),
        ("20180621.tif", {}, "2018-06-21"),
        ("a_2018_06_21.tif", {}, "2018-06-21"),
        ("S2A_MSIL1C_20180621T103021_N0206_R108_T32TMK_20190101T123456.tif", {}, "2018-06-21"),
        ("S1A_IW_GRDH_1SDV_20180618T165043_20180618T165108_022_026_1.tif", {}, "2018-06-18"),
        ("x_123456789_20180621.tif", {}, "2018-06-21"),  # a longer number is no date
        ("2018-06-21.tif", {"ACQUISITION_DATE": "2018-06-22T10:00:00Z"}, "2018-06-22"),
        ("a.tif", {"datetime": "20180623T103021"}, "2018-06-23"),
        ("a.tif", {"TIFFTAG_DATETIME": "2018:06:24 10:30:21"}, "2018-06-24"),
        ("2018-06-21.tif", {"TIFFTAG_DATETIME": "2024:01:01 00:00:00"}, "2018-06-21"),  # when the file was made
    ],
)
def test_dates_come_from_tags_and_names(name, tags, day):
    assert find_date(f"/data/1999-01-01/{name}", tags).isoformat() == day


def test_dates_that_are_none_are_errors(optical):
    with pytest.raises(DataError, match=r"no date for .*scene\.tif: neither its tags .* or give --dates"):
        open_series([optical(name="scene.tif")])
    with pytest.raises(DataError, match=r"impossible date 2018-02-30 in the name of"):
        find_date("a_2018-02-30.tif", {})
    with pytest.raises(DataError, match=r"--dates: expected a date like 2018-06-21, found 'June'"):
        parse_date("June", "--dates")
    with pytest.raises(UsageError, match="1 images of --optical, but 2 dates"):
        open_series([optical()], dates=["2018-06-21", "2018-06-22"])


def test_images_are_sorted_by_date_and_two_of_one_day_are_told(tmp_path):
    paths = [write_tif(tmp_path / f"{name}.tif", ground(seed)) for seed, name in enumerate("abc")]
    series = open_series(paths, dates=["2018-06-26", "2018-06-21", "2018-06-26"])
    assert series.days == (1540, 1545, 1545)  # 2014-04-03 to 2018-06-21 is 1540 days
    assert series.labels == ("2018-06-21", "2018-06-26", "2018-06-26 (2)") == date_labels(series.days)
    assert "several images of 2018-06-26: all are used" in said(series)
    assert np.array_equal(read_all(series).raw, [ground(1), ground(0), ground(2)])


# Offset and scale


@pytest.mark.parametrize(
    ("name", "tags", "shift"),
    [
        ("S2A_MSIL1C_20220621T103021_N0400_R108_T32TMK_20220621T123456.tif", {}, 1000),
        ("S2B_MSIL2A_20230621T103021_N0509_R108_T32TMK_20230621T123456.tif", {}, 1000),
        ("S2A_MSIL1C_20180621T103021_N0206_R108_T32TMK_20180621T123456.tif", {}, 0),
        ("2022-06-21.tif", {"PROCESSING_BASELINE": "04.00"}, 1000),
        ("2022-06-21.tif", {"PROCESSING_BASELINE": "N0510"}, 1000),
        ("2018-06-21.tif", {"PROCESSING_BASELINE": "02.06"}, 0),
        ("2022-06-21.tif", {"RADIO_ADD_OFFSET_3": "-1000"}, 1000),
        ("2022-06-21.tif", {"BOA_ADD_OFFSET": "-1000"}, 1000),
        ("2022-06-21.tif", {"BOA_ADD_OFFSET": "0", "PROCESSING_BASELINE": "05.00"}, 0),  # the file's word for it
    ],
)
def test_the_offset_of_new_baselines_is_taken_off(name, tags, shift, optical):
    pixels = ground()
    pixels[:, 3, 4] = 0  # no data: not shifted
    pixels[2, 5, 5] = 900  # below the offset: 0, not 65436
    series = open_series([optical(pixels, name=name, tags=tags, nodata=0)])
    found = read_all(series)
    expected = np.maximum(pixels.astype(int) - shift, 0)
    assert np.array_equal(found.raw[0], expected)
    assert not found.valid[0, 3, 4]
    assert found.valid.sum() == HEIGHT * WIDTH - 1
    assert ("-1000 is added to the stored values" in said(series)) == (shift > 0)


def test_the_offset_can_be_told(optical):
    path = optical(name="S2A_MSIL1C_20220621T103021_N0400_R108_T32TMK_20220621T123456.tif")
    assert np.array_equal(read_all(open_series([path], offset="none")).raw[0], ground())
    plain = optical()
    series = open_series([plain], offset="-1000")
    assert np.array_equal(read_all(series).raw[0], ground() - 1000)
    assert "-1000 is added to the stored values, as given (2018-06-21)" in series.notes
    with pytest.raises(UsageError, match="--offset takes auto, none or a number such as -1000, not 'much'"):
        open_series([plain], offset="much")
    with pytest.raises(DataError, match=r"tag PROCESSING_BASELINE of .* is 'new'; expected a number"):
        open_series([optical(tags={"PROCESSING_BASELINE": "new"})])


def test_what_cannot_be_known_about_the_offset_is_said(optical):
    series = open_series([optical(name="2023-06-21.tif")])
    assert "nothing says whether the offset of -1000 was taken off" in said(series)
    assert "the lowest sampled value is 15" in said(series)  # of ground(): 1500 and a bit
    low = ground()
    low[:, ::2, ::2] = 200
    assert "the lowest sampled value" not in said(open_series([optical(low)]))


def test_reflectance_between_0_and_1_is_refused_until_told(optical):
    unit = (ground() / 10000).astype(np.float32)
    path = optical(unit)
    with pytest.raises(
        DataError, match=r"expected reflectance x 10000, found values up to 0\.6; multiply by 10000, or give --scale 1"
    ):
        open_series([path])
    assert np.array_equal(read_all(open_series([path], scale=1.0)).raw[0], ground())
    with pytest.raises(DataError, match="uint8 values; expected reflectance x 10000 as uint16"):
        open_series([optical(np.full((13, HEIGHT, WIDTH), 90, np.uint8))])


def test_declared_scale_and_offset_are_applied(optical):
    declared = optical((ground() // 2 + 500).astype(np.uint16), scale=0.0002, offset=-0.1)
    series = open_series([declared])
    assert np.array_equal(read_all(series).raw[0], ground() // 2 * 2)
    assert "values are scaled as the file declares: times 2, plus -1000, x 10000" in said(series)
    own = optical(scale=1e-4, tags={"PROCESSING_BASELINE": "04.00"})  # like our own products: declared means declared
    assert np.array_equal(read_all(open_series([own])).raw[0], ground())


def test_signed_and_float_values_are_rounded_into_range(optical):
    pixels = ground().astype(np.float32)
    pixels[0, 0, :3] = (-50, 1999.6, 1e6)
    found = read_all(open_series([optical(pixels)])).raw[0]
    assert found[0, 0, :3].tolist() == [0, 2000, 65535]
    assert np.array_equal(found[1:], ground()[1:])


# Missing pixels


@pytest.mark.parametrize("declared", [None, 0])
def test_zero_in_all_bands_is_missing_but_not_in_one(declared, optical):
    pixels = ground()
    pixels[:, :10, :20] = 0
    pixels[10, 20] = 0  # B10 does reach 0
    series = open_series([optical(pixels, nodata=declared)])
    found = read_all(series)
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[:10, :20] = False
    assert np.array_equal(found.valid[0], expected)
    assert series.nodata == declared
    assert ("no nodata value is declared" in said(series)) == (declared is None)


def test_other_nodata_values_nan_and_masks_are_missing(optical):
    pixels = ground()
    pixels[4, 7, 8] = 65535
    found = read_all(open_series([optical(pixels, nodata=65535)]))
    assert np.argwhere(~found.valid[0]).tolist() == [[7, 8]]
    assert not found.raw[0, :, 7, 8].any()
    assert not found.optical[0, :, 7, 8].any()
    floats = ground().astype(np.float32)
    floats[4, 9, 8] = np.nan
    assert np.argwhere(~read_all(open_series([optical(floats)])).valid[0]).tolist() == [[9, 8]]


def test_a_mask_within_the_file_counts(tmp_path):
    path = write_tif(tmp_path / "2018-06-21.tif", ground())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[2, 3] = 0
        target.write_mask(mask)
    series = open_series([path])
    assert np.argwhere(~read_all(series).valid[0]).tolist() == [[2, 3]]
    assert "nodata" not in said(series)


# Files


def test_grids_must_agree_and_the_error_names_both(tmp_path):
    first = write_tif(tmp_path / "a_2018-06-21.tif", ground())

    def differs(**more) -> str:
        other = write_tif(tmp_path / "b_2018-06-26.tif", more.pop("pixels", ground()), **more)
        with pytest.raises(DataError, match=r"a_2018-06-21\.tif and .*b_2018-06-26\.tif have different") as error:
            open_series([other, first])
        return str(error.value)

    assert "coordinate systems EPSG:32632 and EPSG:32633" in differs(crs="EPSG:32633")
    assert "sizes 70 x 90 and 64 x 90" in differs(pixels=ground(size=(64, 90)))
    assert "upper left corners (400000, 5000000) and (400010, 5000000)" in differs(
        transform=from_origin(400_010, 5_000_000, 10, 10)
    )
    assert "pixel sizes 10 x -10 and 20 x -20" in differs(transform=from_origin(400_000, 5_000_000, 20, 20))
    near = from_origin(400_000.01, 5_000_000, 10, 10)  # a thousandth of a pixel: rounding
    write_tif(tmp_path / "b_2018-06-26.tif", ground(), transform=near)
    assert open_series([first, str(tmp_path / "b_2018-06-26.tif")]).grid.transform == PLACE


def test_truncated_and_other_files_are_found_at_opening(tmp_path):
    plain, path = tmp_path / "2018-06-20.tif", tmp_path / "2018-06-21.tif"
    rasterio.shutil.copy(
        write_tif(plain, ground(), compress="deflate"), path, driver="COG"
    )  # its directory comes first
    for place in (plain, path):
        content = place.read_bytes()
        place.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*2018-06-20\.tif .*; fetch it again"):
        open_series([str(plain)])
    with pytest.raises(DataError, match=r"truncated or damaged image: .*2018-06-21\.tif .*; fetch it again"):
        open_series([str(path)])
    path.write_text("no image")
    with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*2018-06-21\.tif"):
        open_series([str(path)])
    with pytest.raises(DataError, match=r"no such image: .*2018-06-22\.tif"):
        open_series([str(tmp_path / "2018-06-22.tif")])


def test_damage_that_opening_does_not_see_is_told_when_reading(tmp_path):
    path = tmp_path / "2018-06-21.tif"
    write_tif(path, ground(), compress="deflate")
    content = bytearray(path.read_bytes())
    series = open_series([str(path)])
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"truncated or damaged image: .*2018-06-21\.tif"):
        read_all(series)


def test_windows_equal_the_whole(tmp_path):
    paths = [write_tif(tmp_path / f"2018-06-2{day}.tif", ground(day), compress="deflate") for day in (1, 6)]
    with open_series(paths) as series:
        whole = series.read(series.grid.window)
        assert np.array_equal(whole.optical, optical_to_unit(whole.raw))
        assert whole.optical.dtype == np.float32
        assert whole.radar is None
        assert not series.has_radar
        for window in (Window(0, 0, 1, 1), Window(30, 31, 33, 40), Window(69, 89, 1, 1), Window(0, 5, 70, 64)):
            part = series.read(window)
            for name in ("raw", "optical", "valid"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[(..., *window.slices)])
        with pytest.raises(ValueError, match="does not lie within 70 x 90 pixels"):
            series.read(Window(60, 0, 11, 5))


def test_a_series_is_pickled_without_files_and_closes_them(tmp_path):
    paths = [write_tif(tmp_path / f"2018-06-2{day}.tif", ground(day)) for day in (1, 6)]
    before = len(dataset_pool())
    series = open_series(paths)
    assert len(dataset_pool()) == before  # looking at them leaves nothing open
    with series:
        expected = series.read(Window(3, 4, 5, 6))
        assert len(dataset_pool()) == before + 2
        again = pickle.loads(pickle.dumps(series))
        assert np.array_equal(again.read(Window(3, 4, 5, 6)).raw, expected.raw)
        assert len(dataset_pool()) == before + 2  # one set of files for a process
    assert len(dataset_pool()) == before
    assert again == series
    assert series.paths == tuple(paths)


# Lists


def test_lists_in_csv_and_json_say_the_same(tmp_path):
    for seed, name in enumerate("ab"):
        write_tif(tmp_path / "images" / f"{name}.tif", ground(seed))
    rows = [
        {"optical": "images/a.tif", "date": "2018-06-26"},
        {"optical": str(tmp_path / "images" / "b.tif"), "date": "2018-06-21T10:30:21Z"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    lines = ["optical,date", *(f"{row['optical']}, {row['date']}" for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "semicolon.csv").write_text("\r\n".join(line.replace(",", ";") for line in lines))
    listed = [open_series(manifest=str(tmp_path / name)) for name in ("list.json", "list.csv", "semicolon.csv")]
    assert listed[0] == listed[1] == listed[2]
    assert listed[0].labels == ("2018-06-21", "2018-06-26")
    assert np.array_equal(read_all(listed[0]).raw, [ground(1), ground(0)])


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "a.csv",
            "image,date\na.tif,2018-06-21\n",
            "row 1 of the list .*: unknown image; expected optical, radar, date",
        ),
        ("a.csv", "optical,date\n", "names no image"),
        ("a.csv", "optical,date\n,2018-06-21\n", "row 1 of the list .*: no optical image"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "{}", "must be a JSON list of objects with optical"),
        ("a.json", '["a.tif"]', "expected an object with optical.*, found 'a.tif'"),
        ("a.csv", "optical,date\na.tif,then\n", r"date of .*a\.tif: expected a date like 2018-06-21, found 'then'"),
        ("a.csv", "optical,date\na.tif,2018-06-21\na.tif,2018-06-26\n", r"a\.tif is named twice"),
    ],
)
def test_bad_lists_are_told(name, text, match, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        open_series(manifest=str(tmp_path / name))


def test_lists_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot read the list .*none.csv: No such file"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00optical")
    with pytest.raises(DataError, match="is not text: expected CSV or JSON"):
        read_manifest(tmp_path / "list.csv")


def test_sources_of_images_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="expected one of --optical, --list and --folder"):
        open_series()
    with pytest.raises(UsageError, match="expected one of --optical, --list and --folder"):
        open_series(["a.tif"], manifest="b.csv")
    with pytest.raises(UsageError, match="a list or a folder names its own"):
        open_series(manifest="b.csv", radar=["a.tif"])
    with pytest.raises(UsageError, match="--numbers chooses among the 30 dates of --folder"):
        open_series(["a.tif"], numbers=[1])

"""What values say: the order of bands without names, and an offset that is still in the values or was taken off."""

import numpy as np
import pytest
import rasterio

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from data.raster.rescaling import sar_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.values.evidence import check_order, offset_evidence
from scenes.options import SceneInputs
from tests.support.scene_files import HEIGHT, WIDTH, ground, notes_of, read_all, write_tif

WITHOUT_B10 = tuple(name for name in S2_BANDS if name != "B10")
SORTED = (*S2_BANDS[:8], "B09", "B10", "B11", "B12", "B8A")
ORDERS = {
    "sorted by file name": SORTED,
    "sorted, without B10": tuple(name for name in SORTED if name != "B10"),
    "without B8A": tuple(name for name in S2_BANDS if name != "B8A"),
    "without B01": S2_BANDS[1:],
    "without B09": tuple(name for name in S2_BANDS if name != "B09"),
    "by resolution": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09", "B10"),
    "by common name": ("B02", "B01", "B03", "B08", "B8A", "B09", "B04", "B05", "B06", "B07", "B11", "B12"),
    "backwards": S2_BANDS[::-1],
}


def ordered(pixels: np.ndarray, names) -> np.ndarray:
    return pixels[[S2_BANDS.index(name) for name in names]]


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_other_orders_of_unnamed_bands_are_refused(names, write_optical):
    path = write_optical(ordered(ground(), names))
    with pytest.raises(
        DataError, match=rf"06-21\.tif: {len(names)} bands without names, expected B01 to B12 .* but "
    ) as e:
        open_series(SceneInputs([path]))
    if set(names) < set(S2_BANDS) and "B10" in names:
        assert "; they look like B01 to B12 without B" in str(e.value)
        return
    # the command in the message brings them into order
    command = str(e.value).partition("(gdal_translate ")[2].rstrip(")").split()
    positions = [int(word) - 1 for word in command if word != "-b"]
    expected = S2_BANDS if len(names) == 13 else WITHOUT_B10
    assert tuple(names[position] for position in positions) == expected
    named = write_optical(ordered(ground(), names), names=names)  # with names any order is read
    present = [S2_BANDS.index(name) for name in names]
    assert np.array_equal(read_all(open_series(SceneInputs([named]))).raw[0][present], ordered(ground(), names))


@pytest.mark.parametrize("bands", [13, 12])
def test_the_expected_order_is_accepted_also_where_values_do_not_tell(bands):
    pixels = ground(bands=bands).reshape(bands, -1).astype(float)
    check_order("a.tif", pixels)
    check_order("a.tif", pixels[::-1, :49])  # few pixels
    check_order("a.tif", np.full((bands, 100), 3000.0) if bands == 12 else pixels * 0 + 5.0)  # no features


def test_an_offset_that_nothing_declares_is_taken_off_by_the_evidence_of_b10(write_optical):
    series = open_series(SceneInputs([write_optical(ground(offset=1000))]))
    assert np.array_equal(read_all(series).raw[0], ground())
    assert "-1000 is added to the values, which still hold the offset of new baselines: B10, near 0 on" in notes_of(
        series
    )
    kept = open_series(SceneInputs([write_optical(ground(offset=1000))], offset="none"))
    assert np.array_equal(read_all(kept).raw[0], ground(offset=1000))


def test_a_declaration_that_the_offset_was_taken_off_is_checked(write_optical):
    path = write_optical(ground(offset=1000), tags={"BOA_ADD_OFFSET": "0"})
    with pytest.raises(
        DataError, match=r"tag BOA_ADD_OFFSET declares no offset, but 1000 is still in .*give --offset -1000"
    ):
        open_series(SceneInputs([path]))
    assert np.array_equal(read_all(open_series(SceneInputs([path], offset="-1000"))).raw[0], ground())


def test_an_offset_that_was_taken_off_already_is_not_taken_off_again(write_optical):
    path = write_optical(tags={"PROCESSING_BASELINE": "04.00"})
    with pytest.raises(
        DataError,
        match=r"tag PROCESSING_BASELINE 04\.00 declares an offset of -1000, but 100 % of B10 would lie below a "
        r"reflectance of -0\.02: it was taken off already; give --offset none",
    ):
        open_series(SceneInputs([path]))
    assert np.array_equal(read_all(open_series(SceneInputs([path], offset="none"))).raw[0], ground())


def test_l2a_that_may_hold_the_offset_is_refused_until_it_is_given(write_optical):
    dark = (ground(bands=12) // 4 + 1000).astype(np.uint16)  # forest and water
    path = write_optical(dark, name="2023-06-21.tif")
    with pytest.raises(
        DataError, match=r"nothing says whether the offset of -1000 was taken off .*give --offset -1000 to"
    ):
        open_series(SceneInputs([path]))
    result = read_all(open_series(SceneInputs([path], offset="-1000"))).raw[0]
    assert np.array_equal(np.delete(result, 10, axis=0), dark - 1000)
    declared = open_series(SceneInputs([write_optical(dark, tags={"BOA_ADD_OFFSET": "0"})]))
    assert "tag BOA_ADD_OFFSET declares no offset, but the darkest pixels of most bands lie just" in notes_of(declared)


def test_evidence_of_an_offset():
    bands, pixels = range(13), ground().reshape(13, -1).astype(float)
    assert offset_evidence(pixels, bands).kind == "out"
    assert offset_evidence(pixels + 1000, bands).kind == "in"
    assert offset_evidence(pixels / 4 + 3000, bands).kind == ""  # clouds
    assert offset_evidence(pixels[:, :49] + 1000, bands).kind == ""  # few pixels


def test_an_offset_that_contradicts_the_product_is_noted(write_optical):
    bright = 3000 + ground() // 4
    path = write_optical(bright, names=S2_BANDS, tags={"PROCESSING_BASELINE": "02.06"})
    notes = notes_of(open_series(SceneInputs([path], offset="-1000")))
    assert "-1000 is added to the stored values, as given, though tag PROCESSING_BASELINE 02.06 declares 0" in notes


def test_each_image_of_a_series_has_its_own_offset(tmp_path):
    old = write_tif(tmp_path / "2021-06-21.tif", ground(1))
    new = write_tif(tmp_path / "2022-06-21.tif", ground(2, offset=1000))
    expected = [ground(1), ground(2)]
    with pytest.raises(
        DataError, match=r"2021-06-21\.tif: with --offset -1000 100 % of B10 would lie below .* each image"
    ):
        open_series(SceneInputs([old, new], offset="-1000"))
    assert np.array_equal(read_all(open_series(SceneInputs([old, new], offset=["none", "-1000"]))).raw, expected)
    assert np.array_equal(read_all(open_series(SceneInputs([new, old], offset=["-1000", "auto"]))).raw, expected)
    assert np.array_equal(read_all(open_series(SceneInputs([old, new]))).raw, expected)  # by the evidence
    with pytest.raises(UsageError, match="3 values of --offset; give one for each"):
        open_series(SceneInputs([old, new], offset=["none", "-1000", "none"]))
    (tmp_path / "list.csv").write_text("optical,offset\n2021-06-21.tif,\n2022-06-21.tif,-1000\n")
    assert np.array_equal(read_all(open_series(SceneInputs(manifest=str(tmp_path / "list.csv")))).raw, expected)


def test_each_image_of_a_series_has_its_own_scale(tmp_path):
    unit = write_tif(tmp_path / "2018-06-21.tif", (ground(1) / 10000).astype(np.float32))
    plain = write_tif(tmp_path / "2018-06-26.tif", ground(2))
    series = open_series(SceneInputs([unit, plain], scale=[1.0, 0.0001]))
    assert np.array_equal(read_all(series).raw, [ground(1), ground(2)])
    (tmp_path / "list.json").write_text('[{"optical": "2018-06-21.tif", "scale": 1}, {"optical": "2018-06-26.tif"}]')
    listed = open_series(SceneInputs(manifest=str(tmp_path / "list.json")))
    assert np.array_equal(read_all(listed).raw, [ground(1), ground(2)])


@pytest.mark.parametrize("tag", ["RADIO_ADD_OFFSET", "BOA_ADD_OFFSET_3"])
def test_a_declared_scale_does_not_hide_the_tag_of_the_offset(tag, write_optical):
    path = write_optical(ground(offset=1000), scale=1e-4, tags={tag: "-1000"})
    assert np.array_equal(read_all(open_series(SceneInputs([path]))).raw[0], ground())


def test_bands_with_scales_and_offsets_of_their_own(write_optical, tmp_path):
    stored = ground()
    stored[3] //= 2
    path = write_optical(stored, names=S2_BANDS)
    with rasterio.open(path, "r+") as target:
        target.scales = [2e-4 if band == 3 else 1e-4 for band in range(13)]
        target.offsets = [0.01 if band == 3 else 0.0 for band in range(13)]
    series = open_series(SceneInputs([path]))
    expected = ground()
    expected[3] = expected[3] // 2 * 2 + 100
    assert np.array_equal(read_all(series).raw[0], expected)
    assert "times 1 (B01), 2 (B04), plus 0 (B01), 100 (B04), x 10000" in notes_of(series)


@pytest.mark.parametrize(
    ("folder", "name", "offset"),
    [
        ("tiles_N0512_R108", "2018-06-21.tif", 0),  # a folder above an unrelated file
        ("x", "tile_N0512_E0030_2018-06-21.tif", 0),  # a place
        ("S2A_MSIL1C_20220621T103021_N0400_R108_T32TMK_20220621T123456.SAFE", "2022-06-21.tif", 1000),
        ("x", "S2A_MSIL1C_20220621T103021_N0400_R108_T32TMK_20220621T123456.tif", 1000),
    ],
)
def test_the_baseline_is_taken_from_the_product_only(folder, name, offset, tmp_path):
    names = S2_BANDS
    bright = (3000 + ground() // 4).astype(np.uint16)  # of which nobody can tell
    path = write_tif(tmp_path / folder / name, bright, names=names)
    assert np.array_equal(read_all(open_series(SceneInputs([path]))).raw[0], bright - offset)


def test_values_that_wrapped_around_are_refused(write_optical):
    wrapped = ground() - np.uint16(1000)  # 500 becomes 65036
    with pytest.raises(
        DataError, match=r"values such as 6\d{4}, as those below 0 become when 1000 is subtracted in uint16"
    ):
        open_series(SceneInputs([write_optical(wrapped, names=S2_BANDS)]))
    saturated = ground()
    saturated[3, 5, 5] = 65535
    assert np.array_equal(read_all(open_series(SceneInputs([write_optical(saturated)]))).raw[0], saturated)


def test_zeros_are_missing_whatever_nodata_is_declared(write_optical):
    for dtype, nodata in ((np.float32, np.nan), (np.float32, -9999), (np.uint16, 65535), (np.int16, -9999)):
        pixels = ground().astype(dtype)
        pixels[:, :, :7] = 0
        result = read_all(open_series(SceneInputs([write_optical(pixels, nodata=nodata)])))
        assert np.array_equal(result.valid[0], np.broadcast_to(np.arange(WIDTH) >= 7, (HEIGHT, WIDTH)))
    full = ground()
    full[:, :, :7] = 65535  # nothing declares it
    assert not read_all(open_series(SceneInputs([write_optical(full)]))).valid[0, :, :7].any()


def test_zero_in_any_band_is_missing_where_an_offset_applies(write_optical):
    pixels = ground(offset=1000)
    pixels[10, 5, 6] = pixels[3, 8, 9] = 0
    for path in (
        write_optical(pixels, tags={"RADIO_ADD_OFFSET": "-1000"}),
        write_optical(pixels, scale=1e-4, offset=-0.1),
        write_optical(pixels, names=S2_BANDS),  # by the evidence
        write_optical(((pixels - 1000.0) / 10000).astype(np.float32), scale=1.0, offset=0.0, names=S2_BANDS),
    ):
        inputs = SceneInputs([path], scale=1.0) if path is None else SceneInputs([path])
        if rasterio.open(path).dtypes[0] == "float32":
            inputs = SceneInputs([path], scale=1.0)
        result = read_all(open_series(inputs))
        assert np.argwhere(~result.valid[0]).tolist() == [[5, 6], [8, 9]]


def test_edges_of_the_swath_are_missing_and_dark_water_is_not(write_optical):
    pixels = ground()
    pixels[:] = np.maximum(pixels, 1)
    pixels[5:9, :, :4] = 0  # red edge and infrared end before the others
    pixels[3:9, :, 4] = 0
    pixels[4, :, 4] = 0
    pixels[:, 20:25, 20:25] = np.array([300, 200, 150, 80, 60, 30, 20, 0, 0, 0, 0, 0, 0])[:, None, None]  # water
    result = read_all(open_series(SceneInputs([write_optical(pixels, names=S2_BANDS)])))
    assert result.valid[0, 20:25, 20:25].all()
    bright = pixels[4] >= 1000
    assert not result.valid[0, :, :4][bright[:, :4]].any()
    assert result.valid[0, :, 5:].all()


def test_real_images_are_read_or_refused_by_their_values(products):
    new, old = (products / "majortom" / "S2L1C" / name for name in ("282D_485L_3_3.tif", "637U_59R_1_3.tif"))
    for path, offset in ((new, 1000), (old, 0)):
        with rasterio.open(path) as source:
            expected = np.maximum(source.read().astype(int) - offset, 0)
        result = read_all(open_series(SceneInputs([str(path)], dates=["2021-07-21"]))).raw[0]
        assert np.array_equal(result, expected)
    toa = next((products / "sen2r").glob("*TOA*"))
    with pytest.raises(DataError, match=r"12 bands without names, .* they look like B01 to B12 without B8A"):
        open_series(SceneInputs([str(toa)]))


def test_real_radar_is_recognised(products):
    paths = sorted((products / "majortom" / "S1RTC").glob("*.tif"))
    optical = products / "majortom" / "S2L1C" / paths[0].name
    inputs = SceneInputs([str(optical)], [str(paths[0])], dates=["2021-07-21"])
    with rasterio.open(paths[0]) as source:
        assert np.array_equal(read_all(open_series(inputs)).radar[0], sar_to_unit(source.read().astype(np.float32)))

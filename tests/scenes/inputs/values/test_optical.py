"""Values of optical images: offsets, scales, types, and missing pixels."""

import numpy as np
import pytest
import rasterio

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.scene_files import HEIGHT, WIDTH, ground, notes_of, read_all, write_tif


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
def test_the_offset_of_new_baselines_is_taken_off(name, tags, shift, write_optical):
    pixels = ground(offset=shift)
    pixels[:, 3, 4] = 0  # no data: not shifted
    pixels[2, 5, 5] = 900  # below the offset: 0, not 65436
    series = open_series(SceneInputs([write_optical(pixels, name=name, tags=tags, nodata=0)]))
    result = read_all(series)
    expected = np.maximum(pixels.astype(int) - shift, 0)
    assert np.array_equal(result.raw[0], expected)
    assert not result.valid[0, 3, 4]
    assert result.valid.sum() == HEIGHT * WIDTH - 1
    assert ("-1000 is added to the stored values" in notes_of(series)) == (shift > 0)


def test_the_offset_can_be_told(write_optical):
    pixels = ground(offset=1000)
    path = write_optical(pixels, name="S2A_MSIL1C_20220621T103021_N0400_R108_T32TMK_20220621T123456.tif")
    series = open_series(SceneInputs([path], offset="none"))
    assert np.array_equal(read_all(series).raw[0], pixels)
    assert "an offset of 1000 seems to be in the values, and is left there as given: B10, near 0" in notes_of(series)
    plain = write_optical(pixels)
    series = open_series(SceneInputs([plain], offset="-1000"))
    assert np.array_equal(read_all(series).raw[0], ground())
    assert "-1000 is added to the stored values, as given (2018-06-21)" in series.notes
    with pytest.raises(UsageError, match="--offset takes auto, none or a number such as -1000, not 'much'"):
        open_series(SceneInputs([plain], offset="much"))
    with pytest.raises(DataError, match=r"tag PROCESSING_BASELINE of .* is 'new'; expected a number"):
        open_series(SceneInputs([write_optical(tags={"PROCESSING_BASELINE": "new"})]))


def test_what_cannot_be_known_about_the_offset_is_said(write_optical):
    bright = 3000 + ground() // 4  # like cloud
    series = open_series(SceneInputs([write_optical(bright, name="2023-06-21.tif", names=S2_BANDS)]))
    assert "nothing says whether the offset of -1000 was taken off" in notes_of(series)
    assert "the lowest sampled value is 3001" in notes_of(series)
    low = ground()
    assert "the lowest sampled value" not in notes_of(open_series(SceneInputs([write_optical(low)])))


def test_reflectance_between_0_and_1_is_refused_until_told(write_optical):
    unit = (ground() / 10000).astype(np.float32)
    path = write_optical(unit)
    with pytest.raises(
        DataError,
        match=r"expected reflectance x 10000, found values up to 0\.5\d*; multiply by 10000, or give --scale 1",
    ):
        open_series(SceneInputs([path]))
    assert np.array_equal(read_all(open_series(SceneInputs([path], scale=1.0))).raw[0], ground())
    with pytest.raises(DataError, match="uint8 values; expected reflectance x 10000 as uint16"):
        open_series(SceneInputs([write_optical(np.full((13, HEIGHT, WIDTH), 90, np.uint8))]))


def test_declared_scale_and_offset_are_applied(write_optical):
    declared = write_optical((ground() // 2 + 500).astype(np.uint16), scale=0.0002, offset=-0.1)
    series = open_series(SceneInputs([declared]))
    assert np.array_equal(read_all(series).raw[0], ground() // 2 * 2)
    assert "values are scaled as the file declares: times 2, plus -1000, x 10000" in notes_of(series)
    own = write_optical(
        scale=1e-4, tags={"PROCESSING_BASELINE": "04.00"}
    )  # like our own products: declared means declared
    assert np.array_equal(read_all(open_series(SceneInputs([own]))).raw[0], ground())


def test_signed_and_float_values_are_rounded_into_range(write_optical):
    pixels = ground().astype(np.float32)
    pixels[0, 0, :3] = (-50, 1999.6, 1e6)
    result = read_all(open_series(SceneInputs([write_optical(pixels)]))).raw[0]
    assert result[0, 0, :3].tolist() == [0, 2000, 65535]
    assert np.array_equal(result[1:], ground()[1:])


@pytest.mark.parametrize("declared", [None, 0])
def test_zero_in_all_bands_is_missing_but_not_in_one(declared, write_optical):
    pixels = ground()
    pixels[:, :10, :20] = 0
    pixels[10, 20] = 0  # B10 does reach 0
    series = open_series(SceneInputs([write_optical(pixels, nodata=declared)]))
    result = read_all(series)
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[:10, :20] = False
    assert np.array_equal(result.valid[0], expected)
    assert series.nodata == declared
    assert ("no nodata value is declared" in notes_of(series)) == (declared is None)


def test_other_nodata_values_nan_and_masks_are_missing(write_optical):
    pixels = ground()
    pixels[4, 7, 8] = 65535
    result = read_all(open_series(SceneInputs([write_optical(pixels, nodata=65535)])))
    assert np.argwhere(~result.valid[0]).tolist() == [[7, 8]]
    assert not result.raw[0, :, 7, 8].any()
    assert not result.optical[0, :, 7, 8].any()
    floats = ground().astype(np.float32)
    floats[4, 9, 8] = np.nan
    assert np.argwhere(~read_all(open_series(SceneInputs([write_optical(floats)]))).valid[0]).tolist() == [[9, 8]]


def test_a_mask_within_the_file_counts(tmp_path):
    path = write_tif(tmp_path / "2018-06-21.tif", ground())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[2, 3] = 0
        target.write_mask(mask)
    series = open_series(SceneInputs([path]))
    assert np.argwhere(~read_all(series).valid[0]).tolist() == [[2, 3]]
    assert "nodata" not in notes_of(series)


def test_infinite_values_are_missing(write_optical):
    pixels = ground().astype(np.float32)
    pixels[4, 3, 4], pixels[:, 5, 6] = np.inf, -np.inf
    result = read_all(open_series(SceneInputs([write_optical(pixels)])))
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[3, 4] = valid[5, 6] = False
    assert np.array_equal(result.valid[0], valid)
    assert not result.raw[0][:, ~valid].any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0])
def test_images_without_data_are_refused_or_noted(value, write_optical):
    empty = write_optical(np.full((13, HEIGHT, WIDTH), value, np.float32), name="s2_2018-06-16.tif")
    with pytest.raises(
        DataError, match=r"06-16\.tif and all other optical images: no pixel has data: all are nodata, NaN"
    ):
        open_series(SceneInputs([empty]))
    series = open_series(SceneInputs([empty, write_optical()]))
    assert "no pixel has data: all are nodata, NaN, infinite, or 0 in all bands (2018-06-16)" in notes_of(series)


def test_data_between_the_sampled_windows_count(write_optical):
    pixels = np.zeros((13, 400, 400), np.uint16)
    pixels[:, 40, 40] = 3000
    assert read_all(open_series(SceneInputs([write_optical(pixels)]))).valid.sum() == 1


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"offset": -20000}, r"found 5 to 5830, to which -20000 is added"),
        ({"offset": -65535}, r"found 5 to 5830, to which -65535 is added"),
        ({"scale": 1.0}, r"found 50000 to 5\.83e\+07"),
        ({"scale": 1e-3, "offset": 40000}, r"found 50 to 58300, to which 40000 is added"),
    ],
)
def test_values_that_are_no_reflectance_are_refused(inputs, found, write_optical):
    with pytest.raises(DataError, match=rf"2018-06-21\.tif: expected reflectance x 10000, {found}; check --scale and"):
        open_series(SceneInputs([write_optical()], **inputs))


def test_negative_values_alone_are_no_reflectance(write_optical):
    with pytest.raises(DataError, match=r"expected reflectance x 10000, found -5830 to -5; check --scale"):
        open_series(SceneInputs([write_optical(-ground().astype(np.float32))]))


@pytest.mark.parametrize(("scale", "offset"), [(np.nan, 0), (-1e-4, 0), (0.0, 0), (1e-4, np.inf)])
def test_declared_scales_and_offsets_must_be_numbers(scale, offset, write_optical):
    with pytest.raises(DataError, match="which gives no reflectance; check the scale and offset that it declares"):
        open_series(SceneInputs([write_optical(scale=scale, offset=offset)]))


def test_an_offset_in_a_tag_must_be_a_number(write_optical):
    path = write_optical(name="2022-06-21.tif", tags={"BOA_ADD_OFFSET": "nan"})
    with pytest.raises(DataError, match="which gives no reflectance"):
        open_series(SceneInputs([path]))


@pytest.mark.parametrize("place", [(np.nan, 0, 0, 0, -10, 0), (0, 0, 5, 0, 0, 7), (10, 10, 0, 10, 10, 0)])
def test_pixels_without_a_position_are_refused(place, write_optical):
    path = write_optical(transform=rasterio.Affine(*place))
    with pytest.raises(DataError, match=r"2018-06-21\.tif: its transform .* gives pixels no position"):
        open_series(SceneInputs([path]))


def test_coordinates_that_are_nowhere_on_earth_are_refused(write_optical):
    local = 'LOCAL_CS["arbitrary",UNIT["metre",1]]'
    with pytest.raises(DataError, match=r"06-21\.tif: its coordinate system, .*does not place it in longitude and lat"):
        open_series(SceneInputs([write_optical(crs=local)]))
    far = rasterio.transform.from_origin(1e12, 0, 10, 10)
    with pytest.raises(DataError, match=r"its coordinate system, EPSG:32632, does not place it .*; assign the right"):
        open_series(SceneInputs([write_optical(transform=far)]))
    assert open_series(SceneInputs([write_optical(crs=None)])).grid.crs is None

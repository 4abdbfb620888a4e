"""Radar images: units, missing pixels, and resampling to the optical grid."""

import numpy as np
import pytest
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform
from scipy.ndimage import map_coordinates

from common.errors import DataError, UsageError
from data.raster.rescaling import sar_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.rasters.grid import Window
from scenes.options import SceneInputs
from tests.support.scene_files import (
    CRS,
    HEIGHT,
    PLACE,
    WIDTH,
    ZONE_31,
    ground,
    notes_of,
    read_all,
    speckle,
    write_tif,
    zone_31,
)


def test_radar_on_the_optical_grid_is_read_as_it_is(optical, tmp_path):
    backscatter = speckle()
    backscatter[0, 3, 4] = np.nan
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter)
    series = open_series(SceneInputs([optical], [path]))
    assert np.array_equal(read_all(series).radar[0], sar_to_unit(backscatter))
    assert read_all(series).radar[0, 0, 3, 4] == 0  # as the data sets have NaN
    assert series.has_radar
    assert (series.days, series.radar_days) == ((1540,), (1537,))
    assert series.paths == (optical, path)
    assert "radar goes with optical dates thus: 2018-06-21 with 2018-06-18" in series.notes
    assert not any("brought onto" in note for note in series.notes)


def test_radar_of_another_crs_is_interpolated_where_the_optical_pixels_lie(optical, tmp_path):
    place, size = zone_31(margin=8)
    backscatter = speckle(size=size)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, crs=ZONE_31, transform=place)
    series = open_series(SceneInputs([optical], [path]))
    result = read_all(series).radar[0]
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    xs, ys = transform(CRS, ZONE_31, (400_000 + 10 * columns).ravel(), (5_000_000 - 10 * rows).ravel())
    there = [(place.f - np.array(ys)) / 10 - 0.5, (np.array(xs) - place.c) / 10 - 0.5]
    expected = [map_coordinates(band.astype(float), there, order=1).reshape(HEIGHT, WIDTH) for band in backscatter]
    # bilinear between exact places; float32 weights and places to 1e-6 of a pixel leave 2e-5 dB of 25
    np.testing.assert_allclose(result, sar_to_unit(np.array(expected)), atol=2e-6)
    assert any(
        note.startswith("radar is brought onto the grid of the optical images, bilinearly, in dB")
        for note in series.notes
    )


def test_radar_agrees_with_rasterios_reprojection_of_the_whole(optical, tmp_path):
    place, size = zone_31(margin=8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([-12 + 3 * np.sin(rows / 20), -15 + 3 * np.cos(columns / 20)]).astype(np.float32)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", smooth, crs=ZONE_31, transform=place)
    result = read_all(open_series(SceneInputs([optical], [path]))).radar[0]
    full = np.empty((2, HEIGHT, WIDTH), np.float32)
    how = {"src_transform": place, "src_crs": ZONE_31, "dst_transform": PLACE, "dst_crs": CRS}
    reproject(smooth, full, resampling=Resampling.bilinear, **how)
    # an eighth of a pixel, by which rasterio's places are off, times the slope of 3/20 dB a pixel, of a range of 25 dB
    np.testing.assert_allclose(result, sar_to_unit(full), atol=0.125 * 3 / 20 / 25 * 1.5)


def test_windows_of_warped_radar_equal_the_whole(optical, tmp_path):
    place, size = zone_31(margin=8)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(size=size), crs=ZONE_31, transform=place)
    with open_series(SceneInputs([optical], [path])) as series:
        full = series.read(series.grid.window).radar
        parts = np.empty_like(full)
        for top in range(0, HEIGHT, 23):
            for left in range(0, WIDTH, 31):
                window = Window(top, left, min(23, HEIGHT - top), min(31, WIDTH - left))
                parts[(..., *window.slices)] = series.read(window).radar
    np.testing.assert_allclose(parts, full, atol=2e-6)  # 5e-5 dB; by GDAL's defaults pieces differ by 5 dB in speckle


def test_finer_radar_is_averaged(optical, tmp_path):
    fine = np.repeat(np.repeat(speckle(), 4, axis=1), 4, axis=2)
    fine += np.resize([1.0, -1.0], fine.shape[-1]).astype(np.float32)  # a ripple from pixel to pixel
    path = write_tif(tmp_path / "s1_2018-06-18.tif", fine, transform=from_origin(400_000, 5_000_000, 2.5, 2.5))
    result = read_all(open_series(SceneInputs([optical], [path]))).radar[0] * 25 - 25
    # the triangle of 4 pixels' half-width keeps 3/4 of a pixel's own value along each side and none of the ripple
    kernel = np.array([1, 6, 1]) / 8
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), 1, speckle())
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), 2, expected)
    np.testing.assert_allclose(result[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-3)
    assert np.abs(expected - speckle()).max() > 1  # picking pixels would give the speckle, plus or minus the ripple


def test_where_radar_misses_it_counts_as_zero_and_the_share_is_said(optical, tmp_path):
    half = from_origin(400_000 + 10 * WIDTH // 2, 5_000_000, 10, 10)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(), transform=half)
    series = open_series(SceneInputs([optical], [path]))
    result = read_all(series).radar[0]
    assert not result[..., : WIDTH // 2].any()
    assert np.array_equal(result[..., WIDTH // 2 :], sar_to_unit(speckle())[..., : WIDTH // 2])
    assert any("radar covers 52 % of the scene" in note for note in series.notes)  # 17 of 33 points
    far = write_tif(tmp_path / "s1_2018-06-19.tif", speckle(), transform=from_origin(600_000, 5_000_000, 10, 10))
    with pytest.raises(DataError, match=r"s1_2018-06-19\.tif: this radar image does not overlap the optical images"):
        open_series(SceneInputs([optical], [far]))


@pytest.mark.parametrize("declared", [None, -999.0])
def test_radar_nodata_and_empty_borders_are_missing(declared, optical, tmp_path):
    backscatter = speckle()
    backscatter[:, :5] = 0 if declared is None else declared
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, nodata=declared)
    assert not read_all(open_series(SceneInputs([optical], [path]))).radar[0, :, :5].any()
    assert read_all(open_series(SceneInputs([optical], [path]))).radar[0, :, 5:].all()


def test_warped_radar_does_not_mix_nodata_in(optical, tmp_path):
    backscatter = np.full((2, HEIGHT, WIDTH), -10, np.float32)
    backscatter[:, 20:30] = -9999
    shifted = from_origin(400_005, 5_000_005, 10, 10)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, nodata=-9999, transform=shifted)
    result = read_all(open_series(SceneInputs([optical], [path]))).radar[0]
    assert set(np.unique(result).tolist()) == {0.0, np.float32(0.6).item()}
    assert not result[:, 21:29].any()


def as_stored(decibels: np.ndarray, units: str) -> np.ndarray:
    """Backscatter in other units."""
    if units == "coded":  # of openEO
        return (10 ** ((decibels + 83) / 20)).round().astype(np.uint16)
    factor = {"db": 1, "power": 10, "amplitude": 20}[units]
    return decibels if units == "db" else (10 ** (decibels / factor)).astype(np.float32)


@pytest.mark.parametrize(
    ("units", "note"),
    [
        ("db", ""),
        ("power", "linear power of radar is turned into dB, by its values; else give --sar_units"),
        ("amplitude", "amplitude of radar is turned into dB, by its values; else give --sar_units"),
        ("coded", "radar is stored as amplitude with dB = 20 log10(value) -83, by its values"),
    ],
)
def test_units_of_radar_are_recognised_by_its_values(units, note, optical, tmp_path):
    path = write_tif(tmp_path / "s1_2018-06-18.tif", as_stored(speckle(), units), names=["VV", "VH"])
    series = open_series(SceneInputs([optical], [path]))
    # 5e-4 dB of 25: rounding of coded values near 700
    np.testing.assert_allclose(
        read_all(series).radar[0], sar_to_unit(speckle()), atol=5e-4 if units == "coded" else 1e-6
    )
    assert (f"{note} (s1_2018-06-18.tif)" in series.notes) == bool(note)
    assert ("turned into dB" in notes_of(series)) == (units in ("power", "amplitude"))


def test_units_that_are_given_must_fit_the_values(optical, tmp_path):
    power = write_tif(tmp_path / "s1_2018-06-18.tif", as_stored(speckle(), "power"))
    with pytest.raises(
        DataError, match="expected backscatter in dB, found positive values only, .*; leave --sar_units db"
    ):
        open_series(SceneInputs([optical], [power], radar_units="db"))
    series = open_series(SceneInputs([optical], [power], radar_units="power"))
    np.testing.assert_allclose(read_all(series).radar[0], sar_to_unit(speckle()), atol=1e-6)  # float32 logarithms
    assert "linear power of radar is turned into dB, as given (s1_2018-06-18.tif)" in series.notes
    decibels = write_tif(tmp_path / "s1_2018-06-19.tif", speckle())
    for units, name in (("power", "linear power"), ("amplitude", "amplitude")):
        with pytest.raises(DataError, match=f"expected {name}, found -.*; leave --sar_units {units} out"):
            open_series(SceneInputs([optical], [decibels], radar_units=units))
    with pytest.raises(UsageError, match="--sar_units must be one of auto, db, power, amplitude, not 'watt'"):
        open_series(SceneInputs([optical], [decibels], radar_units="watt"))


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (
            100 * speckle(),
            r"expected backscatter in dB, found -1\d{3} and -1\d{3} in the median; if they are hundredths",
        ),
        (
            as_stored(speckle(), "power") * 100_000**0.5,
            "expected backscatter in dB or calibrated, found digital numbers",
        ),
    ],
)
def test_values_that_are_no_backscatter_are_refused(pixels, match, optical, tmp_path):
    path = write_tif(tmp_path / "s1_2018-06-18.tif", pixels)
    with pytest.raises(DataError, match=match):
        open_series(SceneInputs([optical], [path]))


def test_unnamed_vh_and_vv_are_swapped_with_a_note(optical, tmp_path):
    swapped = write_tif(tmp_path / "s1_2018-06-18.tif", speckle()[::-1])
    series = open_series(SceneInputs([optical], [swapped]))
    assert np.array_equal(read_all(series).radar[0], sar_to_unit(speckle()))
    assert "its bands have no names and are taken as VH, VV: the second one lies 5.9 dB above" in notes_of(series)
    power = write_tif(tmp_path / "s1_2018-06-19.tif", as_stored(speckle()[::-1], "power"), names=["bands", "bands"])
    result = read_all(open_series(SceneInputs([optical], [power]))).radar[0]
    np.testing.assert_allclose(result, sar_to_unit(speckle()), atol=1e-6)
    named = write_tif(tmp_path / "s1_2018-06-20.tif", speckle()[::-1], names=["VV", "VH"])
    series = open_series(SceneInputs([optical], [named]))
    assert np.array_equal(read_all(series).radar[0], sar_to_unit(speckle()[::-1]))  # names count
    assert "of its bands, VV lies 5.9 dB below VH; check their order" in notes_of(series)


def test_zeros_at_the_border_are_not_interpolated(optical, tmp_path):
    backscatter = np.stack([np.full((HEIGHT, WIDTH), -10, np.float32), np.full((HEIGHT, WIDTH), -16, np.float32)])
    backscatter[:, :, -30:] = 0
    shifted = from_origin(400_005, 5_000_005, 10, 10)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, transform=shifted)
    result = read_all(open_series(SceneInputs([optical], [path]))).radar[0]
    assert set(np.unique(result[0]).tolist()) == {0.0, np.float32(0.6).item()}  # -5 dB is no mean of ground and border
    assert not result[..., -29:].any()


def test_power_is_interpolated_before_decibels_are_made(optical, tmp_path):
    power = np.full((2, HEIGHT, WIDTH), 0.01, np.float32)
    power[..., WIDTH // 2 :] = 1.0
    shifted = from_origin(400_005, 5_000_000, 10, 10)  # half a pixel: the mean of two neighbours
    path = write_tif(tmp_path / "s1_2018-06-18.tif", power, transform=shifted)
    result = read_all(open_series(SceneInputs([optical], [path], radar_units="power"))).radar[0, 0, 30] * 25 - 25
    assert result[WIDTH // 2] == pytest.approx(
        10 * np.log10((0.01 + 1) / 2), abs=1e-4
    )  # -3 dB, not the -10 of decibels


def test_frames_of_one_day_are_put_together(optical, tmp_path):
    left, right = speckle(1), speckle(2)
    left[..., 50:] = np.nan
    right[..., :40] = np.nan
    paths = [write_tif(tmp_path / f"s1_20180618_{name}.tif", frame) for name, frame in (("a", left), ("b", right))]
    month_later = write_tif(tmp_path / "s1_20180718.tif", speckle(3))
    series = open_series(SceneInputs([optical], [*paths, month_later]))
    expected = np.concatenate([left[..., :50], right[..., 50:]], axis=-1)  # the first one wins where both are
    assert np.array_equal(read_all(series).radar[0], sar_to_unit(expected))
    assert series.paths == (optical, *paths)
    assert series.radar_days == (1537,)


def test_files_without_crs_must_share_the_grid(tmp_path):
    optical = write_tif(tmp_path / "s2_2018-06-21.tif", ground(), crs=None)
    same = write_tif(tmp_path / "s1_2018-06-21.tif", speckle(), crs=None)
    assert np.array_equal(read_all(open_series(SceneInputs([optical], [same]))).radar[0], sar_to_unit(speckle()))
    placed = write_tif(tmp_path / "s1_2018-06-22.tif", speckle())
    with pytest.raises(DataError, match="lie on different grids, and one of them has no CRS"):
        open_series(SceneInputs([optical], [placed]))


def test_infinite_backscatter_is_missing(optical, tmp_path):
    backscatter = speckle()
    backscatter[0, 3, 4], backscatter[1, 5, 6] = np.inf, -np.inf  # 10 log10(0)
    series = open_series(SceneInputs([optical], [write_tif(tmp_path / "s1_2018-06-18.tif", backscatter)]))
    backscatter[~np.isfinite(backscatter)] = np.nan
    assert np.array_equal(read_all(series).radar[0], sar_to_unit(backscatter))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_radar_without_data_is_noted(optical, tmp_path, value):
    path = write_tif(tmp_path / "s1_2018-06-18.tif", np.full((2, HEIGHT, WIDTH), value, np.float32))
    notes = "\n".join(open_series(SceneInputs([optical], [path])).notes)
    assert "no sampled pixel has data: all are nodata, NaN or infinite (s1_2018-06-18.tif)" in notes


def test_radar_needs_a_scale_and_a_place(optical, tmp_path):
    def refused(message: str, **options) -> None:
        path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(), **options)
        with pytest.raises(DataError, match=rf"s1_2018-06-18\.tif: {message}"):
            open_series(SceneInputs([optical], [path]))

    refused("it declares a scale of nan and an offset of 0; expected numbers", scale=np.nan)
    refused("its transform .* gives pixels no position", transform=from_origin(np.nan, 0, 10, 10))
    refused("no transformation from EPSG:32632 to LOCAL_CS", crs='LOCAL_CS["arbitrary",UNIT["metre",1]]')

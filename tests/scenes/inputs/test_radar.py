"""A scene's radar images: bands, units, pairing by date, and the way onto the optical grid."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform
from scipy.ndimage import map_coordinates

from common.errors import DataError, UsageError
from data.raster.rescaling import sar_to_unit
from scenes.inputs.dates import pair_nearest
from scenes.inputs.grid import Grid, Window
from scenes.inputs.open import open_series
from tests.support.scene_files import CRS, HEIGHT, PLACE, WIDTH, ground, speckle, write_tif

ZONE_31 = "EPSG:32631"


@pytest.fixture
def optical(tmp_path) -> str:
    return write_tif(tmp_path / "s2_2018-06-21.tif", ground())


def zone_31(margin: int) -> tuple:
    """A grid of zone 31 that reaches `margin` pixels beyond the scene, and its size."""
    scene = Grid(HEIGHT, WIDTH, PLACE, CRS)
    xs, ys = transform(CRS, ZONE_31, *zip(*(scene.xy(*corner) for corner in scene.corners), strict=True))
    left, top = min(xs) - 10 * margin, max(ys) + 10 * margin
    size = (round((top - min(ys)) / 10) + margin, round((max(xs) - left) / 10) + margin)
    return from_origin(left, top, 10, 10), size


def read_radar(series) -> np.ndarray:
    with series:
        return series.read(series.grid.window).radar


def test_radar_on_the_optical_grid_is_read_as_it_is(optical, tmp_path):
    backscatter = speckle()
    backscatter[0, 3, 4] = np.nan
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter)
    series = open_series([optical], [path])
    assert np.array_equal(read_radar(series)[0], sar_to_unit(backscatter))
    assert read_radar(series)[0, 0, 3, 4] == 0  # as the data sets have NaN
    assert series.has_radar
    assert (series.days, series.radar_days) == ((1540,), (1537,))
    assert series.paths == (optical, path)
    assert "radar goes with optical dates thus: 2018-06-21 with 2018-06-18" in series.notes
    assert not any("brought onto" in note for note in series.notes)


def test_radar_bands_are_found_by_name(optical, tmp_path):
    backscatter = speckle()
    angle = np.full((1, HEIGHT, WIDTH), 38, np.float32)
    shuffled = np.concatenate([angle, backscatter[::-1]])
    path = write_tif(tmp_path / "s1_2018-06-18.tif", shuffled, names=["angle", "Sigma0_VH_db", "Sigma0_VV_db"])
    assert np.array_equal(read_radar(open_series([optical], [path]))[0], sar_to_unit(backscatter))
    other = write_tif(tmp_path / "s1_2018-06-19.tif", backscatter, names=["HH", "HV"])
    with pytest.raises(DataError, match=r"s1_2018-06-19\.tif: bands called HH, HV; expected VV and VH"):
        open_series([optical], [other])
    with pytest.raises(DataError, match="3 bands without names; expected VV and VH of Sentinel-1"):
        open_series([optical], [write_tif(tmp_path / "s1_2018-06-20.tif", shuffled)])


def test_radar_of_another_crs_is_interpolated_where_the_optical_pixels_lie(optical, tmp_path):
    place, size = zone_31(margin=8)
    backscatter = speckle(size=size)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, crs=ZONE_31, transform=place)
    series = open_series([optical], [path])
    found = read_radar(series)[0]
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    xs, ys = transform(CRS, ZONE_31, (400_000 + 10 * columns).ravel(), (5_000_000 - 10 * rows).ravel())
    there = [(place.f - np.array(ys)) / 10 - 0.5, (np.array(xs) - place.c) / 10 - 0.5]
    expected = [map_coordinates(band.astype(float), there, order=1).reshape(HEIGHT, WIDTH) for band in backscatter]
    # bilinear between exact places; float32 weights and places to 1e-6 of a pixel leave 2e-5 dB of 25
    np.testing.assert_allclose(found, sar_to_unit(np.array(expected)), atol=2e-6)
    assert any(
        note.startswith("radar is brought onto the grid of the optical images, bilinearly, in dB")
        for note in series.notes
    )


def test_radar_agrees_with_rasterios_reprojection_of_the_whole(optical, tmp_path):
    place, size = zone_31(margin=8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([-12 + 3 * np.sin(rows / 20), -15 + 3 * np.cos(columns / 20)]).astype(np.float32)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", smooth, crs=ZONE_31, transform=place)
    found = read_radar(open_series([optical], [path]))[0]
    whole = np.empty((2, HEIGHT, WIDTH), np.float32)
    how = {"src_transform": place, "src_crs": ZONE_31, "dst_transform": PLACE, "dst_crs": CRS}
    reproject(smooth, whole, resampling=Resampling.bilinear, **how)
    # an eighth of a pixel, by which rasterio's places are off, times the slope of 3/20 dB a pixel, of a range of 25 dB
    np.testing.assert_allclose(found, sar_to_unit(whole), atol=0.125 * 3 / 20 / 25 * 1.5)


def test_windows_of_warped_radar_equal_the_whole(optical, tmp_path):
    place, size = zone_31(margin=8)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(size=size), crs=ZONE_31, transform=place)
    with open_series([optical], [path]) as series:
        whole = series.read(series.grid.window).radar
        parts = np.empty_like(whole)
        for top in range(0, HEIGHT, 23):
            for left in range(0, WIDTH, 31):
                window = Window(top, left, min(23, HEIGHT - top), min(31, WIDTH - left))
                parts[(..., *window.slices)] = series.read(window).radar
    np.testing.assert_allclose(parts, whole, atol=2e-6)  # 5e-5 dB; by GDAL's defaults pieces differ by 5 dB in speckle


def test_finer_radar_is_averaged(optical, tmp_path):
    fine = np.repeat(np.repeat(speckle(), 4, axis=1), 4, axis=2)
    fine += np.resize([1.0, -1.0], fine.shape[-1]).astype(np.float32)  # a ripple from pixel to pixel
    path = write_tif(tmp_path / "s1_2018-06-18.tif", fine, transform=from_origin(400_000, 5_000_000, 2.5, 2.5))
    found = read_radar(open_series([optical], [path]))[0] * 25 - 25
    # the triangle of 4 pixels' half-width keeps 3/4 of a pixel's own value along each side and none of the ripple
    kernel = np.array([1, 6, 1]) / 8
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), 1, speckle())
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), 2, expected)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-3)
    assert np.abs(expected - speckle()).max() > 1  # picking pixels would give the speckle, plus or minus the ripple


def test_where_radar_misses_it_counts_as_zero_and_the_share_is_said(optical, tmp_path):
    half = from_origin(400_000 + 10 * WIDTH // 2, 5_000_000, 10, 10)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(), transform=half)
    series = open_series([optical], [path])
    found = read_radar(series)[0]
    assert not found[..., : WIDTH // 2].any()
    assert np.array_equal(found[..., WIDTH // 2 :], sar_to_unit(speckle())[..., : WIDTH // 2])
    assert any("radar covers 52 % of the scene" in note for note in series.notes)  # 17 of 33 points look right
    far = write_tif(tmp_path / "s1_2018-06-19.tif", speckle(), transform=from_origin(600_000, 5_000_000, 10, 10))
    with pytest.raises(DataError, match=r"s1_2018-06-19\.tif: this radar image does not overlap the optical images"):
        open_series([optical], [far])


@pytest.mark.parametrize("declared", [None, -999.0])
def test_radar_nodata_and_empty_borders_are_missing(declared, optical, tmp_path):
    backscatter = speckle()
    backscatter[:, :5] = 0 if declared is None else declared
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, nodata=declared)
    assert not read_radar(open_series([optical], [path]))[0, :, :5].any()
    assert read_radar(open_series([optical], [path]))[0, :, 5:].all()


def test_warped_radar_does_not_mix_nodata_in(optical, tmp_path):
    backscatter = np.full((2, HEIGHT, WIDTH), -10, np.float32)
    backscatter[:, 20:30] = -9999
    shifted = from_origin(400_005, 5_000_005, 10, 10)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", backscatter, nodata=-9999, transform=shifted)
    found = read_radar(open_series([optical], [path]))[0]
    assert set(np.unique(found).tolist()) == {0.0, np.float32(0.6).item()}
    assert not found[:, 21:29].any()


def test_linear_power_is_refused_until_told(optical, tmp_path):
    power = (10 ** (speckle() / 10)).astype(np.float32)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", power)
    with pytest.raises(
        DataError,
        match=r"expected backscatter in dB, found positive values only, .*; if they are linear power add --sar_units",
    ):
        open_series([optical], [path])
    series = open_series([optical], [path], radar_units="power")
    np.testing.assert_allclose(read_radar(series)[0], sar_to_unit(speckle()), atol=1e-6)  # float32 logarithms
    assert "linear power of radar is turned into dB, as given (s1_2018-06-18.tif)" in series.notes
    decibels = write_tif(tmp_path / "s1_2018-06-19.tif", speckle())
    with pytest.raises(DataError, match="expected linear power, found -"):
        open_series([optical], [decibels], radar_units="power")
    with pytest.raises(UsageError, match="--sar_units must be one of db, power, not 'amplitude'"):
        open_series([optical], [decibels], radar_units="amplitude")


def test_power_is_interpolated_before_decibels_are_made(optical, tmp_path):
    power = np.full((2, HEIGHT, WIDTH), 0.01, np.float32)
    power[..., WIDTH // 2 :] = 1.0
    shifted = from_origin(400_005, 5_000_000, 10, 10)  # half a pixel: the mean of two neighbours
    path = write_tif(tmp_path / "s1_2018-06-18.tif", power, transform=shifted)
    found = read_radar(open_series([optical], [path], radar_units="power"))[0, 0, 30] * 25 - 25
    assert found[WIDTH // 2] == pytest.approx(10 * np.log10((0.01 + 1) / 2), abs=1e-4)  # -3 dB, not the -10 of decibels


def test_radar_goes_with_the_nearest_date():
    assert pair_nearest([10, 20, 30], [28, 12]) == (1, 1, 0)
    assert pair_nearest([10], [12, 8]) == (1,)  # as near: the earlier one
    assert pair_nearest([10, 11], [10, 10]) == (0, 0)


def test_far_and_unused_radar_is_told(tmp_path):
    optical = [write_tif(tmp_path / f"s2_2018-06-{day}.tif", ground()) for day in ("01", "21")]
    radar = [write_tif(tmp_path / f"s1_2018-{day}.tif", speckle(seed)) for seed, day in enumerate(("06-20", "05-10"))]
    unused = write_tif(tmp_path / "s1_2018-01-01.tif", speckle(5))
    series = open_series(optical, [*radar, unused])
    notes = "\n".join(series.notes)
    assert "2018-06-01 with 2018-06-20; 2018-06-21 with 2018-06-20" in notes  # 19 days off, the other one is 22
    assert "radar of 2018-06-20 lies 19 days from the optical image of 2018-06-01" in notes
    assert "not used: s1_2018-05-10.tif, s1_2018-01-01.tif" in notes
    assert np.array_equal(read_radar(series)[1], sar_to_unit(speckle(0)))


def test_frames_of_one_day_are_put_together(optical, tmp_path):
    left, right = speckle(1), speckle(2)
    left[..., 50:] = np.nan
    right[..., :40] = np.nan
    paths = [write_tif(tmp_path / f"s1_20180618_{name}.tif", frame) for name, frame in (("a", left), ("b", right))]
    other = write_tif(tmp_path / "s1_20180718.tif", speckle(3))
    series = open_series([optical], [*paths, other])
    expected = np.concatenate([left[..., :50], right[..., 50:]], axis=-1)  # the first one wins where both are
    assert np.array_equal(read_radar(series)[0], sar_to_unit(expected))
    assert series.paths == (optical, *paths)
    assert series.radar_days == (1537,)


def test_a_list_pairs_radar_by_row(tmp_path):
    for seed, day in enumerate(("01", "21")):
        write_tif(tmp_path / f"s2_2018-06-{day}.tif", ground(seed))
    write_tif(tmp_path / "near.tif", speckle(1))
    write_tif(tmp_path / "told.tif", speckle(2))
    rows = ("optical,radar,radar_date", "s2_2018-06-01.tif,told.tif,2018-06-20", "s2_2018-06-21.tif,,")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    series = open_series(manifest=str(tmp_path / "list.csv"))
    assert series.radar_days == (1539, 1539)
    found = read_radar(series)
    assert np.array_equal(found, [sar_to_unit(speckle(2))] * 2)


def test_files_without_crs_must_share_the_grid(tmp_path):
    optical = write_tif(tmp_path / "s2_2018-06-21.tif", ground(), crs=None)
    same = write_tif(tmp_path / "s1_2018-06-21.tif", speckle(), crs=None)
    assert np.array_equal(read_radar(open_series([optical], [same]))[0], sar_to_unit(speckle()))
    placed = write_tif(tmp_path / "s1_2018-06-22.tif", speckle())
    with pytest.raises(DataError, match="lie on different grids, and one of them has no CRS"):
        open_series([optical], [placed])


def test_radar_files_are_closed(optical, tmp_path):
    from scenes.inputs.dataset_pool import dataset_pool

    place, size = zone_31(margin=8)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(size=size), crs=ZONE_31, transform=place)
    before = len(dataset_pool())
    with open_series([optical], [path]) as series:
        series.read(Window(0, 0, 4, 4))
        assert len(dataset_pool()) == before + 2
        opened = list(dataset_pool()._open.values())[-2:]
    assert len(dataset_pool()) == before
    assert all(source.closed for source in opened)
    with rasterio.open(path, "r+") as again:  # nobody holds it
        again.update_tags(a="b")

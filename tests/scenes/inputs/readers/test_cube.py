"""Cubes of openEO, odc-stac, stackstac, Sentinel Hub and xcube give the bands, dates and places that they hold."""

import json
import pickle
import shutil
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from rasterio.crs import CRS as RasterioCRS
from rasterio.transform import from_origin

from common.errors import DataError
from data.constants import S2_BANDS
from scenes.inputs.open import open_series, read_products
from scenes.inputs.rasters.dataset_pool import dataset_pool, gdal_settings
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import ImageFile
from scenes.inputs.readers.cube import READER
from scenes.options import SceneInputs
from tests.support.scene_files import CRS, HEIGHT, PLACE, WIDTH, ground, notes_of, read_all, speckle, write_tif, zone_31

DAYS = ("2018-06-21", "2018-06-26", "2018-07-01")
TIMES = np.array([f"{day}T10:30:21" for day in DAYS], "datetime64[ns]")
PIXELS = np.stack([ground(seed) for seed in range(3)])  # (T, 13, y, x)
Y, X = 5_000_000 - 5 - 10.0 * np.arange(HEIGHT), 400_000 + 5 + 10.0 * np.arange(WIDTH)
WKT = RasterioCRS.from_string(CRS).to_wkt()
COMMON = (
    *("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3"),
    *("nir", "nir08", "nir09", "cirrus", "swir16", "swir22"),
)


def variables(pixels=PIXELS, names=S2_BANDS, dims=("time", "y", "x"), **attrs) -> xr.Dataset:
    """One variable a band."""
    coords = {dims[0]: TIMES, dims[1]: Y, dims[2]: X}
    bands = {name: (dims, pixels[:, index], attrs) for index, name in enumerate(names)}
    return xr.Dataset(bands, coords)


def openeo(path: Path) -> Path:
    """A netCDF cube whose coordinate system is a variable, with prefixes to the names of bands."""
    cube = variables(names=[f"S2-L1C-{name}" for name in S2_BANDS], dims=("t", "y", "x"), grid_mapping="crs")
    cube["crs"] = xr.Variable((), b"", {"crs_wkt": WKT, "spatial_ref": WKT})
    cube.to_netcdf(path.with_suffix(".nc"), engine="h5netcdf", encoding={"t": {"units": "days since 1990-01-01"}})
    return path.with_suffix(".nc")


def netcdf3(path: Path) -> Path:
    """The oldest format, which has no unsigned 16 bit integers."""
    cube = variables(PIXELS.astype(np.int32), grid_mapping="spatial_ref")
    cube["spatial_ref"] = xr.Variable((), 0, {"crs_wkt": WKT})
    cube.to_netcdf(path.with_suffix(".nc"), engine="scipy", format="NETCDF3_64BIT")
    return path.with_suffix(".nc")


def odc_stac(path: Path, zarr_format: int = 2) -> Path:
    """Variables by common names, with `spatial_ref` as coordinate and nodata as an attribute."""
    cube = variables(names=list(COMMON), nodata=0, units="1", grid_mapping="spatial_ref")
    cube["SCL"] = (("time", "y", "x"), np.full(PIXELS[:, 0].shape, 4, np.uint8))
    cube = cube.assign_coords(spatial_ref=xr.Variable((), 32632, {"spatial_ref": WKT}))
    cube.to_zarr(path.with_suffix(".zarr"), zarr_format=zarr_format, consolidated=zarr_format == 2)
    return path.with_suffix(".zarr")


def odc_stac_v3(path: Path) -> Path:
    return odc_stac(path, 3)


def stackstac(path: Path) -> Path:
    """One array with coordinates of upper left corners, several of them along bands and dates."""
    cube = xr.DataArray(
        PIXELS.astype(np.float64),
        dims=("time", "band", "y", "x"),
        coords={
            "time": TIMES,
            "band": list(COMMON),
            "y": Y + 5,
            "x": X - 5,
            "epsg": 32632,
            "title": ("band", [f"Band {name}" for name in S2_BANDS]),
            "eo:cloud_cover": ("time", [1.0, 2.0, 3.0]),
        },
        attrs={"transform": [10.0, 0, 400_000, 0, -10.0, 5_000_000, 0, 0, 1], "resolution": 10.0},
        name="stackstac-1",
    )
    cube.to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
    return path.with_suffix(".nc")


def sentinel_hub(path: Path) -> Path:
    """xcube: reflectance as float32, says its unit."""
    cube = variables((PIXELS / 10_000).astype(np.float32), units="reflectance", grid_mapping="crs")
    cube["crs"] = xr.Variable((), 0, {"crs_wkt": WKT})
    cube["B04"].attrs["wavelength"] = 664.8
    cube.to_zarr(path.with_suffix(".zarr"), zarr_format=2)
    return path.with_suffix(".zarr")


def wavelengths(path: Path) -> Path:
    """A dimension of wavelengths in nanometres, rows from south to north, columns from east to west."""
    nanometres = [443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1375, 1610, 2190]
    cube = xr.DataArray(
        PIXELS[..., ::-1, ::-1],
        dims=("time", "wavelength", "y", "x"),
        coords={"time": TIMES, "wavelength": nanometres, "y": Y[::-1], "x": X[::-1]},
        attrs={"crs": CRS},
        name="toa",
    )
    cube.transpose("y", "x", "wavelength", "time").to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
    return path.with_suffix(".nc")


@pytest.mark.parametrize(
    "write",
    [openeo, netcdf3, odc_stac, odc_stac_v3, stackstac, sentinel_hub, wavelengths],
    ids=lambda own: own.__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_every_layout_gives_bands_dates_and_places(tmp_path, write):
    path = str(write(tmp_path / "cube"))
    assert READER.recognises(path)
    series = open_series(SceneInputs([path]))
    assert series.labels == DAYS
    assert series.grid.difference(Grid(HEIGHT, WIDTH, PLACE, RasterioCRS.from_string(CRS))) == ""
    pixels = read_all(series)
    assert np.array_equal(pixels.raw, PIXELS)
    assert pixels.valid.all()
    part = Window(7, 11, 40, 30)
    assert np.array_equal(series.read(part).raw, PIXELS[(..., *part.slices)])
    series.close()


def test_packed_values_are_declared_by_bands_and_equal_those_of_h5py(tmp_path):
    path = tmp_path / "cube.nc"
    with h5py.File(path, "w") as file:
        dims = [
            file.create_dataset(name, data=values) for name, values in (("t", [6380, 6385, 6390]), ("y", Y), ("x", X))
        ]
        dims[0].attrs["units"] = np.bytes_("days since 2001-01-01")
        for own, name in zip(dims, "tyx", strict=True):
            own.make_scale(name)
        stored = (PIXELS + 1000).astype(np.uint16)
        stored[0, :, :9, :9] = 65535
        for index, name in enumerate(S2_BANDS):
            band = file.create_dataset(
                name, data=stored[:, index].view(np.int16), chunks=(1, 32, 32), compression="gzip"
            )
            for axis, own in enumerate(dims):
                band.dims[axis].attach_scale(own)
            packing = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": np.int16(-1)}
            band.attrs.update({"_Unsigned": np.bytes_("true"), **packing})
        file.attrs["crs"] = CRS
    product = read_products([str(path)], "optical", SceneInputs([str(path)])).optical[1]
    assert product.day == date(2018, 6, 26)
    assert {(band.scale, band.offset, band.nodata) for band in product.bands} == {(1e-4, -0.1, 65535.0)}
    series = open_series(SceneInputs([str(path)]))
    pixels = read_all(series)
    with h5py.File(path) as file:
        plain = np.stack([file[name][:].view(np.uint16) for name in S2_BANDS], axis=1)
    expected = np.where(plain == 65535, 0, plain.astype(np.int64) - 1000)
    assert np.array_equal(pixels.raw, expected)
    assert not pixels.valid[0, :9, :9].any()
    assert pixels.valid.sum() == pixels.valid.size - 81


def test_a_dimension_of_bands_whose_names_are_elsewhere(tmp_path):
    names = xr.DataArray(PIXELS, dims=("time", "band", "y", "x"), coords={"time": TIMES, "y": Y, "x": X})
    along = names.assign_coords(common_name=("band", list(COMMON)), band=np.arange(1, 14))
    along.attrs["crs"] = CRS
    along.to_netcdf(tmp_path / "along.nc", engine="h5netcdf")
    listed = names.assign_attrs(long_name=list(S2_BANDS), crs=CRS)
    listed.to_zarr(tmp_path / "listed.zarr", zarr_format=2)
    for name in ("along.nc", "listed.zarr"):
        assert np.array_equal(read_all(open_series(SceneInputs([str(tmp_path / name)]))).raw, PIXELS)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.array(DAYS), DAYS),
        (np.array(["20180621T103021", "20180626T103021", "20180701T103021"]), DAYS),
        (np.array([20180621, 20180626, 20180701]), DAYS),
    ],
)
def test_dates_may_be_texts(tmp_path, times, expected):
    cube = variables().assign_coords(time=times).assign_attrs(crs=CRS)
    cube.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    assert open_series(SceneInputs([str(tmp_path / "cube.nc")])).labels == expected


def test_dates_without_a_unit_are_refused_unless_given(tmp_path):
    path = str(tmp_path / "cube.nc")
    variables().assign_coords(time=[1, 2, 3]).assign_attrs(crs=CRS).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match="numbers without a unit, such as 1; expected dates"):
        open_series(SceneInputs([path]))
    variables().drop_vars("time").assign_attrs(crs=CRS).to_netcdf(path, engine="h5netcdf")
    assert open_series(SceneInputs([path], dates=DAYS)).labels == DAYS


def test_a_single_date_comes_from_a_scalar_coordinate_or_the_name(tmp_path):
    single = variables().isel(time=1).assign_attrs(crs=CRS)
    single.to_netcdf(tmp_path / "scalar.nc", engine="h5netcdf")
    single.drop_vars("time").to_netcdf(tmp_path / "s2_2018-07-06.nc", engine="h5netcdf")
    series = open_series(SceneInputs([str(tmp_path / "scalar.nc"), str(tmp_path / "s2_2018-07-06.nc")]))
    assert series.labels == ("2018-06-26", "2018-07-06")
    assert np.array_equal(read_all(series).raw, PIXELS[[1, 1]])


def test_degrees_without_a_coordinate_system_are_longitude_and_latitude(tmp_path):
    step = 8.983152841195215e-05
    lat, lon = 45.2 - step * np.arange(HEIGHT), 9.1 + step * np.arange(WIDTH)
    cube = variables(dims=("time", "lat", "lon")).assign_coords(lat=lat.astype(np.float32), lon=lon)
    cube.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    series = open_series(SceneInputs([str(tmp_path / "cube.nc")]))
    assert series.grid.crs == RasterioCRS.from_epsg(4326)
    expected = Affine(step, 0, 9.1 - step / 2, 0, -step, 45.2 + step / 2)
    shift = np.subtract(tuple(series.grid.transform), tuple(expected)) / step
    assert np.abs(shift).max() < 0.1  # of a pixel: float32 resolves 0.04
    assert "lat and lon are taken as EPSG:4326" in notes_of(series)


def test_irregular_coordinates_are_refused(tmp_path):
    x = X.copy()
    x[50:] += 10
    variables().assign_coords(x=x).assign_attrs(crs=CRS).to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="coordinates x are not equally spaced: steps of 10 to 20"):
        open_series(SceneInputs([str(tmp_path / "cube.nc")]))


def test_missing_bands_are_listed_with_those_that_are_there(tmp_path):
    variables(names=["B01", "B04", "B08", "AOT"]).to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="missing B02, B03, B05.*found bands called B01, B04, B08, AOT"):
        open_series(SceneInputs([str(tmp_path / "cube.nc")]))
    xr.Dataset({"table": ("row", [1, 2])}).to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"no variable has dimensions y and x .* found table \{'row': 2\}"):
        open_series(SceneInputs([str(tmp_path / "table.nc")]))


def test_classes_and_radar_come_along(tmp_path):
    cube = variables().assign_attrs(crs=CRS)
    cube["SCL"] = (("time", "y", "x"), np.full(PIXELS[:, 0].shape, 9, np.uint8))
    backscatter = np.stack([speckle(seed) for seed in range(3)])
    for index, name in enumerate(("VV", "VH")):
        cube[name] = (("time", "y", "x"), backscatter[:, index], {"units": "dB"})
    path = str(tmp_path / "cube.nc")
    cube.to_netcdf(path, engine="h5netcdf")
    products = read_products([path], "optical", SceneInputs([path]))
    assert [(product.classes.kind, product.level) for product in products.optical] == [("scl", "L2A")] * 3
    classes = products.optical[0].classes.band
    assert (classes.raster.read([classes.position], Window(0, 0, 5, 5), classes.raster.grid).stored == 9).all()
    assert {product.units for product in products.radar} == {"db"}
    series = open_series(SceneInputs([path]))
    assert series.radar_days == series.days
    assert np.array_equal(series.radar[2].read(series.grid.window), backscatter[2])


def test_radar_of_other_dates_and_of_another_cube(tmp_path):
    optical, radar = str(tmp_path / "s2.nc"), str(tmp_path / "s1.zarr")
    variables().assign_attrs(crs=CRS).to_netcdf(optical, engine="h5netcdf")
    backscatter = np.stack([speckle(seed) for seed in range(2)])
    cube = xr.DataArray(
        backscatter,
        dims=("time", "band", "y", "x"),
        coords={"time": np.array(["2018-06-22", "2018-06-30"], "M8[ns]"), "band": ["vv", "vh"], "y": Y, "x": X},
        attrs={"crs": CRS},
        name="s1",
    )
    cube.to_zarr(radar, zarr_format=2)
    series = open_series(SceneInputs([optical], [radar]))
    origin = date(2014, 4, 3)
    assert series.radar_days == tuple((date(2018, *day) - origin).days for day in ((6, 22), (6, 22), (6, 30)))
    assert np.array_equal(series.radar[2].read(series.grid.window), backscatter[1])
    with pytest.raises(DataError, match="holds radar only .vv, vh.; give it to --sar"):
        open_series(SceneInputs([radar]))
    listed = tmp_path / "scene.json"
    listed.write_text(json.dumps([{"optical": "s2.nc", "radar": "s1.zarr"}]), encoding="utf-8")
    assert open_series(SceneInputs(manifest=str(listed))).radar_days == series.radar_days
    listed.write_text(json.dumps([{"optical": "s2.nc", "date": "2018-06-21"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"s2\.nc holds 3 images, but the list gives one date"):
        open_series(SceneInputs(manifest=str(listed)))


def test_processing_baselines_of_items_give_the_offset_of_each_date(tmp_path):
    stored = PIXELS.copy()
    stored[2] += 1000
    cube = variables(stored).assign_attrs(crs=CRS)
    cube = cube.assign_coords({"s2:processing_baseline": ("time", ["02.06", "03.00", "04.00"])})
    cube.to_zarr(tmp_path / "a.zarr", zarr_format=2)
    series = open_series(SceneInputs([str(tmp_path / "a.zarr")]))
    assert np.array_equal(read_all(series).raw, PIXELS)
    applied = variables().assign_attrs(crs=CRS)
    applied = applied.assign_coords({"s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True})
    applied.to_zarr(tmp_path / "b.zarr", zarr_format=2)
    assert np.array_equal(read_all(open_series(SceneInputs([str(tmp_path / "b.zarr")]))).raw, PIXELS)


@pytest.mark.parametrize("resampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("pixel", [10, 20])
def test_on_another_grid_a_cube_equals_a_geotiff_to_the_bit_by_windows(tmp_path, resampling, pixel):
    raster = _raster(tmp_path)
    path = write_tif(tmp_path / "s2.tif", PIXELS[1])
    image = ImageFile(path, raster.grid)
    transform, (height, width) = zone_31(9)
    if pixel == 20:
        transform, height, width = transform @ Affine.scale(2), height // 2, width // 2
    grid = Grid(height, width, transform, RasterioCRS.from_epsg(32631))
    positions = [8, 4, 3]
    with gdal_settings():
        expected = image.read(positions, grid.window, grid, resampling).stored
        whole = raster.read(positions, grid.window, grid, resampling).stored
        assert np.array_equal(whole, expected, equal_nan=True)
        assert 0.3 < np.isfinite(expected).mean() < 1
        for window in (Window(0, 0, 20, 30), Window(13, 21, 17, 11), Window(height - 9, width - 9, 9, 9)):
            part = raster.read(positions, window, grid, resampling).stored
            assert np.array_equal(part, expected[(..., *window.slices)], equal_nan=True)
    dataset_pool().close([path, raster.path])


def test_a_shift_of_whole_pixels_is_read_as_stored(tmp_path):
    raster = _raster(tmp_path)
    grid = Grid(30, 30, from_origin(400_000 - 50, 5_000_000 - 600, 10, 10), raster.grid.crs)
    stored, outside = raster.read([4], grid.window, grid)
    assert stored.dtype == np.uint16
    assert np.array_equal(stored[0, :10, 5:], PIXELS[1, 3, 60:, :25])
    assert np.array_equal(~outside, np.pad(np.ones((10, 25), bool), ((0, 20), (5, 0))))


def test_chunks_of_several_dates_are_decoded_once(tmp_path, monkeypatch):
    path = str(tmp_path / "cube.nc")
    chunks = {name: {"chunksizes": (3, 32, 32)} for name in S2_BANDS}
    variables().assign_attrs(crs=CRS).to_netcdf(path, engine="h5netcdf", encoding=chunks)
    products = read_products([path], "optical", SceneInputs([path])).optical
    read, isel = [], xr.DataArray.isel
    monkeypatch.setattr(xr.DataArray, "isel", lambda own, *args: read.append(own.name) or isel(own, *args))
    for window in (Window(5, 6, 40, 30), Window(30, 40, 20, 20)):
        for product, pixels in zip(products, PIXELS, strict=True):
            raster = product.bands[0].raster
            stored = raster.read(range(1, 14), window, raster.grid).stored
            assert np.array_equal(stored, pixels[(..., *window.slices)])
    assert read == [*S2_BANDS, *S2_BANDS]
    dataset_pool().close([path])


def test_rasters_travel_to_other_processes(tmp_path):
    raster = _raster(tmp_path)
    copy = pickle.loads(pickle.dumps(raster))
    assert copy == raster
    assert hash(copy) == hash(raster)
    window = Window(3, 4, 9, 8)
    assert np.array_equal(copy.read([1, 13], window, raster.grid).stored, PIXELS[1][[0, 12]][(..., *window.slices)])


@pytest.mark.filterwarnings("ignore")
def test_stores_say_which_of_their_files_changed(tmp_path):
    path = odc_stac(tmp_path / "cube")
    band = read_products([str(path)], "optical", SceneInputs([str(path)])).optical[0].bands[0]
    names = {Path(own).relative_to(path).as_posix() for own in band.raster.paths}
    assert {".", ".zmetadata", "coastal", "red"} <= names


def test_files_that_lead_elsewhere_are_refused(tmp_path):
    secret = tmp_path / "elsewhere.h5"
    with h5py.File(secret, "w") as file:
        file["pixels"] = PIXELS[:, 0]
    good = tmp_path / "good.nc"
    variables().assign_attrs(crs=CRS).to_netcdf(good, engine="h5netcdf")

    def refused(change) -> None:
        path = Path(shutil.copy(good, tmp_path / "cube.nc"))
        with h5py.File(path, "a") as file:
            del file["B04"]
            change(file)
        with pytest.raises(DataError, match="'B04' lies in another file"):
            open_series(SceneInputs([str(path)]))

    def virtual(file) -> None:
        layout = h5py.VirtualLayout(PIXELS[:, 0].shape, np.uint16)
        layout[:] = h5py.VirtualSource(secret, "pixels", PIXELS[:, 0].shape)
        file.create_virtual_dataset("B04", layout)

    def external(file) -> None:
        file.create_dataset("B04", PIXELS[:, 0].shape, np.uint16, external=[(str(secret), 0, PIXELS[:, 0].nbytes)])

    refused(lambda file: file.__setitem__("B04", h5py.ExternalLink(str(secret), "pixels")))
    refused(virtual)
    refused(external)


@pytest.mark.filterwarnings("ignore")
def test_stores_that_would_run_code_are_refused(tmp_path):
    path = odc_stac(tmp_path / "cube")
    metadata = json.loads((path / "red" / ".zarray").read_text())
    (path / "red" / ".zarray").write_text(json.dumps(metadata | {"dtype": "|O", "filters": [{"id": "pickle"}]}))
    with pytest.raises(DataError, match="Python objects are not read, which can run code"):
        open_series(SceneInputs([str(path)]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("write", [openeo, netcdf3, odc_stac])
def test_damaged_cubes_are_errors_that_name_them(tmp_path, write, share):
    path = write(tmp_path / "cube")
    damaged = path if path.is_file() else path / ".zmetadata"
    damaged.write_bytes(damaged.read_bytes()[: int(damaged.stat().st_size * share)])
    with pytest.raises(DataError, match="cube"):
        read_all(open_series(SceneInputs([str(path)])))


def test_remote_cubes_are_to_be_downloaded():
    with pytest.raises(DataError, match=r"https://host/cube\.zarr: cubes are read from local files only; download it"):
        open_series(SceneInputs(["https://host/cube.zarr"]))


def test_a_cube_of_a_cloud_platform_that_lacks_bands(products):
    path = str(products / "openeo" / "cdse_sentinel2_l2a.nc")
    with pytest.raises(DataError, match="missing B02, B03, B05, .*found bands called S2-L2A-B01"):
        open_series(SceneInputs([path]))


def test_the_radar_of_a_cloud_platform_has_the_numbers_of_h5py(products):
    path = str(products / "openeo" / "cdse_sentinel1_grd.nc")
    images = read_products([path], "radar", SceneInputs([path])).radar
    assert len(images) == 10
    assert images[0].day == date(2023, 4, 3)  # 12145 days since 1990-01-01
    vv, vh = images[7].bands
    assert vv.raster.grid.transform == Affine(10, 0, 643_260, 0, -10, 5_676_480)
    stored = vv.raster.read([vv.position, vh.position], vv.raster.grid.window, vv.raster.grid).stored
    with h5py.File(path) as file:
        plain = [file[f"S1-SIGMA0-{name}"][7].view(np.uint16) for name in ("VV", "VH")]
    assert np.array_equal(stored, plain)
    with rasterio.open(f'netcdf:"{path}":S1-SIGMA0-VV') as dataset:
        assert dataset.transform == vv.raster.grid.transform
        assert dataset.crs == vv.raster.grid.crs


def _raster(folder: Path):
    """The raster of the second date of a cube."""
    path = str(folder / "cube.nc")
    variables().assign_attrs(crs=CRS).to_netcdf(path, engine="h5netcdf")
    return read_products([path], "optical", SceneInputs([path])).optical[1].bands[0].raster

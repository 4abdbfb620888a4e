"""Cubes in Python give the values of the command line to the bit, and compute nothing before they are asked to."""

import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from distributed import Client, LocalCluster

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from model import load_model
from scenes.cube import reconstruct_cube
from scenes.options import SceneInputs, SceneOptions
from scenes.outputs.fields import FIELDS
from scenes.reconstruct import reconstruct_scene
from tests.support import scene_files
from tests.support.commands import ROOT
from tests.support.scene_cases import CRS, DAYS, ORIGIN, write_run, write_scene

HEIGHT, WIDTH = 150, 170
TILING = {"tile": 64, "overlap": 16}
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def cube_of(paths, names=S2_BANDS, chunks=None) -> xr.DataArray:
    """GeoTIFFs as an array (time, band, y, x)."""
    pixels = np.stack([rasterio.open(path).read() for path in paths])
    x, y = ORIGIN[0] + 5 + 10.0 * np.arange(WIDTH), ORIGIN[1] - 5 - 10.0 * np.arange(HEIGHT)
    data = pixels if chunks is None else da.from_array(pixels, chunks=chunks)
    times = np.array([Path(path).stem[3:] for path in paths], "datetime64[ns]")
    coords = {"time": times, "band": list(names), "y": y, "x": x}
    return xr.DataArray(data, dims=("time", "band", "y", "x"), coords=coords, attrs={"crs": CRS})


def stored(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The values as the command line stores them."""
    maps = {}
    for name, values in result.data_vars.items():
        scaled = np.nan_to_num(values.values) * np.float32(1 / FIELDS[name].scale)
        maps[FIELDS[name].file] = np.rint(scaled).clip(0, 65535).astype(np.uint16)
    return maps


def assert_equal_to_maps(result: xr.Dataset, out: Path) -> None:
    for file, values in stored(result).items():
        with rasterio.open(out / file) as source:
            assert np.array_equal(values, source.read()), file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A scene of three dates, the second of which lacks a corner."""
    files = write_scene(tmp_path_factory.mktemp("scene"), HEIGHT, WIDTH)
    with rasterio.open(files.optical[1], "r+") as image:
        pixels = image.read()
        pixels[:, :40, :50] = 0
        image.write(pixels)
    for path in files.optical:
        with rasterio.open(path, "r+") as image:
            image.descriptions = S2_BANDS
            pixels = image.read()
            pixels[:, -9:, -9:] = 0
            image.write(pixels)
    return files


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        False: write_run(folder / "optical"),
        True: write_run(folder / "radar", use_sar=True, head="gaussian", loss="MGNLL"),
    }


@pytest.fixture(scope="module")
def maps(files, runs, tmp_path_factory):
    """The folder of the maps of the command line, without and with radar."""
    folders = {}
    for radar, run in runs.items():
        folders[radar] = tmp_path_factory.mktemp("maps")
        optical, backscatter = (list(map(str, paths)) for paths in (files.optical, files.radar[:2] if radar else ()))
        inputs = SceneInputs(optical, backscatter, offset="none")
        options = {"weights": str(run), "detector": "none", "workers": 1, "device": "cpu", "out": str(folders[radar])}
        reconstruct_scene(SceneOptions(inputs=inputs, **options, **TILING))
    return folders


def test_an_array_equals_the_command_line_to_the_bit(files, runs, maps):
    cube = cube_of(files.optical)
    result = reconstruct_cube(cube, runs[False], **TILING)
    assert set(result.data_vars) == {"reflectance", "aleatoric", "epistemic", "total"}
    assert_equal_to_maps(result, maps[False])
    assert isinstance(result.reflectance.data, np.ndarray)
    assert result.reflectance.dtype == np.float32
    assert result.reflectance.dims == ("band", "y", "x")
    assert np.isnan(result.total[:, -9:, -9:]).all()
    assert np.isfinite(result.total[:, :-9]).all()
    for name in ("band", "y", "x"):
        assert np.array_equal(result[name], cube[name])
    assert rasterio.crs.CRS.from_wkt(result.spatial_ref.attrs["crs_wkt"]).to_epsg() == 32632


def test_a_lazy_cube_with_radar_of_other_dates_equals_the_command_line_to_the_bit(files, runs, maps):
    bands = cube_of(files.optical, chunks=(1, 4, 60, 70)).to_dataset("band")
    radar = cube_of(files.radar[:2], names=("VV", "VH"), chunks=(2, 1, 100, 100))
    shuffled = bands.isel(time=[2, 0, 1], y=slice(None, None, -1)).transpose("x", "time", "y")
    result = reconstruct_cube(shuffled, load_model(runs[True]), radar.isel(time=[1, 0]), **TILING)
    assert set(result.data_vars) == {"reflectance", "aleatoric", "total"}
    assert all(isinstance(values.data, da.Array) for values in result.data_vars.values())
    assert np.array_equal(result.y, shuffled.y)
    assert_equal_to_maps(result.isel(y=slice(None, None, -1)), maps[True])
    together = bands.assign({name: radar.sel(band=name, drop=True).reindex(time=bands.time) for name in ("VV", "VH")})
    same = reconstruct_cube(together.isel(time=[0, 1]), runs[True], **TILING)
    direct = reconstruct_cube(bands.isel(time=[0, 1]), runs[True], radar, **TILING)
    xr.testing.assert_identical(same.compute(), direct.compute())


def test_nothing_is_computed_before_it_is_asked_for_and_then_only_what_is_needed(files, runs):
    pixels, loaded = cube_of(files.optical), []

    def load(date: int, row: int) -> np.ndarray:
        loaded.append((date, row))
        return pixels.values[date : date + 1, :, row : row + 50]

    parts = [
        [
            da.from_delayed(dask.delayed(load)(date, row), (1, 13, 50, WIDTH), pixels.dtype)
            for row in range(0, HEIGHT, 50)
        ]
        for date in range(3)
    ]
    cube = pixels.copy(data=da.concatenate([da.concatenate(row, axis=2) for row in parts]))
    result = reconstruct_cube(cube, runs[False], **TILING)
    ndvi = result.reflectance.sel(band="B08") - result.reflectance.sel(band="B04")
    assert loaded == []
    values = ndvi.compute(scheduler="synchronous")
    assert sorted(loaded) == [(date, row) for date in range(3) for row in (0, 50, 100)]
    expected = reconstruct_cube(pixels, runs[False], **TILING).reflectance
    assert np.array_equal(values, expected.sel(band="B08") - expected.sel(band="B04"), equal_nan=True)


def test_workers_of_distributed_compute_the_same_bits(files, runs, maps, tmp_path):
    cube = cube_of(files.optical, chunks=(1, 13, 50, 50))
    for network, host in ((runs[False], "127.0.0.1"), (load_model(runs[False]), None)):
        options = {"host": host, "processes": host is not None, "dashboard_address": None, "memory_limit": 0}
        with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster, Client(cluster):
            result = reconstruct_cube(cube, network, **TILING)
            result.chunk(y=64, x=64).to_zarr(tmp_path / "out.zarr", zarr_format=2, mode="w")
        opened = xr.open_zarr(tmp_path / "out.zarr", decode_coords="all").drop_encoding()
        assert "spatial_ref" in opened.coords
        assert_equal_to_maps(opened, maps[False])


def test_reflectance_and_offsets_are_given_or_declared(files, runs, maps):
    cube = cube_of(files.optical)
    reflectance = (cube / 10_000).astype(np.float32)
    with pytest.raises(DataError, match=r"expected reflectance x 10000, found values up to 0.*give scale=1"):
        reconstruct_cube(reflectance, runs[False], **TILING)
    assert_equal_to_maps(reconstruct_cube(reflectance, runs[False], scale=1, **TILING), maps[False])
    with pytest.raises(DataError, match=r"expected reflectance, found .* or more after scaling; check"):
        reconstruct_cube(cube.where(cube > 100), runs[False], scale=1, **TILING)
    later = cube.copy()
    later[2] = later[2] + np.where(later[2] > 0, 1000, 0).astype(np.uint16)
    assert_equal_to_maps(reconstruct_cube(later, runs[False], offset=[0, 0, -1000], **TILING), maps[False])
    named = later.assign_coords({"s2:processing_baseline": ("time", ["02.06", "02.06", "05.09"])})
    assert_equal_to_maps(reconstruct_cube(named, runs[False], **TILING), maps[False])
    packed = cube.assign_attrs(scale_factor=1e-4, add_offset=0.0, _FillValue=0)
    assert_equal_to_maps(reconstruct_cube(packed, runs[False], **TILING), maps[False])
    bands = cube.to_dataset("band")
    bands.time.encoding.clear()
    encoding = {name: {"scale_factor": 1e-4, "dtype": "uint16", "_FillValue": 0} for name in S2_BANDS}
    path = files.optical[0].with_suffix(".nc")
    (bands / 10_000).assign_attrs(crs=CRS).to_netcdf(path, engine="h5netcdf", encoding=encoding)
    with xr.open_dataset(path, engine="h5netcdf") as decoded:
        assert decoded.B04.dtype.kind == "f"
        assert_equal_to_maps(reconstruct_cube(decoded, runs[False], **TILING), maps[False])


def test_values_that_contradict_what_is_assumed_are_errors_when_computed(files, runs):
    pixels = np.stack([scene_files.ground(seed, size=(HEIGHT, WIDTH), offset=1000) for seed in range(3)])
    cube = cube_of(files.optical).copy(data=pixels).chunk(y=50)
    result = reconstruct_cube(cube, runs[False], **TILING)
    with pytest.raises(DataError, match=r"offset of 1000 of new baselines is in the values: .*B10.*give offset=-1000"):
        result.compute(scheduler="synchronous")
    kept = reconstruct_cube(cube, runs[False], offset=0, **TILING).compute()
    taken_off = reconstruct_cube(cube, runs[False], offset=-1000, **TILING).compute()
    assert float(abs(kept.reflectance - taken_off.reflectance).max()) > 0
    radar = cube_of(files.radar, names=("VV", "VH"))
    power = 10 ** (radar / 10)
    with pytest.raises(DataError, match="expected radar in dB, found positive values only, .* give radar_units"):
        reconstruct_cube(cube_of(files.optical), runs[True], power, **TILING)
    decibels = reconstruct_cube(cube_of(files.optical), runs[True], radar, **TILING)
    for units, values in (("power", power), ("amplitude", np.sqrt(power))):
        same = reconstruct_cube(cube_of(files.optical), runs[True], values, radar_units=units, **TILING)
        np.testing.assert_allclose(same.reflectance, decibels.reflectance, atol=1e-4)


def test_cubes_that_do_not_fit_are_refused_before_anything_is_computed(files, runs):
    cube = cube_of(files.optical, chunks=(1, 13, 50, 50))
    radar = cube_of(files.radar, names=("VV", "VH"))
    with pytest.raises(DataError, match="missing B05.*found bands called B01, B02, B03, B04"):
        reconstruct_cube(cube.sel(band=["B01", "B02", "B03", "B04"]), runs[False])
    with pytest.raises(DataError, match="its bands have no names"):
        reconstruct_cube(cube.drop_vars("band"), runs[False])
    with pytest.raises(DataError, match="no dates; expected a coordinate time"):
        reconstruct_cube(cube.drop_vars("time"), runs[False])
    with pytest.raises(UsageError, match="trained with radar"):
        reconstruct_cube(cube, runs[True])
    with pytest.raises(DataError, match="radar and optical cube have different sizes .* load both on one grid"):
        reconstruct_cube(cube, runs[True], radar.isel(x=slice(5, None)))
    with pytest.raises(UsageError, match="one date only"):
        reconstruct_cube(cube.isel(time=[0]), runs[False])
    with pytest.raises(UsageError, match="overlap 100"):
        reconstruct_cube(cube, runs[False], overlap=100, tile=64)
    with pytest.raises(UsageError, match="one number, or one for each of 3 dates"):
        reconstruct_cube(cube, runs[False], offset=[0, 0])
    with pytest.raises(UsageError, match="got ndarray"):
        reconstruct_cube(np.zeros((3, 13, 64, 64)), runs[False])
    with pytest.raises(UsageError, match="radar_units must be one of"):
        reconstruct_cube(cube, runs[True], radar, radar_units="volts")


@pytest.mark.filterwarnings("default")
def test_notes_are_warnings(files, runs):
    cube = cube_of(files.optical, chunks=(1, 13, 50, 50)).assign_coords(time=np.array([*DAYS[:2], DAYS[1]], "M8[ns]"))
    with pytest.warns(UserWarning, match="several images of 2018-06-11: all are used"):
        result = reconstruct_cube(cube, runs[False])
    assert result.attrs["dates"] == "2018-06-01,2018-06-11,2018-06-11 (2)"


def test_the_package_offers_it_without_importing_anything_heavy():
    lines = (
        "import scenes, sys; assert not {'xarray', 'torch', 'dask'} & set(sys.modules); print(scenes.reconstruct_cube)"
    )
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "function reconstruct_cube" in done.stdout

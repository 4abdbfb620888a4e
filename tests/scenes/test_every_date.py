"""Series: each image equals a single reconstruction of its dates; tiles are read once; few dates are held."""

import gc
import json

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr

from data.clouds import detectors
from reconstruct_scene import main
from scenes.inputs.series import SceneSeries
from scenes.output_images import images_of_dates
from scenes.outputs.ndvi import ndvi
from scenes.prediction import detectors as scene_detectors
from scenes.prediction.predict import Job, TileDate, read_inputs
from scenes.prediction.tiles import TilePlan
from tests.support.cli_cases import call, refused
from tests.support.scene_cases import maps_in, memory_series, write_run
from tests.support.series_cases import DAYS, SMALL, WINDOWS, write_series_files


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_series_files(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def radar_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("radar") / "run", "conv3d_mamba", use_sar=True)


@pytest.fixture(scope="module")
def series(scene, radar_run, tmp_path_factory):
    """A series with everything."""
    out = tmp_path_factory.mktemp("series") / "maps"
    assert call(main, *scene.line(radar_run, out)) == 0
    return out


@pytest.mark.parametrize("number", range(5))
def test_each_date_equals_a_single_reconstruction_of_its_window(number, scene, radar_run, series, tmp_path):
    window = [scene.optical[date] for date in WINDOWS[number]]
    words = ["--weights", radar_run, "--optical", *window, "--sar", *scene.radar, "--out", tmp_path / "maps", *SMALL]
    assert call(main, *words) == 0
    single, own = maps_in(tmp_path / "maps"), maps_in(series / DAYS[number])
    assert set(single) == set(own) == {"reflectance", "aleatoric_std", "epistemic_std", "total_std", "clouds"}
    for name, values in single.items():
        np.testing.assert_array_equal(own[name], values, err_msg=name)


def test_tiles_are_read_once_and_their_clouds_detected_once(scene, scene_run, tmp_path, monkeypatch):
    reads, masks = [], []
    read, detect = SceneSeries.read, detectors.detect_clouds
    monkeypatch.setattr(
        SceneSeries, "read", lambda self, w, dates=None: reads.append((w, *dates)) or read(self, w, dates)
    )
    monkeypatch.setattr(scene_detectors, "detect_clouds", lambda *args: masks.append(args) or detect(*args))
    assert call(main, *scene.line(scene_run, tmp_path / "maps", "--every_date")) == 0
    assert len(reads) == len(set(reads)) == 9 * 5
    assert len(masks) == 9 * 5


def test_few_dates_are_held_at_once():
    series = memory_series(40, 40)
    long = SceneSeries(None, tuple(range(0, 100, 5)), (), (), (), None, ())
    object.__setattr__(long, "read", lambda window, dates: series.read(window, [date % 3 for date in dates]))
    images = images_of_dates(long.days, [str(day) for day in long.days], 4)
    job = Job(long, TilePlan(40, 40, 40, 0), "", "", images=images)
    most = 0
    for _, (tile_input,) in read_inputs(job, [job.plan[0]], range(len(images))):
        most = max(most, sum(type(thing) is TileDate for thing in gc.get_objects()))
        assert tile_input.x.shape[0] == 4
    assert most <= 4  # of 20


def test_keep_copies_the_clear_pixels_of_each_date(scene, radar_run, series, tmp_path):
    out = tmp_path / "maps"
    assert call(main, *scene.line(radar_run, out, "--every_date", "--where_clear", "keep")) == 0
    for number, day in enumerate(DAYS):
        kept, plain = maps_in(out / day), maps_in(series / day)
        own = WINDOWS[number].index(number)
        clear = kept["clouds"][own] == 0
        np.testing.assert_array_equal(kept["observed"][0] == 1, clear)
        assert 0.05 < clear.mean() < 0.95
        with rasterio.open(scene.optical[number]) as source:
            np.testing.assert_array_equal(kept["reflectance"][:, clear], source.read()[:, clear])
        np.testing.assert_array_equal(kept["reflectance"][:, ~clear], plain["reflectance"][:, ~clear])
        assert (kept["total_std"][:, clear] <= 1).all()  # 0, which is nodata and stored as 1
        with rasterio.open(out / day / "observed.tif") as source:
            assert source.tags()["TITLE"].startswith(f"1 where {day} was clear")
            assert source.tags()["ACQUISITION_DATE"] == day
    assert not (out / "series.zarr").exists()


def test_the_store_opens_in_xarray_with_time_place_and_scale(series):
    store = xr.open_zarr(series / "series.zarr")
    assert store.reflectance.dims == ("time", "band", "y", "x")
    assert [str(time)[:10] for time in store.time.values] == list(DAYS)
    assert list(store.band.values[:2]) == ["B01", "B02"]
    assert set(store.data_vars) == {"reflectance", "aleatoric_std", "epistemic_std", "total_std"}
    with rasterio.open(series / DAYS[3] / "reflectance.tif") as source:
        scaled = np.where(source.read() == 0, np.nan, source.read() * 1e-4)
        np.testing.assert_allclose(store.reflectance.sel(time=DAYS[3]).values, scaled, rtol=1e-6)
        assert source.xy(0, 0) == (float(store.x[0]), float(store.y[0]))
        assert source.xy(63, 69) == (float(store.x[-1]), float(store.y[-1]))
        assert rasterio.crs.CRS.from_wkt(store.spatial_ref.attrs["crs_wkt"]) == source.crs
    assert store.reflectance.attrs["grid_mapping"] == "spatial_ref" or "spatial_ref" in store.reflectance.coords


def test_the_collection_links_an_item_for_each_date(series):
    collection = pystac.Collection.from_file(str(series / "collection.json"))
    items = list(collection.get_items())
    assert [item.id for item in items] == [f"maps_{day}" for day in DAYS]
    assert [item.datetime.date().isoformat() for item in items] == list(DAYS)
    assert all(item.get_collection().id == collection.id == "maps" for item in items)
    assert collection.extent.spatial.bboxes[0] == items[0].bbox
    start, end = collection.extent.temporal.intervals[0]
    assert (start.date().isoformat(), end.date().isoformat()) == (DAYS[0], DAYS[-1])
    for item in items:
        for asset in item.assets.values():
            assert (series / item.id.removeprefix("maps_") / asset.href.removeprefix("./")).is_file()
    assert set(collection.assets) == {"quicklook", "ndvi", "series"}
    assert all((series / asset.href).exists() for asset in collection.assets.values())
    assert pystac.Collection.from_dict(json.loads((series / "collection.json").read_text())).to_dict()


def test_the_table_of_the_plot_holds_the_ndvi_of_maps_and_observations(series, scene):
    rows = [row.split(",") for row in (series / "ndvi.csv").read_text().splitlines()[1:]]
    predicted, observed = rows[:5], rows[5:]
    assert [row[1] for row in predicted] == [row[1] for row in observed] == list(DAYS)
    for number, day in enumerate(DAYS):
        maps = maps_in(series / day)
        values = ndvi(maps["reflectance"])
        assert float(predicted[number][2]) == pytest.approx(values[32, 35], abs=2e-3)  # rounded to 1e-4 reflectance
        assert float(predicted[number][4]) == pytest.approx(values[np.isfinite(values)].mean(), abs=1e-3)
        assert float(predicted[number][5]) > 0
        clear = maps["clouds"][WINDOWS[number].index(number)] == 0
        with rasterio.open(scene.optical[number]) as source:
            truth = ndvi(source.read())
        assert observed[number][2] == (f"{truth[32, 35]:.5f}" if clear[32, 35] else "")
        mean = truth[clear].mean() if clear.mean() >= 0.5 else np.nan
        assert (
            observed[number][4] == "" if np.isnan(mean) else float(observed[number][4]) == pytest.approx(mean, abs=1e-5)
        )
    with rasterio.open(series / "quicklook.png") as picture:
        assert picture.shape == (910, 1365)


def test_a_month_is_made_from_its_own_dates_first(scene, scene_run, tmp_path, capsys):
    out = tmp_path / "maps"
    assert call(main, *scene.line(scene_run, out, "--composite", "month", "--window", "2", "--zarr")) == 0
    text = capsys.readouterr().out
    assert "note: too few dates of their own: 2018-04 takes 2018-06-01; 2018-07 takes 2018-06-21" in text
    assert "3 images from 2 dates each" in text
    record = json.loads((out / "reconstruction.json").read_text())
    assert record["images"]["2018-06"] == ["2018-06-11", "2018-06-21"]
    item = pystac.Item.from_file(str(out / "2018-06" / "item.json"))
    assert item.datetime is None
    assert (item.properties["start_datetime"], item.properties["end_datetime"]) == (
        "2018-06-01T00:00:00Z",
        "2018-06-30T23:59:59Z",
    )
    words = ["--weights", scene_run, "--optical", *scene.optical[2:4], "--out", tmp_path / "june", *SMALL]
    assert call(main, *words) == 0
    june = maps_in(out / "2018-06")
    for name, values in maps_in(tmp_path / "june").items():
        np.testing.assert_array_equal(june[name], values, err_msg=name)
    store = xr.open_zarr(out / "series.zarr")
    assert [str(time)[:10] for time in store.time.values] == ["2018-04-01", "2018-06-01", "2018-07-01"]


def test_networks_without_variance_and_scenes_without_masks_make_series_too(scene, tmp_path):
    run = write_run(tmp_path / "run", head="mean", loss="l2", input_t=9)
    words = ["--weights", run, "--optical", *scene.optical, "--out", tmp_path / "maps", *SMALL]
    assert call(main, *words, "--every_date", "--zarr", "--detector", "none") == 0
    assert set(maps_in(tmp_path / "maps" / DAYS[0])) == {"reflectance"}
    assert set(xr.open_zarr(tmp_path / "maps" / "series.zarr").data_vars) == {"reflectance"}
    first, last = (maps_in(tmp_path / "maps" / day)["reflectance"] for day in (DAYS[0], DAYS[-1]))
    rows = (tmp_path / "maps" / "ndvi.csv").read_text().splitlines()
    assert [row for row in rows if row.startswith("observed")] == [f"observed,{day},,,," for day in DAYS]
    np.testing.assert_array_equal(first, last)  # input_t 9: each has all five dates
    single = write_run(tmp_path / "single", "unet")
    words = ["--weights", single, "--optical", *scene.optical[:2], "--out", tmp_path / "single_maps", *SMALL]
    assert call(main, *words, "--every_date", "--detector", "none") == 0


def test_flags_that_do_not_fit_are_refused(scene, scene_run, tmp_path, capsys):
    def error(*more, run=scene_run):
        return refused(capsys, main, *scene.line(run, tmp_path / "maps", *more), code=2)

    assert "give one of --every_date and --composite" in error("--every_date", "--composite", "month")
    assert "--window and --zarr go with a series" in error("--zarr")
    assert "--window and --zarr go with a series" in error("--window", 3)
    assert "--window 1: a single clouded image" in error("--every_date", "--window", 1)
    assert "--window 2: this run's network (unet) takes one date" in error(
        "--every_date", "--window", 2, run=write_run(tmp_path / "unet", "unet")
    )
    unknown = write_run(tmp_path / "unknown")
    conf = json.loads((unknown / "conf.json").read_text())
    del conf["input_t"]
    (unknown / "conf.json").write_text(json.dumps(conf))
    assert "give --window" in error("--every_date", run=unknown)
    assert not (tmp_path / "maps").exists()

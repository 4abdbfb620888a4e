"""The sample data command: layouts, names, splits, georeference, truth, reproducibility, errors."""

import hashlib
import json
import re
from collections import Counter
from datetime import date

import numpy as np
import pytest
import rasterio

from common.cli import run_command
from common.errors import DataError, UsageError
from data.raster.geotiff import acquisition_date
from data.splits import MONO, SERIES, rois
from data.synthetic import writer as sample_writer
from util import make_sample_data as command
from util.make_sample_data import choose_rois, make_sample_data

SIZE = 24
SERIES_NAME = re.compile(
    r"SEN12MSCRTS/(ROIs\d{4})/(\d+)/S([12])/(\d+)/s\3_\1_\2_ImgNo_\4_(\d{4}-\d\d-\d\d)_patch_(\d+)\.tif"
)
MONO_NAME = re.compile(r"SEN12MSCR/(ROIs\d{4}_[a-z]+)_(s1|s2|s2_cloudy)/\2_(\d+)/\1_\2_\3_p(\d+)\.tif")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "out"
    assert command.main([str(out), "--rois", "3", "--patches", "3", "--size", str(SIZE), "--seed", "4"]) == 0
    return out


def tifs(sample, name):
    return sorted(path.relative_to(sample).as_posix() for path in (sample / name).rglob("*.tif"))


def digest(sample):
    files = sorted(path for path in sample.rglob("*") if path.is_file())
    return {path.relative_to(sample).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_series_has_the_published_names_and_30_dates(sample):
    matches = [SERIES_NAME.fullmatch(name) for name in tifs(sample, "SEN12MSCRTS")]
    assert all(matches)
    assert len(matches) == 3 * 3 * 30 * 2
    counts = Counter((m[1], m[2], m[3], m[6]) for m in matches)
    assert set(counts.values()) == {30}
    assert {m[6] for m in matches} == {"9", "10", "11"}  # by name 10 precedes 9: they must be sorted by number
    for part in ("train", "val", "test"):
        assert {f"{m[1]}/{m[2]}" for m in matches} & set(rois(SERIES, part))


def test_mono_has_the_published_names_and_whole_triplets(sample):
    matches = [MONO_NAME.fullmatch(name) for name in tifs(sample, "SEN12MSCR")]
    assert all(matches)
    assert Counter((m[1], m[3], m[4]) for m in matches) == {key: 3 for key in {(m[1], m[3], m[4]) for m in matches}}
    assert len(matches) == 3 * 3 * 3
    for part in ("train", "val", "test"):
        assert {f"{m[1]}/{m[3]}" for m in matches} & set(rois(MONO, part))


def test_values_types_and_sizes(sample):
    for name in (*tifs(sample, "SEN12MSCRTS")[::41], *tifs(sample, "SEN12MSCR")[::5]):
        with rasterio.open(sample / name) as source:
            radar = "_s1_" in name or "/S1/" in name
            assert (source.count, source.dtypes[0]) == ((2, "float32") if radar else (13, "uint16"))
            assert (source.height, source.width) == (SIZE, SIZE)
            values = source.read()
            assert source.crs.is_projected
        assert np.isfinite(values).all()
        assert -45 < values.min() < values.max() < 15 if radar else 0 < values.min() < values.max() <= 12000


def test_neighbours_touch_and_sensors_lie_on_each_other(sample):
    roi = next(iter(json.loads((sample / "truth/SEN12MSCRTS.json").read_text())))

    def bounds(sensor, image, patch):
        (path,) = (sample / "SEN12MSCRTS" / roi / sensor / str(image)).glob(f"*_patch_{patch}.tif")
        with rasterio.open(path) as source:
            return source.bounds

    left, right, below = (bounds("S2", 0, patch) for patch in (9, 10, 11))
    assert left.right == pytest.approx(right.left, abs=1e-6)
    assert (left.top, left.bottom) == (right.top, right.bottom)
    assert left.bottom == pytest.approx(below.top, abs=1e-6)
    assert left.left == below.left
    assert left.right - left.left == pytest.approx(10 * SIZE)
    assert bounds("S1", 17, 9) == bounds("S2", 3, 9) == left


def test_neighbours_show_one_landscape(sample):
    """Values change across the border of two patches as little as inside them."""
    summary = json.loads((sample / "truth/SEN12MSCRTS.json").read_text())
    for roi in summary:
        left, right = (np.load(sample / f"truth/SEN12MSCRTS/{roi}/patch_{p}.npz")["clear"][0, 7] for p in (9, 10))
        left, right = left.astype(float), right.astype(float)
        inside = np.abs(np.diff(np.concatenate([left, right]), axis=1)).mean()
        across = np.abs(left[:, -1] - right[:, 0]).mean()
        assert across < 3 * inside  # unrelated columns differ by 5 times and more in forest, fields and towns


def test_dates(sample):
    summary = json.loads((sample / "truth/SEN12MSCRTS.json").read_text())
    for roi, entry in summary.items():
        optical, radar = ([date.fromisoformat(d) for d in entry[f"dates_{s}"]] for s in ("S2", "S1"))
        gaps = {(b - a).days for a, b in zip(optical, optical[1:], strict=False)}
        assert min(gaps) >= 5
        assert len(gaps) > 1  # irregular
        off = [abs((a - b).days) for a, b in zip(optical, radar, strict=True)]
        assert max(off) <= 6
        assert 0 < sum(d > 0 for d in off) < 30
        (path,) = (sample / "SEN12MSCRTS" / roi / "S1" / "7").glob("*_patch_9.tif")
        assert acquisition_date(path) == radar[7]


def test_truth_fits_the_images(sample):
    summary = json.loads((sample / "truth/SEN12MSCRTS.json").read_text())
    for roi, entry in summary.items():
        assert entry["weather"].count("clear") >= 5
        truth = np.load(sample / f"truth/SEN12MSCRTS/{roi}/patch_10.npz")
        assert truth["clear"].shape == (30, 13, SIZE, SIZE)
        fractions = entry["patches"]["patch_10"]["cloud_fraction"]
        np.testing.assert_allclose(truth["cloud"].mean(axis=(1, 2)), fractions, atol=1e-5)
        for i, kind in enumerate(entry["weather"]):
            (path,) = (sample / "SEN12MSCRTS" / roi / "S2" / str(i)).glob("*_patch_10.tif")
            with rasterio.open(path) as source:
                seen = source.read()
            assert (kind == "clear") == np.array_equal(seen, truth["clear"][i])
    mono = json.loads((sample / "truth/SEN12MSCR.json").read_text())
    roi, entry = next(iter(mono.items()))
    truth = np.load(sample / f"truth/SEN12MSCR/{roi}/p98.npz")
    assert truth["cloud"].mean() == pytest.approx(entry["patches"]["p98"]["cloud_fraction"], abs=1e-5)


def test_some_series_begin_clouded(sample):
    """The published sampler takes the first dates: in the first region of each split they are cloudy."""
    summary = json.loads((sample / "truth/SEN12MSCRTS.json").read_text())
    for entry in summary.values():
        assert "clear" not in entry["weather"][:4]


def test_same_arguments_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_sample_data(tmp_path / name, 1, 2, 16, seed)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    images = {name for name in a if name.endswith(".tif")}
    assert all(a[name] != c[name] for name in images & set(c))


def test_more_regions_leave_the_others_as_they_are(tmp_path):
    for name, n in (("few", 1), ("many", 2)):
        make_sample_data(tmp_path / name, n, 1, 16, 1)
    few, many = (
        {name: value for name, value in digest(tmp_path / which).items() if name.endswith((".tif", ".npz"))}
        for which in ("few", "many")
    )
    assert few.items() <= many.items()
    assert len(many) > len(few)


@pytest.mark.parametrize("dataset", [SERIES, MONO])
def test_regions_come_from_the_splits_in_turn(dataset):
    for n in (3, 5, 12, 20, 32, 53):
        chosen = choose_rois(dataset, n)
        counts = Counter(split for split, _ in chosen)
        assert len({roi for _, roi in chosen}) == n
        assert set(counts) == {"train", "val", "test"}
        assert all(roi in rois(dataset, split) for split, roi in chosen)
        if n <= 32:  # beyond that the five val regions of the series are exhausted
            assert abs(counts["train"] - 0.60 * n) <= 1.2
            assert abs(counts["test"] - 0.25 * n) <= 1.2
    assert Counter(split for split, _ in choose_rois(dataset, 32))["test"] >= 8


def test_test_regions_vary_in_climate(tmp_path, monkeypatch):
    chosen = [roi for split, roi in choose_rois(SERIES, 32) if split == "test"]
    climates = set()
    for roi in chosen:
        region = next(r for r in command.REGIONS if roi in rois(SERIES, "all", r))
        turn = rois(SERIES, "all", region).index(roi)
        climates.add(sample_writer.make_site(roi, region, turn, 1, 16, 1, None, 0).climate)
    assert len(climates) >= 4


def base_folder(root):
    """One homogeneous clear patch with its radar twin, in the layout of SEN12MS-CR."""
    rng = np.random.default_rng(0)
    for kind, array in (
        ("s2", rng.integers(1000, 1400, (13, 32, 32)).astype(np.uint16)),
        ("s1", rng.normal(-10, 1, (2, 32, 32)).astype(np.float32)),
    ):
        path = root / f"ROIs1970_fall_{kind}/{kind}_139/ROIs1970_fall_{kind}_139_p839.tif"
        path.parent.mkdir(parents=True)
        profile = {"driver": "GTiff", "count": len(array), "height": 32, "width": 32, "dtype": array.dtype.name}
        with rasterio.open(path, "w", **profile, transform=rasterio.Affine(10, 0, 0, 0, -10, 0)) as target:
            target.write(array)
    return root


def test_base_lays_real_patches_under_the_clouds(tmp_path):
    base = base_folder(tmp_path / "base")
    make_sample_data(tmp_path / "out", 1, 2, 24, 1, base)
    (truth,) = (tmp_path / "out/truth/SEN12MSCRTS").rglob("patch_9.npz")
    clear = np.load(truth)["clear"].astype(float)
    assert clear[:, 1:9].mean() == pytest.approx(
        1200, abs=60
    )  # the level of the patch, with some atmosphere and season
    assert clear[:, 1:9].max() < 1900
    with pytest.raises(DataError, match="no clear patch with its radar twin"):
        make_sample_data(tmp_path / "other", 1, 1, 24, 1, tmp_path)
    assert not (tmp_path / "other").exists()


@pytest.mark.shared
def test_real_base(shared, tmp_path):
    make_sample_data(tmp_path / "out", 2, 1, 32, 1, shared / "data/SEN12MSCR")
    (truth,) = (tmp_path / "out/truth/SEN12MSCRTS/ROIs1868/56").rglob("patch_9.npz")
    means = np.load(truth)["clear"].mean(axis=(0, 2, 3))
    assert 1300 < means[0] < 1800
    assert 1000 < means[7] < 3200


def test_second_call_finds_it_there_and_other_arguments_are_refused(sample, capsys):
    before = digest(sample)
    words = [str(sample), "--rois", "3", "--patches", "3", "--size", str(SIZE), "--seed", "4"]
    assert command.main(words) == 0
    assert digest(sample) == before
    words[-1] = "5"
    assert run_command(command.main, words) == 2
    assert "holds sample data of other arguments" in capsys.readouterr().err


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        make_sample_data(tmp_path, 1, 1, 16, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise DataError("disk full")

    monkeypatch.setattr(sample_writer, "write_geotiff", fail)
    with pytest.raises(DataError, match="disk full"):
        make_sample_data(tmp_path / "out", 1, 1, 16, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--rois", "54"], "choose 1 to 53"),
        (["--rois", "0"], "choose 1 to 53"),
        (["--patches", "0"], "--patches must be at least 1, got 0"),
        (["--size", "8"], "--size must be at least 16, got 8"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, text):
    assert run_command(command.main, [str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="lower --rois, --patches or --size"):
        make_sample_data(tmp_path / "out", 1, 1, 16, 1)
    assert not (tmp_path / "out").exists()

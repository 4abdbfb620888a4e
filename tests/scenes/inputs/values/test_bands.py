"""Bands of optical and radar files: by description in any order, by position, or a clear error."""

import numpy as np
import pytest

from common.errors import DataError
from data.constants import S2_BANDS
from data.raster.rescaling import sar_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.values.bands import are_named, band_of, optical_bands, polarisation_of, radar_bands
from scenes.options import SceneInputs
from tests.support.scene_files import HEIGHT, WIDTH, ground, notes_of, read_all, speckle, write_tif

WITHOUT_B10 = tuple(name for name in S2_BANDS if name != "B10")
NAMES = {  # of STAC, Earth Search, Planetary Computer, Earth Engine, SNAP, MAJA, ACOLITE, Digital Earth
    "B01": ("B1", "b01", "coastal", "Coastal aerosol", "Band 1 - Coastal aerosol - 60m", "B01_60m", "rhos_443"),
    "B02": ("B2", "blue", "BLUE", "nbart_blue", "T33UUU_20170216T102101_B02", "FRE_B2", "blue_20180621", "492 nm"),
    "B03": ("B3", "green", "S2_B03 (10 m)", "B3_median", "rhot_559"),
    "B04": (
        "B4",
        "red",
        "B4, central wavelength 665 nm",
        "Band_4",
        "S2-L2A-B04",
        "B4 2018-06-21",
        "0_B4",
        "sentinel-2 red",
    ),
    "B05": ("B5", "rededge1", "rededge071", "Red Edge 1", "red_edge_1", "B5 (rededge)", "RE1"),
    "B06": ("B6", "rededge2", "rededge075", "Vegetation Red Edge 2", "red-edge 2"),
    "B07": ("B7", "rededge3", "rededge078", "red-edge 3 (B07)"),
    "B08": ("B8", "b08", "nir", "nir_1", "broad NIR", "nir 2018-06-21", "B8 (nir)"),
    "B8A": (
        "B8A",
        "b8a",
        "B08A",
        "nir08",
        "nir_2",
        "NIR narrow",
        "B8A_20m",
        "Red Edge 4",
        "B8A - Narrow NIR",
        "rhos_865",
    ),
    "B09": ("B9", "nir09", "Water vapor", "Band 9 - Water vapor - 60m", "945 nm"),
    "B10": ("B10", "cirrus", "SWIR - Cirrus", "b10_60m"),
    "B11": ("B11", "swir16", "SWIR 1", "nbart_swir_2", "SWIR (1.6)"),
    "B12": ("B12", "swir22", "swir2", "nbart_swir_3", "Band 12 - SWIR (2.2) - 20m", "rhot_2202"),
}
NO_BANDS = (
    *(
        None,
        "",
        "rededge",
        "swir",
        "SCL",
        "QA60",
        "AOT_10m",
        "WVP",
        "dataMask",
        "NDVI",
        "visual",
        "temperature_2m",
        "VV",
    ),
    *("B8/B4", "B8-B4", "(B8 - B4)", "MSK_DETFOO_B04", "view_zenith_B04", "B4_std", "B13", "B80", "sur_refl_b02"),
    *("B4 (NIR)", "B1 blue", "B8 nir08", "swir_3", "bands"),  # the codes of other sensors
)


@pytest.mark.parametrize("spell", [str.lower, str, lambda n: f"S2_{n} (10 m)", lambda n: n.replace("B0", "B")])
def test_bands_are_found_by_name_in_any_order(spell, write_optical):
    order = np.random.default_rng(3).permutation(13)
    pixels = ground()
    names = ["SCL", *(spell(S2_BANDS[band]) for band in order), None]
    extra = np.full((1, HEIGHT, WIDTH), 7, np.uint16)
    path = write_optical(np.concatenate([extra, pixels[order], extra]), names=names)
    assert np.array_equal(read_all(open_series(SceneInputs([path]))).raw[0], pixels)


@pytest.mark.parametrize("band", S2_BANDS)
def test_names_of_many_producers_mean_a_band(band):
    assert {name: S2_BANDS[band_of(name)] for name in NAMES[band]} == dict.fromkeys(NAMES[band], band)


@pytest.mark.parametrize("name", NO_BANDS)
def test_other_names_mean_no_band(name):
    assert band_of(name) is None


@pytest.mark.parametrize(
    ("name", "polarisation"),
    [
        *(("VV", 0), ("vh", 1), ("Sigma0_VH_db", 1), ("gamma0_vv", 0), ("Intensity_VV", 0), ("VV_ASC", 0), ("VVdB", 0)),
        *(("s1a-iw-grd-vh-20180618t053012-20180618t053037-022407-026d1d-002", 1), ("VH_1", 1), ("VV [dB]", 0)),
        *(("VV/VH", None), ("VV_VH", None), ("VV-VH", None), ("VVVH", None), ("VV_ratio", None), ("HH", None)),
        *(("angle", None), ("VV_std", None), ("i_VV", None), (None, None)),
    ],
)
def test_polarisations_by_name(name, polarisation):
    assert polarisation_of(name) == polarisation


def test_numbers_and_equal_names_name_nothing():
    assert not are_named([f"Band {number}" for number in range(1, 14)])
    assert not are_named(["bands", "bands"])
    assert not are_named([None, ""])
    assert are_named([f"B{number}" for number in range(1, 14)])
    assert are_named([None, "VH"])
    assert are_named(["VV", "VV"])


def test_common_names_in_another_order_are_not_taken_by_position(write_optical):
    names = [
        "blue",
        "coastal",
        "green",
        "nir",
        "nir08",
        "nir09",
        "red",
        "rededge1",
        "rededge2",
        "rededge3",
        "swir16",
        "swir22",
    ]
    order = [
        S2_BANDS.index(band)
        for band in ("B02", "B01", "B03", "B08", "B8A", "B09", "B04", "B05", "B06", "B07", "B11", "B12")
    ]
    pixels = ground()
    result = read_all(open_series(SceneInputs([write_optical(pixels[order], names=names)]))).raw[0]
    assert np.array_equal(np.delete(result, 10, axis=0), np.delete(pixels, 10, axis=0))
    names[7] = "rededge"
    with pytest.raises(
        DataError, match="missing B05; .* found bands called blue, coastal, green, nir, nir08, nir09, red, red"
    ):
        open_series(SceneInputs([write_optical(pixels[order], names=names)]))


def test_dates_in_one_stack_are_refused():
    stack = [*S2_BANDS, *(f"{name}_1" for name in S2_BANDS)]
    with pytest.raises(
        DataError, match=r"bands 1 and 14 are both called B01 \(B01, B01_1\); expected one image for each"
    ):
        optical_bands("a.tif", stack)


@pytest.mark.parametrize(
    "names", [("VV_ASC", "VH_ASC", "VV_DSC", "VH_DSC"), ("VV", "VH", "VV_1", "VH_1"), ("VV", "VH", "VV")]
)
def test_radar_of_several_orbits_in_one_file_is_refused(names):
    with pytest.raises(DataError, match=f"bands 1 and 3 are both VV; .* found bands called {', '.join(names)}"):
        radar_bands("a.tif", names)


def test_ratios_of_polarisations_are_left_out():
    assert radar_bands("a.tif", ["VV", "VH", "VV/VH"]) == (1, 2)
    assert radar_bands("a.tif", ["VH/VV", "VH", "angle", "VV"]) == (4, 2)
    with pytest.raises(DataError, match="bands called VV, VV/VH; expected VV and VH"):
        radar_bands("a.tif", ["VV", "VV/VH"])


def test_gdals_own_band_names_are_understood():
    names = [f"{name.replace('B0', 'B')}, central wavelength 665 nm" for name in S2_BANDS]
    assert optical_bands("a.tif", names) == tuple(range(1, 14))


@pytest.mark.parametrize("names", [None, WITHOUT_B10])
def test_level_2a_without_b10_has_zeros_there_and_says_so(names, write_optical):
    pixels = ground(bands=12)
    series = open_series(SceneInputs([write_optical(pixels, names=names)]))
    result = read_all(series)
    assert not result.raw[0, 10].any()
    assert np.array_equal(np.delete(result.raw[0], 10, axis=0), pixels)
    assert result.valid.all()
    assert "B10 is missing and filled with 0; the network was trained on L1C" in notes_of(series)


def test_missing_bands_are_listed(write_optical):
    path = write_optical(ground(bands=11), names=[name for name in S2_BANDS if name not in ("B05", "B8A")])
    with pytest.raises(DataError, match=r"s2_2018-06-21\.tif: missing B05, B8A; expected all bands of Sentinel-2"):
        open_series(SceneInputs([path]))
    with pytest.raises(DataError, match=r"4 bands without names; expected the 13 bands B01 to B12 in order, or 12"):
        open_series(SceneInputs([write_optical(ground(bands=4))]))
    with pytest.raises(DataError, match="bands 1 and 2 are both called B01"):
        open_series(SceneInputs([write_optical(names=["B1", "B01", *S2_BANDS[2:]])]))


def test_radar_bands_are_found_by_name(optical, tmp_path):
    backscatter = speckle()
    angle = np.full((1, HEIGHT, WIDTH), 38, np.float32)
    shuffled = np.concatenate([angle, backscatter[::-1]])
    path = write_tif(tmp_path / "s1_2018-06-18.tif", shuffled, names=["angle", "Sigma0_VH_db", "Sigma0_VV_db"])
    assert np.array_equal(read_all(open_series(SceneInputs([optical], [path]))).radar[0], sar_to_unit(backscatter))
    unsuitable = write_tif(tmp_path / "s1_2018-06-19.tif", backscatter, names=["HH", "HV"])
    with pytest.raises(DataError, match=r"s1_2018-06-19\.tif: bands called HH, HV; expected VV and VH"):
        open_series(SceneInputs([optical], [unsuitable]))
    with pytest.raises(DataError, match="3 bands without names; expected VV and VH of Sentinel-1"):
        open_series(SceneInputs([optical], [write_tif(tmp_path / "s1_2018-06-20.tif", shuffled)]))

"""Bands of optical and radar files: by description in any order, by position, or a clear error."""

import numpy as np
import pytest

from common.errors import DataError
from data.constants import S2_BANDS
from data.raster.rescaling import sar_to_unit
from scenes.inputs.bands import optical_bands
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.scene_files import HEIGHT, WIDTH, ground, notes_of, read_all, speckle, write_tif

WITHOUT_B10 = tuple(name for name in S2_BANDS if name != "B10")


@pytest.mark.parametrize("spell", [str.lower, str, lambda n: f"S2_{n} (10 m)", lambda n: n.replace("B0", "B")])
def test_bands_are_found_by_name_in_any_order(spell, write_optical):
    order = np.random.default_rng(3).permutation(13)
    pixels = ground()
    names = ["SCL", *(spell(S2_BANDS[band]) for band in order), None]
    extra = np.full((1, HEIGHT, WIDTH), 7, np.uint16)
    path = write_optical(np.concatenate([extra, pixels[order], extra]), names=names)
    assert np.array_equal(read_all(open_series(SceneInputs([path]))).raw[0], pixels)


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

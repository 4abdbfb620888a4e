"""Virtual mosaics: with the user's consent, of images in their own folder, and nothing else."""

import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest

from common.errors import DataError
from reconstruct_scene import main
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.cli_cases import refused
from tests.support.scene_files import CRS, HEIGHT, PLACE, WIDTH, ground, read_all, write_tif

BAND = """<VRTRasterBand dataType="UInt16" band="{band}"><NoDataValue>0</NoDataValue><ComplexSource>
<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>{band}</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="90" ySize="70"/><DstRect xOff="0" yOff="0" xSize="90" ySize="70"/><NODATA>0</NODATA>
</ComplexSource></VRTRasterBand>"""


def write_vrt(path, source="a.tif", relative=1, inside="", bands=13) -> str:
    """A VRT of one image with the elements that gdalbuildvrt writes."""
    transform = ", ".join(str(x) for x in PLACE.to_gdal())
    bands_xml = "".join(BAND.format(band=band, source=source, relative=relative) for band in range(1, bands + 1))
    path.write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>{CRS}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{inside}{bands_xml}</VRTDataset>",
        encoding="utf-8",
    )
    return str(path)


def open_vrt(path: str, allow: bool = True):
    return open_series(SceneInputs([path], dates=["2018-06-21"], allow_vrt=allow))


@pytest.fixture
def image(tmp_path) -> str:
    return write_tif(tmp_path / "a.tif", ground())


def test_a_vrt_is_read_if_the_user_says_so_also_after_pickling(image, tmp_path):
    path = write_vrt(tmp_path / "a.vrt")
    with pytest.raises(DataError, match=r"a\.vrt is a VRT, which reads other files; if you trust it, add --allow_vrt"):
        open_vrt(path, allow=False)
    series = open_vrt(path)
    assert series.paths == (path, image)  # a changed source is not resumed from
    assert np.array_equal(read_all(pickle.loads(pickle.dumps(series))).raw[0], ground())


@pytest.mark.skipif(shutil.which("gdalbuildvrt") is None, reason="gdalbuildvrt is not on this machine")
def test_what_gdalbuildvrt_writes_is_read(image, tmp_path):
    subprocess.run(["gdalbuildvrt", "-q", "a.vrt", "a.tif"], cwd=tmp_path, check=True)
    assert np.array_equal(read_all(open_vrt(str(tmp_path / "a.vrt"))).raw[0], ground())


@pytest.mark.parametrize("source", ["../b.tif", "/etc/passwd", "/vsicurl/http://127.0.0.1:9/a.tif", "link.tif", ""])
def test_sources_lie_in_the_folder_of_the_vrt(source, tmp_path):
    write_tif(tmp_path / "b.tif", ground())
    folder = tmp_path / "scene"
    folder.mkdir()
    (folder / "link.tif").symlink_to(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"a\.vrt: its source '.*' is no file in .*scene; a VRT may use images beside"):
        open_vrt(write_vrt(folder / "a.vrt", source))


@pytest.mark.parametrize("name", ["VRTRawRasterBand", "VRTDerivedRasterBand", "VRTWarpedRasterBand"])
@pytest.mark.parametrize("attribute", ["subClass", "subclass"])
def test_a_vrt_of_another_kind_is_refused(image, tmp_path, name, attribute):
    inside = f'<VRTRasterBand dataType="Byte" band="1" {attribute}="{name}"/>'
    with pytest.raises(DataError, match=f"a VRT with {name} is not read"):
        open_vrt(write_vrt(tmp_path / "a.vrt", inside=inside))
    with pytest.raises(DataError, match="a VRT with GDALWarpOptions is not read"):
        open_vrt(write_vrt(tmp_path / "a.vrt", inside="<GDALWarpOptions/>"))


def test_a_source_must_be_an_image_itself(tmp_path):
    (tmp_path / "a.tif").write_text("<GDAL_WMS><Service name='TMS'/></GDAL_WMS>")
    with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*a\.tif"):
        open_vrt(write_vrt(tmp_path / "a.vrt"))
    write_vrt(tmp_path / "b.vrt")
    with pytest.raises(DataError, match=r"its source 'b\.vrt' is a VRT too"):
        open_vrt(write_vrt(tmp_path / "a.vrt", "b.vrt"))


@pytest.mark.parametrize("text", ["<VRTDataset>", "<VRTDataset/>", "<a/>", "<VRTDataset>" * 3000, "\0<VRTDataset"])
def test_a_damaged_vrt_is_named(tmp_path, text):
    (tmp_path / "a.vrt").write_text(text)
    with pytest.raises(DataError, match=r"a\.vrt"):
        open_vrt(str(tmp_path / "a.vrt"))


@pytest.mark.parametrize("suffix", [".msk", ".ovr"])
def test_what_lies_beside_an_image_must_be_a_tiff_too(image, tmp_path, suffix):
    write_tif(tmp_path / f"a.tif{suffix}", ground(bands=1).astype(np.uint8))
    open_series(SceneInputs([image], dates=["2018-06-21"]))
    write_vrt(tmp_path / f"a.tif{suffix}", "/etc/passwd", 0, bands=1)
    with pytest.raises(DataError, match=rf"a\.tif\{suffix}: expected a TIFF beside .*a\.tif; remove it"):
        open_series(SceneInputs([image], dates=["2018-06-21"]))


def test_a_vrt_called_tif_and_a_pipe_are_no_scene(scene_run, tmp_path, capsys):
    path = tmp_path / "s2_2018-06-21.tif"
    line = ["--weights", scene_run, "--optical", path, "--out", tmp_path / "maps"]
    write_vrt(path, "/etc/passwd", 0)
    assert "is a VRT, which reads other files" in refused(capsys, main, *line)
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe or a device; expected an image" in refused(capsys, main, *line)
    assert not (tmp_path / "maps").exists()

"""Lists of images in CSV and JSON, and their errors."""

import json

import numpy as np
import pytest

from common.errors import DataError
from data.raster.rescaling import sar_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.readers.manifest import read_manifest
from scenes.options import SceneInputs
from tests.support.scene_files import ground, read_all, speckle, write_tif


def test_lists_in_csv_and_json_say_the_same(tmp_path):
    for seed, name in enumerate("ab"):
        write_tif(tmp_path / "images" / f"{name}.tif", ground(seed))
    rows = [
        {"optical": "images/a.tif", "date": "2018-06-26"},
        {"optical": str(tmp_path / "images" / "b.tif"), "date": "2018-06-21T10:30:21Z"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    lines = ["optical,date", *(f"{row['optical']}, {row['date']}" for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "semicolon.csv").write_text("\r\n".join(line.replace(",", ";") for line in lines))
    listed = [
        open_series(SceneInputs(manifest=str(tmp_path / name))) for name in ("list.json", "list.csv", "semicolon.csv")
    ]
    assert listed[0] == listed[1] == listed[2]
    assert listed[0].labels == ("2018-06-21", "2018-06-26")
    assert np.array_equal(read_all(listed[0]).raw, [ground(1), ground(0)])


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "a.csv",
            "image,date\na.tif,2018-06-21\n",
            r"a.csv: entry \[0\] must contain \['optical'\] .*expected CSV or JSON with optical, radar, date",
        ),
        ("a.csv", "optical,date\n", "must contain at least 1 items"),
        ("a.csv", "optical,date\n,2018-06-21\n", r"a.csv: entry \[0\].optical must be longer than or equal to 1"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "{}", "a.json: the content must be array, got .*with optical"),
        ("a.json", '["a.tif"]', r"a.json: entry \[0\] must be object, got 'a.tif'; expected .*optical"),
        ("a.csv", "optical,date\na.tif,then\n", r"date of .*a\.tif: expected a date like 2018-06-21, found 'then'"),
        ("a.csv", "optical,date\na.tif,2018-06-21\na.tif,2018-06-26\n", r"a\.tif is named twice"),
    ],
)
def test_bad_lists_are_told(name, text, match, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        open_series(SceneInputs(manifest=str(tmp_path / name)))


def test_lists_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot read .*none.csv: No such file"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00optical")
    with pytest.raises(DataError, match="is not valid CSV in UTF-8 .*; expected CSV or JSON"):
        read_manifest(tmp_path / "list.csv")


def test_a_list_pairs_radar_by_row(tmp_path):
    for seed, day in enumerate(("01", "21")):
        write_tif(tmp_path / f"s2_2018-06-{day}.tif", ground(seed))
    write_tif(tmp_path / "near.tif", speckle(1))
    write_tif(tmp_path / "named.tif", speckle(2))
    rows = ("optical,radar,radar_date", "s2_2018-06-01.tif,named.tif,2018-06-20", "s2_2018-06-21.tif,,")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    series = open_series(SceneInputs(manifest=str(tmp_path / "list.csv")))
    assert series.radar_days == (1539, 1539)
    result = read_all(series).radar
    assert np.array_equal(result, [sar_to_unit(speckle(2))] * 2)

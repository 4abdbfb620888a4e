import random
import tracemalloc
import zipfile

import numpy as np
import pytest

from data.clouds.mask_record import DamagedRecordError, MaskEntry, MaskRecord, write_record


def write_columns(path, masks=(), **changes):
    """A record with two images and some other columns than `write_record` writes; (index, array) of each mask."""
    columns = {
        "names": np.array(["x", "y"]),
        "coverage": np.array([0.25, 0.5]),
        "image_bytes": np.array([7, 8]),
        "imported": np.array([False, True]),
        "shapes": np.array([(8, 8), (0, 0)], np.int32),
    }
    columns |= {"mask_0": np.zeros(8, np.uint8)} | {f"mask_{index}": array for index, array in masks}
    np.savez_compressed(path, **(columns | changes))
    return path


def test_floats_are_kept_exactly(tmp_path):
    mask = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    mask[:3] = 0
    write_record(tmp_path / "a.npz", {"x": MaskEntry(0.25, mask, 7), "y": MaskEntry(0.5, imported=True)})
    record = MaskRecord(tmp_path / "a.npz")
    np.testing.assert_array_equal(record.masks(["x"])[0], mask)
    assert (record.coverage("x"), record.image_bytes("x"), record.has_mask("y")) == (0.25, 7, False)
    assert record.entries()["y"] == MaskEntry(0.5, imported=True)


def test_no_damage_goes_unnoticed_or_crashes(tmp_path):
    """A single changed bit: the record reads as before, or raises that it is damaged."""
    masks = {f"n{i}": MaskEntry(i / 4, np.eye(5 + i, dtype=np.float32), i) for i in range(3)}
    path = tmp_path / "a.npz"
    write_record(path, masks)
    data, rng = path.read_bytes(), random.Random(0)
    for place in sorted(rng.sample(range(len(data)), 300)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
        try:
            entries = MaskRecord(path).entries()
        except DamagedRecordError:
            continue
        assert entries.keys() == masks.keys()
        for name, entry in entries.items():
            np.testing.assert_array_equal(entry.mask, masks[name].mask)


@pytest.mark.parametrize("coverage", [np.nan, -1.0, 7.0, np.inf])
def test_a_coverage_that_cannot_be_is_damage(tmp_path, coverage):
    assert MaskRecord(write_columns(tmp_path / "good.npz")).coverage("y") == 0.5
    path = write_columns(tmp_path / "a.npz", coverage=np.array([0.25, coverage]))
    with pytest.raises(DamagedRecordError, match=r"a.npz: a coverage is outside \[0, 1\]"):
        MaskRecord(path)


@pytest.mark.parametrize("value", [np.nan, -0.5, 7.0])
def test_a_mask_that_cannot_be_is_damage(tmp_path, value):
    mask = np.full((8, 8), 0.5, np.float32)
    mask[3, 3] = value
    write_record(tmp_path / "a.npz", {"x": MaskEntry(0.5, mask)})
    with pytest.raises(DamagedRecordError, match="mask_0 has values outside"):
        MaskRecord(tmp_path / "a.npz").masks(["x"])


@pytest.mark.parametrize(
    "changes",
    [
        {"names": np.array(["x"])},
        {"names": np.array([1, 2])},
        {"names": np.array("x")},
        {"coverage": np.array(["0.1", "0.2"])},
        {"coverage": np.zeros((2, 2))},
        {"image_bytes": np.array([0.5, 0.5])},
        {"imported": np.array([0, 1])},
        {"shapes": np.array([8, 0])},
        {"shapes": np.array([(8, -8), (0, 0)])},
        {"shapes": np.array([(2**31 - 1, 2**31 - 1), (0, 0)])},
        {"names": np.zeros(10**6, "U2")},  # 8 MB of zeros in 8 KB
    ],
)
def test_columns_that_are_not_those_of_a_record_are_damage(tmp_path, changes):
    path = write_columns(tmp_path / "a.npz", **changes)
    with pytest.raises(DamagedRecordError):
        MaskRecord(path)


@pytest.mark.parametrize("lie", [False, True])
def test_a_mask_that_inflates_beyond_its_size_is_not_read(tmp_path, lie):
    """64 MB of zeros in 64 KB, declared in the archive, or not."""
    path = write_columns(tmp_path / "a.npz", [(0, np.zeros(1 << 26, np.uint8))])
    if lie:  # the sizes of the directory and of the member's own header
        data, declared = path.read_bytes(), (192).to_bytes(4, "little")
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("mask_0.npy").file_size
        path.write_bytes(
            data.replace(size.to_bytes(8, "little"), declared + bytes(4)).replace(size.to_bytes(4, "little"), declared)
        )
    tracemalloc.start()
    try:
        with pytest.raises(DamagedRecordError):
            MaskRecord(path).masks(["x"])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_mask_of_another_size_than_the_image_is_damage(tmp_path):
    record = MaskRecord(write_columns(tmp_path / "a.npz"))
    assert record.masks(["x"], (8, 8))[0].shape == (8, 8)
    with pytest.raises(DamagedRecordError, match=r"a mask of \(8, 8\) pixels for x, which has \(16, 16\)"):
        record.masks(["x"], (16, 16))

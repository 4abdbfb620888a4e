import random

import numpy as np

from data.clouds.mask_record import DamagedRecordError, MaskEntry, MaskRecord, write_record


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


def test_the_entry_of_a_mask_has_its_mean_in_double_precision():
    mask = np.full((3, 3), np.float32(0.1))
    entry = MaskEntry.of(mask, 12)
    assert (entry.coverage, entry.image_bytes, entry.imported) == (float(np.float32(0.1)), 12, False)
    assert entry.mask is mask

"""Exports and their manifest: round trips, background writing, damaged files."""

import contextlib
import json
import threading

import numpy as np
import pytest
import torch

from common.errors import DataError
from data.batch import Batch, SampleInfo
from evaluation import exports
from evaluation.accumulator import EvaluatedBatch
from evaluation.exports import ExportWriter, read_exports
from model.predictions import NIG, Gaussian, Mean

SHAPE = (13, 6, 5)


def image(seed):
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def nig(seed=0):
    return NIG(image(seed), 0.5 + image(seed + 1), 1.5 + image(seed + 2), 0.01 * (1 + image(seed + 3)))


@pytest.mark.parametrize(
    ("prediction", "fields"),
    [
        (Mean(image(0)), {"pred", "target"}),
        (Gaussian(image(0), image(1)), {"pred", "target", "var"}),
        (Gaussian(image(0), image(1)[:, :, :1]), {"pred", "target", "var"}),  # one variance for all bands
        (nig(), {"pred", "target", "var", "gamma", "alpha", "beta"}),
    ],
    ids=["mean", "gaussian", "iso", "nig"],
)
def test_what_is_written_comes_back(tmp_path, prediction, fields):
    target = image(9)
    with ExportWriter(tmp_path) as writer:
        writer.write(3, prediction, target[0], {"roi": "ROIs1868/73", "patch": "171"})
    assert {path.name for path in tmp_path.iterdir()} == {f"img-3_{name}.npy" for name in fields} | {"manifest.json"}
    exports = read_exports(tmp_path)
    assert exports.ids == (3,)
    assert exports.infos[3] == {"roi": "ROIs1868/73", "patch": "171"}
    loaded = exports.load(3)
    assert loaded.keys() == fields
    assert all(array.shape == SHAPE and array.dtype == np.float32 for array in loaded.values())
    np.testing.assert_array_equal(loaded["pred"], prediction.mean[0, 0])
    np.testing.assert_array_equal(loaded["target"], target[0, 0])
    if prediction.total is not None:
        np.testing.assert_array_equal(loaded["var"], prediction.total[0, 0])
    for name in fields & {"gamma", "alpha", "beta"}:  # exact, so that predictions can be summed later
        np.testing.assert_array_equal(loaded[name], getattr(prediction, name)[0, 0])


def test_files_are_written_while_the_next_batch_is_predicted(tmp_path, monkeypatch):
    """The writer returns at once, holds a bounded number of samples, and lists those whose files exist."""
    gate, release = threading.Event(), exports._write_fields

    def slow(*args):
        gate.wait(10)
        release(*args)

    monkeypatch.setattr(exports, "_write_fields", slow)
    with ExportWriter(tmp_path) as writer:
        for sample_id in range(3):
            writer.write(sample_id, Mean(image(sample_id)))
        writer.save_manifest()
        assert not list(tmp_path.glob("img-*"))
        assert json.loads((tmp_path / "manifest.json").read_text())["samples"] == {}
        gate.set()
        for sample_id in range(3, 30):
            writer.write(sample_id, Mean(image(sample_id)))
            assert len(writer._pending) <= 8
    assert read_exports(tmp_path).ids == tuple(range(30))


def test_a_file_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def full(folder, sample_id, images):
        if sample_id >= 1:
            raise OSError(f"No space left on device: img-{sample_id}")  # the first one is raised
        written(folder, sample_id, images)

    written = exports._write_fields
    monkeypatch.setattr(exports, "_write_fields", full)

    def export():
        with ExportWriter(tmp_path) as writer:
            for sample_id in range(3):
                writer.write(sample_id, Mean(image(sample_id)))

    with pytest.raises(OSError, match="No space left on device: img-1"):
        export()
    assert 0 in read_exports(tmp_path).ids  # the complete files, listed


def test_a_smaller_last_batch_overwrites_nothing(tmp_path):
    # known issue 7: batches of 4 and 2; published ids were i * (size of this batch) + b: 0 1 2 3, then 2 3
    with ExportWriter(tmp_path) as writer:
        first = 0
        for size in (4, 2):
            for position in range(size):
                sample_id = first + position
                writer.write(sample_id, Mean(torch.full((1, 1, *SHAPE), float(sample_id))), None, {"patch": sample_id})
            first += size
    exports = read_exports(tmp_path)
    assert exports.ids == (0, 1, 2, 3, 4, 5)
    assert [exports.load(k)["pred"].mean() for k in exports.ids] == [0, 1, 2, 3, 4, 5]
    assert [exports.infos[k]["patch"] for k in exports.ids] == [0, 1, 2, 3, 4, 5]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["units"]["pred"] == "reflectance"
    assert manifest["units"]["var"] == "reflectance squared"


def test_a_later_writer_replaces_all_samples_of_an_earlier_one(tmp_path):
    for name in ("img-7_covar.npy", "img-7_note.npy", "readme.txt"):
        (tmp_path / name).write_bytes(b"of another program")
    for sample_ids in ((0, 1, 2), (0, 2)):
        with ExportWriter(tmp_path) as writer:
            for sample_id in sample_ids:
                writer.write(sample_id, nig(sample_id), None, {"patch": str(sample_id)})
    assert read_exports(tmp_path).infos == {0: {"patch": "0"}, 2: {"patch": "2"}}
    assert not list(tmp_path.glob("img-1_*"))
    assert sorted(path.name for path in tmp_path.glob("*7*")) == ["img-7_note.npy"]
    assert (tmp_path / "readme.txt").exists()


def test_a_writer_that_writes_nothing_takes_nothing_away(tmp_path):
    with ExportWriter(tmp_path) as writer:
        writer.write(0, Mean(image(0)), None, {"patch": "1"})
    with contextlib.suppress(RuntimeError), ExportWriter(tmp_path):
        raise RuntimeError("no memory for the first batch")
    assert read_exports(tmp_path).infos == {0: {"patch": "1"}}


def test_a_writer_that_fails_midway_leaves_a_manifest_of_what_is_whole(tmp_path):
    with contextlib.suppress(RuntimeError), ExportWriter(tmp_path) as writer:
        writer.write(0, Mean(image(0)), None, {"patch": "1"})
        raise RuntimeError("power cut")
    assert read_exports(tmp_path).infos == {0: {"patch": "1"}}
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


def test_published_exports_need_no_manifest(tmp_path):
    rng = np.random.default_rng(0)
    covariance = rng.random((13, *SHAPE), dtype=np.float32)
    np.save(tmp_path / "img-10_pred.npy", rng.random(SHAPE, dtype=np.float32))
    np.save(tmp_path / "img-10_covar.npy", covariance)
    np.save(tmp_path / "img-9_pred.npy", rng.random((1, *SHAPE), dtype=np.float32))
    exports = read_exports(tmp_path)
    assert exports.ids == (9, 10)
    assert exports.infos == {9: {}, 10: {}}
    np.testing.assert_array_equal(exports.load(10)["var"], [covariance[band, band] for band in range(13)])
    assert exports.load(9)["pred"].shape == SHAPE


def test_a_run_folder_stands_for_its_only_exports(tmp_path):
    test = tmp_path / "run/export/epoch_5/test"
    with ExportWriter(test) as writer:
        writer.write(0, Mean(image(0)))
    assert read_exports(tmp_path / "run").folder == test
    with ExportWriter(tmp_path / "run/export/epoch_5/val") as writer:
        writer.write(0, Mean(image(0)))
    assert read_exports(tmp_path / "run").folder == test
    with ExportWriter(tmp_path / "run/export/epoch_9/test") as writer:
        writer.write(0, Mean(image(0)))
    with pytest.raises(DataError, match="several exports in .*epoch_5/test.*epoch_9/test"):
        read_exports(tmp_path / "run")


def test_damage_is_named(tmp_path):
    with pytest.raises(DataError, match="no folder .*nowhere"):
        read_exports(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no exported predictions .*--export_every 1"):
        read_exports(tmp_path)
    with ExportWriter(tmp_path) as writer:
        for sample_id in range(5):
            writer.write(sample_id, nig())
    (tmp_path / "img-0_pred.npy").write_bytes((tmp_path / "img-0_pred.npy").read_bytes()[:500])
    np.save(tmp_path / "img-1_pred.npy", np.zeros((4, 6, 5), np.float32))
    np.save(tmp_path / "img-2_var.npy", np.zeros((13, 6, 6), np.float32))
    np.save(tmp_path / "img-3_pred.npy", np.array([{}], dtype=object), allow_pickle=True)  # a pickle is not opened
    exports = read_exports(tmp_path)
    for sample_id, message in enumerate(
        (
            "img-0_pred.npy is not a readable",
            r"img-1_pred.npy: expected \(13,H,W\), got \(4, 6, 5\)",
            r"img-2_var.npy: expected the shape of the prediction, \(13, 6, 5\)",
            "img-3_pred.npy is not a readable",
        )
    ):
        with pytest.raises(DataError, match=message):
            exports.load(sample_id)
    (tmp_path / "img-4_pred.npy").unlink()
    with pytest.raises(DataError, match="lists sample 4, but img-4_pred.npy is missing"):
        read_exports(tmp_path)
    (tmp_path / "manifest.json").write_text('{"samples": [')
    with pytest.raises(DataError, match="manifest.json is not valid JSON .*export again"):
        read_exports(tmp_path)


def test_the_manifest_lists_missing_pixels_of_targets(tmp_path):
    target = torch.cat([image(0), image(1)])
    valid = torch.ones(2, 1, *SHAPE[1:], dtype=torch.bool)
    valid[1, 0, 4:] = False
    info = tuple(SampleInfo(at, "ROIs1868/73", str(at), (), None, (), (), "") for at in range(2))
    unused = torch.zeros(2, 1)
    batch = Batch(target, target, None, unused, unused, info, valid=valid)
    with ExportWriter(tmp_path) as writer:
        writer.update(EvaluatedBatch.from_batch(batch, Mean(target), 0))
    exports = read_exports(tmp_path)
    assert "target_pixels_missing" not in exports.infos[0]
    assert exports.infos[1]["target_pixels_missing"] == 10
    np.testing.assert_array_equal(exports.load(1)["pred"], target[1, 0])  # predictions are whole

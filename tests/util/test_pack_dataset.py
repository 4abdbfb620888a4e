"""The packing command: it resumes, rejects bad input, writes atomically, and packs can be trained on."""

import os
import shutil
import time
from pathlib import Path

import h5py
import pytest

from common.cli import run_command
from data.raster.geotiff import read_bands, write_geotiff
from data.raster.image_store import image_series
from data.raster.packed_store import RoiFile, roi_path
from tests.support.commands import TINY
from tests.support.fake_trees import ROI, image_path, patch_transform
from util import pack_dataset


def run(capsys, *words) -> tuple[int, str, str]:
    code = run_command(pack_dataset.main, [str(word) for word in words])
    output = capsys.readouterr()
    return code, output.out, " ".join(line for line in output.err.splitlines() if line.startswith("error:"))


def test_packs_resumes_and_verifies(tree, tmp_path, capsys):
    out = tmp_path / "pack"
    code, text, _ = run(capsys, "--root", tree, "--out", out, "--workers", 2)
    assert code == 0
    assert "180 images" in text
    assert "3 records of cloud masks copied" in text
    first, second = roi_path(out, ROI), roi_path(out, "ROIs1970/21")
    before = first.stat().st_mtime_ns
    second.unlink()  # as after a kill: one of the regions is missing
    (out / "pack.json").unlink()
    code, text, _ = run(capsys, "--root", tree, "--out", out)
    assert code == 0
    assert second.is_file()
    assert (out / "pack.json").is_file()
    assert first.stat().st_mtime_ns == before  # unchanged
    assert "180 images" in text
    assert run(capsys, "--out", out, "--verify")[:2] == (0, f"180 images in {out} are equal to their checksums\n")
    code, text, _ = run(capsys, "--root", tree, "--out", out, "--verify")
    assert (code, text) == (0, f"180 images in {out} are equal to the GeoTIFFs in {tree}\n")


def test_a_region_whose_files_have_changed_is_packed_again(copy, tmp_path, capsys):
    run(capsys, "--root", copy, "--out", tmp_path / "pack", "--split", "test")
    before = roi_path(tmp_path / "pack", ROI).stat().st_ino
    image_path(copy, "S2", 3, 10).unlink()
    code, text, _ = run(capsys, "--root", copy, "--out", tmp_path / "pack", "--split", "test")
    assert code == 0
    assert "119 images" in text
    assert roi_path(tmp_path / "pack", ROI).stat().st_ino != before


def test_a_damaged_image_stops_its_region_alone_and_leaves_no_pack(copy, tmp_path, capsys):
    bad = image_path(copy, "S2", 3)
    bad.write_bytes(bad.read_bytes()[:500])
    out = tmp_path / "pack"
    code, _, error = run(capsys, "--root", copy, "--out", out)
    assert code == 1
    assert "1 regions could not be packed" in error
    assert str(bad) in error
    assert roi_path(out, "ROIs1970/21").is_file()
    assert not roi_path(out, ROI).exists()
    assert not (out / "pack.json").exists()  # unmarked: nothing trains on a partial pack
    assert not [name for _, _, names in os.walk(out) for name in names if ".tmp" in name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.copy(path, path.with_name(path.name.replace("2018", "2017"))), "two files for one date"),
        (lambda path: path.rename(path.parent.parent / "4" / path.name), "is misplaced"),
    ],
)
def test_files_that_belong_nowhere_are_refused(copy, tmp_path, capsys, damage, message):
    damage(image_path(copy, "S2", 3))
    code, _, error = run(capsys, "--root", copy, "--out", tmp_path / "pack")
    assert code == 1
    assert message in error


def test_verify_finds_damage(tree, tmp_path, capsys):
    out = tmp_path / "pack"
    run(capsys, "--root", tree, "--out", out)
    path = roi_path(out, ROI)
    content = bytearray(path.read_bytes())
    start = int(pack_offset(path))
    content[start + 40] ^= 0xFF
    path.write_bytes(content)
    for words in (["--out", out], ["--root", tree, "--out", out]):
        code, _, error = run(capsys, *words, "--verify")
        assert code == 1
        assert "1 images have changed" in error
    path.unlink()
    code, _, error = run(capsys, "--root", tree, "--out", out, "--verify")
    assert code == 1
    assert f"{ROI} is not packed" in error


def test_verify_without_the_geotiffs_finds_what_else_is_damaged(tree, tmp_path, capsys):
    out = tmp_path / "pack"
    run(capsys, "--root", tree, "--out", out)
    path = roi_path(out, ROI)
    intact = path.read_bytes()

    def error_of(change) -> str:
        path.write_bytes(intact)
        with h5py.File(path, "r+") as file:
            change(file)
        code, _, error = run(capsys, "--out", out, "--verify")
        assert code == 1
        return error

    def shift(file):
        file["bounds"][0, 0] += 10

    def rename(file):
        file["S1/names"][0, 3] = b"x"

    def lose_chunks(file):
        pixels = file["S2/pixels"]
        filled = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        filled.set_chunk(pixels.chunks)
        space, kind = h5py.h5s.create_simple(pixels.shape), h5py.h5t.py_create(pixels.dtype)
        del file["S2/pixels"]
        h5py.h5d.create(file["S2"].id, b"pixels", kind, space, dcpl=filled)

    assert "73.h5: names or georeferences do not match their checksum" in error_of(shift)
    assert "73.h5: names or georeferences do not match their checksum" in error_of(rename)
    assert "60 images have changed" in error_of(lose_chunks)
    path.unlink()
    code, _, error = run(capsys, "--out", out, "--verify")
    assert code == 1
    assert f"{ROI} is not packed" in error


def test_packs_of_earlier_versions_are_verified_as_far_as_they_can_be(tree, tmp_path, capsys):
    out = tmp_path / "pack"
    run(capsys, "--root", tree, "--out", out)
    with h5py.File(roi_path(out, ROI), "r+") as file:
        del file.attrs["tables_crc32"]
    (out / "pack.json").write_text('{"format": 1, "dataset": "SEN12MS-CR-TS"}', encoding="utf-8")
    code, text, _ = run(capsys, "--out", out, "--verify")
    assert code == 0
    assert "names and georeferences have no checksum: verify them with --root" in text


def test_packs_of_the_same_images_are_the_same_files(tree, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run(capsys, "--root", tree, "--out", first)
    started = int(time.time())
    while int(time.time()) == started:  # HDF5 counts seconds
        time.sleep(0.05)
    run(capsys, "--root", tree, "--out", second)
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_images_of_another_type_are_named(copy, tmp_path, capsys, dtype):
    for patch in (9, 10):
        path = image_path(copy, "S2", 0, patch)
        write_geotiff(path, read_bands(path).astype(dtype), "EPSG:32633", patch_transform(patch))
    code, _, error = run(capsys, "--root", copy, "--out", tmp_path / "pack")
    assert code == 1
    assert f"expected uint16 values, found {dtype}" in error


def pack_offset(path: Path) -> int:
    return int(RoiFile(path).stacks["S2"].offsets[0, 3])


@pytest.mark.filterwarnings("ignore:images have changed")
def test_masks_of_a_pack_are_computed_ahead_as_of_the_folder(tree, tmp_path):
    from util.pre_compute_data_samples import main as compute

    out = tmp_path / "pack"
    pack_dataset.main(["--root", str(tree), "--out", str(out)])
    assert list(image_series(out, "SEN12MS-CR-TS", "all", "all")) == list(
        image_series(tree, "SEN12MS-CR-TS", "all", "all")
    )
    for root in (tree, out):
        store = tmp_path / root.name / "masks"
        words = ["--root", str(root), "--out", str(store), "--split", "test", "--detector", "cloud_cloudshadow_mask"]
        assert compute(words) == 0
    ours, theirs = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / "masks").rglob("*.npz"))
        for name in (tree.name, out.name)
    )
    assert ours == theirs
    for record in ours:
        assert (tmp_path / tree.name / record).read_bytes() == (tmp_path / out.name / record).read_bytes()


def test_usage(tree, tmp_path, capsys):
    out = tmp_path / "pack"
    assert run(capsys, "--out", out)[0] == 2
    assert run(capsys, "--root", tmp_path / "none", "--out", out)[0] == 1
    assert run(capsys, "--out", tree, "--verify")[0] == 1  # a folder of GeoTIFFs is no pack
    run(capsys, "--root", tree, "--out", out)
    code, _, error = run(capsys, "--root", out, "--out", tmp_path / "again")
    assert code == 2
    assert "is a pack already" in error
    code, _, error = run(capsys, "--root", tree, "--out", tmp_path / "none", "--split", "val")
    assert code == 1
    assert "no images of SEN12MS-CR-TS, split val" in error


def test_training_on_a_pack_is_training_on_the_folder(commands, sample_data, tmp_path):
    series, mono = tmp_path / "series", tmp_path / "mono"
    for root, out in ((sample_data.series, series), (sample_data.mono, mono)):
        assert pack_dataset.main(["--root", str(root), "--out", str(out)]) == 0
    roots = {"folder": sample_data.roots, "pack": ["--root1", series, "--root2", series, "--root3", mono]}
    # series with radar, trained, then tested; and triplets with worker processes
    modes = {"series": "--input_t 2 --use_sar", "triplets": "--pretrain --num_workers 2"}
    for mode, flags in modes.items():
        for name, root_flags in roots.items():
            run = ["--res_dir", tmp_path / "results" / name, "--experiment_name", mode]
            commands.run("train_reconstruct.py", TINY, "--epochs 1", flags, root_flags, run).ok()
        losses = [(tmp_path / "results" / name / mode / "test_metrics.json").read_text() for name in roots]
        assert losses[0] == losses[1]
    run = ["--experiment_name series --device cpu --weight_folder", tmp_path / "results" / "pack"]
    tested = ["--res_dir", tmp_path / "inference", "--root2", series, "--export_every 1"]
    commands.run("test_reconstruct.py", *run, *tested).ok()
    manifests = list((tmp_path / "inference").rglob("manifest.json"))
    assert manifests
    assert "ROIs1868/" in manifests[0].read_text()

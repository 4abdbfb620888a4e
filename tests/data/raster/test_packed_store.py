"""A pack returns the same images as the folder, bitwise, and reports damage."""

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import DataError
from data.batch import Collate
from data.clouds.mask_store import MaskStore
from data.dataLoader import SEN12MSCR, SEN12MSCRTS, get_pairedS1
from data.raster.geotiff import read_bands, write_geotiff
from data.raster.image_store import ImageFolder, dataset_of, open_images
from data.raster.pack_writer import differences, list_roi
from data.raster.packed_store import RoiFile, roi_path
from data.raster.patch_mosaic import merge_patches
from data.splits import MONO, SERIES
from tests.support.fake_trees import (
    ROI,
    coverages_with_clear,
    image_path,
    radar_image,
    series_path,
    triplet_path,
    write_series,
    write_triplet,
)
from util.pack_dataset import main

MONO_ROI = "ROIs1970_fall/139"


@pytest.fixture(scope="module")
def mono(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mono")
    for patch in (7, 30):
        write_triplet(folder / "tif", MONO_ROI, patch)
    write_triplet(folder / "tif", MONO_ROI, 8, members=("s1", "s2"))  # of a partial download
    assert main(["--root", str(folder / "tif"), "--out", str(folder / "packed")]) == 0
    return folder / "tif", folder / "packed"


def without_root(value, root: Path):
    if isinstance(value, dict):
        return {key: without_root(part, root) for key, part in value.items()}
    if isinstance(value, list):
        return [without_root(part, root) for part in value]
    return value.removeprefix(f"{root}/") if isinstance(value, str) else value


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()  # to the bit
    else:
        assert ours == theirs or ours != ours  # coverage without a detector is NaN


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "random", "n_input_samples": 5},
        {"sample_type": "generic"},
        {"rescale_method": "resnet"},
        {"cloud_masks": None},
        {"legacy": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:without cloud masks")
def test_samples_of_series_are_those_of_the_folder(tree, pack, options):
    folder, packed = (SEN12MSCRTS(root, "all", **options) for root in (tree, pack))
    assert packed.paths == folder.paths
    for index in range(len(folder)):
        assert_same(without_root(packed[index], pack), without_root(folder[index], tree))
        assert packed.roi(index) == folder.roi(index)


def test_samples_of_triplets_are_those_of_the_folder(mono):
    root, packed_root = mono
    with pytest.warns(UserWarning, match="1 triplets"):
        folder = SEN12MSCR(root, "test")
    with pytest.warns(UserWarning, match="1 triplets"):
        packed = SEN12MSCR(packed_root, "test")
    assert packed.paths == folder.paths
    assert len(packed) == 2
    for index in range(2):
        assert_same(without_root(packed[index], packed_root), without_root(folder[index], root))


def test_batches_are_those_of_the_folder_also_in_workers(tree, pack):
    batches = []
    for root, workers in ((tree, 0), (pack, 2)):
        loader = DataLoader(SEN12MSCRTS(root, "test"), batch_size=2, num_workers=workers, collate_fn=Collate(True))
        batches.append(next(iter(loader)))
    folder, packed = batches
    for field in ("x", "target", "dates", "masks", "coverage"):
        assert torch.equal(getattr(folder, field), getattr(packed, field))
    assert folder.info == packed.info  # paths there are relative to the root


def test_custom_samples_twins_and_mosaics_come_from_a_pack(tree, pack):
    paths = [series_path(ROI, "S2", 3, patch) for patch in (9, 10)]
    (ours, packed_georef), (theirs, georef) = (merge_patches(root, paths, 13) for root in (pack, tree))
    np.testing.assert_array_equal(ours, theirs)
    assert packed_georef == georef
    assert get_pairedS1(paths, pack, mod="s1", time=5) == get_pairedS1(paths, tree, mod="s1", time=5)


def test_masks_stored_beside_the_geotiffs_serve_the_pack(tree, pack, monkeypatch):
    monkeypatch.setattr("data.clouds.mask_store.mask_and_coverage", lambda *_: pytest.fail("masks were computed again"))
    images = [series_path(ROI, "S2", day, 9) for day in range(30)]
    stored = MaskStore(None, "s2cloudless_mask").masks(pack, images)
    for ours, theirs in zip(stored, MaskStore(None, "s2cloudless_mask").masks(tree, images), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_masks_that_are_missing_are_computed_from_the_pack(pack, tmp_path):
    image = series_path(ROI, "S2", 0, 9)
    store = MaskStore(tmp_path, "cloud_cloudshadow_mask")
    assert store.masks(pack, [image])[0].shape == (32, 32)
    assert store.missing(pack, [image]) == []


def test_a_data_set_of_a_pack_travels_to_spawned_workers(pack):
    series = SEN12MSCRTS(pack, "test")
    before = series[0]
    assert_same(pickle.loads(pickle.dumps(series))[0], before)


def test_radar_of_either_type_is_kept_as_stored(tmp_path):
    write_series(tmp_path / "tif", ROI, 9, coverages_with_clear(4), stored=False)
    for day in range(30):
        path = image_path(tmp_path / "tif", "S1", day)
        values = radar_image(9, day).astype(np.float64) + 1e-9
        values[0, 0, 0] = np.nan
        write_geotiff(path, values, "EPSG:32633", None)
    main(["--root", str(tmp_path / "tif"), "--out", str(tmp_path / "pack")])
    path = series_path(ROI, "S1", 2, 9)
    native, _ = open_images(tmp_path / "pack").read_native(path)
    assert native.dtype == np.float64
    assert native.tobytes() == read_bands(tmp_path / "tif" / path).tobytes()
    ours, theirs = open_images(tmp_path / "pack").read(path, 2)[0], read_bands(tmp_path / "tif" / path, 2)
    assert ours.dtype == np.float32  # as read by the loader from either root
    np.testing.assert_array_equal(ours, theirs)


def test_which_data_set(tree, pack, mono, tmp_path):
    assert [dataset_of(root) for root in (tree, pack, *mono)] == [SERIES, SERIES, MONO, MONO]
    with pytest.raises(DataError, match="neither SEN12MS-CR-TS"):
        dataset_of(tmp_path)


def test_what_is_not_there_is_named(pack):
    images = open_images(pack)
    assert images.names("ROIs1868/73/S2/77") == images.names("ROIs1868/99/S2/1") == images.names("elsewhere") == []
    assert images.file_bytes("ROIs1868/99/S2/1/x.tif") == -1
    assert sorted(images.names("ROIs1868/73/S2"), key=int) == [str(day) for day in range(30)]
    other_day = series_path(ROI, "S2", 3, 9).replace("2018", "2017")
    for path in (other_day, "ROIs1868/99/S2/1/x.tif", series_path(ROI, "S2", 3, 11)):
        with pytest.raises(DataError, match="no such image.*is the pack complete"):
            images.read(path, 13)
    with pytest.raises(DataError, match="expected 2 bands, found 13"):
        images.read(series_path(ROI, "S2", 3, 9), 2)
    with pytest.raises(DataError, match="expected 64 x 64 pixels, found 32 x 32"):
        images.read(series_path(ROI, "S2", 3, 9), 13, (64, 64))


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"format": 9, "dataset": "SEN12MS-CR"}', r"format must be one of \[1\], got 9"), ("{", "is not valid JSON")],
)
def test_a_mark_of_another_format_is_refused(tmp_path, content, message):
    (tmp_path / "pack.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)


def test_a_damaged_pack_is_named_and_never_decoded_beyond_its_image(pack, tmp_path):
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    path = roi_path(copy, ROI)
    stack = RoiFile(path).stacks["S2"]
    start = int(stack.offsets[0, 3])
    content = path.read_bytes()
    for at_byte in (start + 4, start + 12, start + 40):  # size of the content, size of the frame, the frame itself
        changed = bytes(byte ^ 0x7F for byte in content[at_byte : at_byte + 3])
        path.write_bytes(content[:at_byte] + changed + content[at_byte + 3 :])
        with pytest.raises(DataError, match=r"damaged image s2_ROIs1868_73_ImgNo_3_2018-02-04_patch_9.tif"):
            RoiFile(path).pixels(("S2", 0, 3))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable region of a pack.*truncated"):
        SEN12MSCRTS(copy, "test")


def test_differences_are_found(tree, pack, tmp_path):
    copy = Path(shutil.copytree(tree, tmp_path / "tif"))
    manifest = list_roi(ImageFolder(str(copy)), SERIES, ROI)
    packed = RoiFile(roi_path(pack, ROI))
    assert list(differences(ImageFolder(str(copy)), manifest, packed)) == []
    moved, changed, gone = (image_path(copy, "S2", day) for day in (1, 2, 3))
    image = read_bands(changed)
    write_geotiff(moved, read_bands(moved), "EPSG:32634", None, compress=None)
    image[5, 3, 3] += 1
    write_geotiff(changed, image, "EPSG:32633", None, compress=None)
    gone.unlink()
    manifest = list_roi(ImageFolder(str(copy)), SERIES, ROI)
    problems = list(differences(ImageFolder(str(copy)), manifest, packed))
    assert len(problems) == 3
    assert "another georeference" in problems[0]
    assert "other pixels" in problems[1]
    assert gone.name in problems[2]


def test_the_files_are_plain_hdf5_with_a_registered_filter(pack, mono):
    with h5py.File(roi_path(pack, ROI)) as file:
        pixels = file["S2/pixels"]
        assert pixels.shape == (2, 30, 13, 32, 32)
        assert pixels.chunks == (1, 1, 13, 32, 32)
        assert pixels.id.get_create_plist().get_filter(0)[0] == 32001
        assert file["S2/patch"][:].tolist() == [9, 10]
        assert file["S1/names"][1, 0].decode() == Path(series_path(ROI, "S1", 0, 10)).name
    with h5py.File(roi_path(mono[1], MONO_ROI)) as file:
        assert file["s2_cloudy/names"][:, 0].tolist() == [
            Path(triplet_path(MONO_ROI, "s2_cloudy", patch)).name.encode() for patch in (7, 30)
        ]

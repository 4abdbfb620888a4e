import builtins
import contextlib
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common.errors import DataError
from data.clouds.mask_store import MaskStore, open_mask_store
from data.clouds.published_coverage import find_published, published_name, read_published
from tests.support.fake_trees import ROI, series_path
from tests.support.mask_cases import optical_path, published_samples, save_npy

MASK = "s2cloudless_mask"
NAME = f"generic_3_test_all_{MASK}.npy"
TORCH_HEADER = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))  # old format
ANY = {"n_inputs": 3, "split": "test", "region": "all"}


def raw_pickle(path, payload):
    """An .npy file whose single object is the given pickle."""
    with path.open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(payload)
    return path


@pytest.mark.parametrize("folder", ["SEN12MSCRTS/", "", "C:\\data\\"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_coverage_is_matched_by_path_whatever_the_position(tmp_path, folder, as_tensor):
    """known issue 4: the published loader takes the coverage at the sample's position."""
    imported = read_published(save_npy(tmp_path / NAME, published_samples([7, 3], folder, as_tensor=as_tensor)))
    assert len(imported) == 60
    coverage = imported.lookup(
        [optical_path(3, 0), optical_path(7, 0), optical_path(7, 29), optical_path(5, 0), series_path(ROI, "S1", 0, 3)]
    )
    # float32 in the file: one unit in its last place
    np.testing.assert_allclose(coverage, [0.3, 0.7, 0.6, np.nan, np.nan], rtol=1e-7)


def test_every_kind_of_number_is_read(tmp_path):
    values = [0.5, np.float32(0.25), np.float64(0.125), torch.tensor(0.75), torch.tensor([1.0], dtype=torch.float64), 0]
    sample = {"coverage": values, "paths": {"S2": [optical_path(1, date) for date in range(6)]}}
    imported = read_published(save_npy(tmp_path / NAME, {0: sample}))
    np.testing.assert_array_equal(imported.lookup(sample["paths"]["S2"]), [0.5, 0.25, 0.125, 0.75, 1.0, 0.0])


def test_older_pickles_of_numpy_1_are_read(tmp_path):
    samples = published_samples([1])
    payload = pickle.dumps(np.array(samples, dtype=object), protocol=3)
    old = payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    imported = read_published(raw_pickle(tmp_path / NAME, old))
    assert imported.lookup([optical_path(1, 4)])[0] == pytest.approx(0.5)


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def hostile_files(tmp_path, marker):
    touch = f"touch {marker}"
    inner = pickle.dumps(Hostile(os.system, touch), protocol=2)
    objects = {
        "system": Hostile(os.system, touch),
        "eval": Hostile(builtins.eval, f"__import__('os').system({touch!r})"),
        "getattr": Hostile(builtins.getattr, "text", "format"),
        "popen": Hostile(subprocess.Popen, ["touch", str(marker)]),
        "pickle": Hostile(pickle.loads, inner),
        "torch": Hostile(torch.load, str(tmp_path / "x")),
        "storage": Hostile(torch.storage._load_from_bytes, TORCH_HEADER + inner),
        "npload": Hostile(np.load, str(tmp_path / "x"), None, True),
    }
    for name, hostile in objects.items():
        sample = {"coverage": [hostile], "paths": {"S2": [optical_path(1, 0)]}}
        yield name, save_npy(tmp_path / f"{name}.npy", {0: sample})
    yield "bare", raw_pickle(tmp_path / "bare.npy", inner)


def test_hostile_pickles_run_nothing(tmp_path):
    marker = tmp_path / "executed"
    refused = []
    for name, path in hostile_files(tmp_path, marker):
        with pytest.raises(DataError, match=f"{name}.npy"):
            read_published(path)
        assert not marker.exists(), name
        refused.append(name)
    assert len(refused) == 9


def test_the_same_pickles_run_where_nothing_is_refused(tmp_path):
    """With the published loader; shows that the test above is effective."""
    for name, path in hostile_files(tmp_path, tmp_path / "executed"):
        if name in ("system", "eval", "popen", "storage", "bare"):
            with contextlib.suppress(RuntimeError, TypeError, EOFError, pickle.UnpicklingError):
                np.load(path, allow_pickle=True)
            deadline = time.monotonic() + 10  # Popen does not wait
            while not (tmp_path / "executed").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            (tmp_path / "executed").unlink()


def test_the_refusal_names_what_the_pickle_refers_to(tmp_path):
    path = save_npy(tmp_path / NAME, {0: Hostile(os.system, "true")})
    with pytest.raises(DataError, match=r"refused to read .*refers to posix.system, only arrays and tensors"):
        read_published(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "an array .* of int64, not one pickled object"),
        ({}, "expected a dict"),
        ({0: {"input": [1], "target": 2}}, "sample 0 holds no 'coverage' and 'paths'"),
        ({0: {"coverage": [0.5, 0.5], "paths": {"S2": ["a"]}}}, "sample 0 does not pair one coverage with each"),
        ({0: {"coverage": [0.5], "paths": {"S1": ["a"]}}}, "sample 0 does not pair"),
        ({4: {"coverage": [1.5], "paths": {"S2": ["a"]}}}, r"sample 4 has a coverage outside \[0, 1\]"),
        ({4: {"coverage": [float("nan")], "paths": {"S2": ["a"]}}}, r"outside \[0, 1\]"),
        ({4: {"coverage": ["x"], "paths": {"S2": ["a"]}}}, r"outside \[0, 1\]"),
        ({4: {"coverage": [0.5], "paths": {"S2": [7]}}}, "has S2 paths that are not text"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_published(save_npy(tmp_path / "x.npy", content))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not numpy at all", b"\x93NUMPY\x01\x00v\x00{"])
def test_files_that_are_no_npy_are_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"not a published coverage file .*x.npy"):
        read_published(tmp_path / "x.npy")


def test_truncated_and_missing_files(tmp_path):
    content = save_npy(tmp_path / NAME, published_samples([1])).read_bytes()
    for share in (0.3, 0.6, 0.99):
        (tmp_path / "cut.npy").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match="cut.npy"):
            read_published(tmp_path / "cut.npy")
    with pytest.raises(DataError, match="cannot read the coverage file .*nowhere.npy: No such file"):
        read_published(tmp_path / "nowhere.npy")


def test_torch_is_not_needed_for_numbers(tmp_path):
    save_npy(tmp_path / NAME, published_samples([1], as_tensor=False))
    code = "import sys; from data.clouds.published_coverage import read_published as read; read(sys.argv[1])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / NAME)], check=True)


def test_file_names():
    assert published_name(f"/a/{NAME}") == (3, "test", "all", MASK)
    assert published_name("generic_3_train_asiaEast_cloud_cloudshadow_mask.npy")[2:] == (
        "asiaEast", "cloud_cloudshadow_mask",
    )  # fmt: skip
    assert published_name("mine.npy") is None


def test_the_best_fitting_file_of_a_folder(tmp_path):
    def add(name):
        (tmp_path / name).write_bytes(b"")
        best = find_published(tmp_path, MASK, 3, "test", "africa")
        return best.name if best else None

    assert add(f"generic_3_train_africa_{MASK}.npy") is None
    assert add("generic_3_test_africa_s2cloudless_map.npy") is None
    assert add(f"generic_3_all_all_{MASK}.npy") == f"generic_3_all_all_{MASK}.npy"
    assert add(f"generic_3_test_all_{MASK}.npy") == f"generic_3_test_all_{MASK}.npy"
    assert add(f"generic_5_test_africa_{MASK}.npy") == f"generic_5_test_africa_{MASK}.npy"
    assert add(f"generic_3_test_africa_{MASK}.npy") == f"generic_3_test_africa_{MASK}.npy"


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_store_reads_published_files(tmp_path, as_folder):
    file = save_npy(tmp_path / NAME, published_samples([7, 3]))
    store = open_mask_store(tmp_path if as_folder else file, MASK, **ANY)
    paths = [optical_path(3, date) for date in range(30)]
    want = [(3 + date) % 10 / 10 for date in range(30)]
    np.testing.assert_allclose(store.coverages(tmp_path / "no_images_needed", paths), want, rtol=1e-7)
    store.require_overlap([optical_path(1, 0), optical_path(3, 0)])
    with pytest.raises(DataError, match=f"coverage file for other data: .*{NAME} contains none of the 1 images"):
        store.require_overlap([optical_path(1, 0)])
    MaskStore(tmp_path / "store", MASK).require_overlap([optical_path(1, 0)])  # nothing imported: no check


def test_a_file_of_another_detector_is_refused(tmp_path):
    file = save_npy(tmp_path / NAME, published_samples([7]))
    with pytest.raises(DataError, match="holds the coverage of s2cloudless_mask, but the detector is s2cloudless_map"):
        open_mask_store(file, "s2cloudless_map", **ANY)

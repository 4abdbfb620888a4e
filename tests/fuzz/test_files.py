"""Every file of ours, damaged: what reads it works or refuses it in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from config.resolve import resolve_test
from config.stored import read_conf, read_model_config
from data.clouds.mask_record import DamagedRecordError, MaskRecord
from data.clouds.mask_store import MaskStore, default_store
from data.clouds.published_coverage import read_published
from data.datasets import index_cache
from data.datasets.custom_samples import read_custom_list
from data.raster.packed_store import PackedImages
from evaluation.exports import ExportWriter, exported_target, read_exports, read_inputs
from evaluation.sample_records import sample_record, write_records
from model.build import build_model
from model.predictions import Gaussian
from model.restore import load_model
from parse_args import parse
from report.comparison_page import read_runs, write_comparison_page
from scenes.inputs.readers.manifest import read_manifest
from scenes.resume import ResumeState
from tests.support.fake_trees import CLEAR, DETECTOR, ROI, coverages_with_clear, series_path, write_series
from tests.support.fuzz import BYTES, CASES, fuzz, put
from tests.support.report_pages import fake_report
from tests.support.scene_cases import write_run
from util import pack_dataset
from util.download.archives import TABLE, choose_archives, read_table
from util.download.fetch import _read_note
from util.make_sample_data import make_sample_data

INFO = {
    **{"index": 0, "roi": ROI, "patch": "9", "input_days": [1380, 1390], "target_days": 1400, "coverage": [0.5, 0.1]},
    **{"input_paths": [series_path(ROI, "S2", day, 9) for day in (0, 1)], "bounds": [0.0, 0.0, 1.0, 1.0]},
    **{"sar_paths": [series_path(ROI, "S1", day, 9) for day in (0, 1)], "target_path": series_path(ROI, "S2", 4, 9)},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One patch of thirty dates, with its masks."""
    folder = tmp_path_factory.mktemp("tree")
    write_series(folder, ROI, 9, coverages_with_clear(*CLEAR), size=16)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny network: conf.json and checkpoint."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    expert = json.loads((folder / "conf.json").read_text())
    (folder / "expert.json").write_text(json.dumps(expert))
    defaults = json.loads(json.dumps(parse("train", [])[0]))
    (folder / "conf.json").write_text(json.dumps(defaults | expert | {"held_out": [ROI]}))
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    with ExportWriter(folder) as writer:
        for sample_id in range(2):
            image = torch.rand(1, 1, 13, 16, 16)
            writer.write(sample_id, Gaussian(image, image), image, INFO | {"index": sample_id})
    return folder


@pytest.fixture(scope="module")
def tested(tmp_path_factory, exports) -> Path:
    """The folders of two tested runs, one without exports."""
    folder = tmp_path_factory.mktemp("inference")
    for name in ("first", "second"):
        report = fake_report(n=2, size=16)
        (folder / name).mkdir()
        content = {"test_metrics.json": report.metrics, "comparison.json": report.comparison}
        content["conf.json"] = {"root2": str(folder), "use_sar": True}
        for file, value in content.items():
            (folder / name / file).write_text(json.dumps(value))
        write_records(folder / name / "test_samples.json", [sample_record(k, INFO, {"RMSE": 0.1}) for k in range(2)])
    (folder / "first" / "export" / "epoch_1").mkdir(parents=True)
    (folder / "first" / "export" / "epoch_1" / "test").symlink_to(exports)
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory, root) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    assert pack_dataset.main(["--root", str(root), "--out", str(folder)]) == 0
    return folder


def test_configurations(run, tmp_path):
    def read(content: bytes) -> None:
        path = put(tmp_path / "conf.json", content)
        read_conf(path)
        config = read_model_config(path)
        if max(config.encoder_widths + config.decoder_widths + (config.d_model, config.d_k, config.n_head)) < 64:
            build_model(replace(config, compile=False))
        resolve_test(*parse("test", ["--load_config", str(path)]))

    content = (run / "conf.json").read_bytes()
    fuzz("conf.json", 200, content, read)

    def read_fusion(changed: bytes) -> None:
        config = read_model_config(put(tmp_path / "conf.json", changed))
        if config.model == "fusion_net":
            build_model(config)

    experts = [{"name": name, "run": "x", "flags": json.loads((run / "expert.json").read_text())} for name in "ab"]
    fusion = {"model": "fusion_net", "head": "nig", "loss": "NIG", "expert_configs": experts}
    fuzz("conf.json of a fusion", 60, json.dumps(fusion).encode(), read_fusion)


def test_checkpoints(run, tmp_path):
    put(tmp_path / "conf.json", (run / "conf.json").read_bytes())

    def read(content: bytes) -> None:
        put(tmp_path / "model.pth.tar", content)
        load_model(tmp_path)

    fuzz("model.pth.tar", 50, (run / "model.pth.tar").read_bytes(), read, BYTES)


def test_exports(exports, root, tmp_path):
    contents = {path.name: path.read_bytes() for path in exports.iterdir()}
    for name, content in contents.items():
        put(tmp_path / name, content)

    def read_samples() -> None:
        listed = read_exports(tmp_path)
        for sample_id in listed.ids:
            fields, info = listed.load(sample_id), listed.infos[sample_id]
            sample_record(sample_id, info, {})
            exported_target([fields], info, str(root), sample_id)
            exported_target([{"pred": fields["pred"]}], info, str(root), sample_id)
            read_inputs(info, str(root))
            sum(float(image.mean()) for image in fields.values())

    def read_manifest_of(content: bytes) -> None:
        put(tmp_path / "manifest.json", content)
        read_samples()

    def read_array(content: bytes) -> None:
        put(tmp_path / "img-1_var.npy", content)
        read_samples()

    fuzz("manifest.json", 80, contents["manifest.json"], read_manifest_of)
    put(tmp_path / "manifest.json", contents["manifest.json"])
    with np.errstate(all="ignore"):
        fuzz("img-ID_var.npy", 40, contents["img-1_var.npy"], read_array, BYTES)


@pytest.mark.parametrize("name", ["test_metrics.json", "comparison.json", "test_samples.json", "conf.json"])
def test_results_of_runs(tested, tmp_path, monkeypatch, name):
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        for path in (tested / run.name).iterdir():
            if path.is_file():
                put(run / path.name, path.read_bytes())
    (runs[0] / "export").symlink_to(tested / "first" / "export")
    charts = []
    if not CASES:  # drawing takes a second
        monkeypatch.setattr("report.comparison_page.calibration_charts", lambda *_, **__: charts)

    def read(content: bytes) -> None:
        put(runs[0] / name, content)
        write_comparison_page(read_runs(runs), tmp_path / "page.html", "", "command")

    fuzz(name if name != "conf.json" else "conf.json of a test", 40, (runs[0] / name).read_bytes(), read)


def read_pack(folder: Path) -> None:
    images = PackedImages(str(folder))
    for stack in images.names(ROI):
        for date in images.names(f"{ROI}/{stack}"):
            for name in images.names(f"{ROI}/{stack}/{date}"):
                path = f"{ROI}/{stack}/{date}/{name}"
                images.read(path, 13 if stack == "S2" else 2)
                images.georef(path)
                images.file_bytes(path)
                images.size(path)
    roi = images.roi(ROI)
    if roi is not None:
        for slot, _ in roi.slots():
            roi.is_intact(slot)


def replace_table(path: Path, number: int, change: int) -> None:
    """Replace one data set of a region by something else."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[number % len(names)]
        before = file[name][()] if isinstance(file[name], h5py.Dataset) and not name.endswith("pixels") else None
        del file[name]
        if change == 0:
            return
        if change == 1 or before is None:
            file[name] = np.zeros((2, 3), [np.float16, np.int8, "S4", np.complex64][number % 4])
        elif change == 2:
            file[name] = before[:-1]
        elif change == 3:
            file[name] = before.reshape(-1)
        elif before.dtype.kind in "iu":
            info = np.iinfo(before.dtype)
            file[name] = np.full_like(before, [info.min, info.max, 1, info.max // 2][number % 4])
        elif before.dtype.kind == "f":
            file[name] = np.full_like(before, [np.nan, np.inf, 0, 1e300][number % 4])
        else:
            file[name] = np.full(before.shape, b"\xff\0text", "S6")


def test_packs(pack, tmp_path):
    mark, region = (pack / "pack.json").read_bytes(), (pack / f"{ROI}.h5").read_bytes()
    path = put(tmp_path / f"{ROI}.h5", region)

    def read_mark(content: bytes) -> None:
        put(tmp_path / "pack.json", content)
        read_pack(tmp_path)

    def read_region(content: bytes) -> None:
        put(path, content)
        read_pack(tmp_path)

    def other_table(number: int, change: int) -> Callable[[bytes], bytes]:
        def mutate(content: bytes) -> bytes:
            replace_table(put(path, content), number, change)
            return path.read_bytes()

        return mutate

    fuzz("pack.json", 30, mark, read_mark)
    put(tmp_path / "pack.json", mark)
    fuzz("region of a pack, bytes", 50, region, read_region, BYTES)
    tables = st.builds(other_table, st.integers(0, 2**20), st.integers(0, 5))
    fuzz("region of a pack, tables", 60, region, read_region, tables)


def test_mask_records(root, tmp_path):
    (record,) = default_store(root).rglob("*.npz")
    content = record.read_bytes()

    def read(changed: bytes) -> None:
        MaskRecord(put(tmp_path / "patch_9.npz", changed)).entries()

    fuzz("mask record", 70, content, read, BYTES, [DamagedRecordError])
    names = [series_path(ROI, "S2", day, 9) for day in range(30)]
    store = MaskStore(tmp_path / "store", DETECTOR)
    put(store.folder(root) / ROI / "patch_9.npz", content[:-200])
    with pytest.warns(UserWarning, match="damaged record"):
        assert len(store.coverages(root, names)) == 30


def test_published_coverage(tmp_path):
    paths = [series_path(ROI, "S2", day, 9) for day in range(30)]
    np.save(tmp_path / "coverage.npy", np.array({0: {"coverage": [0.5] * 30, "paths": {"S2": paths}}}, object))
    content = (tmp_path / "coverage.npy").read_bytes()
    fuzz("published coverage", 50, content, lambda changed: read_published(put(tmp_path / "c.npy", changed)), BYTES)


def test_lists_of_custom_samples(root, tmp_path):
    short = [{"target": [series_path(ROI, "S2", 4, 9)], "inputs": [0, 2]}]
    path = tmp_path / "list.json"
    for samples in (short, read_custom_list(short, root)):
        content = json.dumps(samples).encode()
        fuzz("custom samples", 30, content, lambda changed: read_custom_list(put(path, changed), root))


def test_lists_of_a_scene(tmp_path):
    entries = [{"optical": f"s2_{day}.tif", "radar": "s1.tif", "date": f"2018-06-0{day}"} for day in (1, 2)]
    content = json.dumps(entries).encode()
    fuzz("scene.json", 30, content, lambda changed: read_manifest(put(tmp_path / "list.json", changed)))
    content = b"optical;radar;date\ns2_1.tif;s1.tif;2018-06-01\ns2_2.tif;;2018-06-02\n"
    endings = st.sampled_from([b'"', b"x" * 140_000, b"\0", b"\r", b";;;;"]).map(lambda end: lambda text: text + end)
    mutations = st.one_of(BYTES, endings)
    fuzz("scene.csv", 40, content, lambda changed: read_manifest(put(tmp_path / "list.csv", changed)), mutations)


@pytest.mark.parametrize("name", [".work/job.json", "reconstruction.json"])
def test_records_of_scenes(tmp_path, name):
    settings = {"--tile": 64, "inputs": ["a", "b"]}

    def read(content: bytes) -> None:
        put(tmp_path / name, content)
        ResumeState(tmp_path, settings).begin(overwrite=False)

    fuzz(Path(name).name, 20, json.dumps({"settings": settings, "notes": []}).encode(), read)


def test_files_of_downloads(tmp_path):
    table = dict(list(json.loads(TABLE.read_text())["archives"].items())[:3])

    def read(content: bytes) -> None:
        choose_archives(read_table(put(tmp_path / "archives.json", content)), *["both", *["all"] * 4])

    fuzz("archives.json", 40, json.dumps({"archives": table}).encode(), read)
    content = json.dumps({"url": "https://x.org/a.tar.gz", "version": '"v1"', "size": 5}).encode()
    fuzz("note of a download", 20, content, lambda changed: _read_note(put(tmp_path / "note.json", changed)))


def test_other_records(tmp_path, monkeypatch):
    def read_sample_data(content: bytes) -> None:
        put(tmp_path / "data" / "sample_data.json", content)
        make_sample_data(tmp_path / "data", 1, 1, 16, 1)

    summary = {"rois": 1, "patches": 1, "size": 16, "seed": 1, "base": None, "files": 9, "series": {"test": ["a"]}}
    fuzz("sample_data.json", 20, json.dumps(summary).encode(), read_sample_data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(index_cache, "_LEAST_PATHS", 1)
    monkeypatch.setattr(index_cache, "_MIN_AGE_NS", 0)
    index_cache.save_index(tmp_path, ["data"], index_cache.folder_stamps(tmp_path, ["data"]), ["a", "b"])
    (path,) = (tmp_path / "cloudless-uncertainty" / "index").iterdir()
    assert index_cache.load_index(tmp_path, ["data"]) == ["a", "b"]

    def read_index(content: bytes) -> None:
        put(path, content)
        index_cache.load_index(tmp_path, ["data"])

    fuzz("index of folders", 30, path.read_bytes(), read_index, BYTES)


def test_other_errors_are_not_refusals():
    with pytest.raises(KeyError):
        fuzz("", 1, b"{}", lambda content: {b"{}": 0}[content])

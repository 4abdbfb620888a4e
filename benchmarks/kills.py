"""Kill and interrupt every command at random moments, run it again, and compare with an uninterrupted run.

    python -m benchmarks.kills --work kills --sequences 100

In each sequence a command is started and stopped up to three times, by SIGKILL of the process alone or by Ctrl-C, once
or twice, to all of its processes as a terminal sends it. Then it runs to its end. Seen are: content other than that of
an uninterrupted run, processes that live five seconds later, files that are left, and what Ctrl-C prints.
"""

import argparse
import functools
import hashlib
import http.server
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from tqdm import tqdm

from common.cli import INTERRUPTED, run_command
from common.ranges import number
from model.weights import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
ORPHAN_S = 5.0
TINY = "--encoder_widths 8 --decoder_widths 8 8 --n_head 2 --d_model 8 --input_t 3 --batch_size 1 --loss NIG"
_LEFTOVER = re.compile(r"\.tmp|\.lock$|\.work$|unfinished|unpacking|\.part")
# times, places and the history of a run; numpy's global generator is neither seeded nor used
_UNCOMPARED_ENTRIES = re.compile(r"time|seconds|megapixels|created|resume_from|history|^numpy$")
_UNCOMPARED = (".png", ".html", ".md", ".vrt")  # pictures and pages name folders and times


@dataclass(frozen=True)
class Case:
    """A command line.

    Attributes:
        name: of the case.
        words: after `python`, with OUT in place of the output folder.
        again: words added when it is run again.
    """

    name: str
    words: str
    again: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a sequence has shown; `problems` is empty if all is well."""

    case: str
    kills: int
    interrupts: int
    end_s: float
    problems: tuple[str, ...]


def cases(work: Path, port: int) -> list[Case]:
    """All commands that write, in an order in which each finds the reference output of the ones before it."""
    data, masks, reference = work / "data" / "SEN12MSCRTS", work / "masks", work / "reference"
    roots = f"--root1 {data} --root2 {data} --precomputed {masks} --device cpu"
    train = (
        f"train_reconstruct.py {TINY} {roots} --epochs 2 --export_every 1 --experiment_name run --res_dir OUT/results"
    )
    test = f"test_reconstruct.py --experiment_name run --weight_folder {reference}/training/results --device cpu"
    scene = f"reconstruct_scene.py --weights {reference}/training/results/run --folder {data}/ROIs1868/142"
    scene += " --numbers 3 4 5 --tile 32 --overlap 8 --device cpu --out OUT/maps"
    exports = f"{reference}/test/inference/run"
    rule = "--detector cloud_cloudshadow_mask"
    mirror = f"--url-base http://127.0.0.1:{port} --table {work}/server/table.json --dataset SEN12MSCRTS"
    return [
        Case("sample data", "-m util.make_sample_data OUT/data --rois 3 --patches 1 --size 64"),
        Case("masks", f"-m util.pre_compute_data_samples --root {data} --out OUT/masks {rule} --workers 2"),
        Case("training", train, "--resume_from"),
        Case("training, workers", f"{train} --num_workers 2", "--resume_from"),
        Case("test", f"{test} --res_dir OUT/inference --plot_every 1"),
        Case("ensemble", f"ensemble_reconstruct.py {exports} --plot_every 1 --res_dir OUT/ensemble --root {data}"),
        Case(
            "comparison",
            f"-m util.compare_runs {exports} {reference}/ensemble/ensemble --root {data} --out OUT/page/compare.html",
        ),
        Case("pack", f"-m util.pack_dataset --root {data} --out OUT/pack --workers 2"),
        Case("hdf5", f"-m util.export_hdf5 --root {data} --out OUT/hdf5 --cloud_masks --precomputed {masks} {rule}"),
        Case("download", f"-m util.download_data --out OUT/download {mirror}"),
        Case("scene", f"{scene} --workers 1"),
        Case("scene, workers", f"{scene} --workers 2"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sequences; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("kills"), help="folder for data and results (kills)")
    parser.add_argument("--sequences", type=number(int, 1), default=100, help="number of sequences (100)")
    parser.add_argument("--seed", type=number(int, 0), default=1, help="of the moments (1)")
    parser.add_argument("--only", default="", help="names of cases that contain this text")
    parser.add_argument("--jobs", type=number(int, 1, 64), default=2, help="sequences at a time (2)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    work = args.work.resolve()
    prepare(work)
    with serve(work / "server") as server:
        every = cases(work, server.server_port)
        durations = {case.name: run_reference(case, work) for case in every}
        chosen = [case for case in every if args.only in case.name]
        started = time.perf_counter()
        with ThreadPoolExecutor(args.jobs) as pool:
            futures = [
                pool.submit(run_sequence, case, work, index, durations[case.name], args.seed)
                for index, case in zip(range(args.sequences), itertools.cycle(chosen), strict=False)
            ]
            outcomes = []
            for index, future in enumerate(tqdm(futures, unit="sequence")):
                outcome = future.result()
                outcomes.append(outcome)
                for problem in outcome.problems:
                    print(f"sequence {index}, {outcome.case}: {problem}", flush=True)
    print_table(outcomes)
    print(f"{len(outcomes)} sequences in {(time.perf_counter() - started) / 60:.0f} min")
    return int(any(outcome.problems for outcome in outcomes))


def prepare(work: Path) -> None:
    """Sample data, their masks, and an archive for the download."""
    work.mkdir(parents=True, exist_ok=True)
    data = work / "data"
    _run(f"-m util.make_sample_data {data} --rois 3 --patches 2 --size 64").check_returncode()
    _run(
        f"-m util.pre_compute_data_samples --root {data}/SEN12MSCRTS --out {work}/masks --detector s2cloudless_mask"
    ).check_returncode()
    server = work / "server"
    if not (server / "table.json").is_file():
        server.mkdir(exist_ok=True)
        archives = {}
        for sensor in ("S1", "S2"):
            key, size = f"multi_{sensor.lower()}_africa_test", 0
            with tarfile.open(server / f"{key}.tar.gz", "w:gz", compresslevel=1) as archive:
                for path in sorted((data / "SEN12MSCRTS").glob(f"ROIs*/*/{sensor}/*/*.tif")):
                    archive.add(path, f"africa/{path.relative_to(data / 'SEN12MSCRTS')}")
                    size += -(-path.stat().st_size // 4096) * 4
            archives[key] = {"url": f"https://localhost/{key}.tar.gz", "extracted_kib": size}
        (server / "table.json").write_text(json.dumps({"archives": archives}), encoding="utf-8")


@contextmanager
def serve(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server of a folder on this machine."""
    handler = functools.partial(_Slow, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


class _Slow(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def copyfile(self, source: Any, target: Any) -> None:
        """Send a file in a second; the client may be killed meanwhile."""
        pieces = 50
        size = os.fstat(source.fileno()).st_size // pieces + 1
        with suppress(ConnectionError):
            while piece := source.read(size):
                target.write(piece)
                time.sleep(1 / pieces)


def run_reference(case: Case, work: Path) -> float:
    """Run a command uninterrupted into `work/reference`; its duration in seconds."""
    out = work / "reference" / _folder(case)
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    done = _run(case.words.replace("OUT", str(out)))
    if done.returncode:
        raise SystemExit(f"{case.name} fails uninterrupted:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def run_sequence(case: Case, work: Path, number: int, duration_s: float, seed: int) -> Outcome:
    """Stop a command up to three times, run it to its end, and compare."""
    rng = random.Random(f"{seed} {number}")
    out, log = work / "sequences" / f"{number}", work / "sequences" / f"{number}.log"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = case.words.replace("OUT", str(out))
    problems: list[str] = []
    kills = interrupts = 0
    slowest = 0.0
    for attempt in range(rng.choice((1, 1, 2, 3))):
        with log.open("w") as file:
            line = [sys.executable, *words.split(), *(case.again.split() if attempt else [])]
            process = subprocess.Popen(
                line, cwd=ROOT, stdout=file, stderr=file, start_new_session=True, env=_environment()
            )
        time.sleep(rng.uniform(0.3, 1.0) * duration_s)
        if process.poll() is not None:
            continue
        stopped = time.perf_counter()
        if rng.random() < 0.6:
            kills += 1
            process.kill()
        else:
            interrupts += 1
            for _ in range(rng.choice((1, 2))):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(rng.uniform(0, 0.5))
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                problems.append("Ctrl-C did not end it within 60 s")
                process.kill()
            text = log.read_text(encoding="utf-8", errors="replace")
            if process.returncode not in (0, INTERRUPTED, -signal.SIGINT) or "Traceback" in text or "Error" in text:
                problems.append(f"Ctrl-C: exit code {process.returncode}, {text[-2000:]!r}")
        process.wait()
        deadline = time.perf_counter() + ORPHAN_S
        while _session(process.pid) and time.perf_counter() < deadline:
            time.sleep(0.05)
        if orphans := _session(process.pid):
            problems.append(f"{len(orphans)} processes live {ORPHAN_S:.0f} s later")
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)
        slowest = max(slowest, time.perf_counter() - stopped)
    done = _run(f"{words} {case.again}")
    if done.returncode:
        problems.append(f"run again: exit code {done.returncode}, {done.stderr[-2000:]!r}")
    problems += [f"left: {path.relative_to(out)}" for path in out.rglob("*") if _LEFTOVER.search(path.name)]
    if not problems:
        expected, content = (_content(folder) for folder in (work / "reference" / _folder(case), out))
        problems += [
            f"differs: {name}" for name in sorted({*expected, *content}) if expected.get(name) != content.get(name)
        ]
    if not problems:
        shutil.rmtree(out)
        log.unlink()
    return Outcome(case.name, kills, interrupts, slowest, tuple(problems))


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print the figures of each command, as Markdown."""
    print("| command | sequences | kills | Ctrl-C | slowest end, s | problems |\n|---|---|---|---|---|---|")
    groups = [(name, [o for o in outcomes if o.case == name]) for name in dict.fromkeys(o.case for o in outcomes)]
    for name, group in [*groups, ("all", list(outcomes))]:
        figures = [len(group), sum(o.kills for o in group), sum(o.interrupts for o in group)]
        slowest, problems = max(o.end_s for o in group), sum(bool(o.problems) for o in group)
        print(f"| {name} | {' | '.join(map(str, figures))} | {slowest:.1f} | {problems} |")


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _run(words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *words.split()]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, env=_environment())


def _folder(case: Case) -> str:
    return case.name.replace(",", "").replace(" ", "_")


def _session(leader: int) -> list[int]:
    """The processes of a session that run."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state not in "ZX":
            alive.append(int(path.parent.name))
    return alive


def _content(folder: Path) -> dict[str, str]:
    """A digest of each file's content; logs of TensorBoard, of which each run adds one, are left out."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): _digest(path, folder) for path in paths}


def _digest(path: Path, folder: Path) -> str:
    digest = hashlib.sha256()
    if path.suffix not in _UNCOMPARED:
        for part in _parts(path, folder):
            digest.update(part)
    return digest.hexdigest()


def _parts(path: Path, folder: Path) -> Iterator[bytes]:
    """The content of a file without what differs from run to run: times, compression, the folder's name."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text(encoding="utf-8").replace(str(folder), "")),
        ".tar": load_checkpoint,
        ".npz": lambda path: dict(np.load(path)),
        ".npy": np.load,
        ".tif": lambda path: rasterio.open(path).read(),
        ".h5": lambda path: _tree(h5py.File(path)),
        ".hdf5": lambda path: _tree(h5py.File(path)),
    }
    reader = readers.get(path.suffix)
    yield from [path.read_bytes()] if reader is None else _flatten(reader(path), folder)


def _tree(group: Any) -> Any:
    """Groups, attributes and data sets of an HDF5 file; chunks of packs as they are stored."""
    if isinstance(group, h5py.Dataset):
        if group.name.endswith("/pixels"):
            chunks = (group.id.get_chunk_info(index) for index in range(group.id.get_num_chunks()))
            return {str(chunk.chunk_offset): group.id.read_direct_chunk(chunk.chunk_offset)[1] for chunk in chunks}
        return group[()]
    return {"attributes": dict(group.attrs), **{name: _tree(group[name]) for name in group}}


def _flatten(value: Any, folder: Path) -> Iterator[bytes]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            if not (isinstance(key, str) and _UNCOMPARED_ENTRIES.search(key)):
                yield str(key).encode()
                yield from _flatten(value[key], folder)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item, folder)
    elif hasattr(value, "tobytes") or hasattr(value, "numpy"):
        array = np.asarray(value)
        yield repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    else:
        yield repr(value).replace(str(folder), "").encode()


if __name__ == "__main__":
    raise SystemExit(run_command(main))

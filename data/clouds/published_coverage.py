"""Cloud coverage from the files published for SEN12MS-CR-TS, read without trusting them, matched by path."""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataError
from data.constants import DETECTORS

_PATH_PARTS = 5  # ROIs1868/73/S2/14/s2_….tif; published files put the name of the root's folder before it
_NOT_ONE = (  # what a pickle that is no such file can end in
    ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, RuntimeError, ImportError, MemoryError,
    OverflowError,
)  # fmt: skip
_NAME = re.compile(rf"generic_(\d+)_([A-Za-z]+)_([A-Za-z]+)_({'|'.join(DETECTORS)})\.npy")


class ImportedCoverage:
    """Coverage by image path, whatever the position in the file (which the published loader went by).

    Args:
        source: the file, for messages.
        coverage: by path; only the last five parts of a path count.
    """

    def __init__(self, source: Path, coverage: Mapping[str, float]) -> None:
        self.source = source
        # 12 bytes an image instead of a dict's 200: half a million images are common, and every worker has a copy
        digests = np.fromiter((_digest(path) for path in coverage), np.uint64, len(coverage))
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._values = np.fromiter(coverage.values(), np.float32, len(coverage))[order]

    def __len__(self) -> int:
        return len(self._digests)

    def lookup(self, rel_paths: Sequence[str]) -> np.ndarray:
        """The coverage of each image, float64; NaN where the file does not know it."""
        wanted = np.fromiter((_digest(path) for path in rel_paths), np.uint64, len(rel_paths))
        if not len(self):
            return np.full(len(wanted), np.nan)
        place = np.searchsorted(self._digests, wanted).clip(max=len(self) - 1)
        return np.where(self._digests[place] == wanted, self._values[place].astype(np.float64), np.nan)


def read_published(path: str | Path) -> ImportedCoverage:
    """Read a published `generic_N_SPLIT_REGION_DETECTOR.npy`.

    Args:
        path: a pickled dict: position -> {"coverage": tensors or numbers, "paths": {"S1": [...], "S2": [...]}}.

    Returns:
        Coverage by path of the optical image.

    Raises:
        DataError: if the file is missing, is no such dict, or its pickle asks for anything but arrays and tensors;
            nothing that it names is run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            samples = _unpickled(file)
    except OSError as error:
        raise DataError(f"cannot read the coverage file {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"refused to read {path}: {error}; get the file from where it was published") from error
    except _NOT_ONE as error:
        raise DataError(f"not a published coverage file (a pickled dict in .npy): {path} ({error})") from error
    if not isinstance(samples, dict) or not samples:
        raise DataError(f"not a published coverage file: {path} holds {type(samples).__name__}, expected a dict")
    coverage: dict[str, float] = {}
    for position, sample in samples.items():
        coverage.update(_of_sample(path, position, sample))
    return ImportedCoverage(path, coverage)


def published_name(path: str | Path) -> tuple[int, str, str, str] | None:
    """(number of inputs, split, region, detector) of a published file's name, None if it is not one."""
    found = _NAME.fullmatch(Path(path).name)
    return (int(found[1]), found[2], found[3], found[4]) if found else None


def find_published(folder: Path, detector: str, n_inputs: int, split: str, region: str) -> Path | None:
    """The published file in a folder that knows the coverage of a split, None if there is none.

    The number of inputs does not change coverage, and matching is by path, so a file made for another number, for the
    whole split or for all of them serves as well.
    """
    names = [(name, published_name(name)) for name in sorted(folder.glob("generic_*.npy"))]

    def rank(facts: tuple[int, str, str, str]) -> tuple[bool, bool, bool]:
        return facts[1] != split, facts[2] != region, facts[0] != n_inputs

    fitting = [
        (rank(facts), name)
        for name, facts in names
        if facts and facts[3] == detector and facts[1] in (split, "all") and facts[2] in (region, "all")
    ]
    return min(fitting)[1] if fitting else None


def _of_sample(path: Path, position: object, sample: Any) -> Iterable[tuple[str, float]]:
    if not isinstance(sample, dict) or not {"coverage", "paths"} <= set(sample):
        raise DataError(f"{path}: sample {position} holds no 'coverage' and 'paths'; only generic_… files can be read")
    paths = sample["paths"].get("S2") if isinstance(sample["paths"], dict) else None
    values = sample["coverage"]
    if (
        not isinstance(paths, list | tuple)
        or not isinstance(values, list | tuple | np.ndarray)
        or len(paths) != len(values)
    ):
        raise DataError(f"{path}: sample {position} does not pair one coverage with each S2 path")
    names = [entry[0] if isinstance(entry, list | tuple) and len(entry) == 1 else entry for entry in paths]
    numbers = [_number(value) for value in values]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: sample {position} names its S2 images by something else than text")
    if not all(0 <= number <= 1 for number in numbers):  # NaN fails too
        raise DataError(f"{path}: sample {position} has a coverage outside [0, 1]")
    return zip(names, numbers, strict=True)


def _number(value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return float("nan")


def _key(path: str) -> str:
    return "/".join(path.replace("\\", "/").split("/")[-_PATH_PARTS:])


def _digest(path: str) -> int:
    return int.from_bytes(blake2b(_key(path).encode(), digest_size=8).digest(), "little")


def _unpickled(file: BinaryIO) -> Any:
    """The object in an npy file, which `np.load` would hand to an unpickler that runs whatever it is told to."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"it is an array {shape} of {dtype}, not one pickled object")
    array = _ArraysOnly(file).load()
    return array.item() if isinstance(array, np.ndarray) and array.shape == () else array


def _tensor_storage(data: bytes) -> Any:
    # torch's own loader of storages inside a pickle unpickles again, without limits: this one has them
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for numbers, texts, containers, numpy arrays and torch tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy renamed numpy.core to numpy._core in 2.0: files name either, whichever is installed
        place = module.replace("numpy._core.", "numpy.core.")
        if (place, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (place, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar")):
            return _numpy_builders()[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _tensor_storage
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, and only arrays and tensors are admitted")


def _numpy_builders() -> dict[str, Any]:
    # taken from numpy's own reductions, so that no private module is named
    return {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float32(0).__reduce__()[0]}

"""Cloud coverage from the files published for SEN12MS-CR-TS, read safely and matched by path."""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.damage import DAMAGED_ARRAY
from common.errors import DataError
from data.constants import DETECTORS

_PATH_PARTS = 5  # ROIs1868/73/S2/14/s2_….tif; in published files the root's name precedes it
# what reading another pickle can raise
_MALFORMED: tuple[type[Exception], ...] = (*DAMAGED_ARRAY, AttributeError, ImportError)
_NAME = re.compile(rf"generic_(\d+)_([A-Za-z]+)_([A-Za-z]+)_({'|'.join(DETECTORS)})\.npy")


class ImportedCoverage:
    """Coverage by image path; the published loader relied on positions in the file.

    Args:
        source: the file, for messages.
        coverage: by path, of which the last five parts are used.
    """

    def __init__(self, source: Path, coverage: Mapping[str, float]) -> None:
        self.source = source
        # 12 bytes an image instead of a dict's 200: every worker has a copy of up to half a million
        digests = np.fromiter((_digest(path) for path in coverage), np.uint64, len(coverage))
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._values = np.fromiter(coverage.values(), np.float32, len(coverage))[order]

    def __len__(self) -> int:
        return len(self._digests)

    def lookup(self, rel_paths: Sequence[str]) -> np.ndarray:
        """The coverage of each image, float64; NaN if it is not in the file."""
        digests = np.fromiter((_digest(path) for path in rel_paths), np.uint64, len(rel_paths))
        if not len(self):
            return np.full(len(digests), np.nan)
        place = np.searchsorted(self._digests, digests).clip(max=len(self) - 1)
        return np.where(self._digests[place] == digests, self._values[place].astype(np.float64), np.nan)


def read_published(path: str | Path) -> ImportedCoverage:
    """Read a published `generic_N_SPLIT_REGION_DETECTOR.npy`.

    Args:
        path: a pickled dict: position -> {"coverage": tensors or numbers, "paths": {"S1": [...], "S2": [...]}}.

    Returns:
        Coverage by path of the optical image.

    Raises:
        DataError: if the file is missing, is no such dict, or its pickle refers to anything but arrays and tensors;
            no code that it refers to is run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            samples = _unpickle(file)
    except OSError as error:
        raise DataError(f"cannot read the coverage file {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"refused to read {path}: {error}; get the file from where it was published") from error
    except _MALFORMED as error:
        raise DataError(f"not a published coverage file (a pickled dict in .npy): {path} ({error})") from error
    if not isinstance(samples, dict) or not samples:
        raise DataError(f"not a published coverage file: {path} holds {type(samples).__name__}, expected a dict")
    coverage: dict[str, float] = {}
    for position, sample in samples.items():
        coverage.update(_sample_coverage(path, position, sample))
    return ImportedCoverage(path, coverage)


def published_name(path: str | Path) -> tuple[int, str, str, str] | None:
    """(number of inputs, split, region, detector) in the name of a published file, None for other names."""
    match = _NAME.fullmatch(Path(path).name)
    return (int(match[1]), match[2], match[3], match[4]) if match else None


def find_published(folder: Path, detector: str, n_inputs: int, split: str, region: str) -> Path | None:
    """The published file in a folder that has the coverage of a split, None if there is none.

    Coverage does not depend on the number of inputs, and matching is by path, so a file for another number, for all
    regions or for all splits is accepted too.
    """
    names = [(path, published_name(path)) for path in sorted(folder.glob("generic_*.npy"))]

    candidates = [
        ((parts[1] != split, parts[2] != region, parts[0] != n_inputs), path)
        for path, parts in names
        if parts and parts[3] == detector and parts[1] in (split, "all") and parts[2] in (region, "all")
    ]
    return min(candidates)[1] if candidates else None


def _sample_coverage(path: Path, position: object, sample: Any) -> Iterable[tuple[str, float]]:
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
        raise DataError(f"{path}: sample {position} has S2 paths that are not text")
    if not all(0 <= number <= 1 for number in numbers):  # NaN fails too
        raise DataError(f"{path}: sample {position} has a coverage outside [0, 1]")
    return zip(names, numbers, strict=True)


def _number(value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return float("nan")


def _digest(path: str) -> int:
    key = "/".join(path.replace("\\", "/").split("/")[-_PATH_PARTS:])
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def _unpickle(file: BinaryIO) -> Any:
    """The object in an npy file; the unpickler of `np.load` would run any code in it."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"it is an array {shape} of {dtype}, not one pickled object")
    array = _ArraysOnly(file).load()
    return array.item() if isinstance(array, np.ndarray) and array.shape == () else array


def _tensor_storage(data: bytes) -> Any:
    # torch's own loader of storages in a pickle unpickles again, without restrictions
    import torch  # deferred: heavy, rarely needed here

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler restricted to numbers, text, containers, numpy arrays and torch tensors."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2.0 renamed numpy.core to numpy._core: files may refer to either
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
            from torch._utils import _rebuild_tensor_v2  # deferred: heavy, rarely needed here

            return _rebuild_tensor_v2
        raise pickle.UnpicklingError(f"its pickle refers to {module}.{name}, only arrays and tensors are allowed")


def _numpy_builders() -> dict[str, Any]:
    # from numpy's own reductions, to avoid private modules
    return {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float32(0).__reduce__()[0]}

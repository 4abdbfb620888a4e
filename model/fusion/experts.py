"""The experts of a fusion, loaded from their runs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from config.experts import ExpertRun
from model.reconstructor import Reconstructor
from model.restore import load_model


def load_experts(runs: Sequence[ExpertRun]) -> tuple[list[Reconstructor], tuple[dict[str, Any], ...]]:
    """The experts with their weights, strictly, on the CPU.

    Returns:
        The networks, and for conf.json the name, run and flags of each, from which a fusion is rebuilt.

    Raises:
        DataError: if weights are missing or do not fit; the keys are listed.
    """
    networks, entries = [], []
    for run in runs:
        network = load_model(run.path).model
        flags = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(network.config).items()}
        networks.append(network)
        entries.append({"name": run.name, "run": str(run.path), "flags": flags})
    return networks, tuple(entries)

"""Splits of both data sets by region of interest (ROI)."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import UsageError
from data.constants import REGIONS, SPLITS

SERIES, MONO = "SEN12MS-CR-TS", "SEN12MS-CR"
DATASETS = (SERIES, MONO)
_PARTS = ("train", "test", "val")


def rois(dataset: str, split: str, region: str = "all", legacy: bool = False) -> tuple[str, ...]:
    """The distinct ROIs of a split, in natural order (season, then number).

    Args:
        dataset: "SEN12MS-CR-TS" (entries such as "ROIs1868/73") or "SEN12MS-CR" ("ROIs1970_fall/139").
        split: train, val, test, or all of them.
        region: all, or one of the five regions of SEN12MS-CR-TS; SEN12MS-CR has none.
        legacy: for SEN12MS-CR, membership as published: an ROI belongs to a split if its number merely starts
            with that of a member, so `fall/1` includes `fall/106` of another split.

    Returns:
        The names of the ROIs; the splits are disjoint unless `legacy`.

    Raises:
        UsageError: if the data set, split or region is unknown.

    Source:
        Splits published with UnCRtainTS (Ebel et al. 2023). Changes: exact membership; `legacy` restores the leak.
    """
    _check("data set", dataset, DATASETS)
    _check("split", split, SPLITS)
    _check("region", region, REGIONS)
    if region not in _tables()[dataset]:
        raise UsageError(
            f"{dataset} is not divided into regions, but region {region!r} was asked for; use --region all"
        )
    members = _members(dataset, split, region)
    if legacy and dataset == MONO:
        members = [roi for roi in _members(dataset, "all", region) if roi.startswith(tuple(members))]
    return tuple(sorted(members, key=_natural))


def hold_out(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Draw ROIs by a seed; the order of two ROIs does not depend on the others.

    Args:
        names: the ROIs to draw from; repetitions are ignored.
        count: number of ROIs.
        seed: of the draw.

    Returns:
        At most `count` ROIs, in the order of the draw.
    """
    drawn = sorted(set(names), key=lambda roi: hashlib.sha256(f"{seed}/{roi}".encode()).hexdigest())
    return tuple(drawn[:count])


def _members(dataset: str, split: str, region: str) -> list[str]:
    table = _tables()[dataset][region]
    return [roi for part in (_PARTS if split == "all" else (split,)) for roi in table[part]]


def _natural(roi: str) -> tuple[str, int]:
    season, number = roi.split("/")
    return season, int(number)


def _check(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"unknown {what} {value!r}; choose from {', '.join(choices)}")


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))
    return tables

"""Mutations of files, hostile numbers for flags, and the count of cases."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError

CASES = int(os.environ.get("FUZZ_CASES", "0"))  # of all files together; 0: the few of the test suite
COUNTS: Counter[tuple[str, str]] = Counter()  # by (target, "accepted" or "refused")
NUMBERS = (
    *("0", "-1", "1", "3", "0.5", "-0.5", "1e-320", "1e30", "1e38", "1e300", "1e999", "nan", "inf", "-inf"),
    *(str(2**31), str(2**63), "9" * 25, "9" * 5000, "text", "", " ", "1,2", "[]", "[8,8]", "auto", "none"),
    *("\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "\N{GREEK SMALL LETTER ALPHA}\n", "%s{0}$x", "cpu"),
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**62, 10**25, 0.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", "0", "nan", "x" * 10_000, "a\0b", "\udcff", "../../x", "2018-06-21", "\N{SUPERSCRIPT TWO}"),
    *([], {}, [None], [[]], [0] * 40, {"": {}}, {"0": None}, json.loads("[" * 300 + "]" * 300)),
)
_POSITIONS = st.integers(0, 2**31)

# each turns the content of a file into another one
BYTES = st.one_of(
    st.builds(
        lambda changes: lambda content: _flip(content, changes),
        st.lists(st.tuples(_POSITIONS, st.integers(0, 255)), min_size=1, max_size=6),
    ),
    st.builds(lambda share: lambda content: content[: int(share * len(content))], st.floats(0, 1)),
    st.builds(
        lambda start, length, extra: lambda content: _splice(content, start, length, extra),
        _POSITIONS,
        st.integers(0, 64),
        st.binary(max_size=64),
    ),
)
NODES = st.builds(
    lambda place, value, removed: lambda content: _replace_node(content, place, value, removed),
    _POSITIONS,
    st.sampled_from(HOSTILE),
    st.integers(0, 5).map(lambda number: number == 0),
)
JSON = st.one_of(NODES, NODES, NODES, BYTES)


def fuzz(
    target: str,
    cases: int,
    content: bytes,
    read: Callable[[bytes], object],
    mutations: st.SearchStrategy = JSON,
    refusals: Sequence[type[Exception]] = (),
) -> None:
    """Read a file, which must be accepted, and mutations of it, which may be refused by a `UserError`.

    Args:
        target: name of the kind of file.
        cases: in the test suite; a longer run has its share of `CASES`, of 1,000 in all.
        content: of the file.
        read: writes a content to a file and reads it.
        mutations: strategy of functions of the content.
        refusals: exceptions that refuse a file, besides `UserError`.
    """
    read(content)

    @settings(
        max_examples=max(1, CASES * cases // 1000) if CASES else cases,
        deadline=None,
        derandomize=not CASES,  # the suite tries the same cases each time, a longer run new ones
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations)
    def check(mutate: Callable[[bytes], bytes]) -> None:
        try:
            read(mutate(content))
        except (UserError, *refusals):
            COUNTS[target, "refused"] += 1
        else:
            COUNTS[target, "accepted"] += 1

    check()


def put(path: Path, content: bytes) -> Path:
    """Write a mutated file; a new one each time, as readers may hold the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def _flip(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for place, value in changes:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


def _splice(content: bytes, start: int, length: int, extra: bytes) -> bytes:
    start %= len(content) + 1
    return content[:start] + extra + content[start + length :]


def _replace_node(content: bytes, place: int, value: object, removed: bool) -> bytes:
    tree = [json.loads(content)]
    nodes = list(_nodes(tree))
    parent, key = nodes[place % len(nodes)]
    if removed and parent is not tree:
        del parent[key]
    else:
        parent[key] = value
    return json.dumps(tree[0]).encode()


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _nodes(value)

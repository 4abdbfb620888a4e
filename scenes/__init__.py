"""Whole scenes: read by windows from a practitioner's own files, reconstructed tile by tile, written as products."""

from typing import Any

__all__ = ["reconstruct_cube"]


def __getattr__(name: str) -> Any:
    """`reconstruct_cube`, imported when it is first used: xarray, dask and torch are heavy."""
    if name == "reconstruct_cube":
        from scenes.cube import reconstruct_cube  # heavy, and not every user of this package needs it

        return reconstruct_cube
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Kernels with more than one backend."""

from model.ops.selective_scan import choose_backend, selective_scan

__all__ = ["choose_backend", "selective_scan"]

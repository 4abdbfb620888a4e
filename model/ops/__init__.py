"""Kernels with more than one backend."""

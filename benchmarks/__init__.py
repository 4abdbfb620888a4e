"""Benchmarks of speed, memory and accuracy; results with commit, device and command."""

"""Fusion of the beliefs of several trained networks: see docs/fusion.md."""

"""Fusion of the predictions of several trained networks: see docs/fusion.md."""

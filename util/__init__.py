"""Metrics, plots, exports, run folders, and the small command lines."""

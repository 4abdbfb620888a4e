"""Metrics, calibration, exports and plots of a split."""

"""Rasters that stay open, their grids, and windows of them."""

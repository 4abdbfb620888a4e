"""From rasters to batches."""

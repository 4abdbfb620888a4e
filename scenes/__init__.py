"""Whole scenes: read by windows from a practitioner's own files, reconstructed tile by tile, written as products."""

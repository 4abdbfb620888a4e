"""Cloud detectors and the store of their masks."""

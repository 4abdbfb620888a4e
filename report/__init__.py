"""Reports: one self-contained HTML page about a test, an ensemble, or several runs."""

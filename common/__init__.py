"""Errors, files, processes: small helpers that import nothing of ours."""

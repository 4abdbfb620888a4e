"""Flags: one schema, resolved and validated."""

"""Readers of the kinds of files that scenes come in, one module a kind."""

"""Blocks that backbones are made of, and the heads."""

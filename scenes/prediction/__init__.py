"""Tiles: their plan, prediction, and blending."""

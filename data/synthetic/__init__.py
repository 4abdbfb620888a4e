"""Synthetic landscapes, clouds and radar."""

"""Fixtures of the tests of inputs: one optical image, or a function that writes others."""

import pytest

from tests.support.scene_files import ground, write_tif


@pytest.fixture
def write_optical(tmp_path):
    """Writes one optical image; returns its path."""

    def write(pixels=None, name="s2_2018-06-21.tif", **options) -> str:
        return write_tif(tmp_path / name, ground() if pixels is None else pixels, **options)

    return write


@pytest.fixture
def optical(write_optical) -> str:
    """The path of an optical image of 2018-06-21."""
    return write_optical()

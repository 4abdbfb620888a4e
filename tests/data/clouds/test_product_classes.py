"""Clouds in the classifications of products, class by class."""

import numpy as np
import pytest

from data.clouds.product_classes import class_fault, product_clouds


def test_shadows_clouds_cirrus_and_what_is_unknown_are_clouds_of_the_scene_classification():
    values = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 255]], np.uint8)
    clouded = [True, True, False, True, False, False, False, False, True, True, True, False, True, True]
    np.testing.assert_array_equal(product_clouds(values[None], "scl"), [clouded])
    warped = np.array([[4, 9, np.nan]], np.float32)
    np.testing.assert_array_equal(product_clouds(warped[None], "scl"), [[False, True, True]])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int16])
def test_bits_10_and_11_of_qa60_are_clouds(dtype):
    values = np.array([[0, 1 << 10, 1 << 11, 3 << 10]], dtype)
    np.testing.assert_array_equal(product_clouds(values[None], "qa60"), [[False, True, True, True]])


def test_unknown_values_of_qa60_are_clouds():
    values = np.array([[np.nan, -9999, np.inf, 65535, 1e12, 0]])
    np.testing.assert_array_equal(product_clouds(values[None], "qa60"), [[True, True, True, True, True, False]])


def test_opaque_clouds_and_cirrus_are_clouds_of_msk_classi():
    values = np.array([[[0, 1, 0, 1]], [[0, 0, 1, 1]]], np.uint8)
    np.testing.assert_array_equal(product_clouds(values, "classi"), [[False, True, True, True]])


@pytest.mark.parametrize(
    ("values", "kind", "fault"),
    [
        ([4.0, 5.5, 9], "scl", "SCL has values such as 5.5: classes were interpolated; resample them by nearest"),
        ([4, 99, 9], "scl", "SCL has values such as 99, which are no classes"),
        ([0, 0, 255], "scl", "SCL is empty"),
        ([np.nan, np.nan], "scl", "SCL is empty"),
        ([0, 7], "qa60", "QA60 has values such as 7, which are no classes"),
        ([0, 40], "classi", "CLASSI has values such as 40, which are no classes"),
    ],
)
def test_values_that_are_no_classification_are_named(values, kind, fault):
    assert class_fault(np.array([values], float), kind) == fault


def test_classifications_have_no_fault():
    assert not class_fault(np.array([[0, 4, 11, 255, np.nan]]), "scl")
    assert not class_fault(np.zeros((1, 4), np.uint16), "qa60")
    assert not class_fault(np.array([[0, 1], [1, 0]], np.uint8), "classi")

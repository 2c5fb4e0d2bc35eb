"""Photographs and the patches that are cut out of them."""

from __future__ import annotations

import numpy as np

from intarsia.core.errors import DataError
from intarsia.data.photographs import grey, patches, photographs

from ..refusals import refused


def test_bundled_photographs_need_no_download_and_are_shrunk() -> None:
    whole, half = (photographs((), shrink=s) for s in (1, 2))
    assert [p.name for p in whole] == ["china", "flower"]
    assert whole[0].pixels.shape == (427, 640, 3) and half[0].pixels.shape == (214, 320, 3)
    assert half[0].pixels.dtype == np.uint8 and half[0].source == "scikit-learn"


def test_grey_keeps_a_grey_picture() -> None:
    shade = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_allclose(grey(np.stack([shade] * 3, -1)), grey(shade))


def test_patches_are_parts_of_their_pictures() -> None:
    pictures = [np.arange(30.0).reshape(5, 6), 100 + np.arange(9.0).reshape(3, 3)]
    found = patches(pictures, 3, 4, np.random.default_rng(0))
    assert found.shape == (4, 9)
    np.testing.assert_array_equal(found[1], pictures[1].ravel())
    assert all((np.diff(row.reshape(3, 3), axis=0) == 6).all() for row in found[::2])
    with refused(DataError, what="picture"):
        patches(pictures, 4, 1, np.random.default_rng(0))

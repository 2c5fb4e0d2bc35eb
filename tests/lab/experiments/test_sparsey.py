"""The digits that Sparsey sees are thin strokes."""

from __future__ import annotations

import numpy as np

from intarsia_lab.materials import thin_digits


def test_a_thin_stroke_is_a_line() -> None:
    picture = np.zeros((28, 28))
    picture[4:24, 10:17] = 255
    line = thin_digits.thin(picture)
    assert 8 <= line.sum() <= 45 and line[14].sum() == 1

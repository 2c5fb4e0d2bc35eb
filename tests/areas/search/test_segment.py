"""Texts of a segment stay bytes until they are read."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.areas.search.segment import PackedTexts


def test_packed_texts_are_the_texts() -> None:
    texts = ["", "caf\u00e9", "a", "", "\U0001f600 b"]
    raw = [text.encode() for text in texts]
    ends = np.cumsum([len(part) for part in raw])
    packed = PackedTexts(np.frombuffer(b"".join(raw), np.uint8), ends)
    assert packed == texts and packed[-1] == texts[-1] and packed[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        packed[5]
    for wrong in (ends - 1, ends[::-1].copy(), np.array([4, 5, 5, 5, 11])):
        with pytest.raises(ValueError):
            PackedTexts(np.frombuffer(b"".join(raw), np.uint8), wrong)

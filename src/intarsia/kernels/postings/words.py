"""The kernel of words.c: the words of texts as numbers, by a dictionary that grows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np

from ..native import function
from .naive import WORD, Array, WordNumbers

P, N = c_void_p, c_int64


def word_numbers() -> WordNumbers:
    """Return numbers of words that know none yet, compiled where there is a compiler."""
    return WordNumbers() if function("words_new") is None else CompiledWordNumbers()


class CompiledWordNumbers(WordNumbers):
    """Numbers of words by a dictionary in C: the same numbers as `WordNumbers`."""

    def __init__(self) -> None:
        """Make an empty dictionary.  Raises: MemoryError."""
        new, free = function("words_new"), function("words_free", P)
        add, copy = function("words_add", P, P, P, N, P, P), function("words_copy", P, N, P, P)
        size, length = function("words_bytes", P, N), function("words_count", P)
        assert new and free and add and copy and size and length
        # the functions of one build, whichever is used later
        self._add, self._copy, self._size, self._length = add, copy, size, length
        self._handle = new()
        if not self._handle:
            raise MemoryError("no memory for a dictionary")
        weakref.finalize(self, free, self._handle)

    def __len__(self) -> int:
        return self._length(self._handle)

    def add(self, texts: Sequence[str]) -> tuple[Array, Array]:
        lower = (text.lower() for text in texts)
        # C splits ASCII; of other texts it gets the words, with spaces between them
        raw = [
            (t if t.isascii() else " ".join(WORD.findall(t))).encode("utf-8", "surrogatepass")
            for t in lower
        ]
        ends = np.cumsum([len(encoded) for encoded in raw], dtype=np.int64)
        letters = b"".join(raw)
        numbers, of_text = np.empty(len(letters) // 2 + 1, np.int32), np.zeros_like(ends)
        count_or_fault = self._add(
            self._handle,
            letters,
            ends.ctypes.data,
            len(raw),
            numbers.ctypes.data,
            of_text.ctypes.data,
        )
        if count_or_fault < 0:
            raise MemoryError("no memory for a dictionary")
        return numbers[:count_or_fault], of_text

    def since(self, first: int) -> list[str]:
        letters = np.empty(self._size(self._handle, first), np.uint8)
        ends = np.empty(len(self) - first, np.int64)
        self._copy(self._handle, first, letters.ctypes.data, ends.ctypes.data)
        text, places = letters.tobytes(), ends.tolist()
        starts = [0, *places[:-1]]
        return [
            text[a:b].decode("utf-8", "surrogatepass")
            for a, b in zip(starts, places, strict=bool(places))
        ]

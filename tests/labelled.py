"""Labelled texts and a table of numbers for tests: words tell the classes apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

WORDS = {
    "animal": "cat dog horse mouse whale sparrow",
    "food": "bread soup cheese apple rice honey",
    "place": "city river island valley harbour desert",
}


def texts(each: int = 12, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return sentences of four words, two of them of their class, and their classes."""
    draw = np.random.default_rng(seed)
    rows = [
        (" ".join(["the", *draw.choice(words.split(), 2), "stands here"]), name)
        for name, words in WORDS.items()
        for _ in range(each)
    ]
    return [text for text, _ in rows], [name for _, name in rows]


def write_csv(file: Path, each: int = 12, columns: tuple[str, str] = ("text", "label")) -> Path:
    """Write the sentences as a table."""
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([columns, *zip(*texts(each), strict=True)])
    return file


def write_numbers(file: Path) -> Path:
    """Write a table of two numbers that tell two classes apart."""
    draw = np.random.default_rng(0).normal(size=(40, 2))
    rows = [(f"{a + 4 * (i % 2):.4f}", f"{b:.4f}", "ab"[i % 2]) for i, (a, b) in enumerate(draw)]
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("width", "height", "kind"), *rows])
    return file

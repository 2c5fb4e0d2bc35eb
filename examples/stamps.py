"""Write the pictures that README trains on: 371 stamps of Tux Paint in four classes.

    python examples/stamps.py photos

They come from Debian's package tuxpaint-stamps-default, which is obtained once.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from intarsia.data import sets

CLASSES = ("animals", "food", "town", "vehicles")


def labelled(*, tiny: bool) -> Iterable[tuple[Image.Image, str]]:
    """Yield the pictures and their classes; noise of the same classes where it has to be tiny."""
    if tiny:
        random = np.random.default_rng(0)
        for name in CLASSES:
            for _ in range(3):
                yield Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)), name
        return
    stamps = sets.load("tuxpaint")
    for pixels, label in zip(stamps.images, stamps.labels, strict=True):
        yield Image.fromarray(np.asarray(pixels)), stamps.classes[label]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a few pictures of noise, offline")
    args = parser.parse_args()
    counts = Counter[str]()
    for picture, name in labelled(tiny=args.tiny):
        if name in CLASSES:
            counts[name] += 1
            file = args.folder / name / f"{counts[name]:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").save(file)
    print(f"{args.folder}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()

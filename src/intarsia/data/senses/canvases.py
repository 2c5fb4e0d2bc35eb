"""Pictures of 16 small shop pictures, and whether one of a kind is among them.

A canvas of 224 px has four tiles of 112 px, and each tile four items of 56 px. Three kinds fill it,
three stand in it once, and four are absent: a question names one of the last seven.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from intarsia.data.packages import obtain, pinned
from intarsia.data.readers import fashion_mnist
from intarsia.data.senses.questions import Question

SIDE, ACROSS, ITEM = 224, 4, 56  # px, items, px
FILL, NEEDLES, TRAINING = 3, 3, 60_000
NAMES = tuple(str.split("T-shirt trousers pullover dress coat sandal shirt sneaker bag boot"))


@lru_cache(maxsize=1)
def _items() -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = fashion_mnist(obtain(pinned("dataset-fashion-mnist")))
    return np.asarray(images), np.asarray(labels)


def canvas_questions(count: int, seed: int, *, test: bool = False) -> list[Question]:
    """Six questions for each of so many canvases, half of them to be answered by yes.

    test: of items of the publisher's test part.
    """
    images, labels = _items()
    part = np.arange(TRAINING, len(labels)) if test else np.arange(TRAINING)
    draws = np.random.default_rng([seed, int(test)])
    of_kind = [part[labels[part] == kind] for kind in range(len(NAMES))]
    found: list[Question] = []
    for number in range(count):
        kinds = draws.permutation(len(NAMES))
        fill, needles, absent = np.split(kinds, [FILL, FILL + NEEDLES])
        rest = ACROSS * ACROSS - NEEDLES
        shown = draws.permutation([*needles, *fill, *draws.choice(fill, rest - FILL)])
        picture = canvas([images[draws.choice(of_kind[kind])] for kind in shown])
        asked = [(k, "yes") for k in needles] + [(k, "no") for k in absent[:NEEDLES]]
        for kind, answer in asked:
            text = f"Is there a {NAMES[kind]}?"
            found.append(Question(text, answer, image=(picture,), group=f"{seed}-{number}"))
    return found


def canvas(items: list[np.ndarray]) -> Image.Image:
    """16 grey items, row by row."""
    page = Image.new("RGB", (SIDE, SIDE))
    for place, item in enumerate(items):
        small = Image.fromarray(item).resize((ITEM, ITEM), Image.Resampling.BICUBIC)
        page.paste(small.convert("RGB"), (place % ACROSS * ITEM, place // ACROSS * ITEM))
    return page

"""A small shop: users take items of one colour in turn, and everything is known of the items."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.data.interactions import Interactions, ItemField, events

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def shop() -> Interactions:
    """12 users, 18 items, 6 of each colour; a user takes 8 of her colour, a minute apart."""
    random = np.random.default_rng(0)
    items = [str(i) for i in range(18)]
    colours = tuple((COLOURS[i % 3],) for i in range(18))
    fields = {
        "colour": ItemField("token", colours),
        "tags": ItemField("token_seq", tuple((c[0], f"t{i % 5}") for i, c in enumerate(colours))),
        "price": ItemField("float", tuple(float(i) if i else np.nan for i in range(18))),
    }
    rows: list[tuple[str, str, float, float]] = []
    for user in range(12):
        liked = [i for i in range(18) if i % 3 == user % 3]
        for step in range(8):
            item = liked[(user + step) % 6] if step < 6 else int(random.choice(liked))
            rows.append((f"u{user}", items[item], user * 1e4 + step * 60.0, 4.0 + step % 2))
    return events(rows, item_ids=items, fields=fields)

"""Sessions of films of MovieLens-100k, by users."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from intarsia.areas.recommend.onerec import OneRec
from intarsia.data.atomic_files import load_interactions
from intarsia.data.interactions import Interactions

SETTINGS = OneRec()
EPOCHS, LEAST, SHARE = 12, 5, 0.8  # of training; events of a film; of a user's events, that train
OPTIONS: dict[str, Any] = {"batch_size": 64, "trackers": ()}


@lru_cache
def films() -> Interactions:
    """Return MovieLens-100k without films of fewer than 5 events."""
    data = load_interactions("ml-100k")
    # items are numbered again, without those that are left out
    frequent = data.popularity() >= LEAST
    events, place = data.rows(frequent[data.items]), frequent.cumsum() - 1
    ids = tuple(name for name, keep in zip(data.item_ids, frequent, strict=True) if keep)
    return replace(events, items=place[events.items], item_ids=ids, fields={})


def parts() -> tuple[Interactions, Interactions]:
    """Return the first 80 % of each user's events, and the rest."""
    data = films()
    counts = np.bincount(data.users, minlength=len(data.user_ids))
    # number of an event among its user's events, in the order of time
    place = np.arange(len(data)) - (counts.cumsum() - counts)[data.users]
    early = place < counts[data.users] * SHARE
    return data.rows(early), data.rows(~early)

"""Digits thinned to lines one pixel wide."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def thin(picture: Array) -> Array:
    """Thin the strokes of a picture to a width of one pixel, (H, W) bool.

    picture: (H, W) grey values. Pixels at the border of a stroke are removed as long as it stays
      connected.
    Source: Zhang and Suen, Comm. ACM 27, 1984.
    """
    on = np.pad(picture > 64, 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            # neighbours from the north, clockwise
            p = [np.roll(on, shift, (0, 1)) for shift in _AROUND]
            # changes from off to on around a pixel: 1 where it is at a simple border
            turns = sum((~p[k] & p[(k + 1) % 8]).astype(int) for k in range(8))
            near = sum(q.astype(int) for q in p)
            corner, opposite = (p[0] & p[2] & p[4], p[2] & p[4] & p[6])
            if not first:
                corner, opposite = (p[0] & p[2] & p[6], p[0] & p[4] & p[6])
            # pixels that can go without a break or a shorter end
            gone = on & (turns == 1) & (near >= 2) & (near <= 6) & ~corner & ~opposite
            on = on & ~gone
            changed |= bool(gone.any())
    return on[1:-1, 1:-1]


# shifts that bring the neighbour in the north, north-east, east, ... to a pixel's place
_AROUND = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))

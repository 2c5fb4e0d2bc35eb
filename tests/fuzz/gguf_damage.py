"""Damage to a GGUF file, which knows where its counts, lengths, types and offsets stand."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST = 8, 9  # types of a value
HUGE = (2**31, 2**40, 2**63, 2**64 - 1)
Place = tuple[str, int, int]  # what stands there, position, bytes


def places(raw: bytes) -> Iterator[Place]:
    """Find the counts, lengths, types, sides and offsets of a good file."""
    position = 24
    yield from (("count", 8, 8), ("count", 16, 8))

    def number(width: int) -> int:
        nonlocal position
        position += width
        return int.from_bytes(raw[position - width : position], "little")

    def text() -> Place:
        nonlocal position
        place, letters = ("length", position, 8), number(8)
        position += letters
        return place

    def value(kind: int) -> Iterator[Place]:
        nonlocal position
        if kind == TEXT:
            yield text()
        elif kind == LIST:
            yield from (("type", position, 4), ("count", position + 4, 8))
            inner, count = number(4), number(8)
            for _ in range(count):
                yield from value(inner)
        else:
            yield ("value", position, WIDTHS[kind])
            position += WIDTHS[kind]

    tensors, pairs = struct.unpack("<QQ", raw[8:24])
    for _ in range(pairs):
        yield text()
        yield ("type", position, 4)
        yield from value(number(4))
    for _ in range(tensors):
        yield text()
        yield ("count", position, 4)
        for _ in range(number(4)):
            yield ("side", position, 8)
            position += 8
        yield from (("type", position, 4), ("offset", position + 4, 8))
        position += 12


def gguf(raw: bytes, draw: random.Random) -> bytes:
    """Change a number of the header, or end the file too early."""
    header = list(places(raw))
    drawn = draw.choice(sorted({kind for kind, _, _ in header}))
    _, position, width = draw.choice([place for place in header if place[0] == drawn])
    if draw.random() < 0.15:
        return raw[: position + draw.randrange(width + 1)]
    before = int.from_bytes(raw[position : position + width], "little")
    types = (*range(14), 30, 99) if drawn == "type" else ()
    after = draw.choice((0, 1, before - 1, before + 1, before + 32, len(raw), *HUGE, *types))
    return (
        raw[:position]
        + (after % 2 ** (8 * width)).to_bytes(width, "little")
        + raw[position + width :]
    )

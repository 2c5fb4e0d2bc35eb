"""Small files that say that they are large: pictures, arrays and tables that unpack to much."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

Bomb = Callable[[bytes, random.Random], bytes]
SIDES = (2**14, 2**16 - 1, 2**31 - 1)
LONG = 2**28  # bytes of a cell, which zstd packs into some kilobytes


def _png(raw: bytes, draw: random.Random) -> bytes:
    """The sides in the header, whose checksum is right."""
    header = b"IHDR" + struct.pack(">II", draw.choice(SIDES), draw.choice(SIDES)) + raw[24:29]
    return raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:]


def _gif(raw: bytes, draw: random.Random) -> bytes:
    return raw[:6] + b"\xff\xff\xff\xff" + raw[10:]


def _bmp(raw: bytes, draw: random.Random) -> bytes:
    return raw[:18] + struct.pack("<ii", draw.choice(SIDES), draw.choice(SIDES)) + raw[26:]


def _npy(raw: bytes, draw: random.Random) -> bytes:
    """The shape in the header; the numbers behind it are as few as before."""
    start, end = raw.index(b"(", 10), raw.index(b")", 10)
    shape = draw.choice((b"(100000000000,", b"(2147483647, 2147483647,", b"(-1, -1,"))
    header = (raw[10:start] + shape + raw[end:]).split(b"\n")[0].rstrip()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return raw[:8] + struct.pack("<H", len(header)) + header + raw[raw.index(b"\n", 10) + 1 :]


def _parquet(raw: bytes, draw: random.Random) -> bytes:
    """A long text in the first column of texts."""
    table = pq.read_table(io.BytesIO(raw))
    texts = [i for i, field in enumerate(table.schema) if field.type == pa.string()]
    if not texts:
        return raw[: len(raw) // 2]
    place, rows = draw.choice(texts), table.num_rows
    column = pa.array(["a" * LONG, *table.column(place).to_pylist()[1:rows]], pa.large_string())
    written = io.BytesIO()
    pq.write_table(table.set_column(place, table.schema[place].name, column), written,
                   compression="zstd", use_dictionary=False, write_statistics=False)  # fmt: skip
    return written.getvalue()


BOMBS: dict[bytes, Bomb] = {
    b"\x89PNG": _png,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"\x93NUMPY": _npy,
    b"PAR1": _parquet,
}


def bomb_of(raw: bytes) -> Bomb | None:
    """Return what makes a bomb of a file of this format; None for one that does not pack."""
    return next((bomb for start, bomb in BOMBS.items() if raw.startswith(start)), None)
